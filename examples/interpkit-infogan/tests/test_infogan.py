"""The mutual-information term: values computed by hand, closed forms that it reaches, and the contract of a loss."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from interpkit_infogan.loss import SMALLEST_VARIANCE, MutualInformation
from torch import Tensor, nn

import interpkit
from interpkit import testing


@testing.parametrize_with_checks([MutualInformation])
def test_it_satisfies_the_contract_of_a_loss(component: type[MutualInformation], check: testing.Check) -> None:
    """All checks of the conformance kit pass."""
    check(component)


def make(shape: tuple[int, ...], **options: Any) -> MutualInformation:
    """Return the term for a classifier of images of this shape."""
    torch.manual_seed(0)
    target = interpkit.wrap(nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 3)), shape)
    return MutualInformation(target, MutualInformation.Options(**options))


def batch_of(images: Tensor, latent: Tensor) -> interpkit.InversionBatch:
    """Return a batch with these images and latents; the term reads nothing else."""
    labels, target = torch.zeros(len(images), dtype=torch.int64), interpkit.wrap(nn.Linear(1, 2), (1,))
    nothing = torch.zeros(len(images), 0)
    return interpkit.InversionBatch(
        target=target,
        condition=interpkit.Condition(labels, nothing, nothing),
        latent=latent,
        images=images,
        progress=0.0,
        response=interpkit.Response(nothing, {"none": nothing}, "none"),
    )


def nats_of(loss: MutualInformation, images: Tensor, latent: Tensor) -> float:
    """Return the bound on the information that these images contain about these latents, in nats."""
    bound: Tensor = loss(batch_of(images, latent))
    return -bound.item()


def guess(loss: MutualInformation, slope: float, mean: float, variance: float) -> None:
    """Make the recognizer of one number predict ``slope * x + mean``, with this variance."""
    linear = nn.Linear(1, 2)
    raw = math.log(math.expm1(variance - SMALLEST_VARIANCE))
    linear.weight.data, linear.bias.data = torch.tensor([[slope], [0.0]]), torch.tensor([mean, raw])
    loss.recognizer.network = nn.Sequential(linear)


def test_the_value_equals_the_one_computed_by_hand() -> None:
    """One code, Q = N(1, 1/4), z = 0 and 2: squares 1 and 1 over 1/4, so minus (4 - log 4 - 1) / 2."""
    loss = make((1,), codes=1, noise=0)
    guess(loss, slope=0, mean=1, variance=0.25)
    value = nats_of(loss, torch.zeros(2, 1), torch.tensor([[0.0], [2.0]]))
    assert value == pytest.approx((math.log(4) - 3) / 2, rel=1e-5)


@pytest.mark.parametrize("rho", [0.3, 0.9])
def test_the_bound_is_the_mutual_information_under_the_true_posterior_and_less_under_others(rho: float) -> None:
    """Two normal numbers with correlation rho share -log(1 - rho^2) / 2 nats; the posterior is N(rho x, 1 - rho^2)."""
    torch.manual_seed(1)
    z, rest = torch.randn(2, 200_000, 1)
    x = rho * z + math.sqrt(1 - rho**2) * rest
    shared = -math.log(1 - rho**2) / 2
    loss = make((1,), codes=1, noise=0)
    guess(loss, slope=rho, mean=0, variance=1 - rho**2)
    assert nats_of(loss, x, z) == pytest.approx(shared, abs=0.01)
    for slope, mean, spread in [(0, 0, 1), (rho, 0.5, 1), (0.5 * rho, 0, 1), (rho, 0, 2), (rho, 0, 0.5)]:
        guess(loss, slope, mean, spread * (1 - rho**2))
        assert nats_of(loss, x, z) < shared - 0.005


def test_training_reaches_the_capacity_of_the_noisy_channel_and_no_more() -> None:
    """A number observed through noise s transmits log(1 + 1/s^2) / 2 nats (Shannon)."""
    noise, codes = 0.5, 2
    loss = make((codes,), codes=codes, noise=noise, hidden=32)
    optimizer = torch.optim.Adam(loss.parameters(), lr=5e-3)
    for _ in range(300):
        z = torch.randn(128, codes)
        value = loss(batch_of(z, z))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    z = torch.randn(50_000, codes)
    capacity = codes * math.log(1 + 1 / noise**2) / 2
    assert 0.93 * capacity < nats_of(loss, z, z) < capacity + 0.02


def test_a_collapsed_generator_scores_zero() -> None:
    """If all pictures are equal, the best prediction is N(0, 1), which is worth 0 nats."""
    torch.manual_seed(2)
    loss = make((1,), codes=1, noise=0)
    for mean, variance in [(0, 1), (0, 0.7), (0, 1.4), (0.3, 1)]:
        guess(loss, 0, mean, variance)
        nats = nats_of(loss, torch.full((100_000, 1), 0.4), torch.randn(100_000, 1))
        assert nats <= 0.01
        assert (nats > -0.01) == ((mean, variance) == (0, 1))


def test_patterns_finer_than_a_field_do_not_count() -> None:
    """Stripes within a field of 4 x 4 pixels do not change the term; brightness does."""
    loss, latent = make((1, 28, 28), noise=0), torch.randn(6, 8)
    images = torch.full((6, 1, 28, 28), 0.5)
    stripes = 0.4 * (-1.0) ** torch.arange(28)
    plain, striped, brighter = (nats_of(loss, x, latent) for x in (images, images + stripes, images + 0.4))
    assert striped == pytest.approx(plain, rel=1e-4)
    assert abs(brighter - plain) > 1e-3


def test_only_the_codes_are_predicted_or_all_of_a_shorter_latent() -> None:
    """Numbers beyond ``codes`` do not matter; a latent of two numbers is accepted with eight codes."""
    images, latent = torch.rand(5, 1, 9, 9), torch.randn(5, 6)
    loss = make((1, 9, 9), codes=4, noise=0)
    other = torch.cat([latent[:, :4], torch.randn(5, 2)], 1)
    assert nats_of(loss, images, latent) == nats_of(loss, images, other)
    short = loss(batch_of(images, latent[:, :2]))
    mean, variance = loss.recognizer(loss.recognizer.average(images))
    expected = ((latent[:, :2] - mean[:, :2]) ** 2 / variance[:, :2] + variance[:, :2].log() - 1).sum(1).mean() / 2
    torch.testing.assert_close(short, expected)


@pytest.mark.parametrize(
    ("shape", "fields"),
    [((1, 28, 28), 49), ((3, 32, 32), 192), ((5, 17, 40), 5 * 6 * 8), ((3, 224, 224), 192), ((1, 1, 3), 3), ((7,), 7)],
)
def test_any_shape_is_averaged_into_at_most_eight_by_eight_fields(shape: tuple[int, ...], fields: int) -> None:
    """Fields consist of whole pixels, and the smaller ones at the border are averages like all others."""
    loss = make(shape)
    averages = loss.recognizer.average(torch.full((2, *shape), 0.25))
    torch.testing.assert_close(averages, torch.full((2, fields), 0.25))
    images = torch.rand(2, *shape, requires_grad=True)
    loss(batch_of(images, torch.randn(2, 8))).backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())


@pytest.mark.parametrize("generators", [1, 2])
def test_the_preset_combines_with_vecmat(tiny_target: interpkit.Target, generators: int) -> None:
    """``--preset vecmat --preset infogan``, with one generator and with two."""
    inversion = interpkit.invert(
        tiny_target, plugins=["vecmat", "infogan"], steps=3, batch_size=6, generators=generators, device="cpu"
    )
    assert set(inversion.history[-1].terms) == {"kl", "ce", "cosine", "infogan"}
    images, _ = inversion.sample(per_class=2)
    assert images.shape[1:] == tiny_target.input_shape
