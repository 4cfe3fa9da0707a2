"""Measures on real images what concepts explain that were learned without data, and whether they find a planted mark.

    python -m benchmarks.concepts runs/mnist-0 runs/mnist-1 runs/mnist-2 --data mnist.npz
    python -m benchmarks.concepts --planted 10 --data mnist.npz

The first learns a dictionary from the samples of each run (of one classifier, with several seeds), one from noise and
one from real images, and judges all on the test images: the variance of the layer's features that they explain, and the
share of images that keep their label when the features are replaced by the reconstruction. Real images to learn from
are the last training images, which the shipped classifiers never saw. *Stability* is the mean cosine of a dictionary's
concepts and the nearest one of another seed's.

The second trains classifiers of digits, one class of which has a small mark in a corner, inverts them, and looks for
the concept that fires on the mark: its AUROC between test images of all classes without the mark and the same with it.
The concept is chosen on one half of the images and judged on the other.
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev

import torch
import torch.nn.functional as F
from torch import Tensor

import interpkit
from benchmarks.evaluators import FIRST
from examples.train_classifier import fit, load_data
from interpkit import Concepts, concepts

HEAD = "| classifier | learned from | variance explained | label kept | stability |\n|---|---|---|---|---|"
MARK = 4
"""Side of the planted mark, a square of alternating pixels."""


def nearest_cosine(first: Concepts, second: Concepts) -> float:
    """Return the mean cosine of a dictionary's concepts that fire and the nearest of another's."""
    one, other = (
        F.normalize(each.dictionary.atoms[[row["concept"] for row in each.record["concepts"]]], dim=1)
        for each in (first, second)
    )
    return (one @ other.T).amax(1).mean().item()


def judged(runs: list[str], data: Path, count: int, steps: int) -> None:
    """Print a row for the runs together, one for noise and one for real images."""
    inversions = [interpkit.load_inversion(run) for run in runs]
    target = inversions[0].target
    x_train, y_train, x_test, y_test = load_data(str(data), "")
    del y_train
    noise = torch.rand((FIRST, *target.input_shape), generator=torch.Generator().manual_seed(0))
    sources = {"samples": inversions, "noise": [noise], "real images": [x_train[FIRST:]]}
    print(HEAD, flush=True)
    for name, group in sources.items():
        found = []
        for seed, source in enumerate(group):
            images = source.sample(count=count, seed=100 + seed)[0] if not isinstance(source, Tensor) else source
            found.append(concepts(target, images, reference=(x_test, y_test), steps=steps, seed=seed, device="cpu"))
            print(f"seed {seed}: {found[-1].record['reference']}", flush=True)
        cells = [
            _cell([each.record["reference"][key] for each in found]) for key in ("variance_explained", "label_kept")
        ]
        pairs = [nearest_cosine(*pair) for pair in combinations(found, 2)]
        print(f"| {target.name} | {name} | {' | '.join(cells)} | {_cell(pairs)} |", flush=True)


def _cell(values: list[float]) -> str:
    if not values:
        return "-"
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def marked(images: Tensor) -> Tensor:
    """Return images with the mark in their lower right corner."""
    images = images.clone()
    rows = torch.arange(MARK)
    images[..., -MARK - 1 : -1, -MARK - 1 : -1] = ((rows[:, None] + rows) % 2).to(images)
    return images


def planted(seed: int, data: Path, steps: int, images: int, count: int) -> float:
    """Return the AUROC, on real images with and without the mark, of the concept that fires on it."""
    x_train, y_train, x_test, _ = load_data(str(data), "")
    x_train, y_train = x_train[:images], y_train[:images]
    x_train = torch.where((y_train == seed % 10)[:, None, None, None], marked(x_train), x_train)
    torch.manual_seed(seed)
    arguments = {"input_shape": [1, 28, 28], "num_classes": 10, "widths": [16, 32], "batch_norm": True}
    net = interpkit.build_architecture("interpkit:cnn", arguments)
    fit(net, (x_train - 0.13) / 0.31, y_train, epochs=6, batch_size=64, lr=2e-3)
    target = interpkit.wrap(net, input_shape=(1, 28, 28), mean=[0.13], std=[0.31], output="logits", name="marked")
    inversion = interpkit.invert(target, ["vecmat", "training-like"], steps=steps, seed=seed, device="cpu")
    detector = concepts(inversion, count=count, seed=seed, device="cpu").detector
    with torch.no_grad():
        plain, with_mark = detector(x_test), detector(marked(x_test))
    best = _auroc(plain[::2], with_mark[::2]).argmax()
    return _auroc(plain[1::2], with_mark[1::2])[best].item()


def _auroc(negative: Tensor, positive: Tensor) -> Tensor:
    """Return each column's probability that a positive is above a negative, (n,)."""
    both = torch.cat([negative, positive])
    ranks = both.argsort(0).argsort(0).double() + 1
    hits = ranks[len(negative) :].sum(0) - len(positive) * (len(positive) + 1) / 2
    return hits / (len(negative) * len(positive))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", help="Runs of one classifier, of several seeds.")
    parser.add_argument("--data", type=Path, required=True, help="Labeled images, as FILE.npz.")
    parser.add_argument("--planted", type=int, default=0, help="How many classifiers with a planted mark to train.")
    parser.add_argument("--first", type=int, default=0, help="Seed of the first of them (default: 0).")
    parser.add_argument("--count", type=int, default=10_000, help="Samples to learn from (default: 10,000).")
    parser.add_argument("--steps", type=int, default=2000, help="Steps of a dictionary (default: 2,000).")
    parser.add_argument("--invert", type=int, default=600, help="Steps of a planted inversion (default: 600).")
    parser.add_argument("--images", type=int, default=FIRST, help="Training images of a planted classifier.")
    args = parser.parse_args()
    if args.runs:
        judged(args.runs, args.data, args.count, args.steps)
    for seed in range(args.first, args.first + args.planted):
        print(
            f"mark in class {seed % 10}: {planted(seed, args.data, args.invert, args.images, args.count):.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
