"""The run folder: its files, loading, bit-for-bit resuming, and damaged files of all kinds."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import stat
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

import interpkit
from interpkit import Condition, Generator, Inversion, ModelError, RunError, UsageError
from interpkit.api.invert import prepare
from interpkit.cli import app
from interpkit.config.recipe import Recipe, read_toml
from interpkit.io.atomic import sha256, write_atomically
from interpkit.io.locking import HOLDER, LOCK
from interpkit.runs.folder import Run

Quick = Callable[..., dict[str, Any]]
Same = Callable[[dict[str, Tensor], dict[str, Tensor]], bool]
MakeModel = Callable[..., Path]

CONTRACT = {
    "recipe.toml",
    "manifest.json",
    "generator.safetensors",
    "history.jsonl",
    "metrics.json",
    "samples.safetensors",
    "samples.png",
    "checkpoint",
}
load = safetensors.torch.load_file


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def manifest(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "manifest.json").read_text()))


def change_manifest(folder: Path, **changes: Any) -> None:
    (folder / "manifest.json").write_text(json.dumps(manifest(folder) | changes))


def stop_at(step: int, folder: Path, target: Any, **settings: Any) -> Inversion:
    """Start a run in the folder, and request a stop at a step, as Ctrl-C does."""
    job = prepare(target, settings.pop("plugins"), **settings)
    return job.run(out=folder, on_step=lambda done: job.request_stop() if done == step else None)


# ------------------------------------------------------------------------------------ the files there are


def test_a_run_has_every_file_of_the_contract_and_no_temporary_one(finished_run: Path) -> None:
    names = {path.name for path in finished_run.iterdir()}
    assert names >= CONTRACT
    assert not [name for name in names if name.startswith(".")]


def test_the_recipe_on_disk_is_the_resolved_one(finished_run: Path, tiny_model: Path) -> None:
    recipe = Recipe.model_validate(read_toml(finished_run / "recipe.toml"))
    assert interpkit.load_inversion(finished_run).recipe.to_toml() == (finished_run / "recipe.toml").read_text()
    assert (recipe.seed, recipe.steps, recipe.device, recipe.precision) == (3, 12, "cpu", "fp32")
    assert recipe.target.arch == "interpkit:cnn" and recipe.target.path == str(tiny_model)
    assert recipe.target.class_names == ["class 0", "class 1", "class 2"]
    assert recipe.conditioner is not None and "max_side" in recipe.conditioner.options


def test_the_manifest_records_what_made_the_run(finished_run: Path, tiny_model: Path) -> None:
    found = manifest(finished_run)
    assert found["model"] == {"name": "tiny", "path": str(tiny_model), "sha256": sha256(tiny_model)}
    assert (found["schema"], found["status"], found["steps_done"], found["resumed_from"]) == (1, "finished", 12, None)
    assert (found["device"], found["precision"]) == ("cpu", "fp32")
    assert found["versions"]["torch"] == version("torch")
    assert found["plugins"]["vecmat"]["status"] == "ok"
    assert found["presets"] == ["vecmat"]
    assert found["files"] == {"generator.safetensors": sha256(finished_run / "generator.safetensors")}
    assert "empty" not in found and "data" not in found
    assert found["timings"]["training_seconds"] > 0


def test_the_weights_file_has_descriptive_metadata(finished_run: Path) -> None:
    with safetensors.safe_open(finished_run / "generator.safetensors", "pt") as file:
        metadata = file.metadata()
        names = list(file.keys())
    assert (metadata["format"], metadata["interpkit.schema"], metadata["interpkit.kind"]) == ("pt", "1", "generator")
    assert Recipe.model_validate_json(metadata["interpkit.recipe"]).seed == 3
    assert all(name.startswith(("generator.", "conditioner.")) for name in names)


def test_the_history_has_a_line_at_least_every_ten_steps(finished_run: Path) -> None:
    lines = rows(finished_run)
    assert [line["step"] for line in lines] == [1, 10, 12]
    for line in lines:
        assert set(line) == {"step", "seconds", "loss", "kl", "ce", "cosine", "inversion_accuracy"}
        assert 0 <= line["inversion_accuracy"] <= 1
    assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)


def test_the_samples_have_the_tensors_of_the_contract(finished_run: Path) -> None:
    samples = load(finished_run / "samples.safetensors")
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in samples.items()} == {
        "images": (torch.uint8, (300, 1, 12, 12)),
        "labels": (torch.int64, (300,)),
        "confidence": (torch.float32, (300,)),
        "generator": (torch.int64, (300,)),
        "probabilities": (torch.float32, (300, 3)),
    }
    assert samples["labels"].tolist() == [0] * 100 + [1] * 100 + [2] * 100
    assert samples["generator"].unique().tolist() == [0]


def test_the_target_scores_the_samples_as_they_are_stored(finished_run: Path, tiny_target: Any) -> None:
    samples = load(finished_run / "samples.safetensors")
    with torch.no_grad(), tiny_target.frozen():
        expected = tiny_target(samples["images"] / 255).softmax(1)
    assert torch.allclose(samples["probabilities"], expected, atol=1e-5)
    assert torch.equal(samples["confidence"], samples["probabilities"].gather(1, samples["labels"][:, None])[:, 0])
    images = interpkit.load_inversion(finished_run).sample(per_class=100)[0]
    assert (samples["images"].float() - images * 255).abs().max() <= 0.501


def test_the_metrics_are_those_of_the_samples(finished_run: Path) -> None:
    samples = load(finished_run / "samples.safetensors")
    metrics = json.loads((finished_run / "metrics.json").read_text())
    right = (samples["probabilities"].argmax(1) == samples["labels"]).double().view(3, 100)
    confidence = samples["confidence"].double().view(3, 100)
    assert (metrics["schema"], metrics["count"]) == (1, 300)
    assert metrics["inversion_accuracy"] == pytest.approx(right.mean().item())
    assert metrics["confidence"] == pytest.approx(confidence.mean().item())
    wanted = ("label", "name", "count", "inversion_accuracy", "confidence")
    assert [[row[key] for key in wanted] for row in metrics["per_class"]] == [
        [
            label,
            f"class {label}",
            100,
            pytest.approx(right[label].mean().item()),
            pytest.approx(confidence[label].mean().item()),
        ]
        for label in range(3)
    ]
    assert metrics["kl"] == pytest.approx(sum(row["kl"] for row in metrics["per_class"]) / 3)
    assert 1 <= metrics["diversity"]["vendi_pooled"] <= 100  # the quick metrics of plugins are there too


def test_the_grid_has_one_row_of_ten_samples_per_class(finished_run: Path) -> None:
    with Image.open(finished_run / "samples.png") as grid:
        width, height = grid.size
    assert height == 3 * (48 + 2) + 2  # 12 pixels, four times as large
    assert 10 * (48 + 2) < width < 10 * (48 + 2) + 150


def test_the_checkpoint_holds_the_last_step_and_no_code(finished_run: Path) -> None:
    assert torch.load(finished_run / "checkpoint", weights_only=True)["step"] == 12


@pytest.mark.parametrize(("classes", "count", "kept"), [(12, 1000, True), (1001, 1001, False)])
def test_runs_with_more_than_ten_classes_keep_a_thousand_samples_or_one_per_class(
    tmp_path: Path, quick: Quick, classes: int, count: int, kept: bool
) -> None:
    target = interpkit.wrap(nn.Sequential(nn.Flatten(), nn.Linear(64, classes)), (1, 8, 8))
    interpkit.invert(target, out=tmp_path, **quick(steps=1, batch_size=2))
    samples = load(tmp_path / "samples.safetensors")
    shares = samples["labels"].bincount(minlength=classes)
    assert samples["images"].shape == (count, 1, 8, 8)
    assert shares.min() >= 1 and shares.max() - shares.min() <= 1
    assert ("probabilities" in samples) is kept
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["count"], len(metrics["per_class"])) == (count, classes)
    with Image.open(tmp_path / "samples.png") as grid:
        rows = 12 if classes == 12 else 10  # five of the first 50 classes side by side, over a caption
        assert grid.size[1] == rows * (48 + 2) + 2 + 24 * (classes > 50)


def test_a_run_of_some_classes_has_samples_of_only_those(tmp_path: Path, tiny_model: Path, quick: Quick) -> None:
    interpkit.invert(tiny_model, out=tmp_path, **quick(steps=1, labels=[2, 0]))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert sorted((row["label"], row["count"]) for row in metrics["per_class"]) == [(0, 100), (2, 100)]


class Vectors(Generator):
    """Generates vectors."""

    name = "vectors"

    def __init__(self, spec: Any, input_shape: tuple[int, ...], options: Any = None) -> None:
        super().__init__(spec, input_shape, options)
        self.latent_dim = 4
        self.net = nn.Linear(4 + spec.vector_dim, input_shape[0])

    def forward(self, latent: Tensor, condition: Condition) -> Tensor:
        return self.net(torch.cat([latent, condition.vector], 1)).sigmoid()


def test_a_classifier_of_vectors_has_inputs_and_no_picture(
    add_plugin: Callable[..., None], tmp_path: Path, quick: Quick
) -> None:
    add_plugin(Vectors)
    target = interpkit.wrap(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)), (5,))
    settings = quick(steps=2, generator="vectors", conditioner="label")
    inversion = interpkit.invert(target, out=tmp_path, **settings | {"options": {}})
    samples = load(tmp_path / "samples.safetensors")
    assert "images" not in samples and not (tmp_path / "samples.png").exists()
    assert (samples["inputs"].dtype, tuple(samples["inputs"].shape)) == (torch.float32, (300, 5))
    assert torch.equal(samples["inputs"], inversion.sample(per_class=100)[0])
    again = interpkit.load_inversion(tmp_path, target=target)
    assert torch.equal(again.sample(count=5)[0], inversion.sample(count=5)[0])


# ----------------------------------------------------------------------------------------------- loading


def test_a_loaded_inversion_repeats_the_samples_bit_by_bit(tmp_path: Path, tiny_model: Path, quick: Quick) -> None:
    inversion = interpkit.invert(tiny_model, out=tmp_path, **quick(steps=3))
    again = interpkit.load_inversion(tmp_path)
    assert torch.equal(again.sample(per_class=5)[0], inversion.sample(per_class=5)[0])
    assert [record.step for record in again.history] == [record.step for record in inversion.history]


def test_repeating_a_run_from_its_recipe_gives_the_same_files(
    finished_run: Path, tmp_path: Path, tiny_model: Path, same_tensors: Same
) -> None:
    interpkit.invert(tiny_model, config=finished_run / "recipe.toml", out=tmp_path / "again")
    for name in ("generator.safetensors", "samples.safetensors"):
        assert same_tensors(load(tmp_path / "again" / name), load(finished_run / name))
    assert (tmp_path / "again" / "recipe.toml").read_text() == (finished_run / "recipe.toml").read_text()


def test_a_changed_classifier_is_refused_and_a_moved_one_can_be_named(
    tmp_path: Path, make_model: MakeModel, quick: Quick, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model(tmp_path / "mine.safetensors")
    run = Run.open(interpkit.invert(model, **quick(steps=1)).save(tmp_path / "run"))
    moved = Path(shutil.copy(model, tmp_path / "moved.safetensors"))
    make_model(model, seed=1)
    with pytest.raises(ModelError, match=r"mine\.safetensors is not what it was.*model=PATH"):
        interpkit.load_inversion(run.folder)
    caplog.clear()
    assert run.load(model=moved).target.origin == moved and not caplog.messages
    run.load(model=model)
    run.load(interpkit.load_target(model))
    assert [text.partition(": ")[0] for text in caplog.messages] == [
        f"{which} is not what {run.folder} inverted (its sha256 differs)" for which in (model, "mine")
    ]
    model.unlink()
    with pytest.raises(
        ModelError, match=r"there is no .*mine\.safetensors, the classifier that .*name it by model=PATH"
    ):
        interpkit.load_inversion(run.folder)


def test_a_run_of_a_wrapped_module_needs_the_module(
    tmp_path: Path,
    tiny_module: Callable[..., nn.Module],
    make_model: MakeModel,
    quick: Quick,
    caplog: pytest.LogCaptureFixture,
) -> None:
    target = interpkit.wrap(tiny_module(), (1, 12, 12))
    inversion = interpkit.invert(target, out=tmp_path, **quick(steps=2))
    model = manifest(tmp_path)["model"]
    assert (model["name"], model["path"], len(model["sha256"])) == ("SmallCNN", None, 64)
    with pytest.raises(RunError, match=r"load_inversion\(\.\.\., target=\.\.\.\)"):
        interpkit.load_inversion(tmp_path)
    caplog.clear()
    again = interpkit.load_inversion(tmp_path, target=target)
    assert again.target is target
    file = make_model(tmp_path / "packed.safetensors")
    interpkit.load_inversion(tmp_path, target=file)
    assert not caplog.messages
    interpkit.load_inversion(tmp_path, target=interpkit.wrap(tiny_module(1), (1, 12, 12)))
    assert "SmallCNN is not what" in caplog.text
    assert torch.allclose(again.sample(count=3)[0], inversion.sample(count=3)[0], atol=1e-6)


def test_a_run_of_a_wrapped_module_is_resumed_with_the_same_weights_only(
    tmp_path: Path, tiny_module: Callable[..., nn.Module], quick: Quick
) -> None:
    module = tiny_module()
    target = interpkit.wrap(module, (1, 12, 12))
    interpkit.invert(target, out=tmp_path, **quick(steps=2))
    interpkit.invert(target, out=tmp_path, resume=True, **quick(steps=3))
    with torch.no_grad():
        next(module.parameters()).mul_(2)
    for steps in (3, 4):
        with pytest.raises(RunError, match=r"another classifier \(one in memory with other weights"):
            interpkit.invert(target, out=tmp_path, resume=True, **quick(steps=steps))


def test_a_run_whose_extension_was_killed_says_of_which_step_it_is(
    run_copy: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = Run.open(run_copy).load()
    assert not caplog.messages
    stop = before.steps_done + 11

    def die(step: int) -> None:
        if step == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interpkit.invert(tiny_model, out=run_copy, steps=stop + 9, resume=True, on_step=die)
    caplog.clear()
    after = Run.open(run_copy).load()
    assert f"to {stop + 9} steps, or that was interrupted: what it holds is of step {before.steps_done}" in caplog.text
    assert after.steps_done == before.steps_done
    assert torch.equal(after.sample(count=3)[0], before.sample(count=3)[0])


def test_a_target_that_is_not_the_runs_is_refused(finished_run: Path) -> None:
    other = interpkit.wrap(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), (1, 8, 8))
    with pytest.raises(RunError, match="does not fit the recipe"):
        interpkit.load_inversion(finished_run, target=other)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("manifest.json", None, "is not a run folder: it has no manifest.json"),
        ("manifest.json", b'{"schema": 1, "model"', r"manifest\.json cannot be read"),
        ("manifest.json", b"[1]", "is not a JSON object"),
        ("manifest.json", b'{"schema": 2}', "schema 2; this interpkit reads 1. A newer one wrote it: (pip|git) "),
        ("manifest.json", b'{"schema": "x"}', r"schema 'x'; this interpkit reads 1\.$"),
        ("manifest.json", b'{"schema": 1}', "does not state which classifier"),
        ("manifest.json", b'{"schema": 1, "model": {"name": "a", "path": 1, "sha256": null}}', "which classifier"),
        ("generator.safetensors", None, "has no generator.safetensors: the run was not finished"),
        ("generator.safetensors", b"\x08\0\0\0\0\0\0\0{}", "is not a complete safetensors file"),
        ("generator.safetensors", b"", "is not a complete safetensors file"),
        ("generator.safetensors", safetensors.torch.save({"generator.x": torch.ones(1)}), "does not fit the recipe"),
        ("history.jsonl", b'{"step": 1, "los\n{"step": 2}\n', r"history\.jsonl, line 1: not a record"),
    ],
)
def test_a_damaged_file_is_named(run_copy: Path, name: str, content: bytes | None, words: str) -> None:
    if name == "generator.safetensors":  # of a run of 0.1, whose manifest does not list its files
        change_manifest(run_copy, files={})
    (run_copy / name).unlink()
    if content is not None:
        (run_copy / name).write_bytes(content)
    with pytest.raises(RunError, match=words):
        interpkit.load_inversion(run_copy)


def test_a_file_that_is_not_the_one_the_run_wrote_is_refused(run_copy: Path) -> None:
    path = run_copy / "generator.safetensors"
    weights = load(path)
    weights["generator." + next(name for name in weights if name.startswith("generator.")).partition(".")[2]] += 1
    path.write_bytes(safetensors.torch.save(weights))
    with pytest.raises(RunError, match=r"generator\.safetensors is not the file that the run wrote.*sha256"):
        interpkit.load_inversion(run_copy)


def test_a_damaged_recipe_is_named(run_copy: Path) -> None:
    (run_copy / "recipe.toml").write_text("steps = 0")
    with pytest.raises(UsageError, match=r"recipe\.toml: steps = 0"):
        interpkit.load_inversion(run_copy)


@pytest.mark.parametrize("resume", [False, True])
def test_an_invalid_recipe_of_another_release_names_that_release(run_copy: Path, resume: bool) -> None:
    manifest = json.loads((run_copy / "manifest.json").read_text())
    (run_copy / "manifest.json").write_text(json.dumps(manifest | {"interpkit": "7.2.0"}))
    (run_copy / "recipe.toml").write_text("average = 0.9\n" + (run_copy / "recipe.toml").read_text())
    with pytest.raises(
        UsageError, match=r"no option 'average'.*interpkit 7\.2\.0 wrote it.*network-inversion==7\.2\.0"
    ):
        prepare(manifest["model"]["path"], resume_from=run_copy) if resume else interpkit.load_inversion(run_copy)


@pytest.mark.parametrize(
    "tail", ['{"step": 13, "seco', '{"step": 13}', '{"step": 13, "seconds": 0.1, "loss": 1.0, "\ufffd']
)
def test_an_incomplete_last_line_of_the_history_is_ignored(run_copy: Path, tail: str) -> None:
    with (run_copy / "history.jsonl").open("a", encoding="utf-8") as file:
        file.write(tail)
    assert [record.step for record in interpkit.load_inversion(run_copy).history] == [1, 10, 12]


# ---------------------------------------------------------------------------------------------- resuming


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, quick: Quick) -> Path:
    """Return a run of 14 steps that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    interpkit.invert(tiny_model, out=folder, **quick(steps=14, checkpoint_every=5))
    return folder


def assert_same_run(folder: Path, other: Path, same_tensors: Same) -> None:
    for name in ("generator.safetensors", "samples.safetensors"):
        assert same_tensors(load(folder / name), load(other / name)), name
    assert json.loads((folder / "metrics.json").read_text()) == json.loads((other / "metrics.json").read_text())
    losses = {row["step"]: row["loss"] for row in rows(other)}
    steps = [row["step"] for row in rows(folder)]
    assert steps == sorted(set(steps))  # no step twice
    assert steps[0] == 1 and steps[-1] == 14 and {10, 14} <= set(steps)
    assert all(row["loss"] == losses[row["step"]] for row in rows(folder) if row["step"] in losses)


@pytest.mark.parametrize("step", [1, 5, 6, 13])
def test_a_run_that_was_stopped_and_resumed_equals_an_uninterrupted_one(
    tmp_path: Path, tiny_model: Path, quick: Quick, whole: Path, same_tensors: Same, step: int
) -> None:
    stopped = stop_at(step, tmp_path, tiny_model, **quick(steps=14, checkpoint_every=5))
    assert stopped.steps_done == step
    assert manifest(tmp_path)["status"] == "interrupted"
    assert {path.name for path in tmp_path.iterdir()} >= CONTRACT
    interpkit.invert(tiny_model, out=tmp_path, resume=True)
    assert (manifest(tmp_path)["status"], manifest(tmp_path)["resumed_from"]) == ("finished", step)
    assert_same_run(tmp_path, whole, same_tensors)


@pytest.mark.parametrize("step", [3, 9, 12])
def test_a_run_that_was_killed_and_resumed_equals_an_uninterrupted_one(
    tmp_path: Path, tiny_model: Path, quick: Quick, whole: Path, same_tensors: Same, step: int
) -> None:
    """At step 3 there is no checkpoint; at 12 the history is ahead of the checkpoint of step 7, its last line torn."""

    def die(done: int) -> None:
        if done == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interpkit.invert(tiny_model, out=tmp_path, on_step=die, **quick(steps=14, checkpoint_every=7))
    assert (tmp_path / "checkpoint").exists() is (step > 7)
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"step": 11, "sec')
    interpkit.invert(tiny_model, out=tmp_path, resume=True)
    assert_same_run(tmp_path, whole, same_tensors)


def test_a_run_that_was_interrupted_twice_equals_an_uninterrupted_one(
    tmp_path: Path, tiny_model: Path, quick: Quick, whole: Path, same_tensors: Same
) -> None:
    stop_at(4, tmp_path, tiny_model, **quick(steps=14, checkpoint_every=5))
    job = prepare(tiny_model, resume_from=tmp_path)
    job.run(out=tmp_path, resume=True, on_step=lambda done: job.request_stop() if done == 7 else None)
    seconds = rows(tmp_path)[-1]["seconds"]
    interpkit.invert(tiny_model, out=tmp_path, resume=True)
    assert_same_run(tmp_path, whole, same_tensors)
    assert rows(tmp_path)[-1]["seconds"] >= seconds


def test_an_extension_that_stops_while_it_is_judged_leaves_nothing_of_the_shorter_run(
    run_copy: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("interpkit.evaluation.scoring.judge", interrupted)
        with pytest.raises(KeyboardInterrupt):
            interpkit.invert(tiny_model, out=run_copy, resume=True, steps=15)
    assert manifest(run_copy)["steps_done"] == 15
    assert not any((run_copy / name).exists() for name in ("samples.safetensors", "samples.png", "metrics.json"))
    with pytest.raises(RunError, match=r"no metrics\.json: the run was not finished. Resume it: .*resume=True"):
        interpkit.write_report(run_copy)
    interpkit.invert(tiny_model, out=run_copy, resume=True)
    assert {path.name for path in run_copy.iterdir()} == CONTRACT | {"report.html"}


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["metrics.json", "samples.safetensors", "generator.safetensors"])
def test_resuming_a_finished_run_makes_again_what_was_removed(run_copy: Path, tiny_model: Path, name: str) -> None:
    before = (run_copy / name).read_bytes()
    (run_copy / name).unlink()
    interpkit.invert(tiny_model, out=run_copy, resume=True)
    assert (run_copy / name).read_bytes() == before


def test_a_missing_history_is_warned_of_and_the_steps_are_the_runs(
    run_copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (run_copy / "history.jsonl").unlink()
    assert interpkit.load_inversion(run_copy).steps_done == 12
    assert "history.jsonl is missing or ends early" in caplog.text
    interpkit.write_report(run_copy)
    assert "12 of 12 steps" in (run_copy / "report.html").read_text("utf-8")


def test_a_run_without_a_checkpoint_says_that_it_starts_again(
    run_copy: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (run_copy / "checkpoint").unlink()
    interpkit.invert(tiny_model, out=run_copy, resume=True, steps=15)
    assert f"{run_copy} has no checkpoint, so it starts again at step 1" in caplog.messages


def test_a_checkpoint_that_cannot_be_read_now_is_not_to_be_thrown_away(
    run_copy: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error, words in (
        (OSError(5, "Input/output error"), r"output error\.$"),
        (MemoryError(), r"memory ran out\.$"),
    ):
        monkeypatch.setattr("interpkit.runs.folder.load_plain", raising(error))
        with pytest.raises(RunError, match=words):
            interpkit.invert(tiny_model, out=run_copy, resume=True, steps=15)


def raising(error: Exception) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_resuming_and_replacing_exclude_each_other(run_copy: Path, tiny_model: Path) -> None:
    with pytest.raises(UsageError, match="resume=True continues a run, and force=True replaces it"):
        interpkit.invert(tiny_model, out=run_copy, resume=True, force=True)


def test_resuming_nothing_with_no_recipe_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no run in .*none to resume; to begin one, name a preset"):
        interpkit.invert(tiny_model, out=tmp_path / "none", resume=True)


def test_a_run_in_memory_that_is_saved_notes_how_it_was_computed(
    tiny_model: Path, quick: Quick, tmp_path: Path, run_copy: Path
) -> None:
    inversion = interpkit.invert(tiny_model, presets=["vecmat"], **{**quick(steps=2), "plugins": ()})
    inversion.noted = {**inversion.noted, "precision": "fp32", "fell_back": {"after_step": 0, "reason": "NaN"}}
    kept = manifest(inversion.save(tmp_path / "saved"))
    assert kept["presets"] == ["vecmat"] and kept["fell_back"] == {"after_step": 0, "reason": "NaN"}
    change_manifest(run_copy, lowered_rate={"factor": 0.3})
    again = interpkit.load_inversion(run_copy).save(tmp_path / "again")
    assert manifest(again)["lowered_rate"] == {"factor": 0.3}


def test_resuming_without_a_run_starts_one(tmp_path: Path, tiny_model: Path, quick: Quick) -> None:
    interpkit.invert(tiny_model, out=tmp_path / "new", resume=True, **quick(steps=2))
    assert (manifest(tmp_path / "new")["status"], manifest(tmp_path / "new")["resumed_from"]) == ("finished", None)


def test_resuming_a_finished_run_returns_it_unchanged(run_copy: Path, tiny_model: Path) -> None:
    before = {path.name: path.read_bytes() for path in run_copy.iterdir()}
    inversion = interpkit.invert(tiny_model, out=run_copy, resume=True)
    assert inversion.steps_done == 12
    assert {path.name: path.read_bytes() for path in run_copy.iterdir()} == before


def test_more_steps_extend_a_finished_run(run_copy: Path, tiny_model: Path) -> None:
    inversion = interpkit.invert(tiny_model, out=run_copy, resume=True, steps=20)
    assert inversion.steps_done == 20
    assert [row["step"] for row in rows(run_copy)] == [1, 10, 12, 20]
    assert (manifest(run_copy)["steps_done"], manifest(run_copy)["resumed_from"]) == (20, 12)
    assert Run.open(run_copy).recipe().steps == 20


def test_resuming_with_the_preset_named_again_keeps_the_runs_own_length_and_sizes(
    tmp_path: Path, tiny_model: Path, quick: Quick
) -> None:
    stop_at(2, tmp_path, tiny_model, **quick(steps=4, checkpoint_every=3))
    named = {key: value for key, value in quick().items() if key not in ("steps", "batch_size")}
    assert prepare(tiny_model, resume_from=tmp_path, **named, steps=6).recipe.steps == 6
    assert interpkit.invert(tiny_model, out=tmp_path, resume=True, **named).steps_done == 4
    assert (manifest(tmp_path)["status"], manifest(tmp_path)["resumed_from"]) == ("finished", 2)
    kept = Run.open(tmp_path).recipe()
    assert (kept.steps, kept.batch_size, kept.checkpoint_every) == (4, 8, 3)


def test_fewer_steps_cannot_shorten_an_interrupted_run(tmp_path: Path, tiny_model: Path, quick: Quick) -> None:
    stop_at(4, tmp_path, tiny_model, **quick())
    with pytest.raises(RunError, match="has 12 steps; steps=6 cannot shorten it"):
        interpkit.invert(tiny_model, out=tmp_path, resume=True, steps=6)


@pytest.mark.parametrize("finished", [False, True])
def test_resuming_with_another_seed_is_refused_by_name(
    tmp_path: Path, tiny_model: Path, quick: Quick, run_copy: Path, finished: bool
) -> None:
    folder = run_copy if finished else tmp_path / "stopped"
    if not finished:
        stop_at(4, folder, tiny_model, **quick())
    before = (folder / "recipe.toml").read_text()
    with pytest.raises(RunError, match=r"begun with another recipe: seed \(3 there\)"):
        interpkit.invert(tiny_model, out=folder, resume=True, seed=4)
    assert (folder / "recipe.toml").read_text() == before


def test_resuming_names_exactly_the_settings_that_differ(run_copy: Path, tiny_model: Path, quick: Quick) -> None:
    with pytest.raises(RunError) as caught:
        interpkit.invert(tiny_model, out=run_copy, resume=True, **quick(steps=20, batch_size=4, losses={"kl": 0.5}))
    assert "batch_size (8 there)" in str(caught.value) and "losses" in str(caught.value)
    assert "generator" not in str(caught.value) and "seed" not in str(caught.value)


@pytest.mark.parametrize(("labels", "asked"), [(None, [0, 1]), ([0, 1], [1, 0])])
def test_resuming_with_other_classes_is_refused_by_name(
    tmp_path: Path, tiny_model: Path, quick: Quick, labels: list[int] | None, asked: list[int]
) -> None:
    stop_at(4, tmp_path, tiny_model, **quick(labels=labels))
    with pytest.raises(RunError, match=r"another recipe: labels \("):
        interpkit.invert(tiny_model, out=tmp_path, resume=True, labels=asked)


def test_resuming_with_another_classifier_is_refused(
    tmp_path: Path, tiny_model: Path, make_model: MakeModel, quick: Quick
) -> None:
    stop_at(4, tmp_path / "run", tiny_model, **quick())
    with pytest.raises(RunError, match="inverts another classifier"):
        interpkit.invert(make_model(tmp_path / "b.safetensors", seed=1), out=tmp_path / "run", resume=True)


def corrupt_checkpoints() -> dict[str, bytes]:
    import io

    def saved(value: Any) -> bytes:
        buffer = io.BytesIO()
        torch.save(value, buffer)
        return buffer.getvalue()

    whole = saved({"step": 4, "seconds": 1.0, "trained": {"x": torch.ones(1000)}})
    return {
        "empty": b"",
        "text": b"not a checkpoint",
        "torn": whole[: len(whole) // 2],
        "a list": saved([1, 2]),
        "without a step": saved({"trained": {}}),
        "without weights": saved({"step": 4, "seconds": 1.0}),
    }


@pytest.mark.parametrize("content", corrupt_checkpoints().values(), ids=corrupt_checkpoints().keys())
def test_a_corrupt_checkpoint_is_named_and_nothing_is_lost(
    tmp_path: Path, tiny_model: Path, quick: Quick, content: bytes
) -> None:
    stop_at(4, tmp_path, tiny_model, **quick())
    (tmp_path / "checkpoint").write_bytes(content)
    before = load(tmp_path / "generator.safetensors")
    with pytest.raises(RunError, match=r"checkpoint.*force=True"):
        interpkit.invert(tiny_model, out=tmp_path, resume=True)
    assert load(tmp_path / "generator.safetensors").keys() == before.keys()


class Payload:
    """Content of a malicious checkpoint: runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_code_in_a_checkpoint_is_refused_and_not_run(
    tmp_path: Path, tiny_model: Path, quick: Quick, save: Callable[[Any, Path], Any]
) -> None:
    run, mark = tmp_path / "run", tmp_path / "executed"
    stop_at(4, run, tiny_model, **quick())
    save({"step": 4, "seconds": 1.0, "trained": Payload(f"touch {mark}")}, run / "checkpoint")
    with pytest.raises(RunError, match="checkpoint"):
        interpkit.invert(tiny_model, out=run, resume=True)
    assert not mark.exists()
    os.system(f"touch {mark}")  # check that the payload works
    assert mark.exists()


# ------------------------------------------------------------------------------------- folders and failure


def test_the_folder_of_another_run_is_refused_and_replaced_on_request(
    run_copy: Path, tiny_model: Path, quick: Quick
) -> None:
    (run_copy / "notes.txt").write_text("mine")
    before = (run_copy / "manifest.json").read_bytes()
    with pytest.raises(RunError, match=r"holds another run.*resume=True.*force=True.*with out"):
        interpkit.invert(tiny_model, out=run_copy, **quick(steps=2))
    assert (run_copy / "manifest.json").read_bytes() == before
    interpkit.invert(tiny_model, out=run_copy, force=True, **quick(steps=2))
    assert [row["step"] for row in rows(run_copy)] == [1, 2]
    assert (run_copy / "notes.txt").read_text() == "mine"


def test_a_file_instead_of_the_folder_is_refused_by_name(tmp_path: Path, tiny_model: Path, quick: Quick) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="cannot make the folder"):
        interpkit.invert(tiny_model, out=tmp_path / "file", **quick(steps=1))


def test_a_failed_run_keeps_its_last_good_checkpoint_and_says_so(
    tmp_path: Path, quick: Quick, tiny_module: Callable[..., nn.Module]
) -> None:
    class Fading(nn.Module):
        """A classifier that returns NaN at step 8 and again at the lower rate; it runs once before step 1."""

        def __init__(self) -> None:
            super().__init__()
            self.net, self.looks = tiny_module(), 0

        def forward(self, x: Tensor) -> Tensor:
            self.looks += 1
            logits: Tensor = self.net(x)
            return logits * float("nan") if self.looks in (9, 19) else logits

    module = Fading()
    target = interpkit.wrap(module, (1, 12, 12))
    module.looks = 0
    with pytest.raises(RunError, match=r"the target's logits turned non-finite at step 8\..*checkpoint, of step 5"):
        interpkit.invert(target, out=tmp_path, **quick(checkpoint_every=5))
    assert manifest(tmp_path)["status"] == "failed"
    assert torch.load(tmp_path / "checkpoint", weights_only=True)["step"] == 5


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "metrics.json"
    write_atomically(path, "old")
    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_replaces_the_file_with_the_usual_permissions(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    write_atomically(path, b"new")
    (tmp_path / "plain").write_text("x")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_a_full_disk_at_a_checkpoint_keeps_the_previous_one(
    tmp_path: Path, tiny_model: Path, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, full_from = os.replace, 10

    def fill(step: int) -> None:
        if step == full_from:
            monkeypatch.setattr(os, "replace", full)

    def full(source: Any, destination: Any) -> None:
        if Path(destination).name == "checkpoint":
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, destination)

    with pytest.raises(RunError, match=r"checkpoint: No space left on device\..*of step 5.*resume=True"):
        interpkit.invert(tiny_model, out=tmp_path, on_step=fill, **quick(checkpoint_every=5))
    assert torch.load(tmp_path / "checkpoint", weights_only=True)["step"] == 5
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert manifest(tmp_path)["status"] == "failed"


# ----------------------------------------------------------------------------- what is there is not harmed


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", ["recipe.toml", "samples.png", "checkpoint", "report.html"])
def test_a_users_file_that_a_run_would_overwrite_is_named_and_kept(
    tmp_path: Path, tiny_model: Path, quick: Quick, name: str, force: bool
) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(RunError, match=rf"is not a run, but holds {name}, which a run would overwrite.*with out"):
        interpkit.invert(tiny_model, out=tmp_path, force=force, **quick(steps=1))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]


def test_other_files_of_the_user_do_not_matter(tmp_path: Path, tiny_model: Path, quick: Quick) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    interpkit.invert(tiny_model, out=tmp_path, **quick(steps=1))
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_force_removes_nothing_if_the_manifest_is_not_a_runs(tmp_path: Path, tiny_model: Path, quick: Quick) -> None:
    """Web applications have a manifest.json too."""
    (tmp_path / "manifest.json").write_text('{"name": "a page"}')
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(RunError, match=r"manifest\.json has schema None.*force=True removes nothing"):
        interpkit.invert(tiny_model, out=tmp_path, force=True, **quick(steps=1))
    assert (tmp_path / "report.html").read_text() == "mine"


def test_a_folder_counts_as_a_run_until_force_has_removed_everything(
    run_copy: Path, tiny_model: Path, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the command is killed, it can be repeated, and the new run finds no state of the old one."""
    removed: list[str] = []
    unlink = os.unlink

    def seen(path: Any, *rest: Any, **more: Any) -> None:
        removed.append(Path(path).name)
        unlink(path, *rest, **more)

    with Run(run_copy).locked():
        monkeypatch.setattr(os, "unlink", seen)
        Run.create(run_copy, force=True)
    kept = [name for name in removed if not name.startswith(".")]
    assert set(kept) >= CONTRACT and kept[-1] == "manifest.json"


@pytest.mark.parametrize("by", ["Python", "the shell"])
def test_resuming_a_finished_run_removes_the_lock_of_a_process_that_was_killed_as_it_ended(
    run_copy: Path, by: str
) -> None:
    model = Run.open(run_copy).manifest().model.path

    def resumed() -> None:
        if by == "Python":
            assert interpkit.invert(str(model), out=run_copy, resume=True).steps_done
        else:
            result = CliRunner().invoke(app, ["invert", str(model), "--out", str(run_copy), "--resume"])
            assert result.exit_code == 0 and "nothing to do" in result.stderr

    for name in (LOCK, HOLDER):
        (run_copy / name).touch()
    resumed()
    assert not (run_copy / LOCK).exists() and not (run_copy / HOLDER).exists()
    with Run(run_copy).locked():  # by a process that lives
        resumed()
        assert (run_copy / HOLDER).exists()


def test_a_run_that_was_killed_before_its_recipe_was_written_starts_again(
    run_copy: Path, tmp_path: Path, tiny_model: Path, quick: Quick
) -> None:
    barely = tmp_path / "barely"
    barely.mkdir()
    begun = manifest(run_copy) | {"status": "running"}
    (barely / "manifest.json").write_text(json.dumps(begun))
    interpkit.invert(tiny_model, out=barely, resume=True, **quick(steps=2, seed=9))
    assert (manifest(barely)["status"], Run.open(barely).recipe().seed) == ("finished", 9)


def test_resuming_with_another_preprocessing_is_refused_by_name(tmp_path: Path, tiny_model: Path, quick: Quick) -> None:
    stop_at(4, tmp_path, tiny_model, **quick())
    with pytest.raises(RunError, match=r"another recipe: target\.mean \(\[0\.25\] there\)"):
        interpkit.invert(tiny_model, out=tmp_path, resume=True, target_options={"mean": [0.4]})


def test_a_run_is_finished_when_its_report_exists(
    tmp_path: Path, tiny_model: Path, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is killed while it writes the report can be resumed, and then writes it."""
    import interpkit.report.run

    def killed(*arguments: object) -> None:
        assert manifest(tmp_path)["status"] == "running"
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(interpkit.report.run, "render_report", killed)
        with pytest.raises(KeyboardInterrupt):
            interpkit.invert(tiny_model, out=tmp_path, **quick())
    assert not (tmp_path / "report.html").exists()
    interpkit.invert(tiny_model, out=tmp_path, resume=True)
    assert manifest(tmp_path)["status"] == "finished" and (tmp_path / "report.html").exists()


@pytest.mark.parametrize("step", [4, 7, 13])
def test_a_stopped_run_has_the_history_of_an_uninterrupted_one(
    tmp_path: Path, tiny_model: Path, quick: Quick, whole: Path, step: int
) -> None:
    """The step of the stop is recorded for readers of the stopped run, and removed when the run is resumed."""
    stop_at(step, tmp_path, tiny_model, **quick(steps=14, checkpoint_every=5))
    assert rows(tmp_path)[-1]["step"] == step
    interpkit.invert(tiny_model, out=tmp_path, resume=True)
    histories = [[{**row, "seconds": 0} for row in rows(folder)] for folder in (tmp_path, whole)]
    assert histories[0] == histories[1]


def test_checkpoints_do_not_change_the_history(tmp_path: Path, tiny_model: Path, quick: Quick, whole: Path) -> None:
    """Checkpoints also depend on the clock, but equal runs must have equal histories."""
    interpkit.invert(tiny_model, out=tmp_path, **quick(steps=14, checkpoint_every=2))
    histories = [[{**row, "seconds": 0} for row in rows(folder)] for folder in (tmp_path, whole)]
    assert histories[0] == histories[1]


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")], ids=repr)
def test_running_out_of_memory_while_saving_a_checkpoint_repeats_no_step(
    tmp_path: Path, tiny_model: Path, quick: Quick, whole: Path, monkeypatch: pytest.MonkeyPatch, error: Exception,
    same_tensors: Same,
) -> None:  # fmt: skip
    """The step has already changed the weights, so it must not be repeated with half batches."""
    save, saved = torch.save, []

    def out_of_memory(*arguments: Any) -> None:
        saved.append(arguments)
        if len(saved) == 2:
            raise error
        save(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", out_of_memory)
        with pytest.raises(RunError, match=r"out of memory.*resume=True.*checkpoint, of step 5"):
            interpkit.invert(tiny_model, out=tmp_path, **quick(steps=14, checkpoint_every=5))
    assert manifest(tmp_path)["status"] == "failed"
    interpkit.invert(tiny_model, out=tmp_path, resume=True)
    assert_same_run(tmp_path, whole, same_tensors)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells which file is meant")
@pytest.mark.parametrize("name", ["checkpoint", "history.jsonl"])
def test_no_plugin_is_blamed_for_a_full_disk(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A plugin's inverter calls the recorder, so its code is on the stack when the write fails."""
    fsync = os.fsync

    def full(handle: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{handle}")).name.lstrip(".").startswith(name):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    def fill(step: int) -> None:
        monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(RunError, match=rf"^{tmp_path / name}: No space left on device\..*resume=True") as caught:
        interpkit.invert(tiny_model, ["pixels"], out=tmp_path, steps=4, checkpoint_every=2, device="cpu", on_step=fill)
    assert not isinstance(caught.value, interpkit.PluginError)


def test_a_run_that_was_refused_before_its_first_step_is_not_in_the_way(
    tiny_model: Path, quick: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    np.savez(tmp_path / "few.npz", images=np.zeros((2, *interpkit.load_target(tiny_model).input_shape), "float32"))
    for _ in range(2):
        with pytest.raises(UsageError, match=r"few\.npz has 2 pictures"):
            interpkit.invert(tiny_model, inverter="alignment", data=tmp_path / "few.npz", out=tmp_path / "run")
    interpkit.invert(tiny_model, out=tmp_path / "run", **quick(steps=2))
    assert interpkit.load_inversion(tmp_path / "run").steps_done == 2
