"""Robustness to perturbation, the paper's regulariser towards training-like images, and the preset ``robust``.

Source: section 3, "Typically, classifiers are not very robust to perturbations in randomly generated images but
they exhibit some degree of robustness around the training examples [...] encouraging the generator to produce
robust inverted samples such that the perturbations of the generated images within a certain bound will still
result in the same desired label."
"""

from interpkit import Preset, Registration, hookimpl
from interpkit_robust.ghosts import Ghosts
from interpkit_robust.loss import Robustness
from interpkit_robust.metric import KeptLabels

PRESET = Preset(
    "robust",
    {"losses": {"robust": {"weight": 1.0}}},
    "The paper's regulariser: the target must keep the label under bounded perturbations. Lay it over vecmat.",
)


@hookimpl
def register(registry: Registration) -> None:
    """Add the losses, the metric and the preset."""
    registry.add(Robustness)
    registry.add(Ghosts)
    registry.add(KeptLabels)
    registry.add(PRESET)
