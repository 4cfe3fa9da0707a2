"""`Inversion.sample` and `draw`: the order of images, and that the same arguments return the same images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import interpkit
from interpkit import Condition, Draw, GeneratorInversion, PluginError, RunError, UsageError

Quick = Callable[..., dict[str, Any]]


@pytest.fixture
def inversion(finished_run: Path) -> GeneratorInversion:
    loaded = interpkit.load_inversion(finished_run)
    assert isinstance(loaded, GeneratorInversion)
    return loaded


@pytest.fixture(scope="module")
def in_chunks(tiny_model: Path, quick: Quick) -> GeneratorInversion:
    """Return an inversion that draws its samples in chunks of 5."""
    result = interpkit.invert(tiny_model, **quick(steps=2, options={"sampling.chunk": 5}))
    assert isinstance(result, GeneratorInversion)
    return result


def test_per_class_is_sorted_by_class(inversion: GeneratorInversion) -> None:
    images, labels = inversion.sample(per_class=4)
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert images.shape == (12, 1, 12, 12) and images.dtype == torch.float32
    assert images.device.type == "cpu" and not images.requires_grad
    assert images.min() >= 0 and images.max() <= 1


def test_ten_images_per_class_are_the_default(inversion: GeneratorInversion) -> None:
    assert len(inversion.sample()[0]) == 30


def test_count_lets_the_classes_take_turns(inversion: GeneratorInversion) -> None:
    assert inversion.sample(count=7)[1].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert inversion.sample(count=2)[1].tolist() == [0, 1]
    assert inversion.sample(count=5, labels=[2, 1])[1].tolist() == [2, 1, 2, 1, 2]
    with pytest.raises(UsageError, match="labels name 2 more than once"):
        inversion.sample(count=5, labels=[2, 1, "2"])


def test_per_class_and_count_give_the_same_images_in_another_order(in_chunks: GeneratorInversion) -> None:
    by_class, _ = in_chunks.sample(per_class=4)
    in_turns, _ = in_chunks.sample(count=12)
    assert torch.equal(by_class.view(3, 4, -1), in_turns.view(4, 3, -1).transpose(0, 1))


def test_a_larger_count_only_adds(in_chunks: GeneratorInversion) -> None:
    many, _ = in_chunks.sample(count=23)
    for count in (1, 4, 5, 6, 22):
        assert torch.equal(in_chunks.sample(count=count)[0], many[:count])


def test_a_larger_per_class_only_adds(in_chunks: GeneratorInversion) -> None:
    many = in_chunks.sample(per_class=9)[0].view(3, 9, 1, 12, 12)
    for per_class in (1, 2, 8):
        few = in_chunks.sample(per_class=per_class)[0].view(3, per_class, 1, 12, 12)
        assert torch.equal(few, many[:, :per_class])


def test_all_samples_differ_also_across_chunks(in_chunks: GeneratorInversion) -> None:
    images = in_chunks.sample(count=20)[0].flatten(1)
    assert len(images.unique(dim=0)) == 20


def test_the_same_arguments_return_the_same_images_and_another_seed_others(inversion: GeneratorInversion) -> None:
    one, two, other = (inversion.sample(per_class=2, seed=seed)[0] for seed in (5, 5, 6))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_the_recipes_seed_is_the_default(inversion: GeneratorInversion) -> None:
    assert torch.equal(inversion.sample(count=3)[0], inversion.sample(count=3, seed=inversion.recipe.seed)[0])


def test_a_subset_of_the_classes_is_sampled_in_the_order_given(inversion: GeneratorInversion) -> None:
    images, labels = inversion.sample(per_class=2, labels=[2, 0])
    assert labels.tolist() == [2, 2, 0, 0]
    assert len(images) == 4


def test_a_sample_is_the_images_and_labels_of_the_draw(in_chunks: GeneratorInversion) -> None:
    for asked in ({"per_class": 3}, {"count": 8, "labels": [2, 1]}, {"count": 4, "seed": 7, "dropout": False}):
        images, labels = in_chunks.sample(**asked)  # type: ignore[arg-type]
        drawn = in_chunks.draw(**asked)  # type: ignore[arg-type]
        assert torch.equal(drawn.images, images) and torch.equal(drawn.labels, labels)


@pytest.mark.parametrize("asked", [{"count": 12}, {"per_class": 4}, {"count": 7, "labels": [2, 0]}], ids=str)
def test_a_draw_keeps_the_conditions_that_its_images_were_made_for(
    in_chunks: GeneratorInversion, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    conditions: list[Condition] = []
    sample = in_chunks.conditioner.sample

    def recorded(*arguments: Any, **named: Any) -> Condition:
        conditions.append(sample(*arguments, **named))
        return conditions[-1]

    monkeypatch.setattr(in_chunks.conditioner, "sample", recorded)
    drawn = in_chunks.draw(**asked)
    total = len(drawn.labels)
    assert drawn.distribution.shape == (total, 3) and drawn.distribution.dtype == torch.float32
    assert torch.equal(drawn.distribution.argmax(1), drawn.labels)
    assert torch.allclose(drawn.distribution.sum(1), torch.ones(total))
    assert len(drawn.distribution.unique(dim=0)) == total  # soft, and another for each image
    in_turns = torch.cat([condition.distribution for condition in conditions])[:total]
    order = torch.arange(total).view(4, 3).T.flatten() if "per_class" in asked else torch.arange(total)
    assert torch.equal(drawn.distribution, in_turns[order])
    assert drawn.generator.tolist() == [0] * total


def test_the_distribution_of_a_label_that_is_embedded_is_one_hot(tiny_model: Path, quick: Quick) -> None:
    inversion = interpkit.invert(tiny_model, **quick(steps=1, conditioner="label"))
    assert torch.equal(inversion.draw(count=4).distribution, torch.eye(3)[[0, 1, 2, 0]])


def a_draw(*numbers: int) -> Draw:
    """Return a draw in which all columns contain the row number."""
    rows = torch.tensor(numbers)
    return Draw(
        rows.float().view(-1, 1, 1, 1).expand(-1, 1, 2, 2), rows, rows.float()[:, None].expand(-1, 3), rows + 10
    )


def rows_of(draw: Draw) -> list[int]:
    """Return the row numbers of a draw; all columns must agree."""
    numbers = draw.labels.tolist()
    assert draw.images.shape == (len(numbers), 1, 2, 2) and draw.distribution.shape == (len(numbers), 3)
    assert draw.images[:, 0, 1, 1].tolist() == draw.distribution[:, 2].tolist() == numbers
    assert draw.generator.tolist() == [number + 10 for number in numbers]
    return numbers


def test_indexing_a_draw_selects_rows_of_all_its_parts() -> None:
    draw = a_draw(0, 1, 2, 3)
    assert rows_of(draw[1:3]) == [1, 2]
    assert rows_of(draw[:0]) == []
    assert rows_of(draw[torch.tensor([3, 0, 3])]) == [3, 0, 3]
    assert rows_of(draw[draw.labels > 1]) == [2, 3]


def test_draws_are_joined_one_after_another() -> None:
    assert rows_of(Draw.join([a_draw(4, 2), a_draw(), a_draw(7)])) == [4, 2, 7]
    assert rows_of(Draw.join([a_draw(5)])) == [5]


def test_dropout_is_on_as_the_recipe_says_and_off_on_request(inversion: GeneratorInversion) -> None:
    usual, on, off = (inversion.sample(count=6, dropout=dropout)[0] for dropout in (None, True, False))
    assert inversion.recipe.sampling.dropout
    assert torch.equal(usual, on)
    assert not torch.equal(on, off)
    assert torch.equal(off, inversion.sample(count=6, dropout=False)[0])


def test_batch_norm_is_in_eval_mode_so_a_sample_does_not_depend_on_its_neighbors(
    inversion: GeneratorInversion,
) -> None:
    """Requesting other classes in the other rows of a chunk does not change this row."""
    inversion.generator.train()
    one, _ = inversion.sample(count=4, labels=[0, 1], dropout=False)
    two, _ = inversion.sample(count=4, labels=[0, 2], dropout=False)
    assert torch.allclose(one[::2], two[::2], atol=1e-6)
    assert not torch.allclose(one[1::2], two[1::2], atol=1e-6)


def test_sampling_restores_the_mode_of_every_module(inversion: GeneratorInversion) -> None:
    parts = [*inversion.generator.modules(), *inversion.conditioner.modules()]
    inversion.generator.train()
    for part in parts[::3]:
        part.training = False
    before = [part.training for part in parts]
    inversion.sample(count=2)
    assert [part.training for part in parts] == before
    inversion.generator.latent_dim = 1  # now the generator fails
    with pytest.raises(PluginError, match="generator 'upconv' of the plugin 'vecmat' failed: RuntimeError"):
        inversion.sample(count=2)
    assert [part.training for part in parts] == before


def test_sampling_does_not_change_the_weights(inversion: GeneratorInversion) -> None:
    before = {name: tensor.clone() for name, tensor in inversion.generator.state_dict().items()}
    inversion.sample(count=8)
    assert all(torch.equal(before[name], tensor) for name, tensor in inversion.generator.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"labels": [3]}, r"labels \[3\] were not inverted; this inversion has 0 to 2"),
        ({"labels": [-1, 0]}, r"labels \[-1\]"),
        ({"labels": []}, "this inversion has 0 to 2"),
        ({"per_class": 2, "count": 3}, "not both"),
        ({"per_class": 0}, "at least one image"),
        ({"count": 0}, "at least one image"),
        ({"count": -3}, "at least one image"),
    ],
)
def test_wrong_arguments_are_refused(inversion: GeneratorInversion, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        inversion.sample(**arguments)


def test_a_class_that_was_not_inverted_cannot_be_sampled(tiny_model: Path, quick: Quick) -> None:
    inversion = interpkit.invert(tiny_model, **quick(steps=1, labels=[0, 2]))
    with pytest.raises(UsageError, match=r"labels \[1\] were not inverted; this inversion has \[0, 2\]"):
        inversion.sample(labels=[0, 1])


def test_an_inversion_in_memory_is_saved_and_loaded_as_it_was(
    in_chunks: GeneratorInversion, tmp_path: Path, tiny_model: Path
) -> None:
    folder = in_chunks.save(tmp_path / "deep" / "run")
    again = interpkit.load_inversion(folder)
    assert torch.equal(again.sample(count=7)[0], in_chunks.sample(count=7)[0])
    assert [r.loss for r in again.history] == [r.loss for r in in_chunks.history]
    assert again.recipe.to_toml() == in_chunks.recipe.to_toml()
    with pytest.raises(RunError, match="holds another run"):
        in_chunks.save(folder)
    assert in_chunks.save(folder, force=True) == folder


def test_an_inversion_has_its_classes_and_steps(inversion: GeneratorInversion) -> None:
    assert inversion.steps_done == 12
    assert inversion.classes == [0, 1, 2]
    assert inversion.device.type == "cpu"
    assert [record.step for record in inversion.history] == [1, 10, 12]
