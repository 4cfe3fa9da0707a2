"""The disk use of a run is estimated before it starts, and a disk that is too small is refused."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import interpkit
from interpkit import RunError
from interpkit.api.invert import prepare
from interpkit.cli import app
from interpkit.inversion import recovery
from interpkit.runs import disk_space

Quick = Callable[..., dict[str, Any]]
Usage = namedtuple("Usage", "total used free")


def taken(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"steps": 40, "checkpoint_every": 1},
        {"generators": 2},
        {"labels": [1]},
        {"plugins": [], "inverter": "pixels", "losses": {"ce": 1.0}, "options": {}, "checkpoint_every": 3},
        {"plugins": [], "inverter": "photo", "options": {}, "checkpoint_every": 3, "batch_size": 4, "per_class": 6},
    ],
    ids=["plain", "long", "two generators", "one class", "without a generator", "in groups"],
)
def test_a_run_never_uses_more_than_estimated(
    tiny_model: Path, quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """Measure when each file is renamed, because the old file still exists then."""
    monkeypatch.setattr(recovery, "KEEP_EVERY", 10)
    monkeypatch.setattr(disk_space, "PAGES", 300_000)  # otherwise such a small run could never exceed the estimate
    replace, most = os.replace, 0

    def watched(source: Any, destination: Any) -> None:
        nonlocal most
        most = max(most, taken(Path(destination).parent))
        replace(source, destination)

    monkeypatch.setattr(os, "replace", watched)
    settings = quick() | changes
    job = prepare(tiny_model, settings.pop("plugins"), **settings)
    job.run(out=tmp_path / "run")
    assert 0 < taken(tmp_path / "run") <= most <= job.disk_bytes


def test_the_state_of_one_group_is_counted_if_images_are_finished_in_groups(tiny_target: Any) -> None:
    one, many = (prepare(tiny_target, inverter="photo", per_class=n, batch_size=10).disk_bytes for n in (3, 300))
    pixels = 900 * 12 * 12
    assert many - one < 5 * pixels  # two checkpoints of 8 bits, and the samples; the state of a pixel has 36 bytes


def test_checkpoints_dominate_the_estimate_of_a_large_generator(tiny_target: Any, quick: Quick) -> None:
    wide = {"upconv.width": 128, "upconv.min_width": 64}
    small, large = (prepare(tiny_target, **quick(options=options)).disk_bytes for options in ({}, wide))
    weights = sum(
        tensor.numel() * tensor.element_size()
        for tensor in interpkit.invert(tiny_target, **quick(options=wide, steps=1)).generator.state_dict().values()  # type: ignore[attr-defined]
    )
    assert 18 * weights < large - disk_space.PAGES < 22 * weights + small - disk_space.PAGES


def test_the_disk_use_is_estimated_without_allocating_weights(
    tiny_model: Path, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[str] = []
    uniform = torch.nn.init.kaiming_uniform_

    def noted(tensor: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        devices.append(tensor.device.type)
        return uniform(tensor, *arguments, **named)

    job = prepare(tiny_model, **quick())
    monkeypatch.setattr("torch.nn.init.kaiming_uniform_", noted)
    assert job.disk_bytes > 0 and set(devices) == {"meta"}


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    tiny_model: Path, quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 5_000_000, 5_000_000))
    with pytest.raises(RunError, match=r"run may take \d+\.\d MB, and 5\.0 MB are free there: make room"):
        interpkit.invert(tiny_model, out=tmp_path / "run", **quick())
    assert not (tmp_path / "run").exists()


def test_files_that_a_run_replaces_count_as_free(
    run_copy: Path, tiny_model: Path, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = prepare(tiny_model, **quick())
    short = Usage(10**9, 0, job.disk_bytes - taken(run_copy))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: short)
    disk_space.check(run_copy, job.disk_bytes)
    with pytest.raises(RunError, match="make room"):
        disk_space.check(run_copy, job.disk_bytes + 1)
    with pytest.raises(RunError, match="make room"):
        disk_space.check(run_copy.with_name("other"), job.disk_bytes)


def test_the_free_space_is_that_of_the_nearest_existing_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def usage(path: Path) -> Usage:
        asked.append(path)
        return Usage(10, 0, 10)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    monkeypatch.chdir(tmp_path)
    disk_space.check(Path("a/b/c"), 10)
    assert asked == [tmp_path]


@pytest.mark.parametrize("dry", [True, False])
def test_the_command_line_prints_the_estimate_at_the_start(
    tiny_model: Path, quick_flags: list[str], tmp_path: Path, dry: bool
) -> None:
    words = ["invert", str(tiny_model), *quick_flags, "--out", str(tmp_path / "run"), *(["--dry-run"] if dry else [])]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0
    assert "takes up to 8." in result.stderr and "MB of the disk" in result.stderr
    assert "of the disk" not in result.stdout
    assert (tmp_path / "run").exists() is not dry
