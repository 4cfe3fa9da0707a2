"""Start the generator at a brightness where the target has a gradient."""

from __future__ import annotations

import logging

import torch

from interpkit.interfaces import contracts
from interpkit.interfaces.generation import Generator
from interpkit.interfaces.targets import Target
from interpkit.runtime.devices import device_of

log = logging.getLogger("interpkit")

GRAY = 0.5
LEVELS = (0.25, 0.1, 0.02, 0.005, 0.001, 0.75, 0.9, 0.98)
"""Brightnesses to start at if the usual gray does not work: darker, then brighter."""


def warm_start(target: Target, generator: Generator) -> float | None:
    """Start the generator where the target's logits have a gradient with respect to the image.

    All ReLUs of a classifier may be off for a gray image, and then the generator never learns anything. It starts at
    the one of `LEVELS` with the largest gradient, which is returned; if gray has a gradient, nothing changes.
    """
    if _slope(target, GRAY):
        return None
    slopes = {level: _slope(target, level) for level in LEVELS}
    level = max(slopes, key=slopes.__getitem__)
    if not slopes[level]:
        log.warning("the target has no gradient at any plain image: it may not be possible to invert it")
        return None
    with contracts.blamed(generator):
        generator.start_at(level)
    log.warning("the target has no gradient at gray, so the generator starts at brightness %g", level)
    return level


def _slope(target: Target, level: float) -> float:
    """Return the size of the gradient at a plain image."""
    image = torch.full((1, *target.input_shape), level, device=device_of(target), requires_grad=True)
    logits = target(image)
    # Differences of logits mean the same for every kind of output; of log-probabilities logsumexp is always 0.
    contrast = logits @ torch.linspace(-1, 1, logits.shape[1], device=logits.device, dtype=logits.dtype)
    (slope,) = torch.autograd.grad(contrast.sum(), image, allow_unused=True)
    return 0.0 if slope is None else float(slope.norm())
