"""Two fresh processes that can talk by gloo, to run a component in both at once.

They are interpreters of their own that import the component anew, as the processes of a run on several devices do.
Started when first needed, they serve until the process that started them ends.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import importlib.util
import inspect
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from interpkit.testing.checks import Broken

SECONDS = 60.0
"""After which a call is given up."""
GRACE_SECONDS = 1.0
"""For the other process to fail as well, where one has failed."""
_pairs: list[_Pair] = []
"""The two processes that are running; empty or one."""


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
            Broken: there is none, as it was made inside a function.
        """
        if "<locals>" in thing.__qualname__:
            raise Broken(f"{thing.__qualname__} is defined inside a function, where no other process can import it")
        return cls(thing.__module__, thing.__qualname__, inspect.getfile(thing))

    def load(self) -> Any:
        """Import the class."""
        try:
            found: Any = importlib.import_module(self.module)
        except ImportError:  # a test's module, say, which pytest has under a name of its own
            spec = importlib.util.spec_from_file_location(self.module, self.file)
            assert spec is not None and spec.loader is not None
            found = sys.modules[self.module] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(found)
        for name in self.name.split("."):
            found = getattr(found, name)
        return found


class _Pair:
    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="interpkit-")
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(place for place in sys.path if place),
        }
        self.processes = []
        for rank in range(2):
            command = [sys.executable, "-m", "interpkit.testing.two_processes", str(rank), f"{self.folder}/store"]
            with Path(self.folder, f"errors-{rank}").open("wb") as errors:
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment
                )
            self.processes.append(process)

    def call(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        with ThreadPoolExecutor(2) as threads:
            answers = [threads.submit(self._ask, rank, function, arguments) for rank in range(2)]
            done, waiting = wait(answers, SECONDS, FIRST_EXCEPTION)
            failed = [answer.exception() for answer in done if answer.exception() is not None]
            if failed and waiting:  # one may wait for the other in vain
                waiting = wait(answers, GRACE_SECONDS).not_done
            if waiting:
                self.stop()
            if failed:
                raise Broken(f"in one of two processes: {failed[0]}")
            if waiting:
                raise Broken(f"two processes were not done after {SECONDS:g} s; one may wait for the other in vain")
            return [answer.result() for answer in answers]

    def _ask(self, rank: int, function: Callable[..., Any], arguments: Any) -> Any:
        process = self.processes[rank]
        assert process.stdin is not None and process.stdout is not None
        try:
            pickle.dump((function, arguments), process.stdin)
            process.stdin.flush()
            result, error = pickle.load(process.stdout)  # noqa: S301  # what a process of our own wrote
        except (OSError, EOFError) as ended:
            lines = Path(self.folder, f"errors-{rank}").read_text(errors="replace").strip().splitlines()
            raise Broken(f"the process ended: {lines[-1] if lines else 'no message'}") from ended
        if error is not None:
            raise Broken(error)
        return result

    def stop(self) -> None:
        if self in _pairs:
            _pairs.remove(self)
        for process in self.processes:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):  # of what was still to be written to it
                        stream.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def in_both(function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Run a function in two processes that share a gloo process group, and return what each gives.

    Args:
        function: of a module; what it gives must pickle.
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
        if any(process.poll() is not None for process in pair.processes):
            pair.stop()


@atexit.register
def _stop() -> None:
    for pair in list(_pairs):
        pair.stop()


def _serve(rank: int, store: str) -> None:
    """Answer calls until there are no more."""
    import torch
    import torch.distributed as dist

    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a component prints is no answer
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=SECONDS)
    )
    while True:
        try:
            function, arguments = pickle.load(sys.stdin.buffer)  # noqa: S301  # what the starting process wrote
        except EOFError:
            return
        answer: tuple[Any, str | None]
        try:
            torch.manual_seed(0)
            answer = (function(*arguments), None)
        except Exception as error:  # whatever the component raises
            reason = (str(error).strip() or "no message").splitlines()[0]
            answer = (None, f"{type(error).__name__}: {reason}")
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    _serve(int(sys.argv[1]), sys.argv[2])
