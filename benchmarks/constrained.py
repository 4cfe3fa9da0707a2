"""Measures the inverter `constrained`: where gradients see nothing, and whether its certificates are right.

    python -m benchmarks.constrained [--onnx MODEL.onnx]

It prints the inversion accuracy from a gray start, and that of `pixels` from the same start and with as many
evaluations of the network beside it, on a network whose first layer is off around gray and, with ``--onnx``, on a
classifier of yours. Then it compares certificates on networks of 2-4-2 units with all vertices of their regions.
"""

from __future__ import annotations

import argparse
import itertools
import math
from pathlib import Path

import numpy as np
import torch
from interpkit_constrained.certificate import Region, largest_margin
from interpkit_constrained.chain import Chain
from interpkit_constrained.results import ConstrainedInversion
from torch import nn

import interpkit

SWEEPS, PER_CLASS = 60, 10
SWEEP_COST = 5
"""Evaluations in a sweep of dense layers: W, its transpose and the two halves of the solve; and that of the target."""
PIXELS_COST = 2
"""Evaluations in a step of `pixels`: forward and backward."""


def dead_network(seed: int = 0) -> interpkit.Target:
    """Return a network of ten classes whose first layer is off at gray and around it."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
    with torch.no_grad():
        net[0].weight.normal_()
        net[0].bias.copy_(-net[0].weight.sum(1) / 2 - 2)
        net[2].weight.normal_(std=0.3)
        net[4].weight.normal_()
        net[2].bias.zero_()
        net[4].bias.zero_()
    return interpkit.wrap(net, (64,), name="dead")


def compare(target: interpkit.Target) -> None:
    """Print a row of a table for each of the two methods."""
    options = {"constrained.per_class": PER_CLASS}
    inversion = interpkit.invert(target, ["constrained"], steps=SWEEPS, options=options, device="cpu")
    assert isinstance(inversion, ConstrainedInversion)
    tight = sum(proof.tight for proof in inversion.proofs)
    gap = max(proof.bound - proof.margin for proof in inversion.proofs if proof.bound is not None)
    evaluations = SWEEPS * SWEEP_COST + math.prod(target.input_shape) + 1  # the region's affine map: all unit vectors
    accuracy, count = _accuracy(inversion), len(inversion.proofs)
    certified = f"{tight} of {count}, largest gap {gap:.1e}"
    print(f"| {target.name} | `constrained` | {evaluations} | {accuracy:.3f} | {certified} |", flush=True)
    for spread in (0.0, 0.2, 1.0):
        gray = {"pixels.per_class": PER_CLASS, "pixels.spread": spread, "pixels.jitter": 0.0}
        steps = math.ceil(evaluations / PIXELS_COST)
        rival = interpkit.invert(target, ["pixels"], steps=steps, options=gray, losses={"tv": 0.0}, device="cpu")
        name, cost = f"`pixels`, spread {spread:g}", steps * PIXELS_COST
        print(f"| {target.name} | {name} | {cost} | {_accuracy(rival):.3f} | - |", flush=True)


def _accuracy(inversion: interpkit.Inversion) -> float:
    return float(interpkit.evaluate(inversion)["inversion_accuracy"])


def vertices(count: int = 100) -> None:
    """Print the largest difference between bounds and the largest margins at vertices, over random networks."""
    worst = 0.0
    for seed in range(count):
        torch.manual_seed(seed)
        target = interpkit.wrap(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)), (2,))
        with target.frozen(), torch.no_grad():
            region = Region.around(Chain(target), torch.rand(2, dtype=torch.float64))
        sides = np.concatenate([region.sides.toarray(), np.eye(2), -np.eye(2)])
        limits = np.concatenate([region.limits, [1, 1, 0, 0]])
        pairs = [list(pair) for pair in itertools.combinations(range(len(limits)), 2)]
        crossing = [np.linalg.solve(sides[pair], limits[pair]) for pair in pairs if _crosses(sides[pair])]
        corners = [x for x in crossing if (sides @ x <= limits + 1e-9).all()]
        for label in (0, 1):
            slope = region.logits[label] - region.logits[1 - label]
            best = max(slope @ x for x in corners) + region.offset[label] - region.offset[1 - label]
            bound = largest_margin(region, label, 10.0).bound
            worst = max(worst, abs(bound - best)) if bound is not None else math.inf
    print(f"\n{2 * count} certificates of 2-4-2 networks: at most {worst:.1e} from the best vertex")


def _crosses(rows: np.ndarray) -> bool:
    return bool(abs(np.linalg.det(rows)) > 1e-9)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--onnx", type=Path, help="a classifier that is a chain, such as a multilayer perceptron")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| classifier | method | evaluations per image | inversion accuracy | certified |\n" + "|---" * 5 + "|")
    compare(dead_network())
    if given.onnx is not None:
        compare(interpkit.load_target(given.onnx))
    vertices()


if __name__ == "__main__":
    main()
