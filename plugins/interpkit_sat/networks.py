"""Binarised networks: inputs and units of {0, 1}, weights of -1 and +1, and batch norm that is a threshold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import interpkit
from interpkit import Architectures

Width = Annotated[int, pydantic.Field(ge=1, le=65_536)]


class _Step(torch.autograd.Function):
    """1 where x >= 0, else 0; its gradient is that of the identity where abs(x) <= 1 (straight through)."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return (x >= 0).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        passed: Tensor = gradient * (x.abs() <= 1)
        return passed


def step(x: Tensor) -> Tensor:
    """Return 1 where x >= 0, else 0, with a straight-through gradient."""
    stepped: Tensor = _Step.apply(x)
    return stepped


class Binarize(nn.Module):
    """Images -> 1 where a value is at least the threshold, else 0."""

    def __init__(self, threshold: float = 0.5) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, images: Tensor) -> Tensor:
        """Return the bits, in the shape of the images."""
        return step(images - self.threshold)


class Signs(nn.Module):
    """Base of the layers whose weights are -1 and +1; each unit sees ``fan_in`` of the inputs, chosen at random.

    The signs are those of real numbers, the weights, which training moves; their gradient is straight through.

    Attributes:
        weight: (units, fan_in).
        index: (units, fan_in), which input each weight belongs to.
    """

    index: Tensor

    def __init__(self, inputs: int, units: int, fan_in: int = 0) -> None:
        super().__init__()
        fan_in = min(fan_in, inputs) or inputs
        self.inputs = inputs
        self.weight = nn.Parameter(0.1 * torch.randn(units, fan_in))
        self.register_buffer("index", torch.rand(units, inputs).argsort(1)[:, :fan_in].sort(1).values)

    def signs(self) -> Tensor:
        """Return -1 and +1, (units, fan_in)."""
        return 2 * step(self.weight) - 1

    def matrix(self) -> Tensor:
        """Return the signs as a matrix, (units, inputs), 0 where a unit does not see an input."""
        zeros = self.weight.new_zeros(len(self.weight), self.inputs)
        return zeros.scatter(1, self.index, self.signs())


class SignLinear(Signs):
    """A linear layer without bias, of flattened inputs."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the sums, (B, units), which are whole numbers if the inputs are."""
        return F.linear(x.flatten(1), self.matrix())


class SignConv(Signs):
    """A convolution without bias or padding, whose weights are shared by all places."""

    def __init__(self, channels: int, units: int, kernel: int, stride: int, fan_in: int = 0) -> None:
        super().__init__(channels * kernel**2, units, fan_in)
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """Return the sums, (B, units, H', W')."""
        return F.conv2d(x, self.matrix().view(len(self.weight), -1, self.kernel, self.kernel), stride=self.stride)


class Threshold(nn.Module):
    """Batch norm and a step, which in evaluation are one threshold per channel: 1 where the sum reaches it, else 0.

    Batch norm without a scale, because a step does not depend on it. The norm's mean m and variance v, and the bias b,
    make the threshold the whole number ceil(m - b sqrt(v + eps)): sums are whole numbers, so rounding is exact.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels, affine=False)
        self.bias = nn.Parameter(torch.zeros(channels))

    def threshold(self) -> Tensor:
        """Return the thresholds, (channels,), whole numbers."""
        return self._real().detach().ceil().to(self.bias)

    def _real(self) -> Tensor:
        mean, var = self.norm.running_mean, self.norm.running_var
        assert mean is not None and var is not None
        place = "cpu" if mean.device.type == "mps" else mean.device  # which has no float64
        mean, bias, var = (each.to(place).double() for each in (mean, self.bias, var))
        return mean - bias * (var + self.norm.eps).sqrt()

    def forward(self, sums: Tensor) -> Tensor:
        """Return 0 and 1, in the shape of the sums, (B, channels, ...)."""
        if self.training:
            normed = self.norm(sums.flatten(2) if sums.dim() > 2 else sums).view_as(sums)
            return step(normed + self._along(self.bias, sums))
        assert self.norm.running_var is not None
        spread = (self.norm.running_var + self.norm.eps).sqrt()
        # Half a unit lies between the threshold and the sums on either side, so no rounding can cross it.
        above = sums - self._along(self.threshold(), sums) + 0.5
        return step(above / self._along(spread, sums))

    @staticmethod
    def _along(values: Tensor, sums: Tensor) -> Tensor:
        return values.view(1, -1, *(1,) * (sums.dim() - 2))


class Votes(SignLinear):
    """The last layer: each unit votes for or against each class; the logits are the votes times a power of 2."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__(inputs, classes)
        self.scale = 2.0 ** -max(0, round(math.log2(inputs) / 2 - 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (B, classes)."""
        return self.scale * super().forward(x)


class BinaryNet(nn.Sequential):
    """A binarised classifier: a threshold of the input; convolutions and linear layers of signs, each with a threshold.

    In training mode the thresholds are batch norms; in evaluation everything after the first step is integer
    arithmetic. Source: Hubara et al., "Binarized Neural Networks" (2016), with units of {0, 1} and sparse layers as in
    Narodytska et al., "In Search for a SAT-friendly Binarized Neural Network Architecture" (2020).
    """

    class Options(interpkit.Options):
        """The arguments, as they stand in a file."""

        input_shape: tuple[int, ...] = pydantic.Field((1, 28, 28), min_length=1, max_length=3)
        num_classes: int = pydantic.Field(10, ge=2, le=100_000)
        channels: list[Width] = pydantic.Field([], max_length=8, description="units of each convolution")
        kernel: int = pydantic.Field(5, ge=1, le=64, description="sides of their kernels")
        stride: int = pydantic.Field(2, ge=1, le=64, description="their strides")
        hidden: list[Width] = pydantic.Field([200], max_length=8, description="units of each linear layer but the last")
        fan_in: int = pydantic.Field(32, ge=0, le=65_536, description="inputs that each unit sees; 0 = all")
        threshold: float = pydantic.Field(0.5, gt=0, le=1, description="of the input's values")

    def __init__(self, **arguments: Any) -> None:
        opt = self.Options(**arguments)
        shape = opt.input_shape
        if len(shape) not in (1, 3) or (opt.channels and len(shape) != 3):
            raise ValueError("input_shape is (C, H, W), or (D,) for vectors, which have no convolutions")
        layers: list[nn.Module] = [Binarize(opt.threshold)]
        for units in opt.channels:
            layers += [SignConv(shape[0], units, opt.kernel, opt.stride, opt.fan_in), Threshold(units)]
            shape = (units, *((side - opt.kernel) // opt.stride + 1 for side in shape[1:]))
            if min(shape) < 1:
                raise ValueError(
                    f"convolution {len(layers) // 2} of {len(opt.channels)} has no place left in the image"
                )
        features = math.prod(shape)
        for units in opt.hidden:
            layers += [SignLinear(features, units, opt.fan_in), Threshold(units)]
            features = units
        super().__init__(*layers, Votes(features, opt.num_classes))


class BinaryNets(Architectures):
    """Binarised networks, whose inputs the inverter ``cnf`` finds by a SAT solver: ``bnn:net``.

    Example:
        >>> from interpkit import build_architecture
        >>> net = build_architecture("bnn:net", {"input_shape": [10], "num_classes": 3, "hidden": [8], "fan_in": 4})
        >>> [type(layer).__name__ for layer in net]
        ['Binarize', 'SignLinear', 'Threshold', 'Votes']
    """

    name = "bnn"
    help = "binarised networks: inputs and units of 0 and 1, weights of -1 and +1"

    def names(self) -> Sequence[str]:
        """Return the names."""
        return ["net"]

    def build(self, name: str, arguments: Mapping[str, Any]) -> nn.Module:
        """Build a `BinaryNet`; its Options say which arguments there are."""
        return BinaryNet(**arguments)
