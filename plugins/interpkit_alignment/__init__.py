"""Decodes a classifier's answers into pictures, as an outsider can, with a decoder trained on the outsider's pictures.

Source: after Yang, Zhang, Chang & Liang, "Neural Network Inversion in Adversarial Setting via Background Knowledge
Alignment" (CCS 2019), from the authors' code (yziqi/adversarial-model-inversion); the paper was not available to us.
"""

from interpkit import Preset, Registration, hookimpl
from interpkit_alignment.decoder import Decoder
from interpkit_alignment.inverter import Alignment
from interpkit_alignment.predictions import PredictionConditioner

INTERPKIT_INTERFACE = 1

PRESET = Preset(
    "alignment",
    {
        "inverter": {"name": "alignment"},
        "conditioner": {"name": "predictions"},
        "generator": {"name": "decoder"},
        "conditions": "all",  # an answer is a distribution over all classes
        "steps": 2000,
        "batch_size": 64,
        "optimizer": {"beta2": 0.999, "decay": 1.0},
    },
    "A decoder of the classifier's answers, trained on pictures that you name by --data; black box.",
)


@hookimpl
def register(registry: Registration) -> None:
    """Add the conditioner, the generator, the inverter and its preset."""
    for item in (PredictionConditioner, Decoder, Alignment, PRESET):
        registry.add(item)
