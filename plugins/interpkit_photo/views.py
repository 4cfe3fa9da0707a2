"""Random views of images: zoomed crops, shifted, mirrored, with other colors, and blurred."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interpkit import shift_and_flip
from interpkit_photo.spectrum import Spectrum

if TYPE_CHECKING:
    from interpkit_photo.inverter import Photo

REFERENCE = 224
"""The side of an image for which `Photo.Options.blur` is stated."""


def random_view(images: Spectrum, size: tuple[int, ...], options: Photo.Options, rng: torch.Generator) -> Tensor:
    """Return a view of each image, (B, C, *size); scale, mirroring, shift and blur are the same for all of a batch.

    A zoomed view is a crop of the images rendered larger, so it has as many pixels as any other and is never
    interpolated.
    """

    def uniform() -> float:
        return float(torch.rand((), device=rng.device, generator=rng))

    side = options.zoom + (1 - options.zoom) * uniform()
    rendered = images((round(size[0] / side), round(size[1] / side)))
    height, width = size
    rows, columns = (
        torch.randint(0, have - want + 1, (len(rendered),), device=rng.device, generator=rng).tolist()
        for have, want in zip(rendered.shape[2:], size, strict=True)
    )
    view = torch.stack([x[:, i : i + height, j : j + width] for x, i, j in zip(rendered, rows, columns, strict=True)])
    view = shift_and_flip(view, options.shift, options.flip, rng)
    if options.color:
        contrast, tint = (
            options.color * (2 * torch.rand(len(view), n, 1, 1, device=rng.device, generator=rng) - 1)
            for n in (1, view.shape[1])
        )
        view = ((view - 0.5) * (1 + contrast) + 0.5 + tint / 2).clamp(0, 1)
    if options.blur and uniform() < 0.5:
        sigma = options.blur * uniform() * rendered.shape[2] / REFERENCE
        if sigma > 0.1:
            from torchvision.transforms.v2.functional import gaussian_blur  # slow to import

            view = gaussian_blur(view, [2 * math.ceil(3 * sigma) + 1] * 2, [sigma])
    return view
