"""`Inversion`, the result of every method, and the `Draw` that sampling one returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from interpkit.config.recipe import Recipe
from interpkit.errors import UsageError
from interpkit.interfaces.targets import Target
from interpkit.runtime.random import derive_seed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from interpkit.runtime.recorder import StepRecord

SHOWN_CLASSES = 20
"""A notebook shows the first ones of more classes than these."""


@dataclass(frozen=True)
class Draw:
    """Images drawn from an inversion, and what was asked for; all on the CPU.

    Attributes:
        images: (N, *input_shape) float32 in [0, 1].
        labels: (N,) int64, the classes asked for.
        distribution: (N, n) float32, the conditions' distributions P; one-hot where the method asks for labels alone.
        generator: (N,) int64, which of the generators made each image.
    """

    images: Tensor
    labels: Tensor
    distribution: Tensor
    generator: Tensor

    def __getitem__(self, rows: slice | Tensor) -> Draw:
        return Draw(self.images[rows], self.labels[rows], self.distribution[rows], self.generator[rows])

    @classmethod
    def join(cls, parts: Sequence[Draw]) -> Draw:
        """Return the parts one after another."""
        columns = zip(*((p.images, p.labels, p.distribution, p.generator) for p in parts), strict=True)
        return cls(*(torch.cat(column) for column in columns))


class Inversion(ABC):
    """What an inversion method has learned of a target.

    Attributes:
        target: the classifier.
        recipe: the resolved recipe.
        history: one record at least every ten steps, of over 100,000 steps 10,000 in all.

    Example:
        >>> import torch
        >>> from interpkit import invert, wrap
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
        >>> inversion = invert(wrap(net, input_shape=(1, 8, 8)), ["vecmat"], steps=10, batch_size=16)
        >>> drawn = inversion.draw(count=4, labels=[0, 2])  # the classes take turns
        >>> drawn.images.shape, drawn.labels
        (torch.Size([4, 1, 8, 8]), tensor([0, 2, 0, 2]))
    """

    def __init__(self, target: Target, recipe: Recipe, history: Sequence[StepRecord]) -> None:
        self.target = target
        self.recipe = recipe
        self.history = list(history)

    @property
    def device(self) -> torch.device:
        """Where images are made and judged."""
        return torch.device("cpu")

    @property
    def images_per_class(self) -> int | None:
        """The most images that can be drawn of every class; None if there is no end of them."""
        return None

    @property
    def steps_done(self) -> int:
        """The last step that was done."""
        return self.history[-1].step if self.history else 0

    @property
    def classes(self) -> list[int]:
        """The classes that were inverted."""
        return list(range(self.target.num_classes)) if self.recipe.labels is None else list(self.recipe.labels)

    def sample(
        self,
        per_class: int | None = None,
        *,
        count: int | None = None,
        labels: Sequence[int] | None = None,
        seed: int | None = None,
        dropout: bool | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw images; see `draw`.

        Returns:
            images, (N, *input_shape) float32 in [0, 1], and the labels asked for, (N,) int64; on the CPU.
        """
        drawn = self.draw(per_class, count=count, labels=labels, seed=seed, dropout=dropout)
        return drawn.images, drawn.labels

    def draw(
        self,
        per_class: int | None = None,
        *,
        count: int | None = None,
        labels: Sequence[int] | None = None,
        seed: int | None = None,
        dropout: bool | None = None,
    ) -> Draw:
        """Draw images, with the conditions they were made for.

        The same arguments give the same images on the same machine, and a larger ``per_class`` or ``count``
        only adds to those of a smaller one.

        Args:
            per_class: images of each class, sorted by class; give this or ``count``, or get 10 a class (or what
                there is, if that is less).
            count: images in all, the classes taking turns.
            labels: the classes; all that were inverted if left out.
            seed: of the samples; the recipe's if left out.
            dropout: keep the generator's dropout on; as the recipe says if left out.

        Raises:
            UsageError: an argument is out of range, a label was not inverted, or there are not so many images.
        """
        classes = self.choose(labels)
        if per_class is not None and count is not None:
            raise UsageError("give per_class or count, not both.")
        if per_class is None:
            per_class = 10 if self.images_per_class is None else min(10, self.images_per_class)
        total = count if count is not None else per_class * len(classes)
        if total < 1:
            raise UsageError("ask for at least one image.")
        self.check_there_are(classes, total)
        seed = self.recipe.seed if seed is None else seed
        dropout = self.recipe.sampling.dropout if dropout is None else dropout
        size, asked = self.recipe.sampling.chunk, torch.tensor(classes)
        chunks = []
        for start in range(0, total, size):
            rows = torch.arange(start, start + size)  # whole chunks: a larger count only adds
            chunk_seed = derive_seed(seed, "samples", start // size)
            chunk = self.chunk(asked[rows % len(classes)], rows // len(classes), chunk_seed, dropout)
            chunks.append(chunk[: total - start])
        drawn = Draw.join(chunks)
        if count is None:
            drawn = drawn[torch.arange(total).reshape(-1, len(classes)).T.flatten()]
        return drawn

    def choose(self, labels: Sequence[int] | None) -> list[int]:
        """Return the classes that are asked for; all that were inverted if None.

        Raises:
            UsageError: one was not inverted, or there is none.
        """
        classes = self.classes if labels is None else list(labels)
        unknown = sorted(set(classes) - set(self.classes))
        if unknown or not classes:
            known = f"{self.classes[0]} to {self.classes[-1]}" if self.recipe.labels is None else str(self.classes)
            raise UsageError(f"labels {unknown} were not inverted; this inversion has {known}.")
        return classes

    def check_there_are(self, classes: list[int], total: int) -> None:  # noqa: B027  # there is no end of most
        """See that ``total`` images can be drawn, the classes taking turns.

        Raises:
            UsageError: there are not so many.
        """

    @abstractmethod
    def chunk(self, labels: Tensor, turns: Tensor, seed: int, dropout: bool) -> Draw:
        """Make an image for each label, all at once; they depend on nothing but the arguments.

        Args:
            labels: (N,) int64, on the CPU.
            turns: (N,) int64, from 0: the how-manieth image of its class each one is.
            seed: of this chunk.
            dropout: keep the generator's dropout on.
        """

    def to(self, device: torch.device | str) -> Self:
        """Make and judge images on a device from now on; its random numbers are not those of another kind of device."""
        return self

    def figure(self, per_class: int = 8) -> Figure:
        """Return a matplotlib figure of samples, one row per class, of at most 20 classes.

        Raises:
            UsageError: there are not so many samples of a class.
        """
        from interpkit.io.plots import sample_figure

        images, labels = self.sample(per_class, labels=self.classes[:SHOWN_CLASSES])
        return sample_figure(images, labels, self.target.class_names)

    def curves(self) -> Figure:
        """Return a matplotlib figure of the training: each term and the inversion accuracy, by step."""
        from interpkit.io.plots import history_figure

        records = self.history
        terms = {name: [record.terms[name] for record in records] for name in (records[-1].terms if records else ())}
        steps = [record.step for record in records]
        return history_figure(steps, terms, [record.inversion_accuracy for record in records])

    def _repr_html_(self) -> str:
        """Show the inversion in a notebook: one sentence and a grid of samples."""
        from interpkit.io.plots import to_html

        per_class = 8 if self.images_per_class is None else min(8, self.images_per_class)
        images, labels = self.sample(per_class, labels=self.classes[:SHOWN_CLASSES])
        if images.dim() == 4:
            images = (images * 255).round().to(torch.uint8)
        with self.target.frozen(self.device), torch.no_grad():
            seen = images.to(self.device)
            right = self.target(seen / 255 if seen.dtype == torch.uint8 else seen).argmax(1).cpu() == labels
        sentence = (
            f"Inversion of {self.target.name} by {self.recipe.inverter.name}, {self.steps_done} of "
            f"{self.recipe.steps} steps, seed {self.recipe.seed}: the target classifies {right.double().mean():.1%} of "
            f"{len(labels)} samples as the class asked for."
        )
        return to_html(sentence, images, labels, self.target.class_names)

    def save(self, folder: str | Path, *, force: bool = False) -> Path:
        """Write the run folder: recipe, manifest, weights, history, metrics and samples.

        Args:
            folder: where to write it; created if it does not exist.
            force: replace another run that is there.

        Raises:
            RunError: the folder holds another run.
        """
        from interpkit.api.finish import save

        return save(self, Path(folder), force=force)
