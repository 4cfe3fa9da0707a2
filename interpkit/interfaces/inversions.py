"""`Inversion`, the result of every method, and `Draw`, the images drawn from it."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from interpkit.config.recipe import Recipe
from interpkit.errors import InterpkitError, PluginError, UsageError, listed, percent, setting
from interpkit.interfaces.sections import Section
from interpkit.interfaces.targets import Target
from interpkit.runtime import progress
from interpkit.runtime.at_once import in_batches
from interpkit.runtime.autograd import with_autograd
from interpkit.runtime.random import derive_seed
from interpkit.runtime.recorder import ROUNDING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from interpkit.interfaces.losses import InversionLoss
    from interpkit.runtime.recorder import StepRecord

log = logging.getLogger("interpkit")

SHOWN_CLASSES = 20
"""The maximum number of classes that a notebook shows."""


@dataclass(frozen=True)
class Draw:
    """Images drawn from an inversion, and the conditions that they were made for; all on the CPU.

    Attributes:
        images: (N, *input_shape) float32 in [0, 1].
        labels: (N,) int64, the requested classes.
        distribution: (N, n) float32, the conditions' distributions P; one-hot if the method uses labels alone.
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
        """Return the parts concatenated."""
        columns = zip(*((p.images, p.labels, p.distribution, p.generator) for p in parts), strict=True)
        return cls(*(torch.cat(column) for column in columns))


class Inversion(ABC):
    """The result of an inversion method: what it has learned about a target.

    A method whose result is neither a generator nor a fixed set of images derives its own class: `chunk` draws images,
    `files` returns what a run folder stores, and `Inverter.load` restores the inversion from it.

    Attributes:
        target: the classifier.
        recipe: the resolved recipe.
        history: a record at least every ten steps; 10,000 records in total for runs of over 100,000 steps.
        empty: the classes for which the method found no image, each with the reason, a phrase.

    Example:
        >>> import torch
        >>> from interpkit import invert, wrap
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
        >>> inversion = invert(wrap(net, input_shape=(1, 8, 8)), ["vecmat"], steps=10, batch_size=16)
        >>> drawn = inversion.draw(count=4, labels=[0, 2])  # the classes take turns
        >>> drawn.images.shape, drawn.labels
        (torch.Size([4, 1, 8, 8]), tensor([0, 2, 0, 2]))
    """

    terms: Mapping[str, InversionLoss] | Callable[[], Mapping[str, InversionLoss]] = MappingProxyType({})
    """The terms of the objective by name, or what builds them when `figures` first needs them."""
    noted: Mapping[str, object] = MappingProxyType({})
    """How it was computed, for the manifest of a run."""
    last_step: int | None = None
    """The last completed step of a stored run; None: that of the history."""

    def __init__(
        self, target: Target, recipe: Recipe, history: Sequence[StepRecord], *, empty: Mapping[int, str] | None = None
    ) -> None:
        self.target = target
        self.recipe = recipe
        self.history = list(history)
        self.empty = dict(empty or {})

    @property
    def device(self) -> torch.device:
        """The device on which images are generated and classified."""
        return torch.device("cpu")

    def available(self, label: int) -> int | None:
        """Return how many images of a class can be drawn; None if any number can."""
        return None

    @property
    def images_per_class(self) -> int | None:
        """The number of images that can be drawn of each class; None if any number can."""
        counts = [count for label in self.classes if (count := self.available(label)) is not None]
        return min(counts, default=None)

    @property
    def steps_done(self) -> int:
        """The last completed step."""
        if self.last_step is not None:
            return self.last_step
        return self.history[-1].step if self.history else 0

    @property
    def classes(self) -> list[int]:
        """The classes that were inverted and have images, in the recipe's order."""
        labels = range(self.target.num_classes) if self.recipe.labels is None else self.recipe.labels
        return [label for label in labels if label not in self.empty]

    def files(self) -> Mapping[str, bytes]:
        """Return the inversion's own files by name: all that `Inverter.load` needs to restore the same inversion.

        A run folder stores each unchanged and lists its sha256 in the manifest. A name consists of letters, digits,
        ``.``, ``_`` and ``-``, begins with a letter or digit, and is not one of the run's files like ``manifest.json``.
        """
        return {}

    def sections(self) -> Sequence[Section]:
        """Return the sections of the report that this inversion adds to its samples and figures."""
        return ()

    def fingerprint(self) -> str:
        """Return a sha256 of what the images are made from; inversions that draw the same images may share one."""
        digest = hashlib.sha256(self.recipe.inverter.model_dump_json().encode())
        for name, content in sorted(self.files().items()):
            digest.update(f"{name}\0{len(content)}\n".encode() + content)
        return digest.hexdigest()

    def sample(
        self,
        per_class: int | None = None,
        *,
        count: int | None = None,
        labels: Sequence[int | str] | None = None,
        seed: int | None = None,
        dropout: bool | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw images; see `draw`.

        Returns:
            images, (N, *input_shape) float32 in [0, 1], and the requested labels, (N,) int64; on the CPU.
        """
        drawn = self.draw(per_class, count=count, labels=labels, seed=seed, dropout=dropout)
        return drawn.images, drawn.labels

    @with_autograd
    def draw(
        self,
        per_class: int | None = None,
        *,
        count: int | None = None,
        labels: Sequence[int | str] | None = None,
        seed: int | None = None,
        dropout: bool | None = None,
    ) -> Draw:
        """Draw images, with the conditions they were made for.

        The same arguments return the same images on the same machine, and a larger ``per_class`` or ``count``
        only adds images to those of a smaller one.

        Args:
            per_class: number of images of each class, sorted by class; specify either this or ``count``, or get 10 per
                class (or all, if there are fewer).
            count: total number of images; the classes take turns.
            labels: the classes, by number or name; all that have images if omitted.
            seed: random seed of the samples; the recipe's if omitted.
            dropout: keep the generator's dropout on; the recipe's setting if omitted.

        Raises:
            UsageError: an argument is out of range, a label was not inverted or is empty, or there are too few images.
            PluginError: an image is not finite or leaves [0, 1].
        """
        classes = self.choose(labels)
        if per_class is not None and count is not None:
            raise UsageError("specify either per_class or count, not both.")
        if per_class is None:
            per_class = 10 if self.images_per_class is None else min(10, self.images_per_class)
        total = count if count is not None else per_class * len(classes)
        if total < 1:
            raise UsageError("specify at least one image.")
        self.check_count(classes, total)
        seed = self.recipe.seed if seed is None else seed
        dropout = self.recipe.sampling.dropout if dropout is None else dropout
        size, cycle = self.recipe.sampling.chunk, torch.tensor(classes)
        chunks = []
        for start in range(0, total, size):
            rows = torch.arange(start, start + size)  # whole chunks: a larger count only adds
            chunk_seed = derive_seed(seed, "samples", start // size)
            chunk = self.chunk(cycle[rows % len(classes)], rows // len(classes), chunk_seed, dropout)
            chunks.append(chunk[: total - start])
            progress.tell("samples drawn", min(start + size, total), total)
        drawn = Draw.join(chunks)
        drawn = replace(drawn, images=in_unit(drawn.images, self.recipe))
        if count is None:
            drawn = drawn[torch.arange(total).reshape(-1, len(classes)).T.flatten()]
        return drawn

    def sample_up_to(self, per_class: int, labels: Sequence[int | str] | None = None) -> tuple[Tensor, Tensor]:
        """Return as many images of each class, or all that there are of a class with fewer; see `sample`.

        Raises:
            UsageError: as `sample`.
        """
        drawn = self.draw_up_to(per_class, labels)
        return drawn.images, drawn.labels

    def draw_up_to(self, per_class: int, labels: Sequence[int | str] | None = None) -> Draw:
        """Draw as many images of each class, or all that there are of a class with fewer; see `draw`.

        Raises:
            UsageError: as `draw`.
        """
        if self.images_per_class is None:
            return self.draw(per_class, labels=labels)
        counts = {label: self.available(label) for label in self.choose(labels)}
        return Draw.join(
            [
                self.draw(per_class if there is None else min(there, per_class), labels=[label])
                for label, there in counts.items()
            ]
        )

    def choose(self, labels: Sequence[int | str] | None) -> list[int]:
        """Return the requested classes; all that have images if None.

        Raises:
            UsageError: a class was not inverted, is empty or occurs twice, or there are no classes.
        """
        number = self.target.class_number
        classes = self.classes if labels is None else [number(x) if isinstance(x, str) else x for x in labels]
        for label in classes:
            if label in self.empty:
                raise UsageError(f"class {label} ({self.target.class_names[label]}) is empty: {self.empty[label]}.")
        unknown = sorted(set(classes) - set(self.classes))
        if unknown or not classes:
            known = str(self.classes)
            if self.classes and self.recipe.labels is None and not self.empty:
                known = f"{self.classes[0]} to {self.classes[-1]}"
            more = f" and {len(unknown) - 5:,} more" if len(unknown) > 5 else ""
            raise UsageError(f"labels {unknown[:5]}{more} were not inverted; this inversion has {known}.")
        if repeated := [str(label) for label, times in Counter(classes).items() if times > 1]:
            raise UsageError(f"labels name {listed(repeated)} more than once. Name each class once.")
        return classes

    def check_count(self, classes: Sequence[int], total: int) -> None:
        """Check that ``total`` images can be drawn if the classes take turns.

        Raises:
            UsageError: a class has too few images.
        """
        for place, label in enumerate(classes):
            wanted, available = len(range(place, total, len(classes))), self.available(label)
            if available is not None and wanted > available:
                method = self.recipe.inverter
                more = f", or invert again with {setting('inverter.per_class', wanted)}" * (
                    "per_class" in method.options
                )
                raise UsageError(
                    f"class {label} has {available} images, not {wanted}: {method.name} made a fixed number of them. "
                    f"Ask for fewer{more}."
                )

    @abstractmethod
    def chunk(self, labels: Tensor, turns: Tensor, seed: int, dropout: bool) -> Draw:
        """Make an image for each label, all at once; the images depend only on the arguments.

        Args:
            labels: (N,) int64, on the CPU.
            turns: (N,) int64, the index of each image within its class, from 0.
            seed: random seed of this chunk.
            dropout: keep the generator's dropout on.
        """

    @with_autograd
    def figures(self, images: Tensor) -> dict[str, Tensor]:
        """Return what the terms of the objective say of single images; see `InversionLoss.figures`.

        Args:
            images: (N, *input_shape) in [0, 1], of `sample` or any others.

        Returns:
            (N,) float32 on the CPU each, by ``TERM.FIGURE``; empty if no term has figures.
        """
        from interpkit.interfaces import contracts

        if callable(self.terms):
            try:
                self.terms = self.terms()
            except InterpkitError as error:
                log.warning("the figures of single images are left out: %s", error)
                self.terms = {}
        terms = {name: loss.to(self.device) for name, loss in self.terms.items() if loss.describe}

        def of(rows: slice) -> dict[str, Tensor]:
            some = images[rows].to(self.device)
            found = {name: contracts.figures(loss, self.target, some) for name, loss in terms.items()}
            return {f"{name}.{figure}": found[name][figure] for name in found for figure in found[name]}

        if not terms:
            return {}
        with self.target.frozen(self.device), torch.no_grad():
            parts = in_batches(self.target, images, of)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def to(self, device: torch.device | str) -> Self:
        """Generate and classify images on a device from now on; each type of device has its own random numbers."""
        return self

    def figure(self, per_class: int = 8) -> Figure:
        """Return a matplotlib figure of samples, one row per class, of at most 20 classes.

        Raises:
            UsageError: a class has too few samples.
        """
        from interpkit.io.plots import sample_figure

        images, labels = self.sample(per_class, labels=self.classes[:SHOWN_CLASSES])
        return sample_figure(images, labels, self.target.class_names, self.target.description.input_shape or ())

    def curves(self) -> Figure:
        """Return a matplotlib figure of the training: each term and the inversion accuracy at each step."""
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
            batch = images.to(self.device)
            logits = self.target(batch / 255 if batch.dtype == torch.uint8 else batch).cpu()
            hits = self.target.accepts(logits, labels)
        share = percent(hits.double().mean().item())
        sentence = (
            f"Inversion of {self.target.name} by {self.recipe.inverter.name}, {self.steps_done} of "
            f"{self.recipe.steps} steps, seed {self.recipe.seed}: the target classifies {share} of "
            f"{len(labels)} samples as the class asked for."
        )
        return to_html(sentence, images, labels, self.target.class_names)

    def save(self, folder: str | Path, *, force: bool = False) -> Path:
        """Write the run folder: recipe, manifest, weights, history, metrics and samples.

        Args:
            folder: where to write it; created if it does not exist.
            force: replace another run in the folder.

        Raises:
            RunError: the folder holds another run.
        """
        from interpkit.api.finish import save

        return save(self, Path(folder), force=force)


class OutOfUnitError(PluginError):
    """An image of an inverter is not finite or leaves [0, 1]."""


def in_unit(images: Tensor, recipe: Recipe) -> Tensor:
    """Return the images of an inverter, clamped to [0, 1] where they leave it by no more than rounding.

    Raises:
        OutOfUnitError: an image is not finite or leaves [0, 1].
    """
    low, high = (bound.item() for bound in images.aminmax()) if images.numel() else (0.0, 1.0)
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        raise OutOfUnitError(
            f"the inverter {recipe.inverter.name!r} violates its interface contract: its images are finite and in "
            f"[0, 1], not from {low:.3g} to {high:.3g}."
        )
    return images if low >= 0 and high <= 1 else images.clamp(0, 1)
