"""The checks of generators."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from interpkit.errors import UsageError
from interpkit.interfaces.generation import Condition, ConditionSpec, Generator
from interpkit.runtime.random import global_seed, random_generator
from interpkit.testing import toy_models
from interpkit.testing.checks import expect, promised
from interpkit.testing.components import (
    builder,
    expect_gradients,
    expect_images,
    expect_on,
    expect_unit,
    random_states,
    same,
    with_seed,
)
from interpkit.testing.conditioners import expect_converged
from interpkit.testing.second_device import other_devices
from interpkit.testing.two_processes import Importable, in_both

SPECS = (ConditionSpec(10), ConditionSpec(2, 2, 4), ConditionSpec(0, 1, 2), ConditionSpec(1000, 3, 16))
"""A vector alone, a vector and maps, maps alone, and a thousand classes."""
BATCH = 4


def asked(generator: Generator, count: int = BATCH, seed: int = 0) -> tuple[Tensor, Condition]:
    """Return a latent and a condition for a generator, cycling through the labels."""
    latent = torch.randn(count, generator.latent_dim, generator=random_generator(toy_models.CPU, seed))
    return latent, toy_models.condition_of(generator.spec, torch.arange(count) % 3, 3)


def home(cls: Any, seed: int = 0) -> Generator:
    """Return a generator for the first shape that it accepts, built under a seed."""
    build = builder(cls)
    shape = toy_models.home_of(build)
    made: Generator = with_seed(seed, lambda: build(*shape))
    return made


def all_of(cls: Any) -> Iterator[tuple[Generator, str]]:
    """Yield a generator for every shape of images and conditions that it accepts, with a description of both."""
    for shape in toy_models.SHAPES:
        for spec in SPECS:
            try:
                yield cls(spec, shape), f"for images of {shape} and {spec}"
            except UsageError:
                continue


@promised(
    "shapes",
    by="generator",
    promise="for any image size and sizes of the condition, images are floats (B, *input_shape), and in [0, 1] "
    "also for extreme latents; latent_dim is at least 1",
    remedy="build the last layer from input_shape, end with a sigmoid (or clamp), and set self.latent_dim in __init__",
)
def shapes(cls: Any) -> None:
    """Images have the shape and range."""
    for generator, where in all_of(cls):
        dim = getattr(generator, "latent_dim", None)
        expect(isinstance(dim, int) and dim >= 1, f"latent_dim is {dim!r}, {where}")
        latent, condition = asked(generator, 2)
        with torch.no_grad():
            for mode in (True, False):
                images = generator.train(mode)(latent, condition)
                expect_images(images, generator.input_shape, 2, where)
                expect_unit(images, where)
            expect_unit(generator(30 * latent, condition), f"{where}, for latents thirty times as large as usual")


@promised(
    "maps-asked",
    by="generator",
    promise="it requests maps with sides of at least map_size, where they still differ between labels",
    remedy="call condition.maps(height, width) with both at least self.spec.map_size",
)
def maps_asked(cls: Any) -> None:
    """Maps are large enough."""
    for generator, where in all_of(cls):
        sizes: list[tuple[int, int]] = []
        condition = toy_models.condition_of(generator.spec, torch.arange(2), 2, asked=sizes)
        with torch.no_grad():
            generator.eval()(torch.zeros(2, generator.latent_dim), condition)
        small = [size for size in sizes if min(size) < generator.spec.map_size]
        expect(not small, f"maps of {small[:1]} requested, {where}")


@promised(
    "uses-condition",
    by="generator",
    promise="its images depend on the condition: on its vector or its maps",
    remedy="feed condition.vector and condition.maps(...) into the layers",
)
def uses_condition(cls: Any) -> None:
    """The condition matters."""
    generator = home(cls).eval()
    latent, _ = asked(generator)
    with torch.no_grad():
        ones = [
            generator(latent, toy_models.condition_of(generator.spec, torch.full((BATCH,), label), 3))
            for label in (1, 2)
        ]
    expect(not same(*ones, tolerance=1e-7), "two labels lead to the same images")


@promised(
    "uses-latent",
    by="generator",
    promise="its images depend on the latent, so that a class has more than one image",
    remedy="feed latent into the layers",
)
def uses_latent(cls: Any) -> None:
    """The latent matters."""
    generator = home(cls).eval()
    latent, condition = asked(generator)
    with torch.no_grad():
        expect(
            not same(generator(latent, condition), generator(-latent, condition), tolerance=1e-7),
            "two latents lead to the same images",
        )


@promised(
    "gradients",
    by="generator",
    promise="every parameter gets a finite gradient from the images",
    remedy="remove layers that nothing depends on; use no argmax, round, detach() or .data before the images",
)
def gradients(cls: Any) -> None:
    """Gradients reach the parameters."""
    generator = home(cls).train()
    images = generator(*asked(generator))
    expect(images.requires_grad, "the images have no gradient at all")
    (images * images_like(images)).sum().backward()
    expect_gradients(generator, "from the images")


def images_like(images: Tensor) -> Tensor:
    """Return random images of the same shape."""
    return toy_models.images_of(tuple(images.shape[1:]), len(images), 5).to(images)


@promised(
    "image-alone",
    by="generator",
    promise="in eval mode an image does not depend on the others of its batch; a batch of one works",
    remedy="compute no statistics over the batch in eval mode; let batch norm use its running statistics",
)
def image_alone(cls: Any) -> None:
    """Other images of the batch do not matter."""
    generator = home(cls)
    with torch.no_grad():
        generator.train()(*asked(generator, 8))
        generator.eval()
        latent, condition = asked(generator)
        together = generator(latent, condition)
        for row in range(2):
            alone = generator(latent[row : row + 1], condition[torch.tensor([row])])
            apart = (alone - together[row : row + 1]).abs().max().item()
            expect(apart < 1e-4, f"a pixel differs by {apart:.3g} alone and in a batch of {BATCH}")


@promised(
    "seeded",
    by="generator",
    promise="weights and images depend only on torch's global generator, so that a seed determines them",
    remedy="draw only with torch, and seed nothing yourself",
)
def seeded(cls: Any) -> None:
    """The seed determines weights and images."""
    weights = [home(cls, seed).state_dict() for seed in (0, 0)]
    expect(same(*weights), "one seed leads to different weights")
    generator = home(cls).train()
    with torch.no_grad():
        images = [with_seed(1, lambda: generator(*asked(generator))) for _ in range(2)]
        expect(same(*images), "two forward passes with one seed return different images")
        before = random_states()
        generator.eval()(*asked(generator))
    after = random_states()
    moved = [name for name in ("numpy", "Python") if before[name] != after[name]]
    expect(not moved, f"a forward pass changes the global random state of {' and '.join(moved)}")


@promised(
    "starts-at",
    by="generator",
    promise="if it overrides `start_at`, the mean of the images is then near the requested level",
    remedy="set the bias of the last layer to log(level / (1 - level)) before a sigmoid, or remove start_at",
)
def starts_at(cls: Any) -> None:
    """`start_at` works."""
    if cls.start_at is Generator.start_at:
        return
    for level in (0.1, 0.9):
        generator = home(cls).train()
        generator.start_at(level)
        with torch.no_grad():
            mean = generator(*asked(generator, 32)).mean().item()
        expect(abs(mean - level) < 0.15, f"the mean is {mean:.2f} after start_at({level})")


@promised(
    "device",
    by="generator",
    promise="it computes on the device it was moved to",
    remedy="make new tensors with device=latent.device, and register its own tensors with register_buffer",
)
def device(cls: Any) -> None:
    """It computes on its device."""
    for place in other_devices():
        with place as other:
            generator = home(cls).to(other).to(memory_format=torch.channels_last).train()
            latent, _ = asked(generator)
            condition = toy_models.condition_of(generator.spec, (torch.arange(BATCH) % 3).to(other), 3)
            images = generator(latent.to(other), condition)
            expect_on(other, images=images)
            images.sum().backward()


@promised(
    "bf16",
    by="generator",
    promise="it works under bf16 autocast as well, its images still in [0, 1]",
    remedy="cast before operations that need equal dtypes: x.float(), or other.to(x.dtype)",
)
def bf16(cls: Any) -> None:
    """It runs under autocast."""
    generator = home(cls).train()
    with torch.autocast("cpu", torch.bfloat16):
        images = generator(*asked(generator))
    expect_unit(images.float(), "under bf16 autocast")
    images.float().sum().backward()


@promised(
    "state-dict",
    by="generator",
    promise="its state dict holds everything that its images depend on: another one that loads it makes the same",
    remedy="keep learned and random tensors as nn.Parameter or with register_buffer, not as plain attributes",
)
def state_dict(cls: Any) -> None:
    """The state dict is complete."""
    one, other = home(cls, 0), home(cls, 1)
    with torch.no_grad():
        one.train()(*asked(one, 8))  # moves running statistics off their initial values
        other.load_state_dict(one.state_dict())
        found = [generator.eval()(*asked(generator)) for generator in (one, other)]
    expect(same(*found, tolerance=1e-6), "one built under another seed makes other images with the same state dict")


@promised(
    "picklable",
    by="generator",
    promise="it can be pickled, and makes the same images afterwards",
    remedy="keep no lambdas, open files or locks as attributes, and define the class in a module",
)
def picklable(cls: Any) -> None:
    """It pickles."""
    generator = home(cls).eval()
    again = pickle.loads(pickle.dumps(generator))  # noqa: S301  # our own
    with torch.no_grad():
        found = [g(*asked(g)) for g in (generator, again)]
    expect(same(*found, tolerance=1e-6), "it makes other images after it was pickled")


@promised(
    "two-processes",
    by="generator",
    promise="in two processes it has the same weights under one seed, and two steps of DistributedDataParallel leave "
    "both alike",
    remedy="let nothing depend on the process, the host or the time",
)
def two_processes(cls: Any) -> None:
    """Two processes agree."""
    shape, count = toy_models.home_of(builder(cls))
    one, other = in_both(step_in_process, Importable.of(cls), shape, count)
    expect(one["built"] == other["built"], "the two have different weights under one seed")
    expect(one["stepped"] == other["stepped"], "their weights differ after two steps of DistributedDataParallel")


def step_in_process(cls: Importable, shape: toy_models.Shape, count: int) -> dict[str, str]:
    """Take two steps under DistributedDataParallel, each process on latents of its own."""
    with global_seed(0, toy_models.CPU):
        generator: Generator = builder(cls.load())(shape, count)
    built = fingerprint(generator)
    # Another check reports parameters without a gradient; they do not end the run here.
    shared = DistributedDataParallel(generator.train(), find_unused_parameters=True)
    optimizer = torch.optim.SGD(generator.parameters(), lr=0.01)
    for step in range(2):
        optimizer.zero_grad()
        images = shared(*asked(generator, seed=10 * step + torch.distributed.get_rank()))
        F.mse_loss(images, images_like(images)).backward()
        optimizer.step()
    return {"built": built, "stepped": fingerprint(generator)}


def fingerprint(module: nn.Module) -> str:
    """Return a digest of a module's parameters."""
    parts = [parameter.detach().numpy().tobytes() for parameter in module.parameters()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


@promised(
    "converges",
    by="generator",
    promise=f"it can be trained: in {toy_models.STEPS} steps of an inversion the loss falls, and the target "
    "assigns most images to the requested class",
    remedy="give the condition a strong effect on the images, and avoid initial images that are all black or white",
)
def converges(cls: Any) -> None:
    """An inversion converges."""
    shape, count = toy_models.home_of(builder(cls))
    target = toy_models.target_of(shape, count)
    inversion = toy_models.invert(target, generator=lambda spec: cls(spec, shape))
    expect_converged(inversion.history, target.num_classes)
