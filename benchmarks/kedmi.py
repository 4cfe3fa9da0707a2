"""The protocol of KED-MI on MNIST: what public digits 5 to 9 add to the inversion of a classifier of the digits 0 to 4.

    python -m benchmarks.kedmi --data DIR [--models DIR] [--work DIR]

A target is trained on the digits 0 to 4 of the first 6,000 training images. ``training-like`` inverts it without
pictures, with a discriminator on the digits 5 to 9 of the same images, by patches and by whole images, and with one on
FashionMNIST. Evaluators of all ten digits, trained on the other images, then classify 100 samples of each class: the
attack accuracy. The other figure is the distance in the features of an evaluator from a sample to the nearest private
training image of its class. Test images of the same digits stand beside them: nothing that only resembles the private
images can be expected to be nearer. Finished runs in the work folder are reused, and interrupted ones are resumed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor

import interpkit
from benchmarks.evaluators import EVALUATORS, FIRST, evaluator
from benchmarks.harness import ROOT, table

CLASSES, PER_CLASS, WEIGHT = 5, 100, 4.0
SPLITS = ("x_train", "y_train", "x_test", "y_test")


def arrays(path: Path) -> tuple[np.ndarray, ...]:
    """Return the images and labels of the training images that targets see, and of the test images."""
    with np.load(path) as stored:
        x_train, y_train, x_test, y_test = (stored[name] for name in SPLITS)
    return x_train[:FIRST], y_train[:FIRST], x_test, y_test


def prepare(data: Path, work: Path) -> Path:
    """Write the private and the public images, train the target, and return its file."""
    work.mkdir(parents=True, exist_ok=True)
    x, y, x_test, y_test = arrays(data / "mnist.npz")
    private, tested = y < CLASSES, y_test < CLASSES
    splits = (x[private], y[private], x_test[tested], y_test[tested])
    np.savez(work / "private.npz", **dict(zip(SPLITS, splits, strict=True)))
    for name, images in {"digits": x[~private], "fashion": arrays(data / "fashion_mnist.npz")[0][: FIRST // 2]}.items():
        np.savez(work / f"{name}.npz", images=images)
    target = work / "target.safetensors"
    if not target.exists():
        script = [sys.executable, str(ROOT / "examples" / "train_classifier.py"), str(work / "private.npz")]
        subprocess.run([*script, "--batch-norm", "--out", str(target)], check=True)
    return target


def figures(images: Tensor, labels: Tensor, evaluators: Sequence[interpkit.Target], private: Tensor, y: Tensor) -> Any:
    """Return the attack accuracy and the distance to the nearest private image of the class, for each evaluator."""
    row: dict[str, str] = {}
    accuracies, distances = [], []
    for judge in evaluators:
        logits, features = answers(judge, images)
        known = answers(judge, private)[1]
        nearest = [torch.cdist(features[labels == c], known[y == c]).amin(1) for c in range(CLASSES)]
        accuracies.append((logits.argmax(1) == labels).float().mean().item())
        distances.append(torch.cat(nearest).mean().item())
        row[f"accuracy, {judge.name}"] = f"{accuracies[-1]:.3f}"
    worst = min((logits.argmax(1) == labels)[labels == c].float().mean().item() for c in range(CLASSES))
    return {
        "attack accuracy": f"{mean(accuracies):.3f}",
        **row,
        f"worst digit, {evaluators[-1].name}": f"{worst:.2f}",
        **{f"distance, {e.name}": f"{d:.2f}" for e, d in zip(evaluators, distances, strict=True)},
    }


@torch.no_grad()
def answers(judge: interpkit.Target, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits and the features before the last layer, flat."""
    parts = [judge.respond(rows) for rows in images.split(500)]
    return torch.cat([p.logits for p in parts]), torch.cat([p.penultimate.flatten(1) for p in parts])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Folder of mnist.npz and fashion_mnist.npz.")
    parser.add_argument("--work", type=Path, default=Path("runs/kedmi"), help="Folder for runs (default: runs/kedmi).")
    parser.add_argument("--models", type=Path, help="Folder of the evaluators (default: in the work folder).")
    parser.add_argument("--steps", type=int, help="Steps of each run (default: the preset's).")
    parser.add_argument("--only", nargs="*", help="Names of rows to run (default: all).")
    args = parser.parse_args()
    work = args.work.absolute()
    target = prepare(args.data, work)
    evaluators = [evaluator("mnist", name, args.data, args.models or work) for name in EVALUATORS]
    x, y, x_test, y_test = (torch.from_numpy(a) for a in np.load(work / "private.npz").values())
    private, tested = (images[:, None].float() / 255 for images in (x, x_test))

    digits, fashion = ({"prior.data": str(work / f"{name}.npz")} for name in ("digits", "fashion"))
    recipes: dict[str, dict[str, Any]] = {
        "no pictures": {},
        "digits 5 to 9": digits,
        "digits 5 to 9, whole": {**digits, "prior.patch": 28},
        "FashionMNIST": fashion,
    }
    rows = {"private test digits": figures(tested, y_test.long(), evaluators, private, y)}
    for name, options in recipes.items():
        if args.only is None or name in args.only:
            run = interpkit.invert(
                target,
                presets=["vecmat", "training-like"],
                losses={"prior": WEIGHT} if options else {},
                options=options,
                steps=args.steps,
                out=work / f"{name.replace(' ', '-').replace(',', '')}-{args.steps or 'preset'}",
                resume=True,
                device="cpu",
            )
            samples = run.sample(per_class=PER_CLASS, seed=0)
            rows[name] = figures(*samples, evaluators, private, y)
            print(table(rows, "pictures"), flush=True)


if __name__ == "__main__":
    main()
