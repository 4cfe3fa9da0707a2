"""How much of its training images a classifier gives away, by their number, its architecture and the loss.

    python -m benchmarks.memory --data mnist.npz [--networks mlp,cnn,vit] [--sizes 100,1000,6000] [--steps 200]

Trains an MLP, a CNN and a small ViT on the first images of each class, inverts each with ``training-like``, with and
without the loss ``stationarity``, and compares the samples with the training images and with as many held-out images.
Then it trains each network once more on the largest set with ten planted canaries, one of each class, repeated 50
times, and ranks them among up to 1,000 decoys, also for the network that never saw them. What docs/memory.json has
already is not repeated, so that the study can be stopped and resumed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import interpkit
from benchmarks.harness import figures_of, measured_once, table
from examples.train_classifier import accuracy, load_data

KEPT = Path(__file__).parents[1] / "docs" / "memory.json"
NETWORKS = ("mlp", "cnn", "vit")
REPEATED = 50
DECAY = 5e-4
"""Weight decay of the training, as a term of its gradient, so that ``stationarity`` knows where it comes to rest."""
WEIGHT = 1.0
"""The weight of ``stationarity``."""

Images = tuple[Tensor, Tensor]


class VisionTransformer(nn.Module):
    """A small vision transformer: patches of a quarter of the side, two layers of width 64."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        side = shape[1] // 4
        self.patches = nn.Conv2d(shape[0], 64, side, side)
        self.places = nn.Parameter(0.02 * torch.randn(1, (shape[1] // side) * (shape[2] // side), 64))
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.places
        logits: Tensor = self.head(self.layers(tokens).mean(1))
        return logits


def network(name: str, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return an untrained network for images (C, H, W)."""
    if name == "vit":
        return VisionTransformer(shape, classes)
    if name == "mlp":
        inputs = torch.Size(shape).numel()
        widths = (nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, classes))
        return nn.Sequential(nn.Flatten(), *widths)
    pooled = 64 * (shape[1] // 4) * (shape[2] // 4)
    first = (nn.Conv2d(shape[0], 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    second = (nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(pooled, classes))


@dataclass(frozen=True)
class Split:
    """The images of the study.

    Attributes:
        training: what the network is trained on.
        held_out: as many images of each class that it never saw.
        canaries: ten images, one of each class.
        decoys: images that no network saw, among which the canaries are ranked.
    """

    training: Images
    held_out: Images
    canaries: Images
    decoys: Images

    @classmethod
    def of(cls, data: Path, size: int) -> Split:
        """Return the split of an ``.npz`` with ``x_train, y_train, x_test, y_test`` for ``size`` training images."""
        x_train, y_train, x_test, y_test = load_data(str(data), "")
        classes = int(y_train.max()) + 1
        each = size // classes
        rows = [(y_train == label).nonzero()[:, 0] for label in range(classes)]
        unseen = [(y_test == label).nonzero()[:each, 0] for label in range(classes)]
        most = min(each, *(len(some) for some in unseen))
        training, held_out = torch.cat([some[:each] for some in rows]), torch.cat([some[:most] for some in unseen])
        canaries = torch.stack([some[-1] for some in rows])  # which no size trains on, nor on what comes before them
        others = torch.cat([some[each:-1] for some in rows])
        return cls(
            (x_train[training], y_train[training]),
            (x_test[held_out], y_test[held_out]),
            (x_train[canaries], y_train[canaries]),
            (torch.cat([x_train[others], x_test]), torch.cat([y_train[others], y_test])),
        )

    def planted(self, repeated: int) -> Split:
        """Return the same split with the canaries, ``repeated`` times, in place of as many training images."""
        (x, y), (canaries, labels) = self.training, self.canaries
        kept = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[: len(x) - repeated * len(canaries)]
        images = torch.cat([x[kept], canaries.repeat(repeated, 1, 1, 1)])
        return replace(self, training=(images, torch.cat([y[kept], labels.repeat(repeated)])))


def trained(name: str, split: Split, steps: int) -> interpkit.Target:
    """Train a network for a number of steps of 64, without augmentation, and wrap it."""
    torch.manual_seed(0)
    x, y = split.training
    mean, std = x.mean((0, 2, 3)), x.std((0, 2, 3))
    normalized = (x - mean[:, None, None]) / std[:, None, None]
    model = network(name, tuple(x.shape[1:]), int(y.max()) + 1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, weight_decay=DECAY)  # it adds DECAY * weights to gradients
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (64,))
        loss = F.cross_entropy(model(normalized[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return interpkit.wrap(model.eval(), x.shape[1:], mean=mean.tolist(), std=std.tolist(), output="logits", name=name)


def measure(target: interpkit.Target, split: Split, steps: int, *, stationarity: bool) -> dict[str, float]:
    """Invert a classifier and return the figures of its memory."""
    term = {"losses": {"stationarity": WEIGHT}, "options": {"stationarity.decay": DECAY}} if stationarity else {}
    presets = ["vecmat", "training-like"]
    inversion = interpkit.invert(target, presets, steps=steps, seed=0, device="cpu", **term)
    seen, unseen = (
        interpkit.evaluate(inversion, metrics=["reference"], reference=data)
        for data in (split.training, split.held_out)
    )
    memory = interpkit.evaluate(inversion, metrics=["memorisation"], reference=split.held_out, training=split.training)[
        "memorisation"
    ]["pixels"]
    canaries = interpkit.evaluate(inversion, metrics=["canaries"], reference=split.decoys, canaries=split.canaries)
    return {
        "inversion accuracy": seen["inversion_accuracy"],
        "SSIM, training": seen["reference"]["ssim"]["mean"],
        "SSIM, held out": unseen["reference"]["ssim"]["mean"],
        "SSIM >= .4, training": seen["reference"]["ssim"]["at_least_0.4"],
        "SSIM >= .4, held out": unseen["reference"]["ssim"]["at_least_0.4"],
        "nearer to training": memory["nearer_to_training"],
        "canaries, mean rank": canaries["canaries"]["mean_rank"],
        "by chance": canaries["canaries"]["chance"],
        "canaries, rank <= 10": canaries["canaries"]["within_10"],
        "canaries, p": canaries["canaries"]["p_value"],
    }


def study(args: argparse.Namespace, kept: Path = KEPT) -> dict[str, Any]:
    """Measure what is not in the file of figures yet, and return all of it by the name of the cell."""
    sizes = sorted(args.sizes)
    for size, planted in [*((size, False) for size in sizes), (sizes[-1], True)]:
        split = Split.of(args.data, size)
        split = split.planted(REPEATED) if planted else split
        for name in args.networks:
            make = cache(partial(trained, name, split, args.training))
            for stationarity in (False, True):
                cell = f"{name}, {size} images{', canaries planted' * planted}{', stationarity' * stationarity}"
                wanted = {"data": args.data.name, "steps": args.steps, "training": args.training}
                measured_once(kept, cell, wanted, partial(_cell, make, split, args.steps, stationarity=stationarity))
    return figures_of(kept)


def _cell(make: Callable[[], interpkit.Target], split: Split, steps: int, *, stationarity: bool) -> dict[str, float]:
    target = make()
    found = measure(target, split, steps, stationarity=stationarity)
    with target.frozen():
        return found | {"target's accuracy": accuracy(target, *split.held_out)}


def shown(figures: Mapping[str, Any]) -> str:
    """Return the figures as a Markdown table."""
    rows = {cell: {name: f"{value:.3g}" for name, value in kept["figures"].items()} for cell, kept in figures.items()}
    return table(rows, "network")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, required=True, help="The .npz file of the images.")
    made.add_argument("--networks", type=lambda text: text.split(","), default=NETWORKS, help="Separated by commas.")
    made.add_argument(
        "--sizes",
        type=lambda text: [int(size) for size in text.split(",")],
        default=[100, 1000, 6000],
        help="Numbers of training images, at least 100, separated by commas.",
    )
    made.add_argument("--steps", type=int, default=200, help="Steps of an inversion (default: 200).")
    made.add_argument("--training", type=int, default=1500, help="Steps of a training (default: 1500).")
    return made


if __name__ == "__main__":
    print(shown(study(parser().parse_args())))
