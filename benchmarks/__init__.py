"""Measurements of what the project claims; each prints ratios against a baseline in the same run."""
