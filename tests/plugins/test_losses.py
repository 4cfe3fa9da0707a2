"""The losses: hand-worked values, gradients, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pydantic
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpkit_losses.labels import CrossEntropy, KLDivergence
from interpkit_losses.priors import BatchNormStatistics, SquaredNorm, TotalVariation
from interpkit_losses.variety import Cosine, Orthogonality
from torch import Tensor, nn

from interpkit import Condition, InversionBatch, InversionLoss, Target, UsageError, wrap

BatchOf = Callable[..., InversionBatch]

LOSSES: list[Any] = [
    KLDivergence,
    CrossEntropy,
    Cosine,
    Orthogonality,
    TotalVariation,
    SquaredNorm,
    BatchNormStatistics,
]


def normed_target(eps: float = 1e-5) -> Target:
    """Return a target with two batch norms, at layers 0 and 3."""
    torch.manual_seed(0)
    convolution, linear = nn.Conv2d(2, 3, 3, padding=1), nn.Linear(48, 4)
    net = nn.Sequential(
        nn.BatchNorm2d(2, eps), convolution, nn.Tanh(), nn.BatchNorm2d(3, eps), nn.Tanh(), nn.Flatten(), linear
    )
    return wrap(net, (2, 4, 4))


def logs(*rows: list[float]) -> Tensor:
    """Return logits whose softmax is ``rows``, each moved by a constant that softmax does not see."""
    return torch.tensor(rows, dtype=torch.float64).log() + torch.arange(len(rows))[:, None]


@pytest.fixture
def value(batch_of: BatchOf) -> Callable[..., float]:
    """Return the value of a loss on a batch put together by hand."""

    def compute(loss: InversionLoss, **given_: Any) -> float:
        result = loss(batch_of(**given_))
        assert result.shape == ()
        return float(result)

    return compute


# ------------------------------------------------------------------------------------ the label: kl and ce


def test_kl_is_the_divergence_of_the_distribution_from_the_softmax_of_the_logits(value: Any) -> None:
    logits = logs([0.25, 0.25, 0.5], [0.2, 0.7, 0.1])
    wanted = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.7, 0.1]], dtype=torch.float64)
    # First image: 0.5 ln(0.5 / 0.25) + 0 + 0.25 ln(0.25 / 0.5) = 0.25 ln 2 = 0.1732868; second: 0.
    assert value(KLDivergence(normed_target()), logits=logits, distribution=wanted) == pytest.approx(
        0.0866434, abs=1e-6
    )


def test_kl_from_a_one_hot_distribution_is_finite_and_so_is_its_gradient(batch_of: BatchOf) -> None:
    logits = logs([0.25, 0.25, 0.5]).requires_grad_()
    loss = KLDivergence(normed_target())(batch_of(logits=logits, distribution=torch.eye(3, dtype=torch.float64)[2:]))
    loss.backward()
    assert loss.item() == pytest.approx(0.6931472, abs=1e-6)  # ln 2
    assert logits.grad is not None
    assert torch.allclose(logits.grad, torch.tensor([[0.25, 0.25, -0.5]]).double())


def test_kl_stays_finite_where_the_target_is_all_but_certain(value: Any) -> None:
    logits, wanted = torch.tensor([[1000.0, 0.0]]), torch.tensor([[0.5, 0.5]])
    # 0.5 ln 0.5 - 0.5 * 0 + 0.5 ln 0.5 - 0.5 * (-1000) = 500 - ln 2
    assert value(KLDivergence(normed_target()), logits=logits, distribution=wanted) == pytest.approx(499.30685)


def test_ce_is_the_mean_negative_log_probability_of_the_labels(value: Any) -> None:
    logits = logs([0.25, 0.25, 0.5], [0.25, 0.25, 0.5])
    # (ln 2 + ln 4) / 2
    got = value(CrossEntropy(normed_target()), logits=logits, labels=torch.tensor([2, 0]))
    assert got == pytest.approx(1.0397208, abs=1e-6)


# -------------------------------------------------------------------------------- variety: cosine and Gram

TRIANGLE = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])  # cosines 0, 0.7071068, 0.7071068
ALIKE = torch.tensor([[1.0, 2.0, 0.0], [2.0, 4.0, 0.0], [0.5, 1.0, 0.0]])


@pytest.mark.parametrize(
    ("features", "cosine", "orthogonality"),
    [
        (TRIANGLE, 0.4714045, 1 / 3),
        (ALIKE, 1.0, 1.0),
        (torch.tensor([[1.0, 0.0], [-2.0, 0.0]]), -1.0, 1.0),
        (torch.eye(4), 0.0, 0.0),
        (torch.tensor([[0.0, 0.0], [1.0, 0.0], [5.0, 0.0]]), 1 / 3, 1 / 3),  # the first has no direction
        (torch.zeros(3, 2), 0.0, 0.0),
    ],
    ids=["triangle", "alike", "opposite", "orthogonal", "one-zero", "all-zero"],
)
def test_cosine_and_orthogonality_of_features_worked_by_hand(
    features: Tensor, cosine: float, orthogonality: float, value: Any
) -> None:
    assert value(Cosine(normed_target()), features=features) == pytest.approx(cosine, abs=1e-6)
    assert value(Orthogonality(normed_target()), features=features) == pytest.approx(orthogonality, abs=1e-6)


@pytest.mark.parametrize("cls", [Cosine, Orthogonality], ids=lambda cls: cls.name)
def test_features_of_length_zero_have_a_finite_gradient(cls: Any, batch_of: BatchOf) -> None:
    features = torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, 4.0]], requires_grad=True)
    cls(normed_target())(batch_of(features=features)).backward()
    assert features.grad is not None and features.grad.isfinite().all()
    assert features.grad[1:].abs().sum() > 0


@settings(max_examples=25, deadline=None, derandomize=True)
@given(count=st.integers(2, 40), width=st.integers(1, 8), seed=st.integers(0, 2**32))
def test_cosine_is_the_plain_double_loop_over_ordered_pairs(
    batch_of: BatchOf, count: int, width: int, seed: int
) -> None:
    features = torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows = features.tolist()
    total = squares = 0.0
    for i in range(count):
        for j in range(count):
            if i != j:
                dot = sum(a * b for a, b in zip(rows[i], rows[j], strict=True))
                cosine = dot / math.hypot(*rows[i]) / math.hypot(*rows[j])
                total, squares = total + cosine, squares + cosine**2
    batch = batch_of(features=features)
    pairs = count * (count - 1)
    assert Cosine(normed_target())(batch).item() == pytest.approx(total / pairs, abs=1e-9)
    assert Orthogonality(normed_target())(batch).item() == pytest.approx(squares / pairs, abs=1e-9)


@pytest.mark.parametrize(("cls", "expected"), [(Cosine, 0.7357023), (Orthogonality, 2 / 3)])
def test_several_layers_are_averaged_and_the_default_one_is_then_left_out(
    cls: Any, expected: float, value: Any
) -> None:
    loss = cls(normed_target(), cls.Options(layers=["a", "b"]))
    assert loss.layers(normed_target()) == ["a", "b"]
    features = {"default": torch.eye(3), "a": TRIANGLE, "b": ALIKE[:, :, None]}
    assert value(loss, features=features) == pytest.approx(expected, abs=1e-6)


# -------------------------------------------------------------------------------------------- priors: tv


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ([[0.3, 0.3], [0.3, 0.3]], 0.0),
        ([[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]], 2.0),
        ([[0, 1, 0], [0, 1, 0]], 1.0),
        ([[0, 0, 0], [1, 1, 1]], 1.0),
        # Down 0.5, 0.75, 1, mean 0.75; across 1, 0, 0.25, 0.25, mean 0.375.
        ([[0, 1, 1], [0.5, 0.25, 0]], 1.125),
        ([[0, 1, 0.5]], 0.75),
        ([[0.4]], 0.0),
    ],
    ids=["constant", "checkerboard", "columns", "rows", "by-hand", "one-row", "one-pixel"],
)
def test_total_variation_is_the_mean_difference_of_neighbours(
    image: list[list[float]], expected: float, value: Any
) -> None:
    images = torch.tensor(image).float().expand(2, 3, -1, -1)
    assert value(TotalVariation(normed_target()), images=images) == pytest.approx(expected, abs=1e-6)


def test_total_variation_of_vectors_is_refused(linear_target: Callable[..., Target]) -> None:
    with pytest.raises(UsageError, match="tv"):
        TotalVariation(linear_target(shape=(12,)))


def test_l2_without_a_normalisation_is_the_mean_square(value: Any) -> None:
    images = torch.tensor([1.0, 0.0, 0.5, 0.5]).view(2, 2, 1, 1).expand(2, 2, 4, 4)
    assert value(SquaredNorm(normed_target()), images=images) == pytest.approx((1 + 0 + 0.25 + 0.25) / 4)


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_l2_counts_from_the_colour_that_the_normalisation_moves_to_zero(order: str, value: Any) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    target = wrap(net, (3, 1, 1), mean=[102, 51, 0], std=[1, 2, 3], input_range=(0, 255), channel_order=order)
    images = torch.tensor([[0.4, 0.2, 0.0], [0.0, 0.2, 0.4]]).view(2, 3, 1, 1)  # red is 0.4 of rgb, 0 of bgr
    assert value(SquaredNorm(target), images=images[:1]) == pytest.approx(0 if order == "rgb" else 0.32 / 3, abs=1e-7)
    assert value(SquaredNorm(target), images=images[1:]) == pytest.approx(0.32 / 3 if order == "rgb" else 0, abs=1e-7)


def test_l2_of_vectors_counts_in_each_features_own_range(value: Any) -> None:
    target = wrap(nn.Linear(2, 2), (2,), mean=[6.0, 0.5], input_range=[(4, 8), (0, 2)])  # zero is at (0.5, 0.25)
    assert value(SquaredNorm(target), images=torch.tensor([[0.5, 0.25]])) == pytest.approx(0)
    assert value(SquaredNorm(target), images=torch.tensor([[0.0, 0.25], [0.5, 0.75]])) == pytest.approx(0.125)


# ------------------------------------------------------------------------------------- priors: batch norm


def set_statistics(target: Target, layer: str, mean: list[float], variance: list[float]) -> None:
    norm: Any = target.layers()[layer]
    norm.running_mean.copy_(torch.tensor(mean))
    norm.running_var.copy_(torch.tensor(variance))


def test_the_batch_norm_distance_worked_by_hand_is_the_mean_over_the_layers(value: Any) -> None:
    target = normed_target(eps=0.0)
    set_statistics(target, "0", [2.0, 1.0], [4.0, 1.0])
    set_statistics(target, "3", [0.0, 0.0, 0.0], [1.0, 1.0, 1.0])
    # Channel 0 holds 1, 3, 5, 7: mean 4, variance 5; (4 - 2)^2 / 4 = 1 and (5 / 4 - 1)^2 = 0.0625.
    # Channel 1 holds 0, 0, 2, 2: mean 1, variance 1; both 0. Layer 0: (1 + 0) / 2 + (0.0625 + 0) / 2 = 0.53125.
    first = torch.tensor([[[[1.0, 3.0]], [[0.0, 0.0]]], [[[5.0, 7.0]], [[2.0, 2.0]]]])
    # Layer 3 holds nothing but 1: mean 1, variance 0; 1 + 1 = 2.
    features = {"0:in": first, "3:in": torch.ones(2, 3, 4, 4)}
    loss = BatchNormStatistics(target)
    assert loss.layers(target) == ["0:in", "3:in"]
    assert value(loss, features=features) == pytest.approx((0.53125 + 2) / 2, abs=1e-6)
    only_first = BatchNormStatistics(target, BatchNormStatistics.Options(first=1))
    assert only_first.layers(target) == ["0:in"]
    assert value(only_first, features={"0:in": first}) == pytest.approx(0.53125, abs=1e-6)


def test_images_with_the_statistics_that_the_target_remembers_cost_nothing(batch_of: BatchOf) -> None:
    target = normed_target()
    images = torch.rand(16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    for layer in ("0", "3"):
        seen = target.respond(images, [f"{layer}:in"]).features[f"{layer}:in"]
        set_statistics(target, layer, seen.mean((0, 2, 3)).tolist(), seen.var((0, 2, 3), correction=0).tolist())
    loss = BatchNormStatistics(target)

    def cost(images: Tensor) -> float:
        with target.frozen():
            response = target.respond(images, loss.layers(target))
        return float(loss(batch_of(images=images, features=dict(response.features))))

    assert cost(images) < 1e-6
    assert cost(images * 0.5) > 0.1


def test_batch_norm_of_vectors_is_measured_over_the_batch(value: Any) -> None:
    target = wrap(nn.Sequential(nn.BatchNorm1d(2, eps=0.0), nn.Linear(2, 3)), (2,))
    set_statistics(target, "0", [0.0, 3.0], [1.0, 1.0])
    # Feature 0: mean 1, variance 1 -> 1 + 0; feature 1: mean 3, variance 4 -> 0 + 9. Means: 0.5 + 4.5.
    features = torch.tensor([[0.0, 1.0], [2.0, 5.0]])
    assert value(BatchNormStatistics(target), features={"0:in": features}) == pytest.approx(5.0, abs=1e-6)


def test_a_target_without_running_statistics_is_refused_with_the_word_to_type(
    linear_target: Callable[..., Target],
) -> None:
    forgetful = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten(), nn.Linear(48, 2))
    for target in (linear_target(), wrap(forgetful, (3, 4, 4))):
        with pytest.raises(UsageError, match="batchnorm=0"):
            BatchNormStatistics(target)


# --------------------------------------------------------------------------------------------- gradients


def random(*shape: int) -> Tensor:
    values = torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return values.requires_grad_()


@pytest.mark.parametrize(
    ("cls", "read", "shape"),
    [
        (KLDivergence, "logits", (3, 4)),
        (CrossEntropy, "logits", (3, 4)),
        (Cosine, "features", (4, 3)),
        (Orthogonality, "features", (4, 3)),
        (TotalVariation, "images", (2, 2, 3, 4)),
        (SquaredNorm, "images", (2, 2, 3, 4)),
        (BatchNormStatistics, "features", (3, 2, 2, 3)),
    ],
    ids=lambda case: getattr(case, "name", None),
)
def test_gradients_agree_with_finite_differences(
    cls: Any, read: str, shape: tuple[int, ...], batch_of: BatchOf
) -> None:
    target = normed_target()
    loss = (
        BatchNormStatistics(target, BatchNormStatistics.Options(first=1)) if cls is BatchNormStatistics else cls(target)
    )
    given_: dict[str, Any] = {"labels": torch.arange(shape[0])}
    if cls is KLDivergence:
        given_["distribution"] = random(*shape).detach().softmax(1)

    def term(x: Tensor) -> Tensor:
        tensors = {"0:in": x} if cls is BatchNormStatistics else x
        result: Tensor = loss(batch_of(**given_, **{read: tensors}))
        return result

    assert torch.autograd.gradcheck(term, random(*shape))


@pytest.mark.parametrize("cls", LOSSES, ids=lambda cls: cls.name)
def test_gradients_reach_the_images_and_not_the_target(cls: Any) -> None:
    target = normed_target()
    loss = cls(target)
    images = random(5, 2, 4, 4).detach().float().requires_grad_()
    labels, distribution = torch.zeros(5, dtype=torch.int64), torch.tensor([[0.4, 0.3, 0.2, 0.1]]).expand(5, -1)
    with target.frozen():
        response = target.respond(images, loss.layers(target))
        condition = Condition(labels, distribution, distribution)
        loss(InversionBatch(target, condition, distribution, images, 0.0, response)).backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in target.parameters())


@pytest.mark.parametrize("cls", LOSSES, ids=lambda cls: cls.name)
def test_a_term_holds_no_part_of_the_users_module(cls: Any) -> None:
    loss = cls(normed_target())
    assert list(loss.parameters()) == [] and list(loss.children()) == [] and loss.state_dict() == {}


@pytest.mark.parametrize(
    ("cls", "options"),
    [(BatchNormStatistics, {"first": 0}), (Cosine, {"layers": "x"}), (Cosine, {"layer": []}), (CrossEntropy, {"a": 1})],
)
def test_options_out_of_range_are_refused(cls: Any, options: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError, match=next(iter(options))):
        cls.Options(**options)
