"""Evaluate samples: the target's own scores, the metrics of plugins, and warnings."""
