"""Confidence intervals."""

from __future__ import annotations

import math

Z_95 = 1.959963984540054
"""The 97.5 % quantile of the normal law."""


def wilson(hits: float, count: float) -> list[float]:
    r"""Return the Wilson score interval of a share, [low, high], at 95 %.

    .. math:: \frac{1}{1 + z^2/n} \left( \hat p + \frac{z^2}{2n}
              \pm z \sqrt{\frac{\hat p (1 - \hat p)}{n} + \frac{z^2}{4 n^2}} \right), \qquad z = 1.96

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    Args:
        hits: in [0, count].
        count: n, above 0; of trials that depend on each other, the number of independent ones that they are worth.

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
    return [low if hits > 0 else 0.0, high if hits < count else 1.0]  # exactly so, but for rounding
