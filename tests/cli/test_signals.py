"""What stops a command: each signal ends it with 130 and one word, and what was being written is as before."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import interpkit.api.evaluate
from interpkit.cli import app
from interpkit.cli.signals import on_stop
from interpkit.plugins.discovery import Plugins

if sys.platform == "win32":
    pytest.skip("Windows has no such signals", allow_module_level=True)

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


class Stopped(Exception):
    pass


def raising(number: int, frame: Any) -> None:
    raise Stopped(signal.Signals(number).name)


@pytest.fixture(autouse=True)
def _as_in_a_terminal() -> Iterator[None]:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_calls_the_handler_in_the_block_alone(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(Stopped, match=number.name), on_stop(raising):
        signal.raise_signal(number)
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_under_nohup_the_end_of_the_terminal_stays_without_effect() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with on_stop(raising):
            signal.raise_signal(signal.SIGHUP)
            with pytest.raises(Stopped, match="SIGTERM"):
                signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_in_a_thread_the_block_runs_without_handlers() -> None:
    ran: list[object] = []

    def block() -> None:
        with on_stop(raising):
            ran.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=block)
    thread.start()
    thread.join()
    assert ran == [signal.getsignal(signal.SIGTERM)]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_command_that_is_stopped_while_it_writes_leaves_the_old_file(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    before = {path.name: path.read_bytes() for path in run_copy.iterdir()}
    replace = os.replace

    def stopped(old: Any, new: Any) -> None:
        if Path(new).name == "metrics.json":
            signal.raise_signal(number)
        replace(old, new)

    monkeypatch.setattr(os, "replace", stopped)
    result = CliRunner().invoke(app, ["evaluate", str(run_copy)])
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr.endswith("interrupted\n") and "Traceback" not in result.stderr
    assert {path.name: path.read_bytes() for path in run_copy.iterdir()} == before


@pytest.mark.parametrize("number", SIGNALS)
def test_an_inversion_that_is_asked_to_stop_saves_its_step(
    tmp_path: Path,
    tiny_model: Path,
    quick_flags: list[str],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    from interpkit.cli import console

    seen: list[int] = []

    def step(display: object, done: int) -> None:
        seen.append(done)
        if done == 3:
            signal.raise_signal(number)

    monkeypatch.setattr(console.ProgressDisplay, "step", step)
    out = tmp_path / "run"
    result = CliRunner().invoke(app, ["invert", str(tiny_model), *quick_flags, "--out", str(out)])
    assert (result.exit_code, seen[:3]) == (130, [1, 2, 3])  # then samples are counted
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["status"], manifest["steps_done"]) == ("interrupted", 3)
    assert f"--out {out} --resume" in result.stderr


def test_the_command_that_resumes_can_be_pasted(
    tmp_path: Path, tiny_model: Path, quick_flags: list[str], plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    from interpkit.cli import console

    place = tmp_path / "my runs" / "[x] 100%"
    place.mkdir(parents=True)
    model = Path(shutil.copy(tiny_model, place / "my model.safetensors"))
    (place / "own plug.py").write_text("INTERPKIT_INTERFACE = 1\n")
    monkeypatch.chdir(place)
    with monkeypatch.context() as stopped:
        stopped.setattr(console.ProgressDisplay, "step", lambda display, done: signal.raise_signal(signal.SIGINT))
        words = ["invert", model.name, *quick_flags, "--out", "a run", "--plugin", "own plug.py"]
        result = CliRunner().invoke(app, words)
    assert result.exit_code == 130, result.stderr
    again = shlex.split(result.stderr.splitlines()[-1])
    assert again[1:] == ["invert", model.name, "--out", "a run", "--plugin", f"{place}/own plug.py", "--resume"]
    assert CliRunner().invoke(app, again[1:]).exit_code == 0
    assert json.loads(Path("a run/manifest.json").read_text())["status"] == "finished"


def test_a_command_that_runs_out_of_memory_says_so(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*arguments: object, **more: object) -> None:
        raise MemoryError

    monkeypatch.setattr(interpkit.api.evaluate, "measured", measure)
    result = CliRunner().invoke(app, ["evaluate", str(run_copy)])
    assert result.exit_code == 1
    assert "error: out of memory. Stop other programs here" in result.stderr


def test_two_runs_without_a_name_get_folders_of_their_own(
    tmp_path: Path, tiny_model: Path, quick_flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the second starts before the first has written anything."""
    from interpkit.cli.invert import _next_folder

    monkeypatch.chdir(tmp_path)
    assert [_next_folder(tiny_model, ["vecmat"]) for _ in range(3)] == [
        Path("runs") / f"tiny-vecmat-{number}" for number in (1, 2, 3)
    ]
    result = CliRunner().invoke(app, ["invert", str(tiny_model), *quick_flags, "--steps", "1"])
    assert result.exit_code == 0 and (tmp_path / "runs" / "tiny-vecmat-4" / "manifest.json").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        lambda run, other: ["sample", run, "--out", other / "samples.safetensors"],
        lambda run, other: ["sample", run, "--out", run / "generator.safetensors"],
        lambda run, other: ["sample", run, "--out", run / "new.safetensors", "--png", run / "samples.png"],
        lambda run, other: ["compare", run, other, "--html", other / "report.html"],
        lambda run, other: ["counterfactual", run, "--images", run / "samples.safetensors", "--out", other],
        lambda run, other: ["concepts", run, "--latents", "4", "--steps", "2", "--out", other],
        lambda run, other: ["reconstruct", run, "--images", "x.npz", "--out", other / "samples.safetensors"],
        lambda run, other: ["pack", "x.pt", "--force", "--out", other / "generator.safetensors"],
    ],
    ids=[
        "sample over another's",
        "sample over its own",
        "a grid over its own",
        "compare",
        "counterfactual",
        "concepts",
        "reconstruct",
        "pack",
    ],
)
def test_no_command_writes_over_a_file_of_a_run(
    finished_run: Path, run_copy: Path, arguments: Callable[[Path, Path], list[Any]]
) -> None:
    before = [{path.name: path.read_bytes() for path in run.iterdir()} for run in (finished_run, run_copy)]
    result = CliRunner().invoke(app, [str(word) for word in arguments(finished_run, run_copy)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert " is a file of the run in " in " ".join(result.stderr.split())
    assert [{path.name: path.read_bytes() for path in run.iterdir()} for run in (finished_run, run_copy)] == before
