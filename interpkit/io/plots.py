"""An inversion in a notebook: as HTML, and as figures of matplotlib."""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING

import torch
from matplotlib.figure import Figure

from interpkit.evaluation import scoring
from interpkit.io.images import grid, short, to_picture, to_png

if TYPE_CHECKING:
    from interpkit.interfaces.inversions import Inversion

SHOWN_CLASSES = 20
"""Past so many classes only the first are drawn."""


class ShownFigure(Figure):
    """A figure that a notebook shows by itself, without pyplot and its magic commands."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=90)
        return buffer.getvalue()


def to_html(inversion: Inversion, per_class: int = 8) -> str:
    """Return what a notebook shows of an inversion: one sentence, and a grid of samples, a row a class."""
    target, recipe = inversion.target, inversion.recipe
    samples = scoring.draw_samples(inversion, per_class=_at_most(inversion, per_class), labels=_shown(inversion))
    accuracy = scoring.measure(samples, target.class_names)["inversion_accuracy"]
    said = (
        f"Inversion of {target.name} by {recipe.inverter.name}, {inversion.steps_done} of {recipe.steps} steps, seed "
        f"{recipe.seed}: the target takes {accuracy:.1%} of {len(samples.labels)} samples for the class asked for."
    )
    text = f"<p>{html.escape(said)}</p>"
    if samples.images.dim() != 4:
        return text
    png = to_png(grid(samples.images, samples.labels, target.class_names))
    alt = html.escape(f"Samples of {target.name}, a row a class")
    return f'{text}<img alt="{alt}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def sample_figure(inversion: Inversion, per_class: int = 8) -> Figure:
    """Return a figure of samples, a row a class; of at most 20 classes.

    Raises:
        UsageError: there are not so many samples of a class.
    """
    classes = _shown(inversion)
    images, labels = inversion.sample(per_class, labels=classes)
    figure = ShownFigure(figsize=(0.8 * per_class + 1, 0.8 * len(classes)), layout="compressed")
    axes = figure.subplots(len(classes), per_class, squeeze=False)
    for row, label in zip(axes, classes, strict=True):
        for place, image in zip(row, images[labels == label], strict=True):
            place.set(xticks=[], yticks=[])
            if image.dim() == 3:
                place.imshow(to_picture((image * 255).round().to(torch.uint8)), cmap="gray", vmin=0, vmax=255)
            else:
                place.bar(range(len(image)), image.numpy())
        name = short(inversion.target.class_names[label]).replace("$", r"\$")  # which would begin a formula
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    return figure


def history_figure(inversion: Inversion) -> Figure:
    """Return a figure of the training: each term, and the inversion accuracy, by step."""
    figure = ShownFigure(figsize=(9, 3.2), layout="constrained")
    terms, accuracy = figure.subplots(1, 2)
    steps = [record.step for record in inversion.history]
    for name in inversion.history[-1].terms if inversion.history else ():
        terms.plot(steps, [record.terms[name] for record in inversion.history], label=name)
    accuracy.plot(steps, [record.inversion_accuracy for record in inversion.history])
    terms.set(xlabel="step", title="terms, without weights")
    accuracy.set(xlabel="step", title="inversion accuracy", ylim=(0, 1.02))
    if steps:
        terms.legend()
    return figure


def _shown(inversion: Inversion) -> list[int]:
    return inversion.classes[:SHOWN_CLASSES]


def _at_most(inversion: Inversion, per_class: int) -> int:
    there = inversion.images_per_class
    return per_class if there is None else min(per_class, there)
