"""Terms that push the features of a batch apart."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

import interpkit
from interpkit import InversionBatch, InversionLoss, Target, UsageError


class FeatureLoss(InversionLoss):
    """Base of the terms that read features, of one layer or several."""

    class Options(interpkit.Options):
        """Which features."""

        layers: list[str] = Field([], description="layers to read; the target's default features if empty")

    options: Options

    def layers(self, target: Target) -> list[str]:
        """Return the layers that are read."""
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

    The right-hand side costs O(N F) where the double sum costs O(N^2 F). f are the target's features, (N, F);
    between -1/(N-1) and 1. With several layers, the mean over them. Source: section 2.
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
    r"""Distance of the Gram matrix of the features from the identity.

    .. math:: L = \frac{1}{N(N-1)} \sum_{i \ne j} \cos^2\theta_{ij}
              = \frac{\lVert U U^\top - I \rVert_F^2}{N(N-1)}

    U are the features (N, F), each scaled to unit length. Where the mean cosine may cancel, this one is 0 only
    if all are orthogonal, which takes F >= N. Between 0 and 1. With several layers, the mean over them.
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
    r"""Log-determinant of the Gram matrix of the pictures of a class: keeps classes from collapsing.

    .. math:: L = -\frac{1}{N} \sum_c \log\det\left( \frac{U_c U_c^\top + \epsilon I}{1 + \epsilon} \right)

    U_c are the batch's pictures of class c, faded out towards the rim (by the root of a Hann window) so that litter
    there does not count as variety, average-pooled so that pixel noise does not, flattened and scaled to unit length.
    A determinantal point process with this kernel prefers diverse batches (Kulesza & Taskar 2012; for generators
    Elfeki et al. 2019, GDPP). 0 if all of a class are orthogonal; at most -log(epsilon / (1 + epsilon)), where they
    are one picture.
    """

    name = "spread"

    class Options(interpkit.Options):
        """What is compared."""

        pool: int = Field(4, ge=1, le=1024, description="side of the squares that are averaged, in pixels")
        epsilon: float = Field(0.05, gt=0, le=1, description="how near two pictures must be to count as one")

    options: Options

    def __init__(self, target: Target, options: Options | None = None) -> None:
        super().__init__(target, options)
        if len(target.input_shape) != 3:
            raise UsageError("the loss 'spread' is for images; this classifier takes vectors. Leave it out.")

    def forward(self, batch: InversionBatch) -> Tensor:
        """Return minus the mean log-determinant, a scalar."""
        pool, epsilon = self.options.pool, self.options.epsilon
        images = batch.images
        rows, columns = (
            torch.hann_window(side + 2, periodic=False, device=images.device)[1:-1].sqrt() for side in images.shape[2:]
        )
        pictures = F.avg_pool2d(images * rows[:, None] * columns, pool, ceil_mode=True, count_include_pad=False)
        units = F.normalize(pictures.flatten(1), dim=1, eps=1e-6)
        labels = batch.condition.labels
        # One block a class: its determinant is the product of theirs.
        gram = (units @ units.T) * (labels[:, None] == labels)
        identity = torch.eye(len(units), device=units.device, dtype=units.dtype)
        return -torch.logdet((gram + epsilon * identity) / (1 + epsilon)) / len(units)
