"""The loss `disagreement`: its value by hand, its members from files and trained along, and what it refuses."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interpkit_ensemble import Disagreement
from interpkit_ensemble.members import load_members, network, random_fields, train_members
from torch import Tensor, nn

import interpkit
from interpkit import InversionBatch, LabelledImages, RunError, Target, UsageError, load_target, wrap
from interpkit.testing import toy_models

BatchOf = Callable[..., InversionBatch]
MakeModel = Callable[..., Path]
SHAPE, CLASSES = (1, 12, 12), 3


class Says(nn.Module):
    """Answers every image alike, with these probabilities."""

    def __init__(self, *probabilities: float) -> None:
        super().__init__()
        self.probabilities = torch.tensor(probabilities)

    def forward(self, images: Tensor) -> Tensor:
        return self.probabilities.log().expand(len(images), -1)


class SaysEach(Says):
    """Answers with these probabilities of labels that do not exclude each other."""

    def forward(self, images: Tensor) -> Tensor:
        return self.probabilities.logit().expand(len(images), -1)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    images, labels = toy_models.Pictures(SHAPE, CLASSES).draw(90, 1)
    np.savez(tmp_path / "toy.npz", images=images.numpy(), labels=labels.numpy())
    return tmp_path / "toy.npz"


@pytest.fixture
def two(tmp_path: Path, make_model: MakeModel) -> list[str]:
    """Return the files of two classifiers that differ from the tiny one."""
    return [str(make_model(tmp_path / f"{seed}.safetensors", seed=seed)) for seed in (1, 2)]


@pytest.fixture
def term(two: list[str], tiny_target: Target) -> Callable[..., Disagreement]:
    """Return a maker of terms whose members answer as given."""

    def make(*members: nn.Module, **options: Any) -> Disagreement:
        made = Disagreement(tiny_target, Disagreement.Options(members=two, **options))
        made.loaded, made.trained = [], nn.ModuleList(members)
        return made

    return make


def bits(*probabilities: float) -> float:
    return -sum(p * math.log(p) for p in probabilities if p)


def test_the_value_is_information_entropy_and_surprise_by_hand(
    term: Callable[..., Disagreement], batch_of: BatchOf
) -> None:
    members = (Says(0.9, 0.1), Says(0.3, 0.7))
    batch = batch_of(images=torch.zeros(3, *SHAPE), labels=torch.tensor([0, 0, 1]))
    entropy = bits(0.6, 0.4)
    information = entropy - (bits(0.9, 0.1) + bits(0.3, 0.7)) / 2
    surprise = -(2 * math.log(0.6) + math.log(0.4)) / 3
    assert term(*members, entropy=0, label=0)(batch).item() == pytest.approx(information, rel=1e-5)
    assert term(*members, entropy=2, label=0)(batch).item() == pytest.approx(information + 2 * entropy, rel=1e-5)
    assert term(*members, entropy=0, label=3)(batch).item() == pytest.approx(information + 3 * surprise, rel=1e-5)


def test_members_that_contradict_each_other_have_the_most_information_and_equal_ones_none(
    term: Callable[..., Disagreement], tiny_target: Target
) -> None:
    image = torch.zeros(1, *SHAPE)
    apart = term(Says(1.0, 1e-20), Says(1e-20, 1.0)).figures(tiny_target, image)
    alike = term(Says(0.5, 0.5), Says(0.5, 0.5)).figures(tiny_target, image)
    assert apart["mutual_information"].item() == pytest.approx(math.log(2), rel=1e-5)
    assert alike["mutual_information"].item() == pytest.approx(0, abs=1e-6)
    assert alike["entropy"].item() == pytest.approx(math.log(2), rel=1e-5)


def test_labels_that_do_not_exclude_each_other_have_an_entropy_each(term: Callable[..., Disagreement]) -> None:
    target = wrap(nn.Flatten(), input_shape=(3,), output="sigmoid_logits")
    found = term(SaysEach(0.5, 0.5, 0.9), SaysEach(0.5, 0.5, 0.9)).figures(target, torch.zeros(2, 3))
    assert found["entropy"].tolist() == pytest.approx([2 * math.log(2) + bits(0.9, 0.1)] * 2, rel=1e-5)


def test_members_are_trained_alike_each_time_without_touching_the_global_generator(tiny_target: Target) -> None:
    images, labels = toy_models.Pictures(SHAPE, CLASSES).draw(90, 1)
    before = torch.get_rng_state()
    one, other = (
        train_members(tiny_target, LabelledImages(images, labels), 2, 3, taught=False).state_dict() for _ in range(2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(one["0.0.weight"], one["1.0.weight"])


def test_trained_members_know_the_classes_and_are_unsure_of_anything_else(tiny_target: Target, data: Path) -> None:
    term = Disagreement(tiny_target, Disagreement.Options(data=str(data), train_members=2, steps=150))
    images, labels = toy_models.Pictures(SHAPE, CLASSES).draw(60, 2)
    with torch.no_grad():
        right = [(member(images).argmax(1) == labels).double().mean() for member in term.trained]
        known = term.figures(tiny_target, images)["entropy"]
        unknown = term.figures(tiny_target, random_fields(images, torch.Generator().manual_seed(0)))["entropy"]
    assert min(right) > 0.9
    assert unknown.mean() > 2 * known.mean()


def test_members_can_learn_the_targets_own_answers(tiny_target: Target) -> None:
    images, labels = toy_models.Pictures(SHAPE, CLASSES).draw(90, 1)
    opposite = LabelledImages(images, (labels + 1) % CLASSES)
    target = toy_models.tiny_target()
    with target.frozen():
        (member,) = train_members(target, opposite, 1, 150, taught=True)
    with torch.no_grad():
        assert (member(images).argmax(1) == target(images).argmax(1)).double().mean() > 0.9


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 224, 160), (2, 5, 40), (7,)])
def test_a_member_fits_any_shape(shape: tuple[int, ...]) -> None:
    member = network(shape, 4)
    assert member(torch.zeros(2, *shape)).shape == (2, 4)
    assert sum(weights.numel() for weights in member.parameters()) < 1_000_000


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({"num_classes": 4}, "has 4 classes"),
        ({"input_shape": [1, 10, 10]}, r"takes inputs of \(1, 10, 10\)"),
    ],
)
def test_a_member_with_other_classes_or_inputs_is_refused(
    made: dict[str, Any], words: str, tmp_path: Path, tiny_module: Any, tiny_target: Target, two: list[str]
) -> None:
    arguments = {"input_shape": list(SHAPE), "num_classes": CLASSES, "widths": [4], "hidden": 8} | made
    other = interpkit.save_target(
        interpkit.build_architecture("interpkit:cnn", arguments),
        tmp_path / "other.safetensors",
        architecture="interpkit:cnn",
        arch_args=arguments,
        input_shape=arguments["input_shape"],
    )
    with pytest.raises(UsageError, match=words):
        Disagreement(tiny_target, Disagreement.Options(members=[two[0], str(other)]))


def test_a_member_with_the_same_number_of_other_classes_is_refused(two: list[str], tiny_model: Path) -> None:
    target = load_target(tiny_model, class_names=["cat", "dog", "owl"])
    with pytest.raises(UsageError, match=r"has 3 classes \(class 0, class 1, class 2, ...\)"):
        Disagreement(target, Disagreement.Options(members=two))


def test_a_member_whose_names_are_the_targets_numbers_in_another_order_is_refused(
    two: list[str], tiny_model: Path, tiny_module: Callable[..., nn.Module], tmp_path: Path
) -> None:
    arguments = {"input_shape": list(SHAPE), "num_classes": CLASSES, "widths": [4], "hidden": 8}
    sorted_otherwise = interpkit.save_target(
        tiny_module(3),
        tmp_path / "other.safetensors",
        architecture="interpkit:cnn",
        arch_args=arguments,
        input_shape=SHAPE,
        class_names=["0", "10", "2"],
    )
    target = load_target(tiny_model, class_names=["0", "2", "10"])
    with pytest.raises(UsageError, match=r"has 3 classes \(0, 10, 2, ...\); tiny has 3 \(0, 2, 10, ...\)"):
        Disagreement(target, Disagreement.Options(members=[str(sorted_otherwise), two[0]]))


def test_a_member_of_signals_of_another_shape_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    target, other = (wrap(nn.Sequential(nn.Flatten(), nn.Linear(100, 3)), shape) for shape in ((2, 50), (50, 2)))
    monkeypatch.setattr("interpkit_ensemble.members.load_target", lambda path: other)
    with pytest.raises(UsageError, match=r"the member a takes inputs of \(50, 2\); Sequential takes \(2, 50\)"):
        load_members(["a", "b"], target)


def test_members_learn_of_units_only_the_answers(tiny_target: Target) -> None:
    data = LabelledImages(*toy_models.Pictures(SHAPE, CLASSES).draw(30, 1))
    units = interpkit.units(tiny_target, [f"{tiny_target.feature_layer}:0,1,2"])
    with pytest.raises(UsageError, match=r"are units, of which the images have no labels\. Set the option 'answers'"):
        train_members(units, data, 2, 1, taught=False)
    assert len(train_members(units, data, 2, 1, taught=True)) == 2


def test_data_without_an_image_of_a_class_are_refused_unless_the_answers_are_taught(tiny_target: Target) -> None:
    images, labels = toy_models.Pictures(SHAPE, CLASSES).draw(30, 1)
    some = LabelledImages(images[labels > 0], labels[labels > 0])
    with pytest.raises(UsageError, match=r"none shows class 0 \(1 missing\)"):
        train_members(tiny_target, some, 2, 1, taught=False)
    assert len(train_members(tiny_target, some, 2, 1, taught=True)) == 2


def test_an_ensemble_of_one_or_none_is_refused(two: list[str], tiny_target: Target, data: Path) -> None:
    for options in ({}, {"members": two[:1]}, {"data": str(data), "train_members": 1}):
        with pytest.raises(UsageError, match="an ensemble has at least two"):
            Disagreement(tiny_target, Disagreement.Options(**options))


def test_one_classifier_twice_and_the_target_itself_are_refused(
    two: list[str], tiny_model: Path, tiny_target: Target
) -> None:
    for members in ([two[0], two[0]], [two[0], str(tiny_model)]):
        with pytest.raises(UsageError, match="can never disagree"):
            Disagreement(tiny_target, Disagreement.Options(members=members))


def test_a_run_keeps_the_uncertainty_of_its_samples(tiny_model: Path, tmp_path: Path, data: Path) -> None:
    out = tmp_path / "run"
    settings = {"steps": 4, "data": data, "per_class": 2, "options": {"disagreement.steps": 20}}
    made = interpkit.invert(tiny_model, ["autoinverse"], out=out, **settings)
    images, _ = made.sample(2)
    rounded = (images * 255).round() / 255
    kept = interpkit.load_inversion(out).figures(rounded)  # trains the same members again
    again = made.figures(rounded)
    metrics = json.loads((out / "metrics.json").read_text("utf-8"))
    for name in ("mutual_information", "entropy"):
        assert torch.equal(kept[f"disagreement.{name}"], again[f"disagreement.{name}"])
        assert metrics["disagreement"][name] == pytest.approx(again[f"disagreement.{name}"].mean().item(), rel=1e-4)


def test_a_resumed_run_is_bit_for_bit_the_same(tiny_model: Path, tmp_path: Path, data: Path) -> None:
    settings = {"data": data, "per_class": 2, "options": {"disagreement.steps": 20, "optimizer.decay": 0}}
    whole = interpkit.invert(tiny_model, ["autoinverse"], out=tmp_path / "whole", steps=6, **settings)
    interpkit.invert(tiny_model, ["autoinverse"], out=tmp_path / "half", steps=3, **settings)
    resumed = interpkit.invert(tiny_model, ["autoinverse"], out=tmp_path / "half", steps=6, resume=True, **settings)
    assert whole.history[-1].terms == resumed.history[-1].terms


def test_a_run_is_not_resumed_with_members_that_have_changed(
    tiny_model: Path, tmp_path: Path, two: list[str], make_model: MakeModel
) -> None:
    settings = {"per_class": 1, "options": {"disagreement.members": two}}
    interpkit.invert(tiny_model, ["autoinverse"], out=tmp_path / "run", steps=2, **settings)
    make_model(Path(two[1]), seed=7)
    with pytest.raises(RunError, match=r"the data of losses\.disagreement\.data, has changed"):
        interpkit.invert(tiny_model, ["autoinverse"], out=tmp_path / "run", steps=4, resume=True, **settings)


def test_a_generator_is_trained_with_the_term(
    tiny_model: Path, two: list[str], quick: Callable[..., dict[str, Any]]
) -> None:
    settings = quick(options={"disagreement.members": two}, losses={"disagreement": 1.0})
    inversion = interpkit.invert(tiny_model, **settings)
    assert inversion.history[-1].terms["disagreement"] > 0
    assert set(inversion.figures(inversion.sample(2)[0])) == {"disagreement.entropy", "disagreement.mutual_information"}
