"""What components are tried on: small targets of many shapes, batches, and plain parts to stand beside the one checked.

Whatever is made here is the same in every process, and leaves torch's global generator as it was.
"""

from __future__ import annotations

import copy
import itertools
import logging
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import interpkit
from interpkit.config.recipe import Optimizer, Recipe
from interpkit.errors import UsageError
from interpkit.interfaces.components import Component
from interpkit.interfaces.data import DataOptions, ReadingOptions
from interpkit.interfaces.generation import Condition, Conditioner, ConditionSpec, Generator
from interpkit.interfaces.inversions import Inversion
from interpkit.interfaces.inverters import Parts
from interpkit.interfaces.losses import GeneratedBatch, InversionBatch, InversionLoss
from interpkit.interfaces.metrics import TooFew
from interpkit.interfaces.targets import Response, Target
from interpkit.inversion.loop import GeneratorInverter
from interpkit.inversion.results import GeneratorInversion
from interpkit.plugins.discovery import installed
from interpkit.runtime.random import global_seed, random_generator
from interpkit.runtime.recorder import Recorder
from interpkit.targets.wrapping import wrap
from interpkit.testing.checks import Broken

CPU = torch.device("cpu")
Shape = tuple[int, ...]
SHAPES: tuple[Shape, ...] = ((1, 28, 28), (3, 32, 32), (5, 17, 40), (12,))
"""Images of several sizes, not all square, and vectors."""
CLASSES = (2, 10, 37, 1000)
TINY: Shape = (1, 12, 12)
HOMES: tuple[tuple[Shape, int], ...] = ((TINY, 3), ((6,), 3), ((3, 32, 32), 10), ((1, 28, 28), 10), ((5, 17, 40), 10))
"""Shapes and numbers of classes for whatever needs only one; the first that a component takes is its own."""
VARIED: tuple[tuple[Shape, int], ...] = ((TINY, 3), ((3, 32, 32), 2), ((5, 17, 40), 10), ((12,), 37))
"""Shapes and numbers of classes of targets for whatever uses a whole one."""
LARGE = 10_000
"""Numbers in an image above which a batch is kept small."""
STEPS = 30
"""Of an inversion that must still converge."""
PICTURES = 100
"""Of a component that learns from pictures without labels."""


# ------------------------------------------------------------------------------------------ targets


class Pictures:
    """A made-up data set: each class has a picture, and an image of the class is the picture with noise on it.

    Args:
        shape: of an image.
        num_classes: n.
    """

    def __init__(self, shape: Shape, num_classes: int) -> None:
        rng = random_generator(CPU, 1)
        coarse = torch.rand(num_classes, shape[0], *(4 for _ in shape[1:]), generator=rng)
        of_class = coarse if len(shape) == 1 else F.interpolate(coarse, shape[1:], mode="bilinear")
        self.of_class = of_class.sub(0.5).mul(1.6).add(0.5).clamp(0, 1)

    def draw(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return images (count, *shape) in [0, 1] and labels (count,), the classes taking turns."""
        labels = torch.arange(count) % len(self.of_class)
        images = self.of_class[labels]
        noise = torch.randn(images.shape, generator=random_generator(CPU, seed))
        return (images + 0.15 * noise).clamp(0, 1), labels


def target_of(shape: Shape, num_classes: int) -> Target:
    """Return a small classifier with batch norm, trained on `Pictures` if it is of `HOMES`; a fresh copy each time."""
    return copy.deepcopy(_target_of(shape, num_classes))


@cache
def _target_of(shape: Shape, num_classes: int) -> Target:
    with global_seed(0, CPU):
        features = shape[0]
        layers: list[nn.Module]
        if len(shape) == 1:
            layers = [nn.Linear(features, 24), nn.BatchNorm1d(24), nn.ReLU()]
            flat = 24
        else:
            layers = [nn.Conv2d(features, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU()]
            layers += [nn.Conv2d(6, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten()]
            flat = 12 * math.prod(-(-side // 4) for side in shape[1:])
        module = nn.Sequential(*layers, nn.Linear(flat, 16), nn.ReLU(), nn.Linear(16, num_classes))
        if (shape, num_classes) in HOMES:
            _train(module, Pictures(shape, num_classes))
        module.eval()
    return wrap(module, shape, mean=0.4, std=0.3, name="tiny")


def attention_target(shape: Shape, num_classes: int) -> Target:
    """Return a small vision transformer, untrained, for images whose sides are multiples of 4; always the same."""
    with global_seed(0, CPU):
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        parts = [nn.Conv2d(shape[0], 8, 4, 4), nn.Flatten(2), Transposed(), layer, nn.Flatten()]
        module = nn.Sequential(*parts, nn.Linear(8 * math.prod(side // 4 for side in shape[1:]), num_classes))
    return wrap(module.eval(), shape, name="attention")


class Transposed(nn.Module):
    """Channels (B, C, N) as tokens (B, N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens."""
        return x.transpose(1, 2)


def _train(module: nn.Module, pictures: Pictures) -> None:
    optimizer = torch.optim.Adam(module.parameters(), lr=5e-3)
    for step in range(60):
        images, labels = pictures.draw(60, 2 + step)
        optimizer.zero_grad()
        F.cross_entropy(module((images - 0.4) / 0.3), labels).backward()
        optimizer.step()
    for parameter in module.parameters():
        parameter.grad = None


def tiny_target() -> Target:
    """Return the classifier of 1 x 12 x 12 images and 3 classes; a fresh copy each time."""
    return target_of(TINY, 3)


@contextmanager
def data_for(cls: type[Component], shape: Shape, num_classes: int) -> Iterator[dict[str, Any]]:
    """Give the options by which a component reads toy images of ``num_classes`` classes; none if it reads no data.

    A loss that trains something of its own takes one step.
    """
    if not issubclass(cls.Options, ReadingOptions):
        yield {}
        return
    with tempfile.TemporaryDirectory() as folder:
        count = 6 * num_classes if issubclass(cls.Options, DataOptions) else PICTURES
        images, labels = Pictures(shape, num_classes).draw(count, 1)
        np.savez(path := Path(folder) / "toy.npz", images=images.numpy(), labels=labels.numpy())
        short = shortest(cls, steps=1) if issubclass(cls, InversionLoss) else {}
        before = logging.root.manager.disable
        logging.disable(logging.INFO)  # what is read here is of no interest
        try:
            yield {"data": str(path), **short}
        finally:
            logging.disable(before)


def shortest(cls: type[Component], **values: int) -> dict[str, Any]:
    """Return those of the options that a component has, each at least the lowest value that the option allows."""
    fields = {name: cls.Options.model_fields[name] for name in values if name in cls.Options.model_fields}
    lowest = {
        name: [getattr(limit, "ge", getattr(limit, "gt", -math.inf) + 1) for limit in field.metadata]
        for name, field in fields.items()
    }
    return {name: max([values[name], *lowest[name]]) for name in fields}


def tiny_inversion() -> Inversion:
    """Return a short finished inversion of it, by the method of the paper; a fresh copy each time."""
    return copy.deepcopy(_tiny_inversion())


@cache
def _tiny_inversion() -> Inversion:
    return interpkit.invert(
        tiny_target(),
        plugins=[installed().complete_preset()],
        steps=STEPS,
        batch_size=24,
        device="cpu",
        precision="fp32",
        options={"generator.latent": 8, "generator.hidden": 8, "generator.width": 16, "generator.min_width": 8},
    )


class SmoothTarget(Target):
    """A classifier without kinks, in the precision of its weights: for derivatives in float64.

    Args:
        shape: of an image.
        num_classes: n.
    """

    mean, std = 0.4, 0.3

    def __init__(self, shape: Shape, num_classes: int) -> None:
        super().__init__()
        with global_seed(0, CPU):
            self.module = self.network(shape, num_classes)
        self.name = "smooth"
        self.input_shape = shape
        self.num_classes = num_classes
        self.class_names = [str(label) for label in range(num_classes)]
        self.feature_layer = f"{len(self.module) - 1}:in"
        self.description = interpkit.TargetOptions(
            input_shape=shape, num_classes=num_classes, mean=[self.mean] * shape[0], std=[self.std] * shape[0]
        )
        self.sources = {}
        self.eval().requires_grad_(False)

    def network(self, shape: Shape, num_classes: int) -> nn.Sequential:
        """Return the layers."""
        first = [nn.Linear(shape[0], 5)] if len(shape) == 1 else [nn.Conv2d(shape[0], 3, 3), nn.BatchNorm2d(3)]
        flat = 5 if len(shape) == 1 else 3 * math.prod(side - 2 for side in shape[1:])
        return nn.Sequential(*first, nn.Tanh(), nn.Flatten(), nn.Linear(flat, num_classes)).double()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, (B, n)."""
        return self.respond(images).logits

    def respond(self, images: Tensor, layers: Sequence[str] = ()) -> Response:
        """Return logits and features; see `Target.respond`."""
        features: dict[str, Tensor] = {}
        passing = (images.to(next(self.parameters()).dtype) - self.mean) / self.std
        for place, layer in enumerate(self.module):
            features[f"{place}:in"] = passing
            passing = features[str(place)] = layer(passing)
        wanted = {self.feature_layer, *layers}
        if unknown := wanted - features.keys():
            raise UsageError(f"there is no layer {min(unknown)!r}.")
        return Response(passing, {layer: features[layer] for layer in wanted}, self.feature_layer)

    def layers(self) -> Mapping[str, nn.Module]:
        """Return the layers."""
        return dict(self.module.named_children())


class LinearTarget(SmoothTarget):
    """A linear classifier, of which every attribution is known: the logits are W x, the gradients W."""

    mean, std = 0.0, 1.0

    def network(self, shape: Shape, num_classes: int) -> nn.Sequential:
        """Return the one layer."""
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), num_classes, bias=False))

    def weights(self, classes: Tensor) -> Tensor:
        """Return the gradients of the logits of classes, (B, *input_shape)."""
        weight = self.module[1].weight
        assert isinstance(weight, Tensor)
        return weight[classes].view(-1, *self.input_shape)


def moved(target: Target, device: torch.device) -> Target:
    """Return a frozen copy of a target on another device, where it stays; see `second_device`."""
    there = copy.deepcopy(target).eval().requires_grad_(False).to(device)
    there.__dict__["frozen"] = lambda *_, **__: nullcontext()  # data alone cannot go to the second device
    return there


# --------------------------------------------------------------------------------------- plain parts


class PlainConditioner(Conditioner):
    """The one-hot label."""

    name = "plain"

    @property
    def spec(self) -> ConditionSpec:
        """A vector of n."""
        return ConditionSpec(self.num_classes)

    def sample(self, batch_size: int, *, labels: Tensor | None = None, rng: torch.Generator | None = None) -> Condition:
        """Draw labels; see `Conditioner.sample`."""
        if labels is None:
            labels = torch.randint(self.num_classes, (batch_size,), device=self.device, generator=rng)
        one_hot = F.one_hot(labels, self.num_classes).float()
        return Condition(labels, one_hot, one_hot)


class PlainGenerator(Generator):
    """One hidden layer."""

    name = "plain"
    latent_dim = 8

    def __init__(self, spec: ConditionSpec, input_shape: Shape, options: interpkit.Options | None = None) -> None:
        super().__init__(spec, input_shape, options)
        given = self.latent_dim + spec.vector_dim + spec.map_channels * spec.map_size**2
        self.layers = nn.Sequential(nn.Linear(given, 64), nn.ReLU(), nn.Linear(64, math.prod(input_shape)))

    def forward(self, latent: Tensor, condition: Condition) -> Tensor:
        """Return images; see `Generator.forward`."""
        side = self.spec.map_size
        parts = [latent, condition.vector, condition.maps(side, side).flatten(1)]
        images: Tensor = self.layers(torch.cat(parts, 1)).sigmoid()
        return images.view(-1, *self.input_shape)


class PlainLoss(InversionLoss):
    """Cross-entropy of the label asked for."""

    name = "plain"

    def forward(self, batch: InversionBatch) -> Tensor:
        """Return the mean cross-entropy, a scalar."""
        return batch.target.cross_entropy(batch.response.logits, batch.condition.labels).mean()


def recipe_of(steps: int = STEPS, *, device: torch.device = CPU, **settings: Any) -> Recipe:
    """Return a recipe for a short run."""
    values: dict[str, Any] = {"batch_size": 24, "optimizer": Optimizer(lr=0.02), **settings}
    return Recipe(steps=steps, device=str(device), precision="fp32", **values)


def invert(
    target: Target,
    *,
    conditioner: Conditioner | None = None,
    generator: Callable[[ConditionSpec], Generator] | None = None,
    losses: Mapping[str, tuple[float, InversionLoss]] | None = None,
) -> GeneratorInversion:
    """Invert a target by the usual loop, with plain parts for those that are not given."""
    with target.frozen(CPU), global_seed(0, CPU):
        conditioner = conditioner or PlainConditioner(target.num_classes, target.input_shape)
        made = generator(conditioner.spec) if generator else PlainGenerator(conditioner.spec, target.input_shape)
        parts = Parts(conditioner, made, losses or {"plain": (1.0, PlainLoss(target))})
        batch_size = 24 if math.prod(target.input_shape) <= LARGE else 4
        return GeneratorInverter().invert(target, recipe_of(batch_size=batch_size), parts, Recorder(STEPS))


# ----------------------------------------------------------------------------- conditions and batches


def vectors(count: int, dim: int) -> Tensor:
    """Return (count, dim) distributions, as a condition's vector often is."""
    return torch.randn(count, dim, generator=random_generator(CPU, 0)).softmax(1)


def condition_of(
    spec: ConditionSpec, labels: Tensor, num_classes: int, *, asked: list[tuple[int, int]] | None = None
) -> Condition:
    """Return a condition of any sizes for labels (B,), on their device: its vector and maps differ between labels.

    The sizes of the maps that are asked for are added to ``asked``.
    """
    count = int(labels.max()) + 1
    distribution = F.one_hot(labels, num_classes).float() * 0.5 + 0.5 / num_classes
    vector = vectors(count, spec.vector_dim).to(labels.device)[labels]

    def draw(height: int, width: int) -> Tensor:
        if asked is not None:
            asked.append((height, width))
        maps = images_of((spec.map_channels, spec.map_size, spec.map_size), count, 1)
        return F.interpolate(maps.round(), (height, width)).to(labels.device)[labels]

    return Condition(labels, distribution, vector, draw if spec.map_channels else None)


def generated(target: Target, images: Tensor) -> GeneratedBatch:
    """Return a batch as the loop hands it on, with soft conditions; the classes take turns."""
    labels = (torch.arange(len(images)) % target.num_classes).to(images.device)
    one_hot = F.one_hot(labels, target.num_classes)
    soft = 0.6 * one_hot + 0.4 * vectors(len(images), target.num_classes).to(images)
    latent = torch.randn(len(images), 8, generator=random_generator(CPU, 0)).to(images)
    return GeneratedBatch(target, Condition(labels, soft, soft), latent, images, 0.5)


def images_of(shape: Shape, count: int, seed: int = 0) -> Tensor:
    """Return (count, *shape) random images in [0, 1]."""
    return torch.rand(count, *shape, generator=random_generator(CPU, seed))


def value_of(loss: InversionLoss, target: Target, images: Tensor, *, bf16: bool = False) -> Tensor:
    """Return a loss's value on images as the loop computes it."""
    value: Tensor = loss(answered(loss, generated(target, images), bf16=bf16))
    return value


def answered(loss: InversionLoss, batch: GeneratedBatch, *, seed: int = 0, bf16: bool = False) -> InversionBatch:
    """Return a batch with the loss's views, and the target's responses to both."""
    target, images, layers = batch.target, batch.images, loss.layers(batch.target)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        views = loss.views(batch, random_generator(images.device, seed))
        response = target.respond(images, layers)
        of_views = None if views is None else target.respond(views, layers)
    return InversionBatch(target, batch.condition, batch.latent, images, batch.progress, response, views, of_views)


def evaluate_loss(
    loss: InversionLoss,
    target: Target,
    images: Tensor,
    labels: Tensor | Sequence[int],
    *,
    distribution: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    """Compute a loss on the images that you choose, as a training step would: perturbed views included.

    Args:
        loss: the loss, built for ``target``.
        target: the classifier; frozen while it runs.
        images: (B, *input_shape) in [0, 1].
        labels: (B,), the class requested for each image.
        distribution: (B, n), the soft distributions P of the conditions; one-hot if omitted.
        seed: seed of the views.

    Returns:
        The term without its weight, a scalar; it has a gradient if the images require one.

    Example:
        >>> import torch
        >>> from interpkit import testing, wrap
        >>> from interpkit_losses import CrossEntropy
        >>> target = wrap(torch.nn.Linear(2, 2), input_shape=(2,))
        >>> images = torch.rand(8, 2, requires_grad=True)
        >>> testing.evaluate_loss(CrossEntropy(target), target, images, labels=[0] * 8).backward()
        >>> images.grad.shape
        torch.Size([8, 2])
    """
    labels = torch.as_tensor(labels, device=images.device)
    one_hot = F.one_hot(labels, target.num_classes).float()
    soft = one_hot if distribution is None else distribution
    latent = torch.zeros(len(images), 1, device=images.device)
    with target.frozen():
        batch = GeneratedBatch(target, Condition(labels, soft, soft), latent, images, 0.0)
        value: Tensor = loss(answered(loss, batch, seed=seed))
    return value


# ------------------------------------------------------------------------------------------ building


def accepted(
    attempt: Callable[..., Any], cases: Iterable[tuple[Any, ...]], *, needed: bool = True
) -> Iterator[tuple[Any, ...]]:
    """Attempt something for each case; yield each case that is not refused, followed by the result.

    Raises:
        Broken: all are refused, where one is needed.
    """
    refusal, taken = "", False
    for case in cases:
        try:
            made = attempt(*case)
        except (UsageError, TooFew) as error:
            refusal = refusal or str(error)
        else:
            taken = True
            yield (*case, made)
    if needed and not taken:
        raise Broken(f"it refuses every classifier tried; of the first it says: {refusal}")


def settings_of(build: Callable[[Shape, int], Any]) -> Iterator[tuple[Any, ...]]:
    """Yield the shapes and numbers of classes that a component takes, each with the component."""
    return accepted(build, itertools.product(SHAPES, CLASSES), needed=False)
