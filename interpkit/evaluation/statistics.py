"""Confidence intervals, and a test of whether the accuracy was still rising."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from interpkit.runtime.recorder import StepRecord

Z_95 = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""


def wilson(hits: float, count: float) -> list[float]:
    r"""Return the 95 % Wilson score interval of a share, [low, high].

    .. math:: \frac{1}{1 + z^2/n} \left( \hat p + \frac{z^2}{2n}
              \pm z \sqrt{\frac{\hat p (1 - \hat p)}{n} + \frac{z^2}{4 n^2}} \right), \qquad z = 1.96

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    Args:
        hits: number of successes, in [0, count].
        count: number of trials n, above 0; for dependent trials, the effective number of independent ones.

    Example:
        >>> from interpkit import wilson
        >>> low, high = wilson(90, 100)
        >>> round(low, 3), round(high, 3)
        (0.826, 0.945)
    """
    share, part = hits / count, Z_95**2 / count
    middle = share + part / 2
    half = Z_95 * math.sqrt(share * (1 - share) / count + part / (4 * count))
    low, high = (middle - half) / (1 + part), (middle + half) / (1 + part)
    return [low if hits > 0 else 0.0, high if hits < count else 1.0]  # exact limits, without rounding errors


GOOD = 0.95
"""An accuracy this high needs no more steps, even if it still rises."""
LEAST_GAIN = 0.02


def still_rising(history: Sequence[StepRecord], batch_size: int) -> tuple[float, float] | None:
    """Return the accuracies in the last two fifths of the training if the last is clearly higher and below `GOOD`.

    Clearly means by at least `LEAST_GAIN` and by three standard errors: if images are independent, this reports one in
    700 trainings that have converged.

    Args:
        history: the records of the whole training.
        batch_size: number of images per step.
    """
    steps = history[-1].steps if history else 0
    ends = (0.6 * steps, 0.8 * steps, steps)
    fifths = [[r.inversion_accuracy for r in history if low < r.step <= high] for low, high in pairwise(ends)]
    if not all(fifths):
        return None
    before, last = (sum(fifth) / len(fifth) for fifth in fifths)
    error = math.sqrt((before * (1 - before) + last * (1 - last)) / (batch_size * steps / 5))
    return (before, last) if last < GOOD and last - before > max(LEAST_GAIN, 3 * error) else None
