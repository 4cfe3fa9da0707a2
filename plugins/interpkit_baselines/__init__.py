"""Other published inversion methods, to compare with: each makes finished images one by one and learns no generator.

=================  =============================================================================================
``pixels``         gradient descent on the pixels: Kindermann & Linden 1990, with later priors
``deepinversion``  the same under the priors of DeepInversion: Yin et al. 2020
``evolution``      several points evolved at once without a gradient: Jensen, Reed, Marks et al. 1999
=================  =============================================================================================

Each has a preset of its own name, so ``interpkit invert MODEL --inverter pixels`` is a whole call. One step of a run
moves every image once, and ``per_class`` says how many images there are.
"""

from interpkit import Preset, Registration, hookimpl
from interpkit_baselines.evolution import Evolution
from interpkit_baselines.pixels import DeepInversion, Pixels

INTERPKIT_INTERFACE = 1

PRESETS = (
    Preset(
        "pixels",
        {
            "inverter": {"name": "pixels"},
            "steps": 200,
            "losses": {"ce": {"weight": 1.0}, "tv": {"weight": 1.0}},
            "optimizer": {"lr": 0.1, "beta1": 0.9, "beta2": 0.999},
        },
        "Gradient descent on pixels (Kindermann & Linden 1990) with jitter and total variation.",
    ),
    Preset(
        "deepinversion",
        {
            "inverter": {"name": "deepinversion"},
            "steps": 400,
            "losses": {
                "ce": {"weight": 1.0},
                "batchnorm": {"weight": 1.0},
                "tv": {"weight": 0.1},
                "l2": {"weight": 0.01},
            },
            "optimizer": {"lr": 0.1, "beta1": 0.5, "beta2": 0.9},
        },
        "Pixels that match the target's batch-norm statistics (DeepInversion, Yin et al. 2020).",
    ),
    Preset(
        "evolution",
        {"inverter": {"name": "evolution"}, "steps": 100, "batch_size": 512},
        "Evolution of several points per class at once, without gradients (Jensen, Reed, Marks et al. 1999).",
    ),
)


@hookimpl
def register(registry: Registration) -> None:
    """Add the inverters and their presets."""
    for item in (Pixels, DeepInversion, Evolution, *PRESETS):
        registry.add(item)
