"""The edge of each class: where between two labeled images a classifier changes its prediction."""

from __future__ import annotations

from interpkit import Preset, Registration, hookimpl
from interpkit_edges.inverter import EdgeInversion, Edges
from interpkit_edges.metric import Margin

INTERPKIT_INTERFACE = 1

__all__ = ["EdgeInversion", "Edges", "Margin"]


@hookimpl
def register(registry: Registration) -> None:
    """Add the inverter with its preset, and the metric."""
    registry.add(Edges)
    registry.add(Margin)
    registry.add(Preset("edges", {"inverter": {"name": "edges"}, "steps": 20}, "The edge of each class, by bisection."))
