"""Hooks, the registry and discovery, and building components, targets and architectures by name."""
