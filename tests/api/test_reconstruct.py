"""`reconstruct`: the pictures of given answers, in the order of the input, beside their originals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from typer.testing import CliRunner, Result

import interpkit
from interpkit import Reconstruction, UsageError, reconstruct
from interpkit.cli import app

SHAPE = (1, 12, 12)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("public") / "public.npz"
    np.savez(file, images=np.random.default_rng(0).integers(0, 256, (30, 12, 12), np.uint8))
    return file


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, pictures: Path) -> Path:
    """A decoder of the tiny classifier's answers, hardly trained."""
    out = tmp_path_factory.mktemp("runs") / "decoder"
    interpkit.invert(tiny_model, inverter="alignment", data=pictures, steps=5, batch_size=8, device="cpu", out=out)
    return out


def shell(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["reconstruct", *map(str, arguments)])


def test_pictures_come_in_the_order_of_the_images_and_beside_them(run: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.safetensors"
    result = shell(run, "--images", pictures, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    found = safetensors.torch.load_file(out)
    assert found["images"].shape == (30, *SHAPE) and found["images"].dtype == torch.uint8
    assert torch.equal(found["originals"][:, 0], torch.from_numpy(np.load(pictures)["images"]))
    assert out.with_suffix(".png").stat().st_size > 100
    answer = json.loads(result.stdout)
    assert answer["count"] == 30 and 0 <= answer["kept"] <= 1
    rows = answer["reconstructions"]
    assert [row["row"] for row in rows] == list(range(30))
    apart = (found["images"] / 255 - found["originals"] / 255).square().flatten(1).mean(1)
    assert [row["error"] for row in rows] == pytest.approx(apart.tolist(), abs=0.005)


def test_a_picture_that_no_earlier_call_wrote_is_not_replaced(run: Path, tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(b"mine")
    result = shell(run, "--images", tmp_path / "cat.png", "--out", tmp_path / "cat.safetensors")
    assert result.exit_code == 2 and "would be replaced by the picture of" in result.stderr
    assert (tmp_path / "cat.png").read_bytes() == b"mine"


def test_an_answer_has_the_same_picture_as_the_image_that_was_answered(run: Path, pictures: Path) -> None:
    inversion = interpkit.load_inversion(run)
    first = reconstruct(inversion, pictures, device="cpu")
    again = reconstruct(inversion, predictions=first.predictions.flip(0), device="cpu")
    assert isinstance(again, Reconstruction) and again.originals is None and again.errors is None
    torch.testing.assert_close(again.images.flip(0), first.images, atol=1e-3, rtol=0)
    logits = reconstruct(inversion, predictions=first.predictions.log() + 3, logits=True, device="cpu")
    torch.testing.assert_close(logits.images, first.images, atol=1e-3, rtol=0)


def test_originals_stay_as_they_were_when_the_images_change_later(run: Path) -> None:
    images = torch.rand(2, *SHAPE)
    found = reconstruct(interpkit.load_inversion(run), images, device="cpu")
    were = images.clone()
    images.zero_()
    assert found.originals is not None and torch.equal(found.originals, were)


def test_predictions_from_a_file_need_no_images(run: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "answers.npy", np.array([[0.8, 0.1, 0.1]]))
    result = shell(run, "--predictions", tmp_path / "answers.npy", "--out", tmp_path / "found.safetensors")
    assert result.exit_code == 0 and "1 pictures; the classifier assigns" in result.stdout
    assert "error" not in result.stdout
    assert set(safetensors.torch.load_file(tmp_path / "found.safetensors")) == {"images", "predictions", "kept"}


def test_a_single_picture_or_another_size_is_read_as_the_classifier_receives_it(run: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.full((20, 20), 99, np.uint8)).save(tmp_path / "a.png")
    inversion = interpkit.load_inversion(run)
    for source in (tmp_path / "a.png", tmp_path):
        assert reconstruct(inversion, source, device="cpu").images.shape == (1, *SHAPE)


def test_logits_given_as_probabilities_are_refused_with_what_to_type(run: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "logits.npy", np.array([[3.0, -1.0, 0.5]]))
    result = shell(run, "--predictions", tmp_path / "logits.npy")
    assert result.exit_code == 2 and "add --logits" in result.stderr.replace("\n", " ")
    assert shell(run, "--predictions", tmp_path / "logits.npy", "--logits").exit_code == 0


def test_one_of_images_and_predictions_is_named_and_the_output_is_a_file_of_tensors(run: Path, pictures: Path) -> None:
    result = shell(run)
    assert result.exit_code == 2 and "--images FILE" in result.stderr and "--predictions FILE" in result.stderr
    assert shell(run, "--images", pictures, "--predictions", "x.npy").exit_code == 2
    assert shell(run, "--images", pictures, "--out", "found.png").exit_code == 2


def test_a_generator_of_classes_decodes_no_answers(finished_run: Path) -> None:
    with pytest.raises(UsageError, match=r"pictures of classes, not of answers.*conditioner='predictions'"):
        reconstruct(interpkit.load_inversion(finished_run), predictions=torch.tensor([[1.0, 0, 0]]))


def test_answers_of_labels_that_do_not_exclude_each_other_are_refused(run: Path) -> None:
    decoder = interpkit.load_inversion(run)
    decoder.target = interpkit.wrap(nn.Sequential(nn.Flatten(), nn.Linear(144, 3)), SHAPE, output="sigmoid_logits")
    with pytest.raises(UsageError, match=r"one distribution over the classes, .* do not exclude each other"):
        reconstruct(decoder, torch.rand(2, *SHAPE), device="cpu")


def test_vectors_are_stored_in_their_own_units(tmp_path: Path) -> None:
    target = interpkit.wrap(torch.nn.Identity(), input_shape=(2,), input_range=(0, 10))
    np.savez(tmp_path / "rows.npz", images=np.random.default_rng(0).random((20, 2), np.float32) * 10)
    settings = {"steps": 5, "batch_size": 8, "device": "cpu"}
    inversion = interpkit.invert(target, inverter="alignment", data=tmp_path / "rows.npz", **settings)
    found = reconstruct(inversion, predictions=torch.tensor([[0.9, 0.1]]), device="cpu")
    assert found.save(tmp_path / "found.safetensors") == [tmp_path / "found.safetensors"]
    stored = safetensors.torch.load_file(tmp_path / "found.safetensors")["images"]
    torch.testing.assert_close(stored, found.images * 10)
