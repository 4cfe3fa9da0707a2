"""What is printed where nobody reads: it is lost, and nothing else is."""

from __future__ import annotations

import errno
import io
import json
import logging
import sys
import threading
from importlib.metadata import version

import pytest

from interpkit import cli
from interpkit.cli import console
from interpkit.runtime import progress
from interpkit.runtime.recorder import StepRecord


class Gone(io.StringIO):
    """A stream whose terminal or reader is gone."""

    def __init__(self, error: OSError, *, terminal: bool) -> None:
        super().__init__()
        self.error, self.terminal, self.tried = error, terminal, 0

    def write(self, text: str) -> int:
        self.tried += 1
        raise self.error

    def flush(self) -> None:
        raise self.error

    def isatty(self) -> bool:
        return self.terminal


GONE = [BrokenPipeError(errno.EPIPE, "Broken pipe"), OSError(errno.EIO, "Input/output error")]


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("error", GONE, ids=["pipe", "terminal gone"])
def test_progress_and_notes_are_lost_and_no_error_is_raised(
    monkeypatch: pytest.MonkeyPatch, error: OSError, terminal: bool
) -> None:
    stream = Gone(error, terminal=terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with console.ProgressDisplay(20) as display:
        for step in range(1, 21):
            display.step(step)
            display.record(StepRecord(step, 20, 1.0, 0.5, {"ce": 0.5}, 0.5))
        console.note("a note")
    console.warning("a warning")
    assert stream.tried > 1


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "none"])
def test_a_missing_stderr_is_not_an_error(monkeypatch: pytest.MonkeyPatch, closed: bool) -> None:
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stderr", stream if closed else None)
    with console.ProgressDisplay(1) as display:
        display.step(1)
        console.error("an error")
    read = io.StringIO()  # what comes next is printed where there is a stream again
    monkeypatch.setattr(sys, "stderr", read)
    console.error("another error")
    assert read.getvalue() == "error: another error\n"


def test_what_a_plugin_prints_is_lost_with_the_rest_and_the_result_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = Gone(GONE[0], terminal=False)
    monkeypatch.setattr(sys, "stderr", stream)

    @console.alone_on_stdout
    def command() -> None:
        sys.stdout.write("by a plugin")
        console.print_json({"done": True})

    command()
    assert stream.tried
    assert capsys.readouterr().out.split() == ["{", '"done":', "true", "}"]


def test_while_somebody_reads_all_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    console.note("a note")
    console.warning("a warning")
    assert capsys.readouterr() == ("", "a note\nwarning: a warning\n")


def test_a_command_that_prints_nothing_says_what_it_is_doing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(console.err, "printed_at", 0.0)
    heart = console.Heartbeat("evaluate", clock=lambda: now[0])
    assert heart.beat() == console.QUIET_SECONDS
    now[0] += 6
    assert heart.beat() == console.QUIET_SECONDS - 6
    assert capsys.readouterr().err == ""
    now[0] += 14
    heart.beat()
    progress.tell("images classified", 64, 1000)
    now[0] += 5
    heart.beat()
    now[0] += 60
    heart.beat()
    progress.tell("images classified", 1000, 1000)
    assert capsys.readouterr().err.splitlines() == [
        "evaluate: still running, 0:00:20 so far",
        "evaluate: 64 of 1,000 images classified, 0:01:25 so far",
    ]


def test_a_line_puts_the_next_one_off(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = iter([100.0, 120.0])
    heart = console.Heartbeat("evaluate", clock=lambda: next(now))
    monkeypatch.setattr(console.err, "printed_at", 119.0)
    assert heart.beat() == console.QUIET_SECONDS - 1
    assert capsys.readouterr().err == ""


def test_the_heart_stops_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    with console.beating("evaluate"):
        assert any(thread.name == "heartbeat" for thread in threading.enumerate())
    assert not any(thread.name == "heartbeat" for thread in threading.enumerate())


def test_slow_steps_have_a_line_each_and_fast_ones_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.ProgressDisplay(30) as display:
        for seconds in (1.0, 12.0):
            console.err.printed_at = now[0]
            for step in (1, 2):
                now[0] += seconds
                display.step(step)
    end = [""] if version("rich").startswith("13.") else []  # an empty line
    assert [line.split("  ")[0] for line in capsys.readouterr().err.splitlines()] == ["1/30 steps", "2/30 steps", *end]


def test_log_records_below_warnings_are_notes(capsys: pytest.CaptureFixture[str]) -> None:
    console.LogHandler().emit(logging.makeLogRecord({"levelno": logging.INFO, "msg": "10 min"}))
    assert capsys.readouterr().err == "10 min\n"


def test_characters_that_stdout_cannot_encode_are_escaped_and_json_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(prog_name: str) -> None:
        console.out.print("été")
        console.print_json(["été \U0001f600"])

    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii", write_through=True))
    monkeypatch.setattr(cli, "app", command)
    cli.main()
    line, told = written.getvalue().decode("ascii").split("\n", 1)
    assert line == r"\xe9t\xe9"
    assert json.loads(told) == ["été \U0001f600"]
