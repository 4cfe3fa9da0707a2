"""Binarised networks, and their inversion by a SAT solver: every input is right, or proved not to exist.

The architecture family ``bnn:`` builds the networks, `BinaryNet` in Python; the inverter ``cnf`` finds their inputs. It
requires the extra ``sat``, and has a preset of its own name: ``interpkit invert MODEL --inverter cnf`` is a whole call.
"""

from interpkit import Preset, Registration, hookimpl
from interpkit_sat.inverter import Cnf, CnfInversion
from interpkit_sat.networks import BinaryNet, BinaryNets

__all__ = ["BinaryNet", "BinaryNets", "Cnf", "CnfInversion"]

INTERPKIT_INTERFACE = 1

PRESET = Preset(
    "cnf",
    {"inverter": {"name": "cnf"}, "steps": 10},
    "Inputs of a binarised network by a SAT solver, right by construction (after Suhail 2024).",
)


@hookimpl
def register(registry: Registration) -> None:
    """Add the family of architectures, the inverter and its preset."""
    for item in (BinaryNets, Cnf, PRESET):
        registry.add(item)
