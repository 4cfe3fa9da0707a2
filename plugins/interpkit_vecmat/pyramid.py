"""A generator of photographs: the paper's, with several learned pictures of each class, and a sum over sizes."""

from __future__ import annotations

import math
from itertools import zip_longest

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from interpkit import PHOTOGRAPH_COLORS, Condition, UsageError
from interpkit_vecmat.upconv import UpConvGenerator

SHARPNESS = 20.0
"""The factor of the latents that choose among the modes, before their softmax: of ten pictures, the first then has 0.95
on average, and at 5 it would have 0.79, so that nearly half of the samples would be blends."""
POSES = 4
"""The latents of a pose: the size of the part that is shown, its place across and down, and whether it is mirrored."""
MOST = 100_000_000
"""The most values of all learned pictures; an optimizer takes 16 bytes for each."""
COARSEST = 8
"""The side of the smallest learned pictures, at most."""
GAIN, SPREAD = 100.0, 0.2
"""The factor of the learned pictures, so that they learn as fast as single images do, and their initial deviation."""
VIVID = 2.15
"""The factor of the colors, with which the longest column of their matrix has length 1."""


class PyramidGenerator(UpConvGenerator):
    r"""The paper's generator for large images: learned pictures beside the hot matrix, and a sum over sizes.

    .. math:: x = \mathrm{sigmoid}\Big(C \sum_s \mathrm{up}\Big(r_s(h_s) + \sum_{c, m} P_c \, q_m \, M_{scm}\Big)\Big),
              \qquad q = \mathrm{softmax}(20 z_{1..k})

    M are k pictures of each class c, the ``modes``, each at several sizes s. The soft vector P and the first k latents
    z, softmaxed like it, choose among them: a class can have pictures that differ in everything, which one path of
    up-convolutions hardly learns, and pictures between them. They learn as fast as single images in a Laplacian
    pyramid, coarse structure first, and there are k for each class to invert, so this is for some tens of classes.

    h_s are the features of `UpConvGenerator` at each size, from the grid of the hot matrix to half the image's size,
    with learned maps chosen in the same way beside the matrix; r_s is a 1 x 1 convolution, and at the last size a
    3 x 3 convolution to four pixels each. C mixes brightness and two color contrasts into colors, in the proportions of
    photographs, if there are three channels.

    With ``zoom`` or ``flip``, each image shows a part of x, enlarged, and half of them are mirrored, as four latents of
    their own determine: a classifier of photographs accepts that, and k pictures become any number of compositions.
    At zero these latents show x as it is. Sources: the paper's hot matrix, for maps that the condition chooses;
    Karras et al. 2020 (StyleGAN2), for the sum; Shi et al. 2016, for the four pixels; Olah et al. 2017, for the colors.

    Example:
        >>> import torch
        >>> from interpkit_vecmat import PyramidGenerator, VectorMatrixConditioner
        >>> conditioner = VectorMatrixConditioner(num_classes=5, input_shape=(3, 64, 48))
        >>> generator = PyramidGenerator(conditioner.spec, input_shape=(3, 64, 48))
        >>> generator(torch.randn(4, generator.latent_dim), conditioner.sample(4)).shape
        torch.Size([4, 3, 64, 48])
    """

    name = "pyramid"

    class Options(UpConvGenerator.Options):
        """Sizes, dropout and poses."""

        dropout: float = Field(0.05, ge=0, lt=1, description="probability that a channel is dropped after each layer")
        modes: int = Field(8, ge=1, le=4096, description="pictures of each class, at most one per latent")
        mode_width: int = Field(32, ge=1, le=4096, description="channels of the learned maps beside the matrix")
        zoom: float = Field(1.0, ge=0.1, le=1, description="smallest side of the part shown, as a share of the image's")
        flip: bool = Field(False, description="mirror half of the images left to right, if the classes allow it")

    options: Options
    colors: Tensor

    def _build_to_image(self, width_in: int) -> None:
        opt, (channels, *sides) = self.options, self.input_shape
        self.modes = min(opt.modes, opt.latent)
        self.poses = POSES if opt.flip or opt.zoom < 1 else 0
        self.latent_dim = opt.latent + self.poses
        count = max(1, self.spec.vector_dim) * self.modes
        height, width = (max(least, -(-side // 2)) for least, side in zip(self.grid, sides, strict=True))
        self.sizes = [(height, width)]
        while min(self.sizes[0]) > COARSEST:
            self.sizes.insert(0, (-(-self.sizes[0][0] // 2), -(-self.sizes[0][1] // 2)))
        values = [channels * math.prod(size) for size in self.sizes]
        if count * sum(values) > MOST:
            raise UsageError(
                f"the generator {self.name!r} learns {self.modes} pictures of each class, which would be {count:,} of "
                f"{sum(values):,} values each. Invert fewer classes, or lower its option 'modes'."
            )
        self.pictures = nn.ModuleList(nn.Linear(count, number, bias=False) for number in values)
        for parameter in self.pictures.parameters():
            nn.init.normal_(parameter, std=SPREAD / GAIN)
        self.memory = nn.Linear(count, opt.mode_width * math.prod(self.grid), bias=False)
        blocks, widths = self._blocks(width_in + opt.mode_width, (height, width))
        self.blocks = nn.ModuleList(blocks)
        self.coarse = nn.ModuleList(nn.Conv2d(wide, channels, 1) for wide in widths[:-1])
        for parameter in self.coarse.parameters():
            nn.init.zeros_(parameter)
        self.finest = nn.Conv2d(widths[-1], 4 * channels, 3, padding=1)
        # two decimals, as in generators that were trained before: runs do not store the colors
        colors = (VIVID * torch.tensor(PHOTOGRAPH_COLORS)).round(decimals=2) if channels == 3 else torch.eye(channels)
        self.register_buffer("colors", colors[:, :, None, None], persistent=False)

    def start_at(self, level: float) -> None:
        """Set the bias of the finest layer; see `Generator.start_at`."""
        gray = self.colors.new_full((len(self.colors),), math.log(level / (1 - level)))
        assert self.finest.bias is not None
        with torch.no_grad():
            self.finest.bias.copy_(torch.linalg.solve(self.colors[:, :, 0, 0], gray).repeat_interleave(4))

    def forward(self, latent: Tensor, condition: Condition) -> Tensor:
        """Return images; see `Generator.forward`."""
        chosen = (SHARPNESS * latent[:, : self.modes]).softmax(1)
        if self.embed is not None:
            chosen = (condition.vector[:, :, None] * chosen[:, None]).flatten(1)
        maps = self.memory(chosen).view(len(latent), -1, *self.grid)
        x = torch.cat([self._at_grid(latent[:, : self.options.latent], condition), maps], 1)
        height, width = self.input_shape[1:]
        picture = torch.zeros_like(maps[:, :1])
        for layer, side in zip(self.pictures, self.sizes, strict=True):
            finer = GAIN * layer(chosen).view(len(latent), -1, *side)
            picture = F.interpolate(picture, side, mode="bilinear") + finer
        parts = [F.interpolate(picture, (height, width), mode="bilinear")]
        for block, coarse in zip_longest(self.blocks, self.coarse):
            x = block(x)
            if coarse is not None:
                parts.append(F.interpolate(coarse(x), (height, width), mode="bilinear"))
        finest = F.pixel_shuffle(self.finest(x), 2)[:, :, :height, :width]
        field = torch.stack([finest, *parts]).sum(0)
        images = F.conv2d(field, self.colors.to(field.dtype)).sigmoid()
        return self._posed(images, latent[:, -self.poses :]) if self.poses else images

    def _posed(self, images: Tensor, latent: Tensor) -> Tensor:
        """Return the part of each image that its latents (B, 4) of a pose determine."""
        with torch.autocast(latent.device.type, enabled=False):  # positions need more digits than bf16 has
            size, across, down, mirrored = torch.erf(latent.float() / 2**0.5).unbind(1)  # uniform in (-1, 1)
            side = 1 - (1 - self.options.zoom) * size.abs()
            width = torch.where(mirrored > 0, -side, side) if self.options.flip else side
            none = torch.zeros_like(side)
            rows = width, none, (1 - side) * across, none, side, (1 - side) * down
            where = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(images.shape), align_corners=False)
            return F.grid_sample(images.float(), where, padding_mode="border", align_corners=False)
