"""Keeps images where an ensemble of other classifiers is certain of the class.

After Autoinverse (Ansari et al. 2022), which inverts an ensemble of surrogates and stays where their predictive
uncertainty is low. The method was published for regression, and we could not read its text. For classifiers, we use two
uncertainties of the members' class probabilities: their mutual information, and the entropy of their mean.
"""

from interpkit import Preset, Registration, hookimpl
from interpkit_ensemble.loss import Disagreement

INTERPKIT_INTERFACE = 1

AUTOINVERSE = Preset(
    "autoinverse",
    {
        "inverter": {"name": "pixels"},
        "steps": 200,
        "losses": {"ce": {"weight": 1.0}, "tv": {"weight": 1.0}, "disagreement": {"weight": 10.0}},
        "optimizer": {"lr": 0.1, "beta1": 0.9, "beta2": 0.999},
    },
    "Pixels that an ensemble of other classifiers is sure of, after Autoinverse (Ansari et al. 2022). Name labeled "
    "images that its members learn from, or the members' files.",
)


@hookimpl
def register(registry: Registration) -> None:
    """Add the loss and its preset."""
    for item in (Disagreement, AUTOINVERSE):
        registry.add(item)
