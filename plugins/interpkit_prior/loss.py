"""A discriminator between the generated images and the user's pictures."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from interpkit import InversionBatch, InversionLoss, PictureOptions, Target, UsageError

LEAST = 64
"""The fewest pictures: a discriminator would memorize fewer."""


class Prior(InversionLoss):
    r"""Resemblance to the user's own pictures, patch by patch, judged by a discriminator that is trained alongside.

    .. math:: L = \mathrm{mean}_{b, p} \log\big(1 + e^{-D_p(x_b)}\big)

    x are the images, (B, C, H, W) in [0, 1], and :math:`D_p` is the discriminator's log-odds that patch p comes from a
    picture. L is at least 0, and log 2 if the discriminator cannot tell. In the same step, its own weights minimize the
    following, on the images and on as many pictures r, drawn at random:

    .. math:: L_D = \mathrm{mean} \log\big(1 + e^{-D_p(r_b)}\big) + \mathrm{mean} \log\big(1 + e^{D_p(x_b)}\big)
              + \frac{\gamma}{2P} \, \mathrm{mean}_b \Big\| \nabla_r \sum_p D_p(r_b) \Big\|^2

    with P patches in an image. The pictures need not show the target's classes: patches that are smaller than an object
    transfer strokes, edges and textures, while the target determines the object. With a ``patch`` of the image's size,
    the loss also asks for the pictures' own objects.

    The discriminator is trained by the recipe's optimizer; checkpoints contain its weights and the optimizer's state.
    Sources: Goodfellow et al. 2014 for the loss; Isola et al. 2017 for patches; Mescheder et al. 2018 for the
    penalty (R1). Attacks that train a GAN on public pictures (GMI, Zhang et al. 2020; KED-MI, Chen et al. 2021; PPA,
    Struppek et al. 2022) first train it alone and then search its latent space; here one generator is trained for both.

    Example:
        >>> import numpy, torch
        >>> from interpkit import testing, wrap
        >>> from interpkit_prior import Prior
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
        >>> target = wrap(net, input_shape=(1, 8, 8))
        >>> numpy.savez("mine.npz", images=numpy.random.rand(100, 1, 8, 8))
        >>> prior = Prior(target, Prior.Options(data="mine.npz"))
        >>> bool(testing.evaluate_loss(prior, target, torch.zeros(2, 1, 8, 8), labels=[0, 1]) > 0)
        True
    """

    name = "prior"

    class Options(PictureOptions):
        """The pictures, and the discriminator."""

        patch: int | None = Field(
            None,
            ge=1,
            description="least side in pixels of the patches that are compared; by default the largest of 8, 18, 38, "
            "78, ... that is at most two thirds of the image's shorter side, and at least 8",
        )
        width: int = Field(
            32, ge=1, le=4096, description="channels of the first layer; each of the next three doubles them"
        )
        penalty: float = Field(0.1, ge=0, description="weight of the discriminator's gradient penalty")

    options: Options
    pictures: Tensor

    def __init__(self, target: Target, options: Options | None = None) -> None:
        super().__init__(target, options)
        channels, *sides = target.input_shape
        if len(sides) != 2 or min(sides) < 4:
            raise UsageError(
                f"the loss 'prior' needs images of at least 4 x 4 pixels, but the inputs of {target.name} are "
                f"{tuple(target.input_shape)}. Leave it out, or set its weight to 0 (--loss prior=0)."
            )
        opt = self.options
        self.register_buffer("pictures", opt.pictures(target, LEAST), persistent=False)
        depths = range(1, min(sides).bit_length())  # each layer halves the sides, to one pixel at last
        if opt.patch is None:
            depth = max((depth for depth in depths if 3 * field(depth) <= 2 * min(sides)), default=1)
        else:
            depth = min((depth for depth in depths if field(depth) >= opt.patch), default=depths[-1])
        widths = [channels, *(opt.width << min(level, 3) for level in range(depth))]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 4, 2, 1), nn.LeakyReLU(0.2)]
        layers += [nn.Conv2d(widths[-1], widths[-1], 3, 1, 1), nn.LeakyReLU(0.2), nn.Conv2d(widths[-1], 1, 1)]
        self.discriminator = nn.Sequential(*layers)

    def forward(self, batch: InversionBatch) -> Tensor:
        """Return the mean over images and patches, a scalar; its gradient trains the discriminator as well."""
        frozen = {name: weight.detach() for name, weight in self.discriminator.named_parameters()}
        value = F.softplus(-torch.func.functional_call(self.discriminator, frozen, batch.images)).mean()
        with torch.enable_grad():
            own = self._own_loss(batch.images.detach())
        return value + (own - own.detach())  # adds nothing to the value, and a gradient to the weights alone

    def _own_loss(self, images: Tensor) -> Tensor:
        rows = torch.randint(len(self.pictures), (len(images),), device=images.device)
        real = self.pictures[rows].requires_grad_()
        odds = self.discriminator(real)
        (slope,) = torch.autograd.grad(odds.sum(), real, create_graph=True)
        penalty: Tensor = slope.square().sum() / odds.numel()
        told_apart = F.softplus(-odds).mean() + F.softplus(self.discriminator(images)).mean()
        return told_apart + self.options.penalty / 2 * penalty


def field(depth: int) -> int:
    """Return the side of the patch that an output sees after a number of halvings, in pixels."""
    side: int = 5 * 2**depth - 2
    return side
