"""Images as ``data:`` URIs, in as many bytes as there is room for."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from interpkit.io.images import colour_scale, smoothed, to_heat, to_overlay, to_picture
from interpkit.runtime.progress import tell

LADDER = ((1, None), (1, 85), (1, 60), (1, 35), (1, 20), (1, 10), (0.5, 50), (0.35, 50), (0.25, 40), (0.15, 40))
"""Scale and quality (None: PNG, without loss), from the best to the smallest: all pixels at a quality of 20 are nearer
to a photograph, in fewer bytes, than 0.7 times as many at 50."""
BAR_HEIGHT, BAR_WIDTH = 32, 4
WIDE, WIDEST = 128, 512
"""Above the first number of bars each is one pixel wide; above the second, neighbors are averaged."""


def drawable(images: Tensor, among: Tensor | None = None, shape: Sequence[int] = ()) -> Tensor:
    """Return images (N, C, H, W) uint8 as they are, and vectors (N, D) as pictures.

    A vector becomes D bars; a signal (C, L), one row of L bars per channel; a volume (C, D, H, W), its middle slice.
    A value is drawn by where it stands between the lowest and the highest of its feature (its channel in a signal, or
    all of a volume).

    Args:
        images: what to draw.
        among: (M, D) vectors that have the lowest and the highest values; the N themselves if left out.
        shape: (C, L) of signals, (C, D, H, W) of volumes.
    """
    if images.dim() == 4:
        return images
    among = images if among is None else among
    rows, across = shape if len(shape) == 2 else (1, images.shape[1])
    low, high = among.amin(0).view(rows, across), among.amax(0).view(rows, across)
    if len(shape) in (2, 4):
        low, high = low.amin(1, keepdim=True), high.amax(1, keepdim=True)
    share = ((images.view(-1, rows, across) - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    if len(shape) == 4:
        return (share.view(-1, *shape)[:, :, shape[1] // 2] * 255).round().to(torch.uint8)
    if across > WIDEST:
        share = nn.functional.adaptive_avg_pool1d(share, WIDEST)
    height, width = max(2, min(BAR_HEIGHT, 1024 // rows)), BAR_WIDTH if across <= WIDE else 1
    heights = (share * (height - 1) + 1)[:, :, None, :, None]
    levels = torch.arange(height, 0, -1)[:, None, None]
    bars = (heights >= levels).expand(-1, -1, -1, -1, width).clone()
    if width > 1:
        bars[..., -1] = False  # a gap between two bars
    return bars.flatten(3).flatten(1, 2)[:, None].to(torch.uint8) * 255


def legend(images: Tensor, shape: Sequence[int] = ()) -> str:
    """Return how to read what `drawable` draws; empty for images."""
    if images.dim() == 4:
        return ""
    if len(shape) == 4:
        return "A picture is the middle slice of a volume. Black is the lowest value of all samples, white the highest."
    drawn, part = ("row of bars", "channel") if len(shape) == 2 else ("bar", "feature")
    across = shape[-1] if len(shape) == 2 else images.shape[1]
    each = f"Of {across:,} neighbors, {WIDEST} means are drawn. " if across > WIDEST else ""
    return (
        f"{each}Each {drawn} is a {part}. A bar shows where the value stands between the lowest and the highest of "
        f"that {part} in all samples; values beyond them are cut off."
    )


def encode(images: Tensor | Sequence[Tensor], budget: float) -> list[str]:
    """Return images, N of (C, H, W) uint8, as ``data:`` URIs, the best that fit into a budget of characters.

    The smallest step of the ladder may still be over it.
    """
    pictures = [to_picture(image) for image in images]
    tried = pictures[:: max(1, len(pictures) // 24)]  # about so many are encoded to choose from the ladder
    for step in LADDER:
        size = sum(len(_uri(picture, *step)) for picture in tried) / max(1, len(tried))
        if size * len(pictures) <= budget:
            break
    uris = []
    for picture in pictures:
        uris.append(_uri(picture, *step))
        tell("pictures of the report written", len(uris), len(pictures))
    return uris


def strip(images: Tensor) -> Tensor:
    """Return K images (K, C, H, W) side by side, (C, H, K W)."""
    return torch.cat(list(images), dim=2)


def heat(maps: Tensor, images: Tensor | None = None) -> Tensor:
    """Return attribution maps (N, C, H, W), summed over channels, as pictures (N, 3, H, W) uint8 on one scale.

    Red speaks for the class, blue against it, and white is nothing; the colors are those of ``interpkit attribute``.

    Args:
        maps: the maps.
        images: (N, C, H, W) uint8, over which they are laid, drawn gray in place of white.
    """
    maps, _ = smoothed(maps)
    scale = colour_scale(maps)
    if images is None:
        pictures = [to_heat(one, scale) for one in maps]
    else:
        pictures = [to_overlay(image, one, scale) for image, one in zip(images, maps, strict=True)]
    return torch.stack([torch.from_numpy(np.array(picture)) for picture in pictures]).permute(0, 3, 1, 2)


def _uri(picture: Image.Image, scale: float, quality: int | None) -> str:
    if scale < 1:
        width, height = (max(1, round(scale * side)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BOX)
    buffer, kind = io.BytesIO(), "png" if quality is None else "webp"
    picture.save(buffer, kind, quality=quality)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
