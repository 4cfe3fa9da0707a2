"""The default inverter: a conditioned generator, trained by the loop in `interpkit/inversion/loop.py`."""

from interpkit import GeneratorInverter, Registration, hookimpl

INTERPKIT_INTERFACE = 1


@hookimpl
def register(registry: Registration) -> None:
    """Add the inverter."""
    registry.add(GeneratorInverter)
