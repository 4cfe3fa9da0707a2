"""Inversion accuracy with default settings on the shipped classifiers: ``python -m benchmarks.vecmat_accuracy``.

Each is measured on 1,000 fresh samples, drawn with another seed than the run's.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import interpkit
from benchmarks.measuring import Figure
from interpkit.evaluation import scoring

MODELS = Path(__file__).parent.parent / "examples" / "models"


def figures(names: Sequence[str] = ("mnist", "fashion_mnist"), seed: int = 0) -> Iterator[Figure]:
    """Yield the accuracy over all classes and that of the worst class."""
    for name in names:
        inversion = interpkit.invert(MODELS / f"{name}.safetensors", ["vecmat"], seed=seed)
        samples = scoring.draw_samples(inversion, per_class=100, seed=seed + 1_000)
        metrics = scoring.measure(samples, inversion.target.class_names)
        worst = min(row["inversion_accuracy"] for row in metrics["per_class"])
        detail = f"{inversion.recipe.steps} steps of {inversion.recipe.batch_size}, seed {seed}"
        goals = (">= 0.99", ">= 0.95") if name == "mnist" else ("", "")
        yield Figure(f"{name}: inversion accuracy", metrics["inversion_accuracy"], goals[0], detail=detail)
        yield Figure(f"{name}: accuracy of the worst class", worst, goals[1], detail=detail)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", default=["mnist", "fashion_mnist"], help="Shipped classifiers to invert.")
    parser.add_argument("--seed", type=int, default=0, help="Random seed (default: 0).")
    args = parser.parse_args()
    for figure in figures(args.names, args.seed):
        print(figure.row(), flush=True)
