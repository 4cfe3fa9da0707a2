"""What a run does once where it cannot go on: fp32 in place of bf16, a lower rate, half as many images at a time."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from interpkit.config.recipe import Recipe
from interpkit.errors import DivergedError, RunError
from interpkit.runtime.distributed import Share
from interpkit.runtime.recorder import RECORD_EVERY, Recorder

log = logging.getLogger("interpkit")

KEEP_EVERY = 50
"""Steps from one state that is kept to the next, so that copying costs nothing to speak of."""
LOWER = 0.3
"""What the learning rate is multiplied by where a run diverges."""


class Fallbacks:
    """How a run's steps are computed, which may change once in each respect, and what a checkpoint keeps of it.

    A run that diverges goes back to its last good state, and on from there in fp32 if it was in bf16 (unless that was
    typed), else at a lower rate. A state is good once the steps after it have been looked at: divergence takes some.

    The changes depend on the numbers and on memory alone, and a resumed run falls back where the whole one does.

    Args:
        recipe: asks for the precision and for how many images at a time.
        recorder: is told what changed.
        share: this process's.

    Attributes:
        autocast: the precision of the networks.
        rate: what the learning rate is multiplied by.
        micro_batch: how many images are in memory at a time; all of them if None.
    """

    def __init__(self, recipe: Recipe, recorder: Recorder, share: Share) -> None:
        self.micro_batch = recipe.micro_batch
        self.rate = 1.0
        self._recipe, self._recorder, self._share = recipe, recorder, share
        self._halved = False
        self._good: dict[str, Any] | None = None
        self._newest: dict[str, Any] | None = None
        self._set_precision(recipe.precision)

    def _set_precision(self, precision: str) -> None:
        self.precision = precision
        device = torch.device(self._recipe.device).type
        self.autocast = torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")

    @property
    def _may_give_up_bf16(self) -> bool:
        return self.precision == "bf16" and self._recipe.fall_back

    @property
    def _may_go_back(self) -> bool:
        return self._may_give_up_bf16 or self.rate == 1.0

    # --------------------------------------------------------------------------------- checkpoints

    def state(self, step: int) -> dict[str, Any]:
        """Return what a checkpoint of this step needs beside the snapshot."""
        newest = self._newest if self._newest is not None and self._newest["step"] < step else None
        return {
            "precision": self.precision,
            "rate": self.rate,
            "halved_to": self.micro_batch if self._halved else None,
            "good": self._good,
            "newest": newest,
        }

    def take_up(self, checkpoint: Mapping[str, Any]) -> None:
        """Go on as the run was when it was saved.

        Raises:
            RunError: the states in the checkpoint are none.
        """
        if checkpoint.get("precision") == "fp32":
            self._set_precision("fp32")
        if checkpoint.get("rate") == LOWER:
            self._lower_the_rate()
        size = checkpoint.get("halved_to")
        if isinstance(size, int):
            self._halved, self.micro_batch = True, min(size, self.micro_batch or size)
        for state in (good := checkpoint.get("good"), newest := checkpoint.get("newest")):
            if state is not None and not (isinstance(state, dict) and isinstance(state.get("step"), int)):
                raise RunError("the checkpoint does not fit its recipe: no good state is in it. Start anew by --force.")
        self._good, self._newest = good, newest

    def keep(self, step: int, snapshot: Callable[[], dict[str, Any]]) -> None:
        """Copy the state of the run now and then, if it may have to be gone back to and its weights are finite.

        Args:
            step: that was the last; all values up to it have been looked at.
            snapshot: makes the state; see `interpkit.inversion.checkpoint.snapshot`.
        """
        if not self._may_go_back:
            return
        if self._newest is not None and step >= self._newest["step"] + RECORD_EVERY:
            self._good, self._newest = self._newest, None
        if self._good is not None and step % KEEP_EVERY != 0:
            return
        state = snapshot()
        weights = [t for t in state["trained"].values() if isinstance(t, Tensor) and t.is_floating_point()]
        if weights and not torch.stack([tensor.isfinite().all() for tensor in weights]).all():
            return
        if self._good is None:
            self._good = copy.deepcopy(state)
        else:
            self._newest = copy.deepcopy(state)

    # ------------------------------------------------------------------------------- falling back

    def go_back(self, error: DivergedError) -> dict[str, Any]:
        """Give up bf16, or else lower the rate; return the state to go back to.

        Raises:
            DivergedError: this one, if all was tried, or would make no difference, or no good state is known.
        """
        good, in_bf16 = self._good, self._may_give_up_bf16
        # A step that fails right after that state would fail again at any rate.
        if good is None or not (in_bf16 or (self.rate == 1.0 and error.step > good["step"] + 1)):
            raise error
        fell_back = {"after_step": good["step"], "reason": error.what}
        if in_bf16:
            self._set_precision("fp32")
            self._recorder.note(precision="fp32", fell_back=fell_back)
            place, way = "in bf16 ", "in fp32"
        else:
            self._lower_the_rate()
            self._recorder.note(lowered_rate={"factor": LOWER, **fell_back})
            place, way = "", f"at {LOWER} times the rate"
        if self._share.rank == 0:
            log.warning("%s%s: going back to step %d, and on from there %s", place, error.what, good["step"], way)
        self._newest = None
        if not self._may_go_back:
            self._good = None
        return copy.deepcopy(good)  # the optimizer takes its tensors for its own

    def _lower_the_rate(self) -> None:
        self.rate = LOWER
        lower = self._recipe.optimizer.lr * LOWER / 3
        self._recorder.advice = (
            f"It was tried at {LOWER} times the rate as well. Try a still lower one (--set optimizer.lr={lower:.1g}), "
            f"or less weight on what diverged."
        )

    def halve(self, step: int, error: Exception) -> None:
        """Hold half as many images in memory at a time from here on.

        Raises:
            RunError: that was done before, or cannot be.
        """
        now = self.micro_batch or self._recipe.batch_size // self._share.size
        # The other processes already wait for the rows of this one, so alone it cannot take the step again.
        if self._halved or now <= 2 or self._share.size > 1:
            raise RunError(
                f"out of memory at step {step}, with {now} images at a time: set {self._what_helps(now)}."
                f"{self._recorder.kept()}"
            ) from error
        self._halved, self.micro_batch = True, max(2, -(-now // 2))
        log.warning("out of memory at step %d: from here on with --micro-batch %d", step, self.micro_batch)
        self._recorder.note(micro_batch=self.micro_batch)

    def _what_helps(self, now: int) -> str:
        recipe = self._recipe
        ways = [f"--micro-batch {now // 2}"] if now >= 4 else []
        if recipe.batch_size // 2 >= 2 * recipe.generators:
            ways.append(f"--batch-size {recipe.batch_size // 2}")
        width = recipe.generator.options.get("width") if recipe.generator is not None else None
        example = f" (--set generator.width={width // 2})" if isinstance(width, int) else ""
        return ", ".join([*ways, "or a narrower generator" + example])
