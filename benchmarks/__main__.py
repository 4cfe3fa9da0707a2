"""``python -m benchmarks``: run them all (``make bench``)."""

from benchmarks import condition_memory, help_time, loop_overhead, plugin_cost, vecmat_accuracy

if __name__ == "__main__":
    for benchmark in (help_time, plugin_cost, condition_memory, loop_overhead, vecmat_accuracy):
        print(f"\n{benchmark.__name__}\n{benchmark.__doc__}")
        benchmark.main()
