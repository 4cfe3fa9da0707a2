"""Print results to stdout and everything else, such as progress, to stderr."""

from __future__ import annotations

import functools
import json
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from datetime import timedelta
from typing import IO, TYPE_CHECKING, Any, cast

from rich.console import Console
from rich.text import Text

from interpkit.errors import percent
from interpkit.runtime import progress

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
        self.printed_at = 0.0
        """When something was printed last, by the monotonic clock; a bar that moves counts."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, and note when."""
        super().print(*objects, **options)
        self.printed_at = time.monotonic()

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
QUIET_SECONDS = 10.0
"""Seconds without a line after which a command says what it is doing."""


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
        """Print a record as an error, a warning or, below `logging.WARNING`, a note."""
        say = error if record.levelno >= logging.ERROR else warning if record.levelno >= logging.WARNING else note
        say(self.format(record))


class Heartbeat:
    """Says what a command is doing whenever it has printed nothing for `QUIET_SECONDS`.

    Args:
        name: the command's.
        clock: returns seconds, as does `Plain.printed_at`.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name, self._clock = name, clock
        self._begun = clock()

    def beat(self) -> float:
        """Print a line if it is due; return the seconds until the next may be."""
        now = self._clock()
        left = max(self._begun, err.printed_at) + QUIET_SECONDS - now
        if left > 0:
            return left
        part = progress.current()
        doing = "still running" if part is None else str(part)
        note(f"{self._name}: {doing}, {timedelta(seconds=round(now - self._begun))} so far")
        err.printed_at = now  # also where the console is silent
        return QUIET_SECONDS


@contextmanager
def beating(name: str) -> Iterator[None]:
    """Keep a `Heartbeat` of a command in a block, in a thread of its own."""
    heart, ended = Heartbeat(name), threading.Event()

    def beat() -> None:
        left = QUIET_SECONDS
        while not ended.wait(left):
            left = heart.beat()

    progress.restart()
    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


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
            with redirect_stdout(STDERR), beating(command.__name__):
                command(*arguments, **options)
        finally:
            out._file = None

    return run


def note_left_out(metrics: Mapping[str, Any]) -> None:
    """Print why figures are absent from metrics.json."""
    for name, reason in metrics.get("left_out", {}).items():
        note(f"{name} is left out: {reason}")


def print_worst(metrics: Mapping[str, Any]) -> None:
    """Print which classes to look at first, and why."""
    from interpkit.cli.figures import class_titles
    from interpkit.evaluation.doubts import worst

    rows = metrics.get("per_class", [])
    named = {row["label"]: title for row, title in zip(rows, class_titles(rows), strict=True)}
    for label, said in worst(metrics):
        out.print(f"Look first at class {named[label]}: {said}.", highlight=False, markup=False)


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
    out.out(json.dumps(value, indent=2, ensure_ascii=out.options.ascii_only), highlight=False)


class ProgressDisplay:
    """Shows progress and the time left: as a bar in a terminal, otherwise as a line every few seconds.

    The bar also shows how far a part of a step is.

    Args:
        total: number of units.
        unit: what is counted, such as steps.
    """

    def __init__(self, total: int, unit: str = "steps") -> None:
        from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
        from rich.table import Column

        class Part(ProgressColumn):
            max_refresh = 0.5

            def render(self, task: object) -> Text:
                return Text(str(progress.current() or ""))

        count = TextColumn("{task.completed}/{task.total} {task.description}", markup=False)
        figures = TextColumn("{task.fields[figures]}", markup=False, table_column=Column())  # a column that wraps
        columns = (count, BarColumn(10), TimeRemainingColumn(compact=True), figures, Part())
        self._bar = Progress(*columns, console=err, disable=not err.is_terminal, transient=True)
        self._bar.add_task(unit, total=total, figures="")
        self._task = self._bar.tasks[0]
        self._printed_at = 0.0

    def __enter__(self) -> ProgressDisplay:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()
        self._note_figures()

    def step(self, done: int) -> None:
        """Show how many are done; where this is not a terminal, only if no line was printed for a while."""
        self._bar.update(self._task.id, completed=done)
        if time.monotonic() - err.printed_at > 2 * PLAIN_SECONDS:
            self._print(f"{done}/{self._task.total} {self._task.description}", done)

    def restart(self, total: int, unit: str) -> None:
        """Show the progress of something else from now on."""
        self._note_figures()
        self._bar.reset(self._task.id, total=total, description=unit, figures="")

    def record(self, record: StepRecord) -> None:
        """Show the loss, its terms and the inversion accuracy of a step."""
        terms = "  ".join(f"{name} {value:.3f}" for name, value in record.terms.items())
        accuracy = f"inversion accuracy {percent(record.inversion_accuracy)}"
        self._bar.update(self._task.id, figures=f"loss {record.loss:.3f}  {terms}  {accuracy}")
        self._print(f"step {record.step}/{self._task.total}", record.step)

    def count(self, done: int) -> None:
        """Show how many are done, where there are no step records."""
        self._bar.update(self._task.id, completed=done)
        self._print(f"{done}/{self._task.total} {self._task.description}", done)

    def _note_figures(self) -> None:
        """Keep the last figures in view, in a terminal, where they are in the line of the bar."""
        if err.is_terminal and self._task.fields["figures"]:
            note(self._task.fields["figures"])

    def _print(self, progress: str, done: int) -> None:
        """Print a line, if this is not a terminal and the last one is old enough or nothing is left to do."""
        now = time.monotonic()
        if self._bar.disable and (now - self._printed_at > PLAIN_SECONDS or done == self._task.total):
            self._printed_at = now
            seconds = self._task.time_remaining
            left = "" if seconds is None else f"{timedelta(seconds=round(seconds))} left"
            note("  ".join(filter(None, (progress, self._task.fields["figures"], left))))
