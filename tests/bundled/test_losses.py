"""The losses: hand-worked values, gradients, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import interpkit_losses
import pydantic
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpkit_losses.activation import Activation
from interpkit_losses.labels import CrossEntropy, KLDivergence
from interpkit_losses.priors import (
    BatchNormStatistics,
    Chroma,
    SquaredNorm,
    Statistics,
    TotalVariation,
    normalization,
    pixel_statistics,
)
from interpkit_losses.variety import Cosine, Orthogonality, Spread
from interpkit_losses.weights import Stationarity
from torch import Tensor, nn

from interpkit import Condition, InversionBatch, InversionLoss, Preset, Target, UsageError, invert, testing, units, wrap

BatchOf = Callable[..., InversionBatch]

LOSSES: list[Any] = [
    KLDivergence,
    CrossEntropy,
    Cosine,
    Orthogonality,
    Spread,
    TotalVariation,
    SquaredNorm,
    BatchNormStatistics,
    Statistics,
    Stationarity,
    Activation,
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
    """Return logits whose softmax is ``rows``, each shifted by a constant that does not affect it."""
    return torch.tensor(rows, dtype=torch.float64).log() + torch.arange(len(rows))[:, None]


@pytest.fixture
def value(batch_of: BatchOf) -> Callable[..., float]:
    """Return the value of a loss on a handmade batch."""

    def compute(loss: InversionLoss, **given_: Any) -> float:
        result = loss(batch_of(**given_))
        assert result.shape == ()
        return float(result)

    return compute


# ------------------------------------------------------------------------------------ the label: kl and ce


def test_kl_is_the_divergence_between_the_distribution_and_the_softmax(value: Any) -> None:
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


def test_kl_is_finite_if_the_target_is_almost_certain(value: Any) -> None:
    logits, wanted = torch.tensor([[1000.0, 0.0]]), torch.tensor([[0.5, 0.5]])
    # 0.5 ln 0.5 - 0.5 * 0 + 0.5 ln 0.5 - 0.5 * (-1000) = 500 - ln 2
    assert value(KLDivergence(normed_target()), logits=logits, distribution=wanted) == pytest.approx(499.30685)


def test_ce_is_the_mean_negative_log_probability_of_the_labels(value: Any) -> None:
    logits = logs([0.25, 0.25, 0.5], [0.25, 0.25, 0.5])
    # (ln 2 + ln 4) / 2
    got = value(CrossEntropy(normed_target()), logits=logits, labels=torch.tensor([2, 0]))
    assert got == pytest.approx(1.0397208, abs=1e-6)


def test_ce_of_a_higher_temperature_still_has_a_gradient_where_the_target_is_sure(batch_of: BatchOf) -> None:
    """Logits 9 and 0 at T = 3: 3 log(1 + e^-3), and a gradient of 1 / (1 + e^3) in place of 1 / (1 + e^9)."""
    for temperature, expected, gradient in ((1.0, 0.000123, 0.000123), (3.0, 0.145762, 0.047426)):
        logits = torch.tensor([[9.0, 0.0]], requires_grad=True)
        loss = CrossEntropy(normed_target(), CrossEntropy.Options(temperature=temperature))
        got = loss(batch_of(logits=logits, labels=torch.tensor([0])))
        assert got.item() == pytest.approx(expected, abs=1e-5)
        got.backward()
        assert logits.grad is not None
        assert logits.grad[0].tolist() == pytest.approx([-gradient, gradient], abs=1e-5)


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
def test_cosine_equals_a_double_loop_over_ordered_pairs(batch_of: BatchOf, count: int, width: int, seed: int) -> None:
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
def test_named_layers_replace_the_default_and_are_averaged(cls: Any, expected: float, value: Any) -> None:
    loss = cls(normed_target(), cls.Options(layers=["a", "b"]))
    assert loss.layers(normed_target()) == ["a", "b"]
    features = {"default": torch.eye(3), "a": TRIANGLE, "b": ALIKE[:, :, None]}
    assert value(loss, features=features) == pytest.approx(expected, abs=1e-6)


# ------------------------------------------------------------------------------------------ variety: spread

LEFT, RIGHT = [[1.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]  # in 2 x 2 pixels no window prefers one to another
BLACK = [[0.0, 0.0], [0.0, 0.0]]


def spread_of(images: Tensor, labels: list[int], batch_of: BatchOf, **options: Any) -> float:
    result = Spread(normed_target(), Spread.Options(**options))(batch_of(images=images, labels=torch.tensor(labels)))
    assert result.shape == ()
    return float(result)


def spread_by_definition(images: Tensor, labels: list[int], pool: int, epsilon: float) -> Tensor:
    """Compute the term in double precision with loops over classes and pixels; sides must be multiples of the pool."""
    batch, channels, height, width = images.shape
    down, across = (
        torch.tensor([math.sin(math.pi * (i + 1) / (side + 1)) for i in range(side)]) for side in (height, width)
    )
    faded = images.double() * down[:, None] * across
    squares = faded.view(batch, channels, height // pool, pool, width // pool, pool).mean((3, 5)).flatten(1)
    units = squares / squares.norm(dim=1, keepdim=True)
    total = images.new_zeros((), dtype=torch.float64)
    for label in set(labels):
        own = units[torch.tensor(labels) == label]
        kernel = (own @ own.T + epsilon * torch.eye(len(own))) / (1 + epsilon)
        total = total - torch.linalg.det(kernel).log()
    return total / batch


@pytest.mark.parametrize(
    ("images", "labels", "epsilon", "expected"),
    [
        # [[1, 1], [1, 1]] + I, halved: its determinant is 3 / 4. The third is alone in its class, and 1.
        ([LEFT, LEFT, LEFT], [0, 0, 1], 1.0, 0.0958940),  # ln(4 / 3) / 3
        ([LEFT, LEFT], [0, 0], 0.05, 1.1877369),  # 1 - (1 / 1.05)^2 = 0.0929705; -ln(that) / 2
        ([LEFT, RIGHT], [2, 2], 0.05, 0.0),
        ([LEFT, LEFT], [0, 1], 0.05, 0.0),
        ([LEFT], [0], 0.05, 0.0),
        ([BLACK], [0], 1.0, 0.6931472),  # no direction at all: epsilon / (1 + epsilon)
        ([BLACK, LEFT], [0, 0], 1.0, 0.3465736),
    ],
    ids=["two-alike", "two-alike-and-strict", "orthogonal", "two-classes", "alone", "black", "black-and-another"],
)
def test_spread_of_pictures_worked_by_hand(
    images: Any, labels: list[int], epsilon: float, expected: float, batch_of: BatchOf
) -> None:
    given_ = torch.tensor(images)[:, None]
    assert spread_of(given_, labels, batch_of, pool=1, epsilon=epsilon) == pytest.approx(expected, abs=1e-6)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=8),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    pool=st.integers(1, 10),
    epsilon=st.floats(0.01, 1.0),
    seed=st.integers(0, 1000),
)
def test_spread_is_bounded_and_does_not_depend_on_the_order(
    batch_of: BatchOf, labels: list[int], shape: tuple[int, ...], pool: int, epsilon: float, seed: int
) -> None:
    images = torch.rand(len(labels), *shape, generator=torch.Generator().manual_seed(seed))
    found = spread_of(images, labels, batch_of, pool=pool, epsilon=epsilon)
    assert -1e-5 <= found <= -math.log(epsilon / (1 + epsilon)) + 1e-5
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    shuffled = spread_of(images[order], [labels[i] for i in order], batch_of, pool=pool, epsilon=epsilon)
    assert shuffled == pytest.approx(found, abs=1e-5)
    renamed = [7 - label for label in labels]
    assert spread_of(images * 0.5, renamed, batch_of, pool=pool, epsilon=epsilon) == pytest.approx(found, abs=1e-5)


@pytest.mark.parametrize(("shape", "pool"), [((6, 1, 8, 8), 4), ((6, 3, 4, 6), 2), ((6, 2, 5, 3), 1)], ids=str)
def test_spread_and_its_gradient_match_the_definition(shape: tuple[int, ...], pool: int, batch_of: BatchOf) -> None:
    labels = [0, 0, 1, 0, 1, 2]
    images = random(*shape).detach().requires_grad_()
    loss = Spread(normed_target(), Spread.Options(pool=pool, epsilon=0.1))
    got = loss(batch_of(images=images, labels=torch.tensor(labels)))
    wanted = spread_by_definition(images, labels, pool, 0.1)
    (slope,), (wanted_slope,) = torch.autograd.grad(got, images), torch.autograd.grad(wanted, images)
    assert got.item() == pytest.approx(wanted.item(), rel=1e-4)
    assert torch.allclose(slope, wanted_slope, rtol=1e-3, atol=1e-5 * wanted_slope.abs().max().item() + 1e-6)


def test_spread_weights_the_middle_and_the_sides_equally(batch_of: BatchOf) -> None:
    images = torch.full((2, 1, 8, 8), 0.5)
    middle, rim = images.clone(), images.clone()
    middle[0, 0, 2:4, 2:4], rim[0, 0, 0, :4] = 1.0, 1.0
    assert spread_of(middle, [0, 0], batch_of) < spread_of(rim, [0, 0], batch_of) - 0.02
    rim[1, 0, 2, 5] = 0.0
    for dims in ([2], [3], [2, 3]):
        assert spread_of(rim.flip(dims), [0, 0], batch_of) == pytest.approx(spread_of(rim, [0, 0], batch_of), abs=1e-5)


def test_spread_ignores_differences_within_the_pooled_squares(batch_of: BatchOf) -> None:
    diagonals = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]], [[[0.0, 1.0], [1.0, 0.0]]]])
    assert spread_of(diagonals, [0, 0], batch_of, pool=1) == pytest.approx(0, abs=1e-6)
    assert spread_of(diagonals, [0, 0], batch_of, pool=2) == pytest.approx(1.1877369, abs=1e-5)


def test_spread_distinguishes_colors_even_of_single_pixels(batch_of: BatchOf) -> None:
    colors = torch.eye(3).view(3, 3, 1, 1)
    assert spread_of(colors, [0, 0, 0], batch_of) == pytest.approx(0, abs=1e-6)
    gray = torch.tensor([0.2, 0.9]).view(2, 1, 1, 1)
    assert spread_of(gray, [0, 0], batch_of) == pytest.approx(1.1877369, abs=1e-5)


def test_black_and_equal_pictures_have_a_finite_gradient_of_spread(batch_of: BatchOf) -> None:
    images = torch.zeros(4, 1, 8, 8)
    images[2:] = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    images.requires_grad_()
    Spread(normed_target())(batch_of(images=images, labels=torch.zeros(4, dtype=torch.int64))).backward()
    assert images.grad is not None and images.grad.isfinite().all()


@pytest.mark.parametrize(("side", "pool"), [(8, 4), (32, 4), (39, 4), (64, 8), (224, 28)])
def test_by_default_spread_averages_squares_of_an_eighth_of_the_side(side: int, pool: int, batch_of: BatchOf) -> None:
    images = random(2, 1, side, side).detach()
    expected = spread_of(images, [0, 0], batch_of, pool=pool)
    assert spread_of(images, [0, 0], batch_of) == pytest.approx(expected, abs=1e-6)


def test_spread_of_vectors_is_refused(linear_target: Callable[..., Target]) -> None:
    with pytest.raises(UsageError, match="'spread' needs images"):
        Spread(linear_target(shape=(12,)))


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
def test_total_variation_is_the_mean_difference_between_neighbors(
    image: list[list[float]], expected: float, value: Any
) -> None:
    images = torch.tensor(image).float().expand(2, 3, -1, -1)
    assert value(TotalVariation(normed_target()), images=images) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("side", "factor"), [(16, 1), (32, 1), (64, 2), (112, 3.5)])
def test_relative_total_variation_makes_up_for_the_size_of_an_image(side: int, factor: float, value: Any) -> None:
    images = random(2, 3, side, side // 2).detach()
    relative = TotalVariation(normed_target(), TotalVariation.Options(relative=True))
    assert value(relative, images=images) == pytest.approx(
        factor * value(TotalVariation(normed_target()), images=images), rel=1e-5
    )


def test_total_variation_of_vectors_is_refused(linear_target: Callable[..., Target]) -> None:
    with pytest.raises(UsageError, match="tv"):
        TotalVariation(linear_target(shape=(12,)))


@pytest.mark.parametrize(
    ("edge", "image", "expected"),
    [
        # Of 3 x 3 pixels all weigh 3 but the middle one, and each pair as the mean of both: 4 differences of 1,
        # weighing 2 each; 2 of 6 pairs down, 2 of 6 across.
        (3.0, [[0, 0, 0], [0, 1, 0], [0, 0, 0]], 8 / 6),
        # The weights of the middle row are 5, 2, 1, 2, 5, all others 5; of 12 pairs across, the first of each row.
        (5.0, [[1, 0, 0, 0, 0]] * 3, (5 + 3.5 + 5) / 12),
        # A rim that weighs nothing: its pairs with the middle weigh a half.
        (0.0, [[0, 1, 0], [0, 1, 0], [0, 1, 0]], 1 / 6),
        (7.0, [[0.4]], 0.0),
    ],
    ids=["dot", "step", "free-rim", "one-pixel"],
)
def test_total_variation_weights_the_rim_by_its_edge_option(
    edge: float, image: Any, expected: float, value: Any
) -> None:
    loss = TotalVariation(normed_target(), TotalVariation.Options(edge=edge))
    images = torch.tensor(image).float().expand(2, 3, -1, -1)
    assert value(loss, images=images) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("shape", [(2, 1, 5, 8), (1, 3, 1, 6), (3, 2, 7, 1), (1, 1, 2, 2)], ids=str)
def test_the_weights_of_total_variation_are_the_same_on_all_sides(shape: tuple[int, ...], value: Any) -> None:
    images = random(*shape).detach()
    loss = TotalVariation(normed_target(), TotalVariation.Options(edge=8.0))
    found = value(loss, images=images)
    assert value(TotalVariation(normed_target()), images=images) < found
    for turned in (images.flip(2), images.flip(3), images.transpose(2, 3)):
        assert value(loss, images=turned) == pytest.approx(found, rel=1e-5)


def test_chroma_is_the_variance_of_a_pixels_channels(value: Any) -> None:
    images = torch.tensor([[0.0, 0.6, 0.9], [0.3, 0.3, 0.3]]).view(2, 3, 1, 1).expand(2, 3, 2, 2)
    assert value(Chroma(normed_target()), images=images) == pytest.approx((0.25 + 0.01 + 0.16) / 3 / 2)
    assert value(Chroma(normed_target()), images=images[:, :1]) == 0
    assert value(Chroma(normed_target()), images=torch.rand(2, 5, 2, 2)) == 0


def test_l2_without_a_normalization_is_the_mean_square(value: Any) -> None:
    images = torch.tensor([1.0, 0.0, 0.5, 0.5]).view(2, 2, 1, 1).expand(2, 2, 4, 4)
    assert value(SquaredNorm(normed_target()), images=images) == pytest.approx((1 + 0 + 0.25 + 0.25) / 4)
    from_gray = SquaredNorm(normed_target(), SquaredNorm.Options(center=0.5))
    assert value(from_gray, images=images) == pytest.approx((0.25 + 0.25 + 0 + 0) / 4)


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_l2_measures_the_distance_from_the_color_that_is_normalized_to_zero(order: str, value: Any) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    target = wrap(net, (3, 1, 1), mean=[102, 51, 0], std=[1, 2, 3], input_range=(0, 255), channel_order=order)
    images = torch.tensor([[0.4, 0.2, 0.0], [0.0, 0.2, 0.4]]).view(2, 3, 1, 1)  # red is 0.4 of rgb, 0 of bgr
    assert value(SquaredNorm(target), images=images[:1]) == pytest.approx(0 if order == "rgb" else 0.32 / 3, abs=1e-7)
    assert value(SquaredNorm(target), images=images[1:]) == pytest.approx(0.32 / 3 if order == "rgb" else 0, abs=1e-7)


def test_l2_of_a_signal_is_measured_by_channel(value: Any) -> None:
    target = wrap(nn.Sequential(nn.Flatten(), nn.Linear(6, 2)), (2, 3), mean=[0.25, 0.5], std=[1.0, 0.5])
    centers = torch.tensor([[0.25] * 3 + [0.5] * 3])
    assert target.input_shape == (6,) and normalization(target)[0].tolist() == centers[0].tolist()
    assert value(SquaredNorm(target), images=centers) == pytest.approx(0.0, abs=1e-9)


def test_l2_of_vectors_scales_each_feature_by_its_range(value: Any) -> None:
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
    every_other = Statistics(target, Statistics.Options(every=2))
    assert every_other.layers(target) == ["0:in"]
    assert value(every_other, features={"0:in": first}) == pytest.approx(0.53125, abs=1e-6)
    only_first = BatchNormStatistics(target, BatchNormStatistics.Options(first=1))
    assert only_first.layers(target) == ["0:in"]
    assert value(only_first, features={"0:in": first}) == pytest.approx(0.53125, abs=1e-6)


def test_images_with_the_targets_running_statistics_cost_nothing(batch_of: BatchOf) -> None:
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


def test_a_target_without_running_statistics_is_refused_with_what_to_type(
    linear_target: Callable[..., Target],
) -> None:
    forgetful = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten(), nn.Linear(48, 2))
    for target in (linear_target(), wrap(forgetful, (3, 4, 4))):
        with pytest.raises(UsageError, match="batchnorm=0"):
            BatchNormStatistics(target)


# -------------------------------------------------------------------------------------- priors: statistics


def plain_target(shape: tuple[int, ...], **normalized: Any) -> Target:
    """Return a linear target of this normalization, without batch norm."""
    return wrap(nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 2)), shape, **normalized)


NORMALIZATIONS = {
    "none": ((1, 2, 2), {}, [0.0], [1.0]),
    "half": ((1, 2, 2), {"mean": 0.5, "std": 0.25}, [0.5], [0.0625]),
    "signed": ((1, 2, 2), {"input_range": (-1, 1), "mean": 0.0, "std": 0.5}, [0.5], [0.0625]),
    "one-for-all": ((3, 1, 1), {"mean": [0.5], "std": [0.5]}, [0.5] * 3, [0.25] * 3),
    "raw-bgr": (
        (3, 1, 1),
        {"mean": [51, 102, 153], "std": [51, 25.5, 12.75], "input_range": (0, 255), "channel_order": "bgr"},
        [0.6, 0.4, 0.2],  # the module's first channel is blue, an image's is red
        [0.0025, 0.01, 0.04],
    ),
    "vectors": (
        (2,),
        {"mean": [6.0, 0.5], "std": [2.0, 1.0], "input_range": [(4, 8), (0, 2)]},
        [0.5, 0.25],
        [0.25, 0.25],
    ),
}


@pytest.mark.parametrize(
    ("shape", "normalized", "mean", "variance"), NORMALIZATIONS.values(), ids=NORMALIZATIONS.keys()
)
def test_the_normalization_is_reported_in_units_of_the_images(
    shape: tuple[int, ...], normalized: dict[str, Any], mean: list[float], variance: list[float]
) -> None:
    found = normalization(plain_target(shape, **normalized))
    assert [numbers.tolist() for numbers in found] == [pytest.approx(mean), pytest.approx(variance)]


@pytest.mark.parametrize(
    ("shape", "normalized", "told"),
    [
        ((1, 2, 2), {}, False),
        ((1, 2, 2), {"mean": 0.5, "std": 0.5}, False),
        ((1, 2, 2), {"mean": 0.0, "std": 0.5, "input_range": (-1, 1)}, True),
        ((1, 2, 2), {"mean": 0.0, "std": 1.0, "input_range": (-1, 1)}, False),
        ((1, 2, 2), {"mean": 0.1307, "std": 0.3081}, True),
        ((3, 2, 2), {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}, True),
        ((3, 2, 2), {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.5]}, False),
        ((3, 2, 2), {"mean": [123.7, 116.3, 103.5], "std": [58.4, 57.1, 57.4], "input_range": (0, 255)}, True),
        ((3, 2, 2), {"mean": 127.5, "std": 127.5, "input_range": (0, 255)}, False),
        # Only the mean is subtracted: no images have a std of 1 of 255.
        ((3, 2, 2), {"mean": [103.9, 116.8, 123.7], "input_range": (0, 255), "channel_order": "bgr"}, False),
        ((2,), {"mean": 0.5, "std": 0.25}, False),
    ],
    ids=str,
)
def test_a_conventional_normalization_is_not_used_as_pixel_statistics(
    shape: tuple[int, ...], normalized: dict[str, Any], told: bool
) -> None:
    target = plain_target(shape, **normalized)
    found = pixel_statistics(target)
    assert (found is not None) is told
    if found is not None:
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, normalization(target), strict=True))


@pytest.mark.parametrize("shape", [(1, 2, 2), (3,)], ids=str)
def test_statistics_is_zero_if_the_target_stores_none_and_says_so(
    shape: tuple[int, ...], value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "interpkit"):
        loss = Statistics(plain_target(shape))
    assert "'statistics' stays 0" in caplog.text
    assert loss.layers(plain_target(shape)) == []
    assert value(loss, images=torch.rand(2, *shape)) == 0


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        ([[0.25, 0.75], [0.75, 0.25]], 0.0),  # matching the given mean and spread
        ([[0.75, 0.75], [0.75, 0.75]], 2.0),  # (0.75 - 0.5)^2 / 0.0625 = 1, and a variance of 0: 1
        ([[0.5, 0.5], [0.0, 1.0]], 1.0),  # the right mean, and a variance of 0.125: twice as much
        ([[0.5]], 1.0),  # one pixel of one image
    ],
    ids=["right", "constant", "too-varied", "one-pixel"],
)
def test_statistics_of_the_pixels_worked_by_hand(pixels: list[list[float]], expected: float, value: Any) -> None:
    images = torch.tensor(pixels)[:, None, None]
    loss = Statistics(plain_target((1, 1, images.shape[3]), mean=0.5, std=0.25))
    assert value(loss, images=images) == pytest.approx(expected, abs=1e-6)


def test_statistics_use_the_channels_of_the_image_in_any_order_of_the_target(value: Any) -> None:
    told = {"mean": [51, 102, 153], "std": [25.5, 25.5, 25.5], "input_range": (0, 255)}
    noise = torch.tensor([-0.1, 0.1]).view(2, 1, 1, 1)
    images = torch.tensor([0.2, 0.4, 0.6]).view(1, 3, 1, 1) + noise  # red is 51 of 255
    rgb, bgr = (Statistics(plain_target((3, 1, 1), **told, channel_order=order)) for order in ("rgb", "bgr"))
    assert value(rgb, images=images) == pytest.approx(0, abs=1e-5)
    # Red and blue are 0.4 off, which is 4 of their spreads: 16 of three channels twice.
    assert value(bgr, images=images) == pytest.approx(2 * 16 / 3, rel=1e-5)
    assert value(bgr, images=images.flip(1)) == pytest.approx(0, abs=1e-5)


def test_statistics_averages_the_pixels_and_the_batch_norms(value: Any) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, eps=0.0), nn.Flatten(), nn.Linear(4, 2))
    for normalized, expected in (({"mean": 0.5, "std": 0.25}, (5.0 + 2.0) / 2), ({}, 5.0)):
        target = wrap(net, (1, 1, 2), **normalized)
        loss = Statistics(target)
        assert loss.layers(target) == ["1:in"]
        # Channel 0: mean 1, variance 1 -> 1 + 0; channel 1: mean 3, variance 4 -> 0 + 9; means 0.5 + 4.5.
        set_statistics(target, "1", [0.0, 3.0], [1.0, 1.0])
        features = torch.tensor([[[[0.0, 2.0]], [[1.0, 5.0]]]])
        loss = Statistics(target)
        got = value(loss, images=torch.full((1, 1, 1, 2), 0.75), features={"1:in": features})
        assert got == pytest.approx(expected, abs=1e-6)


def test_statistics_copies_the_running_statistics_when_it_is_created(value: Any) -> None:
    target = normed_target()
    loss = Statistics(target)
    features = {f"{layer}:in": random(2, channels, 2, 2).detach().float() for layer, channels in (("0", 2), ("3", 3))}
    before = value(loss, features=features)
    set_statistics(target, "0", [9.0, 9.0], [1.0, 1.0])
    assert value(loss, features=features) == before
    assert value(Statistics(target), features=features) > before + 1


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


def test_gradients_of_weighted_variation_and_statistics_agree_with_finite_differences(batch_of: BatchOf) -> None:
    edged = TotalVariation(normed_target(), TotalVariation.Options(edge=8.0))
    assert torch.autograd.gradcheck(lambda x: edged(batch_of(images=x)), random(2, 2, 3, 4))
    pixels = Statistics(plain_target((2, 3, 4), mean=[0.5, 0.4], std=[0.25, 0.2]))
    assert torch.autograd.gradcheck(lambda x: pixels(batch_of(images=x)), random(2, 2, 3, 4))
    norms = Statistics(normed_target())

    def of_features(first: Tensor, second: Tensor) -> Tensor:
        result: Tensor = norms(batch_of(features={"0:in": first, "3:in": second}))
        return result

    assert torch.autograd.gradcheck(of_features, (random(3, 2, 2, 3), random(3, 3, 2, 2)))


# ---------------------------------------------------------------------------------------- stationarity


def linear(weight: Tensor, *, bias: bool = False) -> Target:
    """Return a linear classifier of vectors with these weights, (n, D), and zero biases."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias)
    layer.weight.data.copy_(weight)
    if bias:
        layer.bias.data.zero_()
    return wrap(layer, input_shape=(weight.shape[1],))


def test_stationarity_of_a_linear_classifier_is_that_worked_out_by_hand() -> None:
    """The gradient is (p - y) x^T, and p - y for the bias; here p is 1/2 everywhere."""
    target, images = linear(torch.zeros(2, 2)), torch.tensor([[0.6, 0.8], [0.0, 0.5]])
    stationarity = Stationarity(target)
    one = testing.evaluate_loss(stationarity, target, images[:1], labels=[0])
    assert one.item() == pytest.approx(math.sqrt(1 / 2))  # |(-1/2, 1/2)| |x|, and |x| is 1
    # The mean of (-1/2, 1/2) x1^T and (1/2, -1/2) x2^T has the norm |x1 - x2| / (2 sqrt 2).
    both = testing.evaluate_loss(stationarity, target, images, labels=[0, 1])
    assert both.item() == pytest.approx(math.hypot(0.6, 0.3) / math.sqrt(8))
    biased = linear(torch.zeros(2, 2), bias=True)
    found = testing.evaluate_loss(Stationarity(biased), biased, images[:1], labels=[0])
    assert found.item() == pytest.approx(1.0)  # 1/2 of the weights and 1/2 of the biases, before the root


def test_weight_decay_is_at_rest_where_the_images_hold_the_weights() -> None:
    """With x = 1 and weights (w, -w) the gradient is sigmoid(-2 w) (-1, 1), which decay balances at one strength."""
    target, image = linear(torch.tensor([[0.5], [-0.5]])), torch.ones(1, 1)
    balance = (1 / (1 + math.e)) / 0.5
    for decay, value in (
        (balance, 0.0),
        (0.0, math.sqrt(2) / (1 + math.e)),
        (2 * balance, math.sqrt(2) / (1 + math.e)),
    ):
        loss = Stationarity(target, Stationarity.Options(decay=decay))
        assert testing.evaluate_loss(loss, target, image, labels=[0]).item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_gradient_of_stationarity_is_that_of_finite_differences(decay: float) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3))
    target = wrap(net, input_shape=(1, 4, 4), mean=0.5, std=0.5).double()
    loss = Stationarity(target, Stationarity.Options(decay=decay))
    images = torch.rand(3, 1, 4, 4, dtype=torch.float64, requires_grad=True)

    def value(x: Tensor) -> Tensor:
        return testing.evaluate_loss(loss, target, x, labels=[0, 1, 2])

    assert torch.autograd.gradcheck(value, (images,), eps=1e-3, atol=1e-3, rtol=1e-2)  # logits are in single precision


class Attending(nn.Module):
    """A classifier whose attention has fast kernels that cannot be differentiated twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.block(self.embed(images[:, 0])).mean(1))


@pytest.mark.parametrize("requires_grad", [True, False])
def test_stationarity_leaves_the_target_as_it_is(requires_grad: bool) -> None:
    torch.manual_seed(0)
    module = Attending().train().requires_grad_(requires_grad)
    target = wrap(module, input_shape=(1, 4, 4))
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    images = torch.rand(3, 1, 4, 4, requires_grad=True)
    loss = Stationarity(target)
    with target.frozen():
        testing.evaluate_loss(loss, target, images, labels=[0, 1, 2]).backward()
        assert not any(weight.requires_grad for weight in target.parameters())
    assert images.grad is not None and images.grad.isfinite().all() and images.grad.any()
    assert all(weight.grad is None and weight.requires_grad == requires_grad for weight in target.parameters())
    assert module.training and all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


class Detached(nn.Module):
    """A classifier that keeps its weights out of the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return images @ self.layer.weight.detach().T


class Once(torch.autograd.Function):
    """A square root that can be differentiated once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.abs().sqrt()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return slope * x.sign() / (2 * x.abs().sqrt())


class Rooted(nn.Module):
    """A classifier with that square root."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return Once.apply(self.layer(images))


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Identity(), "Identity do not allow: no gradient of its logits reaches any. Leave it out"),
        (Detached(), "no gradient of its logits reaches any"),
        (Rooted(), "once_differentiable"),
    ],
)
def test_classifiers_whose_weights_have_no_second_derivative_are_refused(module: nn.Module, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Stationarity(wrap(module, input_shape=(4,), output="logits"))


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


def test_the_plugin_registers_all_its_losses_and_its_preset() -> None:
    added: list[Any] = []
    interpkit_losses.register(SimpleNamespace(add=added.append))  # type: ignore[arg-type]
    losses = [each for each in added if not isinstance(each, Preset)]
    assert set(losses) == {*LOSSES, Chroma} and len(losses) == 12 and len(added) == 13


@pytest.mark.parametrize("cls", LOSSES, ids=lambda cls: cls.name)
def test_a_loss_does_not_register_the_users_module(cls: Any) -> None:
    loss = cls(normed_target())
    assert list(loss.parameters()) == [] and list(loss.children()) == [] and loss.state_dict() == {}


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (BatchNormStatistics, {"first": 0}),
        (Cosine, {"layers": "x"}),
        (Cosine, {"layer": []}),
        (CrossEntropy, {"a": 1}),
        (CrossEntropy, {"temperature": 0}),
        (TotalVariation, {"edge": -1}),
        (TotalVariation, {"edge": math.inf}),
        (Spread, {"pool": 0}),
        (Spread, {"epsilon": 0}),
        (Spread, {"epsilon": 1.5}),
        (Statistics, {"first": 1}),
        (Stationarity, {"decay": -1}),
    ],
)
def test_options_out_of_range_are_refused(cls: Any, options: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError, match=next(iter(options))):
        cls.Options(**options)


@pytest.mark.parametrize(("loss", "value"), [(CrossEntropy, math.log(2)), (KLDivergence, 0.1308 + math.log(2))])
def test_independent_labels_are_compared_one_by_one(loss: Any, value: float) -> None:
    """Sigmoids of zeros are 1/2: KL of (3/4, 1/4) from that is 0.1308, and of (0, 1) it is log 2."""
    target, images = wrap(nn.Identity(), input_shape=(2,), output="sigmoid_logits"), torch.zeros(1, 2)
    asked = torch.tensor([[0.75, 0.0]])
    found = testing.evaluate_loss(loss(target), target, images, labels=[0], distribution=asked)
    assert found.item() == pytest.approx(value, abs=1e-4)


def test_cross_entropy_does_not_constrain_labels_that_were_not_requested() -> None:
    target = wrap(nn.Identity(), input_shape=(2,), output="sigmoid_logits")
    values = [
        testing.evaluate_loss(CrossEntropy(target), target, torch.tensor([[0.5, other]]), labels=[0]).item()
        for other in (0.0, 1.0)
    ]
    assert values[0] == values[1]


# ------------------------------------------------------------------------------------ activation


def test_activation_is_asinh_of_the_requested_logit_without_a_bound() -> None:
    logits = torch.tensor([[3.0, 9.0], [-2.0, 100.0]])
    target = wrap(nn.Identity(), input_shape=(2,))
    found = testing.evaluate_loss(Activation(target), target, logits, labels=[0, 1])
    assert found.item() == pytest.approx(-(math.asinh(3) + math.asinh(100)) / 2, rel=1e-5)


def test_activation_of_probabilities_is_warned_of_as_it_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    net = nn.Sequential(nn.Linear(3, 5), nn.Softmax(1))
    likely = wrap(net, input_shape=(3,))
    Activation(wrap(net[0], input_shape=(3,)))
    Activation(units(likely, ["0:1"]))
    Activation(units(likely, directions={"up": ("0", torch.ones(5))}))
    Activation(likely, Activation.Options(units=["0:1"]))
    assert not caplog.records
    invert(likely, ["pixels", "excite"], steps=1, losses={"tv": 0})
    assert caplog.text.count("the loss 'activation' excites logits, and Sequential returns probabilities") == 1


def test_activation_of_named_units_does_not_depend_on_the_label() -> None:
    target = wrap(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2)), input_shape=(3,))
    loss, images = Activation(target, Activation.Options(units=["0:1,4"])), torch.rand(4, 3)
    values = [testing.evaluate_loss(loss, target, images, labels=[label] * 4).item() for label in (0, 1)]
    expected = -units(target, ["0:1,4"])(images).asinh().mean().item()
    assert values == pytest.approx([expected, expected], rel=1e-5)
    with pytest.raises(UsageError, match="5 channels, 0 to 4, not 5"):
        Activation(target, Activation.Options(units=["0:5"]))
