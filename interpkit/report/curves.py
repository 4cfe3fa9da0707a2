"""Training curves as SVG polylines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from interpkit.runtime.recorder import StepRecord

WIDTH, HEIGHT = 300, 110
MOST_POINTS = 300


@dataclass(frozen=True)
class Curve:
    """One value over the steps of a run, as the points of an SVG ``polyline`` in a box of WIDTH x HEIGHT.

    ``low`` and ``high`` are the values at the bottom and top of the box, ``first`` and ``last`` those at the first and
    last step; ``steps`` is the number of the last step.
    """

    name: str
    points: str
    low: float
    high: float
    first: float
    last: float
    steps: int


def curves(history: Sequence[StepRecord]) -> list[Curve]:
    """Return the curves of the inversion accuracy, the loss, and each term."""
    if not history:
        return []
    some = [*history[:: max(1, len(history) // MOST_POINTS)], history[-1]]
    steps = [record.step for record in some]
    values = {
        "inversion accuracy": [record.inversion_accuracy for record in some],
        "loss": [record.loss for record in some],
        **{name: [record.terms.get(name, math.nan) for record in some] for name in history[-1].terms},
    }
    return [_curve(name, steps, column) for name, column in values.items()]


def _curve(name: str, steps: list[int], values: list[float]) -> Curve:
    known = [(step, value) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
    numbers = [value for _, value in known] or [0.0]
    low, high = (0.0, 1.0) if name == "inversion accuracy" else (min(numbers), max(numbers))
    across, up = max(1, steps[-1] - steps[0]), (high - low) or 1.0
    points = " ".join(
        f"{WIDTH * (step - steps[0]) / across:.1f},{HEIGHT * (1 - (value - low) / up):.1f}" for step, value in known
    )
    return Curve(name, points, low, high, numbers[0], numbers[-1], steps[-1])
