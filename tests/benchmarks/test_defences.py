"""The table of defenses: each way of training learns and does what its name says; each cell is measured once."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from interpkit_targets.architectures import SmallCNN
from torch import nn

import interpkit
from benchmarks import defences
from benchmarks.defences import DEFENSES, Defense
from benchmarks.memory import Split


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let 200 images be trained on, twice two canaries of each class among them."""
    for name, value in {"FIRST": 200, "CANARIES": 2, "REPEATED": 2}.items():
        monkeypatch.setattr(defences, name, value)


@pytest.fixture
def bars() -> Split:
    """Return 20 noisy images of each of ten classes, whose bright row tells the class; the first is a canary."""
    torch.manual_seed(0)
    labels = torch.arange(200) % 10
    images = 0.3 * torch.rand(200, 1, 12, 12)
    images[range(200), 0, labels + 1] += 0.7
    data, unseen = (images, labels), (images.flip(3), labels)
    return Split(data, unseen, (images[:10], labels[:10]), unseen)


def test_canaries_are_trained_on_and_are_neither_decoys_nor_an_outsiders(data: Path, tmp_path: Path) -> None:
    split = defences.split_of(data)
    known = [{image.numpy().tobytes() for image in part[0]} for part in (split.training, split.canaries, split.decoys)]
    assert [len(part) for part in known] == [180, 20, 180] and len(split.training[0]) == 200
    assert known[1] <= known[0] and not known[2] & (known[0] | known[1])
    args = argparse.Namespace(data=data, work=tmp_path, inverters=[], epochs=1, steps=1)
    assert defences.study(args, tmp_path / "kept.json") == {}
    with np.load(tmp_path / "public.npz") as arrays:
        outsiders = {(image / np.float32(255)).tobytes() for image in arrays["images"]}
    assert len(outsiders) == 100 and not outsiders & (known[0] | known[1] | known[2])


@pytest.mark.parametrize("name", [name for name in DEFENSES if name != "private"])
def test_a_classifier_that_is_trained_in_any_way_learns_and_is_saved(name: str, bars: Split, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    found = defences.train(DEFENSES[name], bars, 20, path)
    assert found["accuracy"] > 0.7 and found["accuracy on canaries"] > 0.7
    target = interpkit.load_target(path)
    with target.frozen():
        right = target(bars.training[0]).argmax(1) == bars.training[1]
    assert float(right.double().mean()) == pytest.approx(found["accuracy"])


def test_a_private_classifier_learns_within_its_budget_and_is_saved(bars: Split, tmp_path: Path) -> None:
    pytest.importorskip("opacus")
    found = defences.train(Defense(epsilon=50.0), bars, 20, tmp_path / "net.safetensors")
    assert 40 < found["epsilon"] <= 50 and found["accuracy"] > 0.3
    interpkit.load_target(tmp_path / "net.safetensors")


def linear() -> nn.Sequential:
    """Return a classifier of 4 x 4 images whose logits are the sums of the upper and of the lower half."""
    head = nn.Linear(16, 2, bias=False)
    head.weight.data = torch.stack([torch.arange(16) < 8, torch.arange(16) >= 8]).float()
    return nn.Sequential(nn.Flatten(), head)


def test_the_loss_of_a_defense_worked_by_hand() -> None:
    x, labels = torch.zeros(1, 1, 4, 4), torch.tensor([0])  # gray: both logits are 0
    model = linear()

    def loss(**how: float) -> float:
        return float(defences.loss_of(Defense(**how), model, (1, 4, 4))(x, labels).detach())

    assert loss() == pytest.approx(0.693147)
    assert loss(label_smoothing=0.5) == pytest.approx(0.693147)
    # The worst change of length 1 moves each pixel by 1/4, and each normalized one by 1/2: to logits of -4 and 4.
    assert 7.5 < loss(radius=1.0) <= float(F.softplus(torch.tensor(8.0))) + 1e-4
    assert loss(noise=0.5) != loss(noise=0.5)


def test_each_cell_is_measured_once_and_shown(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def measure(defense: str, how: Mapping[str, Any], args: argparse.Namespace, run: str) -> dict[str, float]:
        asked.append(run)
        row = dict.fromkeys(("accuracy", "student", "agreement", "SSIM", "nearer to training"), 0.5)
        return row | {"canary rank": 40.0, "canary rank by chance": 98.5, "canaries, p": 0.01}

    monkeypatch.setattr(defences, "measure", measure)
    words = ["--data", str(data), "--work", str(tmp_path), "--defenses", "plain,noise", "--inverters", "training-like"]
    kept = tmp_path / "defences.json"
    figures = defences.study(defences.parser().parse_args(words), kept)
    assert asked == list(figures) == ["plain, training-like", "noise, training-like"]
    assert json.loads(kept.read_text()) == figures
    assert "| noise | 0.500 | 0.500 | 0.500 | 0.500 | 0.500 | 40 (98) | 0.01 |" in defences.shown(figures)
    defences.study(defences.parser().parse_args(words), kept)
    assert len(asked) == 2
    defences.study(defences.parser().parse_args([*words, "--steps", "2"]), kept)
    assert len(asked) == 4


def test_a_cell_has_all_figures(data: Path, bars: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defences, "split_of", lambda _: bars)
    other = interpkit.wrap(SmallCNN(input_shape=(1, 12, 12), widths=[4]), (1, 12, 12), name="other")
    monkeypatch.setattr(defences, "EVALUATORS", ["other"])
    monkeypatch.setattr(defences, "evaluator", lambda *_: other)
    words = ["--data", str(data), "--work", str(tmp_path), "--epochs", "1", "--steps", "2"]
    args = defences.parser().parse_args(words)
    how = defences.inverters(steps=2)["training-like"]
    found = defences.measure("plain", how, args, "run")
    assert {"accuracy", "student", "agreement", "SSIM", "nearer to training"} <= found.keys()
    assert found["canary rank by chance"] == 11 and 0 < found["canaries, p"] <= 1
    assert (tmp_path / "run" / "metrics.json").exists()
