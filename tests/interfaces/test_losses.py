"""A loss may say something of single images: a run keeps it with its samples and shows it everywhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load, load_file, save_file
from torch import Tensor

import interpkit
from interpkit import InversionBatch, InversionLoss, PluginError, RunError, Target
from interpkit.interfaces import contracts

Quick = Callable[..., dict[str, Any]]


class Ink(InversionLoss):
    """The mean brightness of the images."""

    name = "ink"
    describe: ClassVar[Mapping[str, str]] = {"used_up": "Mean brightness of a sample."}

    def forward(self, batch: InversionBatch) -> Tensor:
        return batch.images.mean()

    def figures(self, target: Target, images: Tensor) -> Mapping[str, Tensor]:
        return {"used_up": images.flatten(1).mean(1)}


@pytest.fixture
def run(tiny_model: Path, tmp_path: Path, quick: Quick, add_plugin: Callable[..., None]) -> Path:
    add_plugin(Ink)
    interpkit.invert(tiny_model, out=tmp_path / "run", **quick(losses={"ink": 0.1}))
    return tmp_path / "run"


def test_the_figures_are_kept_with_the_samples_and_averaged_by_class(run: Path) -> None:
    samples = load_file(run / "samples.safetensors")
    brightness = (samples["images"] / 255).flatten(1).mean(1)
    assert torch.allclose(samples["ink.used_up"], brightness)
    metrics = json.loads((run / "metrics.json").read_text("utf-8"))
    assert metrics["ink"]["used_up"] == pytest.approx(brightness.mean().item(), rel=1e-5)
    for row in metrics["per_class"]:
        own = brightness[samples["labels"] == row["label"]]
        assert row["ink"]["used_up"] == pytest.approx(own.mean().item(), rel=1e-5)


def test_they_stay_when_the_run_is_evaluated_again_and_its_report_shows_them(run: Path) -> None:
    before = json.loads((run / "metrics.json").read_text("utf-8"))["ink"]
    assert interpkit.evaluate(run, metrics=["diversity"])["ink"] == before
    page = interpkit.write_report(run).read_text("utf-8")
    assert "Mean brightness of a sample." in page
    assert '<option value="ink.used_up">ink: used up, highest first</option>' in page
    assert '"figures": {"ink.used_up": [' in page


@pytest.mark.parametrize("torn", [torch.zeros(3), torch.full((300,), torch.nan), torch.zeros(300, dtype=torch.int64)])
def test_a_file_with_figures_of_other_samples_is_refused(run: Path, torn: Tensor) -> None:
    path = run / "samples.safetensors"
    save_file(load(path.read_bytes()) | {"ink.used_up": torn}, path)
    with pytest.raises(RunError, match=r"ink\.used_up is not a finite number of each"):
        interpkit.write_report(run)


def test_fresh_samples_of_a_stored_run_have_them(run: Path) -> None:
    inversion = interpkit.load_inversion(run)
    images, _ = inversion.sample(2, seed=5)
    assert torch.allclose(inversion.figures(images)["ink.used_up"], images.flatten(1).mean(1))


def test_a_stored_run_whose_term_cannot_be_built_has_samples_without_them(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(self: Ink, target: Target, options: Any = None) -> None:
        raise interpkit.UsageError("its data are gone.")

    monkeypatch.setattr(Ink, "__init__", refused)
    inversion = interpkit.load_inversion(run)
    assert inversion.figures(inversion.sample(1)[0]) == {}
    assert "left out: its data are gone." in caplog.text


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({}, "figures() returns used_up, not nothing"),
        ({"used_up": torch.zeros(2, 1)}, "the figure 'used_up' has the shape (2,), not (2, 1)"),
        ({"used_up": torch.tensor([1.0, torch.nan])}, "the figure 'used_up' is finite, not NaN or infinite"),
    ],
)
def test_figures_other_than_promised_are_the_plugins_fault(
    found: dict[str, Tensor], words: str, tiny_target: Target
) -> None:
    loss = Ink(tiny_target)
    loss.figures = lambda target, images: found  # type: ignore[method-assign]
    with pytest.raises(PluginError) as error:
        contracts.figures(loss, tiny_target, torch.zeros(2, 1, 12, 12))
    assert words in str(error.value)


def test_figures_that_change_their_images_in_place_leave_those_of_the_run(tiny_target: Target) -> None:
    loss = Ink(tiny_target)
    loss.figures = lambda target, images: {"used_up": images.zero_().flatten(1).mean(1)}  # type: ignore[method-assign]
    images = torch.ones(2, 1, 12, 12)
    contracts.figures(loss, tiny_target, images)
    assert images.all()
