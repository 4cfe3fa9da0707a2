"""Resemblance to the user's own unlabeled pictures, as a term of the inversion loss."""

from interpkit import Registration, hookimpl
from interpkit_prior.loss import Prior

INTERPKIT_INTERFACE = 1


@hookimpl
def register(registry: Registration) -> None:
    """Add the loss."""
    registry.add(Prior)
