"""The paper's generator: up-convolutions to the size of the hot matrix, the matrix, up-convolutions to the image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

import interpkit
from interpkit import Condition, ConditionSpec, Generator, UsageError

MAX_GROWTH = 4
WIDTH, SIDE = 64, 32
"""The default width, and the side of the images that it is for."""


@dataclass(frozen=True)
class Step:
    """One transposed convolution along one axis: ``size -> (size - 1) * stride - 2 * padding + kernel``."""

    kernel: int
    stride: int
    padding: int


SAME = Step(3, 1, 1)


def plan_axis(start: int, end: int) -> tuple[list[Step], list[Step]]:
    """Return the steps that take an axis from ``start`` to exactly ``end``: small growths, then doublings.

    ``end`` is halved (rounding up) for as long as it stays at least ``start``. Unpadded stride-1 steps of at most 4
    pixels close the gap from ``start`` to that size, where they cost least; each doubling then yields 2t or 2t - 1.
    """
    sizes = [end]
    while -(-sizes[0] // 2) >= start and sizes[0] > 1:
        sizes.insert(0, -(-sizes[0] // 2))
    growths, size = [], start
    while size < sizes[0]:
        growth = min(MAX_GROWTH, sizes[0] - size)
        growths.append(Step(growth + 1, 1, 0))
        size += growth
    doublings = [Step(4, 2, 1) if after == 2 * before else Step(3, 2, 1) for before, after in pairwise(sizes)]
    return growths, doublings


def plan(start: tuple[int, int], end: tuple[int, int]) -> tuple[list[tuple[Step, Step]], list[tuple[Step, Step]]]:
    """Return the steps of both axes together; an axis that needs fewer steps waits, and doubles at the end."""
    (grow_h, double_h), (grow_w, double_w) = (plan_axis(a, b) for a, b in zip(start, end, strict=True))
    growths = list(zip_longest(grow_h, grow_w, fillvalue=SAME))
    doublings = list(zip_longest(reversed(double_h), reversed(double_w), fillvalue=SAME))[::-1]
    return growths, doublings


class UpConvGenerator(Generator):
    """The paper's generator: up-convolutions, for C x H x W images of any size, square or not.

    ::

        latent ++ Linear(vector) -> up-convolutions to g x g -> ++ maps -> up-convolutions to H x W -> sigmoid

    g is the side of the condition's maps: n for up to 16 classes. Every up-convolution is followed by batch
    norm, leaky ReLU and dropout of whole channels. Source: section 2, "The generator includes two up-sampling
    stages", and section 3, "multiple layers of transposed convolutions, batch normalization and dropout".

    Example:
        >>> import torch
        >>> from interpkit_vecmat import UpConvGenerator, VectorMatrixConditioner
        >>> conditioner = VectorMatrixConditioner(num_classes=10, input_shape=(1, 28, 28))
        >>> generator = UpConvGenerator(conditioner.spec, input_shape=(1, 28, 28))
        >>> images = generator(torch.randn(4, generator.latent_dim), conditioner.sample(4))
        >>> images.shape, bool(images.min() >= 0 and images.max() <= 1)
        (torch.Size([4, 1, 28, 28]), True)
    """

    name = "upconv"

    class Options(interpkit.Options):
        """Sizes and dropout."""

        latent: int = Field(100, ge=1, le=65536, description="length of the latent vector")
        hidden: int = Field(100, ge=1, le=65536, description="width of the linear layer that embeds the vector")
        width: int | None = Field(
            None,
            ge=1,
            le=8192,
            description="channels up to the size of the hot matrix, which each doubling halves; by default 64, twice "
            "as many from 64 pixels on, and again for each further doubling of the longer side",
        )
        min_width: int = Field(32, ge=1, le=8192, description="lower bound on the channels before the image")
        dropout: float = Field(0.2, ge=0, lt=1, description="probability that a channel is dropped after each layer")
        slope: float = Field(0.2, ge=0, lt=1, description="slope of the leaky ReLU below zero")
        upsample: Literal["transposed", "bilinear"] = Field(
            "transposed",
            description="how the size is doubled: by a transposed convolution, or by bilinear "
            "interpolation and a convolution, which makes smoother images",
        )

    options: Options

    def __init__(self, spec: ConditionSpec, input_shape: tuple[int, ...], options: Options | None = None) -> None:
        super().__init__(spec, input_shape, options)
        if len(input_shape) != 3:
            raise UsageError(
                f"the generator {self.name!r} makes images of shape (C, H, W), but the classifier's inputs are "
                f"{input_shape}. Use --conditioner vector --generator dense."
            )
        height, width = input_shape[1:]
        opt = self.options
        self.latent_dim = opt.latent
        self.grid = (max(spec.map_size, min(4, height)), max(spec.map_size, min(4, width)))
        if self.grid[0] > height or self.grid[1] > width:
            raise UsageError(
                f"the condition's maps need {spec.map_size} x {spec.map_size} pixels, but the images have {height} x "
                f"{width}. Lower the conditioner's max_side, or use the conditioner 'vector'."
            )
        self.embed = nn.Linear(spec.vector_dim, opt.hidden) if spec.vector_dim else None

        first = (min(4, self.grid[0]), min(4, self.grid[1]))
        growths, doublings = plan(first, self.grid)
        wide = self.width = opt.width or WIDTH << max(0, int(math.log2(max(height, width) / SIDE)))
        seed = opt.latent + (opt.hidden if self.embed else 0)
        to_grid = [self._block(seed, wide, (Step(first[0], 1, 0), Step(first[1], 1, 0)))]
        to_grid += [self._block(wide, wide, step) for step in growths + doublings]
        self.to_grid = nn.Sequential(*to_grid)

        self._build_to_image(wide + spec.map_channels)

    def _build_to_image(self, width_in: int) -> None:
        """Build the layers from the grid, with so many channels there, to the image."""
        channels, height, width = self.input_shape
        blocks, widths = self._blocks(width_in, (height, width))
        self.to_image = nn.Sequential(*blocks, nn.Conv2d(widths[-1], channels, 3, padding=1), nn.Sigmoid())

    def _blocks(self, width_in: int, size: tuple[int, int]) -> tuple[list[nn.Module], list[int]]:
        """Return the blocks from the grid to a size, at least one, and the channels of each."""
        growths, doublings = plan(self.grid, size)
        growths = growths or ([] if doublings else [(SAME, SAME)])
        widths = [self.width] * len(growths)
        for _ in doublings:
            wide = widths[-1] if widths else self.width
            widths.append(max(min(self.options.min_width, wide), wide // 2))
        before = [width_in, *widths]
        return [self._block(*three) for three in zip(before, widths, growths + doublings, strict=False)], widths

    def start_at(self, level: float) -> None:
        """Set the bias of the last layer; see `Generator.start_at`."""
        last = self.to_image[-2]
        assert isinstance(last, nn.Conv2d) and last.bias is not None
        nn.init.constant_(last.bias, math.log(level / (1 - level)))

    def _block(self, before: int, after: int, step: tuple[Step, Step]) -> nn.Module:
        rows, columns = step
        stride = (rows.stride, columns.stride)
        grow: list[nn.Module]
        if self.options.upsample == "bilinear" and max(stride) == 2:
            # A padded 3x3 convolution of the doubled image yields 2t pixels; an unpadded 2x2 one yields 2t - 1.
            sizes = [(2, 0) if axis.stride == 2 and axis.kernel == 3 else (3, 1) for axis in step]
            (height, down), (width, across) = sizes
            smooth = nn.Conv2d(before, after, (height, width), padding=(down, across), bias=False)
            grow = [nn.Upsample(scale_factor=stride, mode="bilinear"), smooth]
        else:
            padding = (rows.padding, columns.padding)
            kernel = (rows.kernel, columns.kernel)
            grow = [nn.ConvTranspose2d(before, after, kernel, stride, padding, bias=False)]  # batch norm adds one
        rest = (nn.BatchNorm2d(after), nn.LeakyReLU(self.options.slope), nn.Dropout2d(self.options.dropout))
        return nn.Sequential(*grow, *rest)

    def forward(self, latent: Tensor, condition: Condition) -> Tensor:
        """Return images; see `Generator.forward`."""
        images: Tensor = self.to_image(self._at_grid(latent, condition))
        return images

    def _at_grid(self, latent: Tensor, condition: Condition) -> Tensor:
        """Return the features at the grid and the condition's maps, (B, channels, *grid)."""
        x = latent if self.embed is None else torch.cat([latent, self.embed(condition.vector)], 1)
        x = self.to_grid(x[:, :, None, None])
        return torch.cat([x, condition.maps(*self.grid).to(x.dtype)], 1)
