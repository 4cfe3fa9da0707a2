"""`DataOptions`: labeled images that a component reads, recorded by their content and checked on resume."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import interpkit
from interpkit import DataOptions, InversionLoss, PictureOptions, RunError, UsageError, load_data
from interpkit.api.invert import prepare
from interpkit.config.recipe import read_toml
from interpkit.interfaces.components import options_of

Quick = Callable[..., dict[str, Any]]
SHAPE = (1, 12, 12)


class Near(InversionLoss):
    """The squared distance from the mean of known images."""

    name = "near"
    mean: Tensor

    class Options(DataOptions):
        """The images to read."""

    options: Options

    def __init__(self, target: interpkit.Target, options: Options | None = None) -> None:
        super().__init__(target, options)
        self.register_buffer("mean", self.options.load(target).images.mean(0))

    def forward(self, batch: interpkit.InversionBatch) -> Tensor:
        return (batch.images - self.mean).square().mean()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "known.npz", images=rng.random((6, *SHAPE), np.float32), labels=np.arange(6) % 3)
    return tmp_path / "known.npz"


@pytest.fixture
def settings(add_plugin: Callable[..., None], quick: Quick, data: Path) -> dict[str, Any]:
    add_plugin(Near)
    return quick(losses={"near": 1.0}, options={"near.data": str(data)}, steps=4)


def manifest(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "manifest.json").read_text()))


def changed(data: Path) -> Path:
    arrays = dict(np.load(data))
    np.savez(data, **{**arrays, "labels": arrays["labels"][::-1]})
    return data


def test_images_are_loaded_in_the_unit_range_with_their_labels(data: Path, tiny_target: interpkit.Target) -> None:
    known = DataOptions(data=str(data)).load(tiny_target)
    assert known.images.shape == (6, *SHAPE) and known.labels.tolist() == [0, 1, 2, 0, 1, 2]
    vectors = interpkit.wrap(torch.nn.Linear(2, 2), (2,), input_range=(-1.0, 3.0))
    np.savez(data.parent / "vectors.npz", images=np.float32([[-1, 3], [1, 1]]), labels=np.array([0, 1]))
    known = DataOptions(data=str(data.parent / "vectors.npz")).load(vectors)
    assert known.images.tolist() == [[0, 1], [0.5, 0.5]]


def test_missing_data_is_refused_when_it_is_needed(tiny_target: interpkit.Target) -> None:
    with pytest.raises(UsageError, match=r"is not set: name labeled images by options=\{'near\.data': DATA\}"):
        options_of("near", DataOptions()).load(tiny_target)


def test_the_digest_depends_on_the_content_and_not_on_the_file(data: Path) -> None:
    packed = data.parent / "packed.npz"
    np.savez_compressed(packed, **dict(np.load(data)))
    one, other = (load_data(str(path), SHAPE).sha256() for path in (data, packed))
    assert one == other != load_data(str(changed(data)), SHAPE).sha256()


def test_the_run_records_the_images_that_it_read_and_the_recipe_their_path(
    tmp_path: Path, tiny_model: Path, settings: dict[str, Any], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data.parent)
    settings["options"]["near.data"] = "known.npz"
    interpkit.invert(tiny_model, out=tmp_path / "run", **settings)
    recorded = {"losses.near.data": {"path": str(data), "sha256": load_data(str(data), SHAPE).sha256()}}
    assert manifest(tmp_path / "run")["data"] == recorded
    assert read_toml(tmp_path / "run" / "recipe.toml")["losses"]["near"]["data"] == str(data)
    assert f"losses.near.data {data}" in (tmp_path / "run" / "report.html").read_text()


def test_a_run_is_reproduced_from_its_recipe_classifier_and_data(
    tmp_path: Path, tiny_model: Path, settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    interpkit.invert(tiny_model, out=tmp_path / "run", **settings)
    interpkit.invert(tiny_model, out=tmp_path / "again", config=tmp_path / "run" / "recipe.toml")
    first, second = (tmp_path / name / "generator.safetensors" for name in ("run", "again"))
    assert first.read_bytes() == second.read_bytes() and not caplog.messages


def test_a_run_is_not_resumed_with_other_images(
    tmp_path: Path, tiny_model: Path, settings: dict[str, Any], data: Path
) -> None:
    interpkit.invert(tiny_model, out=tmp_path / "run", **settings)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    changed(data)
    words = r"known\.npz, the data of losses\.near\.data, has changed since .*run was begun.*sha256.*'near"
    with pytest.raises(RunError, match=words):
        interpkit.invert(tiny_model, out=tmp_path / "run", resume=True, steps=6)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_images_that_the_run_did_not_read_count_as_another_recipe(
    tmp_path: Path, tiny_model: Path, settings: dict[str, Any]
) -> None:
    interpkit.invert(tiny_model, out=tmp_path / "run", **settings)
    recorded = manifest(tmp_path / "run")
    del recorded["data"]
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(recorded))
    recipe = tmp_path / "run" / "recipe.toml"
    recipe.write_text("".join(line for line in recipe.read_text().splitlines(True) if not line.startswith("data = ")))
    with pytest.raises(RunError, match="begun with another recipe: losses"):
        interpkit.invert(tiny_model, out=tmp_path / "run", resume=True, options=settings["options"])


def test_a_run_is_resumed_with_its_images_in_another_place(
    tmp_path: Path, tiny_model: Path, settings: dict[str, Any], data: Path
) -> None:
    interpkit.invert(tiny_model, out=tmp_path / "run", **settings)
    moved = shutil.move(data, tmp_path / "moved.npz")
    with pytest.raises(UsageError, match=r"there is no file .*known\.npz"):
        interpkit.invert(tiny_model, out=tmp_path / "run", resume=True, steps=6)
    options = {"near.data": str(moved)}
    interpkit.invert(tiny_model, out=tmp_path / "run", resume=True, steps=6, options=options)
    assert manifest(tmp_path / "run")["data"]["losses.near.data"]["path"] == str(moved)


def test_a_repeated_run_warns_that_its_images_have_changed(
    tmp_path: Path, tiny_model: Path, settings: dict[str, Any], data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    interpkit.invert(tiny_model, out=tmp_path / "run", **settings)
    changed(data)
    prepare(tiny_model, config=tmp_path / "run" / "recipe.toml")
    (line,) = caplog.messages
    assert "the numbers may differ: losses.near.data" in line and "\n" not in line


def test_a_recipe_from_someone_else_cannot_make_interpkit_read_the_whole_disk(
    tiny_model: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    settings["options"]["near.data"] = "/"
    with pytest.raises(UsageError, match="no class is named 'bin'"):
        interpkit.invert(tiny_model, out=tmp_path / "run", **settings)


class Distance(interpkit.Metric):
    """The squared distance of the samples from the mean of known images."""

    name = "distance"

    class Options(DataOptions):
        """The images to read."""

    options: Options

    def measure(self, study: interpkit.Study) -> dict[str, Any]:
        known = self.options.load(study.target)
        return {"distance": (study.images - known.images.mean(0)).square().mean().item()}


def test_the_data_that_a_metric_reads_is_recorded_with_its_figures(
    add_plugin: Callable[..., None], run_copy: Path, data: Path
) -> None:
    add_plugin(Distance)
    options = {"distance.data": str(data)}
    metrics = interpkit.evaluate(run_copy, metrics=["distance"], options=options)
    digest = load_data(str(data), SHAPE).sha256()
    assert metrics["measured_on"]["distance.data"] == {"path": str(data), "sha256": digest}
    assert metrics["distance"] > 0


@pytest.fixture
def public(tmp_path: Path) -> Path:
    images = np.random.default_rng(1).integers(0, 256, (20, *SHAPE), np.uint8)
    np.savez(tmp_path / "public.npz", images=images, labels=["of no class"] * 20)
    return tmp_path / "public.npz"


def test_pictures_are_returned_without_their_labels_and_must_be_enough(
    public: Path, tiny_target: interpkit.Target, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "interpkit")
    options = PictureOptions(data=str(public))
    assert options.pictures(tiny_target).shape == (20, *SHAPE)
    assert "20 pictures; labels, where it has them, are ignored" in caplog.text
    with pytest.raises(UsageError, match="has 20 pictures; at least 21 are required"):
        options.pictures(tiny_target, least=21)
    with pytest.raises(UsageError, match="the option 'data' is not set: name pictures by"):
        PictureOptions().pictures(tiny_target)


def test_pictures_of_another_size_are_resized_only_on_request(public: Path) -> None:
    larger = interpkit.wrap(torch.nn.Flatten(), (1, 5, 5), num_classes=25)
    with pytest.raises(UsageError, match=r"takes \(1, 5, 5\)\. Have them resized by options=\{'prior\.resize': True\}"):
        options_of("prior", PictureOptions(data=str(public))).pictures(larger)
    assert PictureOptions(data=str(public), resize=True).pictures(larger).shape == (20, 1, 5, 5)


def test_pictures_that_the_classifier_was_trained_on_are_counted(
    public: Path, tiny_target: interpkit.Target, caplog: pytest.LogCaptureFixture
) -> None:
    images = np.load(public)["images"]
    known = public.with_name("training.npz")
    np.savez(known, images=np.concatenate([images[:5].astype("float32") / 255, np.zeros((3, *SHAPE), "float32")]))
    PictureOptions(data=str(public), training=str(known)).pictures(tiny_target)
    assert "5 of its 20 pictures (25.0 %) are among the classifier's own training images" in caplog.text
    caplog.clear()
    np.savez(known, images=np.zeros((3, *SHAPE), "float32"))
    PictureOptions(data=str(public), training=str(known)).pictures(tiny_target)
    assert not [line for line in caplog.records if line.levelname == "WARNING"]


def test_the_digest_of_pictures_does_not_depend_on_their_labels(public: Path, tiny_target: interpkit.Target) -> None:
    record = PictureOptions(data=str(public)).record(tiny_target)
    np.savez(public, images=np.load(public)["images"])
    assert PictureOptions(data=str(public)).record(tiny_target) == record and record["path"] == str(public)


def test_data_named_for_the_run_are_those_of_the_component_that_reads_some(
    tiny_model: Path, settings: dict[str, Any], data: Path, quick: Quick, add_plugin: Callable[..., None]
) -> None:
    options = {key: value for key, value in settings["options"].items() if key != "near.data"}
    job = prepare(tiny_model, **{**settings, "options": options}, data=data)
    assert job.recipe.losses["near"].options["data"] == str(data)
    with pytest.raises(UsageError, match="no component of the recipe reads images: leave data out"):
        prepare(tiny_model, **quick(), data=data)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Replace torchvision's MNIST by images of the tiny classifier's size; return whether each call may download."""
    import torchvision

    downloads: list[bool] = []
    pixels = np.random.default_rng(2).integers(0, 256, (80, *SHAPE[1:]), np.uint8)

    def mnist(root: str, train: bool, download: bool) -> SimpleNamespace:
        downloads.append(download)
        return SimpleNamespace(data=torch.from_numpy(pixels), targets=torch.arange(80) % 3)

    monkeypatch.setattr(torchvision.datasets, "MNIST", mnist)
    return downloads


def test_a_component_reads_a_data_set_of_torchvision_without_a_download(
    asked: list[bool], tiny_target: interpkit.Target
) -> None:
    assert DataOptions(data="torchvision:MNIST").load(tiny_target).images.shape == (80, *SHAPE)
    assert PictureOptions(data="torchvision:MNIST", training="torchvision:MNIST:train").pictures(tiny_target).any()
    assert len(DataOptions(data="torchvision:MNIST").record(tiny_target)["sha256"]) == 64
    assert len(asked) >= 4 and not any(asked)


def test_a_data_set_of_torchvision_is_downloaded_if_it_is_typed_but_not_if_a_recipe_names_it(
    asked: list[bool], tiny_model: Path, quick: Quick, tmp_path: Path
) -> None:
    config = tmp_path / "recipe.toml"
    config.write_text('presets = ["vecmat"]\n[losses.prior]\nweight = 1.0\nwidth = 4\ndata = "torchvision:MNIST"\n')
    sizes = {key: value for key, value in quick(steps=1).items() if key != "plugins"}
    interpkit.invert(tiny_model, config=config, out=tmp_path / "run", **sizes)
    interpkit.invert(tiny_model, config=tmp_path / "run" / "recipe.toml")
    assert asked and not any(asked)
    asked.clear()
    typed = quick(steps=1, losses={"prior": 1.0}, options={"prior.data": "torchvision:MNIST", "prior.width": 4})
    interpkit.invert(tiny_model, **typed)
    assert asked[0] and not any(asked[1:])  # downloaded once, and then read
    asked.clear()
    options = {key: value for key, value in typed["options"].items() if key != "prior.data"}
    prepare(tiny_model, **{**typed, "options": options}, data="torchvision:MNIST")
    assert asked[0] and not any(asked[1:])


def test_a_data_set_typed_for_a_metric_is_downloaded_once(
    asked: list[bool], add_plugin: Callable[..., None], run_copy: Path
) -> None:
    add_plugin(Distance)
    assert interpkit.evaluate(run_copy, metrics=["distance"], options={"distance.data": "torchvision:MNIST"})
    assert asked[0] and len(asked) > 1 and not any(asked[1:])
