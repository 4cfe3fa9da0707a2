"""The two streams: results to stdout, all else to stderr; and the progress of an inversion."""

from __future__ import annotations

import functools
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from typing import IO, TYPE_CHECKING, Any, cast

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from interpkit.interfaces.targets import Target
    from interpkit.runtime.recorder import StepRecord


class _Stderr:
    """Standard error, for as long as somebody reads it: no run ends because its terminal or its pipe is gone."""

    def write(self, text: str) -> int:
        """Write what can be written."""
        with suppress(OSError, ValueError, AttributeError):  # gone, closed, or never there
            self._now.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, if that is possible."""
        with suppress(OSError, ValueError, AttributeError):
            self._now.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._now, name)

    @property
    def _now(self) -> Any:
        """What it is at the moment; under a line of progress rich puts a stand-in there, which prints here."""
        return getattr(sys.stderr, "rich_proxied_file", sys.stderr)

    @property
    def rich_proxied_file(self) -> _Stderr:
        """What rich is to write to."""
        return self


STDERR = cast(IO[str], _Stderr())


class Plain(Console):
    """A console that prints names out of files as they are: as no markup, and control characters as escapes.

    A class's name could otherwise set the title of the terminal, hide what is above it, or show text backwards.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(soft_wrap=True, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return text ready to be printed."""
        return super().render_str(printable(text), **options)


def printable(text: str) -> str:
    r"""Return text with control characters, half surrogate pairs and marks of direction as ``\u001b``, as in JSON."""
    return re.sub(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]",
        lambda match: f"\\u{ord(match[0]):04x}",
        text,
    )


out = Plain()
err = Plain(file=STDERR)

PLAIN_SECONDS = 5.0
"""Where stderr is no terminal, a line at most so often."""


def error(message: str) -> None:
    """Print an error."""
    err.print(Text("error:", "bold red"), message, highlight=False)


def note(message: str) -> None:
    """Print what a person may want to know."""
    err.print(message, highlight=False)


def warning(message: str) -> None:
    """Print what a person should not miss."""
    err.print(Text("warning:", "bold yellow"), message, highlight=False)


class LogHandler(logging.Handler):
    """Prints what is logged as commands print it: also where a line of progress is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record, from `logging.ERROR` on as an error."""
        (error if record.levelno >= logging.ERROR else warning)(self.format(record))


@contextmanager
def silent(wanted: bool) -> Iterator[None]:
    """Print nothing but errors in a block, if that is wanted."""
    before = out.quiet, err.quiet
    try:
        if wanted:
            out.quiet = err.quiet = True
        yield
    finally:
        out.quiet, err.quiet = before


def alone_on_stdout(command: Callable[..., None]) -> Callable[..., None]:
    """Keep stdout for the results that the command prints here: what a plugin prints goes to stderr."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        out.file = sys.stdout
        try:
            with redirect_stdout(STDERR):
                command(*arguments, **options)
        finally:
            out._file = None

    return run


def note_left_out(metrics: Mapping[str, Any]) -> None:
    """Print why figures are absent from metrics.json."""
    for name, reason in metrics.get("left_out", {}).items():
        note(f"{name} is left out: {reason}")


def note_facts(target: Target) -> None:
    """Print what was resolved about a classifier, and where each fact came from."""
    facts = target.description.model_dump(mode="json", exclude_none=True)
    note(f"{target.name}:")
    for key, value in facts.items():
        source = target.sources.get(key)
        if source is not None:
            text = str(value) if len(str(value)) <= 60 else f"{str(value)[:57]}..."
            note(f"  {key} = {text}  ({source})")
    if "batch" in target.sources:
        note(f"  batch = 1  ({target.sources['batch']})")


def print_json(value: Any) -> None:
    """Print a result as JSON on stdout."""
    out.out(json.dumps(value, indent=2, ensure_ascii=False), highlight=False)


class ProgressDisplay:
    """Shows an inversion as it goes: step, loss and terms, inversion accuracy, time left.

    Args:
        steps: of the run.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._plain = not err.is_terminal
        self._shown_at = 0.0
        self._first: tuple[int, float] | None = None
        self._figures = ""
        self._status = None if self._plain else err.status("starting")

    def __enter__(self) -> ProgressDisplay:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._status is not None:
            self._status.stop()
            if self._figures:
                err.print(self._figures, highlight=False)

    def step(self, step: int) -> None:
        """Show that a step is done."""
        now = time.monotonic()
        if self._first is None:
            self._first = (step, now)
        elif self._status is not None:
            first_step, first_time = self._first
            left = (self._steps - step) * (now - first_time) / (step - first_step)
            self._status.update(f"step {step}/{self._steps}  {_clock(left)} left  {self._figures}")

    def record(self, record: StepRecord) -> None:
        """Show the figures of a record."""
        terms = "  ".join(f"{name} {value:.3f}" for name, value in record.terms.items())
        accuracy = f"inversion accuracy {record.inversion_accuracy:.1%}"
        self._figures = f"loss {record.loss:.3f}  {terms}  {accuracy}"
        now = time.monotonic()
        if self._plain and (now - self._shown_at > PLAIN_SECONDS or record.step == self._steps):
            self._shown_at = now
            first_step, first_time = self._first or (record.step, now)
            rate = (now - first_time) / max(1, record.step - first_step)
            left = f"  {_clock((self._steps - record.step) * rate)} left" if record.step > first_step else ""
            note(f"step {record.step}/{self._steps}  {self._figures}{left}")


class CountDisplay:
    """Shows how many of a number of things are done, how many a second, and the time left.

    Args:
        total: of them.
        things: what they are.
    """

    def __init__(self, total: int, things: str) -> None:
        self._total = total
        self._things = things
        self._begun = self._shown_at = time.monotonic()
        self._status = err.status("starting") if err.is_terminal else None

    def __enter__(self) -> CountDisplay:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._status is not None:
            self._status.stop()

    def show(self, done: int) -> None:
        """Show that so many are done."""
        now = time.monotonic()
        if self._status is None and now - self._shown_at < PLAIN_SECONDS and done < self._total:
            return
        self._shown_at = now
        rate = done / max(now - self._begun, 1e-9)
        left = _clock((self._total - done) / rate) if done else "?"
        text = f"{done}/{self._total} {self._things}  {rate:.0f} a second  {left} left"
        if self._status is not None:
            self._status.update(text)
        else:
            note(text)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
