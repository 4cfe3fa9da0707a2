"""The inverter `min`: the reweighting by hand, scores asked for and made, pictures that do not suffice, and runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interpkit_min import Min, MinInversion, Score
from interpkit_min.critic import Critic
from interpkit_min.scores import log_odds, reweighted
from torch import Tensor, nn

import interpkit
from interpkit import Recipe, Target, UsageError
from interpkit.testing.toy_models import PlainGenerator, Pictures, tiny_target


@pytest.fixture
def public(tmp_path: Path) -> str:
    images, _ = Pictures((1, 12, 12), 3).draw(90, 1)
    np.savez(tmp_path / "public.npz", images=images.numpy())
    return str(tmp_path / "public.npz")


def invert(target: Target, public: str, **settings: Any) -> MinInversion:
    options = {"min.data": public, "min.width": 4, "generator.width": 8} | settings.pop("options", {})
    steps = settings.pop("steps", 3)
    inversion = interpkit.invert(
        target, inverter="min", options=options, steps=steps, batch_size=12, device="cpu", **settings
    )
    assert isinstance(inversion, MinInversion)
    return inversion


# ------------------------------------------------------------------------------------------- scores


def test_the_score_is_the_log_odds_of_the_class() -> None:
    target = interpkit.wrap(nn.Identity(), input_shape=(3,))
    logits = torch.tensor([[2.0, 0.5, -1.0], [0.0, 0.0, 0.0]])
    labels = torch.tensor([0, 2])
    p = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    assert torch.allclose(log_odds(target, logits, labels), (p / (1 - p)).log())
    yes_or_no = interpkit.wrap(nn.Identity(), input_shape=(3,), output="sigmoid_logits")
    assert log_odds(yes_or_no, logits, labels).tolist() == [2.0, 0.0]


def test_the_reweighting_is_the_published_one() -> None:
    scores = torch.tensor([0.0] * 6 + [10.0] * 3 + [20.0])
    found = reweighted(scores)
    assert found.edges.tolist() == pytest.approx([float(edge) for edge in range(21)])
    shares = {0: 0.6, 10: 0.3, 19: 0.1}  # of the scores, by bin
    temperature = 20.0 - 11.0  # from the largest to the 90 % quantile
    raw = {b: math.exp((b + 1 - 20) / temperature) * h / (h + 0.001) for b, h in shares.items()}
    p = {b: value / sum(raw.values()) for b, value in raw.items()}
    assert {b: float(s) for b, s in enumerate(found.shares) if s > 0} == pytest.approx(p)
    assert found.weights.tolist() == pytest.approx([p[0] / 0.6] * 6 + [p[10] / 0.3] * 3 + [min(5.0, p[19] / 0.1)])


def test_no_picture_weighs_more_than_five() -> None:
    scores = torch.cat([torch.linspace(0, 1, 200), torch.tensor([30.0])])
    weights = reweighted(scores).weights
    assert weights[-1] == 5.0 and (weights[:-1] < 1).all()


def test_scores_all_alike_are_weighted_alike() -> None:
    found = reweighted(torch.full((8,), 3.0))
    assert found.weights.unique().numel() == 1 and found.shares.sum().item() == pytest.approx(1)


def test_most_scores_asked_for_are_among_the_highest_or_above_them() -> None:
    conditioner = Score(2, (4,))
    learned = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    conditioner.learn(1, learned)
    asked = conditioner.ask(torch.ones(2000, dtype=torch.int64), torch.Generator().manual_seed(1))
    assert (asked > learned.quantile(0.9)).float().mean() > 0.7
    assert (asked > learned.max()).any()


def test_the_vector_is_the_label_and_the_score_in_standard_deviations() -> None:
    conditioner = Score(2, (4,))
    conditioner.learn(0, torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    vector = conditioner.at(torch.tensor([0, 1]), torch.tensor([3.0 + 2.5**0.5, 7.0])).vector
    assert torch.allclose(vector, torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 7.0]]))


# ------------------------------------------------------------------------------------------- critic


@pytest.mark.parametrize("shape", [(6,), (1, 2, 2), (1, 28, 28), (3, 17, 40)])
def test_the_critic_judges_images_of_any_size(shape: tuple[int, ...]) -> None:
    real, scores = Critic(shape, 4, 3, 8)(torch.rand(5, *shape), torch.tensor([0, 1, 2, 0, 1]), torch.rand(5, 4))
    assert real.shape == scores.shape == (5,)


# ---------------------------------------------------------------------------------------- inference


class Latents(PlainGenerator):
    """Two pixels, each the sigmoid of a latent: an inverse map that ignores what is asked for."""

    latent_dim = 2

    def forward(self, latent: Tensor, condition: interpkit.Condition) -> Tensor:
        return latent.sigmoid()


def asking(inference: str, tries: int, target: Target | None = None) -> MinInversion:
    target = target or interpkit.wrap(nn.Linear(2, 2, bias=False), input_shape=(2,))
    module = next(target.modules_of_user()) if hasattr(target, "modules_of_user") else None
    del module
    conditioner = Score(2, (2,))
    generator = Latents(conditioner.spec, (2,))
    return MinInversion(
        target, Recipe(), [], generator, conditioner, inference=inference, tries=tries, empty={}
    )


def distance(inversion: MinInversion) -> float:
    scores = torch.linspace(-0.2, 0.2, 40)
    images, got = inversion.reach(torch.zeros(40, dtype=torch.int64), scores)
    with torch.no_grad():
        logits = inversion.target(images)
    assert torch.allclose(got, log_odds(inversion.target, logits, torch.zeros(40, dtype=torch.int64)))
    return (got - scores).abs().mean().item()


def test_each_inference_comes_nearer_to_what_is_asked_for() -> None:
    torch.manual_seed(0)
    target = interpkit.wrap(nn.Linear(2, 2, bias=False), input_shape=(2,))
    none = distance(asking("none", 8, target))
    selection = distance(asking("selection", 8, target))
    gradient = distance(asking("gradient", 8, target))
    assert gradient < selection < none
