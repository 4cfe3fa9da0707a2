"""Inversion by operator splitting, with certificates by linear programs: the inverter ``constrained``.

After Wong & Kolter, "Neural network inversion beyond gradient descent" (2017).
"""

from interpkit import Preset, Registration, hookimpl
from interpkit_constrained.inverter import Constrained

INTERPKIT_INTERFACE = 1

PRESET = Preset(
    "constrained",
    {"inverter": {"name": "constrained"}, "steps": 60},
    "Operator splitting over the layers, and proofs of the largest margin (after Wong & Kolter 2017).",
)


@hookimpl
def register(registry: Registration) -> None:
    """Add the inverter and its preset."""
    registry.add(Constrained)
    registry.add(PRESET)
