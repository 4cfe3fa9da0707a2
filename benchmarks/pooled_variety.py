"""Measures how varied the pictures of a class are, in runs and in data sets, on pictures averaged over 4 x 4 pixels.

    python -m benchmarks.pooled_variety RUN_OR_NPZ ... [--per-class N] [--side PIXELS]

It prints two figures, which differ by a factor of ten and more: the mean Vendi score of a class beyond 1, which is
`diversity.vendi_pooled` - 1; and the Vendi score of all pictures with their mean removed, beyond that of the first
picture of each class. The first N images of each class count. Images of an .npz file (x_test, y_test) are enlarged to
--side pixels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from interpkit_metrics.similarity import directions, pooled, vendi
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import interpolate

from examples.train_classifier import load_data


def images_of(path: Path, per_class: int, side: int) -> tuple[Tensor, Tensor]:
    """Return the first images of each class, as floats, and their labels."""
    if path.suffix == ".npz":
        *_, images, labels = load_data(str(path), "")
    else:
        stored = load_file(path / "samples.safetensors")
        images, labels = stored["images"], stored["labels"]
    rows = torch.cat([(labels == label).nonzero()[:per_class, 0] for label in labels.unique()])
    images = images[rows].float()
    return interpolate(images, size=side, mode="bilinear") if path.suffix == ".npz" else images, labels[rows]


def main() -> None:
    """Print a row for each run or data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--per-class", type=int, default=100)
    parser.add_argument("--side", type=int, default=224)
    given = parser.parse_args()
    print("| pictures | number | within a class | all, without their mean |\n|---|---|---|---|")
    for path in given.paths:
        images, labels = images_of(path, given.per_class, given.side)
        pictures = pooled(images, 4)
        within = [vendi(directions(pictures[labels == label])) - 1 for label in labels.unique()]
        firsts = torch.stack([(labels == label).nonzero()[0, 0] for label in labels.unique()])
        more, one = (vendi(directions(some - some.mean(0))) for some in (pictures, pictures[firsts]))
        print(f"| {path.stem} | {len(images):,} | {sum(within) / len(within):.2f} | {more - one:.1f} |", flush=True)


if __name__ == "__main__":
    main()
