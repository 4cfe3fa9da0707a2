"""``interpkit sample --shard-size``: shards from the command line, and what is said of them."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
from pathlib import Path
from typing import Any, get_args

import pytest
import safetensors.torch
from typer.testing import CliRunner, Result

import interpkit
from interpkit.cli import app
from interpkit.cli.sample import Format
from interpkit.runs import folder
from interpkit.runs.shard_formats import FORMATS
from interpkit.runs.shards import ShardJob


def cli(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def in_shards(run: Path, out: Path, *more: str, count: int = 25, size: int = 10) -> Result:
    return cli("sample", run, "--count", str(count), "--shard-size", str(size), "--out", out, *more)


def test_shards_match_the_python_api_and_stdout_has_only_the_folder(finished_run: Path, tmp_path: Path) -> None:
    result = in_shards(finished_run, tmp_path / "out", "--seed", "4", "--labels", "2,0")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [str(tmp_path / "out")]
    assert "25 images in 3 shards; at most about" in result.stderr
    assert "25/25 images  0:00:00 left" in result.stderr
    inversion = interpkit.load_inversion(finished_run)
    interpkit.write_shards(inversion, tmp_path / "same", count=25, shard_size=10, seed=4, labels=[2, 0])
    for name in ("index.json", *(f"samples-00000{i}.safetensors" for i in range(3))):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "same" / name).read_bytes()


def test_json_has_the_index(finished_run: Path, tmp_path: Path) -> None:
    told = json.loads(in_shards(finished_run, tmp_path / "out", "--json", "--format", "webdataset").stdout)
    assert told == {"out": str(tmp_path / "out"), "index": json.loads((tmp_path / "out" / "index.json").read_text())}
    assert [shard["file"] for shard in told["index"]["shards"]] == [f"samples-00000{i}.tar" for i in range(3)]


def test_accepted_leaves_out_what_the_classifier_does_not_take(finished_run: Path, tmp_path: Path) -> None:
    index = json.loads(in_shards(finished_run, tmp_path / "all", "--json").stdout)["index"]
    taken = [str(row["label"]) for row in index["per_class"] if row["rate"] > 0]
    assert 0 < index["rate"] < 1 and taken
    result = in_shards(finished_run, tmp_path / "accepted", "--accepted", "--labels", ",".join(taken))
    assert result.exit_code == 0, result.output
    shard = safetensors.torch.load_file(tmp_path / "accepted" / "samples-000001.safetensors")
    assert (shard["probabilities"].argmax(1) == shard["labels"]).all()


def test_an_interrupt_ends_with_130_and_the_same_command_resumes(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as pressed:
        make = ShardJob._make

        def interrupted(job: ShardJob, number: int, *rest: Any) -> Any:
            if number == 1:
                os.kill(os.getpid(), signal.SIGTERM)  # as Ctrl-C; it is what schedulers send
            return make(job, number, *rest)

        pressed.setattr(ShardJob, "_make", interrupted)
        result = in_shards(finished_run, tmp_path / "out")
        assert result.exit_code == 130
        assert "finished shards stay" in result.stderr and "the same command writes the others" in result.stderr
    assert [path.name for path in (tmp_path / "out").glob("samples-*")] == ["samples-000000.safetensors"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    result = in_shards(finished_run, tmp_path / "out")
    assert result.exit_code == 0
    assert "25 images in 3 shards, of which 1 are there" in result.stderr
    assert in_shards(finished_run, tmp_path / "whole").exit_code == 0
    for path in (tmp_path / "whole").glob("[!.]*"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--accepted"], "add --shard-size 10000"),
        (["--format", "parquet"], "add --shard-size 10000"),
        (["--shard-size", "5", "--count", "9"], "needs --count N and --out FOLDER"),
        (["--shard-size", "5", "--out", "x"], "needs --count N and --out FOLDER"),
        (["--shard-size", "5", "--count", "9", "--out", "x", "--png", "y.png"], "excludes --per-class and --png"),
        (["--png", "y.jpg"], "--png y.jpg: it is a PNG, so name it y.png"),
        (["--shard-size", "5", "--per-class", "9", "--out", "x"], "needs --count N"),
        (["--shard-size", "5", "--count", "9", "--out", "x", "--format", "zip"], "'zip' is not one of"),
        (["--device", "none"], "--device none: .* Use auto or cpu"),
    ],
)
def test_what_does_not_go_together_is_refused(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = cli("sample", finished_run, *flags)
    assert result.exit_code == 2, result.output
    assert re.search(words, " ".join(result.stderr.replace("│", " ").split()))
    assert list(tmp_path.iterdir()) == []


def test_other_samples_in_the_folder_are_reported_and_end_with_1(finished_run: Path, tmp_path: Path) -> None:
    assert in_shards(finished_run, tmp_path / "out").exit_code == 0
    result = in_shards(finished_run, tmp_path / "out", "--seed", "99")
    assert result.exit_code == 1 and result.stdout == ""
    assert "seed is 3 there and 99 here" in " ".join(result.stderr.split())


def test_the_shard_formats_match_the_python_api() -> None:
    assert list(get_args(Format)) == list(FORMATS)


def test_labels_are_ranges_too(finished_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "some.safetensors"
    result = cli("sample", finished_run, "--labels", "1-2", "--per-class", "2", "--out", out)
    assert result.exit_code == 0, result.output
    assert safetensors.torch.load_file(out)["labels"].tolist() == [1, 1, 2, 2]
    result = cli("sample", finished_run, "--labels", "0-9999", "--out", out)
    assert result.exit_code == 2
    assert "labels [3, 4, 5, 6, 7] and 9,992 more were not inverted" in " ".join(result.stderr.split())


def test_pictures_go_to_an_empty_folder_and_tensors_to_the_end_of_a_link(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    few = ["sample", finished_run, "--per-class", "1"]
    assert cli(*few, "--out", tmp_path / "out").exit_code == 0
    before = sorted((tmp_path / "out").rglob("*"))
    result = cli(*few, "--seed", "9", "--labels", "0", "--out", tmp_path / "out")
    assert result.exit_code == 2 and "is not empty" in result.stderr
    assert sorted((tmp_path / "out").rglob("*")) == before
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "file.safetensors")
    assert cli(*few, "--out", tmp_path / "link.safetensors").exit_code == 0
    assert (tmp_path / "link.safetensors").is_symlink() and (tmp_path / "file.safetensors").is_file()


def test_two_processes_that_write_at_the_same_moment_get_a_name_each(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, begun = folder.write_samples, []

    def while_another_does(samples: interpkit.Samples, path: Path) -> None:
        begun.append(path)
        if len(begun) == 1:
            assert cli("sample", run_copy, "--count", "3").exit_code == 0
        write(samples, path)

    monkeypatch.setattr(folder, "write_samples", while_another_does)
    assert cli("sample", run_copy, "--count", "6").exit_code == 0
    written = {path.name: len(safetensors.torch.load_file(path)["labels"]) for path in run_copy.glob("samples-*")}
    assert written == {"samples-1.safetensors": 3, "samples-2.safetensors": 6}


def test_samples_that_cannot_be_written_leave_no_file(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(samples: interpkit.Samples, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(folder, "write_samples", full)
    result = cli("sample", run_copy)
    assert result.exit_code == 1 and "No space left" in result.stderr
    assert not list(run_copy.glob("samples-*"))
