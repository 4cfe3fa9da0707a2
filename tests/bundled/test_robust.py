"""The perturbations stay within their bounds, and the loss averages over them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pydantic
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from interpkit_robust import perturbations
from interpkit_robust.ghosts import Ghosts
from interpkit_robust.loss import Robustness
from torch import Tensor, nn

from interpkit import GeneratedBatch, InversionBatch, Target, UsageError, wrap
from interpkit.config.recipe import compose
from interpkit.plugins.discovery import installed

Rng = Callable[[int], torch.Generator]
MakeTarget = Callable[..., Target]
Generated = Callable[[Target, Tensor, Tensor], GeneratedBatch]

norms = pytest.mark.parametrize("norm", ["linf", "l2"])
image_shapes = st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(2, 12), st.integers(2, 12))
some = settings(max_examples=25, deadline=None, derandomize=True)


def lengths(delta: Tensor, norm: str) -> Tensor:
    flat = delta.flatten(1)
    return flat.abs().max(1).values if norm == "linf" else flat.norm(dim=1)


def uniform_images(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------- random, in a ball


@norms
@some
@given(shape=image_shapes, radius=st.floats(1e-3, 1.0), seed=st.integers(0, 1000))
def test_random_perturbations_stay_in_the_ball_and_in_range(
    norm: Any, shape: tuple[int, ...], radius: float, seed: int
) -> None:
    images = uniform_images(shape, seed)
    result = perturbations.in_ball(images, radius, norm, torch.Generator().manual_seed(seed))
    assert result.shape == images.shape and result.min() >= 0 and result.max() <= 1
    assert (lengths(result - images, norm) <= radius + 1e-6).all()
    assert not torch.equal(result, images)


@pytest.mark.parametrize("shape", [(3,), (2, 2, 2), (1, 4, 6)], ids=str)
def test_perturbations_are_uniform_in_the_l2_ball(shape: tuple[int, ...], rng: Rng) -> None:
    size = math.prod(shape)
    delta = perturbations.random_delta(torch.zeros(20_000, *shape), 2.0, "l2", rng(0)).flatten(1)
    radii = delta.norm(dim=1) / 2
    assert radii.mean().item() == pytest.approx(size / (size + 1), abs=0.006)
    assert (radii <= 0.5).double().mean().item() == pytest.approx(0.5**size, abs=0.01)  # its share of the volume
    assert delta.mean(0).abs().max() < 0.05  # no direction is liked better


def test_perturbations_are_uniform_in_the_linf_ball(rng: Rng) -> None:
    delta = perturbations.random_delta(torch.zeros(20_000, 5), 0.2, "linf", rng(0))
    assert delta.mean().item() == pytest.approx(0, abs=0.003)
    assert delta.square().mean().item() == pytest.approx(0.2**2 / 3, rel=0.03)


def test_gaussian_noise_has_a_random_strength_up_to_sigma_per_image(rng: Rng) -> None:
    images = torch.full((500, 1, 20, 20), 0.5)
    strength = (perturbations.gaussian(images, 0.08, rng(0)) - images).flatten(1).std(1)
    assert strength.max() < 0.08 * 1.15  # of 400 pixels the deviation is known to 3.5 %
    assert strength.max() > 0.07 and strength.min() < 0.01
    assert strength.mean().item() == pytest.approx(0.04, abs=0.004)


def test_coarse_noise_is_equal_within_squares_and_as_strong(rng: Rng) -> None:
    noise = perturbations.noise(torch.zeros(40, 2, 7, 10), rng(0), grain=3)
    assert noise.shape == (40, 2, 7, 10)
    assert torch.equal(noise[:, :, :3, 3:6], noise[:, :, :1, 3:4].expand(-1, -1, 3, 3))
    assert noise[:, :, ::3, ::3].std().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("side", "grain"), [(8, 1), (48, 1), (64, 2), (224, 7)])
def test_by_default_noise_is_of_squares_of_a_32nd_of_the_side(
    side: int, grain: int, linear_target: MakeTarget, generated: Generated, rng: Rng
) -> None:
    target = linear_target(shape=(1, side, side))
    batch = generated(target, torch.full((1, 1, side, side), 0.5), torch.tensor([0]))
    views = Robustness(target, Robustness.Options(kinds=["gaussian"], sigma=0.1)).views(batch, rng(0))
    assert torch.equal(views, perturbations.gaussian(batch.images, 0.1, rng(0), grain))


@some
@given(shape=image_shapes, sigma=st.floats(0.01, 5.0), seed=st.integers(0, 1000))
def test_noisy_images_stay_in_range(shape: tuple[int, ...], sigma: float, seed: int) -> None:
    images = uniform_images(shape, seed)
    result = perturbations.gaussian(images, sigma, torch.Generator().manual_seed(seed))
    assert result.shape == images.shape and result.min() >= 0 and result.max() <= 1


@norms
def test_projection_keeps_points_inside_and_moves_others_to_the_boundary(norm: Any) -> None:
    delta = torch.tensor([[0.3, 0.4], [3.0, 4.0], [0.0, 0.0]])
    expected = {"l2": [[0.3, 0.4], [0.6, 0.8], [0.0, 0.0]], "linf": [[0.3, 0.4], [1.0, 1.0], [0.0, 0.0]]}
    assert torch.allclose(perturbations.project(delta, 1.0, norm), torch.tensor(expected[norm]))


# ------------------------------------------------------------------------------------------- adversarial


@norms
@settings(max_examples=15, deadline=None, derandomize=True)
@given(batch=st.integers(1, 5), radius=st.floats(1e-3, 2.0), steps=st.integers(1, 5), seed=st.integers(0, 1000))
def test_adversarial_perturbations_stay_in_the_ball_and_in_range(
    norm: Any, batch: int, radius: float, steps: int, seed: int
) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    target, images = wrap(net, (3, 2, 2)), uniform_images((batch, 3, 2, 2), seed)
    labels = torch.arange(batch) % 2
    result = perturbations.pgd(target, images, labels, radius, norm, steps, torch.Generator().manual_seed(seed))
    assert result.shape == images.shape and result.min() >= 0 and result.max() <= 1
    assert (lengths(result - images, norm) <= radius + 1e-5).all()


@norms
def test_the_search_nearly_finds_the_worst_perturbation_of_a_linear_classifier(
    norm: Any, linear_target: MakeTarget, rng: Rng
) -> None:
    target, radius = linear_target(), {"l2": 0.4, "linf": 0.05}[norm]
    weights: Any = target.layers()["1"].weight
    against = -weights[0].detach().view(3, 4, 4)  # for label 0, whose logit is w.x; label 1 likes the opposite
    worst = radius * (against / against.norm() if norm == "l2" else against.sign())
    images, labels = torch.full((40, 3, 4, 4), 0.5), torch.arange(40) % 2
    signs = (1 - 2 * labels).view(-1, 1, 1, 1)

    def losses(x: Tensor) -> Tensor:
        return F.cross_entropy(target(x), labels, reduction="none").detach()

    clean, ceiling = losses(images), losses(images + signs * worst)
    found = perturbations.pgd(target, images, labels, radius, norm, 10, rng(0))
    blind = perturbations.in_ball(images, radius, norm, rng(0))
    assert (losses(found) <= ceiling + 1e-5).all()
    assert ((losses(found) - clean) > 0.9 * (ceiling - clean)).all()
    assert (losses(found) > losses(blind)).all()
    if norm == "linf":
        assert torch.allclose(found - images, (signs * worst).expand_as(images), atol=1e-6)
    else:
        assert torch.allclose(lengths(found - images, norm), torch.tensor(radius))


@norms
def test_the_result_has_the_gradient_of_the_images_where_it_is_not_clamped(
    norm: Any, linear_target: MakeTarget, rng: Rng
) -> None:
    target, labels = linear_target(), torch.zeros(6, dtype=torch.int64)
    inside = torch.full((6, 3, 4, 4), 0.5, requires_grad=True)
    perturbations.pgd(target, inside, labels, 0.1, norm, 3, rng(0)).sum().backward()
    assert inside.grad is not None and (inside.grad == 1).all()
    black = torch.zeros(6, 3, 4, 4, requires_grad=True)
    result = perturbations.pgd(target, black, labels, 0.1, norm, 3, rng(0))
    result.sum().backward()
    assert black.grad is not None and torch.equal(black.grad, (result > 0).float())
    assert 0 < black.grad.mean() < 1


def test_the_search_leaves_the_target_without_gradients_and_runs_without_grad_mode(
    linear_target: MakeTarget, rng: Rng
) -> None:
    target, images = linear_target(), torch.full((6, 3, 4, 4), 0.5)
    labels = torch.zeros(6, dtype=torch.int64)
    with torch.no_grad():
        blind = perturbations.pgd(target, images, labels, 0.1, "linf", 3, rng(0))
    assert torch.equal(blind, perturbations.pgd(target, images, labels, 0.1, "linf", 3, rng(0)))
    assert all(p.grad is None and p.requires_grad for p in target.parameters())


# --------------------------------------------------------------------------------------------- geometric

HEIGHT, WIDTH = 40, 80
ROWS = torch.arange(HEIGHT).float()[:, None] - (HEIGHT - 1) / 2  # pixels from the center
COLUMNS = torch.arange(WIDTH).float()[None, :] - (WIDTH - 1) / 2


def spots(row: float, column: float, count: int = 300) -> Tensor:
    """Return images of one soft spot, shifted from the center by pixels down and to the right."""
    return (-((ROWS - row).square() + (COLUMNS - column).square()) / 4).exp().expand(count, 1, -1, -1)


def places(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows and columns of the spots' centers of mass, relative to the image's center."""
    mass = images[:, 0] / images[:, 0].sum((1, 2), keepdim=True)
    return (mass * ROWS).sum((1, 2)), (mass * COLUMNS).sum((1, 2))


@some
@given(shape=image_shapes, seed=st.integers(0, 1000))
def test_geometry_with_zero_bounds_is_the_identity(shape: tuple[int, ...], seed: int) -> None:
    images = uniform_images(shape, seed)
    assert torch.allclose(
        perturbations.affine(images, 0.0, 0.0, 0.0, torch.Generator().manual_seed(seed)), images, atol=1e-5
    )


@some
@given(
    shape=image_shapes,
    bounds=st.tuples(st.floats(0, 180), st.floats(0, 1), st.floats(0, 0.9)),
    seed=st.integers(0, 1000),
)
def test_geometry_does_not_exceed_the_brightness_of_the_image(
    shape: tuple[int, ...], bounds: tuple[float, float, float], seed: int
) -> None:
    images = 0.2 + 0.5 * uniform_images(shape, seed)
    result = perturbations.affine(images, *bounds, torch.Generator().manual_seed(seed))
    assert result.shape == images.shape
    assert result.min() >= images.min() - 1e-5 and result.max() <= images.max() + 1e-5


def test_shifts_are_in_fractions_of_each_side(rng: Rng) -> None:
    down, across = places(perturbations.affine(spots(0, 0), 0.0, 0.1, 0.0, rng(0)))
    for moved, side in ((down, HEIGHT), (across, WIDTH)):
        assert moved.abs().max() <= 0.1 * side + 0.05
        assert moved.max() > 0.09 * side and moved.min() < -0.09 * side
    assert abs(torch.corrcoef(torch.stack([down, across]))[0, 1]) < 0.2


@pytest.mark.parametrize(("row", "column"), [(0, 12), (12, 0), (-8, 9)])
def test_a_rotation_does_not_distort_an_image_that_is_not_square(row: int, column: int, rng: Rng) -> None:
    down, across = places(perturbations.affine(spots(row, column), 40.0, 0.0, 0.0, rng(0)))
    assert torch.allclose(torch.hypot(down, across), torch.tensor(math.hypot(row, column)), atol=0.15)
    turned = torch.rad2deg(torch.atan2(down, across) - math.atan2(row, column))
    turned = (turned + 180) % 360 - 180
    assert 36 < turned.max() < 40.5 and -40.5 < turned.min() < -36


def test_scaling_is_about_the_center(rng: Rng) -> None:
    down, across = places(perturbations.affine(spots(-8, 16), 0.0, 0.0, 0.25, rng(0)))
    factor = across / 16
    assert torch.allclose(down / -8, factor, atol=0.02)
    assert 0.745 < factor.min() < 0.78 and 1.22 < factor.max() < 1.255
    assert factor.mean().item() == pytest.approx(1, abs=0.03)


def test_pixels_from_outside_the_image_repeat_its_border(rng: Rng) -> None:
    images = torch.full((20, 3, 9, 14), 0.7)
    assert torch.allclose(perturbations.affine(images, 90.0, 0.5, 0.5, rng(0)), images, atol=1e-5)


# ----------------------------------------------------------------------------------------------- the loss


def test_the_loss_is_the_mean_cross_entropy_of_the_views_kind_by_kind(
    batch_of: Callable[..., InversionBatch], linear_target: MakeTarget
) -> None:
    loss = Robustness(linear_target(), Robustness.Options(kinds=["gaussian", "l2"]))
    # Two images, labels 0 and 1, and two kinds: the views' labels are 0, 1, 0, 1.
    views = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [0.8, 0.1, 0.1], [0.1, 0.8, 0.1]]).log()
    got = loss(batch_of(labels=torch.tensor([0, 1]), view_logits=views))
    assert got.item() == pytest.approx(0.6314324, abs=1e-6)  # (ln 2 + ln 4 - 2 ln 0.8) / 4


def test_the_views_are_all_images_under_one_kind_after_another(
    linear_target: MakeTarget, generated: Generated, rng: Rng
) -> None:
    target = linear_target()
    options = Robustness.Options(kinds=["linf", "l2", "affine", "pgd"], epsilon=1e-4, radius=1e-4)
    images = torch.linspace(0.1, 0.9, 5).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    batch = generated(target, images, torch.zeros(5, dtype=torch.int64))
    views = Robustness(target, options).views(batch, rng(0))
    assert torch.allclose(views, images.repeat(4, 1, 1, 1), atol=1e-3)
    assert not torch.equal(views[:5], views[5:10])


@pytest.mark.parametrize(
    ("kind", "options", "norm", "bound"),
    [
        ("linf", {}, "linf", 0.2),
        ("l2", {}, "l2", 0.3),
        ("pgd", {}, "l2", 0.3),
        ("pgd", {"pgd_norm": "linf"}, "linf", 0.2),
    ],
)
def test_each_kind_uses_the_norm_and_the_bound_of_the_options(
    kind: Any,
    options: dict[str, Any],
    norm: str,
    bound: float,
    linear_target: MakeTarget,
    generated: Generated,
    rng: Rng,
) -> None:
    target, images = linear_target(), torch.full((200, 3, 4, 4), 0.5)
    loss = Robustness(target, Robustness.Options(kinds=[kind], epsilon=0.2, radius=0.3, **options))
    delta = loss.views(generated(target, images, torch.arange(200) % 2), rng(0)) - images
    assert 0.95 * bound < lengths(delta, norm).max() <= bound + 1e-6
    other = lengths(delta, "l2" if norm == "linf" else "linf").max()
    assert other > 0.3 if norm == "linf" else other < 0.2  # the other bound is not kept, or not reached


def test_jitter_is_a_move_and_then_noise(linear_target: MakeTarget, generated: Generated, rng: Rng) -> None:
    target, images = linear_target(), 0.3 + 0.4 * uniform_images((6, 3, 4, 4), 0)
    batch = generated(target, images, torch.zeros(6, dtype=torch.int64))

    def views(kind: Any, **options: Any) -> Tensor:
        return Robustness(target, Robustness.Options(kinds=[kind], **options)).views(batch, rng(4))

    still = {"degrees": 0.0, "shift": 0.0, "scale": 0.0}
    assert torch.allclose(views("jitter", sigma=1e-6), views("affine"), atol=1e-5)
    assert not torch.allclose(views("affine"), images, atol=0.05)
    noise = views("jitter", sigma=0.05, **still) - images
    assert 0 < noise.abs().max() < 0.05 * 6 and abs(noise.mean()) < 0.02
    assert (views("jitter", sigma=0.05) - views("affine")).abs().max() > 0.01
    bright = views("jitter", sigma=5.0)
    assert bright.shape == images.shape and bright.min() == 0 and bright.max() == 1


@pytest.mark.parametrize("kind", ["gaussian", "linf", "l2", "affine", "jitter", "pgd"])
def test_a_kind_that_is_named_twice_is_drawn_twice(
    kind: Any, linear_target: MakeTarget, generated: Generated, rng: Rng, batch_of: Callable[..., InversionBatch]
) -> None:
    target, labels = linear_target(), torch.tensor([0, 1, 1])
    batch = generated(target, uniform_images((3, 3, 4, 4), 0), labels)
    loss = Robustness(target, Robustness.Options(kinds=[kind, kind]))
    views = loss.views(batch, rng(0))
    assert views.shape == (6, 3, 4, 4)
    assert not torch.allclose(views[:3], views[3:], atol=1e-3)
    logits = target(views)
    both = (F.cross_entropy(logits[:3], labels) + F.cross_entropy(logits[3:], labels)) / 2
    assert loss(batch_of(labels=labels, view_logits=logits)).item() == pytest.approx(both.item(), rel=1e-5)


@norms
def test_searched_views_cost_more_than_random_ones_of_the_same_bound(
    norm: Any, linear_target: MakeTarget, generated: Generated, rng: Rng
) -> None:
    target = linear_target()
    labels = torch.arange(32) % 2
    batch = generated(target, uniform_images((32, 3, 4, 4), 0), labels)
    costs = {}
    for kinds in ([norm], ["pgd"]):
        options = Robustness.Options(kinds=kinds, pgd_norm=norm, epsilon=0.1, radius=0.5, pgd_steps=4)
        views = Robustness(target, options).views(batch, rng(0))
        costs[kinds[0]] = F.cross_entropy(target(views), labels).item()
    assert costs["pgd"] > costs[norm] + 0.05


def test_equal_seeds_draw_the_same_views(linear_target: MakeTarget, generated: Generated, rng: Rng) -> None:
    target = linear_target()
    batch = generated(target, uniform_images((4, 3, 4, 4), 0), torch.zeros(4, dtype=torch.int64))
    loss = Robustness(target, Robustness.Options(kinds=["gaussian", "linf", "l2", "pgd", "affine"]))
    before = torch.get_rng_state()
    one, same, other = (loss.views(batch, rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shape", [(3, 4, 4), (12,)], ids=str)
def test_by_default_all_kinds_that_suit_the_target_are_drawn_with_a_gradient(
    shape: tuple[int, ...], linear_target: MakeTarget, generated: Generated, rng: Rng
) -> None:
    target = linear_target(shape=shape)
    images = uniform_images((4, *shape), 0).requires_grad_()
    loss = Robustness(target)
    assert loss.kinds == (["gaussian", "pgd", "affine"] if len(shape) == 3 else ["gaussian", "pgd"])
    views = loss.views(generated(target, images, torch.zeros(4, dtype=torch.int64)), rng(0))
    assert views.shape == (4 * len(loss.kinds), *shape) and views.min() >= 0 and views.max() <= 1
    for kind in range(len(loss.kinds)):
        (gradient,) = torch.autograd.grad(views[4 * kind : 4 * kind + 4].sum(), images, retain_graph=True)
        assert gradient.abs().sum() > 0


def test_a_term_holds_no_part_of_the_users_module(linear_target: MakeTarget) -> None:
    loss = Robustness(linear_target())
    assert list(loss.parameters()) == [] and list(loss.children()) == []


def test_geometry_for_vectors_is_refused(linear_target: MakeTarget) -> None:
    with pytest.raises(UsageError, match="affine"):
        Robustness(linear_target(shape=(12,)), Robustness.Options(kinds=["gaussian", "affine"]))
    with pytest.raises(UsageError, match=r"affine, jitter needs images; .*classifies vectors"):
        Robustness(linear_target(shape=(12,)), Robustness.Options(kinds=["jitter", "l2", "affine"]))


@pytest.mark.parametrize(
    "options",
    [
        {"kinds": []},
        {"kinds": ["blur"]},
        {"sigma": 0},
        {"epsilon": 1.5},
        {"radius": math.inf},
        {"radius": 0},
        {"pgd_norm": "l1"},
        {"pgd_steps": 0},
        {"degrees": 181},
        {"shift": -0.1},
        {"scale": 1},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError, match=next(iter(options))):
        Robustness.Options(**options)


def test_the_preset_adds_its_loss_to_those_of_the_paper() -> None:
    plugins = installed()
    recipe = compose([plugins.preset("vecmat").layer, plugins.preset("robust").layer], [("robust.radius", 2.0)])
    assert {name: term.weight for name, term in recipe.losses.items()} == {"kl": 1, "ce": 1, "cosine": 1, "robust": 1}
    assert recipe.losses["robust"].options == {"radius": 2.0}
    assert recipe.conditioner is not None and recipe.conditioner.name == "vecmat"
    assert recipe.generator is not None and recipe.generator.name == "upconv"


# --------------------------------------------------------------------------------------- occlusion and ghosts


def test_occlusion_covers_one_rectangle_with_the_neighboring_image(rng: Rng) -> None:
    images = torch.linspace(0.1, 0.9, 50).view(50, 1, 1, 1).expand(50, 2, 20, 30).clone().requires_grad_(True)
    seen = perturbations.occlude(images, 0.5, rng(0))
    covered = seen != images
    assert torch.equal(seen[covered], images.roll(1, 0)[covered])
    areas = []
    for mask in covered[:, 0]:
        assert torch.equal(mask, mask.any(1)[:, None] & mask.any(0))  # a rectangle
        height, width = int(mask.any(1).sum()), int(mask.any(0).sum())
        assert height <= 10 and width <= 15
        areas.append(height * width / 600)
    assert torch.equal(covered[:, 0], covered[:, 1])
    assert sum(areas) / 50 == pytest.approx(1 / 16, abs=0.02)  # a quarter of either side on average
    (slope,) = torch.autograd.grad(seen.sum(), images)
    assert torch.equal(slope, (~covered).float())  # what covers an image is not to be improved for it


def test_jitter_occludes_only_if_enabled(linear_target: MakeTarget, generated: Generated, rng: Rng) -> None:
    images = torch.cat([torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)])
    still = {"degrees": 0.0, "shift": 0.0, "scale": 0.0, "sigma": 1e-6, "kinds": ["jitter"]}

    def views(**options: Any) -> Tensor:
        loss = Robustness(linear_target(shape=(1, 8, 8)), Robustness.Options(**still, **options))
        return loss.views(generated(linear_target(shape=(1, 8, 8)), images, torch.zeros(2, dtype=torch.int64)), rng(1))

    assert (views() - images).abs().max() < 1e-4
    assert (views(occlusion=0.9) - images).abs().max() > 0.99


def test_a_ghost_differs_from_the_target_by_sigma_and_does_not_change_it(
    batch_of: Callable[..., InversionBatch],
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(50, 2))
    target = wrap(net, (1, 5, 10))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    images = torch.rand(6, 1, 5, 10, requires_grad=True)
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    batch = batch_of(images=images, labels=labels, target=target)
    plain = F.cross_entropy(target(images), labels).item()

    def seen(sigma: float) -> list[float]:
        loss = Ghosts(target, Ghosts.Options(sigma=sigma))
        return [loss(batch).item() for _ in range(50)]

    assert seen(1e-4) == pytest.approx([plain] * 50, abs=1e-3)
    near, far = (torch.tensor(seen(sigma)).std().item() for sigma in (0.1, 1.0))
    assert 0 < near < far
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    (slope,) = torch.autograd.grad(Ghosts(target)(batch), images)
    assert slope.abs().sum() > 0
