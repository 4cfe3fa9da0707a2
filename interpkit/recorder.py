"""What happens as an inversion goes: the history, the check that all is finite, and when to checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interpkit.errors import NonFiniteError, RunError
from interpkit.profiling import phase

RECORD_EVERY = 10
CHECKPOINT_SECONDS = 60.0
ROUNDING = 1e-3
"""By how much an image may leave [0, 1]."""
RESERVED = ("step", "seconds", "loss", "inversion_accuracy")
"""Names in a line of the history that no term may take."""


@dataclass(frozen=True)
class StepRecord:
    """One line of the history.

    Attributes:
        step: counted from 1.
        steps: of the whole run.
        seconds: wall time since the first step began, without interruptions.
        loss: the weighted sum at this step.
        terms: each term's value at this step, without its weight.
        inversion_accuracy: share of the images since the last record that the target puts in the class asked
            for, as the generator trains (dropout and batch statistics on).
    """

    step: int
    steps: int
    seconds: float
    loss: float
    terms: dict[str, float]
    inversion_accuracy: float

    def to_row(self) -> dict[str, Any]:
        """Return the record as a line of history.jsonl."""
        return {
            "step": self.step,
            "seconds": round(self.seconds, 3),
            "loss": self.loss,
            **self.terms,
            "inversion_accuracy": self.inversion_accuracy,
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any], steps: int) -> StepRecord:
        """Return the record of a line of history.jsonl."""
        terms = {name: value for name, value in row.items() if name not in RESERVED}
        return cls(row["step"], steps, row["seconds"], row["loss"], terms, row["inversion_accuracy"])


class Recorder:
    """Takes each step's values without waiting for the device; looks at them every ten steps.

    Args:
        steps: of the whole run.
        on_step: called after each step with its number; costs no synchronisation.
        on_record: called with each record.
        owners: which plugin each component of the recipe is of, by kind and name; for messages.
    """

    def __init__(
        self,
        steps: int,
        *,
        on_step: Callable[[int], None] | None = None,
        on_record: Callable[[StepRecord], None] | None = None,
        owners: Mapping[tuple[str, str], str] | None = None,
    ) -> None:
        self.steps = steps
        self.next_step = 1
        self.history: list[StepRecord] = []
        self.stop_requested = False
        self._on_step = on_step
        self._on_record = on_record
        self._owners = owners or {}
        # whose the images are: an inverter makes them itself where no generator does
        self._painter = sorted(key for key in self._owners if key[0] in ("generator", "inverter"))[:1]
        self._names: list[str] = []
        self._pending: list[tuple[int, Tensor]] = []
        self._clock_start: float | None = None
        self._seconds_before = 0.0

    @property
    def seconds(self) -> float:
        """Wall time since the first step began, without interruptions."""
        now = 0.0 if self._clock_start is None else time.monotonic() - self._clock_start
        return self._seconds_before + now

    def start(self) -> dict[str, Any] | None:
        """Start the clock; return the state to go on from, or None for a fresh start."""
        self._clock_start = time.monotonic()
        return None

    def step(
        self,
        step: int,
        loss: Tensor,
        terms: Mapping[str, Tensor],
        images: Tensor,
        logits: Tensor,
        labels: Tensor,
    ) -> None:
        """Take the values of one step.

        Args:
            step: its number, from 1.
            loss: the weighted sum, scalar.
            terms: by name, scalars.
            images: (B, ...).
            logits: (B, n), the target's.
            labels: (B,), the classes asked for.

        Raises:
            RunError: a value since the last record is not finite; says at which step and which.
            RunError: an image left [0, 1].
        """
        self.next_step = step + 1
        self._names = list(terms)
        with phase("recorder"):
            accuracy = (logits.argmax(1) == labels).float().mean()
            watched = [images.detach().abs().amax(), logits.detach().abs().amax(), *terms.values(), loss]
            self._pending.append((step, torch.stack([value.detach().float() for value in (*watched, accuracy)])))
        if self._on_step is not None:
            self._on_step(step)
        if step % RECORD_EVERY == 0 or step == self.steps or step == 1:
            with phase("recorder"):
                self.flush()

    def flush(self) -> None:
        """Look at the values that were taken since the last record, and record the last of them."""
        if not self._pending:
            return
        table = torch.stack([values for _, values in self._pending]).tolist()
        for (step, _), row in zip(self._pending, table, strict=True):
            terms = [f"the term {name!r}" for name in self._names]
            images = "the images" if [kind for kind, _ in self._painter] == ["inverter"] else "the generator's images"
            names = [images, "the target's logits", *terms, "the loss"]
            bad = next((i for i, value in enumerate(row[:-1]) if not math.isfinite(value)), None)
            if bad is not None:
                self._pending.clear()
                owner = self._owner(bad, by_a_gradient=step > 1)
                told = f"{names[bad]} turned non-finite at step {step}{owner}.{self.advice()}{self.kept()}"
                raise NonFiniteError(told)
            if row[0] > 1 + ROUNDING:
                self._pending.clear()
                owner = self._owner(0)
                raise RunError(f"{names[0]} left [0, 1], for {row[0]:.3g}, at step {step}{owner}.{self.kept()}")
        step, last = self._pending[-1][0], table[-1]
        accuracy = sum(row[-1] for row in table) / len(table)
        self._pending.clear()
        record = StepRecord(
            step,
            self.steps,
            self.seconds,
            last[-2],
            dict(zip(self._names, last[2:-2], strict=True)),
            accuracy,
        )
        self.history.append(record)
        self.write(record)
        if self._on_record is not None:
            self._on_record(record)

    def _owner(self, column: int, *, by_a_gradient: bool = False) -> str:
        """Return whose a watched value is, the images or a term, for a message; nothing where that is no plugin's."""
        terms = [("loss", name) for name in self._names]
        makers = self._painter if column == 0 else terms[column - 2 : column - 1]
        said = [f"plugin {self._owners[key]!r}" for key in makers if key in self._owners]
        losses = sorted({repr(owner) for (kind, _), owner in self._owners.items() if kind == "loss"})
        if said and column == 0 and by_a_gradient and losses:
            said.append(f"or the gradient of a loss of {', '.join(losses)}")
        return f" ({', '.join(said)})" if said else ""

    def kept(self) -> str:
        """Return where the last good state of a failed run is; in memory there is none."""
        return ""

    def advice(self) -> str:
        """Return what to do about a failed run."""
        return " Try a lower rate (--set optimizer.lr=0.0005) or --precision fp32."

    def write(self, record: StepRecord) -> None:
        """Keep a record; in memory there is nothing more to do."""

    def go_back(self, step: int) -> None:
        """Forget what was recorded after a step: the run is taken up again from there."""
        self._pending.clear()
        self.next_step = step + 1
        self.history = [record for record in self.history if record.step <= step]

    def note(self, **facts: Any) -> None:
        """Note how the run is computed, for its manifest; in memory there is none."""

    def due(self, step: int) -> bool:
        """Say whether a checkpoint should be saved after this step; in memory none is."""
        return False

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Save a checkpoint."""
