"""Runs to report on: one with class names that are HTML, and one with a thousand classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import interpkit
from interpkit.evaluation import scoring
from interpkit.interfaces import samples
from interpkit.report import render_report
from interpkit.runs.folder import Run, write_samples

HOSTILE = ["<b>bold</b>", "</script><script>alert(1)</script>", "<img src=x onerror=alert(2)> & \"'"]


@pytest.fixture(scope="session")
def hostile_run(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_module: Callable[..., nn.Module],
    quick: Callable[..., dict[str, Any]],
) -> Path:
    """Return a finished run of a classifier whose class names are HTML; tests must not change it."""
    folder = tmp_path_factory.mktemp("hostile")
    arguments = {"input_shape": [1, 12, 12], "num_classes": 3, "widths": [4], "hidden": 8}
    model = interpkit.save_target(
        tiny_module(), folder / "<i>model.safetensors", architecture="interpkit:cnn", arch_args=arguments,
        input_shape=(1, 12, 12), class_names=HOSTILE,
    )  # fmt: skip
    interpkit.invert(model, out=folder / "run", **quick(steps=30))
    return folder / "run"


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run of a classifier of 60 classes with a picture of 224 pixels of each, and an agreement."""
    folder = tmp_path_factory.mktemp("photographs") / "run"
    kinds = ("tench", "great white shark", "cock")
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 60))
    target = interpkit.wrap(net, (3, 224, 224), class_names=[f"{kinds[label % 3]} {label}" for label in range(60)])
    rough = torch.rand(60, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    images = nn.functional.interpolate(rough, scale_factor=4, mode="bilinear")
    recipe = interpkit.Recipe(device="cpu", precision="fp32")
    inversion = interpkit.ImageInversion(target, recipe, [], images, torch.arange(60))
    run = Run.open(inversion.save(folder))
    metrics = dict(run.metrics())
    for row in metrics["per_class"]:
        if row["label"] % 2:  # the others were not judged
            row["evaluators"] = [{"name": "judge", "agreement": row["label"] % 7 / 7}]
    samples_ = scoring.read_samples(folder / "samples.safetensors", target, torch.device("cpu"), 64)
    render_report(run, inversion, samples_, metrics)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


@pytest.fixture(scope="session")
def thousand_classes(
    tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Path], quick: Callable[..., dict[str, Any]]
) -> Path:
    """Return a run with 1,000 classes and ten samples of each."""
    folder = tmp_path_factory.mktemp("thousand")
    model = make_model(folder / "thousand.safetensors", num_classes=1000)
    interpkit.invert(model, out=folder / "run", **quick(steps=1))
    labels = torch.arange(1000).repeat_interleave(10)
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (10_000, 1, 12, 12), dtype=torch.uint8, generator=rng)
    nothing = torch.zeros(10_000)
    write_samples(
        samples.Samples(images, labels, labels, nothing, None, torch.zeros_like(labels), None),
        folder / "run" / "samples.safetensors",
    )
    interpkit.write_report(folder / "run")
    return folder / "run"
