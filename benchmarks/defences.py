"""What a classifier gives away after six ways of training it, and what they cost in accuracy.

    python -m benchmarks.defences --data mnist.npz [--defenses plain,dropout] [--inverters training-like] [--write]

Trains one small CNN on 6,000 images, planted canaries among them: plainly, with label smoothing, on the hardest images
in an L2 ball, on noisy images (as for randomized smoothing), with dropout, and with differential privacy (the extra
``dp``). Each is inverted by ``training-like``, which has no images, and by ``alignment`` and ``prior``, which have the
6,000 others. What docs/defences.json has already is not repeated; an inversion resumes from its last checkpoint.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from interpkit_robust import perturbations
from interpkit_targets.architectures import SmallCNN, need
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import interpkit
from benchmarks import harness
from benchmarks.evaluators import EVALUATORS, FIRST, evaluator
from benchmarks.memory import Split
from examples.train_classifier import accuracy, fit, load_data

KEPT = harness.ROOT / "docs" / "defences.json"
CANARIES, REPEATED = 5, 20
"""How many canaries a class has, and how many copies of each are trained on."""
MIDDLE = 0.5
"""Mean and deviation of the normalization. Those of the training images would not be covered by epsilon."""
DELTA, CLIP = 1e-5, 1.0
"""Of differential privacy: its delta, and the L2 norm to which the gradient of an image is clipped."""


@dataclass(frozen=True)
class Defense:
    """One way of training; 0 leaves a part out.

    Attributes:
        label_smoothing: share of a label that is spread over all classes.
        radius: radius of the L2 ball in which the hardest image is searched for.
        noise: standard deviation of the noise on pixels in [0, 1].
        dropout: probability of dropping a channel; of the hidden layer's units, twice that.
        epsilon: the privacy budget.
    """

    label_smoothing: float = 0.0
    radius: float = 0.0
    noise: float = 0.0
    dropout: float = 0.0
    epsilon: float = 0.0


DEFENSES = {
    "plain": Defense(),
    "label-smoothing": Defense(label_smoothing=0.1),
    "adversarial": Defense(radius=1.5),
    "noise": Defense(noise=0.5),
    "dropout": Defense(dropout=0.25),
    "private": Defense(epsilon=8.0),
}


def inverters(public: Path = Path(), steps: int = 1) -> dict[str, dict[str, Any]]:
    """Return the arguments of `interpkit.invert` by inverter; ``public`` is the file of the outsider's images."""
    plain = {"presets": ["vecmat", "training-like"], "steps": steps}
    return {
        "training-like": plain,
        "alignment": {"inverter": "alignment", "options": {"inverter.data": str(public)}},  # as many steps as it has
        "prior": {**plain, "losses": {"prior": 1.0}, "options": {"prior.data": str(public)}},
    }


def split_of(data: Path) -> Split:
    """Return the first 6,000 training images with canaries planted; canaries and decoys are from the test split."""
    x_train, y_train, x_test, y_test = load_data(str(data), "")
    rows = [(y_test == label).nonzero()[-CANARIES:, 0] for label in range(int(y_test.max()) + 1)]
    canaries = torch.cat(rows)
    others = torch.ones(len(y_test), dtype=torch.bool).index_fill(0, canaries, False)
    unseen = (x_test[others], y_test[others])
    split = Split((x_train[:FIRST], y_train[:FIRST]), unseen, (x_test[canaries], y_test[canaries]), unseen)
    return split.planted(REPEATED)


def normalized(images: Tensor) -> Tensor:
    """Return images in [0, 1] as the classifiers take them."""
    return (images - MIDDLE) / MIDDLE


def loss_of(defense: Defense, model: nn.Module, shape: Sequence[int]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss that a defense trains with, of normalized images and labels."""
    target = interpkit.wrap(model, shape, mean=MIDDLE, std=MIDDLE, output="logits")
    rng = torch.Generator().manual_seed(0)

    def loss(x: Tensor, labels: Tensor) -> Tensor:
        if defense.radius:
            images = (MIDDLE + MIDDLE * x).clamp(0, 1)
            x = normalized(perturbations.pgd(target, images, labels, defense.radius, "l2", 3, rng))
        if defense.noise:
            x = x + defense.noise / MIDDLE * torch.randn_like(x)
        return F.cross_entropy(model(x), labels, label_smoothing=defense.label_smoothing)

    return loss


def fit_privately(model: nn.Module, x: Tensor, y: Tensor, *, epochs: int, epsilon: float) -> float:
    """Train by DP-SGD (Abadi et al. 2016) with Adam and batches of 250; return epsilon as its accountant states it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that its noise is not from a secure generator, and torch's about its hooks
        engine = need("opacus", "dp").PrivacyEngine()
        private, optimizer, loader = engine.make_private_with_epsilon(
            module=model.train(),
            optimizer=torch.optim.Adam(model.parameters(), 2e-3),
            data_loader=DataLoader(TensorDataset(x, y), 250),
            target_epsilon=epsilon,
            target_delta=DELTA,
            epochs=epochs,
            max_grad_norm=CLIP,
        )
        for _ in range(epochs):
            for images, labels in loader:
                optimizer.zero_grad()
                F.cross_entropy(private(images), labels).backward()
                optimizer.step()
        spent: float = engine.get_epsilon(DELTA)
    private.remove_hooks()
    model.eval()
    return spent


def train(defense: Defense, split: Split, epochs: int, path: Path) -> dict[str, float]:
    """Train a classifier and save it; return its accuracy on unseen images and on the canaries, and its epsilon."""
    torch.manual_seed(0)
    x, y = split.training
    shape = list(x.shape[1:])
    arguments = {"input_shape": shape, "num_classes": int(y.max()) + 1, "widths": [16, 32], "dropout": defense.dropout}
    arguments["group_norm"] = True  # batch norm would mix the images whose gradients are clipped one by one
    model = SmallCNN(**arguments)
    found: dict[str, float] = {}
    if defense.epsilon:
        found["epsilon"] = fit_privately(model, normalized(x), y, epochs=epochs, epsilon=defense.epsilon)
    else:
        fit(model, normalized(x), y, epochs=epochs, jittered=False, loss=loss_of(defense, model, shape))
    for name, (images, labels) in {"accuracy": split.held_out, "accuracy on canaries": split.canaries}.items():
        found[name] = accuracy(model, normalized(images), labels)
    facts = {"input_shape": shape, "mean": MIDDLE, "std": MIDDLE}
    interpkit.save_target(model, path, architecture="interpkit:cnn", arch_args=arguments, **facts)
    return found


def measure(defense: str, how: Mapping[str, Any], args: argparse.Namespace, run: str) -> dict[str, float]:
    """Train a classifier, if it is not in the folder yet, invert it and return what the samples give away."""
    split, model = split_of(args.data), args.work / f"{defense}.safetensors"
    settings = {"data": args.data.name, "epochs": args.epochs}
    training = partial(train, DEFENSES[defense], split, args.epochs, model)
    costs = harness.measured_once(args.work / "classifiers.json", defense, settings, training)
    inversion = interpkit.invert(model, seed=0, device="cpu", out=args.work / run, resume=True, **how)
    metrics = interpkit.evaluate(
        inversion,
        evaluators=[evaluator(args.data.stem, name, args.data.parent, args.work) for name in EVALUATORS],
        reference=split.held_out,
        training=split.training,
        canaries=split.canaries,
        metrics=["agreement", "reference", "student", "memorisation", "canaries"],
        options={"student.steps": args.steps},
    )
    canaries = metrics["canaries"]
    return harness.figures(metrics) | {
        **{name: costs[name] for name in ("accuracy", "accuracy on canaries", "epsilon") if name in costs},
        "student": metrics["student"]["labels"]["accuracy"],
        "canary rank": canaries["mean_rank"],
        "canary rank by chance": canaries["chance"],
        "canaries, p": canaries["p_value"],
    }


def study(args: argparse.Namespace, kept: Path = KEPT) -> dict[str, Any]:
    """Measure what is not in the file of figures yet, and return all of it by the name of the cell."""
    args.work.mkdir(parents=True, exist_ok=True)
    public = args.work / "public.npz"
    with np.load(args.data) as arrays:
        np.savez(public, images=arrays["x_train"][FIRST:], labels=arrays["y_train"][FIRST:])
    ways = inverters(public, args.steps)
    settings = {"data": args.data.name, "epochs": args.epochs, "steps": args.steps}
    for inverter in args.inverters:
        for defense in args.defenses:
            cell = f"{defense}, {inverter}"
            harness.measured_once(kept, cell, settings, partial(measure, defense, ways[inverter], args, cell))
    return harness.figures_of(kept)


def shown(figures: Mapping[str, Any]) -> str:
    """Return a Markdown table for each inverter, with a row for each defense."""
    text = ""
    for inverter in inverters():
        cells = {name: figures.get(f"{name}, {inverter}", {}).get("figures") for name in DEFENSES}
        rows = {name: _row(found) for name, found in cells.items() if found}
        if rows:
            text += f"Inverted by `{inverter}`:\n\n{harness.table(rows, 'trained')}\n"
    return text


def _row(found: Mapping[str, float]) -> dict[str, str]:
    row = {name: f"{found[name]:.3f}" for name in ("accuracy", "student", "agreement", "SSIM", "nearer to training")}
    ranks = f"{found['canary rank']:.0f} ({found['canary rank by chance']:.0f})"
    return row | {"canary rank (by chance)": ranks, "p": f"{found['canaries, p']:.2f}"}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""

    def names(text: str) -> list[str]:
        return text.split(",")

    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, required=True, help="The .npz file of the images.")
    made.add_argument("--work", type=Path, default=Path("runs/defences"), help="Folder of classifiers and runs.")
    made.add_argument("--defenses", type=names, default=list(DEFENSES), help="Separated by commas.")
    made.add_argument("--inverters", type=names, default=list(inverters()), help="Separated by commas.")
    made.add_argument("--epochs", type=int, default=8, help="Epochs of a training (default: 8).")
    made.add_argument("--steps", type=int, default=300, help="Steps of an inversion and of a student (default: 300).")
    made.add_argument("--write", action="store_true", help="Write the table into docs/results/defenses.md.")
    return made


def main() -> None:
    """Measure what is missing, and print the table."""
    args = parser().parse_args()
    text = shown(study(args))
    print(text)
    if args.write:
        harness.write_section("defenses.md", "defences", f"\n{text}")


if __name__ == "__main__":
    main()
