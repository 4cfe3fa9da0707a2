"""Classifiers as targets, in memory and in files."""
