"""What a run does once where the machine is not up to it: fp32 in place of bf16, and half as many images at a time."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from interpkit.errors import NonFiniteError, RunError
from interpkit.recipe import Recipe
from interpkit.recorder import Recorder
from interpkit.sharing import Share

log = logging.getLogger("interpkit")


class Fallbacks:
    """How a run's steps are computed, which may change once on the way, and what a checkpoint keeps of it.

    Both changes depend on the numbers and on memory alone, and a resumed run falls back where the whole one does.

    Args:
        recipe: asks for the precision and for how many images at a time.
        recorder: is told what changed.
        share: this process's.

    Attributes:
        autocast: the precision of the networks.
        micro_batch: how many images are in memory at a time; all of them if None.
    """

    def __init__(self, recipe: Recipe, recorder: Recorder, share: Share) -> None:
        self.micro_batch = recipe.micro_batch
        self._recipe, self._recorder, self._share = recipe, recorder, share
        self._halved = False
        self._good: dict[str, Any] | None = None
        self._set_precision(recipe.precision)

    def _set_precision(self, precision: str) -> None:
        self.precision = precision
        device = torch.device(self._recipe.device).type
        self.autocast = torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")

    @property
    def may_give_up_bf16(self) -> bool:
        """Whether a non-finite value is yet to be answered by fp32."""
        return self.precision == "bf16" and self._recipe.fall_back

    # --------------------------------------------------------------------------------- checkpoints

    def state(self, step: int) -> dict[str, Any]:
        """Return what a checkpoint of this step needs beside the snapshot."""
        good = self._good if self._good is not None and self._good["step"] < step else None
        return {"precision": self.precision, "halved_to": self.micro_batch if self._halved else None, "good": good}

    def take_up(self, checkpoint: Mapping[str, Any]) -> None:
        """Go on as the run was when it was saved."""
        if checkpoint.get("precision") == "fp32":
            self._set_precision("fp32")
        size = checkpoint.get("halved_to")
        if isinstance(size, int):
            self._halved, self.micro_batch = True, min(size, self.micro_batch or size)
        self._good = checkpoint.get("good")

    def keep(self, snapshot: Callable[[], dict[str, Any]], *, unless_kept: bool = False) -> None:
        """Copy the state of the run, if it may have to be gone back to and all in it is finite.

        Args:
            snapshot: makes it; see `interpkit.training.snapshot`.
            unless_kept: only where none is kept.
        """
        if not self.may_give_up_bf16 or (unless_kept and self._good is not None):
            return
        state = snapshot()
        weights = [t for t in state["trained"].values() if isinstance(t, Tensor) and t.is_floating_point()]
        if not weights or torch.stack([tensor.isfinite().all() for tensor in weights]).all():
            self._good = copy.deepcopy(state)

    # ------------------------------------------------------------------------------- falling back

    def to_fp32(self, error: NonFiniteError) -> dict[str, Any]:
        """Give up bf16; return the state to go back to.

        Raises:
            NonFiniteError: this one, if the run is in fp32, bf16 was typed, or no good state is known.
        """
        if not self.may_give_up_bf16 or self._good is None:
            raise error
        good, self._good = self._good, None
        self._set_precision("fp32")
        reason = str(error).partition(". ")[0]
        if self._share.rank == 0:
            log.warning("in bf16 %s: going back to step %d, and on from there in fp32", reason, good["step"])
        self._recorder.note(precision="fp32", fell_back={"after_step": good["step"], "reason": reason})
        return good

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
