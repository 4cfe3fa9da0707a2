"""A third party's inverter with an `Inversion` class of its own, examples/interpkit-edges: run, resumed and shown."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import interpkit

PACKAGE = Path(__file__).parent.parent.parent / "examples" / "interpkit-edges"


@pytest.fixture(scope="module")
def site(install: Callable[[Path], Path]) -> Path:
    """The folder that the package is installed into."""
    return install(PACKAGE)


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Coarse images of many kinds."""
    coarse = torch.rand(400, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate((coarse > 0.5).float(), (12, 12))


@pytest.fixture(scope="module")
def model(images: Tensor, tiny_module: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a classifier that puts some of the images in classes 1 and 2, and none in class 0."""
    arguments = {"input_shape": [1, 12, 12], "num_classes": 3, "widths": [4], "hidden": 8}
    module = tiny_module().eval()
    with torch.no_grad():
        module[-1].bias -= module(images).mean(0) + torch.tensor([9.0, 0, 0])
    path = tmp_path_factory.mktemp("model") / "two.safetensors"
    names = [f"class {label}" for label in range(3)]
    return interpkit.save_target(
        module, path, architecture="interpkit:cnn", arch_args=arguments, input_shape=(1, 12, 12), class_names=names
    )


@pytest.fixture(scope="module")
def data(model: Path, images: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images that the classifier puts in class 1, and ten in class 2."""
    target = interpkit.load_target(model)
    with target.frozen(), torch.no_grad():
        predicted = target(images).argmax(1)
    rows = torch.cat([(predicted == label).nonzero()[:10, 0] for label in (1, 2)])
    assert predicted[rows].tolist() == [1] * 10 + [2] * 10
    path = tmp_path_factory.mktemp("data") / "known.npz"
    np.savez(path, images=images[rows].numpy(), labels=predicted[rows].numpy())
    return path


@pytest.fixture(scope="module")
def run(interpkit_with: Any, model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the package's inverter. Not to be changed; see ``copy``."""
    folder = tmp_path_factory.mktemp("runs") / "edges"
    words = ["--plugin", "edges", "--set", f"edges.data={data}", "--device", "cpu", "--steps", "6"]
    done = interpkit_with("invert", model, *words, "--out", folder)
    assert done.returncode == 0, done.stderr
    assert "class 0 (class 0) is empty: the target puts none of the 20 images" in " ".join(done.stderr.split())
    return folder


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may spoil."""
    return Path(shutil.copytree(run, tmp_path / "run"))


def read(run: Path, name: str = "manifest.json") -> dict[str, Any]:
    return dict(json.loads((run / name).read_text()))


def test_the_run_keeps_its_files_its_empty_class_and_its_data(run: Path, data: Path) -> None:
    manifest, metrics = read(run), read(run, "metrics.json")
    assert set(manifest["files"]) == {"edges.safetensors", "edges.csv"}
    for name, known in manifest["files"].items():
        assert hashlib.sha256((run / name).read_bytes()).hexdigest() == known
    assert not (run / "generator.safetensors").exists()
    reason = "the target puts none of the 20 images of the data in it"
    assert manifest["empty"] == metrics["empty"] == {"0": reason}
    assert manifest["data"]["inverter.data"]["path"] == str(data)
    assert [row["label"] for row in metrics["per_class"]] == [1, 2] and 0 < metrics["margin"] < 1
    page = (run / "report.html").read_text()
    assert metrics["margin"] < 0.1 and "The samples lie next to the edge of their class" in page
    assert "How much more probable the first class is" in page
    assert "Across the edge" in page and f"class 0: {reason}" in page and page.count('class="strip"') == 2


def test_the_run_is_loaded_and_sampled(interpkit_with: Any, run: Path, tmp_path: Path) -> None:
    done = interpkit_with("sample", run, "--per-class", "120", "--out", tmp_path / "drawn.safetensors")
    assert done.returncode == 0, done.stderr
    drawn, kept = (
        safetensors.torch.load_file(path) for path in (tmp_path / "drawn.safetensors", run / "samples.safetensors")
    )
    assert drawn["labels"].bincount().tolist() == [0, 120, 120]
    assert torch.equal(drawn["images"][:100], kept["images"][:100])
    refused = interpkit_with("sample", run, "--labels", "0", "--out", tmp_path / "none.safetensors")
    assert refused.returncode == 2
    assert "class 0 (class 0) is empty: the target puts none of the 20 images" in " ".join(refused.stderr.split())


def test_the_run_is_written_as_shards_evaluated_compared_and_reported(
    interpkit_with: Any, copy: Path, tmp_path: Path
) -> None:
    shards = ["--count", "30", "--shard-size", "20", "--accepted", "--out", tmp_path / "shards"]
    for words in (
        ["sample", copy, *shards],
        ["evaluate", copy, "--metric", "margin"],
        ["compare", copy, copy],
        ["report", copy],
    ):
        done = interpkit_with(*words)
        assert done.returncode == 0, done.stderr
    assert read(tmp_path / "shards", "index.json")["labels"] == [1, 2]
    assert read(copy, "metrics.json")["empty"] and "Across the edge" in (copy / "report.html").read_text()


def test_the_run_is_resumed_to_more_steps_as_one_of_that_length(
    interpkit_with: Any, copy: Path, model: Path, data: Path, tmp_path: Path
) -> None:
    resumed = interpkit_with("invert", model, "--out", copy, "--resume", "--steps", "9")
    assert resumed.returncode == 0, resumed.stderr
    words = ["--config", copy / "recipe.toml"]
    whole = interpkit_with("invert", model, *words, "--out", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    manifests = [read(folder) for folder in (copy, tmp_path / "whole")]
    assert manifests[0]["files"] == manifests[1]["files"] and manifests[0]["data"] == manifests[1]["data"]
    assert manifests[0]["resumed_from"] == 6 and manifests[0]["steps_done"] == 9


def test_changed_data_is_refused_by_resume_and_logged_where_a_run_is_repeated(
    interpkit_with: Any, copy: Path, model: Path, data: Path, tmp_path: Path
) -> None:
    changed, moved = tmp_path / "changed.npz", tmp_path / "moved.npz"
    arrays = dict(np.load(data))
    np.savez_compressed(moved, **arrays)
    np.savez(changed, **{**arrays, "images": arrays["images"] * 0.999})
    resume = ["invert", model, "--out", copy, "--resume", "--steps", "7", "--set"]
    refused = interpkit_with(*resume, f"edges.data={changed}")
    assert refused.returncode == 1
    assert "the data of inverter.data, has changed since" in " ".join(refused.stderr.split())
    assert interpkit_with(*resume, f"edges.data={moved}").returncode == 0
    repeat = ["invert", model, "--config", copy / "recipe.toml", "--set", f"edges.data={changed}"]
    told = interpkit_with(*repeat, "--out", tmp_path / "repeated")
    assert told.returncode == 0, told.stderr
    assert "the numbers may differ: inverter.data" in " ".join(told.stderr.split())


def test_a_run_without_the_package_says_what_to_install(interpkit_with: Any, run: Path) -> None:
    missed = interpkit_with("sample", run, gone=True)
    assert missed.returncode == 4
    assert "pip install interpkit-edges==0.1.0" in " ".join(missed.stderr.split())


def test_its_own_tests_pass(python_path: str, run_python: Callable[..., Any]) -> None:
    environment = {"PYTHONPATH": python_path, "PYTHONDONTWRITEBYTECODE": "1"}
    done = run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=PACKAGE, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
