"""What a reader of metrics.json should not miss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from interpkit.errors import listed

LOW_EXCESS_VENDI = 0.3


LOW_POOLED_VENDI = 1.2


MANY_DUPLICATES = 0.7


LOW_AGREEMENT = 0.5


HIGH_ACCURACY = 0.9
"""Where `warnings` draws its lines. A hundred real images of a class have a pooled Vendi score of 1.48 or more and 62 %
duplicates at most (MNIST, FashionMNIST, CIFAR-10, SVHN): what is beyond these lines is no real class.
"""


def warnings(metrics: Mapping[str, Any]) -> list[str]:
    """Return, in plain words, what a reader of metrics.json should not miss: little variety, judges who disagree.

    Args:
        metrics: the content of metrics.json; what is not measured, is not warned of.
    """
    told = [_of_variety(metrics), *(_of_agreement(judge, metrics) for judge in metrics.get("evaluators", ()))]
    return [warning for warning in told if warning is not None]


def _of_variety(metrics: Mapping[str, Any]) -> str | None:
    per_class = metrics.get("per_class", [])
    excess = {row["name"]: row.get("reference", {}).get("excess_vendi") for row in per_class}
    known = {name: value for name, value in excess.items() if value is not None}
    if known:
        low = [name for name, value in known.items() if value < LOW_EXCESS_VENDI]
        if not low:
            return None
        mean = sum(known.values()) / len(known)
        return (
            f"Low variety: the samples vary much less than real images of the class in {len(low)} of {len(known)} "
            f"classes ({listed(low)}); the excess Vendi ratio is {mean:.2f}, and 1 is as varied as real images."
        )
    measured = {row["name"]: row["diversity"] for row in per_class if row.get("diversity")}
    low = [
        name
        for name, figures in measured.items()
        if figures.get("vendi_pooled", math.inf) < LOW_POOLED_VENDI or figures.get("duplicates", 0) > MANY_DUPLICATES
    ]
    if not low:
        return None
    return (
        f"Low variety: the samples of {len(low)} of {len(measured)} classes are nearly one and the same picture "
        f"({listed(low)})."
    )


def _of_agreement(judge: Mapping[str, Any], metrics: Mapping[str, Any]) -> str | None:
    agreement = judge.get("agreement")
    if agreement is None or agreement >= LOW_AGREEMENT:
        return None
    said = f"The evaluator {judge['name']} agrees on {agreement:.0%} of the samples only"
    if judge.get("reference_accuracy") is not None:
        said += f" (it is right on {judge['reference_accuracy']:.0%} of the reference images)"
    accuracy = metrics.get("inversion_accuracy", 0.0)
    if accuracy >= HIGH_ACCURACY:
        return (
            f"{said}, while the target takes {accuracy:.0%} for the class asked for: the target is fooled, so do not "
            f"read the pictures as what the class looks like."
        )
    return f"{said}."
