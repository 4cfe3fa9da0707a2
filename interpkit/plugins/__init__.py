"""From names to things: hooks, the registry, discovery, and building components, targets and architectures."""
