"""Measures how well classifiers refuse images of other data sets: plain, with a garbage class of noise, and hardened.

    python -m benchmarks.ood mnist --data DIR --out DIR

The classifiers are the shipped ones with batch norm, trained on the first 6,000 training images, and all retraining is
on the same. The other sets are the test images of the files in DIR, resized to 28 x 28 gray. A cell has the AUROC of
the score that the row names, the share of these images below the score that 95 % of the test images of the
classifier's own set reach, and, with a garbage class, the share that it puts there. The classifier with a garbage class
of noise alone is trained for as many epochs as the hardened one.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from interpkit_metrics.outliers import SCORES, separation
from torch import Tensor

import interpkit
from benchmarks.evaluators import FIRST
from examples.train_classifier import load_data
from interpkit import Target
from interpkit.io.unlabeled import load_unlabeled

OTHERS = {"mnist": ("fashion_mnist", "cifar10", "svhn"), "fashion_mnist": ("mnist", "cifar10", "svhn")}
MODELS = Path(__file__).parent.parent / "examples" / "models"


@torch.no_grad()
def logits(target: Target, images: Tensor) -> Tensor:
    """Return the target's logits, (N, n) float64."""
    with target.frozen():
        return torch.cat([target(some) for some in images.split(250)]).double()


def print_rows(name: str, target: Target, test: tuple[Tensor, Tensor], others: dict[str, Tensor]) -> None:
    """Print a row for each score: accuracy, then AUROC and share refused for each other set."""
    real = logits(target, test[0])
    accuracy = (real.argmax(1) == test[1]).double().mean()
    answers = {other: logits(target, images) for other, images in others.items()}
    scores = {**SCORES}
    if (garbage := target.garbage) is not None:
        scores["garbage"] = lambda target, logits: -logits.log_softmax(1)[:, garbage]
    for score, familiar in scores.items():
        cells = []
        for strange in answers.values():
            found = separation(familiar(target, real), familiar(target, strange))
            cells.append(f"{found['auroc']:.4f}, {found['rejected']:.1%}")
            if garbage is not None:
                cells[-1] += f", {(strange.argmax(1) == garbage).double().mean():.1%}"
        print(f"| {name} | {score} | {accuracy:.2%} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print a table of one data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=OTHERS, help="What the classifier was trained on.")
    parser.add_argument("--data", type=Path, required=True, help="Folder of the .npz files.")
    parser.add_argument("--out", type=Path, required=True, help="Folder for the classifiers.")
    parser.add_argument("--rounds", type=int, default=3, help="Rounds of hardening (default: 3).")
    parser.add_argument("--steps", type=int, default=100, help="Steps of each inversion (default: 100).")
    parser.add_argument("--batch-size", type=int, default=32, help="Images in a step of it (default: 32).")
    parser.add_argument("--presets", nargs="+", default=["vecmat"], help="What inverts (default: vecmat).")
    parser.add_argument("--seed", type=int, default=0, help="Random seed (default: 0).")
    args = parser.parse_args()
    torch.set_num_threads(1)
    x_train, y_train, *test = load_data(str(args.data / f"{args.dataset}.npz"), "")
    known = x_train[:FIRST], y_train[:FIRST]
    others = {
        name: load_unlabeled(str(args.data / f"{name}.npz"), (1, 28, 28), resize=True) for name in OTHERS[args.dataset]
    }
    print(f"| classifier | score | accuracy | {' | '.join(f'{name}: AUROC, refused, garbage' for name in others)} |")
    print("|---|---|---|" + "---|" * len(others), flush=True)
    file = MODELS / f"{args.dataset}_bn.safetensors"
    print_rows("plain", interpkit.load_target(file), (test[0], test[1]), others)
    for name, extra in (
        (
            "hardened",
            {"rounds": args.rounds, "steps": args.steps, "batch_size": args.batch_size, "presets": args.presets},
        ),
        ("garbage of noise", {"rounds": 0, "epochs": args.rounds + 1}),
    ):
        out = args.out / f"{args.dataset}_{name.replace(' ', '_')}_{args.seed}.safetensors"
        started = time.process_time()
        found = interpkit.harden(file, known, out=out, seed=args.seed, device="cpu", **extra)
        spent = time.process_time() - started
        print_rows(name, found.target, (test[0], test[1]), others)
        print(f"{name}: {spent:.0f} CPU seconds, {found.ended}, {found.rounds}", flush=True)


if __name__ == "__main__":
    main()
