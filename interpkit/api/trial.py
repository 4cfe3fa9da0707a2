"""A few steps of a run on a few images, tried beforehand: what a run on large images needs of memory and time.

The trial builds parts of its own and leaves nothing behind: the run that follows is the same, bit for bit, as without.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from rich.filesize import decimal
from torch import Tensor

from interpkit.config.recipe import Recipe
from interpkit.config.sizes import is_large
from interpkit.errors import RunError, listed, setting
from interpkit.interfaces.generation import Conditioner, Generator
from interpkit.interfaces.targets import Target
from interpkit.inversion.fitted_start import fit as fit_to_images
from interpkit.inversion.fitted_start import fit_steps
from interpkit.plugins import assembly
from interpkit.plugins.discovery import Plugins
from interpkit.runtime import memory, progress
from interpkit.runtime.at_once import bytes_per_image
from interpkit.runtime.devices import is_out_of_memory, keep_freed_memory
from interpkit.runtime.distributed import World
from interpkit.runtime.progress import duration
from interpkit.runtime.random import global_seed
from interpkit.runtime.recorder import Recorder, Resumable

log = logging.getLogger("interpkit")

IMAGES, ON_CUDA = 4, 32
"""The images of a trial; a GPU is not busy with less."""
STEPS, IN_STAGES = 2, 10
"""The steps of a trial: of a generator, and of other inverters, which may go from coarse to fine images in the last."""
LEAST = 2
"""The least images in memory at a time, of each generator, for its batch norms."""
TRIED = "steps tried, to see how long the run takes"
LONG = 60.0
"""Seconds from which an estimate is worth a line where none was asked for."""
FORWARD = 1 / 3
"""The share of a step that its forward pass takes: backward costs about twice as much."""
SAMPLE = 2.0
"""What a sample costs that is drawn, judged, measured and shown in the report, in images of a step: judging is in fp32,
and measuring and the report cost as much as judging (EfficientNet-Lite0 on a CPU)."""


@dataclass(frozen=True)
class Trial:
    """What the steps have shown.

    Attributes:
        images: the images of a step.
        seconds: the time of a step, without the first.
        kept: the bytes that are kept for the backward pass of one image.
        peak: the most bytes that this process had used at the end; None if that is not known.
        fitting: the time of a step of a fit to another run's images, for each of its images; 0 without a fit.
    """

    images: int
    seconds: float
    kept: int
    peak: int | None
    fitting: float = 0.0

    @property
    def seconds_per_image(self) -> float:
        """The time of a step, for each of its images."""
        return self.seconds / self.images

    def needs(self, images: int) -> int:
        """Return the bytes that a step on so many images at a time needs."""
        return int(memory.PASSING * self.kept * images)


def try_out(
    recipe: Recipe, target: Target, plugins: Plugins, clock: Callable[[], float] = time.perf_counter
) -> Trial | None:
    """Try the first steps of a resolved recipe on a few images; None for small images, or if the trial fails.

    Raises:
        RunError: the least number of images does not fit into memory.
    """
    if not is_large(target.input_shape) or World.current().size > 1:
        return None
    device = torch.device(recipe.device)
    keep_freed_memory(device)
    least = LEAST * recipe.generators
    with _untold():
        one, free = _bytes_of_one(target, device), memory.free(device)
        count = max(least, ON_CUDA if device.type == "cuda" else IMAGES)
        if free is not None and one > 0:
            if one > free:
                raise _too_little(target, device, 1, one, free)
            count = max(least, min(count, free // (2 * one)))
        while True:
            try:
                return _try(recipe, target, plugins, count, clock)
            except Exception as error:
                if not is_out_of_memory(error):
                    log.debug("no steps could be tried beforehand", exc_info=True)
                    return None  # if it is not only the trial, the run says it better
                if count == least:
                    raise _too_little(target, device, count, count * one, free) from error
                count = max(least, count // 2)


def _bytes_of_one(target: Target, device: torch.device) -> int:
    with target.frozen(device):
        return bytes_per_image(target, torch.full((1, *target.input_shape), 0.5))


def _too_little(target: Target, device: torch.device, count: int, needed: int, free: int | None) -> RunError:
    left = "" if free is None else f", and {decimal(free)} are free"
    image = "one image" if count == 1 else f"{count} images"
    return RunError(
        f"too little memory for {image} of {' x '.join(map(str, target.input_shape))} at a time: {target.name} needs "
        f"{decimal(needed)} on {device}{left}. End what else runs here, or use another device "
        f"({setting('device', None)})."
    )


class _Enough(Exception):  # noqa: N818
    """The trial is done, which is not an error."""


class _Stopwatch(Recorder):
    """Takes the time of all steps but the first, and ends the trial."""

    def __init__(self, steps: int, kept: memory.Kept, clock: Callable[[], float]) -> None:
        super().__init__(steps)
        self.trial = True
        self.images = 0
        self.bytes = 0
        self.took = 0.0
        self._kept, self._clock = kept, clock
        self._at = 0.0

    def resume(self, state: Resumable) -> bool:
        """Pretend to resume, so that nothing is prepared for a training."""
        super().resume(state)
        return True

    def step(
        self, step: int, loss: Tensor, terms: Mapping[str, Tensor], images: Tensor, logits: Tensor, labels: Tensor
    ) -> None:
        """Receive a step; see `Recorder.step`."""
        loss.item()  # waits for the device
        self.images = len(images)
        self.bytes = max(self.bytes, self._kept.bytes)
        self._kept.restart()
        progress.tell(TRIED, step, self.steps + 1)
        if step == 1:
            self._at = self._clock()
        elif step == self.steps:
            self.took = (self._clock() - self._at) / (step - 1)
            raise _Enough


def _try(recipe: Recipe, target: Target, plugins: Plugins, count: int, clock: Callable[[], float]) -> Trial:
    device = torch.device(recipe.device)
    steps = IN_STAGES if recipe.generator is None else STEPS
    update: dict[str, Any] = {"steps": steps, "batch_size": max(2, count), "micro_batch": None, "compile": "off"}
    if recipe.generator is None:
        classes = range(target.num_classes) if recipe.labels is None else recipe.labels
        update["labels"] = list(classes[:count])
        if "per_class" in recipe.inverter.options:
            update["inverter"] = recipe.inverter.model_copy(update={"per_class": 1})
    small = recipe.model_copy(update=update)
    progress.tell(TRIED, 0, steps + 1)
    try:
        with target.frozen(device, torch.channels_last), global_seed(0, device):
            inverter, parts = assembly.build(small, target, plugins)
            trained = [part for part in (parts.conditioner, parts.generator) if part is not None]
            with memory.counting_kept(target, *trained) as kept:
                stopwatch = _Stopwatch(steps, kept, clock)
                with suppress(_Enough):
                    inverter.invert(target, small, parts, stopwatch)
            fitting = 0.0
            if recipe.warm_start.run is not None:
                assert parts.conditioner is not None and parts.generator is not None  # as the recipe says
                fitting = _time_of_fit(small, target, parts.conditioner, parts.generator, clock) / small.batch_size
        if not stopwatch.images:
            raise RuntimeError("the inverter took no step")
        rows = min(stopwatch.images, small.batch_size)  # some inverters move all images in turn, batch by batch
        kept_of_one = stopwatch.bytes // rows
        return Trial(stopwatch.images, stopwatch.took, kept_of_one, memory.peak(device), fitting)
    finally:
        progress.tell(TRIED, 1, 1)


def _time_of_fit(
    recipe: Recipe, target: Target, conditioner: Conditioner, generator: Generator, clock: Callable[[], float]
) -> float:
    """Return the time of a step of a fit to another run's images; the first is not counted."""
    labels = torch.tensor(range(target.num_classes) if recipe.labels is None else recipe.labels, device=recipe.device)
    images = torch.full((1, *target.input_shape), 0.5, device=recipe.device).expand(len(labels), *target.input_shape)
    at = 0.0
    for error in fit_to_images(conditioner, generator, recipe, range(STEPS), images, labels):
        error.item()  # waits for the device
        before, at = at, clock()
    return at - before


@contextmanager
def _untold() -> Iterator[None]:
    """Keep back what the parts of a trial log: those of the run say it again."""
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def fit(recipe: Recipe, stated: Recipe, trial: Trial, *, in_pieces: bool) -> dict[str, Any]:
    """Return the fields that let a run fit into memory, as far as the recipe leaves them open.

    Most generators are trained on pieces of their batch; other inverters take a smaller batch.

    Args:
        recipe: the resolved recipe.
        stated: as it was composed, with the fields that somebody has stated.
        trial: of the recipe.
        in_pieces: whether the inverter trains a generator on such pieces.
    """
    field = "micro_batch" if in_pieces else "batch_size"
    allowed = memory.allowed(torch.device(recipe.device))
    if field in stated.model_fields_set or allowed is None or not trial.kept:
        return {}
    most = max(LEAST * recipe.generators, int(allowed / trial.needs(1)))
    pieces = -(-recipe.batch_size // most)
    size = max(LEAST * recipe.generators, -(-recipe.batch_size // pieces))
    return {field: min(size, recipe.batch_size)}


@dataclass(frozen=True)
class Estimate:
    """What a run takes.

    Attributes:
        recipe: the run's, resolved.
        seconds: the time that it takes, or the rest of it.
        bytes: of memory; None if that is not known.
    """

    recipe: Recipe
    seconds: float
    bytes: int | None

    def tell(self, smaller: list[str], what: str = "the run takes") -> None:
        """Log it, as a warning if it takes more than an hour, with what to set to make the run `smaller`."""
        using = "" if self.bytes is None else f" and needs {decimal(self.bytes)} of memory"
        words = f"{what} about {duration(self.seconds)} on {self.recipe.device}{using}"
        if self.seconds > 3600:
            words += ", more than an hour on this device"
        level = logging.WARNING if self.seconds > 3600 else logging.INFO
        log.log(level, "%s; to make it smaller: %s", words, listed(smaller))


def estimate(recipe: Recipe, trial: Trial, samples: int, images: int, fitted_to: int = 0) -> Estimate:
    """Return what a run takes by a trial.

    Args:
        recipe: the resolved recipe.
        trial: of the recipe.
        samples: the number that are judged at the end.
        images: the number that a step moves.
        fitted_to: the number of images of another run to which the generator is fitted first.
    """
    step, on_cpu = trial.seconds_per_image * images, recipe.device == "cpu"
    at_once = min(recipe.micro_batch or recipe.batch_size, recipe.batch_size, images)
    if at_once < min(images, recipe.batch_size):
        step *= 1 + FORWARD  # each piece is computed twice
    seconds = recipe.steps * step + samples * SAMPLE * trial.seconds_per_image
    if fitted_to:
        seconds += fit_steps(recipe, fitted_to) * (recipe.micro_batch or recipe.batch_size) * trial.fitting
    need = None
    if trial.peak is not None:
        drawn = 2 * samples * 4 * math.prod(recipe.target.target_shape or ())  # chunks, and all of them joined
        need = trial.peak + max(0, trial.needs(at_once) - trial.needs(trial.images), drawn if on_cpu else 0)
    return Estimate(recipe, seconds, need)


class FirstSteps:
    """Estimates a run by its own first two steps, where none were tried beforehand, and tells if it is long.

    Args:
        recipe: the resolved recipe.
        smaller: see `smaller`.
        clock: returns seconds.
    """

    def __init__(self, recipe: Recipe, smaller: list[str], clock: Callable[[], float] = time.perf_counter) -> None:
        self._recipe, self._smaller, self._clock = recipe, smaller, clock
        self._first: tuple[int, float] | None = None
        self._told = False

    def step_done(self, step: int) -> None:
        """Receive the number of a step that has ended."""
        if self._told:
            return
        device = torch.device(self._recipe.device)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if self._first is None or step <= self._first[0]:  # a run that diverges goes back
            self._first = step, self._clock()
            return
        before, at = self._first
        self._told = True
        left = (self._recipe.steps - step) * (self._clock() - at) / (step - before)
        if left > LONG:
            rest = Estimate(self._recipe, left, memory.peak(device))
            rest.tell(self._smaller, "the rest of the run takes")


def smaller(recipe: Recipe, num_classes: int, photographs: str | None) -> list[str]:
    """Return what the user can set to make a run smaller, most useful first.

    Args:
        recipe: the resolved recipe.
        num_classes: of the classifier.
        photographs: the preset for its images if they are photographs, which needs no generator.
    """
    classes = list(range(num_classes)) if recipe.labels is None else recipe.labels
    ways = [setting("labels", classes[:2])] if len(classes) > 2 else []
    if recipe.generator is None:
        per_class = recipe.inverter.options.get("per_class")
        if isinstance(per_class, int) and per_class > 1:
            ways.append(setting("per_class", max(1, per_class // 2)))
    elif photographs is not None:
        ways.append(setting("preset", photographs))
    ways.append(setting("steps", max(1, recipe.steps // 3)))
    if recipe.batch_size // 2 >= LEAST * recipe.generators:
        ways.append(setting("batch_size", recipe.batch_size // 2))
    return ways
