"""Rules that say what a classifier does: hyperplanes at its boundary, and a decision tree over their sides.

The inverter ``hypinv`` and its preset. It requires scikit-learn, the extra ``rules``.
"""

from interpkit import Preset, Registration, hookimpl
from interpkit_rules.inverter import HypInv
from interpkit_rules.result import RulesInversion
from interpkit_rules.rules import Leaf, Plane, Rules, Split

INTERPKIT_INTERFACE = 1

__all__ = ["HypInv", "Leaf", "Plane", "Rules", "RulesInversion", "Split"]

PRESET = Preset(
    "hypinv",
    {"inverter": {"name": "hypinv"}, "steps": 10},
    "Rules over hyperplanes at the boundary (after Saad & Wunsch 2007), at most one hyperplane per step.",
)


@hookimpl
def register(registry: Registration) -> None:
    """Add the inverter and its preset."""
    registry.add(HypInv)
    registry.add(PRESET)
