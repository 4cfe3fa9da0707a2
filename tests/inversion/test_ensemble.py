"""Several generators in one run: which makes which image, in training, in sampling and on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import interpkit
from interpkit import Condition, ConditionSpec, Generator, GeneratorInversion, RunError, UsageError
from interpkit.api.invert import prepare
from interpkit.interfaces import contracts
from interpkit.inversion.ensemble import Ensemble

Quick = Callable[..., dict[str, Any]]
load = safetensors.torch.load_file


class Painter(Generator):
    """Writes into its four pixels: its number, the latent, the condition's vector and the condition's map."""

    name = "painter"
    latent_dim = 1

    def __init__(self, number: int) -> None:
        super().__init__(ConditionSpec(1, 1, 1), (1, 1, 4))
        self.number = number
        self.sizes: list[int] = []
        self.level = 0.5

    def start_at(self, level: float) -> None:
        self.level = level

    def forward(self, latent: Tensor, condition: Condition) -> Tensor:
        self.sizes.append(len(latent))
        assert len(condition.labels) == len(condition.distribution) == len(latent)
        number = torch.full_like(latent, self.number)
        return torch.cat([number, latent, condition.vector, condition.maps(1, 1).flatten(1)], 1).view(-1, 1, 1, 4)


def asked(count: int) -> tuple[Tensor, Condition]:
    """Return latents 100, 101, ... and conditions with vectors 200, 201, ... and maps 300, 301, ..."""
    rows = torch.arange(count).float()[:, None]
    maps = (300 + rows)[:, :, None, None]
    condition = Condition(torch.arange(count), torch.eye(count), 200 + rows, lambda h, w: maps.expand(-1, -1, h, w))
    return 100 + rows, condition


# ------------------------------------------------------------------------------------ which member makes which image


@given(members=st.integers(1, 5), data=st.data())
def test_each_image_is_generated_by_the_named_member_from_its_own_latent_and_condition(
    members: int, data: st.DataObject
) -> None:
    made_by = data.draw(st.lists(st.integers(0, members - 1), min_size=1, max_size=12))
    ensemble = Ensemble([Painter(number) for number in range(members)])
    images = ensemble(*asked(len(made_by)), torch.tensor(made_by))
    assert images.flatten(1).tolist() == [[who, 100 + i, 200 + i, 300 + i] for i, who in enumerate(made_by)]
    # A member without an image does not run: batch norm does not support an empty batch.
    assert [sum(member.sizes) for member in ensemble.members] == [made_by.count(who) for who in range(members)]  # type: ignore[arg-type]
    assert all(len(member.sizes) == (number in made_by) for number, member in enumerate(ensemble.members))  # type: ignore[arg-type]


@pytest.mark.parametrize(("members", "count"), [(1, 3), (2, 4), (3, 7)])
def test_ensemble_members_take_turns_by_default(members: int, count: int) -> None:
    images = Ensemble([Painter(number) for number in range(members)])(*asked(count))
    assert images[:, 0, 0, 0].tolist() == [i % members for i in range(count)]
    assert images[:, 0, 0, 1].tolist() == [100 + i for i in range(count)]


def test_an_ensemble_has_the_sizes_of_its_members_and_starts_each_at_the_given_level() -> None:
    painters = [Painter(0), Painter(1)]
    ensemble = Ensemble(painters)
    assert (ensemble.spec, ensemble.input_shape, ensemble.latent_dim) == (ConditionSpec(1, 1, 1), (1, 1, 4), 1)
    ensemble.start_at(0.1)
    assert [painter.level for painter in painters] == [0.1, 0.1]


def test_only_a_generator_with_several_members_receives_the_member_of_each_image() -> None:
    member = torch.tensor([1, 1, 0])
    pair = contracts.images(Ensemble([Painter(0), Painter(1)]), *asked(3), member)
    alone = contracts.images(Painter(5), *asked(3), member)  # whose forward does not accept this argument
    assert pair[:, 0, 0, 0].tolist() == [1, 1, 0]
    assert alone[:, 0, 0, 0].tolist() == [5, 5, 5]


# ----------------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def pair_run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, quick: Quick) -> Path:
    """Return a run of two generators, 6 steps, sampled in chunks of 5 images."""
    folder = tmp_path_factory.mktemp("pair")
    interpkit.invert(tiny_model, out=folder, **pair(quick))
    return folder


def pair(quick: Quick, **changes: Any) -> dict[str, Any]:
    return quick(**{"steps": 6, "generators": 2, "options": {"sampling.chunk": 5}} | changes)


def loaded(folder: Path) -> GeneratorInversion:
    inversion = interpkit.load_inversion(folder)
    assert isinstance(inversion, GeneratorInversion)
    return inversion


def test_ensemble_members_have_different_initial_weights_and_all_of_them_learn(tiny_model: Path, quick: Quick) -> None:
    def weights(**changes: Any) -> list[dict[str, Tensor]]:
        inversion = interpkit.invert(tiny_model, **pair(quick, steps=1, generators=3, **changes))
        assert isinstance(inversion, GeneratorInversion) and isinstance(inversion.generator, Ensemble)
        return [dict(member.named_parameters()) for member in inversion.generator.members]

    first = weights(options={"optimizer.lr": 1e-12})
    name = next(name for name, tensor in first[0].items() if tensor.dim() == 4)
    assert len({tuple(member[name].flatten().tolist()) for member in first}) == 3
    for before, after in zip(first, weights(options={"optimizer.lr": 0.01}), strict=True):
        assert all((after[name] - tensor).abs().max() > 1e-6 for name, tensor in before.items())


def test_generators_that_alternate_train_one_after_the_other_on_whole_batches(tiny_model: Path, quick: Quick) -> None:
    def weights(steps: int) -> list[Tensor]:
        options = {"inverter.alternate": True, "optimizer.lr": 0.01, "optimizer.decay": 0.0}
        inversion = interpkit.invert(tiny_model, **pair(quick, steps=steps, generators=2, options=options))
        assert isinstance(inversion, GeneratorInversion) and isinstance(inversion.generator, Ensemble)
        return [torch.cat([p.flatten() for p in member.parameters()]) for member in inversion.generator.members]

    one, two, three = weights(1), weights(2), weights(3)
    assert not torch.equal(one[0], three[0]) and torch.equal(one[0], two[0])
    assert not torch.equal(one[1], two[1]) and torch.equal(two[1], three[1])


def test_a_batch_too_small_for_all_generators_is_refused_with_a_fix(
    tmp_path: Path, tiny_model: Path, quick: Quick
) -> None:
    with pytest.raises(UsageError, match=r"5 generators share a batch of 8; .*batch_size=10 or more"):
        interpkit.invert(tiny_model, out=tmp_path / "run", **quick(generators=5))
    assert not (tmp_path / "run").exists()
    enough = interpkit.invert(tiny_model, **quick(generators=4, steps=1))  # two images each
    assert enough.steps_done == 1


@pytest.mark.parametrize("generators", [0, -1, 1001])
def test_zero_generators_and_more_than_a_thousand_are_refused(tiny_model: Path, quick: Quick, generators: int) -> None:
    with pytest.raises(UsageError, match=f"generators = {generators} is not valid"):
        prepare(tiny_model, ["vecmat"], batch_size=5000, generators=generators)


def test_a_run_with_one_generator_does_not_change(
    finished_run: Path, tmp_path: Path, tiny_model: Path, quick: Quick
) -> None:
    inversion = interpkit.invert(tiny_model, out=tmp_path, **quick(generators=1))
    assert isinstance(inversion, GeneratorInversion) and not isinstance(inversion.generator, Ensemble)
    one, usual = load(tmp_path / "generator.safetensors"), load(finished_run / "generator.safetensors")
    assert not any("members" in name for name in one)
    assert one.keys() == usual.keys() and all(torch.equal(one[name], usual[name]) for name in one)
    assert load(tmp_path / "samples.safetensors")["generator"].tolist() == [0] * 300
    assert inversion.draw(count=4).generator.tolist() == [0] * 4


# ----------------------------------------------------------------------------------------------- sampling


def test_each_class_is_drawn_by_every_generator_in_turn_also_across_chunks(pair_run: Path) -> None:
    inversion = loaded(pair_run)
    drawn = inversion.draw(per_class=5)
    assert drawn.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert drawn.generator.tolist() == [0, 1, 0, 1, 0] * 3
    drawn = inversion.draw(count=8)
    assert (drawn.labels.tolist(), drawn.generator.tolist()) == ([0, 1, 2, 0, 1, 2, 0, 1], [0, 0, 0, 1, 1, 1, 0, 0])
    drawn = inversion.draw(per_class=3, labels=[2])
    assert (drawn.labels.tolist(), drawn.generator.tolist()) == ([2, 2, 2], [0, 1, 0])


def test_the_generator_column_names_the_member_that_made_the_image(pair_run: Path) -> None:
    inversion = loaded(pair_run)
    assert isinstance(inversion.generator, Ensemble)
    for number, member in enumerate(inversion.generator.members):  # from now on all its images have one gray
        assert isinstance(member, Generator)
        last: Any = member.to_image[-2]  # type: ignore[index]
        nn.init.zeros_(last.weight)
        member.start_at(0.25 + 0.5 * number)
    drawn = inversion.draw(per_class=7)
    assert torch.allclose(drawn.images.mean((1, 2, 3)), 0.25 + 0.5 * drawn.generator.float(), atol=1e-6)
    assert set(drawn.generator.tolist()) == {0, 1}


def test_a_larger_draw_only_adds_to_a_smaller_one_of_the_same_generators(pair_run: Path) -> None:
    inversion = loaded(pair_run)
    many = inversion.draw(count=13)
    for count in (1, 5, 6, 12):
        few = inversion.draw(count=count)
        assert torch.equal(few.images, many.images[:count]) and torch.equal(few.generator, many.generator[:count])


# ------------------------------------------------------------------------------------------------ on disk


def test_a_run_of_two_generators_keeps_both_and_records_which_made_each_sample(pair_run: Path) -> None:
    assert loaded(pair_run).recipe.generators == 2
    weights, samples = load(pair_run / "generator.safetensors"), load(pair_run / "samples.safetensors")
    assert {".".join(name.split(".")[:3]) for name in weights if name.startswith("generator.")} == {
        "generator.members.0",
        "generator.members.1",
    }
    assert samples["generator"].dtype == torch.int64
    assert samples["generator"].tolist() == [0, 1] * 150


def test_a_loaded_run_of_two_generators_samples_as_the_one_in_memory(
    tmp_path: Path, tiny_model: Path, quick: Quick, pair_run: Path
) -> None:
    inversion = interpkit.invert(tiny_model, **pair(quick))
    inversion.save(tmp_path)
    for folder in (tmp_path, pair_run):
        one, other = inversion.draw(per_class=4), loaded(folder).draw(per_class=4)
        assert torch.equal(one.images, other.images) and torch.equal(one.generator, other.generator)
    stored = load(pair_run / "samples.safetensors")["images"]
    again = (loaded(pair_run).draw(per_class=100).images * 255).round().to(torch.uint8)
    assert torch.equal(again, stored)


@pytest.mark.parametrize("step", [1, 4])
def test_a_run_of_two_generators_is_resumed_bit_for_bit(
    tmp_path: Path, tiny_model: Path, quick: Quick, pair_run: Path, step: int
) -> None:
    settings = pair(quick)
    job = prepare(tiny_model, settings.pop("plugins"), **settings)
    job.run(out=tmp_path, on_step=lambda done: job.request_stop() if done == step else None)
    interpkit.invert(tiny_model, out=tmp_path, resume=True)
    assert json.loads((tmp_path / "manifest.json").read_text())["resumed_from"] == step
    for name in ("generator.safetensors", "samples.safetensors"):
        one, whole = load(tmp_path / name), load(pair_run / name)
        assert one.keys() == whole.keys() and all(torch.equal(one[key], whole[key]) for key in one), name


def test_another_number_of_generators_is_another_run(tmp_path: Path, tiny_model: Path, pair_run: Path) -> None:
    run = Path(shutil.copytree(pair_run, tmp_path / "run"))
    with pytest.raises(RunError, match=r"begun with another recipe: generators \(2 there\)"):
        interpkit.invert(tiny_model, out=run, resume=True, generators=3)
    recipe = (run / "recipe.toml").read_text()
    for other in (1, 3):
        (run / "recipe.toml").write_text(recipe.replace("generators = 2", f"generators = {other}"))
        with pytest.raises(RunError, match=r"generator\.safetensors does not fit the recipe"):
            interpkit.load_inversion(run)
