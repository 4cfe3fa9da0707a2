"""The same result twice, by the functions of the full trial: every kind of run, a few steps of a tiny classifier."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import interpkit
from torture.twice import differing, kinds, twice

MakeModel = Callable[..., Path]


def test_fresh_processes_end_with_the_same_files(tmp_path: Path, make_model: MakeModel) -> None:
    model = make_model(tmp_path / "tiny.safetensors", batch_norm=True)
    settings = {"steps": 4, "batch_size": 12, "seed": 3, "precision": "fp32"}
    found = twice(tmp_path, list(kinds()), model=model, threads=1, **settings)
    assert len(found) >= 14 and {"preset training-like", "preset evolution", "generator warp"} < set(found)
    assert {name: files for name, files in found.items() if files} == {}
    # Each kind is another run, or the comparison would be of one thing.
    samples = [interpkit.load_inversion(tmp_path / "one" / name).sample(count=1)[0] for name in found]
    assert len({tuple(image.flatten().tolist()) for image in samples}) == len(samples)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("metrics.json", '"inversion_accuracy": ', '"inversion_accuracy": 1'),
        ("history.jsonl", '"loss": ', '"loss": 1'),
        ("recipe.toml", "seed = 3", "seed = 4"),
        ("manifest.json", '"threads": 1', '"threads": 2'),
    ],
)
def test_what_differs_is_found(finished_run: Path, run_copy: Path, name: str, old: str, new: str) -> None:
    assert differing(finished_run, run_copy) == []
    text = (run_copy / name).read_text()
    assert old in text
    (run_copy / name).write_text(text.replace(old, new))
    assert differing(finished_run, run_copy) == [name]


def test_a_bit_of_a_tensor_and_a_missing_file_are_found(finished_run: Path, run_copy: Path) -> None:
    content = bytearray((run_copy / "generator.safetensors").read_bytes())
    content[-1] ^= 1
    (run_copy / "generator.safetensors").write_bytes(content)
    (run_copy / "samples.png").unlink()
    assert differing(finished_run, run_copy) == ["samples.png", "generator.safetensors"]


def test_the_time_of_day_makes_no_difference(finished_run: Path, tiny_model: Path, tmp_path: Path) -> None:
    interpkit.invert(tiny_model, config=finished_run / "recipe.toml", out=tmp_path / "again")
    torch.manual_seed(5)
    assert differing(finished_run, tmp_path / "again") == ["manifest.json"]  # the presets that were typed
