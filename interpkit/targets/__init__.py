"""A classifier in memory and in a file."""
