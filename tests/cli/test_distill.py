"""``interpkit distill``: a smaller classifier from a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import interpkit
from interpkit.cli import app


def cli(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["distill", *map(str, arguments)])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (30, 12, 12), dtype=np.uint8), np.arange(30) % 3
    np.savez(tmp_path / "data.npz", x_test=images, y_test=labels)
    return tmp_path / "data.npz"


def test_a_run_becomes_a_smaller_classifier(finished_run: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.safetensors"
    small = ["--arch", "interpkit:cnn", "--arch-arg", "widths=[2]", "--arch-arg", "hidden=4", "--steps", "3"]
    result = cli(finished_run, *small, "--out", out, "--reference", data, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told.keys() == {"file", "student_accuracy", "target_accuracy", "fidelity"}
    student = interpkit.load_target(out)
    assert (student.input_shape, student.num_classes) == ((1, 12, 12), 3)
    again = cli(finished_run, *small, "--out", out)
    assert again.exit_code == 2 and "add --force" in again.stderr
    replaced = cli(finished_run, *small, "--out", out, "--force")
    assert replaced.exit_code == 0 and "--reference DATA" in replaced.stderr
    assert replaced.stdout.strip() == str(out)


def test_code_of_the_users_own_is_for_python(finished_run: Path, tmp_path: Path) -> None:
    result = cli(finished_run, "--arch", "py:net.py:Net", "--out", tmp_path / "small.safetensors")
    assert result.exit_code == 3
    assert "interpkit.distill" in result.stderr
