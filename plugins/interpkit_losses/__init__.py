"""The terms of the paper's inversion loss, and others that are often added to it."""

from interpkit import Registration, hookimpl
from interpkit_losses.labels import CrossEntropy, KLDivergence
from interpkit_losses.priors import BatchNormStatistics, Chroma, SquaredNorm, Statistics, TotalVariation
from interpkit_losses.variety import Cosine, Orthogonality, Spread
from interpkit_losses.weights import Stationarity

INTERPKIT_INTERFACE = 1


@hookimpl
def register(registry: Registration) -> None:
    """Add the losses."""
    variety = (Cosine, Orthogonality, Spread)
    priors = (TotalVariation, Chroma, SquaredNorm, BatchNormStatistics, Statistics)
    for loss in (KLDivergence, CrossEntropy, *variety, *priors, Stationarity):
        registry.add(loss)
