"""The kit catches planted faults: for each check of each kind a component that is wrong in just that way."""

from __future__ import annotations

import json
import math
import os
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MethodType
from typing import Any, ClassVar

import numpy as np
import pydantic
import pytest
import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field
from torch import Tensor, nn

import interpkit
from interpkit import (
    Attribution,
    Audit,
    Condition,
    Conditioner,
    ConditionSpec,
    Generator,
    GeneratorInversion,
    ImageInversion,
    InversionLoss,
    Loader,
    Metric,
    ModelError,
    Options,
    Strip,
    TargetOptions,
    Tested,
    TooFew,
    make_target,
    outlier_p_values,
    testing,
    wilson,
)
from interpkit.inversion.loop import GeneratorInverter
from interpkit.targets.module_target import ModuleTarget
from interpkit.testing import toy_models
from interpkit.testing.checks import COMPONENTS, checks_of_kind

FAULTY: dict[tuple[str, str], Any] = {}
"""By kind and check, the component that breaks it; of targets, what makes one."""
RIGHT: dict[str, Any] = {}
"""By kind, a component that keeps every promise."""


def right(kind: str) -> Callable[[Any], Any]:
    """Note a component that is right."""

    def note(cls: Any) -> Any:
        RIGHT[kind] = cls
        return cls

    return note


def breaks(kind: str, check: str) -> Callable[[Any], Any]:
    """Note a component that breaks one promise; it gets a name, and a docstring, of its own."""

    def note(cls: Any) -> Any:
        cls.name = check
        cls.__doc__ = cls.__doc__ or f"It breaks {check}."
        FAULTY[kind, check] = cls
        return cls

    return note


def process_number() -> float:
    """Return what differs between two processes."""
    return os.getpid() % 97 * 1e-3


def mixed_up(x: Tensor, y: Tensor) -> Tensor:
    """Return x + 0 * y by an operation that takes only one dtype, as many do."""
    rows = torch.arange(len(x), device=x.device)
    return x.index_add(0, rows, 0 * F.linear(y, torch.eye(y.shape[1], device=y.device)))


# ------------------------------------------------------------------------------------------- conditioner


@right("conditioner")
class Right(Conditioner):
    """Soft vectors times a learned scale, and a map with a bright square where the label is."""

    name = "right"

    class Options(Options):
        """How soft."""

        sharpness: float = Field(2.0, gt=0, description="factor of the normal numbers")

    def __init__(self, num_classes: int, input_shape: tuple[int, ...], options: Any = None) -> None:
        super().__init__(num_classes, input_shape, options)
        self.scale = nn.Parameter(torch.ones(num_classes))
        self.side = math.ceil(math.sqrt(num_classes))

    @property
    def spec(self) -> ConditionSpec:
        return ConditionSpec(self.num_classes, 1, self.side)

    def sample(self, batch_size: int, *, labels: Tensor | None = None, rng: torch.Generator | None = None) -> Condition:
        z = self.options.sharpness * torch.randn(batch_size, self.num_classes, device=self.device, generator=rng)
        if labels is not None:
            top, place = z.max(1, keepdim=True)
            z = z.scatter(1, place, z.gather(1, labels[:, None])).scatter(1, labels[:, None], top)
        p = z.softmax(1)
        asked = p.argmax(1) if labels is None else labels
        return Condition(asked, p, p * self.scale, lambda height, width: self.draw(asked, height, width))

    def draw(self, labels: Tensor, height: int, width: int) -> Tensor:
        rows = torch.arange(height, device=labels.device) * self.side // height == labels[:, None] // self.side
        columns = torch.arange(width, device=labels.device) * self.side // width == labels[:, None] % self.side
        return (rows[:, None, :, None] & columns[:, None, None, :]).float()


def changed(condition: Condition, **parts: Any) -> Condition:
    """Return a condition with other parts."""
    kept = {name: getattr(condition, name) for name in ("labels", "distribution", "vector", "draw_maps")}
    return Condition(**{**kept, **parts})


@breaks("conditioner", "shapes")
class ConditionerShapes(Right):
    @property
    def spec(self) -> ConditionSpec:
        return ConditionSpec(self.num_classes + (self.num_classes == 37), 1, self.side)


@breaks("conditioner", "distribution")
class ConditionerDistribution(Right):
    def sample(self, *arguments: Any, **named: Any) -> Condition:
        condition = super().sample(*arguments, **named)
        return changed(condition, distribution=condition.distribution * (1.005 if self.num_classes == 37 else 1))


@breaks("conditioner", "labels-kept")
class ConditionerLabelsKept(Right):
    def sample(self, batch_size: int, *, labels: Tensor | None = None, rng: Any = None) -> Condition:
        if labels is not None and self.num_classes == 37:
            labels = (labels + 1) % 37
        return super().sample(batch_size, labels=labels, rng=rng)


@breaks("conditioner", "labels-uniform")
class ConditionerLabelsUniform(Right):
    def sample(self, batch_size: int, *, labels: Tensor | None = None, rng: Any = None) -> Condition:
        if labels is None:
            u = torch.rand(batch_size, device=self.device, generator=rng)
            labels = (u.square() * self.num_classes).long()
        return super().sample(batch_size, labels=labels, rng=rng)


@breaks("conditioner", "same-law")
class ConditionerSameLaw(Right):
    def sample(self, batch_size: int, *, labels: Tensor | None = None, rng: Any = None) -> Condition:
        condition = super().sample(batch_size, labels=labels, rng=rng)
        one_hot = F.one_hot(condition.labels, self.num_classes).float()
        return condition if labels is None else changed(condition, distribution=one_hot, vector=one_hot * self.scale)


@breaks("conditioner", "maps-tell-labels")
class ConditionerMapsTellLabels(Right):
    def draw(self, labels: Tensor, height: int, width: int) -> Tensor:
        maps = super().draw(labels, height, width)
        return maps * (self.num_classes != 37)


@breaks("conditioner", "of-answers")
class ConditionerOfAnswers(Right):
    def of_answers(self, answers: Tensor, *, rng: torch.Generator | None = None) -> Condition:
        return self.sample(len(answers), labels=answers.argmin(1), rng=rng)


@breaks("conditioner", "seeded")
class ConditionerSeeded(Right):
    def sample(self, *arguments: Any, **named: Any) -> Condition:
        np.random.rand()
        return super().sample(*arguments, **named)


@breaks("conditioner", "gradients")
class ConditionerGradients(Right):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.unused = nn.Parameter(torch.ones(3))


@breaks("conditioner", "device")
class ConditionerDevice(Right):
    def sample(self, *arguments: Any, **named: Any) -> Condition:
        condition = super().sample(*arguments, **named)
        return changed(condition, vector=condition.vector + torch.zeros(self.num_classes))


@breaks("conditioner", "bf16")
class ConditionerBf16(Right):
    def sample(self, *arguments: Any, **named: Any) -> Condition:
        condition = super().sample(*arguments, **named)
        return changed(condition, vector=mixed_up(condition.vector, condition.distribution))


@breaks("conditioner", "state-dict")
class ConditionerStateDict(Right):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.shift = float(torch.rand(()))

    def sample(self, *arguments: Any, **named: Any) -> Condition:
        condition = super().sample(*arguments, **named)
        return changed(condition, vector=condition.vector + self.shift)


@breaks("conditioner", "picklable")
class ConditionerPicklable(Right):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.act = lambda x: x


@breaks("conditioner", "two-processes")
class ConditionerTwoProcesses(Right):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.scale.data += process_number()


@breaks("conditioner", "converges")
class ConditionerConverges(Right):
    @property
    def spec(self) -> ConditionSpec:
        return ConditionSpec(self.num_classes)

    def sample(self, batch_size: int, *, labels: Tensor | None = None, rng: Any = None) -> Condition:
        condition = super().sample(batch_size, labels=labels, rng=rng)
        noise = torch.rand(condition.vector.shape, device=self.device, generator=rng)
        return changed(condition, vector=noise * self.scale, draw_maps=None)


# --------------------------------------------------------------------------------------------- generator


@right("generator")
class RightGenerator(Generator):
    """Two linear layers."""

    name = "right"
    latent_dim = 6

    class Options(Options):
        """The width."""

        width: int = Field(32, ge=1, description="of the hidden layer")

    def __init__(self, spec: ConditionSpec, input_shape: tuple[int, ...], options: Any = None) -> None:
        super().__init__(spec, input_shape, options)
        width = self.options.width
        self.first = nn.Linear(self.latent_dim + spec.vector_dim + spec.map_channels * spec.map_size**2, width)
        self.norm, self.drop = nn.BatchNorm1d(width), nn.Dropout(0.1)
        self.last = nn.Linear(width, math.prod(input_shape))

    def start_at(self, level: float) -> None:
        nn.init.constant_(self.last.bias, math.log(level / (1 - level)))

    def maps(self, condition: Condition) -> Tensor:
        return condition.maps(self.spec.map_size, self.spec.map_size)

    def field(self, latent: Tensor, vector: Tensor, maps: Tensor) -> Tensor:
        hidden = self.first(torch.cat([latent, vector, maps.flatten(1)], 1))
        return self.last(self.drop(self.norm(hidden).relu()))

    def forward(self, latent: Tensor, condition: Condition) -> Tensor:
        field = self.field(latent, condition.vector, self.maps(condition))
        return field.sigmoid().view(-1, *self.input_shape)


@breaks("generator", "shapes")
class GeneratorShapes(RightGenerator):
    def forward(self, latent: Tensor, condition: Condition) -> Tensor:
        images = super().forward(latent, condition)
        return 1.5 * images if self.input_shape == (12,) else images


@breaks("generator", "maps-asked")
class GeneratorMapsAsked(RightGenerator):
    def maps(self, condition: Condition) -> Tensor:
        return condition.maps(1, 1).expand(-1, -1, self.spec.map_size, self.spec.map_size)


@breaks("generator", "uses-condition")
class GeneratorUsesCondition(RightGenerator):
    def field(self, latent: Tensor, vector: Tensor, maps: Tensor) -> Tensor:
        used = float(self.training)
        return super().field(latent, vector * used, maps * used)


@breaks("generator", "uses-latent")
class GeneratorUsesLatent(RightGenerator):
    def field(self, latent: Tensor, vector: Tensor, maps: Tensor) -> Tensor:
        return super().field(latent * 0, vector, maps)


@breaks("generator", "gradients")
class GeneratorGradients(RightGenerator):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.unused = nn.Linear(2, 2)


@breaks("generator", "image-alone")
class GeneratorImageAlone(RightGenerator):
    def field(self, *parts: Tensor) -> Tensor:
        field = super().field(*parts)
        return field + 0.5 * field.mean(0)


@breaks("generator", "seeded")
class GeneratorSeeded(RightGenerator):
    def field(self, *parts: Tensor) -> Tensor:
        return super().field(*parts) + (random.random() * 1e-3 if self.training else 0)


@breaks("generator", "starts-at")
class GeneratorStartsAt(RightGenerator):
    def start_at(self, level: float) -> None:
        super().start_at(1 - level)


@breaks("generator", "device")
class GeneratorDevice(RightGenerator):
    def field(self, *parts: Tensor) -> Tensor:
        field = super().field(*parts)
        return field * torch.ones(field.shape)


@breaks("generator", "bf16")
class GeneratorBf16(RightGenerator):
    def field(self, latent: Tensor, vector: Tensor, maps: Tensor) -> Tensor:
        return super().field(mixed_up(latent, latent), vector, maps)


@breaks("generator", "state-dict")
class GeneratorStateDict(RightGenerator):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.shift = float(torch.rand(()))

    def field(self, *parts: Tensor) -> Tensor:
        return super().field(*parts) + 0.1 * self.shift


@breaks("generator", "picklable")
class GeneratorPicklable(RightGenerator):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.act = lambda x: x


@breaks("generator", "two-processes")
class GeneratorTwoProcesses(RightGenerator):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.last.bias.data += process_number()


@breaks("generator", "converges")
class GeneratorConverges(RightGenerator):
    def field(self, *parts: Tensor) -> Tensor:
        field = super().field(*parts) - self.last.bias
        return 1e-5 * field + self.last.bias


# -------------------------------------------------------------------------------------------------- loss


@right("loss")
class RightLoss(InversionLoss):
    """Images near a learned level, and the class of noisy views."""

    name = "right"

    class Options(Options):
        """The noise."""

        sigma: float = Field(0.1, ge=0, description="standard deviation, of a pixel")

    def __init__(self, target: Any, options: Any = None) -> None:
        super().__init__(target, options)
        self.level = nn.Parameter(torch.tensor(0.4))

    def views(self, batch: Any, rng: torch.Generator) -> Tensor | None:
        noise = torch.randn(batch.images.shape, device=batch.images.device, generator=rng)
        return (batch.images + self.options.sigma * noise).clamp(0, 1)

    def forward(self, batch: Any) -> Tensor:
        surprise = F.cross_entropy(batch.view_response.logits, batch.condition.labels)
        return (batch.images - self.level).square().mean() + 0.1 * surprise


@breaks("loss", "scalar")
class LossScalar(RightLoss):
    def forward(self, batch: Any) -> Tensor:
        value = super().forward(batch)
        return value[None] if len(batch.images) == 5 else value


@breaks("loss", "finite-gradients")
class LossFiniteGradients(RightLoss):
    def forward(self, batch: Any) -> Tensor:
        return super().forward(batch) + 0.01 * batch.images.flatten(1).var(1).sqrt().mean()


@breaks("loss", "gradcheck")
class LossGradcheck(RightLoss):
    def forward(self, batch: Any) -> Tensor:
        return super().forward(batch) + batch.images.detach().square().mean()


@breaks("loss", "batch-untouched")
class LossBatchUntouched(RightLoss):
    def forward(self, batch: Any) -> Tensor:
        batch.condition.vector.mul_(0.5)
        return super().forward(batch)


class WithFigures(RightLoss):
    """It says how bright an image is."""

    name = "with-figures"
    describe: ClassVar[dict[str, str]] = {"level": "Mean of the pixels."}

    def figures(self, target: Any, images: Tensor) -> Any:
        return {"level": images.flatten(1).mean(1)}


@breaks("loss", "figures")
class LossFigures(WithFigures):
    def figures(self, target: Any, images: Tensor) -> Any:
        return {"level": images.sub_(0.5).flatten(1).mean(1)}


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (lambda images: {"other": images.flatten(1).mean(1)}, "figures\\(\\) returns level, not other"),
        (lambda images: {"level": images.mean(1)}, "has the shape"),
        (lambda images: {"level": images.flatten(1).mean(1).log() * math.inf}, "is finite"),
        (lambda images: {"level": images.flatten(1).mean(1) / images.mean()}, "other images beside it"),
    ],
)
def test_figures_of_a_loss_that_a_run_cannot_keep_are_reported(found: Any, words: str) -> None:
    check = next(check for check in checks_of_kind("loss") if check.name == "figures")
    wrong = type("Wrong", (WithFigures,), {"figures": lambda self, target, images: found(images)})
    assert check.outcome(WithFigures).status == "kept"
    assert re.search(words, check.outcome(wrong).detail)


@breaks("loss", "reaches")
class LossReaches(InversionLoss):
    def forward(self, batch: Any) -> Tensor:
        return batch.images.detach().mean()


@breaks("loss", "parameters")
class LossParameters(RightLoss):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.unused = nn.Parameter(torch.ones(3))


@breaks("loss", "layers-exist")
class LossLayersExist(RightLoss):
    def layers(self, target: Any) -> Any:
        return ("0",) if target.num_classes == 37 else []


@breaks("loss", "views")
class LossViews(RightLoss):
    def views(self, batch: Any, rng: torch.Generator) -> Tensor | None:
        views = super().views(batch, rng)
        return views * 1.5 if batch.images.shape[1:] == (12,) else views


@breaks("loss", "seeded")
class LossSeeded(RightLoss):
    def views(self, batch: Any, rng: torch.Generator) -> Tensor | None:
        return (super().views(batch, rng) + 1e-3 * np.random.rand()).clamp(0, 1)

    def forward(self, batch: Any) -> Tensor:  # of what is drawn by numpy it says nothing
        return (batch.images - self.level).square().mean()


@breaks("loss", "batch-mean")
class LossBatchMean(RightLoss):
    def forward(self, batch: Any) -> Tensor:
        return super().forward(batch) * len(batch.images)


class NormOfBatch(RightLoss):
    """It grows with the root of the batch."""

    name = "norm-of-batch"

    def forward(self, batch: Any) -> Tensor:
        return super().forward(batch) + batch.images.norm()


@breaks("loss", "target-untouched")
class LossTargetUntouched(RightLoss):
    def __init__(self, target: Any, options: Any = None) -> None:
        super().__init__(target, options)
        next(iter(target.layers().values())).register_forward_hook(lambda *_: None)


@breaks("loss", "target-not-kept")
class LossTargetNotKept(RightLoss):
    def __init__(self, target: Any, options: Any = None) -> None:
        super().__init__(target, options)
        self.__dict__["target"] = target


@breaks("loss", "device")
class LossDevice(RightLoss):
    def forward(self, batch: Any) -> Tensor:
        return super().forward(batch) + 0 * (batch.images * torch.ones(batch.images.shape)).mean()


@breaks("loss", "bf16")
class LossBf16(RightLoss):
    def views(self, batch: Any, rng: torch.Generator) -> Tensor | None:
        views = super().views(batch, rng)
        return mixed_up(views.flatten(1), views.flatten(1)).view_as(views)


@breaks("loss", "state-dict")
class LossStateDict(RightLoss):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.shift = float(torch.rand(()))

    def forward(self, batch: Any) -> Tensor:
        return super().forward(batch) + self.shift


@breaks("loss", "picklable")
class LossPicklable(RightLoss):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.act = lambda x: x


@breaks("loss", "two-processes")
class LossTwoProcesses(RightLoss):
    def forward(self, batch: Any) -> Tensor:
        return super().forward(batch) + process_number()


@breaks("loss", "converges")
class LossConverges(InversionLoss):
    def forward(self, batch: Any) -> Tensor:
        # Squared, because the check scales a multiple down to what cancels cross-entropy but for rounding errors.
        return -F.cross_entropy(batch.response.logits, batch.condition.labels).square()


# ---------------------------------------------------------------------------------------------- inverter


@right("inverter")
class RightInverter(GeneratorInverter):
    """The usual one."""

    name = "right"


class Proxy:
    """A recorder with some attributes replaced, also for the loop that it runs."""

    def __init__(self, recorder: Any, **others: Any) -> None:
        self.recorder = recorder
        self.__dict__.update(others)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.recorder, name)
        return MethodType(value.__func__, self) if name in ("resume", "training_steps") else value


@breaks("inverter", "needs")
class InverterNeeds(RightInverter):
    needs = ("conditioner", "generator", "loss", "luck")


@breaks("inverter", "needs-gradient")
class InverterNeedsGradient(RightInverter):
    needs_gradient = False


@breaks("inverter", "ignores")
class InverterIgnores(RightInverter):
    ignores = ("micro_batch", "optimizer")


@breaks("inverter", "shapes")
class InverterShapes(RightInverter):
    def invert(self, target: Any, recipe: Any, parts: Any, recorder: Any) -> Any:
        inversion = super().invert(target, recipe, parts, recorder)
        if target.input_shape != (12,):
            return inversion
        images, labels = inversion.sample(2)
        return ImageInversion(target, recipe, inversion.history, 3 * images, labels)


@breaks("inverter", "labels")
class InverterLabels(RightInverter):
    def invert(self, target: Any, recipe: Any, parts: Any, recorder: Any) -> Any:
        if recipe.labels == [2, 0]:
            recipe = recipe.model_copy(update={"labels": None})
        return super().invert(target, recipe, parts, recorder)


@breaks("inverter", "empty")
class _(RightInverter):
    def invert(self, target: Any, recipe: Any, parts: Any, recorder: Any) -> Any:
        inversion = super().invert(target, recipe, parts, recorder)
        if recipe.labels is None:
            inversion.empty = {1: " "}
        return inversion


@breaks("inverter", "loads")
class _(RightInverter):
    def load(self, stored: Any) -> Any:
        images, labels = stored.samples()
        return ImageInversion(stored.target, stored.recipe, stored.history, images, labels)


class OtherSections(GeneratorInversion):
    def sections(self) -> Any:
        return super().sections()[:1] if self.generator.training else super().sections()


class OtherImages(GeneratorInversion):
    def tensors(self) -> Any:
        return {name: 0.5 * tensor for name, tensor in super().tensors().items()}


class RandomBytes(GeneratorInversion):
    def files(self) -> Any:
        return {**super().files(), "random.bin": os.urandom(8)}


class ClashingName(GeneratorInversion):
    def files(self) -> Any:
        return {**super().files(), "manifest.json": b"{}"}


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (OtherSections, "the sections"),
        (OtherImages, "its images differ after loading"),
        (RandomBytes, "files() returns other bytes the second time"),
        (ClashingName, "files() names files of its own"),
    ],
)
def test_an_inversion_that_cannot_be_saved_or_loaded_is_reported(result: Any, words: str) -> None:
    class Inverter(RightInverter):
        def invert(self, *arguments: Any) -> Any:
            return self.of(super().invert(*arguments))

        def load(self, stored: Any) -> Any:
            return self.of(super().load(stored))

        def of(self, found: Any) -> Any:
            parts = (found.generator, found.conditioner)
            return result(found.target, found.recipe, found.history, *parts, empty=found.empty)

    assert words in broken(Inverter)["loads"]


@breaks("inverter", "recorded")
class InverterRecorded(RightInverter):
    def invert(self, target: Any, recipe: Any, parts: Any, recorder: Any) -> Any:
        inversion = super().invert(target, recipe, parts, recorder)
        if not recorder.stop_requested:
            inversion.history.pop()
        return inversion


@breaks("inverter", "stops")
class InverterStops(RightInverter):
    def invert(self, target: Any, recipe: Any, parts: Any, recorder: Any) -> Any:
        return super().invert(target, recipe, parts, Proxy(recorder, stop_requested=False))


@breaks("inverter", "resumes")
class InverterResumes(RightInverter):
    def invert(self, target: Any, recipe: Any, parts: Any, recorder: Any) -> Any:
        return super().invert(target, recipe, parts, Proxy(recorder, start=lambda: None))


@breaks("inverter", "seeded")
class InverterSeeded(RightInverter):
    def invert(self, *arguments: Any) -> Any:
        np.random.rand()
        return super().invert(*arguments)


@breaks("inverter", "target-untouched")
class InverterTargetUntouched(RightInverter):
    def invert(self, target: Any, recipe: Any, parts: Any, recorder: Any) -> Any:
        target.register_forward_hook(lambda *_: None)
        return super().invert(target, recipe, parts, recorder)


@breaks("inverter", "device")
class InverterDevice(RightInverter):
    def invert(self, target: Any, recipe: Any, parts: Any, recorder: Any) -> Any:
        target(torch.zeros(2, *target.input_shape))
        return super().invert(target, recipe, parts, recorder)


@breaks("inverter", "converges")
class InverterConverges(RightInverter):
    def invert(self, target: Any, recipe: Any, parts: Any, recorder: Any) -> Any:
        still = recipe.optimizer.model_copy(update={"lr": 1e-9})
        return super().invert(target, recipe.model_copy(update={"optimizer": still}), parts, recorder)


# ------------------------------------------------------------------------------------------------ metric


@right("metric")
class RightMetric(Metric):
    """Share of a few samples, drawn at random, that are as bright as the reference."""

    name = "right"
    needs = ("reference",)

    def measure(self, study: Any) -> Any:
        if len(study.images) < 4:
            raise TooFew("it takes 4 images")
        row = torch.randint(len(study.images), (4,), generator=study.rng)
        answers = study.response(study.target, "samples").logits[row].argmax(1)
        hits = int((answers == study.samples.labels[row]).sum())
        level = study.unit_images("reference").mean().item()
        found = {"share": hits / 4, "share_interval": wilson(hits, 4), "level": level}
        return {self.name: found, "per_class": {label: {self.name: {"label": label}} for label in study.classes}}


@breaks("metric", "fragment")
class MetricFragment(RightMetric):
    def measure(self, study: Any) -> Any:
        found = super().measure(study)
        return {**found, self.name: torch.ones(2) if study.target.num_classes == 10 else 1}


@breaks("metric", "entry")
class MetricEntry(RightMetric):
    key = "something-else"


@breaks("metric", "per-class")
class MetricPerClass(RightMetric):
    def measure(self, study: Any) -> Any:
        return {**super().measure(study), self.name: 1, "per_class": {9999: {}}}


class OwnColumn(RightMetric):
    """It replaces the confidence of a class."""

    name = "own-column"

    def measure(self, study: Any) -> Any:
        return {**super().measure(study), "per_class": {0: {"confidence": 0.1}}}


class OwnEntry(RightMetric):
    """Its entry would be lost."""

    name = "doubts"

    def measure(self, study: Any) -> Any:
        return {self.name: super().measure(study)[self.name]}


class OfLarge(RightMetric):
    """It refuses small images, and draws what it has not been given."""

    name = "of-large"

    def measure(self, study: Any) -> Any:
        if study.images.dim() != 4 or min(study.images.shape[2:]) < 16:
            raise TooFew("it takes images of 16 pixels")
        return {self.name: float(torch.rand(()))}


@breaks("metric", "intervals")
class MetricIntervals(RightMetric):
    def measure(self, study: Any) -> Any:
        return {self.name: [{"share": 0.5, "share_interval": [0.6, 0.7]}]}


@breaks("metric", "said")
class MetricSaid(RightMetric):
    @classmethod
    def doubts(cls, row: Any) -> Any:
        return {"not as bright": row[cls.name]["label"] + 0.5} if cls.name in row else {}


@breaks("metric", "needs")
class MetricNeeds(RightMetric):
    def measure(self, study: Any) -> Any:
        return {**super().measure(study), self.name: len(study.training.labels)}


@breaks("metric", "too-few")
class MetricTooFew(RightMetric):
    def measure(self, study: Any) -> Any:
        return {**super().measure(study), self.name: 1 / (len(study.rows("samples", 0)) - 2)}


@breaks("metric", "seeded")
class MetricSeeded(RightMetric):
    def measure(self, study: Any) -> Any:
        return {**super().measure(study), self.name: random.random()}


@breaks("metric", "study-untouched")
class MetricStudyUntouched(RightMetric):
    def measure(self, study: Any) -> Any:
        study.reference.images.mul_(0.5)
        return {**super().measure(study), self.name: 1}


@breaks("metric", "device")
class MetricDevice(RightMetric):
    def measure(self, study: Any) -> Any:
        with study.target.frozen(study.device), torch.no_grad():
            logits = study.target(study.images)
        return {**super().measure(study), self.name: logits.mean().item()}


# ------------------------------------------------------------------------------------------- attribution


@right("attribution")
class RightAttribution(Attribution):
    """(x - x') times the gradient."""

    name = "right"
    complete = True

    def slope(self, images: Tensor, classes: Tensor, scores: Any) -> Tensor:
        x = images.detach().clone().requires_grad_()
        return torch.autograd.grad(scores(x).gather(1, classes[:, None]).sum(), x)[0]

    def attribute(self, target: Any, images: Tensor, classes: Tensor, context: Any) -> Tensor:
        return (images - context.baselines.mean(0)) * self.slope(images, classes, context.scores)


class Incomplete(RightAttribution):
    """The same, that says nothing of sums."""

    name = "incomplete"
    complete = False


@breaks("attribution", "shapes")
class AttributionShapes(RightAttribution):
    def attribute(self, target: Any, images: Tensor, *others: Any) -> Tensor:
        maps = super().attribute(target, images, *others)
        return maps.mean(1, keepdim=True) if images.shape[1] == 3 else maps


@breaks("attribution", "signs")
class AttributionSigns(Incomplete):
    def attribute(self, *arguments: Any) -> Tensor:
        return -super().attribute(*arguments)


@breaks("attribution", "complete")
class AttributionComplete(RightAttribution):
    def attribute(self, *arguments: Any) -> Tensor:
        return 1.5 * super().attribute(*arguments)


class OfNoBaseline(RightAttribution):
    """Complete for a black baseline alone."""

    name = "of-no-baseline"

    def attribute(self, target: Any, images: Tensor, classes: Tensor, context: Any) -> Tensor:
        return images * self.slope(images, classes, context.scores)


@breaks("attribution", "local")
class AttributionLocal(Incomplete):
    local = True

    def attribute(self, target: Any, images: Tensor, classes: Tensor, context: Any) -> Tensor:
        return 2 * self.slope(images, classes, context.scores)


@breaks("attribution", "explains-class")
class AttributionExplainsClass(RightAttribution):
    def attribute(self, target: Any, images: Tensor, classes: Tensor, context: Any) -> Tensor:
        asked = classes if isinstance(target, toy_models.LinearTarget) else classes * 0
        return super().attribute(target, images, asked, context)


@breaks("attribution", "explains-scores")
class AttributionExplainsScores(RightAttribution):
    def attribute(self, target: Any, images: Tensor, classes: Tensor, context: Any) -> Tensor:
        return (images - context.baselines.mean(0)) * self.slope(images, classes, target)


@breaks("attribution", "image-alone")
class AttributionImageAlone(Incomplete):
    def attribute(self, *arguments: Any) -> Tensor:
        maps = super().attribute(*arguments)
        return maps / maps.abs().sum()


@breaks("attribution", "rows")
class AttributionRows(RightAttribution):
    def attribute(self, target: Any, images: Tensor, *others: Any) -> Tensor:
        target(images.repeat(5, *(1,) * (images.dim() - 1)))
        return super().attribute(target, images, *others)


@breaks("attribution", "seeded")
class AttributionSeeded(RightAttribution):
    def attribute(self, *arguments: Any) -> Tensor:
        np.random.rand()
        return super().attribute(*arguments)


@breaks("attribution", "target-untouched")
class AttributionTargetUntouched(RightAttribution):
    def attribute(self, target: Any, *others: Any) -> Tensor:
        target.register_forward_hook(lambda *_: None)
        return super().attribute(target, *others)


class EatsBaselines(Incomplete):
    """It changes the baselines for the next batch."""

    name = "eats-baselines"

    def attribute(self, *arguments: Any) -> Tensor:
        maps = super().attribute(*arguments)
        arguments[-1].baselines.add_(0.5)
        return maps


@breaks("attribution", "device")
class AttributionDevice(RightAttribution):
    def attribute(self, *arguments: Any) -> Tensor:
        maps = super().attribute(*arguments)
        return maps * torch.ones(maps.shape)


# ------------------------------------------------------------------------------------------------- audit


@right("audit")
class RightAudit(Audit):
    """Confidence in the images of a class, some of them drawn at random, and how far it falls on darker ones."""

    name = "right"
    kind = "doubt"
    question = "Is the classifier sure of the images of a class?"
    limits = "It sees only some of them."
    needs = ("reference",)
    needs_gradient = False

    def scores(self, case: Any, images: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([case.target(some).softmax(1).amax(1) for some in images.split(case.most)])

    def test(self, case: Any) -> Any:
        rows = {c: (case.labels == c).nonzero()[:, 0] for c in case.classes}
        rows = {c: own[torch.randint(len(own), (4,), generator=case.rng())] for c, own in rows.items() if len(own)}
        if len(rows) < 2:
            raise TooFew("it compares two classes.")
        level = case.reference.images.mean().item()
        values = {c: level - self.scores(case, case.images[own]).mean().item() for c, own in rows.items()}
        return Tested(
            values,
            outlier_p_values(values, sd=0.3, df=10.0),
            {c: f"The confidence is {level - value:.2f}." for c, value in values.items()},
            {c: [Strip("images", case.images[own].cpu())] for c, own in rows.items()},
            {f"{self.name}.rows": torch.stack(list(rows.values())).cpu()},
        )


@breaks("audit", "figures")
class AuditFigures(RightAudit):
    def test(self, case: Any) -> Any:
        found = super().test(case)
        zeros = dict.fromkeys(found.p_values, 0.0)
        return replace(found, p_values=zeros) if len(case.classes) == 10 else found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda found: {"p_values": dict.fromkeys(found.p_values, math.nan)}, "the p-value nan of 0"),
        (lambda found: {"p_values": {c: torch.tensor(p) for c, p in found.p_values.items()}}, "the p-value tensor"),
        (lambda found: {"statistics": dict.fromkeys(found.p_values, math.inf)}, "the statistic inf of 0"),
        (lambda found: {"statistics": {}}, "statistics of \\[\\]"),
        (lambda found: {"statistics": {99: 0.0}, "p_values": {99: 0.5}}, r"a figure of \[99\]"),
        (lambda found: {"statistics": {}, "p_values": {}}, "no p-value and no TooFew"),
    ],
)
def test_figures_that_an_audit_cannot_correct_are_reported(change: Any, words: str) -> None:
    class Wrong(RightAudit):
        """It returns wrong figures."""

        name = "wrong"

        def test(self, case: Any) -> Any:
            found = super().test(case)
            return replace(found, **change(found))

    check = next(check for check in checks_of_kind("audit") if check.name == "figures")
    assert re.search(words, check.outcome(Wrong).detail)


@breaks("audit", "evidence")
class AuditEvidence(RightAudit):
    def test(self, case: Any) -> Any:
        found = super().test(case)
        return replace(found, evidence=dict(list(found.evidence.items())[1:]))


@breaks("audit", "described")
class AuditDescribed(RightAudit):
    question = "It looks for doubt."


@breaks("audit", "pictures")
class AuditPictures(RightAudit):
    def test(self, case: Any) -> Any:
        return replace(super().test(case), pictures={None: [Strip("all", case.images.cpu())]})


@breaks("audit", "tensors")
class AuditTensors(RightAudit):
    def test(self, case: Any) -> Any:
        return replace(super().test(case), tensors={"rows": torch.zeros(1)})


@breaks("audit", "needs")
class AuditNeeds(RightAudit):
    def test(self, case: Any) -> Any:
        assert len(case.training.labels)
        return super().test(case)


@breaks("audit", "needs-gradient")
class AuditNeedsGradient(RightAudit):
    def test(self, case: Any) -> Any:
        images = case.images[:1].detach().clone().requires_grad_()
        torch.autograd.grad(case.target(images).sum(), images)
        return super().test(case)


@breaks("audit", "screens")
class AuditScreens(RightAudit):
    screens = True


@breaks("audit", "too-few")
class AuditTooFew(RightAudit):
    def test(self, case: Any) -> Any:
        assert len(case.images) > 1
        return super().test(case)


@breaks("audit", "seeded")
class AuditSeeded(RightAudit):
    def test(self, case: Any) -> Any:
        np.random.rand()
        return super().test(case)


@breaks("audit", "case-untouched")
class AuditCaseUntouched(RightAudit):
    def test(self, case: Any) -> Any:
        found = super().test(case)
        case.images.mul_(0.9)
        return found


@breaks("audit", "rows")
class AuditRows(RightAudit):
    def test(self, case: Any) -> Any:
        case.target(case.images)
        return super().test(case)


@breaks("audit", "device")
class AuditDevice(RightAudit):
    def test(self, case: Any) -> Any:
        case.target(torch.zeros_like(case.images[:1], device="cpu"))
        return super().test(case)


# ------------------------------------------------------------------------------------------------ loader


@right("loader")
class RightLoader(Loader):
    """A linear classifier as JSON."""

    name = "right"
    help = ".linear.json"

    @staticmethod
    def example(folder: Path) -> Path:
        weight = torch.randn(3, 16, generator=torch.Generator().manual_seed(0)).tolist()
        path = folder / "net.linear.json"
        path.write_text(json.dumps({"shape": [1, 4, 4], "weight": weight}))
        return path

    def accepts(self, path: Path) -> bool:
        return path.name.endswith(".linear.json") and path.is_file()

    def read(self, path: Path) -> Any:
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise ModelError(f"{path} is not JSON: {error}. Save it again.") from error

    def load(self, path: Path, options: TargetOptions) -> Any:
        content = self.read(path)
        layer = nn.Linear(16, 3, bias=False)
        layer.weight.data = self.changed(torch.tensor(content["weight"]))
        facts = TargetOptions(input_shape=content["shape"]).model_copy(update=self.said(options))
        return make_target(nn.Sequential(nn.Flatten(), layer), path.stem, facts, {})

    def changed(self, weight: Tensor) -> Tensor:
        return weight

    def said(self, options: TargetOptions) -> dict[str, Any]:
        return options.said()


@breaks("loader", "named")
class LoaderNamed(RightLoader):
    pass


LoaderNamed.name = "Right Loader"


@breaks("loader", "documented")
class LoaderDocumented(RightLoader):
    pass


LoaderDocumented.__doc__ = None


@breaks("loader", "has-help")
class LoaderHasHelp(RightLoader):
    help = ""


@breaks("loader", "accepts")
class LoaderAccepts(RightLoader):
    def accepts(self, path: Path) -> bool:
        return path.is_file()


@breaks("loader", "loads")
class LoaderLoads(RightLoader):
    def changed(self, weight: Tensor) -> Tensor:
        return weight + 0.1 * torch.rand(weight.shape)


@breaks("loader", "target-kept")
class LoaderTargetKept(RightLoader):
    def load(self, path: Path, options: TargetOptions) -> Any:
        target = super().load(path, options)
        target.description = target.description.model_copy(update={"num_classes": 4})
        return target


@breaks("loader", "user-wins")
class LoaderUserWins(RightLoader):
    def said(self, options: TargetOptions) -> dict[str, Any]:
        return {}


class LoaderOfNames(RightLoader):
    """It passes the names of classes on, and no other fact."""

    name = "of-names"

    def said(self, options: TargetOptions) -> dict[str, Any]:
        return {"class_names": options.class_names}


class LoaderOfFolders(RightLoader):
    """It reads a folder with a folder in it."""

    name = "of-folders"

    @staticmethod
    def example(folder: Path) -> Path:
        (folder / "net" / "more").mkdir(parents=True)
        RightLoader.example(folder / "net")
        return folder / "net"

    def accepts(self, path: Path) -> bool:
        return (path / "net.linear.json").is_file()

    def read(self, path: Path) -> Any:
        return super().read(path / "net.linear.json")


@breaks("loader", "refuses-torn")
class LoaderRefusesTorn(RightLoader):
    def read(self, path: Path) -> Any:
        return json.loads(path.read_text())


# ------------------------------------------------------------------------------------------------ target


@right("target")
class RightTarget(ModuleTarget):
    """A target as `wrap` makes it."""


@breaks("target", "documented")
class TargetDocumented(RightTarget):
    pass


TargetDocumented.__doc__ = None


@breaks("target", "facts")
class TargetFacts(RightTarget):
    class_names = property(lambda self: ["only one"], lambda self, names: None)


@breaks("target", "logits")
class TargetLogits(RightTarget):
    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return logits if torch.is_autocast_enabled("cpu") else logits.double()


@breaks("target", "scores")
class TargetScores(RightTarget):
    multi_label = property(lambda self: True, lambda self, value: None)

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(1)


@breaks("target", "responds")
class TargetResponds(RightTarget):
    def respond(self, images: Tensor, layers: Any = ()) -> Any:
        response = super().respond(images, layers)
        return interpkit.Response(response.logits + 1, response.features, response.feature_layer)


@breaks("target", "unknown-layer")
class TargetUnknownLayer(RightTarget):
    def respond(self, images: Tensor, layers: Any = ()) -> Any:
        return super().respond(images, [layer for layer in layers if not layer.startswith("no.")])


@breaks("target", "gradients")
class TargetGradients(RightTarget):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.sqrt())  # its slope at black is infinite


@breaks("target", "image-alone")
class TargetImageAlone(RightTarget):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + images.mean() * torch.arange(3, device=images.device)


@breaks("target", "frozen")
class TargetFrozen(RightTarget):
    @contextmanager
    def frozen(self, *arguments: Any) -> Iterator[None]:
        yield


@breaks("target", "differentiable")
class TargetDifferentiable(RightTarget):
    @contextmanager
    def differentiable(self) -> Iterator[list[torch.nn.Parameter]]:
        yield [weight.requires_grad_(True) for weight in self.parameters()]


@breaks("target", "untouched")
class TargetUntouched(RightTarget):
    def forward(self, images: Tensor) -> Tensor:
        torch.rand(1)
        return super().forward(images)


@breaks("target", "device")
class TargetDevice(RightTarget):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + torch.zeros(3)


@breaks("target", "bf16")
class TargetBf16(RightTarget):
    def forward(self, images: Tensor) -> Tensor:
        return self.raw(images)


class _Uphill(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return -slope


@breaks("target", "converges")
class TargetConverges(RightTarget):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(_Uphill.apply(images))


# ----------------------------------------------------------------------------- what all kinds have in common


def plant_common(kind: str) -> None:
    """Plant faults in names, documentation and options of a component of a kind."""
    cls = RIGHT[kind]

    own = cls.Options
    fields = {name: (field.annotation, field) for name, field in own.model_fields.items()}

    def options(**attributes: Any) -> dict[str, Any]:
        return {"Options": type("Options", (own,), {"__module__": __name__, **attributes})}

    def refuse(self: Any, *arguments: Any) -> None:
        raise ValueError("not today")

    def forget(self: Any, *arguments: Any) -> None:
        cls.__init__(self, *arguments)
        self.options = self.Options()

    faults = {
        "builds": {"__init__": refuse},
        "named": {"name": "Not A Name"},
        "documented": {"__doc__": None},
        "options-declared": {"Options": pydantic.create_model("Options", __module__=__name__, **fields)},
        "options-strict": options(model_config=ConfigDict(extra="ignore")),
        "options-documented": options(__annotations__={"size": int}, size=3),
        "options-in-recipe": options(__annotations__={"size": Any}, size=Field((1, 2), description="a pair")),
        "options-kept": {"__init__": forget},
    }
    for check, attributes in faults.items():
        name = f"{cls.__name__}_{check.replace('-', '_')}"
        if "Options" in attributes:
            attributes["Options"].__qualname__ = f"{name}.Options"
        made = {"name": check, "__doc__": "A planted fault.", "__module__": __name__, "__qualname__": name}
        FAULTY[kind, check] = globals()[name] = type(name, (cls,), made | attributes)


for _kind in COMPONENTS:
    plant_common(_kind)
for (_kind, _check), _cls in FAULTY.items():  # each can be found by its name, as what is pickled must be
    if _cls.__name__ == "_":
        _cls.__name__ = _cls.__qualname__ = f"{_kind}_{_check.replace('-', '_')}"
        globals()[_cls.__name__] = _cls


def made(kind: str, cls: Any) -> Any:
    """Return what is checked: a class, or a target of it."""
    if kind != "target":
        return cls
    target = toy_models.tiny_target()
    target.__class__ = cls
    return target


def broken(component: Any) -> dict[str, str]:
    return {o.check.name: o.detail for o in testing.outcomes(component) if o.status == "broken"}


@pytest.mark.parametrize("kind", [*COMPONENTS, "loader", "target"])
def test_a_correct_component_passes_all_checks(kind: str) -> None:
    component = made(kind, RIGHT[kind])
    assert broken(component) == {}
    getattr(testing, f"check_{kind}")(component)


def test_a_target_of_labels_of_their_own_passes_all_checks() -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3), torch.nn.Sigmoid())
    testing.check_target(interpkit.wrap(module, (1, 8, 8)))


@pytest.mark.parametrize(("kind", "check"), FAULTY, ids=lambda word: word)
def test_a_planted_fault_fails_exactly_its_check(kind: str, check: str) -> None:
    found = broken(made(kind, FAULTY[kind, check]))
    assert list(found) == [check], found
    assert found[check].strip()


@pytest.mark.parametrize(
    ("component", "check"),
    [
        (NormOfBatch, "batch-mean"),
        (OfNoBaseline, "complete"),
        (LoaderOfNames, "user-wins"),
        (OwnColumn, "per-class"),
        (OwnEntry, "entry"),
        (OfLarge, "seeded"),
        (EatsBaselines, "target-untouched"),
    ],
)
def test_a_fault_in_one_case_alone_fails_its_check(component: Any, check: str) -> None:
    assert list(broken(component)) == [check]


def test_a_folder_in_the_folder_that_a_loader_reads_is_not_torn() -> None:
    assert broken(LoaderOfFolders) == {}


class ReadingMetric(RightMetric):
    """It compares with images of its own."""

    name = "reading"

    class Options(interpkit.DataOptions):
        """It has many steps."""

        steps: int = Field(100, ge=50, description="that it takes")

    def measure(self, study: Any) -> Any:
        assert len(self.options.load(study.target).labels) and self.options.steps == 50
        return super().measure(study)


class ReadingAudit(RightAudit):
    """It compares with images of its own."""

    name = "reading"

    class Options(interpkit.DataOptions):
        """It has many steps."""

        steps: int = Field(100, gt=49, description="that it takes")

    def test(self, case: Any) -> Any:
        assert len(self.options.load(case.target).labels) and self.options.steps == 50
        return super().test(case)


class ReadingAttribution(RightAttribution):
    """It reads images of its own."""

    name = "reading"
    Options = interpkit.PictureOptions

    def attribute(self, target: Any, *others: Any) -> Tensor:
        assert len(self.options.pictures(target))
        return super().attribute(target, *others)


class ReadingGenerator(RightGenerator):
    """It is built from images."""

    name = "reading"

    class Options(interpkit.PictureOptions):
        """The width."""

        width: int = Field(32, ge=1, description="of the hidden layer")

    def __init__(self, spec: ConditionSpec, input_shape: tuple[int, ...], options: Any = None) -> None:
        super().__init__(spec, input_shape, options)
        if self.options.data is None:
            raise interpkit.UsageError("it needs images.")


class ManyEach(RightInverter):
    """It makes four images of a class at least."""

    name = "many-each"

    class Options(RightInverter.Options):
        """The number."""

        per_class: int = Field(10, ge=4, description="images of a class")


@pytest.mark.parametrize("component", [ReadingMetric, ReadingAudit, ReadingAttribution, ReadingGenerator, ManyEach])
def test_a_component_that_reads_data_or_has_lower_limits_passes_all_checks(component: Any) -> None:
    assert broken(component) == {}


def test_a_target_that_says_why_it_has_no_gradient_passes_all_checks() -> None:
    class Rounded(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.detach())

    target = interpkit.wrap(Rounded(4, 3), (4,))
    assert target.no_gradient
    assert broken(target) == {}


@pytest.mark.parametrize("kind", [*COMPONENTS, "loader", "target"])
def test_every_check_has_a_planted_fault(kind: str) -> None:
    assert {check.name for check in checks_of_kind(kind)} == {check for of, check in FAULTY if of == kind}
