"""How and where a run computes, and who watches it: devices, processes, precision, the recorder, the profiler."""
