"""What the benchmarks share: the figures, the tables, and what is kept of finished runs."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.harness")


@pytest.fixture
def paper(harness: Any) -> Any:
    return importlib.import_module("benchmarks.paper")


METRICS: dict[str, Any] = {
    "inversion_accuracy": 0.9,
    "evaluators": [
        {"name": "a", "agreement": 0.5, "relative": 0.625, "reference_accuracy": 0.8},
        {"name": "b", "agreement": 0.7, "relative": 0.7, "reference_accuracy": 1.0},
    ],
    "reference": {
        "features": {
            "a": {"coverage": 0.1, "density": 0.2, "precision": 0.3, "recall": 0.4},
            "b": {"coverage": 0.3, "density": 0.4, "precision": 0.5, "recall": 0.6},
        },
        "excess_vendi": 0.75,
    },
    "robustness": {"pgd": {"1": {"kept": 0.25}}},
    "per_class": [
        {"evaluators": [{"agreement": 0.9}, {"agreement": 0.9}]},
        {"evaluators": [{"agreement": 0.2}, {"agreement": 0.4}]},
    ],
    "student": {"labels": {"relative": 0.8}, "logits": {"relative": 0.9}},
}


def test_figures_are_means_over_the_evaluators_and_absent_ones_are_left_out(harness: Any) -> None:
    assert harness.figures(METRICS) == pytest.approx(
        {
            "inversion accuracy": 0.9,
            "agreement": 0.6,
            "agreement / accuracy": 0.6625,
            "agreement, worst class": 0.3,
            "excess Vendi": 0.75,
            "coverage": 0.2,
            "density": 0.3,
            "precision": 0.4,
            "recall": 0.5,
            "student, labels": 0.8,
            "student, logits": 0.9,
            "kept, PGD 1": 0.25,
        }
    )


def test_a_table_has_mean_and_deviation_over_the_seeds(harness: Any) -> None:
    rows = {"one": harness.over_seeds([{"x": 0.5}]), "two": harness.over_seeds([{"x": 1.0, "y": 2.0}, {"x": 3.0}])}
    assert harness.table(rows, "recipe") == (
        "| recipe | x | y |\n|---|---|---|\n| one | 0.500 | - |\n| two | 2.000 ± 1.414 | 2.000 |\n"
    )


def test_a_section_of_the_page_is_replaced_and_the_rest_left(
    harness: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "ROOT", tmp_path)
    page = tmp_path / "docs" / "results" / "paper.md"
    page.parent.mkdir(parents=True)
    page.write_text("a\n<!-- x -->\nold\n<!-- /x -->\nb\n")
    harness.write_section("paper.md", "x", "new\n")
    assert page.read_text() == "a\n<!-- x -->\nnew\n<!-- /x -->\nb\n"
    with pytest.raises(AssertionError, match=r"paper\.md does not have the marks of section y"):
        harness.write_section("paper.md", "y", "new\n")


def test_results_are_kept_by_name_and_the_first_seeds_grid_with_them(
    harness: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "KEPT", tmp_path / "results.json")
    monkeypatch.setattr(harness, "PICTURES", tmp_path / "pictures")
    place = harness.Place(tmp_path, tmp_path, tmp_path)
    results = [harness.Result(f"mnist-training-like-{seed}-abc", "sha", {"x": 0.5}, {}, 0.9) for seed in (0, 1)]
    for result in results:
        (tmp_path / "runs" / result.name).mkdir(parents=True)
        (tmp_path / "runs" / result.name / "samples.png").write_bytes(result.name.encode())
    harness.keep(results[:1], place)
    assert list((tmp_path / "pictures").iterdir()) == []
    harness.keep(results[:1], place, pictures=True)
    harness.keep(results[1:], place, pictures=True)
    kept = json.loads((tmp_path / "results.json").read_text())
    assert [harness.Result(**kept[result.name]) for result in results] == results
    assert [p.name for p in (tmp_path / "pictures").iterdir()] == ["mnist-training-like.png"]
    assert (tmp_path / "pictures" / "mnist-training-like.png").read_text() == results[0].name


@pytest.mark.parametrize(
    ("target", "expected"), [("mnist", "mnist"), ("fashion_mnist_bn", "fashion_mnist"), ("mnist_bn_smoothed", "mnist")]
)
def test_the_data_set_of_a_target(harness: Any, target: str, expected: str) -> None:
    assert harness.dataset(target) == expected


def test_which_cells_the_paper_has(paper: Any) -> None:
    assert paper.cells("vecmat", "svhn", [0, 1, 2])[1] == [0, 1, 2]
    assert paper.cells("pixels", "mnist", [0, 1, 2])[1] == [0]
    assert paper.cells("deepinversion", "mnist", [0])[1] == []
    assert paper.cells("deepinversion", "cifar10_bn", [0])[1] == [0]
    assert paper.cells("evolution", "svhn", [0])[1] == []
    assert paper.cells(paper.GRID.name, "svhn", [0, 1])[0].settings == {"generators": 8}
