"""The loss term ``infogan``: a variational lower bound on the mutual information of the latent and the picture."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

import interpkit
from interpkit import InversionBatch, InversionLoss, Target

SMALLEST_VARIANCE = 1e-4
"""Lower bound of the recognizer's variance, which keeps the logarithm finite; the noise alone causes far more."""


class Recognizer(nn.Module):
    """Predicts codes from pictures: Q(z | x), independent normal distributions.

    Images are first averaged into at most ``grid`` x ``grid`` fields; vectors are used as they are.

    Args:
        input_shape: (C, H, W) or (D,), of one picture.
        codes: K, how many numbers to predict.
        grid: maximum number of fields per side.
        hidden: units in each of two layers.
    """

    def __init__(self, input_shape: tuple[int, ...], codes: int, grid: int, hidden: int) -> None:
        super().__init__()
        self.fields = tuple(math.ceil(side / grid) for side in input_shape[1:])
        """Height and width of a field in pixels; empty for vectors."""
        sides = [math.ceil(side / field) for side, field in zip(input_shape[1:], self.fields, strict=True)]
        self.network = nn.Sequential(
            nn.Linear(math.prod([input_shape[0], *sides]), hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, 2 * codes),
        )

    def average(self, images: Tensor) -> Tensor:
        """Return the average of each field, (B, F), of images (B, *input_shape)."""
        if self.fields:
            images = F.avg_pool2d(images, self.fields, ceil_mode=True, count_include_pad=False)
        return images.flatten(1)

    def forward(self, fields: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and variance of Q, (B, K) each, for fields (B, F)."""
        mean, raw = self.network(fields).chunk(2, 1)
        return mean, F.softplus(raw) + SMALLEST_VARIANCE


class MutualInformation(InversionLoss):
    r"""Negative lower bound, in nats, on the information that a picture contains about its latent.

    .. math:: L = -\frac{1}{B} \sum_b \sum_{k=1}^K \left( \log Q(z_{bk} \mid \tilde x_b) + H(z_k) \right)
              = \frac{1}{2B} \sum_b \sum_k \left( \frac{(z_{bk} - \mu_{bk})^2}{\sigma_{bk}^2} + \log \sigma_{bk}^2 - 1
              \right) \ge -I(z; x)

    z are the first K numbers of the latent, (B, K), standard normal, with entropy H = log(2 pi e) / 2 each. A small
    network, trained together with the generator, predicts them from the picture: mu and sigma^2, (B, K) each. -L is at
    most the mutual information, and equals it if Q is the true posterior. A generator that ignores the latent scores
    0, and so does a recognizer that knows nothing. The latent is drawn independently of the class, so
    I(z; x | y) >= I(z; x): the variety is gained within the classes.

    The recognizer receives :math:`\tilde x`, a coarse version of the picture, averaged into fields with noise added,
    so that codes cannot hide in patterns that nobody can see. By the data-processing inequality
    :math:`I(z; \tilde x) \le I(z; x)`, so -L remains a lower bound.

    Source: Chen et al. 2016, InfoGAN, eq. 5, with normal codes; the bound is Barber & Agakov 2003.
    """

    name = "infogan"

    class Options(interpkit.Options):
        """What to predict, and from how coarse a picture."""

        codes: int = Field(8, ge=1, le=65536, description="how many numbers of the latent to predict")
        grid: int = Field(8, ge=1, le=1024, description="maximum fields per side that the image is averaged into")
        noise: float = Field(0.1, ge=0, le=10, description="standard deviation of the noise on each field")
        hidden: int = Field(128, ge=1, le=65536, description="units in each of the recognizer's two layers")

    options: Options

    def __init__(self, target: Target, options: Options | None = None) -> None:
        super().__init__(target, options)
        opt = self.options
        self.recognizer = Recognizer(target.input_shape, opt.codes, opt.grid, opt.hidden)

    def forward(self, batch: InversionBatch) -> Tensor:
        """Return the negative bound, a scalar; if the latent has fewer numbers than ``codes``, use all of them."""
        fields = self.recognizer.average(batch.images)
        mean, variance = self.recognizer(fields + self.options.noise * torch.randn_like(fields))
        codes = batch.latent[:, : self.options.codes]
        mean, variance = mean[:, : codes.shape[1]], variance[:, : codes.shape[1]]
        bound: Tensor = 0.5 * (1 - variance.log() - (codes - mean).square() / variance).sum(1).mean()
        return -bound
