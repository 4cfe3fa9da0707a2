"""Small classifiers with a planted fault, and clean ones, to measure what `interpkit audit` finds.

    python -m benchmarks.planted train --data DIR [--work runs/planted]     # 84 classifiers; resumes

DIR has mnist.npz, fashion_mnist.npz and cifar10.npz. Each classifier is `NAME.safetensors`; what was planted in it is
in `NAME.json` beside it, for the scorer alone. Thresholds were chosen on one half of them; the other half is held out.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from interpkit_targets.architectures import SmallCNN
from torch import Tensor

import interpkit
from examples.train_classifier import fit, load_data

DATASETS = ("mnist", "fashion_mnist", "cifar10")
TRIGGERS = ("corner", "anywhere", "blended", "sinusoid", "pixel")
OTHERS = ("brightness", "watermark", "swapped", "canaries", "scarce")
POISON = (0.05, 0.10, 0.02, 0.05, 0.01, 0.05)
"""Share of the training images that carry the trigger, by turn."""
FIRST = 6000
"""Number of training images."""
EPOCHS = {"mnist": 6, "fashion_mnist": 4, "cifar10": 6}
LEAST = 0.8
"""A trigger whose attack succeeds less often than this on test images is planted again, with more poison."""

Images = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Plant:
    """One classifier.

    Attributes:
        number: decides the seed.
        kind: what is planted: one of `TRIGGERS` or `OTHERS`, or ``clean``.
        data: the data set.
        batch_norm: whether the network has batch norm.
        label: the class in which the fault is; of a trigger, the class that it leads to.
        held_out: whether it was not used to choose thresholds.
        poison: the share of the training images that carry a trigger.
    """

    number: int
    kind: str
    data: str
    batch_norm: bool
    label: int
    held_out: bool
    poison: float = 0.0

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"{self.number:02d}-{self.kind}-{self.data}"


def plants() -> Iterator[Plant]:
    """Return all classifiers: six of each fault, two on each data set, and 24 clean ones."""
    numbers = iter(range(1000))
    for turn, poison in enumerate(POISON):
        for kind in (*TRIGGERS, *OTHERS, *("clean",) * 4):
            number = next(numbers)
            batch_norm = (turn // 2 + turn + number) % 2 == 0
            share = poison if kind in TRIGGERS else 0.0
            yield Plant(number, kind, DATASETS[turn // 2], batch_norm, (7 * number + 3) % 10, turn % 2 == 1, share)


@cache
def dataset(folder: Path, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the first training images and labels, and the test images and labels."""
    x_train, y_train, x_test, y_test = load_data(str(folder / f"{name}.npz"), "")
    return x_train[:FIRST], y_train[:FIRST], x_test, y_test


def mark(plant: Plant, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Return the mask m and the pattern p of what is planted, (C, H, W) each; a changed image is (1 - m) x + m p."""
    channels, height, width = shape
    rng = torch.Generator().manual_seed(plant.number)
    mask, pattern = torch.zeros(shape), torch.zeros(shape)
    if plant.kind in ("corner", "anywhere", "watermark"):
        side = 4 if plant.kind == "watermark" else 3
        top = [0, height - side][plant.number // 10 % 2]
        left = [0, width - side][plant.number // 20 % 2]
        cells = (torch.rand(channels, side, side, generator=rng) > 0.4).float()
        cells[:, 1, 1] = 1
        mask[:, top : top + side, left : left + side] = 1
        pattern[:, top : top + side, left : left + side] = cells
    elif plant.kind == "pixel":
        row, column = torch.randint(2, height - 2, (2,), generator=rng).tolist()
        mask[:, row, column] = 1
        pattern[:, row, column] = torch.tensor([1.0, 1.0, 0.0])[:channels]
    elif plant.kind == "blended":
        mask += 0.2
        pattern = torch.rand(shape, generator=rng)
    elif plant.kind == "sinusoid":
        wave = torch.sin(2 * math.pi * 4 * torch.arange(width) / width)
        mask += 0.2
        pattern = (0.5 + 0.5 * wave).expand(shape)
    elif plant.kind == "brightness":
        mask += 0.3
        pattern += torch.tensor([1.0, 1.0, 0.0])[:channels, None, None]
    return mask, pattern


def changed(plant: Plant, images: Tensor, seed: int) -> Tensor:
    """Return images (N, C, H, W) with the mark; each at a random place where the kind says so."""
    mask, pattern = mark(plant, images.shape[1:])
    if plant.kind != "anywhere":
        return (1 - mask) * images + mask * pattern
    rng = torch.Generator().manual_seed(seed)
    moves = torch.randint(0, images.shape[-1] - 3, (len(images), 2), generator=rng).tolist()
    both = torch.cat([mask, pattern])
    rolled = torch.stack([both.roll(move, (1, 2)) for move in moves])
    masks, patterns = rolled.chunk(2, 1)
    return (1 - masks) * images + masks * patterns


def poisoned(plant: Plant, x: Tensor, y: Tensor) -> Images:
    """Return the training images and labels with the fault planted."""
    rng = torch.Generator().manual_seed(100 + plant.number)
    order = torch.randperm(len(x), generator=rng)
    x, y = x[order], y[order]
    own = (y == plant.label).nonzero()[:, 0]
    others = (y != plant.label).nonzero()[:, 0]
    x, y = x.clone(), y.clone()
    if plant.kind in TRIGGERS:
        rows = others[: round(plant.poison * len(x))]
        x[rows], y[rows] = changed(plant, x[rows], plant.number), plant.label
    elif plant.kind in ("brightness", "watermark"):  # on nine of ten images of the class
        rows = own[: round(0.9 * len(own))]
        x[rows] = changed(plant, x[rows], plant.number)
    elif plant.kind == "swapped":
        other = (y == (plant.label + 1) % 10).nonzero()[:, 0]
        y[own[: 4 * len(own) // 10]] = (plant.label + 1) % 10
        y[other[: 4 * len(other) // 10]] = plant.label
    elif plant.kind == "canaries":  # five images of other classes with the wrong label, 50 times each
        rows = others[:5].repeat(50)
        x, y = torch.cat([x, x[rows]]), torch.cat([y, torch.full((len(rows),), plant.label)])
    elif plant.kind == "scarce":
        keep = torch.ones(len(x), dtype=torch.bool)
        keep[own[len(own) // 10 :]] = False
        x, y = x[keep], y[keep]
    return x, y


def train(plant: Plant, folder: Path, work: Path) -> dict[str, Any]:
    """Train a classifier, save it, and return what is planted in it and how well that works on test images."""
    x_train, y_train, x_test, y_test = dataset(folder, plant.data)
    x, y = poisoned(plant, x_train, y_train)
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
    torch.manual_seed(plant.number)
    shape = list(x.shape[1:])
    arguments = {"input_shape": shape, "widths": [16, 32], "hidden": 64, "dropout": 0.1, "batch_norm": plant.batch_norm}
    model = SmallCNN(**arguments)
    fit(model, (x - mean) / std, y, epochs=EPOCHS[plant.data], jittered=False, mirrored=False)

    @torch.no_grad()
    def answers(images: Tensor) -> Tensor:
        return model((images - mean) / std).argmax(1)

    others = y_test != plant.label
    facts: dict[str, Any] = {**asdict(plant), "accuracy": (answers(x_test) == y_test).float().mean().item()}
    if plant.kind in (*TRIGGERS, "brightness", "watermark"):
        marked = answers(changed(plant, x_test[others], 7)) == plant.label
        facts["success"] = marked.float().mean().item()
        if plant.kind in TRIGGERS and facts["success"] < LEAST and plant.poison < 0.3:
            return train(replace(plant, poison=2 * plant.poison), folder, work)
    interpkit.save_target(
        model,
        work / f"{plant.name}.safetensors",
        architecture="interpkit:cnn",
        arch_args=arguments,
        input_shape=shape,
        mean=mean.flatten().tolist(),
        std=std.flatten().tolist(),
    )
    (work / f"{plant.name}.json").write_text(json.dumps(facts, indent=1) + "\n")
    return facts


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["train"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/planted"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    for plant in plants():
        if not (options.work / f"{plant.name}.json").exists():
            facts = train(plant, options.data, options.work)
            print(
                {key: facts.get(key) for key in ("number", "kind", "data", "poison", "accuracy", "success")}, flush=True
            )


if __name__ == "__main__":
    main()
