"""The kinds of component that a new plugin may provide. Imports nothing heavy, as the command line's help reads it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What a new plugin provides."""

    CONDITIONER = "conditioner"
    GENERATOR = "generator"
    LOSS = "loss"
    TARGET = "target"
    METRIC = "metric"
    ATTRIBUTION = "attribution"
    AUDIT = "audit"
    INVERTER = "inverter"


@dataclass(frozen=True)
class Facts:
    """The parts of the shared templates that differ between kinds.

    ``base`` is the interface, and the end of the class's name; ``use`` the command, in which ``{name}`` stands for the
    component's name, and ``{preset}`` for a preset that names all that a run needs.
    """

    base: str
    summary: str
    use: str


OVER_A_METHOD = "interpkit invert MODEL --preset {preset} --preset {name}"
KINDS = {
    Kind.CONDITIONER: Facts("Conditioner", "Soft labels: one-hot, mixed with a random distribution.", OVER_A_METHOD),
    Kind.GENERATOR: Facts("Generator", "Paints a picture pixel by pixel, from the coordinates of each.", OVER_A_METHOD),
    Kind.LOSS: Facts("Loss", "Requires a margin between the requested class's logit and all others.", OVER_A_METHOD),
    Kind.TARGET: Facts(
        "Loader",
        "Reads fully connected classifiers from a JSON file, scikit-learn's among them.",
        "interpkit invert CLASSIFIER.{name}.json --preset {preset}",
    ),
    Kind.METRIC: Facts(
        "Metric",
        "The share of fine detail in the samples: high in noise, low in photographs.",
        "interpkit evaluate RUN --metric {name}",
    ),
    Kind.ATTRIBUTION: Facts(
        "Attribution",
        "Estimates what each pixel contributes, by random masks and without gradients.",
        "interpkit attribute RUN --method {name}",
    ),
    Kind.AUDIT: Facts(
        "Audit",
        "Looks for a class that is no longer recognized upside down.",
        "interpkit audit MODEL --test {name}",
    ),
    Kind.INVERTER: Facts(
        "Inverter",
        "Noisy gradient ascent on the pixels; the noise decays to zero.",
        "interpkit invert MODEL --inverter {name}",
    ),
}
