"""Faults at file operations, by the functions of the full trial: some of every kind, and what is to be found."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

if sys.platform != "linux":
    pytest.skip("/proc lists open files", allow_module_level=True)

from torture.faults import FAULTS, Injector, litter, torn

TRY = """
import json, sys
from pathlib import Path
from torture.faults import faults
json.dump(faults(Path(sys.argv[1]), float(sys.argv[2]), 5, sys.argv[3:]), open(sys.argv[1] + "/result", "w"))
"""


def test_no_fault_loses_or_tears_a_file(tmp_path: Path, run_python: Callable[..., Any]) -> None:
    commands = ["invert vecmat", "invert --resume", "report", "sample safetensors", "concepts", "harden --resume"]
    tried = run_python("-c", TRY, tmp_path, "0.008", *commands, cwd=Path(__file__).parents[2])
    assert tried.returncode == 0, tried.stderr
    result = json.loads((tmp_path / "result").read_text())
    assert list(result) == commands
    assert {name: row["failed"] for name, row in result.items() if row["failed"]} == {}
    assert result["invert vecmat"]["operations"] > 150 and sum(row["faults"] for row in result.values()) >= 20
    assert len({fault for row in result.values() for fault in row["by kind"]} & set(FAULTS)) >= 6


# Operations one after the other, in a fork for each case, so that the result of each is known.
CARELESS = """
import json, os, signal, sys
from pathlib import Path
from torture.faults import Injector
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is born deaf to it
for at, fault in json.loads(sys.argv[2]):
    folder = Path(sys.argv[1], f"{at} {fault}")
    folder.mkdir()
    if (child := os.fork()) == 0:
        try:
            Injector(folder, at, fault, folder.with_suffix(".seen")).install()
            (folder / "metrics.json").write_text('{"schema": 1}')
            (folder / "metrics.json").rename(folder / "other.json")
            (folder / "other.json").read_text()
            (folder / "other.json").unlink()
            list(folder.iterdir())
        except BaseException as error:
            os._exit(1 if isinstance(error, Exception) else 2)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
MOVED = {"other.json": '{"schema": 1}'}
CASES: dict[tuple[int, str], tuple[int, dict[str, str]]] = {
    (0, ""): (0, {}),
    (1, "EIO"): (1, {}),
    (2, "EIO"): (1, {"metrics.json": ""}),
    (2, "short"): (1, {"metrics.json": '{"sche'}),
    (1, "ENOSPC"): (1, {}),
    (3, "ENOSPC"): (1, {"metrics.json": '{"schema": 1}'}),
    (4, "ENOSPC"): (0, {}),  # reading is possible on a full disk
    (4, "memory"): (1, MOVED),
    (5, "device memory"): (1, MOVED),
    (4, "SIGKILL"): (-9, MOVED),
    (5, "SIGTERM"): (-15, MOVED),
    (5, "SIGINT"): (2, MOVED),
}
SEEN = ["open to write metrics.json", "write metrics.json", "replace metrics.json", "open other.json"]
SEEN += ["unlink other.json", "list"]


def test_a_fault_is_given_to_the_operation_that_was_meant(tmp_path: Path, run_python: Callable[..., Any]) -> None:
    ended = run_python("-c", CARELESS, tmp_path, json.dumps(list(CASES)), cwd=Path(__file__).parents[2])
    assert ended.stderr == ""
    for status, ((at, fault), (expected, there)) in zip(ended.stdout.split(), CASES.items(), strict=True):
        folder = tmp_path / f"{at} {fault}"
        assert (fault, at, int(status)) == (fault, at, expected)
        assert {path.name: path.read_text() for path in folder.iterdir()} == there
        seen = folder.with_suffix(".seen").read_text().splitlines()
        expected_seen = [*SEEN[:-1], f"list {folder.name}"]
        assert seen == (expected_seen if expected == 0 else expected_seen[:at])


def test_files_elsewhere_are_not_watched(tmp_path: Path) -> None:
    injector = Injector(tmp_path / "run", 0, "", tmp_path / "seen")
    assert [injector.within(tmp_path / name) for name in ("run", "run/a", "run/a/b", "run2/a", "seen")] == [
        True,
        True,
        True,
        False,
        False,
    ]
    assert not injector.within(-1) and not injector.within(None)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", b'{"schema'),
        ("history.jsonl", b'{"step": 1, "lo\n{"step": 2}\n'),
        ("recipe.toml", b"steps = "),
        ("samples.safetensors", b"\x08\0\0"),
        ("samples.png", b"\x89PNG\r\n"),
        ("report.html", b"<!doctype html><html>"),
        ("samples-000000.tar", b"0.png"),
        ("checkpoint", b"PK"),
        ("something", b""),
    ],
)
def test_a_torn_file_is_found(run_copy: Path, name: str, content: bytes) -> None:
    assert torn(run_copy) == []
    (run_copy / name).write_bytes(content)
    assert [words.partition(":")[0] for words in torn(run_copy)] == [name]


def test_what_is_left_half_written_is_found(run_copy: Path) -> None:
    (run_copy / ".shards").mkdir()
    (run_copy / ".shards" / "000000.json").write_text("{}")
    assert litter(run_copy) == []
    (run_copy / ".lock").touch()
    (run_copy / ".shards" / ".000000.json.1a2b3c4d").touch()
    assert litter(run_copy) == [".lock", ".shards/.000000.json.1a2b3c4d"]
