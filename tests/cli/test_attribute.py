"""``interpkit attribute``: files, figures and exit codes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner, Result

import interpkit
from interpkit.attribution import export
from interpkit.cli import app

QUICK = ["--device", "cpu", "--per-class", "3", "--set", "integrated-gradients.steps=6"]


def cli(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["attribute", *(str(argument) for argument in arguments)])


def fails(code: int, words: str, *arguments: str | Path) -> None:
    result = cli(*arguments)
    message = " ".join(result.stderr.split())
    assert result.exit_code == code, f"{result.exit_code}: {result.output}"
    assert result.stdout == ""
    assert re.search(words, message), message
    assert message.count("error:") == 1 and "Traceback" not in message and "fault of interpkit" not in message


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 12, 12), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", x_test=images, y_test=np.arange(30) % 3)
    return tmp_path / "data.npz"


def test_a_run_is_explained_by_its_samples(run_copy: Path) -> None:
    result = cli(run_copy, *QUICK)
    assert result.exit_code == 0, result.output
    place = run_copy / "attributions"
    assert result.stdout.splitlines()[-1] == str(place / "summary.json")
    for name in ("integrated-gradients.png", "integrated-gradients-classes.png"):
        assert str(place / name) in result.stdout
        with Image.open(place / name) as picture:
            picture.verify()
    tensors = safetensors.torch.load_file(place / "integrated-gradients.safetensors")
    samples = safetensors.torch.load_file(run_copy / "samples.safetensors")
    assert tensors["maps"].shape == (9, 1, 12, 12) and tensors["labels"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    first = samples["images"][(samples["labels"] == 1).nonzero()[0, 0]]
    torch.testing.assert_close(tensors["images"][3], first / 255)
    # What is written is what the library gives.
    target = interpkit.load_inversion(run_copy).target
    maps = interpkit.attribute(target, tensors["images"], tensors["labels"], options={"steps": 6}, device="cpu")
    torch.testing.assert_close(tensors["maps"], maps)
    torch.testing.assert_close(tensors["evidence_mean"][1], maps[3:6].mean(0))
    torch.testing.assert_close(tensors["evidence_spread"][1], maps[3:6].std(0))
    summary = json.loads((place / "summary.json").read_text())
    figures = summary["methods"]["integrated-gradients"]
    delta, difference = tensors["delta"].abs().sum(), (maps.flatten(1).sum(1) - tensors["delta"]).abs().sum()
    assert figures["completeness"]["relative_error"] == pytest.approx(float(delta / difference), rel=1e-3)
    assert set(figures["deletion"]) == {"maps", "class_evidence", "random"}
    assert 0 <= figures["infidelity"] <= 1 and figures["sensitivity"] >= 0
    assert figures["randomisation"][-1]["randomised"] == figures["randomisation"][-1]["layers"]
    assert "agreement" not in figures  # nothing to agree with


def test_an_interrupted_call_leaves_no_summary_of_other_maps(
    run_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--no-checks", "--device", "cpu", "--per-class", "1", "--out", tmp_path / "out"]
    both = ["--method", "saliency", "--method", "integrated-gradients"]
    assert cli(run_copy, *flags, "--method", "grad-cam").exit_code == 0
    assert cli(run_copy, *flags, *both).exit_code == 0
    explain_by = export._explain_by

    def interrupted(stem: str, *rest: Any) -> Any:
        if stem == "integrated-gradients":
            raise KeyboardInterrupt
        return explain_by(stem, *rest)

    monkeypatch.setattr(export, "_explain_by", interrupted)
    assert cli(run_copy, *flags, *both, "--target-class", "2").exit_code == 130
    there = {path.name for path in (tmp_path / "out").iterdir()}
    assert "saliency.safetensors" in there and "grad-cam.safetensors" in there and "summary.json" not in there


@pytest.mark.filterwarnings("ignore")  # of Quantus, and of what it imports
def test_metrics_of_quantus_are_added_and_those_that_fail_are_noted(run_copy: Path, tmp_path: Path) -> None:
    flags = ["--method", "saliency", "--no-checks", "--quantus", "Sparseness", "--quantus", "PointingGame"]
    result = cli(run_copy, *flags, "--device", "cpu", "--out", tmp_path / "out", "--json")
    figures = json.loads(result.stdout)["methods"]["saliency"]
    assert 0 < figures["quantus"]["Sparseness"] < 1 and figures["quantus"]["PointingGame"] is None
    assert "PointingGame of Quantus fails" in " ".join(result.stderr.split())
    table = cli(run_copy, *flags, "--device", "cpu", "--out", tmp_path / "out").stdout
    assert f"saliency Sparseness: {figures['quantus']['Sparseness']:.4g}\nsaliency PointingGame: -\n" in table
    fails(2, "no metric 'Sparse'.*Did you mean 'Sparseness'", run_copy, "--quantus", "Sparse")


def test_real_images_against_inverted_ones(run_copy: Path, data: Path, tmp_path: Path) -> None:
    flags = ["--images", data, "--method", "saliency", "--method", "grad-cam", "--no-checks", "--json"]
    result = cli(run_copy, *flags, "--per-class", "4", "--device", "cpu", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["count"] == 12 and list(summary["methods"]) == ["saliency", "grad-cam"]
    figures = summary["methods"]["saliency"]
    assert [row["name"] for row in figures["agreement"]] == ["class 0", "class 1", "class 2"]
    assert all(-1 <= row["cosine"] <= 1 for row in figures["agreement"])
    assert "infidelity" not in figures
    tensors = safetensors.torch.load_file(tmp_path / "out" / "saliency.safetensors")
    target = interpkit.load_inversion(run_copy).target
    samples = safetensors.torch.load_file(run_copy / "samples.safetensors")
    twos = samples["images"][samples["labels"] == 2][:4] / 255
    maps = interpkit.attribute(target, twos, [2] * 4, method="saliency", device="cpu")
    torch.testing.assert_close(tensors["evidence_mean"][2], maps.mean(0))  # of the inverted ones, not the real


def test_why_one_class_rather_than_another(run_copy: Path, tmp_path: Path) -> None:
    target = interpkit.load_inversion(run_copy).target
    samples = safetensors.torch.load_file(run_copy / "samples.safetensors")
    with torch.no_grad(), target.frozen("cpu"):
        predicted = target(samples["images"] / 255).argmax(1)
    label = int(predicted[0])
    other = (label + 1) % 3
    flags = ["--target-class", f"{other}-{label}", "--baseline", f"class:{label}", "--no-checks"]
    result = cli(run_copy, *QUICK, *flags, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    tensors = safetensors.torch.load_file(tmp_path / "integrated-gradients.safetensors")
    baseline = samples["images"][predicted == label][:8] / 255
    expected = interpkit.attribute(
        target,
        tensors["images"],
        target_class=(other, label),
        baseline=baseline,
        options={"steps": 6},
        device="cpu",
    )
    torch.testing.assert_close(tensors["maps"], expected)
    assert (set(tensors["classes"].tolist()), tensors["against"].item()) == ({other}, label)


def test_one_picture_of_a_model(tiny_model: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((12, 12), 90, dtype=np.uint8)).save(tmp_path / "gray.png")
    result = cli(tiny_model, "--images", tmp_path / "gray.png", *QUICK, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "the predicted class is explained" in result.stderr
    tensors = safetensors.torch.load_file(tmp_path / "out" / "integrated-gradients.safetensors")
    target = interpkit.load_target(tiny_model)
    with torch.no_grad(), target.frozen("cpu"):
        assert tensors["classes"].tolist() == target(torch.full((1, 1, 12, 12), 90 / 255)).argmax(1).tolist()


def test_a_method_that_cannot_serve_is_named_and_others_go_on(tmp_path: Path, data: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = nn.Sequential(nn.Flatten(), nn.Linear(144, 3)).eval()
        torch.jit.trace(net, torch.rand(1, 1, 12, 12)).save(str(tmp_path / "net.pt"))
        flags = ["--images", data, "--trust", "--input-shape", "1,12,12", "--device", "cpu", "--out", tmp_path]
        both = ["--method", "grad-cam", "--method", "saliency"]
        result = cli(tmp_path / "net.pt", *flags, *both)
        assert result.exit_code == 0, result.output
        assert re.search("grad-cam is left out: .*do not accept hooks", " ".join(result.stderr.split()))
        assert list(json.loads((tmp_path / "summary.json").read_text())["methods"]) == ["saliency"]
        fails(2, "do not accept hooks", tmp_path / "net.pt", *flags, "--method", "grad-cam")


def test_vectors_have_maps_but_no_pictures(tmp_path: Path, data: Path) -> None:
    target = interpkit.wrap(nn.Linear(5, 3), (5,), input_range=(-2, 2))
    inversion = interpkit.invert(
        target, conditioner="vecmat", plugins=["vecmat"], generator="dense", steps=2, batch_size=4, device="cpu"
    )
    images, labels = inversion.sample(per_class=2)
    from interpkit.attribution.export import explain

    summary = explain(target, tmp_path / "out", inverted=(images, labels), device="cpu")
    assert summary["methods"]["integrated-gradients"]["files"] == ["integrated-gradients.safetensors"]
    assert any("no picture" in note and "(5)" in note for note in summary["methods"]["integrated-gradients"]["notes"])
    maps = safetensors.torch.load_file(tmp_path / "out" / "integrated-gradients.safetensors")["maps"]
    weight = target.module.weight.detach() * 4  # the logit moves by this over the whole range
    torch.testing.assert_close(maps, weight[labels] * images, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        ("no attribution 'grad_cam'.*Did you mean 'grad-cam'", ["--method", "grad_cam"]),
        ("no layer 'x'", ["--layer", "x"]),
        ("no class 3", ["--target-class", "3"]),
        ("no class 9; .* are 0 to 2", ["--baseline", "class:9"]),
        ("black, mean", ["--baseline", "gray"]),
        ("no method 'saliency' is asked for", ["--set", "saliency.signed=true"]),
        ("options are named METHOD.OPTION", ["--set", "steps=3"]),
        ("greater than or equal to 2", ["--set", "integrated-gradients.steps=1"]),
        ("there is no file or folder", ["--images", "nowhere.zip"]),
        ("there is no file nowhere.png", ["--images", "nowhere.png"]),
        ("is in the run's recipe", ["--mean", "0.5"]),
    ],
)
def test_wrong_usage(run_copy: Path, words: str, flags: list[str]) -> None:
    fails(2, words, run_copy, "--device", "cpu", *flags)
    assert not (run_copy / "attributions" / "summary.json").exists()


def test_wrong_usage_of_a_model(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    fails(2, "no images to explain: name some by --images", tiny_model)
    fails(2, "takes the samples of a run", tiny_model, "--images", data, "--baseline", "class:1")
    fails(2, "--model belongs to a run", tiny_model, "--images", data, "--model", tiny_model)
    (tmp_path / "torn.png").write_bytes(b"no picture")
    fails(2, "torn.png is not a readable image", tiny_model, "--images", tmp_path / "torn.png")
    (tmp_path / "photo.heic").write_bytes(b"a photo of a phone")
    fails(2, "not a picture that interpkit reads, which are .png", tiny_model, "--images", tmp_path / "photo.heic")
    fails(3, "nowhere.pt", tmp_path / "nowhere.pt", "--images", data)
