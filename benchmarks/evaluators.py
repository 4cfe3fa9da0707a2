"""Evaluators: independent classifiers of the samples, trained on images that the target never saw.

    python -m benchmarks.evaluators mnist --data DIR --models DIR

Targets are trained on the first 6,000 training images and evaluators on the rest. The SVHN set is too small for that
and its target came trained, so its evaluators train on all images. The benchmarks use three dissimilar architectures;
the recipes were developed with a fourth, ``tuning``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

import interpkit
from examples.train_classifier import MIRRORED, accuracy, fit, load_data

FIRST = 6000
"""How many training images the targets use."""
EVALUATORS = ("resnet", "vgg", "mixer")
TUNING = "tuning"


class Residual(nn.Module):
    """A residual block x + f(x), with a projection of x where the width or the size changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.skip = nn.Conv2d(before, after, 1, stride) if (before, stride) != (after, 1) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        return torch.relu(self.body(x) + self.skip(x))


class Mix(nn.Module):
    """A ConvNeXt block: x plus a depthwise 7x7 convolution, layer norm, and 1x1 convolutions up and down."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 7, padding=3, groups=width),
            nn.GroupNorm(1, width),
            nn.Conv2d(width, 3 * width, 1),
            nn.GELU(),
            nn.Conv2d(3 * width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        output: Tensor = x + self.body(x)
        return output


def build(name: str, channels: int, classes: int = 10) -> nn.Sequential:
    """Build an evaluator's network; the last layer is linear."""
    if name == "resnet":  # residual, batch norm, global pooling
        return nn.Sequential(
            nn.Conv2d(channels, 24, 3, 1, 1, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            Residual(24, 24, 1),
            Residual(24, 48, 2),
            Residual(48, 96, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(96, classes),
        )
    if name == "vgg":  # 5x5 convolutions, no normalization, a wide hidden layer
        return nn.Sequential(
            nn.Conv2d(channels, 32, 5, padding=2),
            nn.ELU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2),
            nn.ELU(),
            nn.MaxPool2d(2),
            nn.Dropout(0.25),
            nn.Conv2d(64, 96, 3, padding=1),
            nn.ELU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(96 * 16, 128),
            nn.ELU(),
            nn.Linear(128, classes),
        )
    if name == "mixer":  # patches, large depthwise kernels, layer norm, GELU
        return nn.Sequential(
            nn.Conv2d(channels, 64, 3, 2, 1),
            Mix(64),
            nn.Conv2d(64, 96, 2, 2),
            Mix(96),
            Mix(96),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.LayerNorm(96),
            nn.Linear(96, classes),
        )
    assert name == TUNING, name
    return nn.Sequential(  # strided convolutions, batch norm, SiLU
        nn.Conv2d(channels, 32, 3, 1, 1),
        nn.BatchNorm2d(32),
        nn.SiLU(),
        nn.Conv2d(32, 48, 4, 2, 1),
        nn.BatchNorm2d(48),
        nn.SiLU(),
        nn.Conv2d(48, 80, 4, 2, 1),
        nn.BatchNorm2d(80),
        nn.SiLU(),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.LazyLinear(64),
        nn.SiLU(),
        nn.Linear(64, classes),
    )


def held_out(dataset: str, data: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the evaluators' training images and labels, and those of the test split."""
    x_train, y_train, x_test, y_test = load_data(str(data / f"{dataset}.npz"), "data")
    first = 0 if dataset == "svhn" else FIRST
    return x_train[first:], y_train[first:], x_test, y_test


def evaluator(dataset: str, name: str, data: Path, models: Path) -> interpkit.Target:
    """Return an evaluator as a target; train it first if ``models`` does not have it."""
    path = models / f"evaluator_{dataset}_{name}.safetensors"
    x_train, y_train, x_test, y_test = held_out(dataset, data)
    mean, std = x_train.mean((0, 2, 3)), x_train.std((0, 2, 3))
    shape = tuple(x_train.shape[1:])
    torch.manual_seed(sum(map(ord, name)))
    network = build(name, shape[0])
    network(torch.zeros(2, *shape))  # initializes the lazy layers
    if not path.exists():
        scaled = [(x - mean[:, None, None]) / std[:, None, None] for x in (x_train, x_test)]
        epochs = {"svhn": 60, "cifar10": 24}.get(dataset, 14)
        network.to(memory_format=torch.channels_last)
        fit(network, scaled[0], y_train, epochs=epochs, mirrored=dataset in MIRRORED)
        print(f"{path.name}: {accuracy(network, scaled[1], y_test):.4f} on {len(y_test)} test images", flush=True)
        models.mkdir(parents=True, exist_ok=True)
        state = {key: value.contiguous() for key, value in network.state_dict().items()}
        safetensors.torch.save_file(state, path)
    network.load_state_dict(safetensors.torch.load_file(path))
    network.eval()
    return interpkit.wrap(network, input_shape=shape, mean=mean.tolist(), std=std.tolist(), name=name)


def main() -> None:
    """Train the evaluators of the data sets named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", choices=["mnist", "fashion_mnist", "svhn", "cifar10"])
    parser.add_argument("--data", type=Path, required=True, help="Folder of the .npz files.")
    parser.add_argument("--models", type=Path, required=True, help="Folder in which the evaluators are stored.")
    args = parser.parse_args()
    for dataset in args.datasets:
        for name in (TUNING, *EVALUATORS):
            evaluator(dataset, name, args.data, args.models)


if __name__ == "__main__":
    main()
