"""Measures the inverter `min` on mnist_bn, with the 6,000 digits that the classifier was not trained on as pictures.

    python -m benchmarks.min --data DIR --models DIR [--work DIR]

A finished or interrupted run in the work folder is reused. One training is measured with each kind of inference: the
rank correlation of 40 scores asked for and made, by class; and for the scores that `min` asks for by itself, the
figures of `interpkit evaluate` with the held-out evaluators and the test digits as reference.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import mean

import numpy as np
from interpkit_min import MinInversion
from scipy.stats import spearmanr

import interpkit
from benchmarks.evaluators import EVALUATORS, FIRST, evaluator, held_out
from benchmarks.harness import SHIPPED, figures
from examples.train_classifier import load_data

COLUMNS = ("inversion accuracy", "agreement", "agreement, worst class", "coverage", "density", "excess Vendi")


def main() -> None:
    """Train, and print a row for each kind of inference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Folder of mnist.npz.")
    parser.add_argument("--models", type=Path, required=True, help="Folder of the evaluators.")
    parser.add_argument("--work", type=Path, default=Path("runs/min"), help="Folder for the run (default: runs/min).")
    parser.add_argument("--steps", type=int, help="Steps of the training (default: the preset's).")
    args = parser.parse_args()
    target = interpkit.load_target(SHIPPED / "mnist_bn.safetensors")
    args.work.mkdir(parents=True, exist_ok=True)
    pictures = args.work / "auxiliary.npz"
    if not pictures.exists():
        np.savez(pictures, images=load_data(str(args.data / "mnist.npz"), "")[0][FIRST:].numpy())
    began, folder = time.process_time(), args.work / "run"
    settings = {"steps": args.steps, "options": {"min.data": str(pictures)}, "device": "cpu"}
    inversion = interpkit.invert(target, inverter="min", out=folder, resume=True, seed=0, **settings)
    print(f"{inversion.steps_done} steps; {time.process_time() - began:.0f} CPU seconds with the report\n")
    assert isinstance(inversion, MinInversion)
    judges = [evaluator("mnist", name, args.data, args.models) for name in EVALUATORS]
    reference = held_out("mnist", args.data)[2:]
    print(f"| inference | rank correlation, lowest and mean of the classes | {' | '.join(COLUMNS)} |")
    print("|---" * (len(COLUMNS) + 2) + "|")
    for inference in ("none", "selection", "gradient"):
        asked = MinInversion(
            target,
            inversion.recipe,
            inversion.history,
            inversion.generator,
            inversion.conditioner,
            inference=inference,
            tries=inversion.tries,
            empty=inversion.empty,
        )
        ranks = [spearmanr(*asked.compare(label).numpy()).statistic for label in asked.classes]
        metrics = interpkit.evaluate(asked, evaluators=judges, reference=reference, metrics=["agreement", "reference"])
        found = figures(metrics)
        cells = " | ".join(f"{found[name]:.3f}" for name in COLUMNS)
        print(f"| {inference} | {min(ranks):.3f}, {mean(ranks):.3f} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
