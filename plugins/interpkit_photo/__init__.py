"""Photographs that a classifier assigns to a class: the inverter ``photo`` and its preset."""

from interpkit import Preset, Registration, hookimpl
from interpkit_photo.inverter import Photo

INTERPKIT_INTERFACE = 1

PRESET = Preset(
    "photo",
    {
        "inverter": {"name": "photo"},
        "steps": 210,
        "batch_size": 20,
        "losses": {
            "ce": {"weight": 1.0},
            "statistics": {"weight": 5.0, "every": 3},
            "tv": {"weight": 3.0},
            "l2": {"weight": 8.0, "center": 0.45},
        },
        "optimizer": {"lr": 0.1, "beta1": 0.5, "beta2": 0.9, "decay": 0.3},
    },
    "Photographs, one by one and from coarse to fine, for images from 64 pixels on.",
    photographs_from=64,
)


@hookimpl
def register(registry: Registration) -> None:
    """Add the inverter and its preset."""
    registry.add(Photo)
    registry.add(PRESET)
