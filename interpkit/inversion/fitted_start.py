"""Fit the generator to images that the target accepts, if it could hardly find them by training alone."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interpkit.config.recipe import Optimizer, Recipe
from interpkit.interfaces import contracts
from interpkit.interfaces.generation import Conditioner, Generator
from interpkit.interfaces.targets import Target
from interpkit.inversion.checkpoint import TrainingState
from interpkit.inversion.objective import set_learning_rate
from interpkit.inversion.recovery import RecoverableTraining
from interpkit.runtime import progress
from interpkit.runtime.devices import autocast
from interpkit.runtime.random import derive_seed, global_seed

log = logging.getLogger("interpkit")

IMAGES, PER_CLASS = 256, 16
"""The most images in all, and of each class."""
PIXEL_STEPS, PIXEL_RATE = 100, 0.1
PIXEL_NOISE = 0.3
"""The standard deviation of the first pixels around the starting brightness, before the sigmoid."""
FIT_STEPS = 100
RATE, IMAGE_USES = 2.0, 40
"""The learning rate of a fit to another run's images, relative to that of the training, and how often it uses each of
them, in at least `FIT_STEPS`."""


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
        plain = recipe.model_copy(update={"precision": "fp32", "optimizer": Optimizer(lr=recipe.optimizer.lr, decay=0)})
        for _ in fit(conditioner, generator, plain, range(FIT_STEPS), images, wanted):
            pass


class _FitOfRun(TrainingState):
    """A fit whose checkpoint is that of its run before the first step, with its own state as ``fit``."""

    def __init__(self, run: RecoverableTraining, networks: nn.Module, adam: torch.optim.Optimizer) -> None:
        super().__init__(networks, adam, run.rng)
        self._of_run = run.state_dict()  # with the randomness that the training begins with

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the run."""
        return {**self._of_run, "fit": super().state_dict()}


def fit_images(
    run: RecoverableTraining, conditioner: Conditioner, generator: Generator, images: Tensor, labels: Tensor
) -> None:
    """Fit the generator to images of another run, for `Recipe.warm_start`'s steps; the target does not run.

    Args:
        run: provides the recipe and the recorder; if it has begun a fit, that is resumed.
        conditioner: provides the conditions.
        generator: in training mode.
        images: (N, *input_shape) in [0, 1].
        labels: (N,), in which every class to invert occurs.

    Raises:
        KeyboardInterrupt: asked to stop.
    """
    recipe, recorder, device = run.recipe, run.recorder, torch.device(run.recipe.device)
    steps = fit_steps(recipe, len(images))
    faster = recipe.optimizer.model_copy(update={"lr": RATE * recipe.optimizer.lr})
    recipe = recipe.model_copy(update={"optimizer": faster})
    adam = _adam(networks := nn.ModuleList([conditioner, generator]))
    state = _FitOfRun(run, networks, adam)
    recorder.images_so_far, last = 0, None
    with global_seed(derive_seed(recipe.seed, "warm start"), device):
        if run.fit is not None:
            state.load_state_dict(run.fit)
        for error in fit(
            conditioner, generator, recipe, range(state.step, steps), images.to(device), labels.to(device), adam
        ):
            last = error
            state.step += 1
            if recorder.pause(state) or recorder.stop_requested:
                raise KeyboardInterrupt
    recorder.images_so_far = None
    if last is not None:  # a run that was stopped after the last step of the fit has none left
        log.info("fitted to %d images in %d steps: the mean error of a pixel is %.3f", len(images), steps, float(last))


def fit_steps(recipe: Recipe, count: int) -> int:
    """Return the number of steps of a fit to so many images of another run."""
    batch = recipe.micro_batch or recipe.batch_size
    return recipe.warm_start.steps or max(FIT_STEPS, -(-IMAGE_USES * count // batch))


def _adam(networks: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(networks.parameters(), betas=(0.5, 0.99))


def fit(
    conditioner: Conditioner,
    generator: Generator,
    recipe: Recipe,
    steps: range,
    images: Tensor,
    labels: Tensor,
    adam: torch.optim.Optimizer | None = None,
) -> Iterator[Tensor]:
    """Fit a generator to images; yield the mean error of a pixel after each step.

    The largest of the first K latents determines which of a class's K images is requested, so that every latent has
    one. Of a generator with ``modes``, it is the largest of those; if there are fewer images, modes share them.
    """
    device, size = images.device, recipe.micro_batch or recipe.batch_size
    classes = labels.unique() if recipe.labels is None else torch.tensor(recipe.labels, device=device)
    most = generator.modes or generator.latent_dim
    own = [(labels == label).nonzero()[:most, 0] for label in classes]
    adam = adam or _adam(nn.ModuleList([conditioner, generator]))
    try:
        for step in steps:
            progress.tell("steps fitted to images", step, steps.stop)
            set_learning_rate(adam, recipe, step / steps.stop)
            chosen = torch.randint(len(classes), (size,), device=device)
            condition = contracts.condition(conditioner, size, classes[chosen], None)
            latent = torch.randn(size, generator.latent_dim, device=device)
            latent[:, generator.latent_dim - generator.poses :] = 0
            with autocast(device, recipe.precision):
                made = contracts.images(generator, latent, condition)
            rows = [
                own[c][z[: generator.modes or len(own[c])].argmax() % len(own[c])]
                for c, z in zip(chosen.tolist(), latent, strict=True)
            ]
            asked = images[torch.stack(rows)]
            loss = F.binary_cross_entropy(made.clamp(0, 1), asked)
            adam.zero_grad()
            loss.backward()
            adam.step()
            yield (made.detach() - asked).abs().mean()
    finally:
        progress.tell("steps fitted to images", steps.stop, steps.stop)


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
