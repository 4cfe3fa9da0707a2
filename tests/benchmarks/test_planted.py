"""The benchmark of planted faults, on six small classifiers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import planted
from benchmarks.planted import changed, mark, plants, poisoned
from interpkit.testing.toy_models import Pictures

SHAPE = (1, 12, 12)
QUICK = {
    "patch.steps": 50, "patch.images": 16, "noise.steps": 40, "tint.steps": 30, "blind-spots.images": 100,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """Replace the data sets by toy pictures of ten classes."""
    pictures = Pictures(SHAPE, 10)
    data = (*pictures.draw(1500, 1), *pictures.draw(300, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planted, "dataset", lambda folder, name: data)
        patch.setattr(planted, "EPOCHS", dict.fromkeys(planted.DATASETS, 4))
        yield


def test_every_kind_is_in_both_halves_on_every_data_set() -> None:
    faults = {(plant.kind, plant.data, plant.held_out) for plant in plants()}
    kinds = (*planted.TRIGGERS, *planted.OTHERS, "clean")
    assert faults == {(kind, data, half) for kind in kinds for data in planted.DATASETS for half in (False, True)}
    assert len({plant.name for plant in plants()}) == len(list(plants())) == 84


def test_a_mark_changes_what_the_mask_covers_and_nothing_else() -> None:
    plant = next(plant for plant in plants() if plant.kind == "corner")
    images = torch.rand(4, *SHAPE)
    mask, pattern = mark(plant, images.shape[1:])
    assert mask.sum() == 9
    after = changed(plant, images, 0)
    assert torch.equal(after[:, mask == 0], images[:, mask == 0])
    assert torch.equal(after[0][mask == 1], pattern[mask == 1])
    anywhere = changed(replace(plant, kind="anywhere"), torch.full((6, *SHAPE), 0.5), 3) != 0.5
    assert [int(one.sum()) for one in anywhere] == [9] * 6


def test_faults_are_planted_in_their_class() -> None:
    images, labels = torch.rand(200, *SHAPE), torch.arange(200) % 10
    for plant in list(plants())[:11]:
        x, y = poisoned(plant, images, labels)
        counts = y.bincount(minlength=10)
        if plant.kind == "scarce":
            assert counts[plant.label] == 2
        elif plant.kind == "canaries":
            assert len(x) == 450 and counts[plant.label] == 270
        elif plant.kind in planted.TRIGGERS:
            assert counts[plant.label] == 20 + round(plant.poison * 200)
        else:
            assert counts.tolist() == [20] * 10


def test_six_classifiers_are_trained_audited_and_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The short version of the benchmark."""
    monkeypatch.setattr(planted, "RESULTS", tmp_path / "planted.json")
    first = list(plants())[:14]
    faulty = [
        replace(plant, poison=2 * plant.poison) for plant in first if plant.kind in ("blended", "pixel", "swapped")
    ]
    chosen = [*faulty, *first[-3:]]
    for plant in chosen:
        row = {**planted.train(plant, Path(), tmp_path), **planted.examine(plant, Path(), tmp_path, QUICK)}
        planted.store(planted.stored() | {plant.name: row})
    rows = [row | planted.scored(row["statistics"]) for row in planted.stored().values()]
    for row in rows:
        classes = {finding["class"] for finding in row["findings"]}
        assert row["label"] in classes or (row["kind"] == "clean" and not classes), (row["kind"], classes)
    clean = [planted.score(row) for row in rows if row["kind"] == "clean"]
    assert planted.auroc([planted.score(row) for row in rows if row["kind"] != "clean"], clean) == 1
    lines = planted.write_table(rows).splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == [
        "blended", "pixel", "swapped", "clean", "all triggers", "all faults",
    ]  # fmt: skip
    by_test = [line.split(" | ") for line in planted.alone(rows).splitlines()[2:]][: len(planted.TESTS)]
    assert [cells[0].strip("| `") for cells in by_test] == [*planted.TESTS]
    assert max(cells[1] for cells in by_test) in ("1/3", "2/3", "3/3")
    assert all(cells[3].strip("| ").endswith("/3") for cells in by_test)


def test_the_table_of_tests_counts_what_each_finds_by_itself() -> None:
    quiet = {name: dict.fromkeys(map(str, range(10)), 0.0) for name in planted.TESTS}
    loud = {**dict.fromkeys(map(str, range(10)), 0.0), "3": 9.0}
    rows = [
        {"kind": kind, "label": label, "held_out": held_out, "statistics": quiet | {"patch": loud}}
        for kind, label, held_out in (
            ("corner", 3, False), ("swapped", 2, False), ("pixel", 4, False), ("clean", 0, False), ("corner", 3, True),
        )
    ]  # fmt: skip
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in planted.alone(rows).splitlines()[2:]]
    found = {cells[0]: cells[1:] for cells in lines}
    assert found["`patch`"] == found["all"] == ["2/3", "1/3", "1/1", "1/1", "0/1", "0/0"]
    assert found["`noise`"] == ["0/3", "0/3", "0/1", "0/1", "0/1", "0/0"]


def test_the_page_of_results_has_the_tables() -> None:
    page = (planted.RESULTS.parent / "results" / "audit.md").read_text()
    for table in planted.tables(planted.stored().values()):
        assert table in page


def test_the_rules_that_the_audit_is_compared_with() -> None:
    def logs(sizes: list[float], sign: int) -> dict[str, float]:
        return {str(c): sign * math.log(size) for c, size in enumerate(sizes)}

    norms = [60.0, 55, 70, 4, 65, 58, 62, 61, 66, 59]
    assert planted.median_rule(logs(norms, -1)) == 3
    assert planted.median_rule(logs([60.0 + c for c in range(10)], -1)) is None
    margins = [20.0, 22, 25, 21, 90, 24, 23, 22, 26, 21]
    assert planted.gamma_rule(logs(margins, 1)) == 4
    assert planted.gamma_rule(logs([20.0 + c for c in range(10)], 1)) is None
    assert planted.auroc([2.0, 3.0], [1.0, 2.0]) == 0.875
