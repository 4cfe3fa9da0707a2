"""Recipes: TOML there and back, the rules of merging, precedence, and errors that name the nearest word."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import interpkit
from interpkit import PluginError, UsageError
from interpkit.api.invert import prepare
from interpkit.config.recipe import MAX_RECIPE_BYTES, Recipe, TargetOptions, compose, merge, read_toml, validated
from interpkit.errors import in_shell

Quick = Callable[..., dict[str, Any]]

keys = st.sampled_from(["a", "b", "c", "d"])
values = st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)
fragments = st.recursive(
    st.dictionaries(keys, values, max_size=3), lambda inner: st.dictionaries(keys, values | inner, max_size=3)
)

# ------------------------------------------------------------------------------------------------- TOML


def test_a_recipe_read_from_its_own_toml_is_the_same(tmp_path: Path) -> None:
    recipe = compose(
        [
            {
                "seed": 2**53,
                "labels": [2, 0],
                "checkpoint_every": 7,
                "conditioner": {"name": "vecmat", "temperature": 0.1 + 0.2},
                "losses": {"kl": {"weight": 0.3}, "my:loss": {"layers": ["a.b", 'quo"te']}},
                "target": {"class_names": ["ä", "b\n"], "arch_args": {"widths": [1, 2], "deep": {"x": True}}},
            }
        ]
    )
    (tmp_path / "recipe.toml").write_text(recipe.to_toml(), "utf-8")
    assert validated(Recipe, read_toml(tmp_path / "recipe.toml"), "the file") == recipe


def test_code_and_trust_are_to_be_typed_again() -> None:
    code = {"plugin_files": [{"path": "own plug.py", "sha256": ""}], "target": {"arch": "py:net.py:Net", "trust": True}}
    recipe = Recipe.model_validate(code)
    with in_shell():
        assert recipe.to_type_again() == ["--plugin 'own plug.py'", "--arch py:net.py:Net", "--trust"]
    assert Recipe(target=TargetOptions(arch="torchvision:resnet18")).to_type_again() == []


def test_the_default_recipe_has_no_word_for_none_in_toml(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(Recipe().to_toml())
    read = read_toml(tmp_path / "recipe.toml")
    assert "labels" not in read and "conditioner" not in read
    assert validated(Recipe, read, "the file") == Recipe()


@given(st.builds(Recipe, seed=st.integers(0, 2**63 - 1), steps=st.integers(1, 10**8), labels=st.none()))
def test_every_seed_survives_toml(recipe: Recipe) -> None:
    import tomllib

    assert Recipe.model_validate(tomllib.loads(recipe.to_toml())) == recipe


@pytest.mark.parametrize("content", [b"steps = ", b"\xff\xfe", b"steps = 1\nsteps = 2", b"[" * 5000])
def test_what_is_not_toml_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"recipe\.toml is not TOML"):
        read_toml(path)


def test_an_oversized_recipe_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("# " + "x" * MAX_RECIPE_BYTES)
    with pytest.raises(UsageError, match="larger than 1,000,000 bytes"):
        read_toml(path)


def test_a_missing_recipe_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(UsageError, match="cannot read the recipe"):
            read_toml(path)


# ------------------------------------------------------------------------------------------------ merge


def test_tables_are_merged_key_by_key_and_all_else_is_replaced() -> None:
    base = {"steps": 1, "labels": [1, 2], "optimizer": {"lr": 1, "decay": 0}}
    over = {"labels": [3], "optimizer": {"lr": 2}}
    assert merge(base, over) == {"steps": 1, "labels": [3], "optimizer": {"lr": 2, "decay": 0}}


def test_a_component_of_another_name_replaces_all_options_of_the_old() -> None:
    base = {"conditioner": {"name": "vecmat", "temperature": 1}}
    assert merge(base, {"conditioner": {"name": "label"}}) == {"conditioner": {"name": "label"}}
    kept = merge(base, {"conditioner": {"name": "vecmat", "max_side": 8}})
    assert kept == {"conditioner": {"name": "vecmat", "temperature": 1, "max_side": 8}}
    assert merge(base, {"conditioner": {"max_side": 8}}) == kept


def test_options_before_the_name_of_their_component_are_its_own() -> None:
    merged = merge({"generator": {"latent": 64}}, {"generator": {"name": "upconv", "width": 8}})
    assert merged == {"generator": {"latent": 64, "name": "upconv", "width": 8}}


@given(fragments)
def test_merging_with_nothing_or_itself_changes_nothing(fragment: dict[str, Any]) -> None:
    assert merge(fragment, {}) == merge({}, fragment) == merge(fragment, fragment) == fragment


@given(fragments, fragments)
def test_merging_leaves_both_fragments_alone_and_the_later_wins(one: dict[str, Any], two: dict[str, Any]) -> None:
    before = copy.deepcopy((one, two))
    merged = merge(one, two)
    assert (one, two) == before
    assert merged.keys() == one.keys() | two.keys()
    for key, value in two.items():
        if isinstance(value, dict):
            assert value.keys() <= merged[key].keys()
        else:
            assert merged[key] == value
    assert all(merged[key] == one[key] for key in one.keys() - two.keys())


@given(fragments, fragments, fragments)
def test_merging_a_layer_again_changes_nothing(one: dict[str, Any], two: dict[str, Any], more: dict[str, Any]) -> None:
    merged = merge(merge(one, two), more)
    assert merge(merged, more) == merged


def test_what_was_merged_shares_nothing_with_its_fragments() -> None:
    preset = {"losses": {"tv": {"layers": ["a"]}}}
    merged = merge({}, preset)
    merged["losses"]["tv"]["layers"].append("b")
    assert preset == {"losses": {"tv": {"layers": ["a"]}}}


# ------------------------------------------------------------------------------------------- precedence


def test_each_layer_wins_over_the_one_before(tmp_path: Path, tiny_model: Path) -> None:
    config = tmp_path / "mine.toml"
    config.write_text(
        'presets = ["vecmat"]\nsteps = 5\n[losses.kl]\nweight = 0.5\n[generator]\nname = "upconv"\nwidth = 9'
    )

    def recipe(*arguments: Any, **options: Any) -> Recipe:
        return prepare(tiny_model, *arguments, config=config, **options).recipe

    assert Recipe().steps == 300
    in_file = recipe()
    assert in_file.steps == 5  # file over default
    assert in_file.losses["kl"].weight == 0.5  # file over the preset it names
    assert in_file.losses["ce"].weight == 1.0  # the preset it names is applied
    assert recipe(["vecmat"]).losses["kl"].weight == 1.0  # preset typed over file
    assert recipe(["vecmat"]).generator.options["width"] == 9  # what the preset does not say stays
    assert recipe(["vecmat"], losses={"kl": 2.0}).losses["kl"].weight == 2.0  # --loss over preset typed
    assert recipe(["vecmat"], losses={"kl": 2.0}, options={"kl.weight": 3.0}).losses["kl"].weight == 3.0  # --set last
    assert recipe(options={"upconv.width": 7}).generator.options["width"] == 7
    assert recipe(steps=6).steps == 6


def test_a_full_name_means_the_component_that_another_layer_calls_by_its_short_name(tiny_model: Path) -> None:
    recipe = prepare(
        tiny_model,
        ["vecmat"],
        conditioner="interpkit:vecmat",
        losses={"interpkit:ce": 0.0, "losses:kl": 2.0},
        options={"vecmat.temperature": 0.5, "interpkit:cosine.weight": 3.0},
    ).recipe
    assert recipe.conditioner is not None and recipe.conditioner.name == "vecmat"
    assert recipe.conditioner.options["temperature"] == 0.5
    assert {name: term.weight for name, term in recipe.losses.items()} == {"kl": 2.0, "ce": 0.0, "cosine": 3.0}


def test_a_run_keeps_its_names_when_it_is_resumed_and_no_loss_has_two(tiny_model: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 2, "batch_size": 16, "device": "cpu"}
    job = prepare(tiny_model, ["vecmat"], **settings)
    ce = job.recipe.losses.pop("ce")
    job.recipe.losses["losses:ce"] = ce  # as earlier versions recorded it
    job.run(out=tmp_path)
    again = prepare(tiny_model, resume_from=tmp_path, losses={"ce": ce.weight}, options={"interpkit:kl.weight": 1.0})
    assert list(again.recipe.losses) == list(job.recipe.losses)
    assert again.run(out=tmp_path, resume=True).steps_done == 2
    with pytest.raises(interpkit.UsageError, match="the losses ce, losses:ce are one"):
        prepare(tiny_model, ["vecmat"], losses={"ce": 1.0, "losses:ce": 2.0})


def test_a_name_that_two_plugins_use_stays_full(add_plugin: Callable[..., None], tiny_model: Path) -> None:
    class Mine(interpkit.InversionLoss):
        """Mean brightness."""

        name = "ce"

        def forward(self, batch: interpkit.InversionBatch) -> torch.Tensor:
            return batch.images.mean()

    add_plugin(Mine)
    losses = {"network-inversion:ce": 0.5, "mine:ce": 2.0}
    recipe = prepare(tiny_model, ["vecmat"], losses=losses, options={"mine:ce.weight": 3.0}).recipe
    weights = {name: term.weight for name, term in recipe.losses.items()}
    assert weights == {"kl": 1.0, "losses:ce": 0.5, "cosine": 1.0, "mine:ce": 3.0}


def test_parts_that_the_inverter_does_not_use_are_named(tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    prepare(tiny_model, ["vecmat"], inverter="pixels", classes_per_batch=2)
    expected = "'pixels' does not use the conditioner 'vecmat', the generator 'upconv', classes_per_batch=2"
    assert expected in caplog.text
    caplog.clear()
    prepare(tiny_model, ["evolution"], losses={"tv": 5.0, "ce": 0.0})
    assert "'evolution' does not use the loss 'tv'" in caplog.text and "'ce'" not in caplog.text
    caplog.clear()
    for preset in ("vecmat", "pixels"):
        prepare(tiny_model, [preset])
    assert "does not use" not in caplog.text


def test_settings_that_the_inverter_does_not_read_are_named(tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    prepare(tiny_model, inverter="evolution", options={"optimizer.lr": 0.5}, micro_batch=4, compile="on")
    expected = "'evolution' does not use options={'optimizer.lr': 0.5}, micro_batch=4, compile='on'"
    assert expected in caplog.text
    caplog.clear()
    prepare(tiny_model, inverter="evolution", options={"optimizer.lr": Recipe().optimizer.lr}, compile="auto")
    prepare(tiny_model, inverter="pixels", options={"optimizer.lr": 0.5}, micro_batch=4)  # it reads both
    assert "does not use" not in caplog.text


def test_an_inverter_that_compiles_nothing_records_no_compilation(tiny_model: Path) -> None:
    assert prepare(tiny_model, inverter="evolution", compile="on").recipe.compile == "off"


def test_presets_typed_apply_left_to_right(tiny_model: Path) -> None:
    both = prepare(tiny_model, ["vecmat", "robust"]).recipe
    assert set(both.losses) == {"kl", "ce", "cosine", "robust"}
    assert both.conditioner is not None and both.conditioner.name == "vecmat"


def test_a_preset_may_ask_for_other_weights_where_no_batch_norm_recorded_statistics(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "interpkit")

    def weight(norm: torch.nn.Module, **settings: Any) -> float:
        net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), norm, torch.nn.Flatten(), torch.nn.Linear(72, 2))
        target = interpkit.wrap(net, input_shape=(1, 8, 8), name="own")
        return prepare(target, presets=["vecmat", "training-like"], **settings).recipe.losses["robust"].weight

    with_statistics = weight(torch.nn.BatchNorm2d(2))
    assert "batch norm" not in caplog.text
    assert weight(torch.nn.Identity()) > with_statistics
    assert "own has no batch norm with statistics, which changes the preset training-like" in caplog.text
    assert weight(torch.nn.BatchNorm2d(2, track_running_stats=False)) > with_statistics
    assert weight(torch.nn.Identity(), losses={"robust": 0.7}) == 0.7


def test_a_term_of_weight_zero_is_not_built(tiny_target: interpkit.Target, quick: Quick) -> None:
    inversion = interpkit.invert(tiny_target, **quick(steps=1, losses={"kl": 0.0}))
    assert set(inversion.history[0].terms) == {"ce", "cosine"}


def test_a_resolved_recipe_holds_every_default(tiny_model: Path) -> None:
    recipe = prepare(tiny_model, ["vecmat"]).recipe
    assert recipe.device != "auto" and recipe.precision in ("fp32", "bf16")
    assert (
        recipe.generator is not None and {"latent", "hidden", "min_width", "dropout"} <= recipe.generator.options.keys()
    )
    assert recipe.target.arch == "interpkit:cnn"
    assert recipe.target.path == str(tiny_model)


def test_presets_in_a_file_must_be_names(tmp_path: Path, tiny_model: Path) -> None:
    config = tmp_path / "mine.toml"
    for text in ('presets = "vecmat"', "presets = [1]"):
        config.write_text(text)
        with pytest.raises(UsageError, match="presets is a list of names"):
            prepare(tiny_model, config=config)
    config.write_text('presets = ["vecmatt"]')
    with pytest.raises(PluginError, match="Did you mean 'vecmat'"):
        prepare(tiny_model, config=config)


# ------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ({"stepps": 3}, r"no option 'stepps'\. Did you mean 'steps'"),
        ({"optimizer": {"lrr": 3}}, r"no option 'optimizer\.lrr'\. Did you mean 'lr'"),
        ({"steps": 0}, "steps = 0 is not valid"),
        ({"batch_size": 1}, "batch_size = 1 is not valid"),
        ({"seed": -1}, "seed = -1"),
        ({"seed": 2**63}, "seed"),
        ({"steps": "many"}, "steps = 'many'"),
        ({"precision": "fp16"}, "precision = 'fp16'"),
        ({"labels": []}, "labels"),
        ({"labels": [1, 1]}, "name each label once"),
        ({"losses": {"kl": {"weight": -0.1}}}, r"losses\.kl\.weight = -0\.1"),
        ({"losses": {"kl": {"weight": float("nan")}}}, r"losses\.kl\.weight = nan"),
        ({"losses": {"kl": {"weight": float("inf")}}}, r"losses\.kl\.weight = inf"),
        ({"losses": {"kl": 1.0}}, r"losses\.kl = 1\.0"),
        ({"conditioner": {"temperature": 1.0}}, r"conditioner\.name"),
        ({"conditioner": "vecmat"}, "conditioner = 'vecmat'"),
        ({"optimizer": {"lr": float("nan")}}, r"optimizer\.lr = nan"),
        ({"sampling": {"chunk": 0}}, r"sampling\.chunk = 0"),
        ({"checkpoint_every": 0}, "checkpoint_every = 0"),
    ],
)
def test_a_fault_is_named_with_where_it_stands_and_what_was_seen(layer: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        compose([layer])


def test_several_faults_are_reported_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        compose([{"steps": 0, "batch_size": 0, "sed": 1}])
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("temperature", "options are named COMPONENT.OPTION"),
        (".temperature", "options are named COMPONENT.OPTION"),
        ("vecmat.", "options are named COMPONENT.OPTION"),
        ("label.dim", "no component 'label'"),
        ("vecmatt.temperature", "Did you mean 'vecmat'"),
        ("optimiser.lr", "Did you mean 'optimizer'"),
    ],
)
def test_a_setting_of_no_component_in_use_is_refused(setting: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        compose([{"conditioner": {"name": "vecmat"}}], [(setting, 1)])


def test_a_name_that_stands_for_two_components_is_not_guessed() -> None:
    layer = {"generator": {"name": "edges"}, "losses": {"edges": {}, "optimizer": {}}}
    with pytest.raises(
        UsageError, match=r"several components are named 'edges'. Say .*generator.k.* or .*losses.edges.k"
    ):
        compose([layer], [("edges.k", 5)])
    settings = [("generator.k", 1), ("losses.edges.k", 2), ("optimizer.lr", 0.5), ("losses.optimizer.lr", 3)]
    recipe = compose([layer], settings)
    assert recipe.generator is not None and recipe.generator.options == {"k": 1} and recipe.optimizer.lr == 0.5
    assert [recipe.losses[name].options for name in ("edges", "optimizer")] == [{"k": 2}, {"lr": 3}]


def test_a_component_is_set_by_its_name_or_by_its_slot() -> None:
    layer = {"conditioner": {"name": "vecmat"}, "losses": {"kl": {}}}
    settings = [("conditioner.temperature", 0.5), ("kl.weight", 2), ("optimizer.lr", 0.1), ("sampling.chunk", 7)]
    recipe = compose([layer], settings)
    assert recipe == compose([layer], [("vecmat.temperature", 0.5), *settings[1:]])
    assert recipe.conditioner is not None and recipe.conditioner.options == {"temperature": 0.5}
    assert (recipe.losses["kl"].weight, recipe.optimizer.lr, recipe.sampling.chunk) == (2, 0.1, 7)
    assert layer == {"conditioner": {"name": "vecmat"}, "losses": {"kl": {}}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"options": {"vecmat.temprature": 1.0}}, "conditioner 'vecmat' has no option 'temprature'.*'temperature'"),
        ({"options": {"vecmat.temperature": -1.0}}, "temperature = -1.0"),
        ({"options": {"upconv.dropout": 1.0}}, "dropout = 1.0"),
        ({"options": {"upconv.dropout": float("nan")}}, "dropout = nan"),
        ({"conditioner": "vecmatt"}, "no conditioner 'vecmatt'.*Did you mean 'vecmat'"),
        ({"generator": "upcon"}, "Did you mean 'upconv'"),
        ({"inverter": "generater"}, "Did you mean 'generator'"),
        ({"losses": {"cosin": 1.0}}, "no loss 'cosin'.*Did you mean 'cosine'"),
        ({"labels": [0, 3]}, "0 to 2"),
        ({"labels": [-1]}, "0 to 2"),
        ({"device": "gpu"}, "device='gpu'"),
        ({"stepz": 4}, "Did you mean 'steps'"),
    ],
)
def test_a_wrong_name_or_value_is_refused_before_any_training(
    tiny_target: interpkit.Target, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        prepare(tiny_target, ["vecmat"], **changes)


def test_without_preset_and_file_the_presets_are_named(tiny_target: interpkit.Target) -> None:
    with pytest.raises(UsageError, match="robust, training-like, vecmat"):
        interpkit.invert(tiny_target)


def test_a_recipe_that_lacks_a_part_says_how_to_add_it(tmp_path: Path, tiny_target: interpkit.Target) -> None:
    config = tmp_path / "empty.toml"
    config.write_text("steps = 2")
    words = r"names no conditioner, no generator, no loss: add conditioner=NAME \(.*vecmat.*losses=.*presets=\[NAME\]"
    for start in (interpkit.invert, prepare):
        with pytest.raises(UsageError, match=words):
            start(tiny_target, config=config)
    with pytest.raises(UsageError, match="names no loss"):
        interpkit.invert(tiny_target, config=config, conditioner="label", generator="upconv")
