"""Architectures that a classifier's file may name: interpkit's small reference CNNs and torchvision's models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pydantic
import torchvision
from torch import nn

import interpkit
from interpkit import Architectures, ModelError


class SmallCNN(nn.Sequential):
    """The reference classifier: convolutions, leaky ReLU, pooling and dropout, as in the paper.

    For each width: 3x3 convolution, (batch norm,) leaky ReLU, twice; 2x2 max pooling; dropout of channels. Then a
    hidden linear layer, leaky ReLU, dropout, and the linear head. Each pooling halves the sides, rounding down.
    """

    class Options(interpkit.Options):
        """The arguments, as they stand in a file."""

        input_shape: tuple[int, int, int] = (1, 28, 28)
        num_classes: int = pydantic.Field(10, ge=2, le=100_000)
        widths: list[int] = pydantic.Field([32, 64], min_length=1, max_length=8)
        hidden: int = pydantic.Field(96, ge=1, le=65_536)
        dropout: float = pydantic.Field(0.25, ge=0, lt=1)
        batch_norm: bool = False

    def __init__(self, **arguments: Any) -> None:
        opt = self.Options(**arguments)
        channels, height, width = opt.input_shape
        layers: list[nn.Module] = []
        for after in opt.widths:
            for before in (channels, after):
                layers.append(nn.Conv2d(before, after, 3, padding=1, bias=not opt.batch_norm))
                if opt.batch_norm:
                    layers.append(nn.BatchNorm2d(after))
                layers.append(nn.LeakyReLU(0.1))
            layers += [nn.MaxPool2d(2), nn.Dropout2d(opt.dropout)]
            channels, height, width = after, height // 2, width // 2
        layers += [nn.Flatten(), nn.Linear(channels * height * width, opt.hidden), nn.LeakyReLU(0.1)]
        layers += [
            nn.Dropout(2 * opt.dropout if opt.dropout < 0.5 else opt.dropout),
            nn.Linear(opt.hidden, opt.num_classes),
        ]
        super().__init__(*layers)


class ReferenceNets(Architectures):
    """interpkit's own: ``interpkit:cnn``."""

    name = "interpkit"
    help = "interpkit's small reference networks"

    def names(self) -> Sequence[str]:
        """Return the names."""
        return ["cnn"]

    def build(self, name: str, arguments: Mapping[str, Any]) -> nn.Module:
        """Build a `SmallCNN`; its Options say which arguments there are."""
        return SmallCNN(**arguments)


class TorchvisionModels(Architectures):
    """torchvision's classifiers, by the names of `torchvision.models.list_models`."""

    name = "torchvision"
    help = "torchvision's image classifiers, by name"
    _DOWNLOADS = ("weights", "weights_backbone", "progress")

    def names(self) -> Sequence[str]:
        """Return the names of the image classifiers."""
        return list(torchvision.models.list_models(module=torchvision.models))

    def build(self, name: str, arguments: Mapping[str, Any]) -> nn.Module:
        """Build the model with fresh weights; an argument that would download some is refused."""
        refused = sorted(set(arguments) & set(self._DOWNLOADS))
        if refused:
            raise ModelError(f"torchvision:{name}: the argument {refused[0]!r} is not taken from a file.")
        module: nn.Module = torchvision.models.get_model(name, weights=None, **arguments)
        return module
