"""A learned map from points to images, with which a few steps of descent suffice: ``landscape`` and its preset."""

from interpkit import Preset, Registration, hookimpl
from interpkit_landscape.inverter import Landscape
from interpkit_landscape.result import LandscapeInversion

INTERPKIT_INTERFACE = 1

__all__ = ["Landscape", "LandscapeInversion"]


@hookimpl
def register(registry: Registration) -> None:
    """Add the inverter and its preset."""
    registry.add(Landscape)
    registry.add(
        Preset(
            "landscape",
            {
                "inverter": {"name": "landscape"},
                "steps": 60,
                "batch_size": 50,
                "losses": {"ce": {"weight": 1.0}, "tv": {"weight": 1.0}},
                "optimizer": {"lr": 2e-3, "beta1": 0.9, "beta2": 0.999},
            },
            "Few steps of descent per image, through a learned map (after Liu et al. 2022).",
            for_vectors={"losses": {"tv": {"weight": 0.0}}},
        )
    )
