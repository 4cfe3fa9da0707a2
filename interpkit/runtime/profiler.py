"""Measure where the time of a step goes: a clock around its phases, for some steps after the first few.

A range of `torch.profiler` does not work for CUDA: another thread launches the kernels of the backward pass, so the
range around the call does not include them. Here the clock waits for the device at both ends of a phase.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

WARM_UP = 5
"""The number of initial steps that are not measured, in which memory is allocated and kernels are chosen."""
MEASURED = 20


class Profile:
    """The time of each phase of a step on a device; see `profiled`.

    A profiled step takes a little longer, because the clock waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.steps = 0
        self.seconds: dict[str, float] = {}
        self._total = 0.0
        self._seen = 0
        self._of_step: dict[str, float] = {}
        self._begun: float | None = None
        self._last = 0.0

    @property
    def measuring(self) -> bool:
        """Whether the current step is measured."""
        return self._begun is not None

    def step_done(self) -> None:
        """End a step and begin the next."""
        self._seen += 1
        if self._begun is not None:
            self.steps += 1
            self._total += self._now() - self._begun
            for name, seconds in self._of_step.items():
                self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self._of_step = {}
        self._begun = self._now() if WARM_UP <= self._seen < WARM_UP + MEASURED else None

    def lap(self, name: str | None = None) -> None:
        """Add the time since the last lap to a phase; without a name, to no phase."""
        if self.measuring:
            before, self._last = self._last, self._now()
            if name is not None:
                self._of_step[name] = self._of_step.get(name, 0.0) + self._last - before

    def to_json(self) -> dict[str, Any]:
        """Return the table: by phase, the milliseconds per step and the share of the whole step, in [0, 1].

        ``other`` is the time outside all phases. A run of at most `WARM_UP` steps has no phases.
        """
        phases = self.seconds | {"other": max(0.0, self._total - sum(self.seconds.values()))}
        return {
            "device": str(self.device),
            "steps": self.steps,
            "ms_per_step": 1e3 * self._total / max(1, self.steps),
            "phases": [
                {"name": name, "ms": 1e3 * seconds / self.steps, "share": seconds / self._total}
                for name, seconds in phases.items()
                if self.steps > 0
            ],
        }

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()


_running: Profile | None = None


@contextmanager
def profiled(device: torch.device, wanted: bool = True) -> Iterator[Profile | None]:
    """Profile the run in a block, if wanted; every step must end with `Profile.step_done`.

    The time between the last phase and the optimizer's step counts as the backward pass, so a loop needs no extra code.
    """
    global _running
    if not wanted:
        yield None
        return
    before, _running = _running, (profile := Profile(device))
    hooks = (
        register_optimizer_step_pre_hook(lambda *_: profile.lap("backward")),
        register_optimizer_step_post_hook(lambda *_: profile.lap("optimizer")),
    )
    try:
        yield profile
    finally:
        _running = before
        for hook in hooks:
            hook.remove()


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Name the phase of a block, or of a function as a decorator, for the profile of the run if there is one."""
    if _running is not None:
        _running.lap()
    yield
    if _running is not None:
        _running.lap(name)
