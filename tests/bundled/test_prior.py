"""The loss `prior`: its discriminator learns with the run, resumes with it, and is given the user's own pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interpkit_prior import Prior
from interpkit_prior.loss import LEAST, field
from torch import Tensor, nn

import interpkit
from interpkit import InversionBatch, RunError, Target, UsageError
from interpkit.api.invert import prepare

BatchOf = Callable[..., InversionBatch]
Quick = Callable[..., dict[str, Any]]
SHAPE = (1, 12, 12)


def stripes(count: int, seed: int = 0) -> np.ndarray:
    """Return pictures of vertical stripes with noise on them, which no generator makes by chance."""
    noise = np.random.default_rng(seed).normal(0, 0.05, (count, *SHAPE))
    return (np.tile([0.1, 0.9], 6) + noise).clip(0, 1).astype(np.float32)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    np.savez(tmp_path / "mine.npz", images=stripes(80))
    return tmp_path / "mine.npz"


@pytest.fixture
def prior(data: Path, tiny_target: Target) -> Prior:
    torch.manual_seed(0)
    return Prior(tiny_target, Prior.Options(data=str(data), width=8))


def trained(prior: Prior, batch_of: BatchOf, images: Tensor, steps: int) -> Prior:
    optimizer = torch.optim.Adam(prior.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        prior(batch_of(images=images)).backward()
        optimizer.step()
    return prior


def side_seen(prior: Prior) -> int:
    """Return how many columns of an image the discriminator's first output depends on, padding aside."""
    image = torch.rand(1, 1, 200, 200, requires_grad=True)
    odds = prior.discriminator(image)
    odds[0, 0, odds.shape[2] // 2, odds.shape[3] // 2].backward()
    assert image.grad is not None
    return int(image.grad[0, 0].any(0).sum())


def test_the_value_is_that_of_the_non_saturating_loss_and_the_images_get_its_gradient(
    prior: Prior, batch_of: BatchOf
) -> None:
    images = torch.rand(4, *SHAPE, requires_grad=True)
    value = prior(batch_of(images=images))
    (slope,) = torch.autograd.grad(value, images)
    expected = (1 + (-prior.discriminator(images)).exp()).log().mean()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(slope, torch.autograd.grad(expected, images)[0])


def test_a_discriminator_that_cannot_tell_gives_log_2(prior: Prior, batch_of: BatchOf) -> None:
    nn.init.zeros_(prior.discriminator[-1].weight), nn.init.zeros_(prior.discriminator[-1].bias)
    assert prior(batch_of(images=torch.rand(4, *SHAPE))).item() == pytest.approx(math.log(2))


def test_the_weights_get_the_gradient_of_the_discriminators_loss_with_its_penalty(
    data: Path, tiny_target: Target, batch_of: BatchOf
) -> None:
    np.savez(data, images=np.tile(stripes(1), (LEAST, 1, 1, 1)))  # whichever are drawn, they are the same
    prior = Prior(tiny_target, Prior.Options(data=str(data), patch=12, width=4, penalty=3.0))
    images, real = torch.rand(6, *SHAPE), torch.from_numpy(stripes(1)).requires_grad_()
    prior(batch_of(images=images)).backward()
    found = [weight.grad for weight in prior.parameters()]
    odds = prior.discriminator(real)
    (slope,) = torch.autograd.grad(odds.sum(), real, create_graph=True)
    own = (1 + (-odds).exp()).log().mean() + (1 + prior.discriminator(images).exp()).log().mean()
    expected = torch.autograd.grad(own + 3.0 / 2 * slope.square().sum() / odds.numel(), list(prior.parameters()))
    torch.testing.assert_close(found, list(expected))


def test_it_learns_to_prefer_images_like_the_pictures(prior: Prior, batch_of: BatchOf) -> None:
    trained(prior, batch_of, torch.rand(32, *SHAPE), steps=30)
    alike, noise, across = (
        prior(batch_of(images=images)).item()
        for images in (
            torch.from_numpy(stripes(16, seed=1)),
            torch.rand(16, *SHAPE),
            torch.from_numpy(stripes(16, seed=1)).transpose(2, 3),
        )
    )
    assert alike < math.log(2) < min(noise, across)


@pytest.mark.parametrize(("patch", "seen"), [(1, 8), (8, 8), (9, 18), (18, 18), (19, 38), (400, 38)])
def test_a_patch_is_rounded_up_to_what_layers_see(data: Path, tiny_target: Target, patch: int, seen: int) -> None:
    assert side_seen(Prior(tiny_target, Prior.Options(data=str(data), patch=patch))) == seen


def test_by_default_a_patch_is_at_most_two_thirds_of_an_image(data: Path) -> None:
    for side, seen in ((12, 8), (28, 18), (32, 18), (64, 38)):
        net = nn.Sequential(nn.Flatten(), nn.Linear(side * side, 2))
        np.savez(data, images=np.zeros((LEAST, side, side), np.float32))
        prior = Prior(interpkit.wrap(net, (1, side, side)), Prior.Options(data=str(data)))
        assert side_seen(prior) == seen
    assert [field(depth) for depth in (1, 2, 3, 4)] == [8, 18, 38, 78]


def test_a_run_draws_its_images_towards_the_pictures(
    tiny_model: Path, quick: Quick, data: Path, batch_of: BatchOf, tiny_target: Target
) -> None:
    options = {"prior.data": str(data), "prior.width": 8}
    runs = [
        interpkit.invert(tiny_model, **quick(steps=40, losses={"prior": weight}, options=options))
        for weight in (0.0, 10.0)
    ]
    judge = Prior(tiny_target, Prior.Options(data=str(data)))
    plain, drawn = (run.sample(per_class=8, seed=0)[0] for run in runs)
    trained(judge, batch_of, torch.rand(32, *SHAPE), steps=30)
    assert judge(batch_of(images=drawn)) < judge(batch_of(images=plain))


@pytest.mark.parametrize("inverter", ["generator", "pixels"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, tiny_model: Path, quick: Quick, data: Path, inverter: str
) -> None:
    options = {"prior.data": str(data), "prior.width": 4}
    generator = inverter == "generator"
    settings = quick(losses={"prior": 1.0}, options=options) if generator else {"losses": {"ce": 1.0, "prior": 1.0}}
    settings |= {"inverter": inverter, "steps": 12, "device": "cpu"}
    if not generator:
        settings["options"] = {**options, "pixels.per_class": 2}
    straight = interpkit.invert(tiny_model, **settings)
    job = prepare(tiny_model, **settings)
    job.run(out=tmp_path / "run", on_step=lambda step: job.request_stop() if step == 5 else None)
    resumed = interpkit.invert(tiny_model, out=tmp_path / "run", resume=True)
    assert torch.equal(resumed.sample(per_class=2, seed=0)[0], straight.sample(per_class=2, seed=0)[0])
    assert resumed.history[-1].terms == straight.history[-1].terms
    data.unlink()
    assert interpkit.load_inversion(tmp_path / "run").steps_done == 12  # the pictures are only needed to train


def test_a_run_is_not_resumed_with_other_pictures(tmp_path: Path, tiny_model: Path, quick: Quick, data: Path) -> None:
    settings = quick(steps=2, losses={"prior": 1.0}, options={"prior.data": str(data), "prior.width": 4})
    interpkit.invert(tiny_model, out=tmp_path / "run", **settings)
    np.savez(data, images=stripes(80, seed=1))
    with pytest.raises(RunError, match=r"mine\.npz, the data of losses\.prior\.data, has changed"):
        interpkit.invert(tiny_model, out=tmp_path / "run", resume=True, steps=4)


def test_too_few_pictures_are_refused_with_the_number_required(data: Path, tiny_target: Target) -> None:
    np.savez(data, images=stripes(LEAST - 1))
    with pytest.raises(UsageError, match=f"has {LEAST - 1} pictures; at least {LEAST} are required"):
        Prior(tiny_target, Prior.Options(data=str(data)))


def test_vectors_and_tiny_images_are_refused(data: Path) -> None:
    for shape in ((5,), (3, 3, 8)):
        net = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 2))
        with pytest.raises(UsageError, match="the loss 'prior' needs images of at least 4 x 4 pixels"):
            Prior(interpkit.wrap(net, shape), Prior.Options(data=str(data)))
