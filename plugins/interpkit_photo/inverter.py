"""Photographs that a classifier assigns to a class, group by group, from coarse to fine."""

from __future__ import annotations

import logging
import math
from typing import Annotated, Any

import pydantic
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

import interpkit
from interpkit import (
    Condition,
    GeneratedBatch,
    ImageInversion,
    Inverter,
    Objective,
    ObjectiveValue,
    Parts,
    Recipe,
    Recorder,
    RunError,
    Target,
    UsageError,
    derive_seed,
    random_generator,
    restore,
    set_learning_rate,
    snapshot,
)
from interpkit_photo.spectrum import Spectrum
from interpkit_photo.views import random_view

log = logging.getLogger("interpkit")

Share = Annotated[float, Field(gt=0, le=1)]

SMALLEST = 64
"""Pixels along the shorter side of a view; few networks recognize anything in less."""


class Photo(Inverter):
    r"""Gradient descent on the Fourier coefficients of each image, seen in random views, from coarse to fine.

    .. math:: \min_\theta \; \mathbb{E}_v \sum_t w_t L_t(v(x_\theta), y)

    with the recipe's own terms t, usually the cross-entropy of the requested label, the target's batch-norm statistics
    and total variation, and Adam as the recipe's ``optimizer`` says. x are images in the parametrisation of
    `Spectrum`, and v is a view: a zoomed crop, mirrored, shifted in color and blurred, all at random. What an image
    shows has to hold at several scales, places and hues, as an object does and noise does not. Views grow during the
    run (``sizes``), because small ones take a fraction of the time; they have at least 64 pixels a side. A target that
    does not accept one of these sizes sees its own instead.

    Images are made in groups of at most ``batch_size``, one group after the other, with the classes mixed at random,
    because batch norms recorded their statistics over all classes. Every image takes ``steps`` steps; with G groups,
    a step of the run consists of G steps of one group, so a run of many images shows its progress evenly.

    Sources: Olah, Mordvintsev & Schubert, "Feature Visualization" (2017) for the parametrisation and the views; Yin et
    al., "Dreaming to Distill" (2020) for the statistics and the coarse start; Ghiasi et al., "Plug-In Inversion" (2022)
    for zoom and shifts of color, on which networks without batch norm depend.

    Example:
        >>> from torch import nn
        >>> from interpkit import invert, wrap
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        >>> target = wrap(net, input_shape=(3, 64, 64))
        >>> inversion = invert(target, inverter="photo", steps=4, options={"photo.per_class": 2})
        >>> inversion.images.shape, inversion.labels.bincount()
        (torch.Size([6, 3, 64, 64]), tensor([2, 2, 2]))
    """

    name = "photo"
    needs = ("loss",)
    in_groups = True
    ignores = ("classes_per_batch", "compile")

    class Options(interpkit.Options):
        """How many images, how they are parametrised, and in which views the target sees them."""

        per_class: int = Field(5, ge=1, description="images of each class")
        falloff: float = Field(1.25, ge=0, le=4, description="exponent a of the spectrum 1 / f^a: higher is smoother")
        chroma: float = Field(0.85, ge=0, le=1, description="1: colors as faint as in an average photograph; 0: vivid")
        spread: float = Field(0.2, ge=0, le=10, description="standard deviation of the noise that images start from")
        sizes: tuple[Share, ...] = Field(
            (0.43, 0.71, 1.0),
            min_length=1,
            description="sizes of views, one after the other, as shares of the input size",
        )
        changes: tuple[Share, ...] = Field(
            (0.71, 0.9), description="shares of the steps after which the next of these sizes begins"
        )
        zoom: float = Field(0.5, ge=0.1, le=1, description="smallest side of a crop, as a share of the image's")
        shift: float = Field(0.05, ge=0, le=0.5, description="largest shift of a view, as a share of the side")
        flip: bool = Field(True, description="mirror views left to right, with probability 1/2")
        color: float = Field(0.0, ge=0, le=1, description="largest change of contrast, and twice that of a channel")
        blur: float = Field(2.0, ge=0, le=20, description="most blur of a view, in pixels of an image of 224")

        @pydantic.model_validator(mode="after")
        def _fit_together(self) -> Photo.Options:
            if len(self.changes) != len(self.sizes) - 1 or list(self.changes) != sorted(self.changes):
                raise ValueError(
                    f"changes are {len(self.sizes) - 1} increasing shares of the steps, one between each two of sizes"
                )
            return self

    options: Options

    def invert(self, target: Target, recipe: Recipe, parts: Parts, recorder: Recorder) -> ImageInversion:
        """Make all images; see `Inverter.invert`."""
        device = torch.device(recipe.device)
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16")
        objective = Objective(target, parts.losses, autocast, recipe.micro_batch)
        groups = Groups(target, recipe, self.options, objective)
        recorder.resume(groups)
        count = len(groups.labels)
        for step in recorder.training_steps(groups):
            for part in range(groups.taken - (step - 1) * count + 1, count + 1):
                batch, value = groups.move()
                if part < count:
                    recorder.part(part, count, str(groups), groups.begun)
                    if recorder.pause(groups):
                        return groups.result(recorder)
            recorder.step(step, value.total, value.terms, batch.images, value.response.logits, batch.condition.labels)
        return groups.result(recorder)


class Groups:
    """The images of a run: those of finished groups, and those that are being made.

    It is a state to resume from, as `Recorder.resume` expects.

    Attributes:
        labels: the requested classes of each group.
        done: the images of each finished group, uint8.
        images: of the present group.
        moves: how many steps the present group has taken.
        step: the last completed step of the run.
    """

    def __init__(self, target: Target, recipe: Recipe, options: Photo.Options, objective: Objective) -> None:
        if len(target.input_shape) != 3:
            raise UsageError(f"the inverter 'photo' makes images; {target.name} classifies vectors. Use another.")
        self.target, self.recipe, self.options, self.objective = target, recipe, options, objective
        self.device = torch.device(recipe.device)
        self.rng = random_generator(self.device, derive_seed(recipe.seed, Photo.name))
        self.sizes = self._sizes()
        classes = torch.tensor(range(target.num_classes) if recipe.labels is None else recipe.labels)
        count = len(classes) * options.per_class
        mixed = torch.randperm(count, generator=random_generator(torch.device("cpu"), derive_seed(recipe.seed, "mix")))
        self.labels = classes.repeat(options.per_class)[mixed].tensor_split(math.ceil(count / recipe.batch_size))
        self.done: list[Tensor] = []
        self.step = 0
        self._begin()

    def _sizes(self) -> list[tuple[int, ...]]:
        """Return the sizes of views, the input size in place of each that is not accepted."""
        own = self.target.input_shape[1:]
        least = min(1.0, SMALLEST / min(own))
        sizes = [tuple(round(side * max(share, least)) for side in own) for share in self.options.sizes]
        refused = [size for size in dict.fromkeys(sizes) if size != own and not self._accepts(size)]
        if refused:
            *_, only = written = ["x".join(map(str, size)) for size in (*refused, own)]
            log.warning(
                "%s does not accept images of %s pixels, so those steps run at %s: slower",
                self.target.name,
                " or ".join(written[:-1]),
                only,
            )
        return [own if size in refused else size for size in sizes]

    def _accepts(self, size: tuple[int, ...]) -> bool:
        images = torch.full((2, self.target.input_shape[0], *size), 0.5, device=self.device)
        try:
            with torch.no_grad():
                logits = self.target(images)
        except (Exception, SystemExit):  # whatever the network raises for an unexpected size
            log.debug("images of %s are not accepted", size, exc_info=True)
            return False
        return logits.shape == (2, self.target.num_classes) and bool(logits.isfinite().all())

    def _begin(self) -> None:
        labels = self.labels[len(self.done)].to(self.device)
        one_hot = F.one_hot(labels, self.target.num_classes).float()
        self.condition = Condition(labels, one_hot, one_hot)
        opt = self.options
        self.images = Spectrum(
            len(labels),
            self.target.input_shape,
            falloff=opt.falloff,
            chroma=opt.chroma,
            spread=opt.spread,
            rng=self.rng,
        )
        terms = {name: loss for name, (_, loss) in self.objective.losses.items()}
        self.trained = nn.ModuleDict({"images": self.images, "terms": nn.ModuleDict(terms)}).to(self.device).train()
        betas = (self.recipe.optimizer.beta1, self.recipe.optimizer.beta2)
        self.optimizer = torch.optim.Adam(self.trained.parameters(), lr=self.recipe.optimizer.lr, betas=betas)
        self.moves = 0

    @property
    def taken(self) -> int:
        """The steps that all groups have taken together."""
        return len(self.done) * self.recipe.steps + self.moves

    @property
    def begun(self) -> int:
        """The images of finished groups and of the present one."""
        return sum(map(len, self.labels[: len(self.done) + 1]))

    def __str__(self) -> str:
        finished, count = sum(map(len, self.done)), sum(map(len, self.labels))
        group = f"group {len(self.done) + 1} of {len(self.labels)}"
        return f"{group} at its step {self.moves} of {self.recipe.steps}, {finished:,} of {count:,} images finished"

    def move(self) -> tuple[GeneratedBatch, ObjectiveValue]:
        """Take one step with the present group, or the first of the next."""
        if self.moves >= self.recipe.steps and len(self.done) + 1 < len(self.labels):
            self.done.append(self._rendered())
            self._begin()
        progress = min(self.moves / self.recipe.steps, 1.0)
        set_learning_rate(self.optimizer, self.recipe, progress)
        size = self.sizes[sum(progress >= change for change in self.options.changes)]
        self.optimizer.zero_grad()
        view = random_view(self.images, size, self.options, self.rng)
        batch = GeneratedBatch(self.target, self.condition, view.new_zeros(len(view), 0), view, progress)
        value = self.objective(batch, self.rng)
        value.total.backward()
        self.optimizer.step()
        self.moves += 1
        return batch, value

    @torch.no_grad()
    def _rendered(self) -> Tensor:
        images: Tensor = self.images()
        return images.mul(255).round().byte().cpu()

    def result(self, recorder: Recorder) -> ImageInversion:
        """Return the images so far, by class."""
        images = torch.cat([*self.done, self._rendered()])
        labels = torch.cat(self.labels)[: len(images)]
        order = labels.argsort(stable=True)
        later = set(torch.cat(self.labels).tolist()) - set(labels.tolist())
        empty = dict.fromkeys(later, "the run was stopped before its images were begun")
        return ImageInversion(
            self.target, self.recipe, recorder.history, images[order] / 255, labels[order], empty=empty
        )

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on."""
        now = snapshot(self.step, self.trained, self.optimizer, self.rng)
        return {**now, "done": self.done, "moves": self.moves, "steps": self.recipe.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore such a state.

        Raises:
            RunError: it is of another run, or of another number of steps where there are several groups.
        """
        steps = state_dict.get("steps")
        if steps != self.recipe.steps and len(self.labels) > 1:
            raise RunError(
                f"the run makes its images in {len(self.labels)} groups of {steps} steps each, and those of a finished "
                f"group cannot go on: --steps {self.recipe.steps} needs a new run (--force)."
            )
        done = state_dict.get("done", [])
        shapes = [(len(group), *self.target.input_shape) for group in self.labels[: len(done)]]
        if [tuple(images.shape) for images in done] != shapes or len(done) >= len(self.labels):
            raise RunError("the checkpoint does not fit its recipe.")
        self.done = list(done)
        self._begin()
        self.step = restore(state_dict, self.trained, self.optimizer, self.rng)
        self.moves = int(state_dict["moves"])
