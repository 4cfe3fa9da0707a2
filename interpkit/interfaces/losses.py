"""`InversionLoss`, one term of the objective, and the batch that it reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from interpkit.interfaces.components import Component, Options
from interpkit.interfaces.generation import Condition
from interpkit.interfaces.targets import Response, Target


@dataclass(frozen=True)
class GeneratedBatch:
    """B generated images, before the target has looked at them.

    Attributes:
        target: the frozen target.
        condition: what was asked for.
        latent: (B, latent_dim).
        images: (B, *input_shape) float32 in [0, 1], with gradient.
        progress: share of the training that is done, in [0, 1).
    """

    target: Target
    condition: Condition
    latent: Tensor
    images: Tensor
    progress: float


@dataclass(frozen=True)
class InversionBatch(GeneratedBatch):
    """A generated batch and the target's response: what a loss is given.

    Attributes:
        response: to ``images``.
        views: (V, *input_shape), the extra images that this loss asked for; None if it asked for none.
        view_response: to ``views``.
    """

    response: Response
    views: Tensor | None = None
    view_response: Response | None = None


class InversionLoss(Component, nn.Module, ABC):
    """One term of the training objective: a scalar from one batch. Its parameters are trained along.

    Args:
        target: the target that will be inverted; not to be kept.
        options: an instance of the class's ``Options``; defaults if left out.

    Raises:
        UsageError: the term means nothing for this target.

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

    def __init__(self, target: Target, options: Options | None = None) -> None:
        super().__init__()
        self.options = self.Options() if options is None else options

    @abstractmethod
    def forward(self, batch: InversionBatch) -> Tensor:
        """Return the term, a scalar with gradient; the weight is applied by the loop.

        It is a mean over the batch, so that a weight means the same for any batch size.
        """

    def layers(self, target: Target) -> list[str]:
        """Return the layers whose features the term reads, beyond the target's default."""
        return []

    def views(self, batch: GeneratedBatch, rng: torch.Generator) -> Tensor | None:
        """Return extra images for the target to look at, (V, *input_shape) in [0, 1], or None.

        The loop makes one ``target.respond`` of the images and one of all terms' views, and hands each term its
        slice. Only an inner search calls ``batch.target`` itself.
        """
        return None
