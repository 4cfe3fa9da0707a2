"""The facts of a target: one declaration feeds flags, metadata and keyword arguments."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
import typer
from pydantic import Field
from torch import nn
from typer.testing import CliRunner

import interpkit
from interpkit import TargetOptions
from interpkit.cli import app, options
from interpkit.config import recipe
from interpkit.config.recipe import ClassifierFacts, Fact, LoadOptions, target_facts
from interpkit.targets import file_format, wrapping

SHAPE = (3, 4, 4)
TYPED: dict[str, tuple[str, Any]] = {
    "arch": ("interpkit:cnn", "interpkit:cnn"),
    "arch_args": ("widths=[4]", {"widths": [4]}),
    "weights_key": ("state_dict.teacher", "state_dict.teacher"),
    "input_shape": ("3, 4,4", [3, 4, 4]),
    "num_classes": ("2", 2),
    "mean": ("0.5,0.25,0", [0.5, 0.25, 0.0]),
    "std": ("1,2,3", [1.0, 2.0, 3.0]),
    "input_range": ("0,255", [0.0, 255.0]),
    "class_names": ("names.txt", ["cat", "dog"]),
    "family": ("resnet", "resnet"),
    "crop_pct": ("0.9", 0.9),
    "layout": ("nchw", "nchw"),
    "channel_order": ("bgr", "bgr"),
    "output": ("logits", "logits"),
    "output_name": ("logits", "logits"),
    "output_index": ("1", 1),
    "feature_layer": ("1:in", "1:in"),
    "units": ("1:0", ("1:0",)),
    "trust": ("", True),
}
"""By the name of a fact: what one types after its flag, and what that means."""
FACTS = {fact.name: fact for fact in target_facts()}
NOT_STORED = {"path", "weights_key", "units", "trust"}


def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).eval()


def read_flags(words: list[str]) -> dict[str, Any]:
    """Return what a command would read of flags."""
    command = typer.main.get_command(app).commands["inspect"]
    context = command.make_context("inspect", ["model", *words])
    flags = options._target_flags()
    read: dict[str, Any] = flags.callback(**{flag.name: context.params[flag.name] for flag in flags.params})
    return read


@pytest.mark.parametrize("command", ["invert", "inspect", "pack", "attribute"])
def test_each_fact_has_a_flag_with_its_help(command: str) -> None:
    flags = {word: flag for flag in typer.main.get_command(app).commands[command].params for word in flag.opts}
    for fact in FACTS.values():
        assert fact.help.endswith(".") and fact.help[0].isupper()
        if fact.name != "path":
            assert fact.flag is not None and flags[fact.flag].help == fact.help


@pytest.mark.parametrize("name", [name for name in FACTS if name != "path"])
def test_each_flag_is_read_as_its_fact(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("names.txt").write_text("cat\ndog\n")
    text, value = TYPED[name]
    assert read_flags([str(FACTS[name].flag), *([text] if text else [])]) == {name: value}
    assert name in TargetOptions(**{name: value}).model_fields_set


def test_what_is_not_typed_is_not_read() -> None:
    assert read_flags([]) == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mean", "gray"], "--mean takes comma-separated numbers, not 'gray'"),
        (["--mean", ""], "--mean takes comma-separated numbers, not ''"),
        (["--input-shape", "1,2.5"], "--input-shape takes comma-separated whole numbers"),
        (["--input-range", "0"], "--input-range takes LO,HI"),
        (["--arch-arg", "widths"], "--arch-arg takes NAME=VALUE"),
        (["--num-classes", "1"], "--num-classes"),
        (["--layout", "nwhc"], "nhwc"),
    ],
    ids=str,
)
def test_a_wrong_value_of_a_flag_is_refused(words: list[str], message: str) -> None:
    outcome = CliRunner().invoke(app, ["inspect", "net.safetensors", *words], env={"COLUMNS": "200"})
    assert outcome.exit_code == 2 and message in outcome.output


def test_each_fact_is_stored_or_listed_as_not_stored(tmp_path: Path) -> None:
    stated = TargetOptions(**{name: value for name, (_, value) in TYPED.items()})
    path = file_format.write_target_file(tmp_path / "net.safetensors", {"w": torch.zeros(1)}, stated)
    with safetensors.safe_open(path, "pt") as file:
        keys = set(file.metadata())
    assert keys == {"format", "interpkit.schema"} | {f"interpkit.{fact.key}" for fact in FACTS.values() if fact.key}
    assert {name for name, fact in FACTS.items() if fact.key is None} == NOT_STORED
    _, facts = file_format.read_target_file(path)
    assert facts == stated.model_copy(update={"trust": False, "weights_key": None, "units": None})


@pytest.mark.parametrize("name", FACTS)
def test_wrap_and_save_target_accept_the_facts_of_a_module_alone(name: str, tmp_path: Path) -> None:
    if name in ("input_shape", "output_name", "output_index", "units"):
        return  # tested elsewhere: an argument of its own, those of modules with several outputs, and not stored
    facts: Any = {name: TYPED[name][1] if name in TYPED else "net.safetensors"}
    if FACTS[name].of_file:
        with pytest.raises(TypeError, match=f"wrap does not accept the argument '{name}'"):
            interpkit.wrap(net(), SHAPE, **facts)
        return
    target = interpkit.wrap(net(), SHAPE, **facts)
    assert getattr(target.description, name) == getattr(TargetOptions(**facts), name)
    assert target.sources[name] in ("given", "found: width of the output")
    module = interpkit.build_architecture("interpkit:cnn", {"input_shape": [3, 4, 4], "num_classes": 2, "widths": [2]})
    arguments = {"input_shape": [3, 4, 4], "num_classes": 2, "widths": [2]}
    path = interpkit.save_target(
        module.eval(),
        tmp_path / "n.safetensors",
        architecture="interpkit:cnn",
        arch_args=arguments,
        input_shape=SHAPE,
        **facts,
    )
    assert getattr(interpkit.load_target(path).description, name) == getattr(target.description, name)


def test_the_keywords_that_type_checkers_know_are_the_facts() -> None:
    of_module = {name for name, fact in FACTS.items() if not fact.of_file}
    assert {*ClassifierFacts.__annotations__, "input_shape"} == of_module
    assert LoadOptions.__annotations__.keys() == FACTS.keys() - {"path"}


@pytest.fixture
def more(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[TargetOptions]]:
    """Declare two more facts, by a field each."""

    class More(TargetOptions):
        temperature: float | None = Field(None, gt=0, description="Divides the logits.")
        label: str | None = Field(None, description="What it is called.", json_schema_extra={"metavar": "WORD"})

    for module in (recipe, file_format, wrapping):
        monkeypatch.setattr(module, "TargetOptions", More)
    options._target_flags.cache_clear()
    yield More
    options._target_flags.cache_clear()


def test_one_more_field_is_one_more_fact_everywhere(more: type[TargetOptions], tmp_path: Path) -> None:
    assert target_facts()[-2:] == [
        Fact("temperature", float, "Divides the logits.", None, flag="--temperature", key="temperature"),
        Fact("label", str, "What it is called.", None, flag="--label", key="label", metavar="WORD"),
    ]
    assert read_flags(["--temperature", "2.5", "--label", "a b"]) == {"temperature": 2.5, "label": "a b"}
    stated: Any = {"temperature": 2.5, "label": "a b"}
    target = interpkit.wrap(net(), SHAPE, **stated)
    assert target.sources["temperature"] == "given"
    path = file_format.write_target_file(tmp_path / "net.safetensors", {"w": torch.zeros(1)}, target.description)
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["interpkit.temperature"]) == 2.5 and metadata["interpkit.label"] == "a b"
    assert file_format.read_target_file(path)[1].said().items() >= stated.items()


def test_facts_of_the_user_are_laid_over_those_of_the_file() -> None:
    written = TargetOptions(arch="interpkit:cnn", mean=[0.5], std=[0.2])
    facts, sources = written.overlaid(TargetOptions(mean=[0.1], trust=True), "the file")
    assert facts.said() == {"arch": "interpkit:cnn", "mean": [0.1], "std": [0.2]}
    assert sources == {"arch": "the file", "mean": "given", "std": "the file"}
