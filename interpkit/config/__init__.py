"""The recipe of a run, and the schemas of the files that a run consists of."""
