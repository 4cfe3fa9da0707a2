"""Time and memory as the batch, the classes or the number of samples grow: ``python -m benchmarks.growth``."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import interpkit
from benchmarks.measuring import Figure, OurLoop, in_turn, machine, peak_memory, ratios
from benchmarks.step import MANY
from interpkit.api import invert
from interpkit.plugins.discovery import installed

MODEL = Path(__file__).parent.parent / "examples" / "models" / "mnist.safetensors"


class Allocations(TorchDispatchMode):
    """Adds up the bytes of every tensor that an operation returns, freed or not."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count its bytes."""
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.total += tensor.numel() * tensor.element_size()
        return result


def conditions() -> Iterator[Figure]:
    """Yield the memory that 128 conditions of 1,000 classes allocate with their maps at 64 x 64."""
    registry = installed().registry
    conditioner = registry.get("conditioner", "vecmat")(1000, (3, 64, 64))
    generator = registry.get("generator", "upconv")(conditioner.spec, (3, 64, 64))
    with Allocations() as counted:
        conditioner.sample(128).maps(*generator.grid)
    megabytes = counted.total / 1e6
    yield Figure("MB that 128 conditions of 1,000 classes allocate", megabytes, "<= 64", detail="maps of 64 x 64")


def cosine(sizes: tuple[int, int] = (512, 4096), width: int = 200, rounds: int = 30) -> Iterator[Figure]:
    """Yield the time of the cosine term, with its gradient, for a large batch over a small one."""
    term = installed().registry.get("loss", "cosine")

    def evaluation(size: int) -> Any:
        features = torch.randn(size, width, requires_grad=True)
        target = interpkit.wrap(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), input_shape=(1, 2, 2))
        response = interpkit.Response(features[:, :3], {"f": features}, "f")
        rows, images = torch.full((size, 3), 1 / 3), torch.zeros(size, 1, 2, 2)
        condition = interpkit.Condition(rows.argmax(1), rows, rows)
        batch = interpkit.InversionBatch(target, condition, images, images, 0.0, response, None, None)
        loss = term(target)

        def once() -> None:
            loss(batch).backward()
            features.grad = None

        return once

    rivals = {str(size): evaluation(size) for size in sizes}
    seconds = in_turn(rivals, rounds)
    large, small = (seconds[str(size)] for size in (sizes[1], sizes[0]))
    detail = f"{sizes[1]} over {sizes[0]} images of {width} features, with gradient"
    yield Figure.of("time of the cosine term at batch 4,096 over 512", ratios(large, small), "<= 8.5", detail)


class Classes(nn.Module):
    """A small network of n classes on 1 x 32 x 32."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3, 1, 1), nn.Conv2d(32, 64, 3, 1, 1)
        self.fc1, self.fc2 = nn.Linear(64 * 64, 128), nn.Linear(128, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        x = F.max_pool2d(F.leaky_relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.leaky_relu(self.conv2(x)), 2).flatten(1)
        return self.fc2(F.leaky_relu(self.fc1(x)))


def many_classes(number: int) -> invert.Job:
    """Return a run on a network with ``number`` classes, whose maps have 10 pixels per side for any number."""
    torch.manual_seed(0)
    target = interpkit.wrap(Classes(number), input_shape=(1, 32, 32))
    return invert.prepare(target, ["vecmat"], steps=MANY, options={"vecmat.max_side": 10})


def classes(numbers: tuple[int, int] = (10, 1000), rounds: int = 20) -> Iterator[Figure]:
    """Yield the time and memory of a step with many classes over few, all else being equal."""
    loops = {str(number): OurLoop(many_classes(number)) for number in numbers}
    seconds = in_turn(loops, rounds)
    few, many = (seconds[str(number)] for number in numbers)
    what = f"{numbers[1]:,} classes over {numbers[0]}, same image, network and grid"
    yield Figure.of(f"step time of {what}", ratios(many, few), "<= 1.1", f"{1e3 * sorted(many)[rounds // 2]:.0f} ms")
    peaks = [_peak("classes", number) for number in numbers]
    yield Figure(
        f"peak memory of {what}", peaks[1] / peaks[0], "<= 1.1", detail=f"{peaks[1]:.0f} over {peaks[0]:.0f} MB"
    )


def samples(numbers: tuple[int, int] = (10_000, 1_000_000)) -> Iterator[Figure]:
    """Yield the peak memory of sampling many images over that of sampling few."""
    peaks = [_peak("samples", number) for number in numbers]
    what = f"peak memory of {numbers[1]:,} samples over {numbers[0]:,}"
    yield Figure(what, peaks[1] / peaks[0], "<= 1.1", detail=f"{peaks[1]:.0f} over {peaks[0]:.0f} MB, shards of 10,000")


def figures(count: int = 1_000_000) -> Iterator[Figure]:
    """Yield all figures."""
    yield from conditions()
    yield from cosine()
    yield from classes()
    yield from samples((10_000, count))


def _peak(what: str, number: int) -> float:
    """Return the peak memory, in MB, of a fresh process that runs one measurement."""
    command = [sys.executable, "-m", "benchmarks.growth", "--alone", what, str(number)]
    return float(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))


def _alone(what: str, number: int) -> None:
    if what == "classes":
        loop = OurLoop(many_classes(number))
        for _ in range(10):
            loop()
    else:
        narrow = {"upconv.width": 8, "upconv.min_width": 8}
        inversion = interpkit.invert(MODEL, ["vecmat"], steps=1, options=narrow)
        with tempfile.TemporaryDirectory() as folder:
            interpkit.write_shards(inversion, folder, count=number, shard_size=10_000)
    print(peak_memory())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=1_000_000, help="Samples to draw (default: 1,000,000).")
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        _alone(arguments.alone[0], int(arguments.alone[1]))
    else:
        print(machine(torch.device("cpu")))
        for figure in figures(arguments.count):
            print(figure.row(), flush=True)
