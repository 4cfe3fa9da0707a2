"""Measures whether evaluators see the new class in counterfactuals: ``python -m benchmarks.counterfactuals RUN``.

    interpkit invert examples/models/mnist_bn.safetensors --preset vecmat --preset training-like --out runs/mnist
    python -m benchmarks.counterfactuals runs/mnist --data DIR --models DIR

Each test image is changed to the target's second answer, along the run's generator and by free pixels. The table has
the share of images where that succeeds, the mean distance, and the mean share of them that three evaluators, which
never saw the target's training images, assign to the new class (see ``benchmarks.evaluators``).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.evaluators import EVALUATORS, evaluator, held_out
from interpkit import Nearest, load_inversion, nearest, nearest_along


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="Run folder of a trained generator.")
    parser.add_argument("--dataset", default="mnist", help="Name of the data set (default: mnist).")
    parser.add_argument("--data", type=Path, required=True, help="Folder with DATASET.npz.")
    parser.add_argument("--models", type=Path, required=True, help="Folder of the evaluators.")
    parser.add_argument("--images", type=int, default=50, help="How many images (default: 50).")
    parser.add_argument("--steps", type=int, default=100, help="Steps along the generator (default: 100).")
    args = parser.parse_args()
    inversion = load_inversion(args.run)
    images = held_out(args.dataset, args.data)[2][: args.images]
    evaluators = [evaluator(args.dataset, name, args.data, args.models) for name in EVALUATORS]

    def agreement(result: Nearest) -> float:
        with torch.no_grad():
            answers = [each(result.images[result.found]).argmax(1) for each in evaluators]
        return (torch.stack(answers) == result.answers[result.found]).double().mean().item()

    print("| counterfactual | found | distance | evaluators agree |\n|---|---|---|---|")
    along = nearest_along(inversion, images, steps=args.steps, device="cpu")
    free = nearest(inversion.target, images, along.answers.where(along.found, along.before), device="cpu")
    for name, result in {"along the generator": along, "free pixels": free}.items():
        found, distance = result.found.double().mean(), result.distances[result.found].mean()
        print(f"| {name} | {found:.2f} | {distance:.2f} | {agreement(result):.3f} |", flush=True)


if __name__ == "__main__":
    main()
