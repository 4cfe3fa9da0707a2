"""Bytes and files: atomic writes, locks, safe reading, data sets and images. Knows nothing of networks."""
