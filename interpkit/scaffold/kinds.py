"""What a new plugin may provide; light, as the command line reads it to show its help."""

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
    INVERTER = "inverter"


@dataclass(frozen=True)
class Facts:
    """What the shared templates say differently for each kind.

    Attributes:
        base: the interface, and the end of the class's name.
        summary: of the component that the template holds, a sentence.
        use: the command that uses it; ``{name}`` stands for its name, ``{preset}`` for a
            preset that names all that a run needs.
    """

    base: str
    summary: str
    use: str


OVER_A_METHOD = "interpkit invert MODEL --preset {preset} --preset {name}"
KINDS = {
    Kind.CONDITIONER: Facts("Conditioner", "Soft labels: one-hot, mixed with a random distribution.", OVER_A_METHOD),
    Kind.GENERATOR: Facts("Generator", "Paints a picture pixel by pixel, from the pixel's place.", OVER_A_METHOD),
    Kind.LOSS: Facts("Loss", "Asks for a margin between the logit asked for and all others.", OVER_A_METHOD),
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
        "What each pixel is worth, by random masks and without gradients.",
        "interpkit attribute RUN --method {name}",
    ),
    Kind.INVERTER: Facts(
        "Inverter",
        "Noisy gradient ascent on the pixels, the noise dying away.",
        "interpkit invert MODEL --inverter {name}",
    ),
}
