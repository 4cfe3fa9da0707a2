"""The study of memory: its splits, and that it measures every cell once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import interpkit
from benchmarks import memory
from interpkit.plugins.discovery import installed


def among(images: Tensor, others: Tensor) -> int:
    """Return how many of the images are among others."""
    apart = torch.cdist(images.flatten(1), others.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
    return int((apart.amin(1) == 0).sum())


def test_no_image_has_two_parts(data: Path) -> None:
    split = memory.Split.of(data, 100)
    parts = [split.training[0], split.canaries[0], split.decoys[0]]
    assert [len(part) for part in parts] == [100, 10, 390] and len(split.held_out[0]) == 100
    assert split.training[1].bincount().tolist() == split.held_out[1].bincount().tolist() == [10] * 10
    assert all(among(a, b) == 0 for a in parts for b in parts if a is not b)
    assert among(split.held_out[0], split.training[0]) == 0 and among(split.held_out[0], split.canaries[0]) == 0


def test_planted_canaries_replace_training_images(data: Path) -> None:
    split = memory.Split.of(data, 100)
    planted = split.planted(4)
    assert len(planted.training[0]) == 100 and among(planted.training[0], split.canaries[0]) == 40
    assert among(planted.training[0], split.training[0]) == 60


@pytest.mark.parametrize("name", memory.NETWORKS)
def test_networks_learn(name: str, data: Path) -> None:
    split = memory.Split.of(data, 100)
    x, y = (tensor[::10] for tensor in split.training)  # one image of each class
    target = memory.trained(name, replace(split, training=(x, y)), steps=60)
    with target.frozen():
        assert (target(x).argmax(1) == y).double().mean() > 0.9
    installed().component("loss", "stationarity")(target)  # which accepts it


def test_each_cell_is_measured_once_and_shown(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "REPEATED", 2)
    asked: list[dict[str, Any]] = []

    def measure(target: interpkit.Target, split: memory.Split, steps: int, *, stationarity: bool) -> dict[str, float]:
        asked.append({"network": target.name, "images": len(split.training[0]), "stationarity": stationarity})
        return {"nearer to training": 0.5}

    monkeypatch.setattr(memory, "measure", measure)
    words = ["--data", str(data), "--networks", "mlp", "--sizes", "100,200", "--steps", "1", "--training", "2"]
    kept = tmp_path / "memory.json"
    figures = memory.study(memory.parser().parse_args(words), kept)
    assert [cell["images"] for cell in asked] == [100, 100, 200, 200, 200, 200]
    assert list(figures) == [
        f"mlp, {cell}"
        for cell in (
            "100 images",
            "100 images, stationarity",
            "200 images",
            "200 images, stationarity",
            "200 images, canaries planted",
            "200 images, canaries planted, stationarity",
        )
    ]
    assert json.loads(kept.read_text()) == figures and "0.5" in memory.shown(figures)
    memory.study(memory.parser().parse_args(words), kept)
    assert len(asked) == 6
    memory.study(memory.parser().parse_args([*words, "--steps", "2"]), kept)
    assert len(asked) == 12


def test_a_cell_has_all_figures(data: Path) -> None:
    split = memory.Split.of(data, 100)
    target = memory.trained("mlp", split, steps=2)
    found = memory.measure(target, split, steps=1, stationarity=True)
    assert found["by chance"] == pytest.approx(20.5) and 1 <= found["canaries, mean rank"] <= 40
    assert {"SSIM, training", "SSIM, held out", "SSIM >= .4, training", "nearer to training"} <= found.keys()
