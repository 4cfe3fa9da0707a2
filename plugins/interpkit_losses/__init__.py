"""The terms of the paper's inversion loss, and others that are often added to it."""

from interpkit import Preset, Registration, hookimpl
from interpkit_losses.activation import Activation
from interpkit_losses.labels import CrossEntropy, KLDivergence
from interpkit_losses.priors import BatchNormStatistics, Chroma, SquaredNorm, Statistics, TotalVariation
from interpkit_losses.variety import Cosine, Orthogonality, Spread
from interpkit_losses.weights import Stationarity

INTERPKIT_INTERFACE = 1

EXCITE = Preset(
    "excite",
    {"losses": {"kl": {"weight": 0.0}, "cosine": {"weight": 0.0}, "activation": {"weight": 1.0}}},
    "What excites the units (or logits) most, without the bound that a probability has. Apply it on top of vecmat or "
    "training-like.",
)


@hookimpl
def register(registry: Registration) -> None:
    """Add the losses and the preset."""
    variety = (Cosine, Orthogonality, Spread)
    priors = (TotalVariation, Chroma, SquaredNorm, BatchNormStatistics, Statistics)
    for loss in (KLDivergence, CrossEntropy, *variety, *priors, Stationarity, Activation, EXCITE):
        registry.add(loss)
