"""Start the generator at a brightness where the target has a gradient."""

from __future__ import annotations

import logging

import torch

from interpkit.interfaces import contracts
from interpkit.interfaces.generation import Generator
from interpkit.interfaces.targets import Target
from interpkit.runtime.devices import device_of

log = logging.getLogger("interpkit")

LEVELS = (0.5, 0.25, 0.1, 0.02, 0.005, 0.001, 0.75, 0.9, 0.98)
"""Brightnesses to start at: the usual gray, then darker, then brighter."""


def warm_start(target: Target, generator: Generator) -> None:
    """Start the generator where the target's logits have a gradient with respect to the image.

    All ReLUs of a classifier may be off for a gray image, and then the generator never learns anything. It starts at
    the first of `LEVELS` that has a gradient; if that is gray, nothing changes.
    """
    device = device_of(target)
    for level in LEVELS:
        image = torch.full((1, *target.input_shape), level, device=device, requires_grad=True)
        logits = target(image)
        # Differences of logits mean the same for every kind of output; of log-probabilities logsumexp is always 0.
        contrast = logits @ torch.linspace(-1, 1, logits.shape[1], device=device)
        (slope,) = torch.autograd.grad(contrast.sum(), image, allow_unused=True)
        if slope is not None and slope.any():
            if level != LEVELS[0]:
                with contracts.blamed(generator):
                    generator.start_at(level)
                log.warning("the target has no gradient at gray, so the generator starts at brightness %g", level)
            return
    log.warning("the target has no gradient at any plain image: it may not be possible to invert it")
