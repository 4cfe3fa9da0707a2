"""`InversionLoss`, one term of the objective, and the batch that it reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from interpkit.interfaces.components import Component, Options
from interpkit.interfaces.generation import Condition
from interpkit.interfaces.targets import Response, Target


@dataclass(frozen=True)
class GeneratedBatch:
    """B generated images, before the target's forward pass.

    Attributes:
        target: the frozen target.
        condition: the condition that they were generated for.
        latent: (B, latent_dim).
        images: (B, *input_shape) float32 in [0, 1], with gradient.
        progress: completed share of the training, in [0, 1).
    """

    target: Target
    condition: Condition
    latent: Tensor
    images: Tensor
    progress: float


@dataclass(frozen=True)
class InversionBatch(GeneratedBatch):
    """A generated batch and the target's response: the input of a loss.

    Attributes:
        response: the target's response to ``images``.
        views: (V, *input_shape), the extra images that this loss requested; None if it did not request any.
        view_response: the target's response to ``views``.
    """

    response: Response
    views: Tensor | None = None
    view_response: Response | None = None


class InversionLoss(Component, nn.Module, ABC):
    """One term of the training objective: a scalar from one batch. Its parameters are trained with the generator's.

    Args:
        target: the target to invert; do not keep a reference to it.
        options: an instance of the class's ``Options``; defaults if omitted.

    Raises:
        UsageError: the term does not apply to this target.

    Example:
        >>> import torch
        >>> import interpkit
        >>> from interpkit import testing
        >>> class Ink(interpkit.InversionLoss):
        ...     "The mean brightness of the images."
        ...     name = "ink"
        ...     def forward(self, batch):
        ...         return batch.images.mean()
        >>> target = interpkit.wrap(torch.nn.Linear(4, 2), input_shape=(4,))
        >>> testing.evaluate_loss(Ink(target), target, torch.full((2, 4), 0.25), labels=[0, 1])
        tensor(0.2500)
    """

    options: Options
    describe: ClassVar[Mapping[str, str]] = {}
    """The names of the figures of `figures`, each with its meaning, one sentence, for the report."""

    def __init__(self, target: Target, options: Options | None = None) -> None:
        super().__init__()
        self.options = self.Options() if options is None else options

    @abstractmethod
    def forward(self, batch: InversionBatch) -> Tensor:
        """Return the term, a scalar with gradient; the loop applies the weight.

        Average over the batch, so that a weight has the same effect for any batch size.
        """

    def layers(self, target: Target) -> list[str]:
        """Return the layers whose features the term reads, in addition to the target's default."""
        return []

    def figures(self, target: Target, images: Tensor) -> Mapping[str, Tensor]:
        """Return figures of single images, such as how uncertain their class is; by default none.

        A run keeps them with its samples, and shows them of each sample and as the mean over each class. They depend
        on the images alone, and are computed without a gradient.

        Args:
            target: the target, frozen.
            images: (N, *input_shape) float32 in [0, 1].

        Returns:
            finite numbers, (N,), by the names in ``describe``.
        """
        return {}

    def views(self, batch: GeneratedBatch, rng: torch.Generator) -> Tensor | None:
        """Return extra images for the target to classify, (V, *input_shape) in [0, 1], or None.

        The loop calls ``target.respond`` once on the images and once on the views of all terms, and passes each term
        its slice. Only an inner search calls ``batch.target`` itself, and a term that reads gradients of the target's
        weights, within `Target.differentiable`.
        """
        return None
