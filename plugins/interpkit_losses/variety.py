"""Terms against mode collapse: they push the images of a batch, or their features, apart."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

import interpkit
from interpkit import InversionBatch, InversionLoss, Target, UsageError


class FeatureLoss(InversionLoss):
    """Base class of the terms that compare features, from one layer or several."""

    class Options(interpkit.Options):
        """Which features."""

        layers: list[str] = Field([], description="layers whose features are compared; the target's default if empty")

    options: Options

    def layers(self, target: Target) -> list[str]:
        """Return the layers whose features are compared."""
        return list(self.options.layers)

    def directions(self, batch: InversionBatch) -> list[Tensor]:
        """Return the features of each layer, (B, F) each, scaled to unit length."""
        response = batch.response
        features = [response.features[layer] for layer in self.options.layers] or [response.penultimate]
        return [F.normalize(f.flatten(1), dim=1, eps=1e-6) for f in features]


class Cosine(FeatureLoss):
    r"""Mean cosine similarity of the features of different images; the paper's L_Cosine, weighted by gamma.

    .. math:: L_{Cosine} = \frac{1}{N(N-1)} \sum_{i \ne j} \cos\theta_{ij}
              = \frac{\lVert \sum_i f_i / \lVert f_i \rVert \rVert^2 - N}{N(N-1)}

    The right-hand side costs O(N F), the double sum O(N^2 F). f are the target's features, (N, F); the value lies
    between -1/(N-1) and 1. With several layers, the mean over them. Source: section 2.

    Example:
        >>> import torch
        >>> from interpkit import testing, wrap
        >>> from interpkit_losses import Cosine
        >>> target = wrap(torch.nn.Linear(2, 3), input_shape=(2,))  # its features are its inputs
        >>> images = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # cosines 1, 0 and 0
        >>> testing.evaluate_loss(Cosine(target), target, images, labels=[0, 1, 2])
        tensor(0.3333)
    """

    name = "cosine"

    def forward(self, batch: InversionBatch) -> Tensor:
        """Return the mean cosine, a scalar."""
        values = []
        for units in self.directions(batch):
            count = len(units)
            # A feature of length zero has no direction: its own square is 0, not 1.
            own = units.square().sum()
            values.append((units.sum(0).square().sum() - own) / (count * (count - 1)))
        return torch.stack(values).mean()


class Orthogonality(FeatureLoss):
    r"""Mean squared cosine of the features of different images: the Gram matrix's distance from the identity.

    .. math:: L = \frac{1}{N(N-1)} \sum_{i \ne j} \cos^2\theta_{ij}
              = \frac{\lVert U U^\top - I \rVert_F^2}{N(N-1)}

    U are the features (N, F), each scaled to unit length. Positive and negative cosines do not cancel here: the term
    is 0 only if all features are orthogonal, which requires F >= N. Between 0 and 1. With several layers, the mean
    over them.

    Example:
        >>> import torch
        >>> from interpkit import testing, wrap
        >>> from interpkit_losses import Orthogonality
        >>> target = wrap(torch.nn.Linear(2, 2), input_shape=(2,))  # its features are its inputs
        >>> images = torch.tensor([[1.0, 0.0], [1.0, 1.0]])  # at an angle of 45 degrees
        >>> testing.evaluate_loss(Orthogonality(target), target, images, labels=[0, 1])
        tensor(0.5000)
    """

    name = "orthogonality"

    def forward(self, batch: InversionBatch) -> Tensor:
        """Return the mean squared cosine of different images, a scalar."""
        values = []
        for units in self.directions(batch):
            count = len(units)
            gram = units @ units.T
            values.append((gram - torch.diag(gram.diagonal())).square().sum() / (count * (count - 1)))
        return torch.stack(values).mean()


class Spread(InversionLoss):
    r"""Keep the images of each class different: minus the log-determinant of their Gram matrix.

    .. math:: L = -\frac{1}{N} \sum_c \log\det\left( \frac{U_c U_c^\top + \epsilon I}{1 + \epsilon} \right)

    U_c are the batch's images of class c, faded out towards the rim (by the root of a Hann window) so that noise
    there does not count as variety, average-pooled so that pixel noise does not, flattened and scaled to unit length.
    A determinantal point process with this kernel prefers diverse batches (Kulesza & Taskar 2012; for generators
    Elfeki et al. 2019, GDPP). The value is 0 if all images of a class are orthogonal, and at most
    -log(epsilon / (1 + epsilon)), its limit for many identical images.

    Example:
        >>> import torch
        >>> from interpkit import testing, wrap
        >>> from interpkit_losses import Spread
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
        >>> target = wrap(net, input_shape=(1, 8, 8))
        >>> spread, twins = Spread(target), torch.ones(2, 1, 8, 8)
        >>> testing.evaluate_loss(spread, target, twins, labels=[0, 0])  # two identical images of one class
        tensor(1.1877)
        >>> testing.evaluate_loss(spread, target, twins, labels=[0, 1]).abs() < 1e-6  # of two classes
        tensor(True)
    """

    name = "spread"

    class Options(interpkit.Options):
        """How images are compared."""

        pool: int | None = Field(
            None,
            ge=1,
            le=1024,
            description="side in pixels of the squares that are averaged; by default an eighth of the image's shorter "
            "side, and at least 4",
        )
        epsilon: float = Field(0.05, gt=0, le=1, description="how similar two images must be to count as one")

    options: Options

    def __init__(self, target: Target, options: Options | None = None) -> None:
        super().__init__(target, options)
        if len(target.input_shape) != 3:
            raise UsageError(f"the loss 'spread' needs images; {target.name} classifies vectors. Add --loss spread=0.")

    def forward(self, batch: InversionBatch) -> Tensor:
        """Return minus the mean log-determinant, a scalar."""
        images, epsilon = batch.images, self.options.epsilon
        pool = self.options.pool or max(4, min(images.shape[2:]) // 8)
        rows, columns = (
            torch.hann_window(side + 2, periodic=False, device=images.device)[1:-1].sqrt() for side in images.shape[2:]
        )
        pooled = F.avg_pool2d(images * rows[:, None] * columns, pool, ceil_mode=True, count_include_pad=False)
        units = F.normalize(pooled.flatten(1), dim=1, eps=1e-6)
        labels = batch.condition.labels
        # One block per class: the determinant is the product of the blocks'.
        gram = (units @ units.T) * (labels[:, None] == labels)
        identity = torch.eye(len(units), device=units.device, dtype=units.dtype)
        return -torch.logdet((gram + epsilon * identity) / (1 + epsilon)) / len(units)
