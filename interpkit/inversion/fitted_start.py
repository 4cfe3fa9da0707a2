"""Fit the generator to images that the target accepts, if it could hardly find them by training alone."""

from __future__ import annotations

import logging
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interpkit.config.recipe import Recipe
from interpkit.interfaces import contracts
from interpkit.interfaces.generation import Conditioner, Generator
from interpkit.interfaces.targets import Target
from interpkit.runtime import progress
from interpkit.runtime.random import derive_seed, global_seed

log = logging.getLogger("interpkit")

IMAGES, PER_CLASS = 256, 16
"""The most images in all, and of each class."""
PIXEL_STEPS, PIXEL_RATE = 100, 0.1
PIXEL_NOISE = 0.3
"""The standard deviation of the first pixels around the starting brightness, before the sigmoid."""
FIT_STEPS = 100


def fit_start(target: Target, conditioner: Conditioner, generator: Generator, recipe: Recipe, level: float) -> None:
    """Fit the generator to a few images of each class that were optimized pixel by pixel.

    If a target has a gradient near one brightness only, most images that a generator tries are outside that region,
    and it finds few of the classes or none. Single images find them, because each follows its own gradient. With more
    than `IMAGES` classes nothing is fitted.

    Args:
        target: the frozen classifier.
        conditioner: provides the conditions.
        generator: starts at ``level``, in training mode.
        recipe: provides the classes, the sizes of batches, the learning rate and the seed.
        level: a brightness at which the target has a gradient.
    """
    classes = list(range(target.num_classes)) if recipe.labels is None else recipe.labels
    if len(classes) > IMAGES:
        return
    device, size = torch.device(recipe.device), recipe.micro_batch or recipe.batch_size
    count = min(PER_CLASS, IMAGES // len(classes), generator.latent_dim)
    log.warning("before the training, the generator is fitted to %d images per class, found pixel by pixel", count)
    with global_seed(derive_seed(recipe.seed, "fitted start"), device):
        wanted = torch.tensor(classes, device=device).repeat_interleave(count)
        parts = []
        for part in wanted.split(size):
            parts.append(_optimize(target, part, level))
            progress.tell("batches of images found", len(parts), -(-len(wanted) // size))
        images = torch.cat(parts)
        networks = nn.ModuleList([conditioner, generator])
        adam = torch.optim.Adam(networks.parameters(), lr=recipe.optimizer.lr, betas=(0.5, 0.99))
        for step in range(FIT_STEPS):
            progress.tell("steps fitted to them", step, FIT_STEPS)
            chosen = torch.randint(len(classes), (size,), device=device)
            condition = contracts.condition(conditioner, size, wanted[chosen * count], None)
            latent = torch.randn(size, generator.latent_dim, device=device)
            made = contracts.images(generator, latent, condition)
            asked = images[chosen * count + latent[:, :count].argmax(1)]  # the latent decides which of a class
            loss = F.binary_cross_entropy(made.float().clamp(0, 1), asked)
            adam.zero_grad()
            loss.backward()
            adam.step()
        progress.tell("steps fitted to them", FIT_STEPS, FIT_STEPS)


def _optimize(target: Target, labels: Tensor, level: float) -> Tensor:
    """Return images (B, *input_shape) in [0, 1], optimized from a brightness for their labels (B,)."""
    noise = torch.randn(len(labels), *target.input_shape, device=labels.device)
    pixels = (math.log(level / (1 - level)) + PIXEL_NOISE * noise).requires_grad_()
    adam = torch.optim.Adam([pixels], lr=PIXEL_RATE, betas=(0.5, 0.99))
    for _ in range(PIXEL_STEPS):
        loss = target.cross_entropy(target(pixels.sigmoid()), labels).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return pixels.detach().sigmoid()
