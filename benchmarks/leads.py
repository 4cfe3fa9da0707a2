"""How sure a classifier is of real images and of samples: the lead of the class's logit over the next.

    python -m benchmarks.leads --data mnist.npz MODEL [RUN ...]

prints the mean lead of each class on the real test images and on 50 samples of a class of each run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from interpkit_audit.margins import rival
from torch import Tensor

import interpkit
from examples.train_classifier import load_data
from interpkit.runtime.at_once import in_batches


@torch.no_grad()
def leads(target: interpkit.Target, images: Tensor, labels: Tensor) -> list[float]:
    """Return the mean lead of each class; below 0 where another class leads."""
    with target.frozen("cpu"):
        lead = torch.cat(in_batches(target, images, lambda rows: rival(target(images[rows]), labels[rows])[1]))
    return [lead[labels == label].mean().item() for label in range(target.num_classes)]


def main() -> None:
    """Print a line for the real images and one for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="The .npz file of the data set.")
    parser.add_argument("runs", nargs="*", type=Path)
    args = parser.parse_args()
    target = interpkit.load_target(args.model)
    rows = {"real images": load_data(str(args.data), "")[2:]}
    for run in args.runs:
        rows[str(run)] = interpkit.load_inversion(run, target=args.model).sample(per_class=50)
    for name, (images, labels) in rows.items():
        found = leads(target, images, labels)
        print(name, *(f"{lead:.1f}" for lead in found), f"mean {sum(found) / len(found):.1f}", flush=True)


if __name__ == "__main__":
    main()
