"""The short version of `torture.fuzz`, and that it would find what it looks for."""

from __future__ import annotations

import ctypes
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from torture import fuzz, mutate
from torture.readers import READERS, Reader

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of memory as on Linux")
ROOT = Path(__file__).parents[2]


def test_mutated_files_are_read_or_refused_by_every_reader(
    run_python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = run_python("-m", "torture.fuzz", "--inputs", "800", "--seed", "2", cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    lines = [line for line in done.stdout.splitlines() if " inputs, " in line]
    assert [line.partition(":")[0] for line in lines] == list(READERS)
    assert all(" 0 findings" in line for line in lines)


def _import(folder: Path) -> None:
    import evil  # type: ignore[import-not-found]  # noqa: F401


def _hang(folder: Path) -> None:
    while True:
        pass


def _take(folder: Path) -> None:
    try:
        bytearray(2_000_000_000)
    except MemoryError as error:
        from interpkit.errors import RunError

        raise RunError("it cannot be read") from error


@pytest.mark.parametrize(
    ("kind", "read"),
    [
        ("traceback", lambda folder: {}["key"]),
        ("slow", _hang),
        ("memory", _take),
        ("crash", lambda folder: ctypes.string_at(0)),
        ("crash", lambda folder: os._exit(3)),
        ("import", _import),
        ("process", lambda folder: os.system("true")),
        ("network", lambda folder: socket.socket().connect(("127.0.0.1", 9))),
        ("file", lambda folder: (folder.parents[1] / "no-such-file").unlink()),
        ("file", lambda folder: (folder / ".." / ".." / "no-such-folder" / "file").open("w")),
    ],
)
def test_what_should_not_happen_is_found(
    kind: str, read: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hostile(folder: Path) -> None:
        if (folder / "a.json").read_bytes() != b'{"a": 1}':
            read(folder)

    monkeypatch.setattr(fuzz, "SECONDS", 1)
    found = fuzz.fuzz(Reader("hostile", 1, lambda: [{"a.json": b'{"a": 1}'}], hostile), 0, range(1, 3))
    assert {finding.kind for finding in found} == {kind}, found


def test_an_input_is_the_same_each_time_and_another_than_the_good_file() -> None:
    reader = READERS["class-names"]
    corpus = reader.corpus()
    made = [fuzz.made(reader, corpus, 1, number) for number in range(200)]
    assert made == [fuzz.made(reader, corpus, 1, number) for number in range(200)]
    assert made != [fuzz.made(reader, corpus, 2, number) for number in range(200)]
    assert sum(given not in corpus for given in made) > 180


@pytest.mark.parametrize("name", ["target-file", "checkpoint", "npz", "pictures", "onnx-graph", "class-names"])
def test_mutations_know_the_formats(name: str) -> None:
    """Most mutants of a format still are of it, so that they reach what reads the values in it."""
    corpus = READERS[name].corpus()
    rng = random.Random(0)
    file, good = next(iter(corpus[0].items()))
    magic = {"npz": b"PK", "checkpoint": b"PK", "pictures": b"\x89PNG"}.get(name, b"")
    mutants = [mutate.content(file, good, rng) for _ in range(100)]
    assert sum(mutant.startswith(magic) for mutant in mutants) > 60
    assert len(set(mutants)) > 60
