"""Which classes to look at first: what the figures of a class say against its samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

import interpkit
from interpkit.evaluation import doubts


def digits(**of_five: Any) -> dict[str, Any]:
    """Return metrics of ten good classes, except for what is said of the class 5."""
    good = {
        "inversion_accuracy": 1.0,
        "evaluators": [{"name": "a", "agreement": 0.96}, {"name": "b", "agreement": 1.0}],
    }
    rows = [{"label": label, "name": str(label), **good} for label in range(10)]
    rows[5] |= of_five
    return {"per_class": rows}


@pytest.mark.parametrize(
    ("of_five", "said"),
    [
        (
            {"evaluators": [{"name": "a", "agreement": 0.5}, {"name": "b", "agreement": 0.3}]},
            "60% not what evaluators see in them",
        ),
        ({"inversion_accuracy": 0.75}, "25% not classified as it"),
        ({"evaluators": [{"name": "a", "agreement": 1.0, "blurred_agreement": 0.2}]}, "80% lost to a slight blur"),
        ({"diversity": {"duplicates": 0.9}}, "90% near copies of another"),
        (
            {"reference": {"excess_vendi": 0.25}, "diversity": {"duplicates": 0.9}},
            "75% of the variety of real images missing",
        ),
    ],
)
def test_a_bad_class_among_good_ones_comes_first(of_five: dict[str, Any], said: str) -> None:
    metrics = digits(**of_five)
    assert doubts.worst(metrics) == [(5, said)]
    ranked = doubts.by_class(metrics)
    assert [row["label"] for row in ranked] == [5, 0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert ranked[0]["doubt"] == pytest.approx(sum(ranked[0]["reasons"].values()))
    assert ranked[1]["doubt"] == pytest.approx(0.02)


def test_worse_classes_come_before_bad_ones_with_all_that_is_against_them() -> None:
    metrics = digits(inversion_accuracy=0.5, diversity={"duplicates": 0.75})
    metrics["per_class"][8] |= {"inversion_accuracy": 0.6, "diversity": {"duplicates": 0.05}}
    assert doubts.worst(metrics) == [
        (5, "75% near copies of another, 50% not classified as it"),
        (8, "40% not classified as it"),
    ]


@pytest.mark.parametrize("metrics", [{}, {"per_class": []}, digits(), {"per_class": [{"label": 0, "name": "a"}]}])
def test_no_class_is_named_where_none_is_worse(metrics: dict[str, Any]) -> None:
    assert doubts.worst(metrics) == []


def test_what_is_wrong_with_all_classes_names_none() -> None:
    rows = [{"label": label, "name": str(label), "inversion_accuracy": 0.1} for label in range(4)]
    assert doubts.worst({"per_class": rows}) == []


def test_a_metric_of_a_plugin_has_its_doubts(add_plugin: Callable[..., None]) -> None:
    class Gloss(interpkit.Metric):
        """How much the samples shine."""

        name = "gloss"

        @classmethod
        def doubts(cls, row: Mapping[str, Any]) -> dict[str, float]:
            return {"dull": 1 - row.get("gloss", 1.0)}

        def measure(self, study: interpkit.Study) -> dict[str, Any]:
            return {}

    add_plugin(Gloss)
    assert doubts.worst(digits(gloss=0.25)) == [(5, "75% dull")]


@pytest.mark.parametrize("share", ["much", None, float("nan"), float("inf")])
def test_what_a_plugin_returns_instead_of_a_share_does_not_count(
    share: Any, add_plugin: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(interpkit.Metric):
        """Returns no shares."""

        name = "odd"

        @classmethod
        def doubts(cls, row: Mapping[str, Any]) -> dict[str, float]:
            return {"odd": share}

        def measure(self, study: interpkit.Study) -> dict[str, Any]:
            return {}

    add_plugin(Odd)
    assert doubts.worst(digits(inversion_accuracy=0.75)) == [(5, "25% not classified as it")]
    assert len(caplog.messages) == (0 if isinstance(share, float) else 1)  # once, and not for each class
