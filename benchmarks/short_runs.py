"""Measures what short runs lose when the generator's batch norms are sampled with their running averages.

    python -m benchmarks.short_runs [CLASSIFIER ...]

For each classifier and length: the inversion accuracy of the last steps of the training, of samples that use the
running averages of the training, and of samples that use statistics estimated from the final weights (the default).
"""

import argparse
import copy
from pathlib import Path
from unittest import mock

from interpkit import Inversion, invert
from interpkit.evaluation.scoring import draw_samples
from interpkit.inversion import loop

MODELS = Path(__file__).parents[1] / "examples" / "models"
STEPS = (25, 100, 300)


def accuracy(inversion: Inversion) -> float:
    """Return the inversion accuracy of 100 samples per class."""
    samples = draw_samples(inversion, per_class=100)
    return (samples.predicted == samples.labels).float().mean().item()


def accuracies(model: Path, steps: int) -> tuple[float, float, float]:
    """Return the accuracy in training, with running averages, and with estimated statistics."""
    averages = {}
    estimate = loop.estimate_batch_norms

    def keep_averages(networks, *arguments):
        averages.update(copy.deepcopy(networks[1].state_dict()))
        estimate(networks, *arguments)

    with mock.patch.object(loop, "estimate_batch_norms", keep_averages):
        inversion = invert(model, presets=["vecmat"], steps=steps, device="cpu", precision="fp32")
    estimated = accuracy(inversion)
    inversion.generator.load_state_dict(averages)
    return inversion.history[-1].inversion_accuracy, accuracy(inversion), estimated


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classifiers", nargs="*", type=Path, help="Files of classifiers (default: two examples).")
    args = parser.parse_args()
    models = args.classifiers or [MODELS / "mnist_bn.safetensors", MODELS / "fashion_mnist.safetensors"]
    print("| classifier | steps | in training | running averages | estimated |\n|---|---|---|---|---|")
    for model in models:
        for steps in STEPS:
            figures = " | ".join(f"{share:.1%}" for share in accuracies(model, steps))
            print(f"| {model.stem} | {steps} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
