"""A folder has one writer at a time: others are refused with a message, and a lock never outlives its process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import interpkit
from interpkit import RunError
from interpkit.io.locking import only_writer
from interpkit.runs.folder import Run
from interpkit.runs.shards import write_shards

HOLD = """
import sys
from pathlib import Path
from interpkit.io.locking import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_writer(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a process that holds the folder's lock during a block."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_second_writer_is_refused_with_the_name_of_the_first(tmp_path: Path) -> None:
    with another_writer(tmp_path) as process:
        with pytest.raises(RunError) as caught, only_writer(tmp_path):
            pytest.fail("it was let in")
        assert f"{tmp_path} is being written by process {process.pid} on {socket.gethostname()} since 2" in str(
            caught.value
        )
        assert "Wait until it ends, stop it, or name another folder with out" in str(caught.value)


def test_the_message_says_another_process_if_the_writers_name_is_not_there_yet(tmp_path: Path) -> None:
    with another_writer(tmp_path):
        (tmp_path / ".lock.json").write_text("{")
        with pytest.raises(RunError, match="is being written by another process"), only_writer(tmp_path):
            pytest.fail("it was let in")


def test_a_lock_ends_with_its_process_whose_temporary_files_are_removed(tmp_path: Path) -> None:
    with another_writer(tmp_path) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    (tmp_path / ".metrics.json.1a2b3c4d").write_text("half")
    (tmp_path / ".mine.json.1a2b3c4d").write_text("the user's")
    assert names(tmp_path) == {".lock", ".lock.json", ".metrics.json.1a2b3c4d", ".mine.json.1a2b3c4d"}
    with only_writer(tmp_path, ["metrics.json"]):
        assert names(tmp_path) == {".lock", ".lock.json", ".mine.json.1a2b3c4d"}
    assert names(tmp_path) == {".mine.json.1a2b3c4d"}


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_the_lock_files_are_removed_when_the_block_ends(tmp_path: Path, error: type[BaseException] | None) -> None:
    for _ in range(2):
        try:
            with only_writer(tmp_path / "new"):
                assert names(tmp_path / "new") == {".lock", ".lock.json"}
                if error is not None:
                    raise error
        except (ValueError, KeyboardInterrupt):
            assert error is not None
        assert names(tmp_path / "new") == set()


def test_a_folder_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match=r"cannot make the folder .*file: "), only_writer(tmp_path / "file"):
        pytest.fail("it was let in")


def test_a_second_writer_of_a_run_is_refused_but_readers_are_not(
    run_copy: Path, tmp_path: Path, tiny_model: Path, quick: Callable[..., dict[str, Any]]
) -> None:
    before = {path.name: path.read_bytes() for path in run_copy.iterdir()}
    inversion = interpkit.load_inversion(run_copy)
    writers: list[Callable[[], Any]] = [
        lambda: interpkit.invert(tiny_model, out=run_copy, force=True, **quick()),
        lambda: interpkit.invert(tiny_model, out=run_copy, resume=True, steps=20),
        lambda: interpkit.evaluate(run_copy),
        lambda: interpkit.write_report(run_copy),
        lambda: inversion.save(run_copy, force=True),
    ]
    with another_writer(run_copy):
        for write in writers:
            with pytest.raises(RunError, match="is being written by process"):
                write()
        assert {name: (run_copy / name).read_bytes() for name in before} == before
        assert len(interpkit.load_inversion(run_copy).sample(count=3)[0]) == 3
        assert Run.open(run_copy).metrics()["schema"] == 1
        interpkit.invert(tiny_model, out=run_copy, resume=True)  # a finished run is only read
    shards = tmp_path / "shards"
    with another_writer(shards), pytest.raises(RunError, match="is being written by process"):
        write_shards(inversion, shards, count=4)
    assert write_shards(inversion, shards, count=4)["finished"]
    assert names(shards) == {"index.json", "samples-000000.safetensors", ".shards"}
