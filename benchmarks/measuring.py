"""How the benchmarks measure: the competitors take turns, and each figure is a ratio with its spread."""

from __future__ import annotations

import multiprocessing
import os
import platform
import re
import resource
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interpkit.api import invert
from interpkit.inversion.loop import GeneratorInverter
from interpkit.plugins import assembly
from interpkit.plugins.discovery import installed
from interpkit.runtime.devices import keep_freed_memory
from interpkit.runtime.recorder import Recorder

OPERATORS: dict[str, Callable[[float, float], bool]] = {"<=": float.__le__, ">=": float.__ge__}


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
        what: what is measured, with its unit unless it is a ratio.
        value: the number; the median if there are several.
        goal: a comparison such as ``<= 0.5``; empty if the figure is only reported.
        low: the first quartile, if there are several numbers.
        high: the third quartile, likewise.
        detail: what was measured, in absolute numbers.
    """

    what: str
    value: float
    goal: str = ""
    low: float | None = None
    high: float | None = None
    detail: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None if there is no goal."""
        if not self.goal:
            return None
        operator, limit = self.goal.split()
        return OPERATORS[operator](float(self.value), float(limit))

    @classmethod
    def of(cls, what: str, values: Sequence[float], goal: str = "", detail: str = "") -> Figure:
        """Return the median of several values, with their quartiles."""
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(what, middle, goal, low, high, detail)

    def row(self) -> str:
        """Return the row of a Markdown table."""
        spread = "" if self.low is None else f" ({self.low:.3g} to {self.high:.3g})"
        met = {None: "", True: "yes", False: "**no**"}[self.met]
        return f"| {self.what} | {self.value:.3g}{spread} | {self.goal} | {met} | {self.detail} |"


HEAD = "| what | measured | goal | met | details |\n|---|---|---|---|---|\n"


def in_turn(rivals: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 3) -> dict[str, list[float]]:
    """Run competitors in turn, in alternating order; return the seconds of each turn by name."""
    names = list(rivals)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(warm_up + rounds):
        for name in names if number % 2 else reversed(names):
            begun = time.perf_counter()
            rivals[name]()
            took = time.perf_counter() - begun
            if number >= warm_up:
                seconds[name].append(took)
    return seconds


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return the ratio of each pair of turns."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


class Apart:
    """A competitor in its own process, so that settings of the C library or of torch do not affect the others.

    Args:
        make: returns the competitor, in that process, to be called once per turn; must be picklable: a function of a
            module, or a partial of one.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(make, there), daemon=True)
        self._process.start()
        there.close()

    def ask(self, question: Callable[[Any], Any]) -> Any:
        """Send a function to the process; return its result for the competitor."""
        self._pipe.send(question)
        return self._pipe.recv()

    def __call__(self) -> Any:
        """Run one turn of the competitor and return its result."""
        return self.ask(_turn)

    def end(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join()


def _serve(make: Callable[[], Any], pipe: Any) -> None:
    rival = make()
    while True:
        pipe.send(pipe.recv()(rival))


def _turn(rival: Callable[[], Any]) -> Any:
    return rival()


class _Handing(Recorder):
    """A recorder that hands control over after each step, and waits for its next turn."""

    def __init__(self, steps: int, hand_over: Callable[[], None]) -> None:
        super().__init__(steps)
        self._hand_over = hand_over

    def step(self, step: int, loss: Any, terms: Any, images: Any, logits: Tensor, labels: Tensor) -> None:
        super().step(step, loss, terms, images, logits, labels)
        self.accuracy = (logits.argmax(1) == labels).float().mean().item()
        self._hand_over()


class OurLoop:
    """interpkit's own loop (`GeneratorInverter`), one step at a time, in a thread that takes turns.

    Args:
        job: the run; it cannot take more steps than its recipe has.

    Attributes:
        parts: the networks in training.
    """

    def __init__(self, job: invert.Job) -> None:
        self.job = job
        keep_freed_memory(torch.device(job.recipe.device))
        torch.manual_seed(job.recipe.seed)
        _, self.parts = assembly.build(job.recipe, job.target, installed())
        self._recorder = _Handing(job.recipe.steps, self._hand_over)
        self._turn, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        self._turn.acquire()
        try:
            with self.job.target.frozen(self.job.recipe.device, torch.channels_last):
                GeneratorInverter().invert(self.job.target, self.job.recipe, self.parts, self._recorder)
        except BaseException as error:
            self._error = error
        self._done.release()

    def _hand_over(self) -> None:
        self._done.release()
        self._turn.acquire()

    def __call__(self) -> float:
        """Take one step; return the inversion accuracy of its batch."""
        self._turn.release()
        self._done.acquire()
        if self._error is not None:
            raise self._error
        return self._recorder.accuracy


class _Reporting(Recorder):
    def __init__(self, steps: int, after_step: Callable[[int, float], None]) -> None:
        super().__init__(steps)
        self._after_step = after_step

    def step(self, step: int, loss: Tensor, *args: Any) -> None:
        super().step(step, loss, *args)
        self._after_step(step, loss.item())


def stepwise(job: invert.Job, after_step: Callable[[int, float], None]) -> None:
    """Run the loop to its end in this thread; call ``after_step`` with the number and the loss of each step."""
    keep_freed_memory(torch.device(job.recipe.device))
    torch.manual_seed(job.recipe.seed)
    _, parts = assembly.build(job.recipe, job.target, installed())
    recorder = _Reporting(job.recipe.steps, after_step)
    with job.target.frozen(job.recipe.device, torch.channels_last):
        GeneratorInverter().invert(job.target, job.recipe, parts, recorder)


def best_matrix_product(dtype: torch.dtype, device: torch.device, sizes: Sequence[int] = (512, 1024, 2048)) -> float:
    """Return the highest FLOP/s that a product of two square matrices reached."""
    best = 0.0
    for size in sizes:
        a = torch.randn(size, size, device=device).to(dtype)
        b = torch.randn(size, size, device=device).to(dtype)
        for _ in range(8):
            synchronize(device)
            begun = time.perf_counter()
            a @ b
            synchronize(device)
            best = max(best, 2 * size**3 / (time.perf_counter() - begun))
    return best


def peak_memory() -> float:
    """Return the peak memory of this process in MB.

    Not by `resource.getrusage`, which reports the peak of the parent process if that is higher.
    """
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1e3


def system_share(before: resource.struct_rusage, after: resource.struct_rusage) -> float:
    """Return the share of CPU time between two measurements that was spent in the system."""
    system, user = after.ru_stime - before.ru_stime, after.ru_utime - before.ru_utime
    return system / (system + user)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished; do nothing on other devices."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine(device: torch.device) -> dict[str, Any]:
    """Describe the machine that the figures are measured on."""
    processor = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        names = re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        processor = names[0] if names else processor
    return {
        "processor": processor,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
