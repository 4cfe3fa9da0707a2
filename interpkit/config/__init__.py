"""The recipe of a run, and the schemas of a run's files."""
