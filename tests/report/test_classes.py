"""How the classes of a page are laid out, and what stands below their names."""

from __future__ import annotations

import pytest

from interpkit.report.classes import figures, layout


@pytest.mark.parametrize(
    ("width", "counts", "expected"),
    [
        (28, [100] * 10, "classes"),
        (96, [100] * 10, "classes medium"),
        (224, [5] * 20, "classes large"),
        (224, [1, 2] * 20, "classes large few few-2"),
        (28, [1] * 1000, "classes few few-1"),
        (224, [1], "classes large"),
        (224, [], "classes large"),
    ],
)
def test_pictures_are_shown_by_their_size_and_number(width: int, counts: list[int], expected: str) -> None:
    assert layout(width, counts).split() == expected.split()


def test_a_class_has_the_figures_that_were_measured_of_it() -> None:
    rows = [
        {"label": 0, "name": "a", "count": 4, "inversion_accuracy": 0.75, "inversion_accuracy_interval": [0.3, 1.0]},
        {"label": 3, "name": "b", "inversion_accuracy": 1.0, "evaluators": [{"name": "judge", "agreement": 0.5}]},
    ]
    found = figures({"inversion_accuracy": 0.9, "per_class": rows})
    assert found.titles == ("accuracy", "agrees: judge")
    assert [found.plain(label) for label in (0, 1, 3)] == ["0.75 -", "- -", "1 0.5"]
    assert found.sentence(3) == "accuracy 1.00, agrees: judge 0.50" and found.sentence(1) == ""
    assert figures({}).titles == ()
