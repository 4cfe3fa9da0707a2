"""Estimate the running statistics of a trained generator's batch norms from its final weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from interpkit.runtime import progress

IMAGES, BATCHES = 1024, 20
"""The statistics are estimated from so many images, rounded up to whole batches, or from so many batches if those are
fewer; the running averages of torch weigh about as many."""


class _Drawing(nn.Module):
    """Networks that draw batches, as the model that `update_bn` calls."""

    def __init__(self, networks: nn.Module, draw: Callable[[], object], batches: int) -> None:
        super().__init__()
        self.batches = batches
        self.networks = networks
        self.draw = draw

    def forward(self, number: int) -> None:
        self.draw()
        progress.tell("batches drawn for the generator's batch norms", number + 1, self.batches)


@torch.no_grad()
def estimate_batch_norms(networks: nn.Module, draw: Callable[[], object], batch_size: int) -> None:
    """Replace the running statistics of all batch norms by averages over new batches.

    The running statistics follow the weights with a delay of about ten steps, so after a short training the generator
    in eval mode differs from the one that was trained. The result depends only on the weights and on what is drawn, so
    a run that is resumed or extended obtains the same statistics.

    Args:
        networks: the networks that draw, in training mode.
        draw: draws a batch with them.
        batch_size: the size of that batch.
    """
    batches = min(BATCHES, -(-IMAGES // batch_size))
    update_bn(range(batches), _Drawing(networks, draw, batches))
