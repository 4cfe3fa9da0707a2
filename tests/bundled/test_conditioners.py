"""The conditioners' labels, distributions, vectors and maps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pydantic
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpkit_vecmat.conditioners import (
    HotMatrix,
    LabelConditioner,
    MatrixConditioner,
    SoftVector,
    VectorConditioner,
    VectorMatrixConditioner,
)
from torch import Tensor

from interpkit import Conditioner, ConditionSpec, UsageError
from interpkit.testing.second_device import second_device

Rng = Callable[[int], torch.Generator]

CONDITIONERS: list[type[Conditioner]] = [
    VectorConditioner,
    VectorMatrixConditioner,
    MatrixConditioner,
    LabelConditioner,
]
WITH_MAPS: list[Any] = [VectorMatrixConditioner, MatrixConditioner]
SOFT: list[Any] = [VectorConditioner, VectorMatrixConditioner]
CPU = torch.device("cpu")

shapes = st.tuples(st.integers(1, 4), st.integers(8, 64), st.integers(8, 64))
any_conditioner = pytest.mark.parametrize("cls", CONDITIONERS, ids=lambda cls: cls.name)
deterministic = settings(max_examples=25, deadline=None, derandomize=True)


def cross(*rows: str) -> Tensor:
    return torch.tensor([[float(cell) for cell in row] for row in rows])


def read_off(matrix: HotMatrix, maps: Tensor) -> Tensor:
    """Return the labels (B,) encoded in maps: the digits in base g are the rows with the most ones."""
    digits = maps.sum(3).argmax(2) * matrix.side // maps.shape[2]
    return (digits * matrix.side ** torch.arange(matrix.digits)).sum(1)


# ------------------------------------------------------------------------------ every conditioner's promises


@any_conditioner
@deterministic
@given(n=st.integers(2, 1000), shape=shapes, batch=st.integers(1, 64), seed=st.integers(0, 2**32))
def test_drawn_conditions_have_the_promised_shapes_and_distributions(
    cls: type[Conditioner], n: int, shape: tuple[int, ...], batch: int, seed: int
) -> None:
    conditioner = cls(n, shape)
    condition = conditioner.sample(batch, rng=torch.Generator().manual_seed(seed))
    spec = conditioner.spec
    assert condition.labels.shape == (batch,) and condition.labels.dtype == torch.int64
    assert condition.distribution.shape == (batch, n)
    assert condition.vector.shape == (batch, spec.vector_dim) and condition.vector.isfinite().all()
    assert torch.allclose(condition.distribution.sum(1), torch.ones(batch), atol=1e-5)
    assert (condition.distribution >= 0).all()
    assert torch.equal(condition.distribution.argmax(1), condition.labels)
    assert spec.map_size <= min(shape[1:])
    height, width = spec.map_size + 3, spec.map_size + 5
    assert condition.maps(height, width).shape == (batch, spec.map_channels, height, width)


@any_conditioner
@deterministic
@given(n=st.integers(2, 1000), shape=shapes, data=st.data())
def test_conditions_have_the_labels_asked_for(
    cls: type[Conditioner], n: int, shape: tuple[int, ...], data: st.DataObject
) -> None:
    labels = torch.tensor(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=32)))
    condition = cls(n, shape).sample(len(labels), labels=labels, rng=torch.Generator().manual_seed(0))
    assert torch.equal(condition.labels, labels)
    assert torch.equal(condition.distribution.argmax(1), labels)
    assert torch.allclose(condition.distribution.sum(1), torch.ones(len(labels)), atol=1e-5)


@any_conditioner
@pytest.mark.parametrize("n", [2, 10, 100])
def test_drawn_labels_are_uniform(cls: type[Conditioner], n: int, rng: Rng) -> None:
    count = 20_000
    labels = cls(n, (1, 16, 16)).sample(count, rng=rng(1)).labels
    found = torch.bincount(labels, minlength=n).double()
    chi_square = ((found - count / n).square() / (count / n)).sum()
    assert chi_square < n - 1 + 5 * math.sqrt(2 * (n - 1))


@any_conditioner
def test_a_seed_repeats_the_batch_without_touching_the_global_generator(cls: type[Conditioner], rng: Rng) -> None:
    conditioner = cls(10, (1, 16, 16))
    before = torch.get_rng_state()
    one, same, other = (conditioner.sample(64, rng=rng(seed)) for seed in (7, 7, 8))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.labels, same.labels) and torch.equal(one.distribution, same.distribution)
    assert torch.equal(one.vector, same.vector) and torch.equal(one.maps(10, 10), same.maps(10, 10))
    assert not torch.equal(one.labels, other.labels)


@any_conditioner
def test_without_a_generator_the_global_one_is_used(cls: type[Conditioner]) -> None:
    conditioner = cls(10, (1, 16, 16))
    batches = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        batches.append(conditioner.sample(64).labels)
    assert torch.equal(batches[0], batches[1]) and not torch.equal(batches[0], batches[2])


@any_conditioner
def test_conditions_of_1000_classes_at_64_pixels_take_under_64_megabytes(
    cls: type[Conditioner], allocations: Any
) -> None:
    conditioner = cls(1000, (3, 64, 64))
    with allocations() as counted:
        condition = conditioner.sample(128)
        drawn = [condition.maps(16, 16), condition.maps(64, 64)]
    held = [condition.distribution, *(drawn if conditioner.spec.map_channels else [])]
    assert sum(4 * tensor.numel() for tensor in held) <= counted.total < 64e6


@pytest.mark.parametrize(
    ("cls", "n", "shape", "options", "spec"),
    [
        (VectorConditioner, 10, (1, 28, 28), {}, ConditionSpec(10, 0, 1)),
        (VectorMatrixConditioner, 2, (1, 28, 28), {}, ConditionSpec(2, 1, 2)),
        (VectorMatrixConditioner, 10, (1, 28, 28), {}, ConditionSpec(10, 1, 10)),
        (VectorMatrixConditioner, 16, (1, 28, 28), {}, ConditionSpec(16, 1, 16)),
        (VectorMatrixConditioner, 17, (1, 28, 28), {}, ConditionSpec(17, 2, 16)),
        (VectorMatrixConditioner, 1000, (3, 64, 64), {}, ConditionSpec(1000, 3, 16)),
        (VectorMatrixConditioner, 1000, (3, 8, 224), {}, ConditionSpec(1000, 4, 8)),
        (VectorMatrixConditioner, 1000, (20,), {}, ConditionSpec(1000, 3, 16)),
        (VectorMatrixConditioner, 10, (1, 28, 28), {"max_side": 4}, ConditionSpec(10, 2, 4)),
        (MatrixConditioner, 10, (1, 28, 28), {}, ConditionSpec(0, 1, 10)),
        (MatrixConditioner, 10, (1, 28, 28), {"max_side": 3}, ConditionSpec(0, 3, 3)),
        (LabelConditioner, 10, (1, 28, 28), {}, ConditionSpec(32, 0, 1)),
        (LabelConditioner, 10, (1, 28, 28), {"dim": 7}, ConditionSpec(7, 0, 1)),
    ],
)
def test_the_spec_states_the_sizes(
    cls: Any, n: int, shape: tuple[int, ...], options: dict[str, int], spec: ConditionSpec
) -> None:
    conditioner = cls(n, shape, cls.Options(**options))
    assert conditioner.spec == spec and (conditioner.num_classes, conditioner.input_shape) == (n, shape)


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (VectorConditioner, {"temperature": 0}),
        (VectorConditioner, {"temperature": -1}),
        (VectorConditioner, {"final_temperature": 0}),
        (VectorConditioner, {"temperature": math.inf}),
        (VectorConditioner, {"temperature": math.nan}),
        (VectorConditioner, {"max_side": 4}),
        (VectorMatrixConditioner, {"max_side": 1}),
        (MatrixConditioner, {"max_side": 65}),
        (LabelConditioner, {"dim": 0}),
    ],
)
def test_options_out_of_range_are_refused(cls: Any, options: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError, match=next(iter(options))):
        cls.Options(**options)


@pytest.mark.parametrize("cls", WITH_MAPS, ids=lambda cls: cls.name)
@pytest.mark.parametrize("shape", [(1, 1, 8), (1, 8, 1), (3, 1, 1)])
def test_single_pixel_images_which_cannot_hold_a_matrix_are_refused_with_a_reason(
    cls: type[Conditioner], shape: tuple[int, ...]
) -> None:
    with pytest.raises(UsageError):
        cls(10, shape)


# ---------------------------------------------------------------------------------------- the soft vectors


def assert_same_means(one: Tensor, other: Tensor) -> None:
    error = (one.var(0) / len(one) + other.var(0) / len(other)).sqrt()
    assert ((one.mean(0) - other.mean(0)).abs() < 5 * error + 1e-6).all()


@pytest.mark.parametrize("n", [2, 10, 100])
def test_asking_for_a_label_does_not_change_the_distribution_of_the_sorted_entries(n: int, rng: Rng) -> None:
    conditioner = VectorConditioner(n, (1, 28, 28))
    free = conditioner.sample(60_000, rng=rng(0)).distribution.sort(1).values
    asked = conditioner.sample(20_000, labels=torch.full((20_000,), 1), rng=rng(1)).distribution.sort(1).values
    assert_same_means(free, asked)
    assert_same_means(free.square(), asked.square())


@pytest.mark.parametrize("n", [2, 10])
def test_vectors_for_a_requested_label_are_distributed_like_random_ones_with_that_label(n: int, rng: Rng) -> None:
    conditioner = VectorConditioner(n, (1, 28, 28))
    free = conditioner.sample(100_000, rng=rng(0))
    asked = conditioner.sample(20_000, labels=torch.full((20_000,), 1), rng=rng(1)).distribution
    happened = free.distribution[free.labels == 1]
    assert_same_means(happened, asked)
    assert_same_means(happened.square(), asked.square())


def test_without_temperature_the_largest_of_ten_entries_is_a_third_and_of_a_thousand_near_zero(rng: Rng) -> None:
    for n, expected, within in ((10, 0.32, 0.005), (1000, 0.017, 0.001)):
        drawn = SoftVector(n, 1.0, None).draw(None, 10_000, 0.0, CPU, rng(0))
        assert abs(drawn.max(1).values.mean().item() - expected) < within


@pytest.mark.parametrize(("n", "count"), [(10, 60_000), (20, 60_000), (43, 60_000), (100, 40_000), (1000, 10_000)])
def test_the_default_largest_entry_averages_032_within_003(n: int, count: int, rng: Rng) -> None:
    source, soft = rng(0), SoftVector(n, None, None)
    chunks = [soft.draw(None, 2_000, 0.0, CPU, source).max(1).values for _ in range(count // 2_000)]
    assert abs(torch.cat(chunks).mean().item() - 0.32) < 0.03


@pytest.mark.parametrize("n", [2, 3, 7, 10])
def test_up_to_ten_classes_the_default_temperature_is_one(n: int) -> None:
    assert SoftVector(n, None, None).temperature(0.0) == 1.0


@pytest.mark.parametrize("n", [11, 100, 21_841])
def test_above_ten_classes_the_default_temperature_is_the_documented_one(n: int) -> None:
    assert SoftVector(n, None, None).temperature(0.5) ** -2 == pytest.approx(1 + 2.1 * math.log(n / 10))


@deterministic
@given(start=st.floats(0.05, 20), end=st.floats(0.05, 20))
def test_the_temperature_interpolates_geometrically_from_start_to_end(start: float, end: float) -> None:
    at = SoftVector(10, start, end).temperature
    assert at(0.0) == pytest.approx(start) and at(1.0) == pytest.approx(end)
    assert at(0.5) == pytest.approx(math.sqrt(start * end))
    assert at(0.1) / at(0.0) == pytest.approx(at(0.9) / at(0.8))


@pytest.mark.parametrize("cls", SOFT, ids=lambda cls: cls.name)
def test_vectors_become_sharper_as_training_progresses(cls: Any, rng: Rng) -> None:
    conditioner = cls(10, (1, 28, 28), cls.Options(temperature=5.0, final_temperature=0.01))
    confidence = []
    for progress in (0.0, 0.5, 1.0):
        conditioner.progress = progress
        confidence.append(conditioner.sample(2_000, rng=rng(0)).distribution.max(1).values.mean().item())
    assert confidence[0] < 0.2 < confidence[1] < 0.95 < confidence[2]


def test_without_a_final_temperature_the_first_one_is_kept(rng: Rng) -> None:
    soft = SoftVector(10, 0.3, None)
    assert [soft.temperature(progress) for progress in (0.0, 0.4, 1.0)] == pytest.approx([0.3] * 3)
    vector = VectorConditioner(10, (1, 8, 8), VectorConditioner.Options(temperature=0.3))
    vector.progress = 1.0
    assert torch.equal(vector.sample(5, rng=rng(2)).vector, soft.draw(None, 5, 0.0, CPU, rng(2)))


@pytest.mark.parametrize("cls", SOFT, ids=lambda cls: cls.name)
def test_the_generator_receives_the_soft_distribution_itself(cls: Any, rng: Rng) -> None:
    condition = cls(10, (1, 28, 28)).sample(16, rng=rng(0))
    assert torch.equal(condition.vector, condition.distribution)
    assert (condition.distribution > 0).all()


# ------------------------------------------------------------------------------------------ the hot matrices


@pytest.mark.parametrize(
    ("label", "matrix"),
    [
        (0, cross("11", "10")),
        (1, cross("01", "11")),
        (0, cross("111", "100", "100")),
        (1, cross("010", "111", "010")),
        (2, cross("001", "001", "111")),
        (3, cross(*["0001000000"] * 3, "1111111111", *["0001000000"] * 6)),
        (9, cross(*["0000000001"] * 9, "1111111111")),
    ],
)
@pytest.mark.parametrize("cls", WITH_MAPS, ids=lambda cls: cls.name)
def test_the_hot_matrix_is_one_in_the_row_and_the_column_of_the_label(cls: Any, label: int, matrix: Tensor) -> None:
    n = len(matrix)
    condition = cls(n, (1, 28, 28)).sample(1, labels=torch.tensor([label]))
    assert torch.equal(condition.maps(n, n), matrix[None, None])


def test_more_classes_than_the_side_use_one_cross_per_digit() -> None:
    drawn = HotMatrix(1000, 16).draw(torch.tensor([0x3A7]), 16, 16)  # 935, hexadecimal digits 7, A, 3
    assert drawn.shape == (1, 3, 16, 16)
    assert [(drawn[0, m].sum(1) == 16).nonzero().tolist() for m in range(3)] == [[[7]], [[10]], [[3]]]
    assert (drawn.sum((2, 3)) == 31).all()


def test_an_enlarged_matrix_has_the_same_cross_with_wider_bars() -> None:
    drawn = HotMatrix(2, 2).draw(torch.tensor([0]), 4, 6)
    assert torch.equal(drawn[0, 0], cross("111111", "111111", "111000", "111000"))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(n=st.integers(2, 21_841), side=st.integers(2, 64), grow=st.tuples(*[st.integers(0, 100)] * 2), data=st.data())
def test_labels_can_be_recovered_from_maps_of_any_size(
    n: int, side: int, grow: tuple[int, int], data: st.DataObject
) -> None:
    labels = torch.tensor([0, n - 1, *data.draw(st.lists(st.integers(0, n - 1), max_size=6))])
    matrix = HotMatrix(n, min(n, side))
    maps = matrix.draw(labels, matrix.side + grow[0], matrix.side + grow[1])
    assert set(maps.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(read_off(matrix, maps), labels)


def test_maps_are_on_the_device_of_the_labels() -> None:
    matrix, labels = HotMatrix(50, 4), torch.tensor([0, 17, 49])
    with second_device() as device:
        maps = matrix.draw(labels.to(device), 8, 9)
        assert maps.device == device
        assert torch.equal(read_off(matrix, maps.cpu()), labels)


@pytest.mark.parametrize("n", [2, 10, 16, 17, 256, 257, 1000])
def test_no_two_labels_have_the_same_maps(n: int) -> None:
    condition = VectorMatrixConditioner(n, (3, 17, 40)).sample(n, labels=torch.arange(n))
    assert len(condition.maps(17, 19).flatten(1).unique(dim=0)) == n


@pytest.mark.parametrize("n", [2, 3, 10, 16])
def test_the_hot_matrix_has_rank_two_at_most(n: int) -> None:
    maps = MatrixConditioner(n, (1, 28, 28)).sample(n, labels=torch.arange(n)).maps(n, n)
    assert torch.linalg.matrix_rank(maps.double()).tolist() == [[2]] * n


# ------------------------------------------------------------------------------------------- the other two


@pytest.mark.parametrize("cls", [MatrixConditioner, LabelConditioner], ids=lambda cls: cls.name)
def test_without_a_soft_vector_the_distribution_is_one_hot(cls: type[Conditioner]) -> None:
    distribution = cls(4, (1, 28, 28)).sample(3, labels=torch.tensor([2, 0, 3])).distribution
    assert distribution.tolist() == [[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]


def test_the_label_conditioner_has_a_learned_embedding_per_label() -> None:
    conditioner = LabelConditioner(5, (1, 28, 28))
    vector = conditioner.sample(4, labels=torch.tensor([2, 0, 2, 4])).vector
    assert torch.equal(vector[0], vector[2]) and not torch.equal(vector[0], vector[1])
    vector.sum().backward()
    (gradient,) = [parameter.grad for parameter in conditioner.parameters()]
    assert gradient is not None and gradient.sum(1).tolist() == [32, 0, 64, 0, 32]


@pytest.mark.parametrize("cls", [VectorConditioner, VectorMatrixConditioner, MatrixConditioner], ids=lambda c: c.name)
def test_the_other_conditioners_learn_nothing(cls: type[Conditioner]) -> None:
    assert list(cls(10, (1, 28, 28)).parameters()) == []
