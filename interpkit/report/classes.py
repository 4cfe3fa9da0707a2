"""The classes of a page: how large their pictures are shown, how many stand side by side, and their figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from interpkit.evaluation.flatten import flattened
from interpkit.evaluation.warnings import class_columns

CHARACTERS = 14_000_000
"""Of the pictures of a page, together: a page of 1,000 photographs of 224 pixels shows each in full."""
SEARCHED = 10
"""With more classes than this, a page offers to search and sort them."""
FEW = 3
"""Up to so many pictures of a class, the classes stand side by side."""


@dataclass(frozen=True)
class Figures:
    """Figures of classes: their titles, and by class the values by title, without those that were not measured."""

    titles: tuple[str, ...]
    values: Mapping[int, Mapping[str, float]]

    def sentence(self, label: int) -> str:
        """Return the figures of a class for a reader."""
        return ", ".join(f"{title} {value:.2f}" for title, value in self.values.get(label, {}).items())

    def plain(self, label: int) -> str:
        """Return the figures of a class for a script, in the order of the titles and ``-`` for one that is missing."""
        values = self.values.get(label, {})
        return " ".join(f"{values[title]:.4g}" if title in values else "-" for title in self.titles)


def figures(metrics: Mapping[str, Any]) -> Figures:
    """Return what metrics.json has of single classes: accuracy, confidence, and the columns of its metrics."""
    flat = {row["label"]: flattened(row) for row in metrics.get("per_class", [])}
    wanted = {"accuracy": "inversion_accuracy", "confidence": "confidence", **class_columns(list(flat.values()))}
    values = {
        label: {title: row[name].value for title, name in wanted.items() if name in row} for label, row in flat.items()
    }
    return Figures(tuple(title for title in wanted if any(title in row for row in values.values())), values)


def layout(width: int, counts: Sequence[int]) -> str:
    """Return the style classes for pictures of a width in pixels, ``counts`` of them in each class."""
    size = "" if width <= 64 else "medium" if width < 128 else "large"
    most = max(counts, default=0)
    side_by_side = f"few few-{most}" if 0 < most <= FEW < len(counts) else ""
    return f"classes {size} {side_by_side}".strip()
