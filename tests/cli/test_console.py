"""What is printed where nobody reads: it is lost, and nothing else is."""

from __future__ import annotations

import errno
import io
import sys

import pytest

from interpkit.cli import console
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
def test_a_missing_stream_does_not_raise(monkeypatch: pytest.MonkeyPatch, closed: bool) -> None:
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
