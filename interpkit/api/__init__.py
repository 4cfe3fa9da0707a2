"""The verbs: invert, evaluate, finish and load, and the only code that knows every other folder."""
