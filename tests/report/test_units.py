"""The section on units: what excites them among real images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import interpkit
from interpkit.cli import app
from interpkit.evaluation.scoring import draw_samples, load_labelled
from interpkit.report.units import section


def bright_at(*places: int) -> torch.Tensor:
    """Return black images of 4 x 4 pixels with one white pixel each."""
    images = torch.zeros(len(places), 1, 4, 4)
    images.flatten(1)[range(len(places)), list(places)] = 1
    return images


def units_of_pixels(*names: str) -> interpkit.Target:
    """Return a target whose classes are units that show a pixel each."""
    first = nn.Linear(16, 16, bias=False)
    nn.init.eye_(first.weight)
    return interpkit.units(interpkit.wrap(nn.Sequential(nn.Flatten(), first, nn.Linear(16, 3)), (1, 4, 4)), names)


@pytest.mark.parametrize("names", [("1:2", "1:7"), ("1:7",)], ids=["several", "one"])
def test_the_real_images_that_excite_a_unit_most_are_found(names: tuple[str, ...]) -> None:
    target, real = units_of_pixels(*names), bright_at(7, 2, 0, 7)
    inversion = interpkit.invert(target, ["pixels"], steps=2, device="cpu")
    found = section(draw_samples(inversion, per_class=2), real, target, "cpu", 64)
    row, strip = found.rows[-1], found.strips[-1]
    assert row[0] == "1:7" and strip.title.startswith("1:7") and not strip.predictions
    assert torch.equal(strip.images[:2], real[[0, 3]])
    with target.frozen(), torch.no_grad():
        logits = target(real) if len(names) > 1 else 2 * target(real)
    assert row[2] == pytest.approx(logits[:, -1].mean().item(), abs=0.01)
    assert "those 4 of 4 real images that excite it most" in found.text and "not what it responds to" in found.text


def test_labeled_data_have_no_labels_of_units(tmp_path: Path) -> None:
    np.savez(tmp_path / "real.npz", images=bright_at(7, 2)[:, 0].numpy(), labels=np.arange(2))
    with pytest.raises(interpkit.UsageError, match=r"the classes of .* are units, of which .*real\.npz has no labels"):
        load_labelled(str(tmp_path / "real.npz"), units_of_pixels("1:2", "1:7"))


def test_a_report_on_units_needs_no_labels_of_the_reference(tmp_path: Path, tiny_model: Path) -> None:
    target = interpkit.units(interpkit.load_target(tiny_model), ["0:1", "0:2"])
    folder = interpkit.invert(target, ["pixels"], steps=2, device="cpu").save(tmp_path / "run")
    images = np.random.default_rng(0).random((30, *target.input_shape), "float32")
    np.savez(tmp_path / "real.npz", images=images, labels=np.arange(30) % 10)
    result = CliRunner().invoke(app, ["report", str(folder), "--reference", str(tmp_path / "real.npz")])
    assert result.exit_code == 0, result.output
    text = (folder / "report.html").read_text("utf-8")
    assert "Units among real images" in text and "0:2: strongest real images" in text
    with pytest.raises(interpkit.UsageError, match="are units, of which the reference data have no labels"):
        interpkit.evaluate(folder, reference=tmp_path / "real.npz")
