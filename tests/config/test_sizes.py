"""Sizes of runs on large images; runs on small ones keep the recipe's defaults."""

from __future__ import annotations

from typing import Any

import pytest

from interpkit import Recipe
from interpkit.config.sizes import as_begun, for_large


def chosen(shape: tuple[int, ...], device: str = "cpu", classes: int = 1000, **fields: Any) -> Recipe:
    recipe = Recipe(**fields)
    return recipe.model_copy(update=for_large(recipe, shape, classes, device))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 63, 64), (784,)])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_small_images_keep_the_defaults(shape: tuple[int, ...], device: str) -> None:
    assert for_large(Recipe(), shape, 1000, device) == {}


@pytest.mark.parametrize(
    ("shape", "batch", "chunk"),
    [((3, 64, 64), 128, 64), ((3, 96, 96), 32, 32), ((3, 128, 128), 32, 16), ((3, 224, 224), 16, 16)],
)
def test_on_a_cpu_batches_shrink_with_the_area(shape: tuple[int, ...], batch: int, chunk: int) -> None:
    recipe = chosen(shape)
    assert (recipe.batch_size, recipe.sampling.chunk, recipe.steps) == (batch, chunk, 300)


@pytest.mark.parametrize(("classes", "steps"), [(2, 300), (10, 300), (100, 949), (1000, 3000), (100_000, 3000)])
def test_on_cuda_more_classes_take_more_steps_of_the_same_batch(classes: int, steps: int) -> None:
    recipe = chosen((3, 224, 224), "cuda", classes)
    assert (recipe.steps, recipe.batch_size) == (steps, 128)


def test_the_classes_that_count_are_those_asked_for() -> None:
    assert chosen((3, 224, 224), "cuda", labels=[3, 5]).steps == 300


def test_what_is_stated_is_kept() -> None:
    stated = {"steps": 7, "batch_size": 128, "sampling": {"chunk": 100}}
    assert for_large(Recipe(**stated), (3, 224, 224), 1000, "cpu") == {}
    assert for_large(Recipe(**stated), (3, 224, 224), 1000, "cuda") == {}


def test_every_generator_keeps_a_share_of_the_batch() -> None:
    assert chosen((3, 224, 224), generators=4).batch_size == 64
    assert chosen((3, 224, 224), generators=50).batch_size == 128


def test_several_processes_and_inverters_without_a_generator_keep_their_batch() -> None:
    shape = (3, 224, 224)
    assert "batch_size" not in for_large(Recipe(), shape, 10, "cpu", processes=3)
    assert for_large(Recipe(), shape, 1000, "cuda", trains_generator=False).keys() == {"sampling"}


def test_a_run_that_is_resumed_keeps_its_sizes_unless_they_are_stated_again() -> None:
    stated = {"steps": 4, "batch_size": 16, "micro_batch": 4, "checkpoint_every": 3}
    begun = Recipe(**stated, sampling={"chunk": 8})
    assert as_begun(Recipe(), begun) == {**stated, "sampling": begun.sampling}
    other = {"steps": 5, "batch_size": 32, "micro_batch": 2, "checkpoint_every": 9}
    assert as_begun(Recipe(**other, sampling={"chunk": 9}), begun) == {}
