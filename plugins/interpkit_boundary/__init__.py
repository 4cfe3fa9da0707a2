"""The nearest inputs of another class: the inverter ``boundary`` and its preset."""

from interpkit import Preset, Registration, hookimpl
from interpkit_boundary.inverter import Boundary, BoundaryInversion

INTERPKIT_INTERFACE = 1

__all__ = ["Boundary", "BoundaryInversion"]


@hookimpl
def register(registry: Registration) -> None:
    """Add the inverter and its preset."""
    registry.add(Boundary)
    registry.add(
        Preset(
            "boundary",
            {"inverter": {"name": "boundary"}, "steps": 10},
            "Your images, each changed as little as possible to another class.",
        )
    )
