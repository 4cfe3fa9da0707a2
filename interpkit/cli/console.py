"""Print results to stdout and everything else, such as progress, to stderr."""

from __future__ import annotations

import functools
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from datetime import timedelta
from typing import IO, TYPE_CHECKING, Any, cast

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from interpkit.interfaces.targets import Target
    from interpkit.runtime.recorder import StepRecord


class _Stderr:
    """Standard error as long as somebody reads it: no run ends because its terminal or pipe has closed."""

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
        """The current stderr; while rich shows progress, that is its stand-in, which prints here."""
        return getattr(sys.stderr, "rich_proxied_file", sys.stderr)

    @property
    def rich_proxied_file(self) -> _Stderr:
        """The stream that rich writes to."""
        return self


STDERR = cast(IO[str], _Stderr())


class Plain(Console):
    """A console that prints names from files literally: without markup, and with control characters escaped.

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
"""Seconds between two lines of progress where stderr is not a terminal."""


def error(message: str) -> None:
    """Print an error."""
    err.print(Text("error:", "bold red"), message, highlight=False)


def note(message: str) -> None:
    """Print a note."""
    err.print(message, highlight=False)


def warning(message: str) -> None:
    """Print a warning."""
    err.print(Text("warning:", "bold yellow"), message, highlight=False)


class LogHandler(logging.Handler):
    """Prints log records as commands print their messages, also while a progress line is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record; from `logging.ERROR` on, as an error."""
        (error if record.levelno >= logging.ERROR else warning)(self.format(record))


@contextmanager
def silent(wanted: bool) -> Iterator[None]:
    """Print only errors in a block, if requested."""
    before = out.quiet, err.quiet
    try:
        if wanted:
            out.quiet = err.quiet = True
        yield
    finally:
        out.quiet, err.quiet = before


def alone_on_stdout(command: Callable[..., None]) -> Callable[..., None]:
    """Reserve stdout for the results that the command prints; what a plugin prints goes to stderr."""

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
    if "weights" in target.sources:
        note(f"  weights  ({target.sources['weights']})")
    if "batch" in target.sources:
        note(f"  batch  ({target.sources['batch']})")
    if target.no_gradient:
        note(f"  no gradient passes from its logits to its images: {target.no_gradient}")


def print_json(value: Any) -> None:
    """Print a result as JSON on stdout."""
    out.out(json.dumps(value, indent=2, ensure_ascii=False), highlight=False)


class ProgressDisplay:
    """Shows progress and the time left: as a bar in a terminal, otherwise as a line every few seconds.

    Args:
        total: number of units.
        unit: what is counted, such as steps.
    """

    def __init__(self, total: int, unit: str = "steps") -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        count = TextColumn("{task.completed}/{task.total} {task.description}", markup=False)
        figures = TextColumn("{task.fields[figures]}", markup=False, table_column=Column())  # a column that wraps
        columns = (count, BarColumn(10), TimeRemainingColumn(compact=True), figures)
        self._bar = Progress(*columns, console=err, disable=not err.is_terminal, transient=True)
        self._bar.add_task(unit, total=total, figures="")
        self._task = self._bar.tasks[0]
        self._printed_at = 0.0

    def __enter__(self) -> ProgressDisplay:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()
        if err.is_terminal and self._task.fields["figures"]:
            note(self._task.fields["figures"])

    def step(self, done: int) -> None:
        """Show how many are done."""
        self._bar.update(self._task.id, completed=done)

    def record(self, record: StepRecord) -> None:
        """Show the loss, its terms and the inversion accuracy of a step."""
        terms = "  ".join(f"{name} {value:.3f}" for name, value in record.terms.items())
        accuracy = f"inversion accuracy {record.inversion_accuracy:.1%}"
        self._bar.update(self._task.id, figures=f"loss {record.loss:.3f}  {terms}  {accuracy}")
        self._print(f"step {record.step}/{self._task.total}", record.step)

    def count(self, done: int) -> None:
        """Show how many are done, where there are no step records."""
        self.step(done)
        self._print(f"{done}/{self._task.total} {self._task.description}", done)

    def _print(self, progress: str, done: int) -> None:
        """Print a line, if this is not a terminal and the last one is old enough or nothing is left to do."""
        now = time.monotonic()
        if self._bar.disable and (now - self._printed_at > PLAIN_SECONDS or done == self._task.total):
            self._printed_at = now
            seconds = self._task.time_remaining
            left = "" if seconds is None else f"{timedelta(seconds=round(seconds))} left"
            note("  ".join(filter(None, (progress, self._task.fields["figures"], left))))
