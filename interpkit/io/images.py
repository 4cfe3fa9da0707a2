"""Grids of samples as PNG, one row per class."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
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


def save_grid(images: Tensor, labels: Tensor, class_names: list[str], path: Path) -> None:
    """Write a `grid` as PNG."""
    write_atomically(path, to_png(grid(images, labels, class_names)))


def to_png(picture: Image.Image) -> bytes:
    """Return the content of a PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def grid(images: Tensor, labels: Tensor, class_names: list[str]) -> Image.Image:
    """Return a grid of the first samples of each class, one row per class, named at the left; at most 50 rows.

    Args:
        images: (N, C, H, W) uint8; a caption says which channels are drawn if there are neither one nor three.
        labels: (N,).
        class_names: by label.
    """
    rows = []
    for label in labels.unique().tolist()[:MAX_ROWS]:
        pictures = [to_picture(image) for image in images[labels == label][:COLUMNS]]
        rows.append((legible(class_names[label], label), pictures))
    return _rows(rows, composite(images.shape[1]))


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


RED, BLUE = np.array([178, 24, 43]), np.array([33, 102, 172])
OVERLAID = 0.8
"""How much of a pixel full evidence hides in an overlay."""


def to_heat(evidence: Tensor, scale: float) -> Image.Image:
    """Return a map, (C, H, W) summed over C, as a picture: white is 0, red ``scale``, blue ``-scale``."""
    return _colored(evidence, scale, np.full(3, 255.0), 1)


def to_overlay(image: Tensor, evidence: Tensor, scale: float) -> Image.Image:
    """Return a map over its image, (C, H, W) uint8, drawn gray: the colors are those of `to_heat`."""
    gray = np.array(to_picture(image).convert("L"), dtype=float)
    return _colored(evidence, scale, gray[..., None], OVERLAID)


def _colored(evidence: Tensor, scale: float, ground: Any, most: float) -> Image.Image:
    value = (evidence.sum(0) / scale).clamp(-1, 1).numpy()[..., None]
    color = ground + most * np.abs(value) * (np.where(value > 0, RED, BLUE) - ground)
    return Image.fromarray(color.round().astype(np.uint8), "RGB")


def save_panel(rows: Sequence[tuple[str, Sequence[Image.Image]]], caption: str, path: Path) -> None:
    """Write rows of pictures of one size, each row named at the left, over a caption; at most 50 rows."""
    write_atomically(path, to_png(_rows([(legible(name), pictures) for name, pictures in rows[:MAX_ROWS]], caption)))


def _rows(rows: Sequence[tuple[tuple[str, Font], Sequence[Image.Image]]], caption: str) -> Image.Image:
    """Return rows of pictures of one size, each named at the left in a font of its own, over a caption if any."""
    width, height = rows[0][1][0].size
    zoom = max(1, -(-SHORTEST_SIDE // min(height, width)))
    width, height = width * zoom, height * zoom
    margin = 12 + round(max(font.getlength(name) for (name, font), _ in rows))
    columns = max(len(pictures) for _, pictures in rows)
    across = max(margin + columns * (width + GAP), 12 + round(usual().getlength(caption)) if caption else 0)
    canvas = Image.new("RGB", (across, len(rows) * (height + GAP) + GAP + (24 if caption else 0)), "white")
    draw = ImageDraw.Draw(canvas)
    for row, ((name, font), pictures) in enumerate(rows):
        top = GAP + row * (height + GAP)
        draw.text((margin - 6, top + height / 2), name, fill="black", font=font, anchor="rm")
        for column, picture in enumerate(pictures):
            enlarged = picture.resize((width, height), Image.Resampling.NEAREST)
            canvas.paste(enlarged, (margin + column * (width + GAP), top))
    draw.text((6, canvas.height - 6), caption, fill="black", font=usual(), anchor="ls")
    return canvas


def to_picture(image: Tensor) -> Image.Image:
    """Return one image, (C, H, W) uint8, as a picture: gray, or RGB of its first three channels (see `composite`)."""
    if image.shape[0] == 1:
        return Image.fromarray(image[0].numpy(), "L")
    image = torch.cat([image[:3], image.new_zeros(max(0, 3 - len(image)), *image.shape[1:])])
    return Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), "RGB")
