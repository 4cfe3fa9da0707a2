"""Files of earlier releases open with today's code; tests/fixtures/make.py wrote them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

import interpkit
from interpkit.cli import app
from interpkit.evaluation.scoring import read_images
from interpkit.runs.folder import Run

FIXTURES = Path(__file__).parents[1] / "fixtures"
RELEASES = sorted(path.parent for path in FIXTURES.glob("*/classifier.safetensors"))

pytestmark = pytest.mark.parametrize("written", RELEASES, ids=lambda folder: folder.name)


@pytest.fixture
def there(written: Path, tmp_path: Path) -> Path:
    """Return a copy of the files of a release."""
    return Path(shutil.copytree(written, tmp_path / "written"))


def command(*words: str | Path) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result


def losses(folder: Path) -> dict[int, float]:
    rows = map(json.loads, (folder / "history.jsonl").read_text().splitlines())
    return {row["step"]: row["loss"] for row in rows}


def test_there_is_a_fixture_of_this_release(written: Path) -> None:
    assert ".".join(interpkit.__version__.split(".")[:2]) in [folder.name for folder in RELEASES]
    assert sum(path.stat().st_size for path in written.rglob("*")) < 400_000


def test_a_packed_classifier_predicts_what_it_did(there: Path) -> None:
    target = interpkit.load_target(there / "classifier.safetensors")
    stored, _, _ = read_images(there / "generator" / "samples.safetensors", target)
    probabilities = load_file(there / "generator" / "samples.safetensors")["probabilities"]
    with target.frozen(), torch.no_grad():
        assert torch.allclose(target(stored / 255).softmax(1), probabilities, atol=1e-4)


@pytest.mark.parametrize(("name", "per_class"), [("generator", 100), ("evaluated", 100), ("pixels", 4)])
def test_a_run_opens_and_repeats_its_samples(there: Path, name: str, per_class: int) -> None:
    inversion = Run.open(there / name).load(model=there / "classifier.safetensors")
    images, labels = inversion.sample(per_class=per_class)
    stored = load_file(there / name / "samples.safetensors")
    assert torch.equal(labels, stored["labels"])
    # On another processor the last digits differ, which occasionally changes the rounding to 8 bits.
    assert (images * 255 - stored["images"]).abs().max() < 1.01
    assert inversion.history[-1].step == inversion.recipe.steps


def test_a_run_is_sampled_evaluated_and_reported(there: Path) -> None:
    model = ["--model", there / "classifier.safetensors"]
    run = there / "generator"
    command("sample", run, *model, "--per-class", "2", "--out", there / "new.safetensors")
    assert load_file(there / "new.safetensors")["labels"].tolist() == [0, 0, 1, 1, 2, 2]
    known = ["--evaluator", there / "evaluator.safetensors", "--reference", there / "real.npz"]
    command("evaluate", run, *model, *known)
    old, new = (Run.open(there / name).metrics() for name in ("evaluated", "generator"))
    assert new["evaluators"][0]["agreement"] == pytest.approx(old["evaluators"][0]["agreement"], abs=0.02)
    assert new["inversion_accuracy"] == pytest.approx(old["inversion_accuracy"], abs=0.02)
    assert set(old["reference"]) <= set(new["reference"]) and old["measured_on"].keys() <= new["measured_on"].keys()
    command("report", run, *model)
    assert "classifier" in (run / "report.html").read_text()


def test_a_run_with_maps_is_reported_with_them(there: Path) -> None:
    command("report", there / "evaluated", "--model", there / "classifier.safetensors")
    assert "saliency" in (there / "evaluated" / "report.html").read_text()


def test_concepts_open_and_fire(there: Path, written: Path) -> None:
    if written.name == "0.1":
        pytest.skip("there were no concepts yet")
    learned = interpkit.load_concepts(there / "evaluated" / "concepts", target=there / "classifier.safetensors")
    assert [row["name"] for row in learned.record["concepts"] if row["concept"] == 0] == ["corner"]
    images = interpkit.load_inversion(there / "evaluated", target=there / "classifier.safetensors").sample(count=8)[0]
    with torch.no_grad():
        assert learned.detector(images).shape == (8, 4)


def test_runs_are_compared(there: Path) -> None:
    runs = [there / name for name in ("generator", "evaluated", "pixels")]
    columns = json.loads(command("compare", *runs, "--json", "--html", there / "all.html").stdout)
    accuracies = [Run.open(run).metrics()["inversion_accuracy"] for run in runs]
    assert [column["metrics"]["inversion_accuracy"] for column in columns] == accuracies
    assert (there / "all.html").stat().st_size > 1000


def test_a_stopped_run_is_resumed_to_the_same_result(there: Path) -> None:
    stopped, whole = there / "stopped", there / "generator"
    assert max(losses(stopped)) == 23
    command("invert", there / "classifier.safetensors", "--out", stopped, "--resume")
    assert losses(stopped)[40] == pytest.approx(losses(whole)[40], rel=0.05)  # another processor rounds differently
    assert Run.open(stopped).manifest().status == "finished"


@pytest.mark.parametrize("name", ["generator", "pixels"])
def test_a_finished_run_is_extended(there: Path, name: str) -> None:
    steps = max(losses(there / name))
    command("invert", there / "classifier.safetensors", "--out", there / name, "--resume", "--steps", str(steps + 2))
    assert max(losses(there / name)) == steps + 2


def test_a_run_is_repeated_from_its_recipe(there: Path) -> None:
    again = there / "again"
    command("invert", there / "classifier.safetensors", "--config", there / "generator" / "recipe.toml", "--out", again)
    first, *_, last = losses(there / "generator").items()
    assert losses(again)[first[0]] == pytest.approx(first[1], rel=1e-3)
    assert losses(again)[last[0]] == pytest.approx(last[1], rel=0.1 if torch.__version__ < (2, 7) else 0.05)


def test_shards_are_added_to(there: Path, same_tensors: Callable[..., bool]) -> None:
    whole = [there / "shards" / f"samples-{number:06d}.safetensors" for number in (0, 1)]
    before: list[dict[str, Any]] = [load_file(path) for path in whole]
    size = ["--count", "40", "--shard-size", "16", "--out", there / "shards"]
    command("sample", there / "generator", "--model", there / "classifier.safetensors", *size)
    assert same_tensors(load_file(whole[0]), before[0])
    assert torch.equal(load_file(whole[1])["labels"][: len(before[1]["labels"])], before[1]["labels"])
    index = json.loads((there / "shards" / "index.json").read_text())
    assert (index["count"], [shard["count"] for shard in index["shards"]]) == (40, [16, 16, 8])
