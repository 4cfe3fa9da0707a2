"""TODO attribution."""
