"""``interpkit classify``: what the classifier makes of photos."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner, Result

import interpkit
from interpkit.cli import app


def cli(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["classify", *map(str, arguments)])


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
    assert "is resized from 90 x 60 to cover 12 x 12 pixels" in caplog.text


def test_only_certainty_is_shown_as_a_hundred_percent(
    tiny_module: Callable[..., nn.Module], tmp_path: Path, photos: list[Path]
) -> None:
    module = tiny_module()
    module[-1].weight.data.zero_()  # type: ignore[index]
    module[-1].bias.data = torch.tensor([0.0, 8.0, -1.0])  # type: ignore[index]
    arguments = {"input_shape": [1, 12, 12], "num_classes": 3, "widths": [4], "hidden": 8}
    path = interpkit.save_target(
        module, tmp_path / "sure.safetensors", architecture="interpkit:cnn", arch_args=arguments,
        input_shape=(1, 12, 12),
    )  # fmt: skip
    table = cli(path, photos[0], "--device", "cpu").stdout
    assert (table.count(">99.9%"), table.count("<0.1%"), table.count("100.0%")) == (1, 2, 0)


def test_what_happens_to_photos_is_said(tiny_model: Path, photos: list[Path]) -> None:
    assumed = " ".join(cli(tiny_model, photos[0]).stderr.split())
    assert "tiny receives values from 0 to 1, minus 0.25, divided by 0.5. A photo of another size" in assumed
    assert "is resized (bicubic) to cover 12 x 12 pixels, and cropped at the center (assumed;" in assumed
    flags = ["--mean", "127", "--std", "128", "--input-range", "0,255", "--crop-pct", "0.8"]
    stated = " ".join(cli(tiny_model, photos[0], *flags).stderr.split())
    assert "values from 0 to 255, minus 127, divided by 128." in stated
    assert "to cover 15 x 15 pixels, and cropped at the center to 12 x 12 (stated)" in stated


def test_each_photo_of_a_folder_is_classified_and_those_that_are_none_are_named(
    tiny_model: Path, photos: list[Path]
) -> None:
    folder = photos[0].parent
    (folder / "notes.txt").write_text("not a photo")
    (folder / "torn.jpg").write_bytes(b"torn")
    result = cli(tiny_model, folder, folder / "none.png", "--json")
    assert [one["image"] for one in json.loads(result.stdout)["predictions"]] == list(map(str, photos))
    told = " ".join(result.stderr.split())
    assert result.exit_code == 2 and "torn.jpg is not a readable image" in told and "there is no file" in told


def test_two_classes_of_one_name_are_told_apart_by_number(tiny_model: Path, photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("crane\nstork\ncrane\n")
    shown = cli(tiny_model, photos[0], "--class-names", tmp_path / "names.txt").stdout
    assert "crane (0)" in shown and "crane (2)" in shown and "stork (" not in shown


def test_labeled_data_are_named_by_number_with_their_labels(tiny_model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 12, 12), np.uint8), labels=[2, 1])
    told = json.loads(cli(tiny_model, "--images", tmp_path / "a.npz", "--json").stdout)
    assert [(one["image"], one["label"]) for one in told["predictions"]] == [
        (f"{tmp_path / 'a.npz'}[{number}]", label) for number, label in enumerate((2, 1))
    ]


def test_no_images_and_a_missing_photo_are_refused(tiny_model: Path) -> None:
    refused = {"no images to classify: name some, as in": [], "no file none.png": ["none.png"]}
    for words, arguments in (refused | {"no file or folder 'none'": ["none"]}).items():
        result = cli(tiny_model, *arguments)
        assert result.exit_code == 2 and words in " ".join(result.stderr.split())
