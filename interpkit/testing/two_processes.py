"""Two fresh processes that share a gloo process group, to run a component in both at once.

Each imports the component itself, as the processes of a run on several devices do. They start when they are first
needed, and serve until the process that started them ends.
"""

from __future__ import annotations

import importlib
import inspect
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType
from typing import Any

from interpkit.errors import first_line
from interpkit.plugins.discovery import import_file
from interpkit.testing import checks
from interpkit.testing.checks import Broken

SECONDS = 60.0
"""How long a call may take."""
START_SECONDS = 600.0
"""How long the two may take to start, with the import of torch, on a machine that is busy with other things."""
GRACE_SECONDS = 1.0
"""How long the other process may go on once one has failed; it may wait for the failed one in vain."""
SCRIPT = "interpkit_checked_script"
"""The name that the main script has in the other processes, where ``__main__`` is another."""
_pairs: list[_Pair] = []
"""The two processes that are running; empty or one pair."""


@dataclass(frozen=True)
class Importable:
    """A class as another process can import it: from its module, or from the file that holds it."""

    module: str
    name: str
    file: str

    @classmethod
    def of(cls, thing: type) -> Importable:
        """Return the way to import a class.

        Raises:
            Broken: there is none, as it was made inside a function or in no file.
        """
        if "<locals>" in thing.__qualname__:
            raise Broken(f"{thing.__qualname__} is defined inside a function, where no other process can import it")
        try:
            file = inspect.getfile(thing)
        except (OSError, TypeError) as error:
            raise Broken(
                f"{thing.__qualname__} is in no file, so no other process can import it: if it is in a notebook, move "
                f"it into a file of Python and import it"
            ) from error
        return cls(SCRIPT if thing.__module__ == "__main__" else thing.__module__, thing.__qualname__, file)

    def load(self) -> Any:
        """Import the class; its module may run checks itself, of which none runs here."""
        checks.only_importing = True
        try:
            found: Any = importlib.import_module(self.module)
        except ImportError:  # a script, a plugin file, or a test's module, which pytest has under a name of its own
            found = import_file(Path(self.file), self.module)
        finally:
            checks.only_importing = False
        for name in self.name.split("."):
            found = getattr(found, name)
        return found


class _Pair:
    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.folder = tempfile.TemporaryDirectory(prefix="interpkit-")
        self.ends: list[Connection] = []
        self.processes = []
        # A new process would import the main module, and a script that checks its components would start over there.
        main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        try:
            for rank in range(2):
                end, other_end = context.Pipe()
                arguments = (rank, f"{self.folder.name}/store", other_end)
                process = context.Process(target=_serve, args=arguments, daemon=True)
                process.start()
                other_end.close()
                self.ends.append(end)
                self.processes.append(process)
        finally:
            sys.modules["__main__"] = main
        self.ready = False

    def call(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        if not self.ready:
            self.answers(START_SECONDS)
            self.ready = True
        for end in self.ends:
            with suppress(OSError):  # it has ended, which `answers` reports
                end.send((function, arguments))
        return self.answers(SECONDS)

    def answers(self, seconds: float) -> list[Any]:
        answers: dict[Connection, tuple[Any, str | None]] = {}
        until = time.monotonic() + seconds
        while waiting := [end for end in self.ends if end not in answers]:
            ready: list[Any] = wait(waiting, max(0.0, until - time.monotonic()))
            if not ready:
                self.stop()
                break
            for done in ready:
                try:
                    answers[done] = done.recv()
                except (OSError, EOFError):
                    answers[done] = None, "the process ended"
                    self.processes[self.ends.index(done)].join()  # so that the pair is replaced
                if answers[done][1] is not None:
                    until = min(until, time.monotonic() + GRACE_SECONDS)
        for _, error in answers.values():
            if error is not None:
                raise Broken(f"in one of two processes: {error}")
        if waiting:
            raise Broken(f"two processes were not done after {seconds:g} s; one may wait for the other in vain")
        return [answers[end][0] for end in self.ends]

    def stop(self) -> None:
        if self in _pairs:
            _pairs.remove(self)
        for process in self.processes:
            process.kill()
            process.join()
        self.folder.cleanup()


def in_both(function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Run a function in two processes that share a gloo process group, and return the result of each.

    Args:
        function: of a module; its result must pickle.
        arguments: that pickle, a class as `Importable`.

    Raises:
        Broken: it raised in one of them, or they were not done in time.
    """
    if not _pairs:
        _pairs.append(_Pair())
    pair = _pairs[0]
    try:
        return pair.call(function, *arguments)
    finally:
        if not all(process.is_alive() for process in pair.processes):
            pair.stop()


def _serve(rank: int, store: str, calls: Connection) -> None:
    """Answer calls until the other end is closed."""
    import torch
    import torch.distributed as dist

    os.dup2(2, 1)  # what a component prints is not a result of the command that checks it
    torch.set_num_threads(1)
    meeting = dist.FileStore(store, 2)  # type: ignore[attr-defined]  # public, though not listed
    meeting.set_timeout(timedelta(seconds=START_SECONDS))
    dist.init_process_group("gloo", store=meeting, rank=rank, world_size=2, timeout=timedelta(seconds=SECONDS))
    calls.send((None, None))  # it is ready
    while True:
        try:
            function, arguments = calls.recv()
        except EOFError:
            return
        answer: tuple[Any, str | None]
        try:
            torch.manual_seed(0)
            answer = (function(*arguments), None)
        except Exception as error:  # whatever the component raises
            answer = (None, f"{type(error).__name__}: {first_line(error)}")
        calls.send(answer)
