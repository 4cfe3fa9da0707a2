"""The generator: images of any size in [0, 1], from any conditioner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pydantic
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpkit_vecmat.conditioners import (
    LabelConditioner,
    MatrixConditioner,
    VectorConditioner,
    VectorMatrixConditioner,
)
from interpkit_vecmat.upconv import MAX_GROWTH, UpConvGenerator, plan_axis
from torch import Tensor

from interpkit import Condition, Conditioner, ConditionSpec, UsageError

Rng = Callable[[int], torch.Generator]

CONDITIONERS: list[Any] = [VectorConditioner, VectorMatrixConditioner, MatrixConditioner, LabelConditioner]


def small(spec: ConditionSpec, shape: tuple[int, ...], **options: Any) -> UpConvGenerator:
    settings_ = {"width": 8, "min_width": 4, "latent": 6, "hidden": 5, "dropout": 0.0} | options
    return UpConvGenerator(spec, shape, UpConvGenerator.Options(**settings_))


def drawn(conditioner: Conditioner, generator: UpConvGenerator, batch: int, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    condition = conditioner.sample(batch, rng=source)
    images: Tensor = generator(torch.randn(batch, generator.latent_dim, generator=source), condition)
    return images


# -------------------------------------------------------------------------------------------------- sizes


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    channels=st.integers(1, 5),
    height=st.integers(8, 48),
    width=st.integers(8, 48),
    n=st.integers(2, 1000),
    cls=st.sampled_from(CONDITIONERS),
    dropout=st.sampled_from([0.0, 0.5]),
)
def test_images_of_any_size_are_made_and_every_parameter_learns(
    channels: int, height: int, width: int, n: int, cls: Any, dropout: float
) -> None:
    shape = (channels, height, width)
    torch.manual_seed(0)
    conditioner = cls(n, shape)
    generator = small(conditioner.spec, shape, dropout=dropout)
    images = drawn(conditioner, generator, 4)
    assert images.shape == (4, *shape)
    assert images.isfinite().all() and images.min() >= 0 and images.max() <= 1
    images.square().sum().backward()
    untouched = []
    for name, parameter in generator.named_parameters():
        gradient = parameter.grad
        if gradient is None or not gradient.isfinite().all() or (dropout == 0 and not gradient.abs().sum() > 0):
            untouched.append(name)
    assert untouched == []


@pytest.mark.parametrize("n", [10, 1000])
@pytest.mark.parametrize(
    "shape", [(1, 28, 28), (3, 32, 32), (5, 17, 40), (1, 8, 8), (3, 224, 224), (3, 8, 224), (3, 224, 8)], ids=str
)
def test_the_sizes_that_people_have_are_made_exactly(shape: tuple[int, int, int], n: int) -> None:
    conditioner = VectorMatrixConditioner(n, shape)
    images = drawn(conditioner, small(conditioner.spec, shape), 2)
    assert images.shape == (2, *shape) and images.isfinite().all()


@pytest.mark.parametrize("shape", [(1, 1, 5), (1, 5, 1), (1, 1, 1), (2, 3, 7)], ids=str)
def test_even_images_of_a_pixel_a_side_are_made_where_the_condition_has_no_maps(shape: tuple[int, int, int]) -> None:
    conditioner = VectorConditioner(3, shape)
    assert drawn(conditioner, small(conditioner.spec, shape), 4).shape == (4, *shape)


def test_the_planned_steps_end_at_the_very_size_and_never_grow_by_more_than_the_limit() -> None:
    wrong = []
    for start in range(1, 301):
        for end in range(start, 301):
            growths, doublings = plan_axis(start, end)
            size = start
            for step in (*growths, *doublings):
                size = (size - 1) * step.stride - 2 * step.padding + step.kernel
            small_enough = all(step.stride == 1 and 0 < step.kernel - 1 <= MAX_GROWTH for step in growths)
            if size != end or not small_enough or any(step.stride != 2 for step in doublings):
                wrong.append((start, end, size))
    assert wrong == []


def test_the_matrix_is_laid_beside_the_features_at_its_own_size() -> None:
    conditioner = VectorMatrixConditioner(10, (1, 28, 28))
    generator = small(conditioner.spec, (1, 28, 28))
    condition = conditioner.sample(3, labels=torch.tensor([0, 4, 9]))
    seen: list[Tensor] = []
    generator.to_image.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    generator(torch.zeros(3, generator.latent_dim), condition)
    assert seen[0].shape == (3, 8 + 1, 10, 10)
    assert torch.equal(seen[0][:, -1:], condition.maps(10, 10))


# -------------------------------------------------------------------------------------------- conditions


@pytest.mark.parametrize("cls", CONDITIONERS, ids=lambda cls: cls.name)
def test_another_label_makes_another_image_of_the_same_latent(cls: Any, rng: Rng) -> None:
    conditioner = cls(10, (1, 16, 16))
    generator = small(conditioner.spec, (1, 16, 16))
    latent = torch.randn(1, generator.latent_dim, generator=rng(0)).expand(2, -1)
    images = generator(latent, conditioner.sample(2, labels=torch.tensor([3, 7]), rng=rng(1)))
    assert (images[0] - images[1]).abs().max() > 1e-3


@pytest.mark.parametrize("part", ["vector", "maps"])
def test_the_vector_and_the_maps_each_matter_alone(part: str, rng: Rng) -> None:
    conditioner = VectorMatrixConditioner(10, (1, 16, 16))
    generator = small(conditioner.spec, (1, 16, 16))
    labels = torch.tensor([3, 3, 7])
    vector = conditioner.sample(1, rng=rng(0)).vector.expand(3, -1)
    maps = conditioner.sample(3, labels=labels if part == "maps" else labels[:1].expand(3)).draw_maps
    if part == "vector":
        vector = torch.cat([vector[:2], vector[:1].roll(5, 1)])
    latent = torch.randn(1, generator.latent_dim, generator=rng(1)).expand(3, -1)
    one, same, other = generator(latent, Condition(labels, vector, vector, maps))
    assert torch.allclose(one, same, atol=1e-6)
    assert (one - other).abs().max() > 1e-3


def test_another_latent_makes_another_image_of_the_same_condition(rng: Rng) -> None:
    conditioner = VectorMatrixConditioner(10, (1, 16, 16))
    generator = small(conditioner.spec, (1, 16, 16))
    condition = conditioner.sample(2, rng=rng(0))
    one, other = (generator(torch.randn(2, generator.latent_dim, generator=rng(seed)), condition) for seed in (1, 2))
    assert (one - other).abs().max() > 1e-3


def test_without_a_vector_there_is_no_layer_to_map_it() -> None:
    assert small(ConditionSpec(0, 1, 10), (1, 28, 28)).embed is None
    embed = small(ConditionSpec(10), (1, 28, 28)).embed
    assert embed is not None and (embed.in_features, embed.out_features) == (10, 5)


def test_dropout_varies_the_images_while_it_is_on_and_not_in_eval_mode(rng: Rng) -> None:
    conditioner = VectorMatrixConditioner(10, (1, 16, 16))
    generator = small(conditioner.spec, (1, 16, 16), dropout=0.3)
    condition, latent = conditioner.sample(8, rng=rng(0)), torch.randn(8, generator.latent_dim, generator=rng(1))
    assert not torch.equal(generator(latent, condition), generator(latent, condition))
    generator.eval()
    assert torch.equal(generator(latent, condition), generator(latent, condition))


# ------------------------------------------------------------------------------------------------ refusals


def test_a_classifier_of_vectors_is_refused() -> None:
    with pytest.raises(UsageError, match="upconv"):
        UpConvGenerator(ConditionSpec(10), (20,))


def test_maps_larger_than_the_image_are_refused() -> None:
    with pytest.raises(UsageError, match="20"):
        UpConvGenerator(ConditionSpec(10, 1, 20), (1, 28, 16))


@pytest.mark.parametrize(
    "options",
    [
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"slope": 1.0},
        {"latent": 0},
        {"hidden": 0},
        {"width": 0},
        {"min_width": 0},
        {"dropout": float("nan")},
        {"depth": 3},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError, match=next(iter(options))):
        UpConvGenerator.Options(**options)


def test_one_channel_is_wide_enough() -> None:
    conditioner = VectorMatrixConditioner(10, (1, 32, 32))
    assert drawn(conditioner, small(conditioner.spec, (1, 32, 32), width=1), 2).shape == (2, 1, 32, 32)
