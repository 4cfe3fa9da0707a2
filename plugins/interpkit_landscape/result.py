"""`LandscapeInversion`: the result of ``landscape``, which draws any number of images by short descents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Self

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from interpkit import (
    Draw,
    Inversion,
    Recipe,
    RunError,
    Section,
    StepRecord,
    Strip,
    Target,
    derive_seed,
    random_generator,
)
from interpkit_landscape.descent import Descent

FILE = "theta.safetensors"
SHOWN = 10
"""The most classes, and the most points of a path, in the report."""
RIVALS = (20, 50, 200, 1000)


class LandscapeInversion(Inversion):
    """A trained map theta, with which each image is drawn by a descent in Z from a new point.

    Attributes:
        descent: theta, and the steps that draw an image.
        updates: steps of theta after each batch of paths.
    """

    def __init__(
        self, target: Target, recipe: Recipe, history: Sequence[StepRecord], descent: Descent, updates: int
    ) -> None:
        super().__init__(target, recipe, history)
        self.descent = replace(descent, autocast=torch.autocast("cpu", enabled=False))  # all devices draw in fp32
        self.descent.trained.eval()
        self.updates = updates

    @property
    def device(self) -> torch.device:
        """The device on which images are drawn and classified: that of theta."""
        return self.descent.theta.label.weight.device

    def to(self, device: torch.device | str) -> Self:
        """Move theta; see `Inversion.to`."""
        self.descent.trained.to(device)
        return self

    @property
    def trained_gradients(self) -> int:
        """The gradients of the objective that the training needed, one for each image in each step of z or theta."""
        return self.steps_done * self.recipe.batch_size * (self.descent.steps + self.updates)

    def paid_from(self, rival: int) -> int | None:
        """Return from how many images on theta pays off, training included; None if it never does.

        Args:
            rival: gradients per image of the method to compare with.
        """
        saved = rival - self.descent.steps
        return math.ceil(self.trained_gradients / saved) if saved > 0 else None

    def chunk(self, labels: Tensor, turns: Tensor, seed: int, dropout: bool) -> Draw:
        """Draw images by a descent from random points."""
        images = self._path(labels, seed)[-1]
        return Draw(images, labels, F.one_hot(labels, self.target.num_classes).float(), torch.zeros_like(labels))

    def _path(self, labels: Tensor, seed: int) -> list[Tensor]:
        """Return the images along a descent, T + 1 times (N, *input_shape) on the CPU."""
        device, rng = self.device, random_generator(self.device, seed)
        own = labels.to(device)
        z = torch.randn(len(labels), *self.target.input_shape, device=device, generator=rng)
        # the layout of the training: another rounds differently, and a descent amplifies the difference
        with self.target.frozen(device, torch.channels_last):
            points, _ = self.descent.path(z, own, 1 - 1 / self.recipe.steps, rng)
        with torch.no_grad():
            return [self.descent.theta(point, own).cpu() for point in points]

    def files(self) -> dict[str, bytes]:
        """Return theta.safetensors: the weights of theta and of those terms that have any."""
        weights = {name: tensor.cpu().contiguous() for name, tensor in self.descent.trained.state_dict().items()}
        return {FILE: safetensors.torch.save(weights)}

    def restore(self, weights: dict[str, Tensor]) -> None:
        """Load the weights of theta.safetensors.

        Raises:
            RunError: they do not fit the recipe.
        """
        try:
            self.descent.trained.load_state_dict(weights)
        except RuntimeError as error:
            raise RunError(f"{FILE} does not fit the recipe beside it. Run again with --force.") from error

    def sections(self) -> list[Section]:
        """Return the cost of the training, and one descent for each of the first ten classes."""
        labels, last = torch.tensor(self.classes[:SHOWN]), self.descent.steps
        shown = sorted({round(last * part / (SHOWN - 1)) for part in range(SHOWN)})
        path = self._path(labels, derive_seed(self.recipe.seed, "report"))
        rows = torch.stack([path[t] for t in shown], 1)
        strips = [Strip(self.target.class_names[k], row) for k, row in zip(labels.tolist(), rows, strict=True)]
        text = (
            f"The training of theta took {self.trained_gradients:,} gradients of the objective, one for each image in "
            f"each step; every image then takes {last}. The table shows the number of images from which this is fewer "
            f"gradients than a method without a training takes. Each strip is one descent, at its steps "
            f"{', '.join(map(str, shown))}."
        )
        paid = [(rival, self.paid_from(rival) or "never") for rival in RIVALS]
        return [Section("Descent in Z", text, ("gradients per image", "has paid from image"), paid, strips)]
