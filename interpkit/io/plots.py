"""Notebook output for samples and training histories: HTML and matplotlib figures."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from interpkit.io.fonts import legible
from interpkit.io.images import grid, to_picture, to_png


class ShownFigure(Figure):
    """A figure that notebooks display without pyplot or magic commands."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=90)
        return buffer.getvalue()


def to_html(sentence: str, images: Tensor, labels: Tensor, names: Sequence[str]) -> str:
    """Return a sentence and a grid of images, one row per class, as HTML.

    Args:
        sentence: plain text above the grid; it is escaped.
        images: (N, C, H, W) uint8; vectors, (N, D), are not drawn.
        labels: (N,) int64.
        names: all class names.
    """
    text = f"<p>{html.escape(sentence)}</p>"
    if images.dim() != 4:
        return text
    png = base64.b64encode(to_png(grid(images, labels, list(names)))).decode()
    return f'{text}<img alt="Samples, one row per class" src="data:image/png;base64,{png}">'


def sample_figure(images: Tensor, labels: Tensor, names: Sequence[str], shape: Sequence[int] = ()) -> Figure:
    """Return a figure of samples, one row per class; vectors and signals are drawn on one scale.

    Args:
        images: (N, *input_shape) in [0, 1], the same number of each class.
        labels: (N,) int64.
        names: all class names.
        shape: (C, L) for signals, drawn as lines, or (C, D, H, W) for volumes, drawn as their middle slice.
    """
    classes = labels.unique().tolist()
    per_class = len(labels) // len(classes)
    figure = ShownFigure(figsize=(0.8 * per_class + 1, 0.8 * len(classes)), layout="compressed")
    drawn_as_numbers = images.dim() == 2 and len(shape) != 4
    axes = figure.subplots(len(classes), per_class, squeeze=False, sharey=drawn_as_numbers)
    for row, label in zip(axes, classes, strict=True):
        for place, image in zip(row, images[labels == label], strict=True):
            place.set(xticks=[], yticks=[])
            if len(shape) == 4:
                image = image.view(*shape)[:, shape[1] // 2]
            if image.dim() == 3:
                place.imshow(to_picture((image * 255).round().to(torch.uint8)), cmap="gray", vmin=0, vmax=255)
            elif len(shape) == 2:
                place.plot(image.view(*shape).T.numpy())
            else:
                place.bar(range(len(image)), image.numpy())
        name, font = legible(names[label], label)
        name = name.replace("$", r"\$")  # would start a formula
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", font=Path(str(font.path)))
    return figure


def history_figure(steps: Sequence[int], terms: Mapping[str, Sequence[float]], accuracy: Sequence[float]) -> Figure:
    """Return a figure of each loss term and the inversion accuracy over the training steps."""
    figure = ShownFigure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, values in terms.items():
        left.plot(steps, values, label=name)
    right.plot(steps, accuracy)
    left.set(xlabel="step", title="terms, without weights")
    right.set(xlabel="step", title="inversion accuracy", ylim=(0, 1.02))
    if terms:
        left.legend()
    return figure
