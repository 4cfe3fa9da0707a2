"""Inversions that are a fixed set of images: how images are drawn, and how a run on disk keeps them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

import interpkit
from interpkit import ImageInversion, Inverter, Parts, Preset, Recipe, Recorder, RunError, Target, UsageError
from interpkit.api.invert import prepare
from interpkit.cli import app
from interpkit.evaluation.scoring import draw_for_run, sample_size
from interpkit.plugins.discovery import Plugins

Add = Callable[..., None]


class Noise(Inverter):
    """Makes images of noise, and runs the target only for the recorder."""

    name = "noise"

    class Options(interpkit.Options):
        """The number of images."""

        per_class: int = 4

    options: Options

    def invert(self, target: Target, recipe: Recipe, parts: Parts, recorder: Recorder) -> ImageInversion:
        classes = range(target.num_classes) if recipe.labels is None else recipe.labels
        labels = torch.tensor(classes).repeat(self.options.per_class)
        rng = torch.Generator().manual_seed(recipe.seed)
        images = torch.rand(len(labels), *target.input_shape, generator=rng)
        recorder.start()
        for step in range(1, recipe.steps + 1):
            with torch.no_grad():
                recorder.step(step, torch.tensor(1.0), {}, images, target(images), labels)
        return ImageInversion(target, recipe, recorder.history, images, labels)


PRESET = Preset("noise", {"inverter": {"name": "noise"}, "steps": 3}, "Noise.")


@pytest.fixture
def noise(add_plugin: Add) -> None:
    """Install the inverter and its preset for this test."""
    add_plugin(Noise, PRESET)


def made(target: Target | Path, per_class: int = 4, **settings: Any) -> ImageInversion:
    inversion = interpkit.invert(target, inverter="noise", options={"noise.per_class": per_class}, **settings)
    assert isinstance(inversion, ImageInversion)
    return inversion


@pytest.fixture
def counted(tiny_target: Target) -> ImageInversion:
    """Return an inversion of 2 images of class 0, 4 of class 1 and 3 of class 2; all pixels of image i are i / 10."""
    labels = torch.tensor([1, 2, 1, 0, 1, 2, 2, 0, 1])
    images = (torch.arange(9) / 10).view(9, 1, 1, 1).expand(9, *tiny_target.input_shape)
    recipe = Recipe.model_validate({"inverter": {"name": "noise", "per_class": 4}})
    return ImageInversion(tiny_target, recipe, [], images, labels)


def numbers(images: Tensor) -> list[int]:
    return [round(float(image.mean()) * 10) for image in images]


@pytest.mark.parametrize("value", [-0.134, 1.5, float("nan")])
def test_images_outside_0_to_1_are_refused_in_the_name_of_the_inverter(tiny_target: Target, value: float) -> None:
    images, recipe = torch.rand(3, 1, 12, 12), Recipe.model_validate({"inverter": {"name": "noise"}})
    images[1, 0, 3, 4] = value
    with pytest.raises(interpkit.PluginError, match=r"the inverter 'noise' .* its images are finite and in \[0, 1\]"):
        ImageInversion(tiny_target, recipe, [], images, torch.arange(3))


def test_images_that_leave_0_to_1_by_rounding_are_clamped(tiny_target: Target) -> None:
    images = torch.full((3, 1, 12, 12), 1 + 1e-4)
    assert (ImageInversion(tiny_target, Recipe(), [], images, torch.arange(3)).images == 1).all()


# ---------------------------------------------------------------------------------------- drawing


def test_images_that_are_drawn_outside_0_to_1_are_refused(counted: ImageInversion) -> None:
    counted.images = counted.images - 0.134  # any inversion draws from what it likes
    with pytest.raises(interpkit.PluginError, match=r"not from -0.134 to 0.666"):
        counted.sample_up_to(4, [1])


def test_images_are_drawn_in_their_order_and_the_classes_take_turns(counted: ImageInversion) -> None:
    images, labels = counted.sample(count=5)
    assert (numbers(images), labels.tolist()) == ([3, 0, 1, 7, 2], [0, 1, 2, 0, 1])
    images, labels = counted.sample(per_class=2)
    assert (numbers(images), labels.tolist()) == ([3, 7, 0, 2, 1, 5], [0, 0, 1, 1, 2, 2])
    images, labels = counted.sample(per_class=3, labels=[2, 1])
    assert (numbers(images), labels.tolist()) == ([1, 5, 6, 0, 2, 4], [2, 2, 2, 1, 1, 1])


def test_of_a_class_with_fewer_images_all_are_drawn(counted: ImageInversion) -> None:
    drawn = counted.draw_up_to(3)
    assert (numbers(drawn.images), drawn.labels.tolist()) == ([3, 7, 0, 2, 4, 1, 5, 6], [0, 0, 1, 1, 1, 2, 2, 2])
    assert torch.equal(drawn.distribution, torch.eye(3)[drawn.labels])
    drawn = counted.draw_up_to(1, labels=["class 2", 0])
    assert (numbers(drawn.images), drawn.labels.tolist()) == ([1, 3], [2, 0])


def test_seed_and_dropout_do_not_change_the_drawn_images(counted: ImageInversion) -> None:
    assert torch.equal(counted.sample(count=6, seed=5, dropout=True)[0], counted.sample(count=6)[0])


def test_the_conditions_are_one_hot_and_all_images_have_the_same_generator(counted: ImageInversion) -> None:
    drawn = counted.draw(count=4)
    assert torch.equal(drawn.distribution, torch.eye(3)[[0, 1, 2, 0]])
    assert drawn.generator.tolist() == [0] * 4


def test_by_default_all_images_of_every_class_are_drawn_up_to_ten(counted: ImageInversion, tiny_target: Target) -> None:
    assert counted.images_per_class == 2
    assert len(counted.sample()[0]) == 6
    labels = torch.arange(3).repeat(12)
    assert len(ImageInversion(tiny_target, Recipe(), [], torch.rand(36, 1, 12, 12), labels).sample()[0]) == 30


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"per_class": 3}, r"class 0 has 2 images, not 3: .*'inverter\.per_class': 3"),
        ({"count": 7}, "class 0 has 2 images, not 3"),
        ({"per_class": 4, "labels": [1, 2]}, "class 2 has 3 images, not 4"),
        ({"count": 9, "labels": [1, 2]}, "class 1 has 4 images, not 5"),
    ],
)
def test_requesting_too_many_images_reports_how_many_exist(
    counted: ImageInversion, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        counted.sample(**arguments)


def test_the_message_names_only_options_that_the_inverter_has(tiny_target: Target) -> None:
    inversion = ImageInversion(tiny_target, Recipe(), [], torch.rand(3, 1, 12, 12), torch.arange(3))
    with pytest.raises(UsageError, match=r"class 0 has 1 images, not 2: .* Ask for fewer\.$"):
        inversion.sample(2)


def test_a_class_without_an_image_and_without_a_reason_is_refused(tiny_target: Target) -> None:
    with pytest.raises(RunError, match=r"no image of the classes \[1\], and gave no reason.*empty="):
        ImageInversion(tiny_target, Recipe(), [], torch.rand(2, 1, 12, 12), torch.tensor([0, 2]))


def test_an_empty_class_has_a_reason_and_the_others_are_sampled(tiny_target: Target) -> None:
    images, labels = torch.rand(4, 1, 12, 12), torch.tensor([0, 2, 0, 2])
    inversion = ImageInversion(tiny_target, Recipe(), [], images, labels, empty={1: "no input reaches it"})
    assert (inversion.classes, inversion.images_per_class) == ([0, 2], 2)
    assert inversion.sample()[1].tolist() == [0, 0, 2, 2]
    with pytest.raises(UsageError, match=r"class 1 \(class 1\) is empty: no input reaches it"):
        inversion.sample(labels=[0, 1])
    with pytest.raises(UsageError, match=r"labels \[3\] were not inverted; this inversion has \[0, 2\]"):
        inversion.sample(labels=[3])
    assert inversion._repr_html_() and inversion.figure(per_class=2)


# ------------------------------------------------------------------------------------------- on disk


@pytest.mark.usefixtures("noise")
def test_a_run_stores_the_images_in_8_bits_without_a_generator(tmp_path: Path, tiny_model: Path) -> None:
    fresh = made(tiny_model, out=tmp_path, labels=[2, 0], seed=7)
    assert not (tmp_path / "generator.safetensors").exists()
    with Image.open(tmp_path / "samples.png") as grid:
        assert grid.size[1] == 2 * (48 + 2) + 2
    again = interpkit.load_inversion(tmp_path)
    assert isinstance(again, ImageInversion)
    for arguments in ({}, {"per_class": 2}, {"count": 5}, {"per_class": 4, "labels": [0]}):
        (images, labels), (expected, asked) = again.sample(**arguments), fresh.sample(**arguments)
        assert torch.equal(images, (expected * 255).round() / 255)
        assert torch.equal(labels, asked)
    assert again.recipe.to_toml() == fresh.recipe.to_toml()
    assert [record.step for record in again.history] == [record.step for record in fresh.history] == [1, 3]
    with pytest.raises(UsageError, match="class 2 has 4 images, not 5"):
        again.sample(per_class=5)


@pytest.mark.usefixtures("noise")
def test_an_inversion_in_memory_is_saved_likewise(tmp_path: Path, tiny_model: Path) -> None:
    again = interpkit.load_inversion(made(tiny_model).save(tmp_path / "run"))
    assert len(again.sample()[0]) == 12


@pytest.mark.usefixtures("noise")
def test_vectors_are_kept_as_they_are_in_their_own_units(tmp_path: Path) -> None:
    target = interpkit.wrap(nn.Linear(3, 2), (3,), input_range=[(4, 8), (-1, 1), (0, 10)])
    fresh = made(target, out=tmp_path)
    kept = safetensors.torch.load_file(tmp_path / "samples.safetensors")["inputs"]
    assert kept[:, 0].min() >= 4 and kept[:, 2].max() > 1
    again = interpkit.load_inversion(tmp_path, target=target)
    assert torch.allclose(again.sample()[0], fresh.sample()[0], atol=1e-6)


@pytest.mark.usefixtures("noise")
@pytest.mark.parametrize(("classes", "per_class", "kept"), [(3, 102, 300), (11, 92, 1000), (11, 2, 22)])
def test_a_run_keeps_a_limited_number_of_images_and_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, classes: int, per_class: int, kept: int
) -> None:
    target = interpkit.wrap(nn.Sequential(nn.Flatten(), nn.Linear(16, classes)), (1, 4, 4))
    made(target, per_class, out=tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text())["count"] == kept
    warned = f"the run keeps {kept} of the {classes * per_class} images" in caplog.text
    assert warned is (kept < classes * per_class)
    assert len(interpkit.load_inversion(tmp_path, target=target).sample(count=kept)[0]) == kept


def test_a_run_keeps_all_images_though_one_class_has_few(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    target = interpkit.wrap(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), (1, 4, 4))
    labels = torch.tensor([0] + [1] * 39)
    recipe = Recipe.model_validate({"inverter": {"name": "pixels"}, "device": "cpu"})
    inversion = ImageInversion(target, recipe, [], torch.rand(40, 1, 4, 4), labels)
    assert interpkit.evaluate(inversion)["count"] == 40
    folder = inversion.save(tmp_path / "run")
    kept = safetensors.torch.load_file(folder / "samples.safetensors")
    assert torch.equal(kept["labels"], labels)
    assert torch.equal(kept["images"], (inversion.images * 255).round().to(torch.uint8))
    assert json.loads((folder / "metrics.json").read_text())["count"] == 40 and "the run keeps" not in caplog.text
    assert len(interpkit.load_inversion(folder, target=target).draw_up_to(100).images) == 40
    assert '"asked": [[' in interpkit.write_report(folder, target=target).read_text("utf-8")  # of the same conditions


@pytest.mark.parametrize(("counts", "kept"), [([1, 39], 40), ([101, 300], 200), ([2] * 11, 22), ([1] + [95] * 10, 901)])
def test_a_run_keeps_as_many_images_of_each_class_as_there_are_up_to_its_limit(counts: list[int], kept: int) -> None:
    target = interpkit.wrap(nn.Linear(3, len(counts)), (3,))
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    inversion = ImageInversion(target, Recipe(device="cpu"), [], torch.rand(len(labels), 3), labels)
    drawn = draw_for_run(inversion)
    assert len(drawn.labels) == kept
    if len(set(counts)) == 1:  # as ever: the classes take turns
        assert torch.equal(drawn.images, inversion.draw(**sample_size(inversion)).images)
        assert drawn.labels[:3].tolist() == [0, 1, 2]


def spoil(path: Path, **changes: Tensor | None) -> None:
    tensors = safetensors.torch.load_file(path)
    for name, tensor in changes.items():
        del tensors[name]
        if tensor is not None:
            tensors[name] = tensor
    path.write_bytes(safetensors.torch.save(tensors))


@pytest.mark.usefixtures("noise")
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda path: path.unlink(), r"samples.safetensors: the run was not finished. Resume it: .*resume=True"),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "not a complete safetensors file"),
        (lambda path: spoil(path, labels=None), "holds .*; samples of tiny need images, labels and generator"),
        (lambda path: spoil(path, images=None), "samples of tiny need images, labels and generator"),
        (lambda path: spoil(path, images=torch.zeros(12, 1, 4, 4, dtype=torch.uint8)), r"shape \(1, 4, 4\)"),
        (lambda path: spoil(path, labels=torch.arange(12)), "labels 0 to 11; tiny .* has 3 classes"),
        (lambda path: spoil(path, labels=torch.zeros(12, dtype=torch.int64)), r"no image of the classes \[1, 2\]"),
        (lambda path: spoil(path, labels=torch.tensor(0)), "not a file of samples"),
        (lambda path: spoil(path, images=torch.zeros(12, 1, 12, 12)), "not a file of samples: images torch.float32"),
    ],
    ids=[
        "missing",
        "torn",
        "no labels",
        "no images",
        "other size",
        "other labels",
        "a class short",
        "one label",
        "floats",
    ],
)
def test_a_corrupt_file_of_images_is_reported(
    tmp_path: Path, tiny_model: Path, fault: Callable[[Path], Any], words: str
) -> None:
    made(tiny_model, out=tmp_path)
    fault(tmp_path / "samples.safetensors")
    with pytest.raises(RunError, match=words):
        interpkit.load_inversion(tmp_path)


# -------------------------------------------------------------------------------------- the command line


def cli(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.usefixtures("noise")
def test_sample_draws_from_such_a_run(tmp_path: Path, tiny_model: Path) -> None:
    run, file = tmp_path / "run", tmp_path / "drawn.safetensors"
    made(tiny_model, out=run)
    assert cli("sample", run, "--out", file).exit_code == 0
    drawn, kept = (safetensors.torch.load_file(path) for path in (file, run / "samples.safetensors"))
    assert torch.equal(drawn["images"], kept["images"])
    refused = cli("sample", run, "--per-class", "9", "--out", file)
    assert refused.exit_code == 2
    assert "class 0 has 4 images, not 9" in " ".join(refused.stderr.split())


@pytest.mark.usefixtures("noise")
def test_an_inverter_alone_applies_the_preset_of_its_name(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("invert", tiny_model, "--inverter", "noise", "--device", "cpu").exit_code == 0
    manifest = json.loads((tmp_path / "runs" / "tiny-noise-1" / "manifest.json").read_text())
    assert (manifest["presets"], manifest["steps_done"], manifest["status"]) == (["noise"], 3, "finished")


@pytest.mark.usefixtures("noise")
def test_a_specified_preset_or_file_is_enough(tmp_path: Path, tiny_model: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text("steps = 17\n")
    assert prepare(tiny_model, config=file, inverter="noise").recipe.steps == 17
    job = prepare(tiny_model, ["vecmat"], inverter="noise")
    assert (job.presets, job.recipe.steps) == (["vecmat"], Recipe().steps)


def test_an_inverter_beside_a_plugin_file_applies_the_preset_of_its_name_unless_the_file_brings_one(
    tiny_model: Path, tmp_path: Path, plugins: Plugins
) -> None:
    head = "from interpkit import Preset, hookimpl\n\n@hookimpl\ndef register(registry):\n    "
    (tmp_path / "bare.py").write_text(head + "pass\n")
    preset = "{'losses': {'ce': {'weight': 2.0}}}"
    (tmp_path / "own.py").write_text(head + f"registry.add(Preset('own', {preset}, 'Cross-entropy.'))\n")
    job = prepare(tiny_model, [tmp_path / "bare.py"], inverter="pixels")
    assert (job.presets, job.recipe.steps, job.recipe.optimizer.lr) == (["pixels"], 200, 0.1)
    job = prepare(tiny_model, [tmp_path / "own.py"], inverter="pixels")
    assert (job.presets, list(job.recipe.losses), job.recipe.steps) == (["own"], ["ce"], Recipe().steps)


def test_facts_about_a_classifier_that_is_loaded_already_are_refused(tiny_model: Path) -> None:
    target = interpkit.load_target(tiny_model)
    with pytest.raises(UsageError, match=r"is loaded already, so mean=0\.5 would have no effect: state it in wrap"):
        prepare(target, ["pixels"], target_options={"mean": 0.5})
    assert prepare(target, ["pixels"], target_options={}).recipe.target.mean == [0.25]
    assert prepare(tiny_model, ["pixels"], target_options={"mean": 0.5}).recipe.target.mean == [0.5]


def test_the_default_inverter_alone_still_requires_a_preset(tiny_model: Path) -> None:
    refused = cli("invert", tiny_model, "--inverter", "generator")
    assert refused.exit_code == 2
    assert "name a preset by --preset NAME" in " ".join(refused.stderr.split())


def test_an_inverter_without_required_parts_does_not_require_a_preset(add_plugin: Add, tiny_model: Path) -> None:
    add_plugin(Noise)
    job = prepare(tiny_model, inverter="noise", steps=2)
    assert (job.recipe.inverter.name, job.recipe.steps, job.presets) == ("noise", 2, [])
    with pytest.raises(UsageError, match=r"name a preset by presets=\[NAME\]"):
        prepare(tiny_model, inverter="generator")
