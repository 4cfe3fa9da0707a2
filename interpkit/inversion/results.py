"""The two kinds of results that interpkit provides: a trained generator, and a fixed set of images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interpkit.config.recipe import Recipe
from interpkit.errors import PluginError, RunError
from interpkit.interfaces import contracts
from interpkit.interfaces.generation import Conditioner, Generator
from interpkit.interfaces.inversions import Draw, Inversion, in_unit
from interpkit.interfaces.sections import Section, Strip
from interpkit.interfaces.targets import Target
from interpkit.inversion import interpolation
from interpkit.io.atomic import digest, to_safetensors
from interpkit.runtime.random import global_seed, random_generator

if TYPE_CHECKING:
    from interpkit.runtime.recorder import StepRecord


GENERATOR_FILE = "generator.safetensors"
MOST_CLASSES = 10
LARGE = 20_000
"""The number of values in an image above which a class is morphed into the next class only, not into every other."""
MORPHS = (
    "The latent is fixed, and the condition moves from one class to the other. Below each image: the class that the "
    "target predicts, and its confidence."
)
WALKS = "The condition is fixed, and the latent moves from one point to another: what varies within the class."


class ImageInversion(Inversion):
    """A fixed set of images, from a method that makes them one by one instead of learning a generator.

    Drawing returns these images, in their order within each class; the seed of a draw has no effect. A run on disk
    keeps those that it writes to samples.safetensors, in 8 bits. If the user can choose the number of images per class,
    the inverter has the option ``per_class``.

    Args:
        target: the classifier.
        recipe: the resolved recipe.
        history: the history of the run.
        images: (N, *input_shape) in [0, 1].
        labels: (N,) int64, the class that each was made for.
        empty: the classes without an image, each with the reason.

    Raises:
        PluginError: the images do not have that shape, or leave [0, 1].
        RunError: a class that the recipe requests has neither an image nor a reason.

    Example:
        >>> import torch
        >>> from interpkit import ImageInversion, Recipe, evaluate, wrap
        >>> target = wrap(torch.nn.Identity(), input_shape=(2,))  # its logits are its inputs
        >>> images, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
        >>> inversion = ImageInversion(target, Recipe(), [], images, labels)
        >>> evaluate(inversion)["inversion_accuracy"]
        1.0
    """

    def __init__(
        self,
        target: Target,
        recipe: Recipe,
        history: Sequence[StepRecord],
        images: Tensor,
        labels: Tensor,
        *,
        empty: Mapping[int, str] | None = None,
    ) -> None:
        super().__init__(target, recipe, history, empty=empty)
        if images.shape[1:] != target.input_shape or labels.shape != images.shape[:1]:
            raise PluginError(
                f"the inverter {recipe.inverter.name!r} violates its interface contract: its images have the shape "
                f"(N, {', '.join(map(str, target.input_shape))}) and its labels (N,), not {tuple(images.shape)} and "
                f"{tuple(labels.shape)}."
            )
        self.images = in_unit(images.detach().float().cpu(), recipe)
        self.labels = labels.cpu()
        self._rows = {label: (self.labels == label).nonzero()[:, 0] for label in self.classes}
        missing = [label for label, rows in self._rows.items() if not len(rows)]
        if missing:
            raise RunError(
                f"{recipe.inverter.name} made no image of the classes {missing}, and gave no reason. An inverter must "
                f"give the reason in ImageInversion(..., empty={{{missing[0]}: '...'}})."
            )

    def available(self, label: int) -> int:
        """Return the number of images of a class."""
        return len(self._rows[label])

    def fingerprint(self) -> str:
        """Return the sha256 of the images and labels, in the form in which a run stores them."""
        images = (self.images * 255).round().to(torch.uint8) if self.images.dim() == 4 else self.images
        order = self.labels.argsort(stable=True)
        return digest({"images": images[order], "labels": self.labels[order]})

    def chunk(self, labels: Tensor, turns: Tensor, seed: int, dropout: bool) -> Draw:
        """Return the images of each class in turn, starting over after its last."""
        own = [self._rows[label] for label in labels.tolist()]
        rows = torch.stack([own[turn % len(own)] for own, turn in zip(own, turns.tolist(), strict=True)])
        one_hot = F.one_hot(labels, self.target.num_classes).float()
        return Draw(self.images[rows], labels, one_hot, torch.zeros_like(labels))


class GeneratorInversion(Inversion):
    """A trained conditioned generator.

    Attributes:
        generator: (latent, condition) -> images in [0, 1].
        conditioner: draws conditions.
    """

    def __init__(
        self,
        target: Target,
        recipe: Recipe,
        history: Sequence[StepRecord],
        generator: Generator,
        conditioner: Conditioner,
        *,
        empty: Mapping[int, str] | None = None,
    ) -> None:
        super().__init__(target, recipe, history, empty=empty)
        # As in the loop: another memory layout uses other kernels, which round differently.
        self.generator = generator.to(memory_format=torch.channels_last)
        self.conditioner = conditioner.to(memory_format=torch.channels_last)

    @property
    def device(self) -> torch.device:
        """The device on which images are generated and classified: that of the networks."""
        return self.conditioner.device

    def to(self, device: torch.device | str) -> Self:
        """Move the networks; see `Inversion.to`."""
        self.generator.to(device)
        self.conditioner.to(device)
        return self

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights of the generator and the conditioner, by their names in generator.safetensors."""
        parts: dict[str, nn.Module] = {"generator": self.generator, "conditioner": self.conditioner}
        return {
            f"{part}.{name}": tensor.detach().cpu().contiguous().clone()
            for part, net in parts.items()
            for name, tensor in net.state_dict().items()
        }

    def files(self) -> dict[str, bytes]:
        """Return generator.safetensors, the weights."""
        metadata = {
            "format": "pt",
            "interpkit.schema": "1",
            "interpkit.kind": "generator",
            "interpkit.recipe": self.recipe.model_dump_json(exclude_none=True),
        }
        return {GENERATOR_FILE: to_safetensors(self.tensors(), metadata)}

    def fingerprint(self) -> str:
        """Return the sha256 of the weights."""
        return digest(self.tensors())

    @torch.no_grad()
    def sections(self) -> list[Section]:
        """Return morphs between the first ten classes, and walks within each of them.

        Every pair of classes has a morph; if images are large, only each class and the next.
        """
        classes, names, seed = self.classes[:MOST_CLASSES], self.target.class_names, self.recipe.seed
        places = range(len(classes))
        small = math.prod(self.target.input_shape) <= LARGE
        pairs = list(itertools.combinations(places, 2) if small else itertools.pairwise(places))
        with sampling_mode(self.generator, dropout=False), sampling_mode(self.conditioner, dropout=False):
            between = interpolation.morphs(self.generator, self.conditioner, classes, pairs, seed)
            within = interpolation.walks(self.generator, self.conditioner, classes, seed)
        ends = [f"{names[classes[a]]} → {names[classes[b]]}" for a, b in pairs]
        morphs = [Strip(title, images) for title, images in zip(ends, between, strict=True)]
        walks = [Strip(names[label], images) for label, images in zip(classes, within, strict=True)]
        sections = [Section("Within a class", WALKS, strips=walks)]
        if morphs:
            sections.insert(0, Section("From one class to another", MORPHS, strips=morphs, one_at_a_time=True))
        return sections

    @torch.no_grad()
    def chunk(self, labels: Tensor, turns: Tensor, seed: int, dropout: bool) -> Draw:
        """Generate images; within each class, the generators take turns."""
        device = self.device
        made_by = turns.to(device) % self.recipe.generators
        rng = random_generator(device, seed)
        with (
            sampling_mode(self.generator, dropout),
            sampling_mode(self.conditioner, dropout),
            global_seed(seed, device),
        ):
            condition = contracts.condition(self.conditioner, len(labels), labels.to(device), rng)
            latent = torch.randn(len(labels), self.generator.latent_dim, device=device, generator=rng)
            images = contracts.images(self.generator, latent, condition, made_by)
        return Draw(images.cpu(), labels, condition.distribution.float().cpu(), made_by.cpu())


@contextmanager
def moved(inversion: GeneratorInversion, device: torch.device) -> Iterator[None]:
    """Move an inversion to a device for a block: elsewhere it draws other images."""
    before = inversion.device
    inversion.to(device)
    try:
        yield
    finally:
        inversion.to(before)


@contextmanager
def sampling_mode(module: nn.Module, dropout: bool) -> Iterator[None]:
    """Put the module in eval mode, except dropout if requested; restore each submodule's mode at the end."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    for part in module.modules():
        if dropout and isinstance(part, nn.modules.dropout._DropoutNd):
            part.train()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
