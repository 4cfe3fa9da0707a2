"""The critic: rates how real an image is given its condition, and predicts the image's score."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

MOST_STAGES = 5


class Critic(nn.Module):
    r"""Projection critic (Miyato & Koyama 2018) with a forward model of the scores on the same features.

    .. math:: D(x, v) = w \cdot \phi(x) + \phi(x) \cdot V v, \qquad \hat f_y(x) = u_y \cdot \phi(x)

    with features of strided convolutions (of linear layers for vectors) and spectral norm on all but u.

    Args:
        input_shape: (C, H, W), or (D,).
        vector_dim: length of the condition's vector.
        num_classes: n.
        width: channels of the first layer; each further layer doubles them.
    """

    def __init__(self, input_shape: tuple[int, ...], vector_dim: int, num_classes: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if len(input_shape) == 1:
            for before, after in pairwise([*input_shape, 4 * width, 4 * width]):
                layers += [spectral_norm(nn.Linear(before, after)), nn.LeakyReLU(0.2)]
            features = 4 * width
        else:
            channels, *sides = input_shape
            stages = min(MOST_STAGES, max(0, int(math.log2(min(sides) / 3)))) if min(sides) >= 3 else 0
            for before, after in pairwise([channels, *(width << stage for stage in range(stages))]):
                layers += [spectral_norm(nn.Conv2d(before, after, 4, 2, 1)), nn.LeakyReLU(0.2)]
            channels = width << stages - 1 if stages else channels
            features = channels * math.prod(side >> stages for side in sides)
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.real = spectral_norm(nn.Linear(features, 1))
        self.fits = spectral_norm(nn.Linear(vector_dim, features, bias=False))
        self.scores = nn.Linear(features, num_classes)

    def forward(self, images: Tensor, labels: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Return how real each image is, and its predicted score in the units of the condition, both (B,)."""
        features = self.features(images)
        real = self.real(features)[:, 0] + (features * self.fits(vector)).sum(1)
        return real, self.scores(features).gather(1, labels[:, None])[:, 0]
