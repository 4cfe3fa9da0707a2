"""Measures the inverter `landscape` beside `pixels`: ``python -m benchmarks.landscape --data DIR --models DIR``.

It prints the mean objective, cross-entropy and total variation, of as many images by each; the objective of
`landscape` over that of `pixels` after 50 steps; the gradients that an image and the training took, and from how many
images on the training has paid; then what independent classifiers say, and how much the images of a class differ.
Runs are kept in ``--work`` and resumed; CPU seconds count only what a call still had to run.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping
from statistics import mean
from typing import Any

import torch
from interpkit_landscape import LandscapeInversion
from interpkit_losses import CrossEntropy, TotalVariation
from torch import Tensor

import interpkit
from benchmarks import harness
from benchmarks.evaluators import EVALUATORS, evaluator, held_out

RIVAL = 50
"""Steps of `pixels` that 5 steps through theta have to beat."""


def objective(target: interpkit.Target, images: Tensor, labels: Tensor) -> float:
    """Return the mean objective of the recipes of both, of images that are not moved."""
    losses = {"ce": (1.0, CrossEntropy(target)), "tv": (1.0, TotalVariation(target))}
    one_hot = torch.nn.functional.one_hot(labels, target.num_classes).float()
    condition = interpkit.Condition(labels, one_hot, one_hot)
    batch = interpkit.GeneratedBatch(target, condition, torch.zeros(len(labels), 0), images, 0.0)
    with target.frozen("cpu"), torch.no_grad():
        autocast = torch.autocast("cpu", enabled=False)
        return float(interpkit.objective(batch, losses, [], torch.Generator(), autocast)[0])


def apart(images: Tensor, labels: Tensor) -> float:
    """Return the mean distance of two images of a class, as a root mean square of the pixels."""
    of_class = []
    for label in labels.unique():
        own = images[labels == label].flatten(1)
        of_class.append(float(torch.pdist(own).mean()) / math.sqrt(own.shape[1]))
    return mean(of_class)


def measure(
    name: str, kind: str, settings: Mapping[str, Any], seed: int, per_class: int, place: harness.Place
) -> dict[str, float | None]:
    """Run one method with one seed, and return the figures of its images."""
    target, data = harness.load(name, place), harness.dataset(name)
    began = time.process_time()
    tag = f"{name}-{kind}-{settings.get('steps', 'preset')}-{per_class}-{seed}"
    out = place.work / "runs" / f"landscape-{tag}"
    run = interpkit.invert(target, [kind], seed=seed, device="cpu", out=out, resume=True, **settings)
    took = time.process_time() - began
    images, labels = run.sample(per_class=per_class, seed=seed)
    value, spread = objective(target, images, labels), apart(images, labels)
    print(f"{tag}: objective {value:.4f}, apart {spread:.4f}, {took:.0f} CPU s", file=sys.stderr, flush=True)
    judges = [evaluator(data, judge, place.data, place.trained) for judge in EVALUATORS]
    fixed = interpkit.ImageInversion(target, run.recipe, run.history, images, labels)
    metrics = interpkit.evaluate(fixed, evaluators=judges, reference=held_out(data, place.data)[2:])
    figures = harness.figures(metrics)
    learned = isinstance(run, LandscapeInversion)
    return {
        "objective": value,
        "accuracy": figures["inversion accuracy"],
        "gradients per image": run.descent.steps if learned else run.steps_done,
        "gradients of the training": run.trained_gradients if learned else 0,
        "paid from": run.paid_from(RIVAL) if learned else None,
        "agreement": figures["agreement"],
        "excess Vendi": figures.get("excess Vendi"),
        "coverage": figures["coverage"],
        "apart": spread,
        "CPU seconds": took,
    }


def main() -> None:
    """Print a table for each target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    harness.Place.add_arguments(parser)
    parser.add_argument("--targets", nargs="+", default=["mnist_bn", "cifar10_bn"], help="Classifiers.")
    parser.add_argument("--steps", type=int, help="Steps of the training of theta (default: the preset's).")
    parser.add_argument("--rivals", type=int, nargs="*", default=[200], help="More steps of `pixels` (default: 200).")
    parser.add_argument("--seeds", type=int, default=3, help="Seeds of each run (default: 3).")
    parser.add_argument("--per-class", type=int, default=20, help="Images of each class (default: 20).")
    args = parser.parse_args()
    place = harness.Place.parse(args)
    for target in args.targets:
        fixed = {"options": {"pixels.per_class": args.per_class}}
        ways = {f"`pixels`, {steps} steps": ("pixels", {"steps": steps, **fixed}) for steps in (RIVAL, *args.rivals)}
        ways["`landscape`, 5 steps"] = ("landscape", {} if args.steps is None else {"steps": args.steps})
        rows = {
            way: [measure(target, kind, settings, seed, args.per_class, place) for seed in range(args.seeds)]
            for way, (kind, settings) in ways.items()
        }
        rival = mean(row["objective"] or 0 for row in rows[f"`pixels`, {RIVAL} steps"])
        table = {}
        for way, results in rows.items():
            cells = [{name: value for name, value in row.items() if value is not None} for row in results]
            table[way] = {
                **harness.over_seeds(cells),
                "objective / that of 50": f"{mean(row['objective'] for row in cells) / rival:.3f}",
            }
        print(f"\n{target}\n\n{harness.table(table, 'method')}", flush=True)


if __name__ == "__main__":
    main()
