"""What is known to be wrong with the samples of single classes, the worst class first."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from interpkit.errors import percent
from interpkit.evaluation.warnings import doubts_of_metrics

SAID = 0.1
"""Shares below this are not mentioned, and a class is among the worst if it is this far from the median class."""
MISSED = "classified as another class"
SAID_AS = {MISSED: "not classified as it"}
"""The reason in metrics.json, and in words that also hold for labels which are absent."""
MOST = 5
"""So many of the worst classes are named."""


def by_class(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the classes of metrics.json from worst to best, each with what speaks against its samples.

    Each is a mapping: its ``label`` and ``name``; ``reasons``, the shares in [0, 1] that `Metric.doubts` and the
    target's own accuracy give, by what they are shares of; and ``doubt``, their sum, which decides the order.
    """
    classes, rows = [], metrics.get("per_class", [])
    for row, known in zip(rows, doubts_of_metrics(rows), strict=True):
        missed = 1.0 - row.get("inversion_accuracy", 1.0)
        reasons = {MISSED: missed, **known} if missed > 0 else known
        found = {"label": row["label"], "name": row["name"], "doubt": sum(reasons.values()), "reasons": reasons}
        classes.append(found)
    return sorted(classes, key=lambda found: -found["doubt"])


def worst(metrics: Mapping[str, Any]) -> list[tuple[int, str]]:
    """Return the few classes that are worst and worse than the median class: the label, and some words on each."""
    classes = by_class(metrics)
    usual = median(found["doubt"] for found in classes) if classes else 0.0
    named = []
    for found in classes:
        reasons = sorted(found["reasons"].items(), key=lambda reason: -reason[1])
        said = ", ".join(
            f"{percent(share, 0)} {SAID_AS.get(words, words)}" for words, share in reasons if share >= SAID
        )
        if said and found["doubt"] >= usual + SAID:
            named.append((found["label"], said))
    return named[:MOST]
