"""The two results that come with interpkit: a trained generator, and a fixed set of images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interpkit.config.recipe import Recipe
from interpkit.errors import PluginError, RunError, UsageError
from interpkit.interfaces import contracts
from interpkit.interfaces.generation import Conditioner, Generator
from interpkit.interfaces.inversions import Draw, Inversion
from interpkit.interfaces.targets import Target
from interpkit.runtime.random import global_seed, random_generator

if TYPE_CHECKING:
    from interpkit.runtime.recorder import StepRecord


class ImageInversion(Inversion):
    """A fixed set of finished images, from a method that makes them one by one and learns no generator.

    What is drawn are these images, each class's in the order given; the seed of a draw changes nothing. A run
    on disk keeps those that it writes to samples.safetensors, in 8 bits. An inverter that makes such an inversion
    has the option ``per_class``, images of each class.

    Args:
        target: the classifier.
        recipe: the resolved recipe.
        history: of the run.
        images: (N, *input_shape) in [0, 1].
        labels: (N,) int64, the class that each was made for.

    Raises:
        PluginError: these are no such images.
        RunError: a class that the recipe asks for has no image.

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
        self, target: Target, recipe: Recipe, history: Sequence[StepRecord], images: Tensor, labels: Tensor
    ) -> None:
        super().__init__(target, recipe, history)
        if images.shape[1:] != target.input_shape or labels.shape != images.shape[:1]:
            raise PluginError(
                f"the inverter {recipe.inverter.name!r} broke a promise of its interface: its images have the shape "
                f"(N, {', '.join(map(str, target.input_shape))}) and its labels (N,), not {tuple(images.shape)} and "
                f"{tuple(labels.shape)}."
            )
        self.images = images.detach().float().cpu()
        self.labels = labels.cpu()
        self._rows = {label: (self.labels == label).nonzero()[:, 0] for label in self.classes}
        missing = [label for label, rows in self._rows.items() if not len(rows)]
        if missing:
            raise RunError(f"{recipe.inverter.name} made no image of the classes {missing}.")

    @property
    def images_per_class(self) -> int:
        """The most images that can be drawn of every class."""
        return min(len(rows) for rows in self._rows.values())

    def check_there_are(self, classes: list[int], total: int) -> None:
        """See that every class has so many images."""
        for place, label in enumerate(classes):
            asked, there = len(range(place, total, len(classes))), len(self._rows[label])
            if asked > there:
                raise UsageError(
                    f"class {label} has {there} images, not {asked}: {self.recipe.inverter.name} makes them one by "
                    f"one, and keeps no generator of more. Ask for fewer, or invert again with "
                    f"--set inverter.per_class={asked}."
                )

    def chunk(self, labels: Tensor, turns: Tensor, seed: int, dropout: bool) -> Draw:
        """Return finished images; after a class's last comes its first."""
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
    ) -> None:
        super().__init__(target, recipe, history)
        # As in the loop: another memory layout takes other kernels, and so other roundings.
        self.generator = generator.to(memory_format=torch.channels_last)
        self.conditioner = conditioner.to(memory_format=torch.channels_last)

    @property
    def device(self) -> torch.device:
        """Where images are made and judged: the device of the networks."""
        return self.conditioner.device

    def to(self, device: torch.device | str) -> Self:
        """Move the networks; see `Inversion.to`."""
        self.generator.to(device)
        self.conditioner.to(device)
        return self

    @torch.no_grad()
    def chunk(self, labels: Tensor, turns: Tensor, seed: int, dropout: bool) -> Draw:
        """Let the generators make images, each class's by each generator in turn."""
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
def sampling_mode(module: nn.Module, dropout: bool) -> Iterator[None]:
    """Put the module in eval mode but, if asked, its dropout; restore each submodule's mode after."""
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
