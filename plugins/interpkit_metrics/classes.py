"""Measuring class by class: which classes have enough images, and the mean over those that have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from interpkit import Metric, Study, TooFew, percent

LEAST = 10
"""Images of a class below which no number about the class is given."""


def large_enough(
    study: Study, metric: str, kinds: Iterable[Literal["samples", "reference", "training"]], least: int = LEAST
) -> list[int]:
    """Return the sampled classes with at least ``least`` images of each kind; note the others as left out.

    Raises:
        TooFew: no class has enough.
    """
    kinds = list(kinds)
    counts = {label: {kind: len(study.rows(kind, label)) for kind in kinds} for label in study.classes}
    enough = [label for label, count in counts.items() if min(count.values()) >= least]
    names = study.target.class_names
    told = f"it takes {least} images of a class of each: {', '.join(kinds)}"
    if not enough:
        label, most = max(counts.items(), key=lambda item: min(item[1].values()))
        seen = ", ".join(f"{count} {kind}" for kind, count in most.items())
        raise TooFew(f"{told}; the class with the most, {label} ({names[label]}), has {seen}.")
    short = [label for label in counts if label not in enough]
    if short:
        more = f"; ... ({len(short)} in all)" if len(short) > 5 else ""
        named = [
            f"{label} ({names[label]}: {', '.join(f'{n} {kind}' for kind, n in counts[label].items())})"
            for label in short
        ]
        study.leave_out(f"{metric}.per_class", f"{told}; left out are {'; '.join(named[:5])}{more}.")
    return enough


def leave_out_of_vectors(study: Study, metric: Metric, *options: str) -> None:
    """Note the options that were set for nothing, as they are for images, and these are vectors."""
    for name in options:
        if study.images.dim() != 4 and name in metric.options.model_fields_set:
            study.leave_out(f"{metric.name}.{name}", "it is for images, and these are vectors.")


def mean(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the mean of each number over rows; of one that only some have, over those. Mappings in them likewise."""
    rows = list(rows)
    means: dict[str, Any] = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        values = [row[key] for row in rows if key in row]
        means[key] = mean(values) if isinstance(values[0], Mapping) else sum(values) / len(values)
    return means


def span(shares: Sequence[float]) -> str:
    """Return the range of some shares as percentages."""
    low, high = percent(min(shares), 0), percent(max(shares), 0)
    return low if low == high else f"{low} to {high}"


def names(values: Sequence[str], most: int = 8) -> str:
    """Return names for a message, the first of them if there are many."""
    return ", ".join(values[:most]) + (", ..." if len(values) > most else "")
