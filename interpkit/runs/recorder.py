"""Write a run's history and checkpoints while it trains."""

from __future__ import annotations

import io
import json
import os
import time
from typing import Any

import torch

from interpkit.config.recipe import Recipe
from interpkit.io.atomic import naming, write_atomically
from interpkit.runs.folder import Run
from interpkit.runtime.recorder import CHECKPOINT_SECONDS, Recorder, StepRecord


class RunRecorder(Recorder):
    """A recorder that writes the history step by step, and a checkpoint at least every minute."""

    def __init__(self, run: Run, recipe: Recipe, **callbacks: Any) -> None:
        super().__init__(recipe.steps, **callbacks)
        self.run = run
        self._recipe = recipe
        self._saved_at = time.monotonic()
        self._saved_step: int | None = None

    def start(self) -> dict[str, Any] | None:
        """Start the clock; return the checkpoint, if any, and truncate the history to its step."""
        state = self.run.checkpoint()
        if state is not None:
            self._seconds_before = state["seconds"]
            self._saved_step = state["step"]
            self.history = self.run.history(self._recipe)
            self.take_up(state)
        self._write_history()
        super().start()
        self._saved_at = time.monotonic()
        return state

    def write(self, record: StepRecord) -> None:
        """Append the record and flush it."""
        path = self.run / "history.jsonl"
        with naming(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record.to_row()) + "\n")

    def _write_history(self) -> None:
        rows = [json.dumps(record.to_row()) + "\n" for record in self.history]
        write_atomically(self.run / "history.jsonl", "".join(rows))

    def go_back(self, step: int) -> None:
        """Discard the records after a step, also on disk."""
        super().go_back(step)
        self._write_history()

    def note(self, **facts: Any) -> None:
        """Change entries of the manifest."""
        self.run.note(**facts)

    def due(self, step: int | None) -> bool:
        """Return whether to save now: every minute, every ``checkpoint_every`` steps, and at the end."""
        every = self._recipe.checkpoint_every
        return (
            step == self.steps
            or self.stop_requested
            # Several processes ask only at some steps, and may have passed the one that was due.
            or (every is not None and step is not None and step // every > (self._saved_step or 0) // every)
            or time.monotonic() - self._saved_at >= CHECKPOINT_SECONDS
        )

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Save a checkpoint after checking that all values so far are finite."""
        self.checked()
        buffer = io.BytesIO()
        torch.save({**state, **self.state(), "step": step, "seconds": self.seconds}, buffer)
        path = self.run / "history.jsonl"
        with naming(path), path.open("ab") as file:
            os.fsync(file.fileno())  # a checkpoint never outlives the records before it
        write_atomically(self.run / "checkpoint", buffer.getvalue())
        self._saved_at, self._saved_step = time.monotonic(), step

    def kept(self) -> str:
        """Return a sentence that says where the last good checkpoint of a failed run is."""
        step = self._saved_step
        return "" if step is None else f" The last good checkpoint, of step {step}, is in {self.run.folder}."
