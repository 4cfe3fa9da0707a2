"""Record an inversion while it runs: keep the history, detect divergence and collapse, and save checkpoints."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from interpkit.errors import DivergedError, RunError, listed, restart, setting
from interpkit.runtime import progress
from interpkit.runtime.distributed import World
from interpkit.runtime.mode_collapse import ONE_PICTURE, SINCE, Collapse
from interpkit.runtime.profiler import phase
from interpkit.runtime.progress import duration

log = logging.getLogger("interpkit")

RECORD_EVERY = 10
MOST_RECORDS = 10_000
"""Runs that would have more records are recorded less often than every ten steps; values are checked equally often."""
EXPLODED = 1000.0
"""A loss explodes if it is this many times its value at the first step and the median of the `RECENT` records."""
RECENT = 20
CHECKPOINT_SECONDS = 60.0
ROUNDING = 1e-3
"""The tolerance by which image values may leave [0, 1]."""
RESERVED = ("step", "seconds", "loss", "inversion_accuracy")
"""Names in a line of the history that terms must not use."""


@dataclass(frozen=True)
class StepRecord:
    """One line of the history.

    Attributes:
        step: counted from 1.
        steps: the number of steps of the whole run.
        seconds: wall time since the first step began, without interruptions.
        loss: the weighted sum at this step.
        terms: each term's value at this step, without its weight.
        inversion_accuracy: share of the images since the last record that the target assigns to the requested class,
            with the generator in training mode (dropout and batch statistics on).
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
        """Return the record of a line of history.jsonl; one that is not whole is a ``KeyError`` or ``TypeError``."""
        numbers = isinstance(row, Mapping) and all(type(value) in (int, float) for value in row.values())
        if not numbers or type(row["step"]) is not int:
            raise TypeError("not numbers by name")
        terms = {name: value for name, value in row.items() if name not in RESERVED}
        return cls(row["step"], steps, row["seconds"], row["loss"], terms, row["inversion_accuracy"])


class Resumable(Protocol):
    """The state of a run: torch's protocol to save and load a state, and the last completed step."""

    step: int

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on, as tensors and plain values."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Restore such a state, including its step."""


class Recorder:
    """Receives each step's values without waiting for the device; checks them every ten steps.

    Args:
        steps: the number of steps of the whole run.
        class_names: the target's class names; if specified, the recorder warns about classes that have collapsed.
        classes: the number of classes to invert; all if omitted.
        on_step: called after each step with its number, without synchronizing with the device.
        on_record: called with each record.
        owners: the plugin of each component of the recipe, by kind and name; for messages.
        variety_preset: the name of a preset to suggest if classes have collapsed.
        accepts: (logits, labels) -> whether the target assigns each image to its class; the target's own method.
    """

    def __init__(
        self,
        steps: int,
        *,
        class_names: Sequence[str] = (),
        classes: int | None = None,
        on_step: Callable[[int], None] | None = None,
        on_record: Callable[[StepRecord], None] | None = None,
        owners: Mapping[tuple[str, str], str] | None = None,
        variety_preset: str = "",
        accepts: Callable[[Tensor, Tensor], Tensor] = lambda logits, labels: logits.argmax(1) == labels,
    ) -> None:
        self.steps = steps
        self.next_step = 1
        self.history: list[StepRecord] = []
        self.stop_requested = False
        self.notes: dict[str, Any] = {}
        self.images_so_far: int | None = None
        """The images that there are to judge if the run stops now; None if it can then make as many as it likes."""
        self.trial = False
        """Whether this is a trial of a few steps, whose results are discarded."""
        self.advice = "Try a lower rate."
        self._record_every = RECORD_EVERY * math.ceil(steps / (RECORD_EVERY * MOST_RECORDS))
        self._class_names = class_names
        self._classes = len(class_names) if classes is None else classes
        self._collapse = Collapse(len(class_names))
        self._on_step = on_step
        self._on_record = on_record
        self._owners = owners or {}
        self._variety_preset = variety_preset
        self._accepts = accepts
        # the component that makes the images: the inverter itself if there is no generator
        self._painter = sorted(key for key in self._owners if key[0] in ("generator", "inverter"))[:1]
        self._names: list[str] = []
        self._pending: list[tuple[int, Tensor]] = []
        self._checked: list[tuple[int, list[float]]] = []
        """The values since the last record that have been checked."""
        self._recent: list[list[float]] = []
        """The values of the first record and of the latest ones."""
        self._clock_start: float | None = None
        self._seconds_before = 0.0
        self._share = 0.0
        """The share of the present step that is done."""

    @property
    def seconds(self) -> float:
        """Wall time since the first step began, without interruptions."""
        now = 0.0 if self._clock_start is None else time.monotonic() - self._clock_start
        return self._seconds_before + now

    @property
    def seconds_per_step(self) -> float | None:
        """The time of a step, without what came before the first; None if none has shown it."""
        done = self.next_step - 1 + self._share
        begun, step = (self.history[0].seconds, self.history[0].step) if self.history else (0.0, 0)
        if done > step:
            return (self.seconds - begun) / (done - step)
        return self.seconds / done if done else None

    def advise(self, lr: float, precision: str) -> None:
        """Choose what an error of divergence suggests, by the rate and the precision that are in use."""
        rate = setting("optimizer.lr", float(f"{lr / 3:.1g}"))
        exact = f" or {setting('precision', 'fp32')}" if precision == "bf16" else ""
        self.advice = f"Try a lower rate ({rate}){exact}."

    def start(self) -> dict[str, Any] | None:
        """Start the clock; return the state to resume from, or None for a fresh start."""
        self._clock_start = time.monotonic()
        return None

    def resume(self, state: Resumable) -> bool:
        """Start the clock, and load the checkpoint, if there is one, into ``state``; return whether there was one."""
        world = World.current()
        checkpoint = world.broadcast(self.start())
        if checkpoint is not None:
            try:
                state.load_state_dict(checkpoint)
            except RunError as error:
                raise RunError(f"{error} {restart()}") from error
            if world.rank > 0:
                self.take_up(checkpoint)  # all processes must agree on what counts as an explosion
        return checkpoint is not None

    def training_steps(self, state: Resumable) -> Iterator[int]:
        """Yield the number of each remaining step; the caller runs the step and reports it by calling `step`.

        After each step, this saves a checkpoint if one is due, and stops if a stop was requested.
        """
        world = World.current()
        for step in range(state.step + 1, self.steps + 1):
            yield step
            state.step = step
            due, stop = self.due(step), self.stop_requested
            if world.size > 1:  # only every few steps, as this waits for the device
                agree = step % RECORD_EVERY == 0 or step == self.steps
                due, stop = world.any_rank(due, stop) if agree else (False, False)
            if due:
                with phase("checkpoints"):
                    self.save(step, state.state_dict())
            if stop:
                break
        self.flush()

    def part(self, done: int, total: int, what: str, images_so_far: int) -> None:
        """Report how far a step of many parts is, so that its progress can be shown.

        Args:
            done: the parts of this step that are done.
            total: the parts of a step.
            what: what is being done, in words.
            images_so_far: the images that there are to judge if the run stops here.
        """
        self._share, self.images_so_far = done / total, images_so_far
        rest = self.steps - (self.next_step - 1 + self._share)
        left = duration(rest * (self.seconds_per_step or 0.0))
        progress.tell(f"parts of step {self.next_step}", done, total, f"{what}; about {left} left")

    def pause(self, state: Resumable) -> bool:
        """Save a checkpoint within a step, if one is due; return whether to stop here.

        ``state`` has to include how far the step is. Several processes that share a batch stop only between steps.
        """
        if World.current().size > 1:
            return False
        if self.due(None):
            with phase("checkpoints"):
                self.save(self.next_step - 1, state.state_dict())
        if self.stop_requested:
            progress.tell(f"parts of step {self.next_step}", 1, 1)
            self.flush()
        return self.stop_requested

    def step(
        self, step: int, loss: Tensor, terms: Mapping[str, Tensor], images: Tensor, logits: Tensor, labels: Tensor
    ) -> None:
        """Receive the values of one step.

        Args:
            step: the number of the step, from 1.
            loss: the weighted sum, a scalar.
            terms: the terms by name, scalars.
            images: (B, ...).
            logits: (B, n), the target's logits.
            labels: (B,), the requested classes.

        Raises:
            RunError: a value since the last check is not finite, the loss explodes, or an image left [0, 1]; the
                message names the value and the step.
        """
        progress.tell(f"parts of step {step}", 1, 1)
        self.next_step, self._share = step + 1, 0.0
        self._names = list(terms)
        with phase("recorder"):
            right = self._accepts(logits, labels)
            away = (images.detach() - 0.5).abs().amax() - 0.5  # how far outside [0, 1] a value is; below 0: inside
            watched = [away, logits.detach().abs().amax(), *terms.values(), loss]
            values = [value.detach().float() for value in (*watched, right.float().mean())]
            self._pending.append((step, torch.stack(values)))
        if self._on_step is not None:
            self._on_step(step)
        with phase("recorder"):
            if step % self._record_every == 0 or step == self.steps or step == 1:
                self.flush()
            elif step % RECORD_EVERY == 0:
                self.checked()
            if step % RECORD_EVERY == 0 and step >= SINCE * self.steps and self._class_names:
                self._collapse.look(images, labels, right)
                if step % 50 == 0:
                    self._report_collapsed(step)

    def flush(self) -> None:
        """Check the values received since the last record, and record the last of them."""
        rows = self.checked()
        if not rows:
            return
        self._checked = []
        step, last = rows[-1]
        accuracy = sum(row[-1] for _, row in rows) / len(rows)
        self._recent = [*self._recent[:1], *self._recent[1:][1 - RECENT :], last]
        terms = dict(zip(self._names, last[2:-2], strict=True))
        record = StepRecord(step, self.steps, self.seconds, last[-2], terms, accuracy)
        self.history.append(record)
        self.write(record)
        if self._on_record is not None:
            self._on_record(record)

    def checked(self) -> list[tuple[int, list[float]]]:
        """Check the values received since the last record (see `step`), and return them by step."""
        if self._pending:
            steps, values = zip(*self._pending, strict=True)
            self._pending.clear()
            rows = list(zip(steps, torch.stack(values).tolist(), strict=True))
            for step, row in rows:
                self._check(step, row)
            self._checked += rows
        return self._checked

    def _check(self, step: int, row: list[float]) -> None:
        terms = [f"the term {name!r}" for name in self._names]
        images = "the images" if [kind for kind, _ in self._painter] == ["inverter"] else "the generator's images"
        names = [images, "the target's logits", *terms, "the loss"]
        bad = next((i for i, value in enumerate(row[:-1]) if not math.isfinite(value)), None)
        if bad is not None:
            owner = self._owner(bad, by_a_gradient=step > 1)
            what = f"{names[bad]} turned non-finite at step {step}{owner}"
            raise DivergedError(f"{what}. {self.advice}{self.kept()}", what, step)
        if row[0] > ROUNDING:
            owner = self._owner(0)
            raise RunError(f"{names[0]} left [0, 1] by {row[0]:.3g} at step {step}{owner}.{self.kept()}")
        if self._recent and abs(row[-2]) > EXPLODED * self._usual(-2):
            grown = max(range(2, len(row) - 1), key=lambda i: abs(row[i]) / self._usual(i))
            before, now = self._usual(grown), row[grown]
            what = f"{names[grown]} exploded at step {step}{self._owner(grown)}, from about {before:.3g} to {now:.3g}"
            raise DivergedError(f"{what}. {self.advice}{self.kept()}", what, step)

    def _usual(self, column: int) -> float:
        """Return the usual size of a watched value, at least 1, because small values may well grow."""
        sizes = [abs(row[column]) for row in self._recent]
        return max(1.0, sizes[0], statistics.median(sizes))

    def _report_collapsed(self, step: int) -> None:
        names, collapsed = self._class_names, self._collapse.judge(step)
        for what, classes in collapsed.items():
            some = f"{len(classes)} of {self._classes} classes ({listed(names[label] for label in classes)})"
            if what == ONE_PICTURE:
                rate = "a lower rate, " if 2 * len(classes) > self._classes else ""
                name = self._variety_preset
                preset = f", or {setting('preset', name)} over the recipe" if name else ""
                words = (
                    f"the images of {some} have collapsed to one picture per class: try {rate}more weight on a term "
                    f"for variety{preset}"
                )
            else:
                words = (
                    f"the target classifies no image of {some} as its class: increase the weight of the terms that ask "
                    f"for the class, or the number of steps"
                )
            log.warning("at step %d %s", step, words)
        if collapsed:
            reported = self._collapse.reported.items()
            self.note(collapsed=[{"label": label, "name": names[label], **facts} for label, facts in reported])

    def state(self) -> dict[str, Any]:
        """Return what the rest of the recording depends on, as tensors and plain values, for a checkpoint."""
        return {
            "recorded": self.history[-1].step if self.history else 0,
            "checked": list(self._checked),
            "recent": list(self._recent),
            "names": self._names,
            "collapse": self._collapse.state(),
        }

    def take_up(self, state: Mapping[str, Any]) -> None:
        """Restore the recorder's state at a checkpoint, and forget later records; `RunError` if it does not fit."""
        self.next_step = state["step"] + 1
        # A run that is stopped also records its last step, and is resumed as if it had not.
        recorded = state.get("recorded", state["step"])
        checked, recent, names = (state.get(name, []) for name in ("checked", "recent", "names"))
        try:
            self.history = [record for record in self.history if record.step <= recorded]
            rows = torch.tensor([row for _, row in checked] + recent, dtype=torch.float64)
            whole = not len(rows) or rows.shape[1:] == (len(names) + 4,)
            whole &= all(isinstance(name, str) for name in names) and all(isinstance(step, int) for step, _ in checked)
            if self._class_names:
                self._collapse.take_up(state.get("collapse"))
        except (TypeError, ValueError, AttributeError, KeyError, RuntimeError):
            whole = False
        if not whole:
            raise RunError(
                f"the checkpoint does not fit its recipe: it does not contain valid values of steps. {restart()}"
            )
        self._checked, self._recent, self._names = list(checked), list(recent), list(names)

    def _owner(self, column: int, *, by_a_gradient: bool = False) -> str:
        """Return the plugin responsible for a watched value, for a message; empty if it is not a plugin's."""
        terms = [("loss", name) for name in self._names]
        makers = self._painter if column == 0 else terms[column - 2 : column - 1]
        sources = [f"plugin {self._owners[key]!r}" for key in makers if key in self._owners]
        losses = sorted({repr(owner) for (kind, _), owner in self._owners.items() if kind == "loss"})
        if sources and column == 0 and by_a_gradient and losses:
            sources.append(f"or the gradient of a loss of {', '.join(losses)}")
        return f" ({', '.join(sources)})" if sources else ""

    def kept(self) -> str:
        """Return where the last good state of a failed run is, for a message; empty for runs in memory."""
        return ""

    def write(self, record: StepRecord) -> None:
        """Write a record; runs in memory do not write it."""

    def go_back(self, step: int) -> None:
        """Forget what was recorded after a step, from which the run will continue."""
        self._pending.clear()
        self._checked = [row for row in self._checked if row[0] <= step]
        self._collapse.forget()
        self.next_step = step + 1
        self.history = [record for record in self.history if record.step <= step]

    def note(self, **facts: Any) -> None:
        """Note how the run is computed, for the manifest if it is saved later."""
        self.notes |= facts

    def due(self, step: int | None) -> bool:
        """Return whether to save a checkpoint after this step, or within one if None; runs in memory save none."""
        return False

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Save a checkpoint."""
