"""Confidence intervals, tests of outliers, and a test of whether the accuracy was still rising."""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from interpkit.runtime.recorder import StepRecord

Key = TypeVar("Key", bound=Hashable)

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


def outlier_p_values(values: Mapping[Key, float], *, sd: float, df: float) -> dict[Key, float]:
    r"""Return for each value the probability that one as high comes with the others: a moderated t-test of outliers.

    .. math:: t_c = \frac{x_c - \bar x_{-c}}{s_c \sqrt{1 + 1/(n - 1)}}, \qquad
              s_c^2 = \frac{d_0 s_0^2 + (n - 2)\, s_{-c}^2}{d_0 + n - 2}

    The mean and the variance s_{-c} are those of the other n - 1 values, and t_c is compared with Student's
    distribution of d_0 + n - 2 degrees of freedom. The prior (s_0, d_0) is what clean classifiers have shown, so that
    few classes suffice. Values should be about normal: take the logarithm of a ratio or a norm. Sources: Grubbs 1969,
    "Procedures for detecting outlying observations in samples"; the moderated variance is of Smyth 2004, "Linear models
    and empirical Bayes methods".

    Args:
        values: at least two finite values, by class.
        sd: s_0, the prior standard deviation.
        df: d_0, its degrees of freedom; the weight of the prior in numbers of classes.

    Example:
        >>> from interpkit import outlier_p_values
        >>> found = outlier_p_values({"a": 1.0, "b": 1.2, "c": 0.9, "d": 4.0}, sd=0.3, df=8)
        >>> {name: round(p, 4) for name, p in found.items()}
        {'a': 0.8523, 'b': 0.7782, 'c': 0.8833, 'd': 0.0}
    """
    found = {}
    for key, value in values.items():
        others = [other for name, other in values.items() if name != key]
        mean, own = statistics.fmean(others), len(others) - 1
        squares = sum((other - mean) ** 2 for other in others)
        spread = math.sqrt((df * sd**2 + squares) / (df + own) * (1 + 1 / len(others)))
        found[key] = student_tail((value - mean) / spread, df + own)
    return found


def student_tail(t: float, df: float) -> float:
    r"""Return the probability that Student's t with ``df`` degrees of freedom is above ``t``.

    With :math:`t = \sqrt{\nu} \tan\theta` the density becomes :math:`c \cos^{\nu - 1}\theta`, integrated by
    Simpson's rule: to ten digits for a few degrees of freedom, to four for a thousand.
    """
    if t < 0:
        return 1 - student_tail(-t, df)
    scale = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - math.log(math.pi) / 2
    start, parts = math.atan(t / math.sqrt(df)), 2000
    width = (math.pi / 2 - start) / parts
    heights: list[float] = [
        math.sin(width * (parts - i)) ** (df - 1) for i in range(parts + 1)
    ]  # the cosine of each angle
    area = width / 3 * (heights[0] + heights[-1] + 4 * sum(heights[1:-1:2]) + 2 * sum(heights[2:-1:2]))
    return max(math.exp(scale) * area, 1e-300)


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """Return p-values corrected for their number, so that all of them together have the family-wise error of each.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".

    Example:
        >>> from interpkit.evaluation.statistics import holm
        >>> holm({"a": 0.01, "b": 0.02, "c": 0.5})
        {'a': 0.03, 'b': 0.04, 'c': 0.5}
    """
    highest, corrected = 0.0, {}
    for rank, key in enumerate(sorted(p_values, key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[key]))
        corrected[key] = highest
    return {key: corrected[key] for key in p_values}
