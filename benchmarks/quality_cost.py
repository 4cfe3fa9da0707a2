"""CPU seconds for 1,000 samples that are accepted, distinct and right in the eyes of other classifiers.

    python -m benchmarks.quality_cost --data DIR --models DIR [--targets mnist_bn,cifar10_bn] [--work DIR]

Accepted and distinct are defined in `benchmarks.samples_cost`. Right means that the held-out evaluators
(`benchmarks.evaluators`) name the requested class: their mean agreement on what was kept has to reach a floor, .9 on
MNIST and .8 on CIFAR-10, whose evaluators know 99 and 64 % of real images. A generator is trained and then sampled. The
methods that optimize images are measured on 100 images, and the cost of 1,000 is extrapolated. Half the steps of
``training-like`` are measured, too, since fewer may be enough for the floor.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import mean

import torch
from torch import Tensor

import interpkit
from benchmarks import harness
from benchmarks.evaluators import EVALUATORS, evaluator
from benchmarks.measuring import HEAD, Figure, machine
from benchmarks.paper import BASELINES
from benchmarks.peers import PlainLoop
from benchmarks.samples_cost import distinct
from interpkit.api import invert
from interpkit.evaluation.scoring import draw_samples

COUNT = 1000
FLOORS = {"mnist_bn": 0.9, "cifar10_bn": 0.8}
SHORT = "half of training-like"
RIVALS = ("deepinversion", "pixels", "the plain loop")


@dataclass(frozen=True)
class Cost:
    """What samples cost, and what they are worth.

    Attributes:
        seconds: CPU seconds for `COUNT` accepted, distinct samples.
        agreement: mean share of them that an evaluator assigns to the requested class.
        detail: how the seconds came about.
    """

    seconds: float
    agreement: float
    detail: str


def samples_of(method: str, target: interpkit.Target) -> tuple[Tensor, Tensor, float, float]:
    """Return images, their labels, and the CPU seconds that are spent once and for these images."""
    begun = time.process_time()
    if method in BASELINES:
        recipe = BASELINES[method]
        drawn = draw_samples(invert.prepare(target, recipe.plugins, **recipe.settings).run())
        return drawn.images, drawn.labels, 0.0, time.process_time() - begun
    if method == "the plain loop":
        job = invert.prepare(target, ["vecmat"])
        loop = PlainLoop(job)
        for _ in range(job.recipe.steps):
            loop()
        trained = time.process_time() - begun
        labels = torch.arange(COUNT) % target.num_classes
        loop.generator.eval()
        with torch.no_grad():
            p = torch.randn(COUNT, target.num_classes).softmax(1).sort(descending=True).values
            p = torch.stack(
                [row.roll(int(label)) for row, label in zip(p, labels, strict=True)]
            )  # its largest is first
            images = (loop.generate(labels, p) * 255).round().to(torch.uint8)
        return images, labels, trained, time.process_time() - begun - trained
    job = invert.prepare(target, ["vecmat", "training-like"])
    if method == SHORT:
        job = invert.prepare(target, ["vecmat", "training-like"], steps=job.recipe.steps // 2)
    inversion = job.run()
    trained = time.process_time() - begun
    drawn = draw_samples(inversion, per_class=COUNT // target.num_classes)
    return drawn.images, drawn.labels, trained, time.process_time() - begun - trained


def cost(method: str, target: interpkit.Target, evaluators: list[interpkit.Target]) -> Cost:
    """Measure one method."""
    images, labels, once, apiece = samples_of(method, target)
    seen = images.float() / 255
    with torch.no_grad():
        right = target.eval()(seen).argmax(1) == labels
        agreement = mean(
            (each.eval()(seen[right]).argmax(1) == labels[right]).float().mean().item() for each in evaluators
        )
    share = distinct(images[right], labels[right])
    seconds = once + apiece * COUNT / max(int(right.sum()) * share, 1)
    detail = (
        f"{once:.0f} s, {apiece:.1f} s for {len(labels)}, {right.float().mean():.1%} accepted, {share:.1%} distinct"
    )
    return Cost(seconds, agreement, detail)


def figures(targets: list[str], place: harness.Place) -> Iterator[Figure]:
    """Yield the figures."""
    for name in targets:
        target = harness.load(name, place)
        evaluators = [evaluator(harness.dataset(name), e, place.data, place.trained) for e in EVALUATORS]
        ours = {method: cost(method, target, evaluators) for method in ("training-like", SHORT)}
        for method, own in ours.items():
            what = f"{name}: CPU seconds of {method}, agreement {own.agreement:.3f} (floor {FLOORS[name]})"
            yield Figure(what, own.seconds, detail=own.detail)
        for rival in RIVALS:
            theirs = cost(rival, target, evaluators)
            reached = "" if theirs.agreement >= FLOORS[name] else ", under the floor"
            goal = "<= 0.25" if rival == "deepinversion" else ""
            detail = f"{theirs.seconds:.0f} s: {theirs.detail}; agreement {theirs.agreement:.3f}{reached}"
            for method, own in ours.items():
                what = f"{name}: {method} over {rival}"
                yield Figure(what, own.seconds / theirs.seconds, goal, detail=detail)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    harness.Place.add_arguments(parser)
    parser.add_argument("--targets", default=",".join(FLOORS), help="Targets, separated by commas.")
    arguments = parser.parse_args()
    print(machine(torch.device("cpu")), f"\n{HEAD}", end="")
    for figure in figures(arguments.targets.split(","), harness.Place.parse(arguments)):
        print(figure.row(), flush=True)
