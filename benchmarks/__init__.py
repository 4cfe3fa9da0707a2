"""Measurements of the project's claims; each prints ratios against a baseline measured in the same run."""
