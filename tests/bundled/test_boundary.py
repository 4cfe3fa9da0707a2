"""The inverter `boundary`: its images are of another class, near the data, and come back from the run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from interpkit_boundary import BoundaryInversion
from torch import nn

import interpkit


@pytest.fixture
def data(tmp_path: Path) -> str:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "known.npz", images=pixels, labels=np.zeros(24, dtype=np.int64))
    return str(tmp_path / "known.npz")


@pytest.fixture
def target() -> interpkit.Target:
    return interpkit.wrap(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), input_shape=(1, 8, 8))


def invert(target: interpkit.Target, data: str, **settings: Any) -> BoundaryInversion:
    options = {"boundary.data": data} | settings.pop("options", {})
    inversion = interpkit.invert(target, ["boundary"], options=options, device="cpu", **settings)
    assert isinstance(inversion, BoundaryInversion)
    return inversion


def test_every_image_of_the_data_changes_its_class_by_whole_levels(target: interpkit.Target, data: str) -> None:
    found = invert(target, data).found
    levels = (found["images"] - found["starts"]) * 255
    assert len(levels) == 24 and (levels - levels.round()).abs().max() < 1e-3
    with torch.no_grad():
        assert torch.equal(target(found["starts"]).argmax(1), found["before"])
        assert torch.equal(target(found["images"]).argmax(1), found["labels"])
    assert (found["before"] != found["labels"]).all()


def test_stored_in_8_bits_the_samples_are_still_of_their_class(
    target: interpkit.Target, data: str, tmp_path: Path
) -> None:
    inversion = invert(target, data, out=tmp_path / "run")
    again = interpkit.load_inversion(tmp_path / "run", target=target)
    assert isinstance(again, BoundaryInversion) and torch.equal(again.images, inversion.images)
    assert interpkit.evaluate(inversion)["inversion_accuracy"] == 1.0
    assert (tmp_path / "run" / "boundary.csv").read_text().startswith("before,after,distance\n")
    assert "To the boundary" in (tmp_path / "run" / "report.html").read_text("utf-8")


def test_a_run_keeps_all_images_though_they_change_to_some_classes_more_often(
    target: interpkit.Target, data: str, tmp_path: Path
) -> None:
    inversion = invert(target, data, out=tmp_path / "run")
    kept = safetensors.torch.load_file(tmp_path / "run" / "samples.safetensors")
    assert len(set(inversion.labels.bincount().tolist()) - {0}) > 1
    assert torch.equal(kept["labels"].bincount(), inversion.labels.bincount()) and len(kept["labels"]) == 24


def test_images_between_the_levels_of_8_bits_are_first_rounded(target: interpkit.Target, tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((12, 8, 8)).astype("float32")
    np.savez(tmp_path / "floats.npz", images=images, labels=np.zeros(12, dtype=np.int64))
    inversion = invert(target, str(tmp_path / "floats.npz"), out=tmp_path / "run")
    levels = inversion.images * 255
    assert (levels - levels.round()).abs().max() < 1e-3
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["inversion_accuracy"] == 1.0


def test_with_labels_each_image_changes_to_one_of_them(target: interpkit.Target, data: str) -> None:
    free = invert(target, data).found
    rare = int(free["labels"].bincount(minlength=3).argmin())
    found = invert(target, data, labels=[rare]).found
    others = int((free["before"] != rare).sum())
    assert len(found["labels"]) == others > int((free["labels"] == rare).sum())
    assert (found["labels"] == rare).all() and (found["before"] != rare).all()


def test_of_data_sorted_by_class_images_of_all_classes_are_changed(target: interpkit.Target, tmp_path: Path) -> None:
    images = np.zeros((90, 8, 8), dtype=np.uint8)
    for row in range(90):
        images[row, 0, row // 30] = 255
    np.savez(tmp_path / "sorted.npz", images=images, labels=np.arange(90) // 30)
    found = invert(target, str(tmp_path / "sorted.npz"), options={"boundary.count": 20}).found
    assert len(found["starts"][:, 0, 0, :3].unique(dim=0)) == 3


def test_the_other_classes_are_empty_where_one_is_asked_for(target: interpkit.Target, data: str) -> None:
    present = invert(target, data).found["before"]
    asked = int(present.bincount(minlength=3).argmin())
    inversion = invert(target, data, options={"boundary.to": asked, "boundary.count": 10}, steps=3)
    assert inversion.classes == [asked] and (inversion.labels == asked).all()
    reason = f"none of the 10 images of the data was changed to it, as the option to asks for '{asked}'"
    assert inversion.empty == {label: reason for label in range(3) if label != asked}


def test_if_every_image_is_in_the_class_already_the_run_fails(target: interpkit.Target, data: str) -> None:
    asked = int(invert(target, data).found["before"][0])
    with torch.no_grad():
        target.module[1].bias[asked] += 50  # type: ignore[union-attr, index, operator]
    with pytest.raises(interpkit.UsageError, match=r"none of the 24 images .* classifies it as '\d' already"):
        invert(target, data, options={"boundary.to": str(asked)})


def test_along_a_run_the_images_are_samples_of_its_generator(
    target: interpkit.Target, data: str, tmp_path: Path
) -> None:
    small = {"upconv.width": 8, "upconv.min_width": 4, "upconv.latent": 8, "upconv.hidden": 8}
    interpkit.invert(target, ["vecmat"], steps=60, batch_size=16, options=small, out=tmp_path / "run", device="cpu")
    along = {"boundary.run": str(tmp_path / "run"), "boundary.confidence": 0.34}
    inversion = invert(target, data, options=along, steps=1)
    assert len(inversion.images) and inversion.found["distances"].min() > invert(target, data).found["distances"].max()


def test_a_generator_that_changed_since_is_refused_on_resuming(
    target: interpkit.Target, data: str, tmp_path: Path
) -> None:
    small = {"upconv.width": 8, "upconv.min_width": 4, "upconv.latent": 8, "upconv.hidden": 8}
    run, settings = tmp_path / "run", {"steps": 1, "batch_size": 16, "options": small, "device": "cpu"}
    interpkit.invert(target, ["vecmat"], out=run, **settings)
    along = {"boundary.run": str(run), "boundary.confidence": 0.34}
    invert(target, data, options=along, steps=1, out=tmp_path / "along")
    interpkit.invert(target, ["vecmat"], out=run, force=True, seed=1, **settings)
    with pytest.raises(interpkit.RunError, match=r"the generator in .* has changed since this run was begun: restore"):
        invert(target, data, options=along, steps=2, out=tmp_path / "along", resume=True)


@pytest.mark.parametrize("option", [{"smooth": 1.0}, {"starts": 2}], ids=["smooth", "starts"])
def test_options_for_images_that_change_freely_are_refused_along_a_run(
    target: interpkit.Target, data: str, tmp_path: Path, option: dict[str, float]
) -> None:
    small = {"upconv.width": 8, "upconv.min_width": 4, "upconv.latent": 8, "upconv.hidden": 8}
    interpkit.invert(target, ["vecmat"], steps=1, batch_size=16, options=small, out=tmp_path / "run", device="cpu")
    options = {f"boundary.{name}": value for name, value in option.items()} | {"boundary.confidence": 0.34}
    with pytest.raises(interpkit.UsageError, match="the options smooth and starts are for images that change freely"):
        invert(target, data, options={**options, "boundary.run": str(tmp_path / "run")}, steps=1)
    assert len(invert(target, data, options={**options, "boundary.count": 2}, steps=1).images) == 2


def test_data_must_be_named_and_a_run_needs_a_generator(target: interpkit.Target, data: str, tmp_path: Path) -> None:
    with pytest.raises(interpkit.UsageError, match="option 'data' is not set"):
        interpkit.invert(target, ["boundary"], device="cpu")
    invert(target, data, out=tmp_path / "run")
    with pytest.raises(interpkit.UsageError, match="has no generator to move along"):
        invert(target, data, options={"boundary.run": str(tmp_path / "run")})


def test_a_file_of_other_images_is_refused(target: interpkit.Target, data: str, tmp_path: Path) -> None:
    found = invert(target, data, out=tmp_path / "run").found
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    manifest["files"] = {}  # as if somebody had written both
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    for changed in (
        {"images": found["images"][:, :, 1:].clone()},
        {"before": found["before"] + 3},
        {"starts": found["before"].clone()},
    ):
        safetensors.torch.save_file({**found, **changed}, tmp_path / "run" / "boundary.safetensors")
        with pytest.raises(interpkit.RunError, match="does not hold images of Sequential with their classes"):
            interpkit.load_inversion(tmp_path / "run", target=target)
