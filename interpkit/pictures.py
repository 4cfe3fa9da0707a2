"""Grids of samples as PNG, one row a class."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from interpkit.files import to_json, write_atomically

MAX_ROWS = 50
COLUMNS = 10
GAP = 2
SHORTEST_SIDE = 48
"""Smaller images are enlarged by whole factors, so that a person sees them on a screen."""


def save_grid(images: Tensor, labels: Tensor, class_names: list[str], path: Path) -> None:
    """Write a grid of the first samples of each class, a row a class, named at the left; at most 50 rows.

    Args:
        images: (N, C, H, W) uint8. One channel is drawn grey, three as RGB, any other number as the mean.
        labels: (N,).
        class_names: by label.
        path: of the PNG.
    """
    rows = labels.unique().tolist()[:MAX_ROWS]
    height, width = images.shape[2:]
    zoom = max(1, -(-SHORTEST_SIDE // min(height, width)))
    height, width = height * zoom, width * zoom
    columns = max(int((labels == label).sum()) for label in rows)
    columns = min(columns, COLUMNS)
    font = ImageFont.load_default(size=14)
    names = [_short(class_names[label]) for label in rows]
    margin = 12 + round(max(font.getlength(name) for name in names))
    canvas = Image.new("RGB", (margin + columns * (width + GAP), len(rows) * (height + GAP) + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for row, label in enumerate(rows):
        top = GAP + row * (height + GAP)
        draw.text((margin - 6, top + height / 2), names[row], fill="black", font=font, anchor="rm")
        for column, image in enumerate(images[labels == label][:columns]):
            picture = to_picture(image).resize((width, height), Image.Resampling.NEAREST)
            canvas.paste(picture, (margin + column * (width + GAP), top))
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", optimize=True)
    write_atomically(path, buffer.getvalue())


def save_images(images: Tensor, labels: Tensor, class_names: list[str], folder: Path) -> None:
    """Write one PNG an image, (N, C, H, W) uint8, in a folder a class (``3/00017.png``), and classes.json."""
    for label in labels.unique().tolist():
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        buffer = io.BytesIO()
        to_picture(image).save(buffer, "PNG")
        write_atomically(folder / str(label) / f"{number:05d}.png", buffer.getvalue())
    write_atomically(folder / "classes.json", to_json({str(i): class_names[i] for i in labels.unique().tolist()}))


def to_picture(image: Tensor) -> Image.Image:
    """Return one image, (C, H, W) uint8, as a picture."""
    if image.shape[0] == 3:
        return Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), "RGB")
    grey = image.float().mean(0).round().to(torch.uint8)
    return Image.fromarray(grey.numpy(), "L")


def _short(name: str, limit: int = 18) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"
