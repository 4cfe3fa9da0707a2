"""The conditioners: soft vector and hot matrix, each half alone, and a learned embedding for comparison."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

import interpkit
from interpkit import Condition, Conditioner, ConditionSpec, UsageError


class SoftVector:
    """Draws soft distributions over n classes: softmax(z / T) of n standard normal numbers z.

    At T = 1 and n = 10, the paper's case, the largest entry is 0.32 on average. At a fixed temperature the vectors
    flatten as n grows (0.017 at n = 1,000), so the default temperature keeps that average: with 1 / T^2 = 1 + 2.1
    ln(n / 10), a fit to simulations, the expected largest entry stays within 0.03 of 0.32 for n = 10 to 21,841. Below
    10 classes the default is T = 1. T goes from ``start``, or that default, geometrically to ``end``, or stays.
    """

    def __init__(self, num_classes: int, start: float | None, end: float | None) -> None:
        self.num_classes = num_classes
        self.start = start or (1 + 2.1 * max(0.0, math.log(num_classes / 10))) ** -0.5
        self.end = end or self.start

    def temperature(self, progress: float) -> float:
        """Return T after this fraction of the training."""
        return float(self.start ** (1 - progress) * self.end**progress)

    def draw(
        self, labels: Tensor | None, count: int, progress: float, device: torch.device, rng: torch.Generator | None
    ) -> Tensor:
        """Return (count, n) distributions; if labels are given, the largest entry is swapped to the label's place.

        The entries are independent and identically distributed, so the swap does not change the law of the others.
        """
        z = torch.randn(count, self.num_classes, device=device, generator=rng) / self.temperature(progress)
        if labels is not None:
            top, place = z.max(1, keepdim=True)
            wanted = labels[:, None]
            z = z.scatter(1, place, z.gather(1, wanted)).scatter(1, wanted, top)
        return z.softmax(1)


class HotMatrix:
    """The paper's n x n matrix that is 1 in the row and the column of the label, and 0 elsewhere.

    The matrix is a cross, of rank 2, and is drawn at the size that the generator requests. With more classes than the
    largest ``side`` g allows (16, or the image's side), each digit of the label in base g has a cross on a map of its
    own: 1,000 classes need 3 maps of 16 x 16 instead of one of 1,000 x 1,000, and still tell the label.
    """

    def __init__(self, num_classes: int, side: int) -> None:
        self.side = side
        self.digits = next(m for m in range(1, 64) if side**m >= num_classes)

    def draw(self, labels: Tensor, height: int, width: int) -> Tensor:
        """Return (B, digits, height, width) maps; height and width are at least the side."""
        places = self.side ** torch.arange(self.digits, device=labels.device)
        digits = (labels[:, None] // places % self.side)[:, :, None]
        rows = torch.arange(height, device=labels.device) * self.side // height == digits
        columns = torch.arange(width, device=labels.device) * self.side // width == digits
        return (rows[:, :, :, None] | columns[:, :, None, :]).float()


def _labels(conditioner: Conditioner, batch_size: int, labels: Tensor | None, rng: torch.Generator | None) -> Tensor:
    if labels is not None:
        return labels
    return torch.randint(conditioner.num_classes, (batch_size,), device=conditioner.device, generator=rng)


class VectorConditioner(Conditioner):
    """Soft vectors alone, the first half of the paper's conditioning.

    P = softmax(z / T), z ~ N(0, I_n); the label is argmax P. Source: section 2, "using vectors by encoding
    the label information into an n-dimensional vector".

    Example:
        >>> import torch
        >>> from interpkit_vecmat import VectorConditioner
        >>> conditioner = VectorConditioner(num_classes=10, input_shape=(1, 28, 28))
        >>> condition = conditioner.sample(64, rng=torch.Generator().manual_seed(0))
        >>> condition.vector.shape
        torch.Size([64, 10])
        >>> torch.equal(condition.labels, condition.vector.argmax(1))
        True
    """

    name = "vector"

    class Options(interpkit.Options):
        """How soft the vectors are."""

        temperature: float | None = Field(
            None,
            ge=1e-3,
            le=1e3,
            description="temperature T of the softmax; by default 1 up to 10 classes, and lower for more, so that the "
            "largest entry stays 0.32 on average",
        )
        final_temperature: float | None = Field(
            None,
            ge=1e-3,
            le=1e3,
            description="T at the end of training, approached geometrically; a low value makes the vectors nearly "
            "one-hot",
        )

    options: Options

    def __init__(self, num_classes: int, input_shape: tuple[int, ...], options: Options | None = None) -> None:
        super().__init__(num_classes, input_shape, options)
        self.soft = SoftVector(num_classes, self.options.temperature, self.options.final_temperature)

    @property
    def spec(self) -> ConditionSpec:
        """A vector of length n."""
        return ConditionSpec(vector_dim=self.num_classes)

    def sample(self, batch_size: int, *, labels: Tensor | None = None, rng: torch.Generator | None = None) -> Condition:
        """Draw soft vectors; see `Conditioner.sample`."""
        distribution = self.soft.draw(labels, batch_size, self.progress, self.device, rng)
        return Condition(distribution.argmax(1) if labels is None else labels, distribution, distribution)


class MatrixConditioner(Conditioner):
    """Hot matrices alone, the second half of the paper's conditioning; without a vector, P is one-hot.

    Example:
        >>> import torch
        >>> from interpkit_vecmat import MatrixConditioner
        >>> conditioner = MatrixConditioner(num_classes=1000, input_shape=(3, 224, 224))
        >>> conditioner.spec  # 1,000 classes need three base-16 digits, with one cross each
        ConditionSpec(vector_dim=0, map_channels=3, map_size=16)
        >>> conditioner.sample(2, labels=torch.tensor([7, 999])).maps(16, 16).shape
        torch.Size([2, 3, 16, 16])
    """

    name = "matrix"

    class Options(interpkit.Options):
        """How large the matrix may be."""

        max_side: int = Field(
            16,
            ge=2,
            le=64,
            description="side of the largest hot matrix; with more classes than that, one cross per digit of the label",
        )

    options: Options

    def __init__(self, num_classes: int, input_shape: tuple[int, ...], options: Options | None = None) -> None:
        super().__init__(num_classes, input_shape, options)
        side = min(num_classes, self.options.max_side, *input_shape[1:])
        if side < 2:
            raise UsageError(
                f"a hot matrix needs images of at least 2 x 2 pixels; the classifier's are {input_shape}. Use the "
                f"conditioner 'vector'."
            )
        self.matrix = HotMatrix(num_classes, side)

    @property
    def spec(self) -> ConditionSpec:
        """No vector, and one map per digit of the label."""
        return ConditionSpec(0, self.matrix.digits, self.matrix.side)

    def sample(self, batch_size: int, *, labels: Tensor | None = None, rng: torch.Generator | None = None) -> Condition:
        """Draw labels and their matrices; see `Conditioner.sample`."""
        chosen = _labels(self, batch_size, labels, rng)
        one_hot = F.one_hot(chosen, self.num_classes).float()
        return Condition(chosen, one_hot, one_hot[:, :0], lambda h, w: self.matrix.draw(chosen, h, w))


class VectorMatrixConditioner(VectorConditioner, MatrixConditioner):
    """The paper's conditioning: a soft vector, and a hot matrix of its argmax.

    Source: section 2, "Vector-Matrix Conditioning".

    Example:
        >>> import torch
        >>> from interpkit_vecmat import VectorMatrixConditioner
        >>> conditioner = VectorMatrixConditioner(num_classes=4, input_shape=(1, 28, 28))
        >>> condition = conditioner.sample(1, labels=torch.tensor([2]))
        >>> condition.vector.argmax(1), condition.maps(4, 4)[0, 0]
        (tensor([2]), tensor([[0., 0., 1., 0.],
                [0., 0., 1., 0.],
                [1., 1., 1., 1.],
                [0., 0., 1., 0.]]))
    """

    name = "vecmat"

    class Options(MatrixConditioner.Options, VectorConditioner.Options):
        """How soft the vectors are, and how large the matrix may be."""

    options: Options

    @property
    def spec(self) -> ConditionSpec:
        """A vector of length n, and one map per digit of the label."""
        return ConditionSpec(self.num_classes, self.matrix.digits, self.matrix.side)

    def sample(self, batch_size: int, *, labels: Tensor | None = None, rng: torch.Generator | None = None) -> Condition:
        """Draw soft vectors and their matrices; see `Conditioner.sample`."""
        soft = super().sample(batch_size, labels=labels, rng=rng)
        return Condition(soft.labels, soft.distribution, soft.vector, lambda h, w: self.matrix.draw(soft.labels, h, w))


class LabelConditioner(Conditioner):
    """A learned embedding of the label, the usual conditioning, for comparison; P is one-hot.

    Source: section 2, "generators are typically conditioned on an embedding learned from a label".

    Example:
        >>> from interpkit_vecmat import LabelConditioner
        >>> conditioner = LabelConditioner(10, (1, 28, 28), LabelConditioner.Options(dim=8))
        >>> condition = conditioner.sample(64)
        >>> condition.vector.shape, condition.distribution.sum(1).unique().tolist()
        (torch.Size([64, 8]), [1.0])
    """

    name = "label"

    class Options(interpkit.Options):
        """Size of the embedding."""

        dim: int = Field(32, ge=1, le=4096, description="length of the embedding")

    options: Options

    def __init__(self, num_classes: int, input_shape: tuple[int, ...], options: Options | None = None) -> None:
        super().__init__(num_classes, input_shape, options)
        self.embedding = nn.Embedding(num_classes, self.options.dim)

    @property
    def spec(self) -> ConditionSpec:
        """A vector: the embedding."""
        return ConditionSpec(self.options.dim)

    def sample(self, batch_size: int, *, labels: Tensor | None = None, rng: torch.Generator | None = None) -> Condition:
        """Draw labels and embed them; see `Conditioner.sample`."""
        chosen = _labels(self, batch_size, labels, rng)
        return Condition(chosen, F.one_hot(chosen, self.num_classes).float(), self.embedding(chosen))
