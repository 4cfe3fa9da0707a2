"""A mutual-information term for interpkit: the latent must show in the picture, so that no class collapses to one."""

from interpkit import Preset, Registration, hookimpl
from interpkit_infogan.loss import MutualInformation

INTERPKIT_INTERFACE = 1

PRESET = Preset(
    "infogan",
    {"losses": {"infogan": {"weight": 0.5}}},
    "Ties the latent to the picture (InfoGAN), so that a class does not collapse. Lay it over vecmat.",
)


@hookimpl
def register(registry: Registration) -> None:
    """Add the loss and the preset."""
    registry.add(MutualInformation)
    registry.add(PRESET)
