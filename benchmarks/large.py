"""Large problems with random weights: whether they run, how long a step takes, and how much memory it needs.

    python -m benchmarks.large [--device cuda]

Each problem runs in its own process for a few steps of the preset vecmat; ``micro_batch`` bounds the memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

import interpkit
from benchmarks.growth import Classes
from benchmarks.measuring import Figure, in_turn, ratios, stepwise, synchronize
from interpkit.api import invert

STEPS = 3
IMAGENET: dict[str, Any] = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "input_shape": (3, 224, 224)}


def _torchvision(name: str) -> nn.Module:
    import torchvision

    module: nn.Module = getattr(torchvision.models, name)(weights=None)
    if name == "vit_b_16":  # its last layer starts at zero, and the gradient would vanish
        nn.init.normal_(module.get_submodule("heads.head").weight, std=0.02)
    return module


CASES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "ResNet-50, 224 x 224, 1,000 classes": (lambda: _torchvision("resnet50"), IMAGENET, {"batch_size": 8}),
    "the same, 2 images at a time": (
        lambda: _torchvision("resnet50"), IMAGENET, {"batch_size": 8, "micro_batch": 2},
    ),
    "ViT-B/16, 224 x 224, 1,000 classes, 2 images at a time": (
        lambda: _torchvision("vit_b_16"), IMAGENET, {"batch_size": 8, "micro_batch": 2},
    ),
    "32 x 32, 21,841 classes": (lambda: Classes(21_841), {"input_shape": (1, 32, 32)}, {"batch_size": 128}),
    "the same, for three of the classes": (
        lambda: Classes(21_841), {"input_shape": (1, 32, 32)}, {"batch_size": 128, "labels": [0, 7, 21_840]},
    ),
}  # fmt: skip


def alone(name: str, device: str) -> dict[str, float]:
    """Take a few steps in this process; return the seconds per step and the peak memory in MB."""
    torch.manual_seed(0)
    build, facts, settings = CASES[name]
    target = interpkit.wrap(build(), **facts)
    job = invert.prepare(target, ["vecmat"], steps=STEPS, device=device, **settings)
    times = [time.perf_counter()]
    losses: list[float] = []

    def after_step(step: int, loss: float) -> None:
        times.append(time.perf_counter())
        losses.append(loss)

    stepwise(job, after_step)
    assert len(losses) == STEPS and all(loss == loss for loss in losses)
    peak = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1e3
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 1e6
    return {"seconds": statistics.median(b - a for a, b in pairwise(times[1:])), "peak": peak}


def figures(device: str = "cpu") -> Iterator[Figure]:
    """Yield the seconds per step of each problem."""
    for name in CASES:
        command = [sys.executable, "-m", "benchmarks.large", "--device", device, "--alone", name]
        result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        batch = CASES[name][2]["batch_size"]
        detail = f"batch {batch}, peak memory {result['peak']:,.0f} MB"
        yield Figure(f"seconds per step: {name}", result["seconds"], detail=detail)
    seconds = in_turn(attending(torch.device(device)), rounds=3, warm_up=1)
    what = "ViT-B/16: forward and backward pass of 2 images in bf16, over the same with weights frozen by hand"
    detail = "s over s: " + " over ".join(f"{statistics.median(values):.2f}" for values in seconds.values())
    yield Figure.of(what, ratios(seconds["frozen"], seconds["by hand"]), detail=detail)


def attending(device: torch.device) -> dict[str, Callable[[], None]]:
    """Return a ViT's forward and backward pass, with attention as `Target.frozen` arranges it and frozen by hand."""
    target = interpkit.wrap(_torchvision("vit_b_16"), **IMAGENET).to(device).eval().requires_grad_(False)
    images = torch.rand(2, 3, 224, 224, device=device, requires_grad=True)

    def by_hand() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            logits = target(images)
        torch.autograd.grad(logits.float().logsumexp(1).sum(), images)
        synchronize(device)

    def frozen() -> None:
        with target.frozen():
            by_hand()

    return {"frozen": frozen, "by hand": by_hand}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", help="Device to measure on (default: cpu).")
    names = "; ".join(CASES)
    parser.add_argument("--alone", metavar="NAME", choices=CASES, help=f"Run one problem in this process: {names}.")
    arguments = parser.parse_args()
    if arguments.alone:
        print(json.dumps(alone(arguments.alone, arguments.device)))
    else:
        for figure in figures(arguments.device):
            print(figure.row(), flush=True)
