"""The method: the training loop, its objective, and the results. Read loop.py first."""
