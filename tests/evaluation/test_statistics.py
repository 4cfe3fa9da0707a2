"""Tail probabilities, outliers and corrections against tables, closed forms and simulations.

Intervals and rising accuracies are tested in ``test_metrics.py``.
"""

from __future__ import annotations

import math
import random
from statistics import fmean

import pytest

from interpkit import outlier_p_values
from interpkit.evaluation.statistics import holm, student_tail


@pytest.mark.parametrize(
    ("df", "tail", "t"),
    [  # of the usual tables
        (1, 0.05, 6.3138),
        (1, 0.005, 63.6567),
        (2, 0.025, 4.3027),
        (5, 0.01, 3.3649),
        (10, 0.05, 1.8125),
        (10, 0.025, 2.2281),
        (10, 0.0005, 4.5869),
        (30, 0.025, 2.0423),
        (120, 0.05, 1.6577),
    ],
)
def test_the_tail_of_students_t_is_that_of_the_tables(df: float, tail: float, t: float) -> None:
    assert student_tail(t, df) == pytest.approx(tail, rel=2e-4)
    assert student_tail(-t, df) == pytest.approx(1 - tail, rel=2e-5)


@pytest.mark.parametrize("t", [0.0, 0.7, 3.0, 40.0, 1e4])
def test_the_tail_of_students_t_is_that_of_the_closed_forms(t: float) -> None:
    assert student_tail(t, 1) == pytest.approx(math.atan2(1, t) / math.pi, rel=1e-8)
    root = math.sqrt(2 + t * t)
    assert student_tail(t, 2) == pytest.approx(1 / (root * (root + t)), rel=1e-6)  # (1 - t / root) / 2


def test_an_extreme_value_has_a_p_value_above_zero() -> None:
    assert 0 < student_tail(1e30, 40) <= 1e-300
    assert student_tail(-1e30, 40) <= 1
    assert all(0 < p <= 1 for p in outlier_p_values({0: 0.0, 1: 0.0, 2: 1e30}, sd=1e-3, df=99).values())


def test_holms_correction_is_that_by_hand() -> None:
    corrected = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert corrected == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})  # 3 a, max(b, 2 c), 2 c, 4 d
    assert list(corrected) == ["a", "b", "c", "d"]
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_the_p_value_of_an_outlier_is_that_by_hand() -> None:
    # The others, 0 and 2: mean 1, sum of squares 2. s^2 = (4 * 1 + 2) / (4 + 1); t = 3 / sqrt(1.2 * 1.5), 5 degrees.
    found = outlier_p_values({"x": 4.0, "y": 0.0, "z": 2.0}, sd=1.0, df=4.0)
    assert found["x"] == pytest.approx(student_tail(3 / math.sqrt(1.8), 5))


def test_two_values_are_compared_by_the_prior_alone() -> None:
    found = outlier_p_values({0: 1.0, 1: 4.0}, sd=1.0, df=8.0)
    assert found[1] == pytest.approx(student_tail(3 / math.sqrt(2), 8))
    assert found[0] == pytest.approx(1 - found[1])
    assert outlier_p_values({0: 1.0, 1: 1.0}, sd=1.0, df=8.0) == pytest.approx({0: 0.5, 1: 0.5})


@pytest.mark.parametrize("prior", [True, False], ids=["spread-of-the-prior", "spread-of-its-own"])
def test_p_values_of_clean_classifiers_are_uniform(prior: bool) -> None:
    """10 normal values, with a variance from the prior, or with any variance and a prior that weighs nothing."""
    rng, count = random.Random(0), 400
    found = []
    for _ in range(count):
        if prior:  # a scaled inverse chi-squared variance of 6 degrees of freedom
            sd, df, spread = 0.3, 6.0, 0.3 * math.sqrt(6 / rng.gammavariate(3, 2))
        else:
            sd, df, spread = 1.0, 1e-6, 7.0
        found.append(outlier_p_values({c: rng.gauss(2, spread) for c in range(10)}, sd=sd, df=df))
    p_values = [p for one in found for p in one.values()]
    for level in (0.05, 0.5, 0.95):
        share = fmean(p <= level for p in p_values)
        assert share == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / (10 * count)) + 0.01)
    flagged = fmean(min(holm(one).values()) <= 0.05 for one in found)
    assert flagged <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / count)
