"""The tests of `interpkit audit`, and the preset by which it makes its samples.

===============  ====================================================================================================
``margin``       a class that can be made far surer than all others: a trigger (Wang et al. 2024, MM-BD)
``unsure``       classes of which the classifier never becomes sure: mixed-up labels
``patch``        a small patch that turns every image into a class: a trigger, a watermark (Wang et al. 2019)
``noise``        a faint pattern that does: a blended trigger
``tint``         a change of brightness or color that does: a leak
``blind-spots``  a class that gets most of the images that show nothing
``likeness``     a class whose samples are far more alike, or less, than those of the others
``sturdiness``   a class that keeps its certainty under noise
``rim``          a class that decides by the rim of the image
``memorized``    training images that were learned by heart
===============  ====================================================================================================
"""

from interpkit import Preset, Registration, hookimpl
from interpkit_audit.blind import BlindSpots
from interpkit_audit.change import Noise, Patch, Tint, UniversalChange
from interpkit_audit.margins import Margin, Unsure
from interpkit_audit.memorized import Memorized
from interpkit_audit.samples import Likeness, Rim, Sturdiness

INTERPKIT_INTERFACE = 1

PRESET = Preset(
    "audit",
    {
        "inverter": {"name": "deepinversion"},
        "steps": 60,
        "losses": {
            "ce": {"weight": 1.0},
            "batchnorm": {"weight": 1.0},
            "tv": {"weight": 0.1},
            "l2": {"weight": 0.01},
        },
        "optimizer": {"lr": 0.1, "beta1": 0.5, "beta2": 0.9},
    },
    "A few quick images of each class, for interpkit audit to change.",
    audits=True,
    for_vectors={"losses": {"tv": {"weight": 0.0}}},
    without_batch_norm={"losses": {"batchnorm": {"weight": 0.0}}},
)


@hookimpl
def register(registry: Registration) -> None:
    """Add the tests and the preset."""
    for test in (Margin, Unsure, Patch, Noise, Tint, BlindSpots, Likeness, Sturdiness, Rim, Memorized):
        registry.add(test)
    registry.add(PRESET)


__all__ = [
    "BlindSpots", "Rim", "Margin", "Memorized", "Noise", "Patch", "Sturdiness", "Tint", "UniversalChange",
    "Unsure", "Likeness", "register",
]  # fmt: skip
