"""Robustness to perturbations: the paper's regulariser towards training-like images, a metric, and three presets.

Source: section 3, "Typically, classifiers are not very robust to perturbations in randomly generated images but
they exhibit some degree of robustness around the training examples [...] encouraging the generator to produce
robust inverted samples such that the perturbations of the generated images within a certain bound will still
result in the same desired label."
"""

from interpkit import Preset, Registration, hookimpl
from interpkit_robust.ghosts import Ghosts
from interpkit_robust.loss import Robustness
from interpkit_robust.metric import KeptLabels

INTERPKIT_INTERFACE = 1

PRESET = Preset(
    "robust",
    {"losses": {"robust": {"weight": 1.0}}},
    "The paper's regulariser: the label must survive bounded perturbations of the image. Apply it on top of vecmat.",
)

TRAINING_LIKE = Preset(
    "training-like",
    {
        "steps": 600,
        "batch_size": 64,
        "conditioner": {"name": "vecmat", "temperature": 0.5},
        "generator": {"name": "warp", "dropout": 0.05, "drawn": True, "affine": 0.2},
        "losses": {
            "ce": {"weight": 3.0, "temperature": 3.0},  # at 1 it is content with digits in pieces
            "kl": {"weight": 0.0},  # real images are not classified softly
            "cosine": {"weight": 0.0},  # spreads the classes apart, not the images within one
            # Higher weights yield images that survive more than real ones do: doubled and broken strokes.
            "robust": {"weight": 0.25, "kinds": ["jitter"], "sigma": 0.5, "occlusion": 0.5},
            "statistics": {"weight": 20.0},
            "tv": {"weight": 1.0, "edge": 8.0},
            "chroma": {"weight": 5.0},
            "spread": {"weight": 0.4, "epsilon": 0.003},
        },
    },
    "Varied images that resemble the training data: the target's recorded statistics, robustness, smoothness, spread, "
    "and a generator whose images are also warped at random. Apply it on top of vecmat.",
    adds_variety=True,
    without_batch_norm={"losses": {"robust": {"weight": 2.0}}},  # little else then tells what real images are like
)

EXHAUSTIVE = Preset(
    "exhaustive",
    # Separate networks find separate pictures of a class; those that share batches push some of each other astray.
    {**TRAINING_LIKE.layer, "steps": 2400, "generators": 4, "inverter": {"name": "generator", "alternate": True}},
    "More of what the target accepts, for students that learn from the samples: training-like with four generators, "
    "which take four times as long. Apply it on top of vecmat.",
    without_batch_norm=TRAINING_LIKE.without_batch_norm,
)


@hookimpl
def register(registry: Registration) -> None:
    """Add the losses, the metric and the presets."""
    for item in (Robustness, Ghosts, KeptLabels, PRESET, TRAINING_LIKE, EXHAUSTIVE):
        registry.add(item)
