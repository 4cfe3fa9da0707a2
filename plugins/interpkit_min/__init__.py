"""Makes pictures with a requested score: the inverter ``min``, its conditioner ``score``, and its preset."""

from interpkit import Preset, Registration, hookimpl
from interpkit_min.inverter import Min
from interpkit_min.results import MinInversion
from interpkit_min.scores import Score

INTERPKIT_INTERFACE = 1

__all__ = ["Min", "MinInversion", "Score"]


@hookimpl
def register(registry: Registration) -> None:
    """Add the inverter, the conditioner and the preset."""
    registry.add(Min)
    registry.add(Score)
    registry.add(
        Preset(
            "min",
            {
                "inverter": {"name": "min"},
                "steps": 3000,
                "batch_size": 64,
                "conditions": "all",  # the conditioner knows the scores of every class
                "conditioner": {"name": "score"},
                "generator": {"name": "upconv", "latent": 32, "hidden": 32, "dropout": 0.0},
                "optimizer": {"lr": 0.0005, "beta1": 0.5, "beta2": 0.99},
            },
            "Pictures of a class and a score, learned from pictures without labels (after Kumar & Levine 2020).",
            for_vectors={"generator": {"name": "dense", "dropout": 0.0}},
        )
    )
