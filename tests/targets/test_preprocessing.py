"""Doubts about a stated preprocessing: batch norms that have seen images with a known one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typer.testing import CliRunner

import interpkit
from interpkit import Target
from interpkit.cli import app
from interpkit.targets import preprocessing

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
HALF = {"mean": [0.5], "std": [0.5]}
RAW = {"input_range": (0.0, 255.0)}
CAFFE = {"mean": [103.939, 116.779, 123.68], "input_range": (0.0, 255.0), "channel_order": "bgr"}


def photos(channels: int = 3, count: int = 200) -> Tensor:
    """Return smooth images with the mean and contrast of photos: noise of several sizes, mostly gray."""
    rng = torch.Generator().manual_seed(5)
    light = torch.zeros(count, 1, 32, 32)
    for side, weight in ((1, 0.16), (2, 0.13), (4, 0.12), (8, 0.1), (16, 0.06), (32, 0.03)):
        blocks = weight * torch.randn(count, 1, side, side, generator=rng)
        light += F.interpolate(blocks, (32, 32), mode="bilinear" if side > 1 else "nearest")
    tint = 0.08 * torch.randn(count, channels, 1, 1, generator=rng) if channels == 3 else torch.zeros(1)
    colors = torch.tensor(IMAGENET["mean"] if channels == 3 else [0.45]).view(1, -1, 1, 1)
    return (light + tint + colors).clamp(0, 1)


def drawings() -> Tensor:
    """Return strokes of white on black, (200, 1, 32, 32)."""
    rng = torch.Generator().manual_seed(6)
    return (8 * F.interpolate(torch.rand(200, 1, 8, 8, generator=rng), (32, 32), mode="bilinear") - 5.5).clamp(0, 1)


def trained(images: Tensor, facts: dict[str, Any], first: nn.Module | None = None) -> nn.Module:
    """Return a network whose batch norm has seen images with a preprocessing."""
    torch.manual_seed(1)
    stem = [nn.Conv2d(images.shape[1], 16, 3, padding=1, bias=False), nn.BatchNorm2d(16, momentum=None)]
    head = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)]
    net = nn.Sequential(*([] if first is None else [first]), *stem, *head)
    low, high = facts.get("input_range", (0.0, 1.0))
    given = (facts.get("mean", [0.0]), facts.get("std", [1.0]))
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in given)
    seen = images.flip(1) if facts.get("channel_order") == "bgr" else images
    with torch.no_grad():
        net.train()((low + (high - low) * seen - mean) / std)
    return net.eval()


def doubts(net: nn.Module, facts: dict[str, Any], images: Tensor | None = None, channels: int = 3) -> list[str]:
    return preprocessing.doubts(interpkit.wrap(net, (channels, 32, 32), **facts), images)


@pytest.mark.parametrize("right", [{}, HALF, IMAGENET, RAW, CAFFE], ids=["unit", "half", "imagenet", "raw", "caffe"])
def test_the_right_preprocessing_is_not_doubted_and_a_wrong_range_is(right: dict[str, Any]) -> None:
    net = trained(photos(), right)
    assert doubts(net, right) == doubts(net, right, photos()) == []
    (doubt,) = doubts(net, {} if "input_range" in right else RAW)
    low, high = right.get("input_range", (0.0, 1.0))
    assert f"input_range=[{low}, {high}]" in doubt and "probably wrong" in doubt


@pytest.mark.parametrize(("right", "guess"), [(HALF, "mean=[0.5] std=[0.5]"), (IMAGENET, "mean=[0.485, 0.456, 0.406]")])
def test_a_forgotten_normalization_is_guessed(right: dict[str, Any], guess: str) -> None:
    (doubt,) = doubts(trained(photos(), right), {})
    assert guess in doubt
    (of_given,) = doubts(trained(photos(), right), {}, photos())
    assert guess in of_given and "the given images" in of_given


def test_forgotten_caffe_preprocessing_is_guessed_with_its_channel_order() -> None:
    (doubt,) = doubts(trained(photos(), CAFFE), {})
    assert "mean=[103.939, 116.779, 123.68]" in doubt and "channel_order='bgr'" in doubt


def test_a_standard_deviation_that_no_images_have_is_not_taken_for_theirs() -> None:
    (doubt,) = doubts(trained(photos(), IMAGENET), {**CAFFE, "std": [1.0]})
    assert "mean=[0.485, 0.456, 0.406]" in doubt and "channel_order='rgb'" in doubt


def test_the_statistics_of_unusual_images_are_not_doubted() -> None:
    """Of little contrast, dark, and drawn: who states the statistics of such images is right."""
    for images in (0.5 + 0.3 * (photos() - 0.5), 0.3 * photos(), drawings().expand(-1, 3, -1, -1), 1 - drawings()):
        channels = images.shape[1]
        own = {"mean": images.mean((0, 2, 3)).tolist(), "std": images.std((0, 2, 3)).tolist()}
        assert doubts(trained(images, own), own, channels=channels) == []
        (doubt,) = doubts(trained(images, own), {}, images, channels)
        assert f"mean=[{own['mean'][0]:.3g}" in doubt.replace("0.0,", "0,")


def test_gray_drawings_as_they_are_are_not_doubted_and_a_forgotten_normalization_is_guessed() -> None:
    assert doubts(trained(drawings(), {}), {}, channels=1) == []
    (doubt,) = doubts(trained(drawings(), {"mean": [0.1307], "std": [0.3081]}), {}, channels=1)
    assert "mean=[0.1307] std=[0.3081]" in doubt


def test_preprocessing_inside_the_network_is_part_of_it() -> None:
    class Normalize(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mean, std = (torch.tensor(IMAGENET[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
            return (x - mean) / std

    assert doubts(trained(photos(), {}, Normalize()), {}) == []
    (doubt,) = doubts(trained(photos(), {}, Normalize()), IMAGENET)
    assert "mean=[0.0] std=[1.0]" in doubt


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"mean": [123.7, 116.3, 103.5], "std": [58.4, 57.1, 57.4]}, "0 to 1.*input_range=.0, 255"),
        (IMAGENET | RAW, "0 to 255.*input_range=.0, 1"),
        ({"mean": [0.5], "std": [127.5]}, "standard deviation"),
    ],
)
def test_a_mean_or_deviation_in_other_units_than_the_range_needs_no_batch_norm(facts: Any, words: str) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 3))
    (doubt,) = preprocessing.doubts(interpkit.wrap(net, (3, 8, 8), **facts))
    assert re.search(words, doubt)


@pytest.mark.parametrize("facts", [{}, IMAGENET, HALF, RAW, CAFFE, {"mean": [0.5], "std": [1 / 255]}])
def test_usual_units_are_not_doubted(facts: Any) -> None:
    assert not preprocessing.doubts(
        interpkit.wrap(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 3)), (3, 8, 8), **facts)
    )


def test_nothing_is_said_without_a_batch_norm_of_images() -> None:
    assert preprocessing.doubts(interpkit.wrap(nn.Sequential(nn.Flatten(), nn.Linear(27, 2)), (3, 3, 3))) == []
    assert preprocessing.doubts(interpkit.wrap(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)), (4,))) == []


def test_a_missing_normalization_is_noted() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(27, 2))
    (note,) = preprocessing.notes(interpkit.wrap(net, (3, 3, 3)))
    assert "nothing states the normalization" in note and "input_range" in note
    assert preprocessing.notes(interpkit.wrap(net, (3, 3, 3), mean=0.5)) == []
    assert preprocessing.notes(interpkit.wrap(nn.Linear(4, 2), (4,))) == []
    assert preprocessing.notes(interpkit.wrap(nn.Sequential(nn.Flatten(), nn.Linear(8, 2)), (2, 4))) != []


def test_the_target_is_left_as_found(module_state: Any) -> None:
    target: Target = interpkit.wrap(trained(photos(), HALF), (3, 32, 32))
    before = module_state(target)
    assert preprocessing.doubts(target)
    assert module_state(target) == before


def test_a_network_that_refuses_other_values_is_not_doubted() -> None:
    class Strict(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.min() >= 0 and x.max() <= 1
            return x

    assert doubts(trained(photos(), {}, Strict()), {}) == []


def test_a_run_and_a_look_at_a_classifier_say_what_is_doubted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(trained(photos(), HALF).state_dict(), tmp_path / "net.pt")
    (tmp_path / "own_net.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    stem = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16, momentum=None), nn.ReLU()]\n"
        "    return nn.Sequential(*stem, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))\n"
    )
    facts = ["--arch", f"py:{tmp_path / 'own_net.py'}:net", "--input-shape", "3,32,32"]
    command = [str(tmp_path / "net.pt"), *facts]
    shown = CliRunner().invoke(app, ["inspect", *command])
    assert shown.exit_code == 0
    for words in ("nothing states the normalization", "probably wrong", "--mean 0.5 --std 0.5"):
        assert words in " ".join(shown.stderr.split())
    run = ["--inverter", "pixels", "--steps", "1", "--device", "cpu", "--out", str(tmp_path / "run")]
    made = " ".join(CliRunner().invoke(app, ["invert", *command, *run]).stderr.split())
    assert "nothing states the normalization" in made and "probably wrong" in made + caplog.text
    right = CliRunner().invoke(app, ["inspect", *command, "--mean", "0.5", "--std", "0.5", "--json"])
    assert "warnings" not in json.loads(right.stdout) and not right.stderr
