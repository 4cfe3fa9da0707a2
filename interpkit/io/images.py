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

MAX_ROWS = 50
COLUMNS = 10
GAP = 2
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
        images: (N, C, H, W) uint8. One channel is drawn gray, three as RGB, any other number as the mean.
        labels: (N,).
        class_names: by label.
    """
    rows = labels.unique().tolist()[:MAX_ROWS]
    height, width = images.shape[2:]
    zoom = max(1, -(-SHORTEST_SIDE // min(height, width)))
    height, width = height * zoom, width * zoom
    columns = max(int((labels == label).sum()) for label in rows)
    columns = min(columns, COLUMNS)
    font = ImageFont.load_default(size=14)
    names = [short(class_names[label]) for label in rows]
    margin = 12 + round(max(font.getlength(name) for name in names))
    canvas = Image.new("RGB", (margin + columns * (width + GAP), len(rows) * (height + GAP) + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for row, label in enumerate(rows):
        top = GAP + row * (height + GAP)
        draw.text((margin - 6, top + height / 2), names[row], fill="black", font=font, anchor="rm")
        for column, image in enumerate(images[labels == label][:columns]):
            picture = to_picture(image).resize((width, height), Image.Resampling.NEAREST)
            canvas.paste(picture, (margin + column * (width + GAP), top))
    return canvas


def save_images(images: Tensor, labels: Tensor, class_names: list[str], folder: Path) -> None:
    """Write one PNG per image, (N, C, H, W) uint8, in one folder per class (``3/00017.png``), and classes.json."""
    for label in labels.unique().tolist():
        inner_folder(folder / str(label))
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        buffer = io.BytesIO()
        to_picture(image).save(buffer, "PNG")
        write_atomically(folder / str(label) / f"{number:05d}.png", buffer.getvalue())
    write_atomically(folder / "classes.json", to_json({str(i): class_names[i] for i in labels.unique().tolist()}))


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
    rows = rows[:MAX_ROWS]
    width, height = rows[0][1][0].size
    zoom = max(1, -(-SHORTEST_SIDE // min(height, width)))
    width, height = width * zoom, height * zoom
    font = ImageFont.load_default(size=14)
    names = [short(name) for name, _ in rows]
    margin = 12 + round(max(font.getlength(name) for name in names))
    columns = max(len(pictures) for _, pictures in rows)
    across = max(margin + columns * (width + GAP), 12 + round(font.getlength(caption)))
    canvas = Image.new("RGB", (across, len(rows) * (height + GAP) + GAP + 24), "white")
    draw = ImageDraw.Draw(canvas)
    for row, (_, pictures) in enumerate(rows):
        top = GAP + row * (height + GAP)
        draw.text((margin - 6, top + height / 2), names[row], fill="black", font=font, anchor="rm")
        for column, picture in enumerate(pictures):
            enlarged = picture.resize((width, height), Image.Resampling.NEAREST)
            canvas.paste(enlarged, (margin + column * (width + GAP), top))
    draw.text((6, canvas.height - 6), caption, fill="black", font=font, anchor="ls")
    write_atomically(path, to_png(canvas))


def to_picture(image: Tensor) -> Image.Image:
    """Return one image, (C, H, W) uint8, as a picture."""
    if image.shape[0] == 3:
        return Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), "RGB")
    gray = image.float().mean(0).round().to(torch.uint8)
    return Image.fromarray(gray.numpy(), "L")


def short(name: str, limit: int = 18) -> str:
    """Return a name in one line of characters that can be drawn, and with an end."""
    name = " ".join("".join(sign if sign.isprintable() else " " for sign in name).split())
    return name if len(name) <= limit else name[: limit - 1] + "…"
