"""``interpkit predict``: what the classifier makes of photos."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

import interpkit
from interpkit.cli import app


def cli(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["predict", *map(str, arguments)])


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 12, 12), dtype=np.uint8)
    for name, one in zip(("a.png", "b.png"), pixels, strict=True):
        Image.fromarray(one).save(tmp_path / name)
    return [tmp_path / "a.png", tmp_path / "b.png"]


def test_the_most_probable_classes_of_each_photo_are_shown(tiny_model: Path, photos: list[Path]) -> None:
    result = cli(tiny_model, "--images", *photos, "--json", "--top", "2", "--device", "cpu")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    target = interpkit.load_target(tiny_model)
    for photo, one in zip(photos, told["predictions"], strict=True):
        pixels = torch.from_numpy(np.array(Image.open(photo)))[None, None] / 255
        with torch.no_grad():
            probabilities = target(pixels).softmax(1)[0]
        best = probabilities.argsort(descending=True)[:2].tolist()
        assert one["image"] == str(photo) and [row["label"] for row in one["classes"]] == best
        assert [row["name"] for row in one["classes"]] == [target.class_names[label] for label in best]
        assert [row["probability"] for row in one["classes"]] == pytest.approx(probabilities[best].tolist())


def test_the_table_has_the_photos_and_a_photo_of_another_size_is_resized(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("RGB", (90, 60), "gray").save(tmp_path / "wide.jpg")
    result = cli(tiny_model, tmp_path / "wide.jpg")
    assert result.exit_code == 0 and "class 0" in result.stdout and result.stdout.count("%") == 3
    assert "is resized to cover 12 x 12 pixels" in caplog.text


def test_labeled_data_are_named_by_number_with_their_labels(tiny_model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 12, 12), np.uint8), labels=[2, 1])
    told = json.loads(cli(tiny_model, "--images", tmp_path / "a.npz", "--json").stdout)
    assert [(one["image"], one["label"]) for one in told["predictions"]] == [
        (f"{tmp_path / 'a.npz'}[{number}]", label) for number, label in enumerate((2, 1))
    ]


def test_no_images_and_a_missing_photo_are_refused(tiny_model: Path) -> None:
    for words, arguments in (("no images to classify: name some by --images", []), ("no file none.png", ["none.png"])):
        result = cli(tiny_model, *arguments)
        assert result.exit_code == 2 and words in " ".join(result.stderr.split())
