"""The terms of the inversion loss, and priors that are often added to it."""

from interpkit import Registration, hookimpl
from interpkit_losses.labels import CrossEntropy, KLDivergence
from interpkit_losses.priors import BatchNormStatistics, TotalVariation
from interpkit_losses.variety import Cosine, Orthogonality


@hookimpl
def register(registry: Registration) -> None:
    """Add the losses."""
    for loss in (KLDivergence, CrossEntropy, Cosine, Orthogonality, TotalVariation, BatchNormStatistics):
        registry.add(loss)
