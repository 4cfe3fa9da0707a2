"""Terms that push the features of a batch apart."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

import interpkit
from interpkit import InversionBatch, InversionLoss, Target


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
