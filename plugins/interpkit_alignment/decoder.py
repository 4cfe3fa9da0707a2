"""A generator that decodes the vector of a condition into a picture."""

from __future__ import annotations

import math

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

import interpkit
from interpkit import Condition, ConditionSpec, Generator, UsageError

DENSE = 4096
"""The most values that the linear layers produce; convolutions enlarge these to larger images, doubling the sides."""


class Decoder(Generator):
    """Decodes the vector of a condition by two hidden layers, followed by convolutions that enlarge large pictures.

    The latent is noise on the vector, with the standard deviation ``jitter``. It smooths the decoder in training and
    varies its samples. With a latent of zeros, the vector itself is decoded.

    Source: after Yang et al. (2019), whose decoder has transposed convolutions from 1 x 1 to 64 x 64. Here, a
    linear layer produces pictures of up to 4,096 values directly, which costs less.

    Example:
        >>> import torch
        >>> from interpkit_alignment import Decoder, PredictionConditioner
        >>> conditioner = PredictionConditioner(10, input_shape=(1, 28, 28))
        >>> decoder = Decoder(conditioner.spec, input_shape=(1, 28, 28))
        >>> decoder(torch.zeros(4, decoder.latent_dim), conditioner.sample(4)).shape
        torch.Size([4, 1, 28, 28])
    """

    name = "decoder"

    class Options(interpkit.Options):
        """Sizes, and the noise."""

        hidden: int = Field(512, ge=1, le=65536, description="width of the two hidden layers")
        width: int = Field(32, ge=1, le=8192, description="channels of the convolutions, for large images")
        jitter: float = Field(0.1, ge=0, le=10, description="deviation of the noise on the vector")

    options: Options

    def __init__(self, spec: ConditionSpec, input_shape: tuple[int, ...], options: Options | None = None) -> None:
        super().__init__(spec, input_shape, options)
        if not spec.vector_dim:
            raise UsageError("the generator 'decoder' decodes a vector, and this conditioner has none. Use another.")
        self.latent_dim = spec.vector_dim
        hidden, width = self.options.hidden, self.options.width
        self.sizes = [input_shape]
        while math.prod(self.sizes[0]) > DENSE and len(input_shape) == 3 and max(self.sizes[0][1:]) > 4:
            self.sizes.insert(0, (width, *(-(-side // 2) for side in self.sizes[0][1:])))
        layers: list[nn.Module] = []
        for before in (spec.vector_dim, hidden):
            layers += [nn.Linear(before, hidden, bias=False), nn.BatchNorm1d(hidden), nn.LeakyReLU(0.2)]
        self.dense = nn.Sequential(*layers, nn.Linear(hidden, math.prod(self.sizes[0])))
        self.doublings = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(width), nn.LeakyReLU(0.2), nn.Conv2d(width, after[0], 3, padding=1))
            for after in self.sizes[1:]
        )

    def forward(self, latent: Tensor, condition: Condition) -> Tensor:
        """Return images; see `Generator.forward`."""
        values: Tensor = self.dense(condition.vector + self.options.jitter * latent)
        values = values.view(-1, *self.sizes[0])
        for size, block in zip(self.sizes[1:], self.doublings, strict=True):
            values = block(F.interpolate(values, size[1:], mode="nearest"))
        return values.sigmoid()
