"""A fully connected generator, for classifiers of tabular data and for small images."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn

import interpkit
from interpkit import Condition, ConditionSpec, Generator


class DenseGenerator(Generator):
    """A fully connected generator, for classifiers of vectors: latent ++ Linear(vector) ++ maps -> layers -> sigmoid.

    Every hidden layer is followed by batch norm, leaky ReLU and dropout, as in the paper's generator. It generates
    small images as well.

    Example:
        >>> import torch
        >>> from interpkit_vecmat import DenseGenerator, VectorConditioner
        >>> conditioner = VectorConditioner(num_classes=3, input_shape=(12,))
        >>> generator = DenseGenerator(conditioner.spec, input_shape=(12,))
        >>> generator(torch.randn(64, generator.latent_dim), conditioner.sample(64)).shape
        torch.Size([64, 12])
    """

    name = "dense"

    class Options(interpkit.Options):
        """Sizes and dropout."""

        latent: int = Field(32, ge=1, le=65536, description="length of the latent vector")
        hidden: int = Field(32, ge=1, le=65536, description="width of the linear layer that embeds the vector")
        widths: list[int] = Field([256, 256], min_length=1, description="widths of the hidden layers")
        dropout: float = Field(0.2, ge=0, lt=1, description="probability that a unit is dropped after each layer")
        slope: float = Field(0.2, ge=0, lt=1, description="slope of the leaky ReLU below zero")

    options: Options

    def __init__(self, spec: ConditionSpec, input_shape: tuple[int, ...], options: Options | None = None) -> None:
        super().__init__(spec, input_shape, options)
        opt = self.options
        self.latent_dim = opt.latent
        self.embed = nn.Linear(spec.vector_dim, opt.hidden) if spec.vector_dim else None
        before = opt.latent + (opt.hidden if self.embed else 0) + spec.map_channels * spec.map_size**2
        layers: list[nn.Module] = []
        for after in opt.widths:
            layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after)]
            layers += [nn.LeakyReLU(opt.slope), nn.Dropout(opt.dropout)]
            before = after
        self.layers = nn.Sequential(*layers, nn.Linear(before, math.prod(input_shape)), nn.Sigmoid())

    def start_at(self, level: float) -> None:
        """Set the bias of the last layer; see `Generator.start_at`."""
        last = self.layers[-2]
        assert isinstance(last, nn.Linear)
        nn.init.constant_(last.bias, math.log(level / (1 - level)))

    def forward(self, latent: Tensor, condition: Condition) -> Tensor:
        """Return vectors; see `Generator.forward`."""
        side = self.spec.map_size
        parts = [latent, condition.maps(side, side).flatten(1).to(latent.dtype)]
        if self.embed is not None:
            parts.append(self.embed(condition.vector))
        values: Tensor = self.layers(torch.cat(parts, 1))
        return values.view(-1, *self.input_shape)
