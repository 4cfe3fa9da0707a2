"""Large problems with random weights: how long a step takes, how much of that the system does, and the peak memory.

    python -m benchmarks.large [--device cuda]
    python -m benchmarks.large --phases "ResNet-18, 224 x 224, 128 images, 32 at a time"

Each problem runs in its own process for a few steps of the preset vecmat; ``micro_batch`` bounds the memory. Its peak
memory is compared with that of a process of the same imports in which the classifier alone, with frozen weights and in
the same precision, does as many forward and backward passes of as many images.
"""

from __future__ import annotations

import argparse
import json
import mmap
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

import interpkit
from benchmarks.growth import Classes
from benchmarks.measuring import Figure, in_turn, peak_memory, ratios, stepwise, synchronize, system_share
from interpkit.api import invert
from interpkit.runtime import progress
from interpkit.runtime.devices import autocast, choose_precision, keep_freed_memory

STEPS = 3
IMAGENET: dict[str, Any] = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "input_shape": (3, 224, 224)}


def _timm(name: str) -> nn.Module:
    import timm

    module: nn.Module = timm.create_model(name, pretrained=False)
    return module


def _torchvision(name: str) -> nn.Module:
    import torchvision

    module: nn.Module = getattr(torchvision.models, name)(weights=None)
    if name == "vit_b_16":  # its last layer starts at zero, and the gradient would vanish
        nn.init.normal_(module.get_submodule("heads.head").weight, std=0.02)
    return module


CASES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "EfficientNet-Lite0, 224 x 224, 1,000 classes": (
        lambda: _timm("tf_efficientnet_lite0"), IMAGENET, {"batch_size": 8},
    ),
    "ResNet-50, 224 x 224, 1,000 classes": (lambda: _torchvision("resnet50"), IMAGENET, {"batch_size": 8}),
    "the same, 2 images at a time": (
        lambda: _torchvision("resnet50"), IMAGENET, {"batch_size": 8, "micro_batch": 2},
    ),
    "ViT-B/16, 224 x 224, 1,000 classes, 2 images at a time": (
        lambda: _torchvision("vit_b_16"), IMAGENET, {"batch_size": 8, "micro_batch": 2},
    ),
    "ResNet-18, 224 x 224, 128 images, 32 at a time": (
        lambda: _torchvision("resnet18"), IMAGENET, {"batch_size": 128, "micro_batch": 32},
    ),
    "32 x 32, 21,841 classes": (lambda: Classes(21_841), {"input_shape": (1, 32, 32)}, {"batch_size": 128}),
    "the same, for three of the classes": (
        lambda: Classes(21_841), {"input_shape": (1, 32, 32)}, {"batch_size": 128, "labels": [0, 7, 21_840]},
    ),
}  # fmt: skip


def alone(name: str, device: str) -> dict[str, float]:
    """Take a few steps in this process; return the seconds per step, the peak memory in MB, and the system's share.

    The share is of the CPU time after the first step, which fills the memory.
    """
    torch.manual_seed(0)
    build, facts, settings = CASES[name]
    target = interpkit.wrap(build(), **facts)
    job = invert.prepare(target, ["vecmat"], steps=STEPS, device=device, **settings)
    times, used = [time.perf_counter()], []
    losses: list[float] = []

    def after_step(step: int, loss: float) -> None:
        times.append(time.perf_counter())
        used.append(resource.getrusage(resource.RUSAGE_SELF))
        losses.append(loss)

    stepwise(job, after_step)
    assert len(losses) == STEPS and all(loss == loss for loss in losses)
    seconds = statistics.median(b - a for a, b in pairwise(times[1:]))
    return {"seconds": seconds, "peak": peak(device), "system": system_share(used[0], used[-1])}


def own(name: str, device: str) -> dict[str, float]:
    """Do the classifier's own passes alone; return the seconds per batch and the peak memory in MB."""
    build, facts, settings = CASES[name]
    target = interpkit.wrap(build(), **facts)
    job = invert.prepare(target, ["vecmat"], device=device, **settings)
    batch, at_once = job.recipe.batch_size, job.recipe.micro_batch or job.recipe.batch_size
    keep_freed_memory(torch.device(device))
    times = [time.perf_counter()]
    with target.frozen(device, torch.channels_last):
        for _ in range(STEPS):
            for _ in range(batch // at_once):
                images = torch.rand(at_once, *target.input_shape, device=device, requires_grad=True)
                with autocast(torch.device(device), job.recipe.precision):
                    logits = target(images)
                torch.autograd.grad(logits.float().logsumexp(1).sum(), images)
            synchronize(torch.device(device))
            times.append(time.perf_counter())
    return {"seconds": statistics.median(b - a for a, b in pairwise(times)), "peak": peak(device)}


def phases(name: str) -> None:
    """Take the steps of `alone`, and print the most memory of this process in MB in each part of them."""
    done, parts = threading.Event(), [("the start", 0.0)]

    def watch() -> None:
        while not done.wait(0.01):
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE / 1e6
            now = progress.current()
            what, most = parts[-1]
            if now is not None and what != (at := f"{now.what}, {now.done} of {now.total}"):
                parts.append((at, resident))
            else:
                parts[-1] = what, max(most, resident)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        alone(name, "cpu")
    finally:
        done.set()
        watching.join()
    for what, most in parts:
        print(f"{most:7,.0f} {what}")


def peak(device: str) -> float:
    """Return the peak memory of this process in MB; on a GPU, that of its tensors."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return peak_memory()


def figures(device: str = "cpu") -> Iterator[Figure]:
    """Yield the seconds per step of each problem."""
    for name, (_, facts, settings) in CASES.items():
        command = [sys.executable, "-m", "benchmarks.large", "--device", device]
        ours, theirs = (
            json.loads(subprocess.run([*command, part, name], check=True, stdout=subprocess.PIPE).stdout)
            for part in ("--alone", "--own")
        )
        goal = "<= 1.5" if facts is IMAGENET else ""
        detail = f"batch {settings['batch_size']}, {ours['peak']:,.0f} over {theirs['peak']:,.0f} MB"
        yield Figure(f"seconds per step: {name}", ours["seconds"])
        what = f"its peak memory over that of the classifier's own passes: {name}"
        yield Figure(what, ours["peak"] / theirs["peak"], goal, detail=detail)
        if facts is IMAGENET and device == "cpu":
            yield Figure(f"share of system time: {name}", ours["system"], "<= 0.15")
    seconds = in_turn(attending(torch.device(device)), rounds=3, warm_up=1)
    what = "ViT-B/16: forward and backward pass of 2 images, over the same with weights frozen by hand"
    times = " over ".join(f"{statistics.median(values):.2f}" for values in seconds.values())
    detail = f"{choose_precision('auto', torch.device(device))}, s over s: {times}"
    yield Figure.of(what, ratios(seconds["frozen"], seconds["by hand"]), detail=detail)


def attending(device: torch.device) -> dict[str, Callable[[], None]]:
    """Return a ViT's forward and backward pass, with attention as `Target.frozen` arranges it and frozen by hand."""
    precision = choose_precision("auto", device)
    target = interpkit.wrap(_torchvision("vit_b_16"), **IMAGENET).to(device).eval().requires_grad_(False)
    images = torch.rand(2, 3, 224, 224, device=device, requires_grad=True)

    def by_hand() -> None:
        with autocast(device, precision):
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
    parser.add_argument("--own", metavar="NAME", choices=CASES, help="Run the classifier of a problem alone.")
    parser.add_argument("--phases", metavar="NAME", choices=CASES, help="Show when a problem takes how much memory.")
    arguments = parser.parse_args()
    if arguments.phases:
        phases(arguments.phases)
    elif arguments.alone or arguments.own:
        measure = alone if arguments.alone else own
        print(json.dumps(measure(arguments.alone or arguments.own, arguments.device)))
    else:
        for figure in figures(arguments.device):
            print(figure.row(), flush=True)
