"""Grids of samples as PNG, one row per class; several classes stand side by side where that fits a screen better."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from interpkit.io.atomic import inner_folder, to_json, write_atomically
from interpkit.io.fonts import legible, usual

MAX_ROWS = 50
COLUMNS = 10
GAP = 2
Font = ImageFont.FreeTypeFont
SHORTEST_SIDE = 48
"""Smaller images are enlarged by whole factors, so that a person sees them on a screen."""
NAMED_ABOVE = 128
"""From this width on, a picture has room for the name of its class above it."""
MOST_PIXELS = 6_000_000
"""A grid with more is made of smaller pictures: as a PNG of photographs it would take more than about 15 MB."""
TALLEST, WIDEST = 1.5, 2.0
"""Height over width, above which more classes stand side by side, and width over height that may avoid empty places."""
APART = 10
"""Space between classes that stand side by side."""
LINE = 24
"""Height of a line of text."""


def save_grid(images: Tensor, labels: Tensor, class_names: list[str], path: Path) -> None:
    """Write a `grid` as PNG."""
    write_atomically(path, to_png(grid(images, labels, class_names)))


def to_png(picture: Image.Image) -> bytes:
    """Return the content of a PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def grid(images: Tensor, labels: Tensor, class_names: list[str]) -> Image.Image:
    """Return a grid of the first ten samples of each class, with its name, of at most 50 classes.

    A caption says what is not drawn: other classes, other channels than one or three, and pixels of large images.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,).
        class_names: by label.
    """
    classes = labels.unique().tolist()
    rows = [
        _Row(class_names[label], [to_picture(image) for image in images[labels == label][:COLUMNS]], label)
        for label in classes[:MAX_ROWS]
    ]
    return _drawn(rows, [left_out(classes), composite(images.shape[1])])


def left_out(classes: list[int]) -> str:
    """Return how many classes a grid draws, and how to draw the next ones; an empty string if it draws all."""
    following = classes[MAX_ROWS : 2 * MAX_ROWS]
    if not following:
        return ""
    gaps = following[-1] - following[0] >= len(following)
    labels = ",".join(map(str, following[:3])) + ",…" if gaps else f"{following[0]}-{following[-1]}"
    return f"the first {MAX_ROWS} of {len(classes):,} classes; sample the run for a grid of others, e.g. {labels}"


def save_images(images: Tensor, labels: Tensor, class_names: list[str], folder: Path) -> None:
    """Write one file per image, (N, C, H, W) uint8, in one folder per class (``3/00017.png``), and classes.json.

    Images of one or three channels are PNGs; no PNG holds others, which are ``.npy`` of (C, H, W).
    """
    for label in labels.unique().tolist():
        inner_folder(folder / str(label))
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        ending, content = encoded(image)
        write_atomically(folder / str(label) / f"{number:05d}.{ending}", content)
    write_atomically(folder / "classes.json", to_json({str(i): class_names[i] for i in labels.unique().tolist()}))


def encoded(values: Tensor) -> tuple[str, bytes]:
    """Return the ending and the content of a file that holds a sample: a PNG, or npy where that would not hold it."""
    buffer = io.BytesIO()
    if is_picture(tuple(values.shape)):
        to_picture(values).save(buffer, "PNG")
        return "png", buffer.getvalue()
    np.save(buffer, values.numpy(), allow_pickle=False)
    return "npy", buffer.getvalue()


def is_picture(shape: tuple[int, ...]) -> bool:
    """Say whether a PNG holds all of one sample of this shape: an image of one or three channels."""
    return len(shape) == 3 and shape[0] in (1, 3)


def composite(channels: int) -> str:
    """Return how an image of this number of channels is drawn; an empty string if the whole of it is."""
    if channels in (1, 3):
        return ""
    colors = "channels 1 and 2 of 2 as red and green" if channels == 2 else f"channels 1, 2, 3 of {channels} as RGB"
    return f"drawn: {colors}"


def colour_scale(maps: Tensor) -> float:
    """Return what full color stands for in a panel: the 99.5 % quantile of the absolute maps, summed over channels.

    Args:
        maps: (N, C, H, W). Of maps that are zero all over, 1.
    """
    strength = maps.sum(1).abs().numpy()
    scale = float(np.quantile(strength, 0.995)) or float(strength.max())
    return scale if scale > 0 else 1.0


SMOOTH_FROM = 64
SMOOTH_SHARE = 45
"""Maps of larger images are averaged for the eye over squares of about this part of the shorter side, 5 of 224."""


def smoothed(maps: Tensor) -> tuple[Tensor, int]:
    """Return maps (N, C, H, W) as drawn, and the side of the squares, moved twice, over which they are averaged.

    In large images the evidence of single pixels is too fine to be seen. That of small ones is left as it is: 1.
    """
    side = min(maps.shape[2:])
    square = 1 if side < SMOOTH_FROM else 2 * round(side / SMOOTH_SHARE / 2) + 1
    for _ in range(2 if square > 1 else 0):
        maps = F.avg_pool2d(maps, square, 1, square // 2, count_include_pad=False)
    return maps, square


RED, BLUE = np.array([178, 24, 43]), np.array([33, 102, 172])
OVERLAID = 0.8
"""How much of a pixel full evidence hides in an overlay."""
PALE = 0.4
"""How far the image under an overlay is lightened, so that the colors stand out."""


def to_heat(evidence: Tensor, scale: float) -> Image.Image:
    """Return a map, (C, H, W) summed over C, as a picture: white is 0, red ``scale``, blue ``-scale``."""
    return _colored(evidence, scale, np.full(3, 255.0), 1)


def to_overlay(image: Tensor, evidence: Tensor, scale: float) -> Image.Image:
    """Return a map over its image, (C, H, W) uint8, drawn in pale gray: the colors are those of `to_heat`."""
    gray = np.array(to_picture(image).convert("L"), dtype=float)
    gray += PALE * (255 - gray)
    return _colored(evidence, scale, gray[..., None], OVERLAID)


def _colored(evidence: Tensor, scale: float, ground: Any, most: float) -> Image.Image:
    value = (evidence.sum(0) / scale).clamp(-1, 1).numpy()[..., None]
    color = ground + most * np.abs(value) * (np.where(value > 0, RED, BLUE) - ground)
    return Image.fromarray(color.round().astype(np.uint8), "RGB")


def save_panel(rows: Sequence[tuple[str, Sequence[Image.Image]]], caption: str, path: Path) -> None:
    """Write rows of pictures of one size, each with its name, over a caption, which says so if they are cut to 50."""
    if len(rows) > MAX_ROWS:
        caption = "; ".join(filter(None, (caption, f"the first {MAX_ROWS} of {len(rows):,}")))
    write_atomically(path, to_png(_drawn([_Row(*row) for row in rows[:MAX_ROWS]], [caption])))


@dataclass(frozen=True)
class _Row:
    """Pictures of one size, with a name; the number is for names that no font here can draw."""

    name: str
    pictures: Sequence[Image.Image]
    number: int | None = None


def _drawn(rows: Sequence[_Row], captions: Sequence[str]) -> Image.Image:
    """Return rows of pictures, each with its name above it or at its left, over captions if any."""
    width, height = own = rows[0].pictures[0].size
    longest = max(len(row.pictures) for row in rows)
    most = math.sqrt(MOST_PIXELS / (len(rows) * longest * width * height))
    zoom = min(max(1, -(-SHORTEST_SIDE // min(own))), math.floor(most) if most >= 1 else most)
    width, height = (max(1, round(zoom * side)) for side in own)
    above = width >= NAMED_ABOVE
    across = longest * (width + GAP)
    names = [_fitting(row, across if above else None) for row in rows]
    margin = GAP if above else 12 + round(max(font.getlength(name) for name, font in names))
    top = LINE if above else 0
    block, tall = margin + across + APART, top + height + GAP
    blocks = _side_by_side(len(rows), block, tall)
    if zoom < 1:
        captions = [*captions, f"drawn at {width} x {height} pixels of {own[0]} x {own[1]}"]
    caption = "; ".join(filter(None, captions))
    full = max(blocks * block - APART, 12 + round(usual().getlength(caption)) if caption else 0)
    canvas = Image.new("RGB", (full, math.ceil(len(rows) / blocks) * tall + GAP + (LINE if caption else 0)), "white")
    draw = ImageDraw.Draw(canvas)
    for place, (row, (name, font)) in enumerate(zip(rows, names, strict=True)):
        x, y = place % blocks * block, place // blocks * tall + GAP
        if above:
            draw.text((x + margin, y + LINE / 2), name, fill="black", font=font, anchor="lm")
        else:
            draw.text((x + margin - 6, y + height / 2), name, fill="black", font=font, anchor="rm")
        way = Image.Resampling.NEAREST if zoom >= 1 else Image.Resampling.BOX
        for column, picture in enumerate(row.pictures):
            canvas.paste(picture.resize((width, height), way), (x + margin + column * (width + GAP), y + top))
    draw.text((6, canvas.height - 6), caption, fill="black", font=usual(), anchor="ls")
    return canvas


def _side_by_side(count: int, width: int, height: int) -> int:
    """Return how many of ``count`` blocks of a size stand side by side in a grid that fits a screen."""
    shapes = {n: math.ceil(count / n) * height / (n * width) for n in range(1, count + 1)}
    first = next((n for n, shape in shapes.items() if shape <= TALLEST), count)
    fitting = [first, *(n for n, shape in shapes.items() if n > first and shape >= 1 / WIDEST)]
    return min(fitting, key=lambda n: (-count % n, n))


def _fitting(row: _Row, width: int | None) -> tuple[str, Font]:
    """Return the name of a row, cut to a width in pixels if there is one, and its font."""
    if width is None:
        return legible(row.name, row.number)
    limits = range(width // 6, 0, -1)
    return next(
        (name, font)
        for name, font in (legible(row.name, row.number, limit) for limit in limits)
        if font.getlength(name) <= width
    )


def to_picture(image: Tensor) -> Image.Image:
    """Return one image, (C, H, W) uint8, as a picture: gray, or RGB of its first three channels (see `composite`)."""
    if image.shape[0] == 1:
        return Image.fromarray(image[0].numpy(), "L")
    image = torch.cat([image[:3], image.new_zeros(max(0, 3 - len(image)), *image.shape[1:])])
    return Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), "RGB")
