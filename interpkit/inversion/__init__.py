"""TODO inversion."""
