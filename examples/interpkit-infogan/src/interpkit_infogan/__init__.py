"""A mutual-information term for interpkit: it keeps classes from collapsing, as the picture must show the latent."""

from interpkit import Preset, Registration, hookimpl
from interpkit_infogan.loss import MutualInformation

INTERPKIT_INTERFACE = 1

PRESET = Preset(
    "infogan",
    {"losses": {"infogan": {"weight": 0.5}}},
    "Ties the latent to the picture (InfoGAN), so that a class does not collapse. Combine it with vecmat.",
)


@hookimpl
def register(registry: Registration) -> None:
    """Add the loss and the preset."""
    registry.add(MutualInformation)
    registry.add(PRESET)
