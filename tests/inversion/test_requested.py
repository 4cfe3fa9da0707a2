"""Conditions that distinguish the requested classes alone, and recipes that do not ask for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from interpkit_vecmat.conditioners import LabelConditioner, VectorMatrixConditioner

import interpkit
from interpkit import GeneratorInversion
from interpkit.inversion.requested import RequestedClasses

Quick = Callable[..., dict[str, Any]]
CLASSES = [7, 2, 900]


def requested(cls: type[interpkit.Conditioner] = VectorMatrixConditioner) -> RequestedClasses:
    return RequestedClasses(cls(len(CLASSES), (1, 12, 12)), CLASSES, 1000)


def test_vectors_and_matrices_are_of_the_requested_classes_and_labels_of_the_target() -> None:
    conditioner = requested()
    assert conditioner.spec == interpkit.ConditionSpec(vector_dim=3, map_channels=1, map_size=3)
    drawn = conditioner.sample(3, labels=torch.tensor([900, 7, 2]))
    assert drawn.labels.tolist() == [900, 7, 2]
    assert drawn.vector.argmax(1).tolist() == [2, 0, 1]  # their places among the classes
    assert torch.equal(drawn.maps(3, 3)[0, 0], torch.tensor([[0.0, 0, 1], [0, 0, 1], [1, 1, 1]]))
    assert drawn.distribution.shape == (3, 1000)
    assert torch.equal(drawn.distribution[:, CLASSES], drawn.vector)
    assert drawn.distribution.sum(1).tolist() == pytest.approx([1, 1, 1])


def test_without_labels_the_requested_classes_are_drawn() -> None:
    drawn = requested().sample(200, rng=torch.Generator().manual_seed(0))
    assert set(drawn.labels.tolist()) == set(CLASSES)


def test_the_inner_conditioner_follows_the_training_and_is_trained() -> None:
    conditioner = requested(LabelConditioner)
    conditioner.progress = 0.5
    conditioner.sample(1)
    assert conditioner.inner.progress == 0.5
    assert [p.shape for p in conditioner.parameters()] == [(3, 32)]


@pytest.mark.parametrize(("labels", "width"), [([2, 0], 2), ([1], 2), ([1, 0, 2], 3), (None, 3)])
def test_a_run_conditions_on_the_classes_that_are_asked_for(
    labels: list[int] | None, width: int, tmp_path: Path, tiny_model: Path, quick: Quick
) -> None:
    inversion = interpkit.invert(tiny_model, out=tmp_path, **quick(steps=2, labels=labels))
    assert isinstance(inversion, GeneratorInversion) and inversion.conditioner.spec.vector_dim == width
    images, made_for = interpkit.load_inversion(tmp_path).sample(2)
    assert torch.equal(images, inversion.sample(2)[0])
    assert set(made_for.tolist()) == set(labels or range(3))


def test_a_recipe_that_does_not_say_conditions_on_all_classes_and_is_resumed_so(
    tmp_path: Path, tiny_model: Path, quick: Quick
) -> None:
    settings, older = quick(steps=2, labels=[2, 0]), tmp_path / "older.toml"
    interpkit.invert(tiny_model, out=tmp_path / "new", **settings)
    older.write_text((tmp_path / "new" / "recipe.toml").read_text().replace('conditions = "requested"\n', ""))
    inversion = interpkit.invert(tiny_model, out=tmp_path / "old", config=older)
    assert isinstance(inversion, GeneratorInversion) and inversion.conditioner.spec.vector_dim == 3
    longer = interpkit.invert(tiny_model, out=tmp_path / "old", resume=True, **(settings | {"steps": 3}))
    assert longer.steps_done == 3 and longer.recipe.conditions == "all"


def test_answers_are_conditioned_as_if_there_were_only_the_requested_classes() -> None:
    answers = torch.full((2, 1000), -9.0)
    answers[0, 2], answers[1, 900], answers[:, 5] = 4.0, 4.0, 8.0  # class 5 is not requested
    condition = requested().of_answers(answers)
    assert condition.labels.tolist() == [2, 900] and condition.vector.argmax(1).tolist() == [1, 2]
