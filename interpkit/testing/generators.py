"""The checks of generators; see `parts` for those that they share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from interpkit.interfaces import contracts
from interpkit.interfaces.generation import ConditionSpec, Generator
from interpkit.testing import toy_models
from interpkit.testing.checks import expect, promised
from interpkit.testing.components import expect_no_draws, expect_unit, generator_of, same, with_seed
from interpkit.testing.parts import BATCH, GeneratorTrial, asked

SPECS = (ConditionSpec(10), ConditionSpec(2, 2, 4), ConditionSpec(0, 1, 2), ConditionSpec(1000, 3, 16))
"""A vector alone, a vector and maps, maps alone, and a thousand classes."""


def all_of(cls: Any) -> Iterator[tuple[Generator, str]]:
    """Yield a generator for every shape of images and conditions that it accepts, with a description of both."""
    cases = itertools.product(SPECS, toy_models.SHAPES)
    for spec, shape, generator in toy_models.accepted(partial(generator_of, cls), cases, needed=False):
        yield generator, f"for images of {shape} and {spec}"


@promised("generator", "build the last layer from input_shape, end with a sigmoid, and set self.latent_dim")
def shapes(cls: Any) -> None:
    """For any image size and sizes of the condition, images are floats (B, *input_shape) in [0, 1].

    They are so for extreme latents as well; latent_dim is at least 1.
    """
    for generator, where in all_of(cls):
        dim = getattr(generator, "latent_dim", None)
        expect(isinstance(dim, int) and dim >= 1, f"latent_dim is {dim!r}, {where}")
        latent, condition = asked(generator, 2)
        with torch.no_grad():
            for mode in (True, False):
                expect_unit(contracts.images(generator.train(mode), latent, condition), where)
            expect_unit(generator(30 * latent, condition), f"{where}, for latents thirty times as large as usual")


@promised("generator", "call condition.maps(height, width) with both at least self.spec.map_size")
def maps_asked(cls: Any) -> None:
    """It requests maps with sides of at least map_size, where they still differ between labels."""
    for generator, where in all_of(cls):
        sizes: list[tuple[int, int]] = []
        condition = toy_models.condition_of(generator.spec, torch.arange(2), 2, asked=sizes)
        with torch.no_grad():
            generator.eval()(torch.zeros(2, generator.latent_dim), condition)
        small = [size for size in sizes if min(size) < generator.spec.map_size]
        expect(not small, f"maps of {small[:1]} requested, {where}")


@promised("generator", "feed condition.vector and condition.maps(...) into the layers")
def uses_condition(cls: Any) -> None:
    """Its images depend on the condition: on its vector or its maps."""
    generator = GeneratorTrial(cls).build().eval()
    latent, _ = asked(generator)
    conditions = [toy_models.condition_of(generator.spec, torch.full((BATCH,), label), 3) for label in (1, 2)]
    with torch.no_grad():
        one, other = (generator(latent, condition) for condition in conditions)
    expect(not same(one, other, tolerance=1e-7), "two labels lead to the same images")


@promised("generator", "feed latent into the layers")
def uses_latent(cls: Any) -> None:
    """Its images depend on the latent, so that a class has more than one image."""
    generator = GeneratorTrial(cls).build().eval()
    latent, condition = asked(generator)
    with torch.no_grad():
        one, other = generator(latent, condition), generator(-latent, condition)
    expect(not same(one, other, tolerance=1e-7), "two latents lead to the same images")


@promised("generator", "compute no statistics over the batch in eval mode; let batch norm use its running statistics")
def image_alone(cls: Any) -> None:
    """In eval mode an image does not depend on the others of its batch; a batch of one works."""
    generator = GeneratorTrial(cls).build()
    with torch.no_grad():
        generator(*asked(generator, 8))
        generator.eval()
        latent, condition = asked(generator)
        together = generator(latent, condition)
        for row in range(2):
            alone = generator(latent[row : row + 1], condition[torch.tensor([row])])
            apart = (alone - together[row : row + 1]).abs().max().item()
            expect(apart < 1e-4, f"a pixel differs by {apart:.3g} alone and in a batch of {BATCH}")


@promised("generator", "draw only with torch, and seed nothing yourself")
def seeded(cls: Any) -> None:
    """Weights and images depend only on torch's global generator, so that a seed determines them."""
    trial = GeneratorTrial(cls)
    generator, again = trial.build(), trial.build()
    weights = [[*each.parameters(), *each.buffers()] for each in (generator, again)]
    expect(same(*weights), "one seed leads to different weights")
    with torch.no_grad():
        images = [with_seed(1, lambda: generator(*asked(generator))) for _ in range(2)]
        expect(same(*images), "two forward passes with one seed return different images")
        with expect_no_draws("numpy", "Python"):
            generator.eval()(*asked(generator))


@promised("generator", "before a sigmoid, set the last bias to log(level / (1 - level)); or remove start_at")
def starts_at(cls: Any) -> None:
    """If it overrides `start_at`, the mean of the images is then near the requested level."""
    if cls.start_at is Generator.start_at:
        return
    for level in (0.1, 0.9):
        generator = GeneratorTrial(cls).build()
        generator.start_at(level)
        with torch.no_grad():
            mean = generator(*asked(generator, 32)).mean().item()
        expect(abs(mean - level) < 0.15, f"the mean is {mean:.2f} after start_at({level})")
