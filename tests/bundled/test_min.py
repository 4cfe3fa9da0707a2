"""The inverter `min`: the reweighting by hand, scores asked for and made, pictures that do not suffice, and runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from interpkit_min import Min, MinInversion, Score
from interpkit_min.critic import Critic
from interpkit_min.scores import log_odds, reweighted
from torch import Tensor, nn

import interpkit
from interpkit import Recipe, Recorder, Target, UsageError
from interpkit.api.invert import Job, prepare
from interpkit.testing.inverters import run
from interpkit.testing.toy_models import PICTURES, Pictures, PlainGenerator, tiny_target


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


def test_a_warm_start_is_refused(public: str, tmp_path: Path) -> None:
    target = tiny_target()
    run = interpkit.invert(target, ["vecmat"], steps=2, batch_size=16, device="cpu").save(tmp_path / "run")
    with pytest.raises(UsageError, match="leave the warm start out"):
        invert(target, public, warm_start=str(run))


def test_labels_that_do_not_exclude_each_other_are_refused(public: str) -> None:
    target = interpkit.wrap(nn.Sequential(nn.Flatten(), nn.Linear(144, 3)), (1, 12, 12), output="sigmoid_logits")
    with pytest.raises(UsageError, match="of one class each, and those of Sequential do not exclude each other"):
        invert(target, public)


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
    edges, found_shares, weights = reweighted(scores)
    assert edges.tolist() == pytest.approx([float(edge) for edge in range(21)])
    shares = {0: 0.6, 10: 0.3, 19: 0.1}  # of the scores, by bin
    temperature = 20.0 - 11.0  # from the largest to the 90 % quantile
    raw = {b: math.exp((b + 1 - 20) / temperature) * h / (h + 0.001) for b, h in shares.items()}
    p = {b: value / sum(raw.values()) for b, value in raw.items()}
    rel = 1e-5 if torch.__version__ < (2, 7) else None  # torch 2.6 rounds more
    assert {b: float(s) for b, s in enumerate(found_shares) if s > 0} == pytest.approx(p, rel=rel)
    expected = [p[0] / 0.6] * 6 + [p[10] / 0.3] * 3 + [min(5.0, p[19] / 0.1)]
    assert weights.tolist() == pytest.approx(expected, rel=rel)


def test_no_picture_weighs_more_than_five() -> None:
    scores = torch.cat([torch.linspace(0, 1, 200), torch.tensor([30.0])])
    _, _, weights = reweighted(scores)
    assert weights[-1] == 5.0 and (weights[:-1] < 1).all()


def test_scores_all_alike_are_weighted_alike() -> None:
    _, shares, weights = reweighted(torch.full((8,), 3.0))
    assert weights.unique().numel() == 1 and shares.sum().item() == pytest.approx(1)


def test_most_scores_asked_for_are_among_the_highest_or_above_them() -> None:
    conditioner = Score(2, (4,))
    learned = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    conditioner.learn(1, learned)
    asked = conditioner.ask(torch.ones(2000, dtype=torch.int64), torch.Generator().manual_seed(1))
    assert (asked > learned.quantile(0.9)).float().mean() > 0.6
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


def made(inference: str, tries: int, target: Target) -> tuple[Tensor, Tensor]:
    """Return 40 scores asked for of class 0, and those of the images made for them."""
    conditioner = Score(2, (2,))
    inversion = MinInversion(
        target,
        Recipe(),
        [],
        Latents(conditioner.spec, (2,)),
        conditioner,
        inference=inference,
        tries=tries,
        empty={},
    )
    scores, labels = torch.linspace(-0.2, 0.2, 40), torch.zeros(40, dtype=torch.int64)
    images, got = inversion.reach(labels, scores)
    with torch.no_grad():
        assert torch.allclose(got, log_odds(target, target(images), labels))
    return scores, got


@pytest.fixture
def linear() -> Target:
    layer = nn.Linear(2, 2, bias=False)
    layer.load_state_dict({"weight": torch.tensor([[1.0, -1.0], [-1.0, 1.0]])})
    return interpkit.wrap(layer, input_shape=(2,))


def test_each_kind_of_inference_comes_nearer_to_the_score(linear: Target) -> None:
    apart = [
        (got - asked).abs().mean()
        for asked, got in (made(inference, 6, linear) for inference in ("gradient", "selection", "none"))
    ]
    assert apart[0] < apart[1] < apart[2]


def test_more_latents_never_make_an_image_worse(linear: Target) -> None:
    for inference in ("gradient", "selection"):
        asked, few = made(inference, 2, linear)
        _, many = made(inference, 5, linear)
        assert ((many - asked).abs() <= (few - asked).abs()).all()


def ranks_shown(got: Tensor, target: Target, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the rank correlation that the report shows for each class, of scores made for 0 to 39."""
    conditioner = Score(2, (2,))
    generator = Latents(conditioner.spec, (2,))
    inversion = MinInversion(target, Recipe(), [], generator, conditioner, inference="none", tries=1, empty={})
    monkeypatch.setattr(inversion, "compare", lambda label: torch.stack([torch.arange(40.0), got]))
    return [str(row[1]) for row in inversion.sections()[0].rows]


def test_scores_that_are_equal_share_their_rank_in_the_report(linear: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    for got in (torch.arange(40.0) // 20, -(torch.arange(40.0) // 10), torch.arange(40.0) % 3):
        expected = scipy.stats.spearmanr(torch.arange(40), got).statistic
        assert ranks_shown(got, linear, monkeypatch) == [f"{expected:.2f}"] * 2


def test_a_score_that_never_changes_has_a_dash_in_the_report(linear: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranks_shown(torch.full((40,), 2.0), linear, monkeypatch) == ["-", "-"]


def test_latents_are_selected_where_the_target_has_no_gradient(linear: Target) -> None:
    by_selection = made("selection", 4, linear)[1]
    linear.no_gradient = "it is quantized"
    assert torch.equal(made("gradient", 4, linear)[1], by_selection)


# --------------------------------------------------------------------------------------------- runs


def test_a_run_comes_back_from_its_folder_and_reports_its_scores(public: str, tmp_path: Path) -> None:
    target = tiny_target()
    inversion = invert(target, public, out=tmp_path / "run")
    again = interpkit.load_inversion(tmp_path / "run", target=target)
    assert isinstance(again, MinInversion) and (again.inference, again.tries) == ("gradient", 4)
    images, labels = inversion.sample(4)
    assert torch.equal(again.sample(4)[0], images) and labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    few, _ = inversion.sample(2)
    assert torch.equal(images[[0, 1, 4, 5, 8, 9]], few)
    assert torch.equal(again.compare(1), inversion.compare(1)) and inversion.compare(1).shape == (2, 40)
    report = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "Scores asked for and made" in report and "follow the classifier&#39;s gradient" in report


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_samples_and_scores_are_the_same_where_the_caller_has_switched_gradients_off(public: str, mode: Any) -> None:
    inversion = invert(tiny_target(), public)
    images, _ = inversion.sample(2)
    labels, asked = torch.tensor([0, 1, 2]), torch.zeros(3)
    made, scores = inversion.reach(labels, asked)
    with mode():
        assert torch.equal(inversion.sample(2)[0], images)
        again = inversion.reach(labels, asked)
    assert torch.equal(again[0], made) and torch.equal(again[1], scores)


def test_an_interrupted_run_resumes_bit_for_bit(public: str, tmp_path: Path) -> None:
    def job() -> Job:
        options = {"min.data": public, "min.width": 4, "generator.width": 8}
        return prepare(tiny_target(), inverter="min", options=options, steps=14, batch_size=12, device="cpu")

    whole, begun = job().run(), job()
    begun.run(out=tmp_path / "run", on_step=lambda step: begun.request_stop() if step == 7 else None)
    rest = job().run(out=tmp_path / "run", resume=True)
    assert isinstance(whole, MinInversion) and isinstance(rest, MinInversion) and rest.steps_done == 14
    assert all(torch.equal(tensor, rest.tensors()[name]) for name, tensor in whole.tensors().items())
    assert rest.history[-1].terms == whole.history[-1].terms
    assert rest.history[-1].inversion_accuracy == whole.history[-1].inversion_accuracy


def test_the_training_takes_no_gradient_of_the_target_and_counts_its_queries(public: str) -> None:
    target, asked = tiny_target(), 0
    forward = target.forward

    def counted(images: Tensor) -> Tensor:
        nonlocal asked
        assert not torch.is_grad_enabled()
        asked += len(images)
        return forward(images)

    target.forward = counted  # type: ignore[method-assign]
    run(Min, target, Recorder(12))
    assert asked == PICTURES + 2 * 16  # the toy pictures, and what is watched at the first and the tenth step
    with pytest.raises(UsageError, match="budget of 89 queries"):
        invert(tiny_target(), public, options={"min.budget": 89})


def test_a_class_that_the_target_sees_in_too_few_pictures_is_empty(tmp_path: Path) -> None:
    images, labels = Pictures((1, 12, 12), 3).draw(90, 1)
    np.savez(tmp_path / "two.npz", images=images[labels != 1].numpy())
    inversion = invert(tiny_target(), str(tmp_path / "two.npz"))
    assert list(inversion.empty) == [1] and inversion.classes == [0, 2]
    assert inversion.empty[1] == "the classifier assigns 0 of the 60 pictures to it, fewer than 5"


def test_classes_may_be_chosen(public: str) -> None:
    assert invert(tiny_target(), public, labels=[2, 0]).sample(1)[1].tolist() == [2, 0]


def test_pictures_of_too_few_of_each_class_are_refused(tmp_path: Path) -> None:
    images, _ = Pictures((1, 12, 12), 3).draw(6, 1)
    np.savez(tmp_path / "few.npz", images=images.numpy())
    with pytest.raises(UsageError, match=r"has too few pictures of each class.*Name more pictures"):
        invert(tiny_target(), str(tmp_path / "few.npz"))


def test_another_conditioner_is_refused(public: str) -> None:
    with pytest.raises(UsageError, match=r"the inverter 'min' requires its own conditioner.*conditioner='score'"):
        invert(tiny_target(), public, conditioner="vecmat")


def test_several_generators_are_refused(public: str) -> None:
    with pytest.raises(UsageError, match="trains one generator"):
        invert(tiny_target(), public, generators=2)


def test_vectors_are_inverted_too(tmp_path: Path) -> None:
    target = interpkit.wrap(nn.Linear(4, 2, bias=False), input_shape=(4,), mean=0.5)
    np.savez(tmp_path / "rows.npz", images=np.random.default_rng(0).random((60, 4), dtype=np.float32))
    options = {"min.data": str(tmp_path / "rows.npz")}
    inversion = interpkit.invert(target, inverter="min", options=options, steps=2, batch_size=8, device="cpu")
    assert inversion.recipe.generator is not None and inversion.recipe.generator.name == "dense"
    assert inversion.sample(2)[0].shape == (4, 4)
