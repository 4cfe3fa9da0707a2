"""``interpkit harden``: a classifier with a garbage class."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import interpkit
from interpkit.cli import app
from interpkit.plugins.discovery import Plugins


def cli(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["harden", *map(str, arguments)])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    splits = {
        f"{kind}_{split}": rng.integers(0, 256, (30, 12, 12), dtype=np.uint8) if kind == "x" else np.arange(30) % 3
        for kind in "xy"
        for split in ("train", "test")
    }
    np.savez(tmp_path / "data.npz", **splits)
    return tmp_path / "data.npz"


def test_a_classifier_becomes_one_with_a_garbage_class(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "hard.safetensors"
    short = ["--data", data, "--preset", "vecmat", "--rounds", "1", "--steps", "2", "--samples", "12", "--out", out]
    short += ["--set", "upconv.width=8", "--set", "upconv.min_width=4", "--device", "cpu"]
    result = cli(tiny_model, *short, "--reference", data, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told.keys() == {"file", "ended", "rounds", "reference"}
    assert told["reference"].keys() == {"accuracy", "accuracy_before", "refused"}
    assert interpkit.load_target(out).class_names[-1] == "garbage"
    again = cli(tiny_model, *short)
    assert again.exit_code == 2 and "add --force; --resume continues" in again.stderr
    replaced = cli(tiny_model, *short, "--force")
    assert replaced.exit_code == 0 and "after 1 rounds" in replaced.stderr
    assert replaced.stdout.strip() == str(out)
    resumed = cli(tiny_model, *short, "--resume")
    assert resumed.exit_code == 1 and "there is nothing to resume" in resumed.stderr, resumed.output


def test_a_plugin_file_is_loaded_before_the_classifier(
    plugins: Plugins, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "import interpkit\nclass Own(interpkit.Loader):\n    name = 'own'\n"
        "    def accepts(self, path): return path.suffix == '.own'\n"
        "    def load(self, path, options): raise interpkit.ModelError('read by its own loader')\n"
        "@interpkit.hookimpl\ndef register(registry): registry.add(Own)\n"
    )
    model = shutil.copy(tiny_model, tmp_path / "model.own")
    result = cli(model, "--data", data, "--out", tmp_path / "hard.safetensors", "--plugin", mine)
    assert result.exit_code == 3 and "read by its own loader" in result.stderr, result.output


def test_a_preset_is_required(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    result = cli(tiny_model, "--data", data, "--out", tmp_path / "hard.safetensors")
    assert result.exit_code == 2 and "name a preset by --preset NAME" in result.stderr
