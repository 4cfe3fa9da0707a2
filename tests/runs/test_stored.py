"""An inversion's own files are stored in the run folder and returned to its inverter."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

import interpkit
from interpkit import (
    GeneratorInversion,
    ImageInversion,
    Inversion,
    Inverter,
    PluginError,
    RunError,
    StoredInversion,
    UsageError,
)
from interpkit.inversion.loop import GeneratorInverter

Add = Callable[..., None]
Quick = Callable[..., dict[str, Any]]


class GrayInversion(Inversion):
    """Images with one gray level per class, stored in a file."""

    def __init__(self, *facts: Any, levels: Mapping[int, float], empty: Mapping[int, str]) -> None:
        super().__init__(*facts, empty=empty)
        self.levels = levels

    def chunk(self, labels: Tensor, turns: Tensor, seed: int, dropout: bool) -> interpkit.Draw:
        levels = torch.tensor([self.levels[label] for label in labels.tolist()])
        images = levels.view(-1, 1, 1, 1).expand(-1, *self.target.input_shape).clone()
        one_hot = torch.nn.functional.one_hot(labels, self.target.num_classes).float()
        return interpkit.Draw(images, labels, one_hot, torch.zeros_like(labels))

    def files(self) -> Mapping[str, bytes]:
        return {**Gray.more, "levels.json": json.dumps(self.levels).encode()}


class Gray(Inverter):
    """Returns the gray level k / 10 for class k, and no image for the classes in ``none``."""

    name = "gray"
    none: Mapping[int, str] = {1: "gray has no hue"}
    more: Mapping[str, bytes] = {}

    def invert(self, target: Any, recipe: Any, parts: Any, recorder: Any) -> Inversion:
        recorder.start()
        images, labels = torch.zeros(1, *target.input_shape), torch.zeros(1, dtype=torch.int64)
        for step in range(1, recipe.steps + 1):
            recorder.step(step, torch.tensor(0.0), {}, images, target(images), labels)
        levels = {label: label / 10 for label in range(target.num_classes) if label not in self.none}
        return GrayInversion(target, recipe, recorder.history, levels=levels, empty=self.none)

    def load(self, stored: StoredInversion) -> Inversion:
        levels = {int(label): level for label, level in json.loads(stored.read("levels.json")).items()}
        return GrayInversion(stored.target, stored.recipe, stored.history, levels=levels, empty=stored.empty)


@pytest.fixture
def gray(add_plugin: Add, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Install the inverter; return the monkeypatch, with which a test can change it."""
    add_plugin(Gray)
    return monkeypatch


def invert(model: Path, out: Path, **settings: Any) -> Inversion:
    return interpkit.invert(model, inverter="gray", steps=2, device="cpu", out=out, **settings)


def manifest(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "manifest.json").read_text()))


@pytest.mark.usefixtures("gray")
def test_a_custom_inversion_is_saved_loaded_and_sampled(tmp_path: Path, tiny_model: Path) -> None:
    made = invert(tiny_model, tmp_path / "run")
    again = interpkit.load_inversion(tmp_path / "run")
    assert isinstance(again, GrayInversion) and again.empty == {1: "gray has no hue"} and again.classes == [0, 2]
    assert torch.equal(again.sample(per_class=3)[0], made.sample(per_class=3)[0])
    assert again.images_per_class is None and again.fingerprint() == made.fingerprint()
    assert interpkit.load_inversion(made.save(tmp_path / "saved")).sample(count=1)[1].tolist() == [0]
    index = interpkit.write_shards(again, tmp_path / "shards", count=5, shard_size=2)
    assert (index["labels"], index["generator_sha256"]) == ([0, 2], made.fingerprint())
    assert interpkit.evaluate(again)["count"] == 200


@pytest.mark.usefixtures("gray")
def test_an_empty_class_is_named_by_the_manifest_the_metrics_and_the_log(
    tmp_path: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    invert(tiny_model, tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert manifest(tmp_path)["empty"] == metrics["empty"] == {"1": "gray has no hue"}
    assert [row["label"] for row in metrics["per_class"]] == [0, 2]
    assert "class 1 (class 1) is empty: gray has no hue" in caplog.messages
    assert "empty" in interpkit.evaluate(tmp_path)


def test_a_run_with_only_empty_classes_keeps_the_reasons_and_fails(
    tmp_path: Path, tiny_model: Path, gray: pytest.MonkeyPatch
) -> None:
    gray.setattr(Gray, "none", dict.fromkeys(range(3), "nothing is"))
    with pytest.raises(RunError, match="gray found no image of any class"):
        invert(tiny_model, tmp_path)
    assert manifest(tmp_path)["status"] == "failed" and len(manifest(tmp_path)["empty"]) == 3
    assert (tmp_path / "levels.json").read_text() == "{}"


def test_classes_that_are_no_longer_empty_are_removed_from_the_list(
    tmp_path: Path, tiny_model: Path, gray: pytest.MonkeyPatch
) -> None:
    invert(tiny_model, tmp_path)
    gray.setattr(Gray, "none", {})
    interpkit.invert(tiny_model, out=tmp_path, resume=True, steps=3)
    assert manifest(tmp_path)["empty"] == {} and "empty" not in json.loads((tmp_path / "metrics.json").read_text())


def test_an_inverter_gets_the_recipes_terms_when_it_loads(
    tmp_path: Path, tiny_model: Path, gray: pytest.MonkeyPatch
) -> None:
    found: dict[str, Any] = {}
    load = Gray.load

    def load_with_terms(self: Gray, stored: StoredInversion) -> Inversion:
        found.update(stored.losses())
        return load(self, stored)

    gray.setattr(Gray, "load", load_with_terms)
    invert(tiny_model, tmp_path, losses={"ce": 2.0, "tv": 0.0, "l2": 0.5})
    interpkit.load_inversion(tmp_path)
    assert {name: (weight, loss.name) for name, (weight, loss) in found.items()} == {
        "ce": (2.0, "ce"),
        "l2": (0.5, "l2"),
    }


@pytest.mark.usefixtures("gray")
@pytest.mark.parametrize(
    ("content", "words"),
    [(None, r"has no levels\.json: the run was not finished"), (b"{}", r"levels\.json is not the file that")],
)
def test_a_missing_or_changed_file_is_refused(
    tmp_path: Path, tiny_model: Path, content: bytes | None, words: str
) -> None:
    invert(tiny_model, tmp_path)
    (tmp_path / "levels.json").unlink()
    if content is not None:
        (tmp_path / "levels.json").write_bytes(content)
    with pytest.raises(RunError, match=words):
        interpkit.load_inversion(tmp_path)


@pytest.mark.usefixtures("gray")
def test_a_file_that_the_disk_does_not_give_is_not_the_inverters_fault(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    invert(tiny_model, tmp_path)
    real = Path.read_bytes

    def read(path: Path) -> bytes:
        if path.name == "levels.json":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    with pytest.raises(RunError, match=r"levels\.json cannot be read: Input/output error\."):
        interpkit.load_inversion(tmp_path)


@pytest.mark.parametrize(
    "files",
    [{"../evil": b""}, {"a/b": b""}, {"Manifest.json": b""}, {"attributions": b""}, {".lock": b""}, {"": b""},
     {"CON\n": b""}, {"text": "no bytes"}],
    ids=str,
)  # fmt: skip
def test_a_file_name_outside_the_folder_or_in_use_is_refused(
    tmp_path: Path, tiny_model: Path, gray: pytest.MonkeyPatch, files: Any
) -> None:
    gray.setattr(Gray, "more", files)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(PluginError, match=r"files\(\)"):
        invert(tiny_model, tmp_path / "run")
    assert set(tmp_path.iterdir()) - before == {tmp_path / "run"}
    assert not (tmp_path / "run" / "levels.json").exists()


@pytest.mark.usefixtures("gray")
def test_an_inversions_file_does_not_overwrite_a_users_file(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "levels.json").write_text("mine")
    with pytest.raises(RunError, match=r"levels\.json does not belong to this run, which would overwrite it"):
        invert(tiny_model, tmp_path)
    assert (tmp_path / "levels.json").read_text() == "mine"
    (tmp_path / "levels.json").rename(tmp_path / "kept.json")
    interpkit.invert(tiny_model, out=tmp_path, resume=True)
    assert manifest(tmp_path)["status"] == "finished"


def test_a_file_that_the_inversion_no_longer_has_is_removed(
    tmp_path: Path, tiny_model: Path, gray: pytest.MonkeyPatch
) -> None:
    gray.setattr(Gray, "more", {"proof.txt": b"qed"})
    invert(tiny_model, tmp_path)
    assert (tmp_path / "proof.txt").read_bytes() == b"qed"
    gray.setattr(Gray, "more", {})
    interpkit.invert(tiny_model, out=tmp_path, resume=True, steps=3)
    assert not (tmp_path / "proof.txt").exists() and set(manifest(tmp_path)["files"]) == {"levels.json"}


@pytest.mark.usefixtures("gray")
def test_force_removes_only_files_that_match_the_manifest(tmp_path: Path, tiny_model: Path, quick: Quick) -> None:
    invert(tiny_model, tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    claimed = manifest(tmp_path)
    claimed["files"]["notes.txt"] = "0" * 64
    (tmp_path / "manifest.json").write_text(json.dumps(claimed))
    interpkit.invert(tiny_model, out=tmp_path, force=True, **quick(steps=2))
    assert not (tmp_path / "levels.json").exists() and (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["../evil", "a/b", "", "x\n"])
def test_a_manifest_that_lists_a_file_outside_the_folder_is_refused(run_copy: Path, name: str) -> None:
    (run_copy / "manifest.json").write_text(json.dumps(manifest(run_copy) | {"files": {name: "0"}}))
    with pytest.raises(RunError, match=r"manifest\.json is not in interpkit's format"):
        interpkit.load_inversion(run_copy)


def test_keys_of_other_releases_are_kept(run_copy: Path, tiny_model: Path) -> None:
    (run_copy / "manifest.json").write_text(json.dumps(manifest(run_copy) | {"novelty": [{"of": "later"}]}))
    interpkit.invert(tiny_model, out=run_copy, resume=True, steps=13)
    assert manifest(run_copy)["novelty"] == [{"of": "later"}] and manifest(run_copy)["steps_done"] == 13


def test_loading_a_run_leaves_torchs_random_state_alone(finished_run: Path) -> None:
    before = torch.get_rng_state()
    interpkit.load_inversion(finished_run)
    assert torch.equal(torch.get_rng_state(), before)


# ------------------------------------------------------------------------- inverters that define no `load`


class Plain(Inverter):
    """An inverter that returns one of interpkit's results and does not define ``load``."""

    name = "plain"
    needs = ("conditioner", "generator", "loss")

    def invert(self, target: Any, recipe: Any, parts: Any, recorder: Any) -> Inversion:
        made = GeneratorInverter().invert(target, recipe, parts, recorder)
        return GeneratorInversion(target, recipe, made.history, made.generator, made.conditioner, empty={2: "left out"})


class Finished(Inverter):
    """Like `Plain`, but returns finished images."""

    name = "finished"

    def invert(self, target: Any, recipe: Any, parts: Any, recorder: Any) -> Inversion:
        recorder.start()
        labels = torch.tensor([0, 0, 2])
        images = torch.rand(3, *target.input_shape, generator=torch.Generator().manual_seed(0))
        recorder.step(1, torch.tensor(0.0), {}, images, target(images), labels)
        return ImageInversion(target, recipe, recorder.history, images, labels, empty={1: "left out"})


@pytest.mark.parametrize(("inverter", "result"), [(Plain, GeneratorInversion), (Finished, ImageInversion)])
def test_an_inverter_without_load_has_its_result_restored(
    add_plugin: Add, tmp_path: Path, tiny_model: Path, quick: Quick, inverter: Any, result: Any
) -> None:
    add_plugin(inverter)
    settings = quick(steps=1) if inverter is Plain else {"steps": 1, "device": "cpu"}
    made = interpkit.invert(tiny_model, out=tmp_path, inverter=inverter.name, **settings)
    again = interpkit.load_inversion(tmp_path)
    assert type(again) is type(made) is result and again.empty == made.empty
    assert (again.sample(count=2)[0] - made.sample(count=2)[0]).abs().max() <= 0.51 / 255


@pytest.mark.parametrize("fault", [lambda self, stored: {}["x"], lambda self, stored: "text"], ids=["raises", "text"])
def test_a_load_that_fails_names_the_plugin(
    tmp_path: Path, tiny_model: Path, gray: pytest.MonkeyPatch, fault: Any
) -> None:
    invert(tiny_model, tmp_path)
    gray.setattr(Gray, "load", fault)
    with pytest.raises(PluginError, match=r"the inverter 'gray' of the plugin 'mine'"):
        interpkit.load_inversion(tmp_path)


def test_tensors_in_a_damaged_file_are_refused(tmp_path: Path, tiny_model: Path, gray: pytest.MonkeyPatch) -> None:
    gray.setattr(Gray, "more", {"a.safetensors": safetensors.torch.save({"x": torch.ones(2)})[:-1]})
    gray.setattr(Gray, "load", lambda self, stored: stored.tensors("a.safetensors"))
    invert(tiny_model, tmp_path)
    with pytest.raises(RunError, match=r"a\.safetensors is not a complete safetensors file"):
        interpkit.load_inversion(tmp_path)


@pytest.mark.usefixtures("gray")
def test_an_empty_class_that_the_classifier_does_not_have_is_ignored(tmp_path: Path, tiny_model: Path) -> None:
    invert(tiny_model, tmp_path / "run")
    copy = Path(shutil.copytree(tmp_path / "run", tmp_path / "copy"))
    (copy / "manifest.json").write_text(json.dumps(manifest(copy) | {"empty": {"999": "far", "1": "gray"}}))
    assert interpkit.load_inversion(copy).empty == {1: "gray"}
    with pytest.raises(UsageError, match=r"class 1 .* is empty: gray"):
        interpkit.load_inversion(copy).sample(labels=[1])
