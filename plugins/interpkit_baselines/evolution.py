"""Inversion without gradients: several points of each class, evolved at once and kept apart."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

import interpkit
from interpkit import ImageInversion, Inverter, Parts, Recipe, Recorder, RunError, Target, UsageError, derive_seed

WORST = 1e30
"""What a point is worth where the target's answer is not a number."""


class Evolution(Inverter):
    r"""Multi-element evolutionary inversion: one evolution strategy per image; those of a class repel each other.

    .. math:: \min_{z_i} \; -\log Q(y_i \mid x(z_i)) + r \, \overline{\cos(z_i, m_j)}_{\, j \ne i,\; y_j = y_i}

    x(z) is the sigmoid of a coarse field z of C x g x g numbers, enlarged bilinearly to the image (a vector's D
    numbers are taken as they are), Q the softmax of the target's logits, m_j the middle of the j-th strategy, r the
    ``repulsion``; the bar is a mean, and 0 where the class has one image. An image is the middle of its strategy. The
    target is asked for its answers alone, never for a gradient, and the recipe's losses are not used.

    One step of a run is one generation of every strategy. Source: Jensen, Reed, Marks et al., "Inversion of
    feedforward neural networks: algorithms and applications", Proceedings of the IEEE 87(9), 1999, whose points spread
    over the contour of one output as these do over one class. The strategy here is separable CMA-ES (Ros & Hansen,
    "A simple modification in CMA-ES achieving linear time and space complexity", 2008), by the library ``cma``.

    Example:
        >>> import torch
        >>> from interpkit import invert, wrap
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
        >>> target = wrap(net, input_shape=(1, 8, 8))
        >>> inversion = invert(target, inverter="evolution", steps=5, options={"evolution.per_class": 2})
        >>> inversion.images.shape, inversion.labels
        (torch.Size([6, 1, 8, 8]), tensor([0, 1, 2, 0, 1, 2]))
    """

    name = "evolution"
    needs_gradient = False
    ignores = ("optimizer", "micro_batch", "classes_per_batch", "compile")

    class Options(interpkit.Options):
        """How many images, and how they are sought."""

        per_class: int = Field(10, ge=1, description="images of each class")
        grid: int = Field(7, ge=1, le=64, description="numbers along a side of the coarse field")
        sigma: float = Field(1.0, gt=0, le=100, description="standard deviation of the start, and of the first steps")
        population: int | None = Field(
            None, ge=4, le=10_000, description="points in a generation; 4 + 3 ln(numbers in the field) if left out"
        )
        repulsion: float = Field(0.5, ge=0, le=1000, description="weight of the cosine to the others of the class")

    options: Options

    @torch.no_grad()
    def invert(self, target: Target, recipe: Recipe, parts: Parts, recorder: Recorder) -> ImageInversion:
        """Evolve all images to the recipe's last generation; see `Inverter.invert`."""
        cma = _import_cma()
        classes = range(target.num_classes) if recipe.labels is None else recipe.labels
        labels = torch.tensor(classes).repeat(self.options.per_class)
        landscape = Landscape(target, recipe, labels, self.options.grid)
        numbers = math.prod(landscape.field)
        searches = [self._search(cma, numbers, derive_seed(recipe.seed, self.name, i)) for i in range(len(labels))]

        told = torch.empty(0, len(searches), searches[0].popsize, dtype=torch.float64)
        checkpoint = recorder.start()
        if checkpoint is not None:
            told = _worths(checkpoint, like=told)
        # Checkpoints hold only plain values, so the strategy is rebuilt by replaying its evaluations.
        for generation in told.numpy():
            for search, worths in zip(searches, generation, strict=True):
                search.tell(search.ask(), worths)
        middles = _middles(searches)
        for step in range(len(told) + 1, recipe.steps + 1):
            asked = [search.ask() for search in searches]
            surprise, nearness, _ = landscape.judge(torch.tensor(np.array(asked)), middles)
            worths = (surprise + self.options.repulsion * nearness).nan_to_num(WORST, WORST, WORST)
            for search, points, row in zip(searches, asked, worths.numpy(), strict=True):
                search.tell(points, row)
            told = torch.cat([told, worths[None]])

            middles = _middles(searches)
            surprise, nearness, logits = landscape.judge(middles[:, None], middles)
            terms = {"ce": surprise.mean(), "repulsion": nearness.mean()}
            loss = terms["ce"] + self.options.repulsion * terms["repulsion"]
            recorder.step(step, loss, terms, landscape.images(middles).cpu(), logits, labels)
            if recorder.due(step):
                recorder.save(step, {"told": told})
            if recorder.stop_requested:
                break
        recorder.flush()
        return ImageInversion(target, recipe, recorder.history, landscape.images(middles), labels)

    def _search(self, cma: ModuleType, numbers: int, seed: int) -> Any:
        """Return a strategy over so many numbers, with a random start and randomness of its own."""
        opt, source = self.options, np.random.default_rng(seed)
        settings: dict[str, Any] = {
            "CMA_diagonal": True,
            "randn": lambda *shape: source.standard_normal(shape),
            "seed": math.nan,  # leave numpy's global generator alone
            "verbose": -10,  # nor read a file of signals
        }
        if opt.population is not None:
            settings["popsize"] = opt.population
        return cma.CMAEvolutionStrategy(opt.sigma * source.standard_normal(numbers), opt.sigma, settings)


class Landscape:
    """What a point is worth: how surprised the target is by it, and how near it lies to the others of its class.

    ``labels`` (N,) are the classes of the strategies; the coarse field has ``grid`` numbers along a side, or as many as
    the image.
    """

    def __init__(self, target: Target, recipe: Recipe, labels: Tensor, grid: int) -> None:
        self.target = target
        self.labels = labels
        self.device = torch.device(recipe.device)
        self.batch_size = recipe.batch_size
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.precision == "bf16")
        channels, *sides = target.input_shape
        self.field = (channels, *(min(grid, side) for side in sides))
        """(C, g, g), or (D,) for vectors."""
        others = (labels[:, None] == labels).double().fill_diagonal_(0)
        self.share = others / others.sum(1, keepdim=True).clamp_min(1)

    def images(self, points: Tensor) -> Tensor:
        """Return the images (M, *input_shape) in [0, 1] of points (M, numbers)."""
        fields = points.float().to(self.device).view(-1, *self.field)
        if len(self.field) == 3:
            fields = F.interpolate(fields, self.target.input_shape[1:], mode="bilinear")
        return fields.sigmoid()

    def judge(self, points: Tensor, middles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Judge P points of each of N strategies, (N, P, numbers), with the middles (N, numbers), both float64.

        Returns:
            the cross-entropy of the class asked for, (N, P); the mean cosine to the middles of the other strategies of
            the class, (N, P); and the target's logits, (N * P, n). All float64 on the CPU.
        """
        flat = points.flatten(0, 1)
        with self.autocast:
            logits = torch.cat([self.target(self.images(part)) for part in flat.split(self.batch_size)])
        logits = logits.cpu().double()
        labels = self.labels.repeat_interleave(points.shape[1])
        surprise = self.target.cross_entropy(logits, labels).view(points.shape[:2])
        others = self.share @ F.normalize(middles, dim=1)
        nearness = (F.normalize(points, dim=2) * others[:, None]).sum(2)
        return surprise, nearness, logits


def _import_cma() -> ModuleType:
    try:
        with warnings.catch_warnings():  # it adds filters
            import cma
    except ImportError as error:
        raise UsageError(
            f"the inverter 'evolution' takes the package cma: {interpkit.install_extra('evolution')}"
        ) from error
    module: ModuleType = cma
    return module


def _middles(searches: list[Any]) -> Tensor:
    """Return the middles of the strategies, (N, numbers) float64."""
    return torch.tensor(np.stack([search.mean for search in searches]))


def _worths(checkpoint: Mapping[str, Any], like: Tensor) -> Tensor:
    """Return the values of all evaluated points, (generations, N, P) float64, from a checkpoint."""
    told = checkpoint.get("told")
    if not isinstance(told, Tensor) or told.dtype != like.dtype or told.shape[1:] != like.shape[1:]:
        raise RunError("the checkpoint does not fit its recipe: it has other strategies. Restart with --force.")
    return told
