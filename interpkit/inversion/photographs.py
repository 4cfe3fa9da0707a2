"""What methods of making photographs share: how they move images, and the colors of photographs."""

from __future__ import annotations

import torch
from torch import Tensor

PHOTOGRAPH_COLORS = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))
"""The square root of the covariance of R, G and B (its rows) in ImageNet: brightness, blue to red, and green to purple
(its columns). Source: the library lucid (Olah et al. 2017)."""


def shift_and_flip(images: Tensor, jitter: float | None, flip: bool, rng: torch.Generator) -> Tensor:
    """Shift a batch by a random share of the sides, at most ``jitter``, and maybe mirror it; all images alike.

    What leaves on one side comes in on the other. Vectors stay as they are.

    Args:
        images: (B, ..., H, W).
        jitter: in [0, 1]; None draws no shift, so ``rng`` goes on as it was.
        flip: mirror them left to right, with probability 1/2.
        rng: on any device.

    Example:
        >>> import torch
        >>> from interpkit import shift_and_flip
        >>> images = torch.arange(4.0).view(1, 1, 1, 4)
        >>> shift_and_flip(images, 0.5, False, torch.Generator().manual_seed(0)).flatten().tolist()
        [2.0, 3.0, 0.0, 1.0]
    """
    if images.dim() < 4:
        return images
    if jitter is not None:
        most = [round(jitter * side) for side in images.shape[2:]]
        shifts = [int(torch.randint(-m, m + 1, (), device=rng.device, generator=rng)) for m in most]
        images = images.roll(shifts, (2, 3))
    if flip and torch.rand((), device=rng.device, generator=rng) < 0.5:
        images = images.flip(3)
    return images
