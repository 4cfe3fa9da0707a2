"""Recover from divergence or lack of memory: by fp32 instead of bf16, a lower learning rate, or smaller micro-batches.

`RecoverableTraining.drive` calls the loop, and calls it again after it has rolled the run back.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, cast

import torch
from torch import Tensor, nn

from interpkit.config.recipe import Recipe
from interpkit.errors import DivergedError, RunError, setting
from interpkit.interfaces.generation import Generator
from interpkit.inversion.checkpoint import TrainingState, get_randomness, set_randomness
from interpkit.inversion.ensemble import sync_buffers
from interpkit.inversion.objective import Objective
from interpkit.runtime.compile import stop_compiling
from interpkit.runtime.devices import autocast, is_out_of_memory
from interpkit.runtime.profiler import phase
from interpkit.runtime.recorder import RECORD_EVERY, Recorder

log = logging.getLogger("interpkit")
P = ParamSpec("P")

KEEP_EVERY = 50
"""The number of steps between states that are kept, large enough that copying costs almost nothing."""
LOWER = 0.3
"""The factor of the learning rate after a run has diverged."""


class RecoverableTraining(TrainingState):
    """A training that changes how its steps are computed instead of failing; it makes each change at most once.

    - Out of memory: the step is repeated, with the same random numbers, on micro-batches of half the size.
    - Divergence: the run returns to its last good state and continues in fp32 if it was in bf16 (unless the user
      requested bf16), else at a lower rate. A state counts as good once the values of the steps after it have been
      checked, because diverging takes some steps.

    The changes depend only on the numbers and on memory, so a resumed run recovers where an uninterrupted one does.

    Args:
        trained: all networks that are trained, the generator among them.
        optimizer: the optimizer of their parameters.
        rng: the run's own randomness.
        objective: the objective, whose precision and micro-batch may change.
        recipe: the precision, batch size and rate that the user requested.
        recorder: detects divergence, and records the changes.

    Attributes:
        lr_scale: the factor of the learning rate.
        fit: the state of an unfinished fit before the first step, of the checkpoint; see `fitted_start`.
    """

    def __init__(
        self,
        trained: nn.ModuleDict,
        optimizer: torch.optim.Optimizer,
        rng: torch.Generator,
        objective: Objective,
        recipe: Recipe,
        recorder: Recorder,
    ) -> None:
        super().__init__(trained, optimizer, rng)
        self.generator = cast(Generator, trained["generator"])
        self.objective, self.recipe, self.recorder = objective, recipe, recorder
        self.precision: str = recipe.precision
        self.lr_scale = 1.0
        self.fit: dict[str, Any] | None = None
        self._halved = False
        self._attempt: tuple[int, dict[str, Tensor]] = (0, {})
        """The last step that was started, and the state of the randomness before it."""
        self._good: dict[str, Any] | None = None
        self._newest: dict[str, Any] | None = None
        """A newer state that is not yet known to be good."""

    def drive(self, loop: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Call a loop over `steps` until it returns, and recover if it runs out of memory or diverges.

        Raises:
            RunError: the run cannot recover, or has already used that way to recover.
        """
        while True:
            try:
                return loop(*args, **kwargs)
            except DivergedError as error:
                self.roll_back(error)
            except Exception as error:
                # Once the recorder has a step, it has changed the weights and cannot be repeated.
                if not is_out_of_memory(error) or self.recorder.next_step != self._attempt[0]:
                    raise
                self.halve_micro_batch(error)

    def steps(self) -> Iterator[int]:
        """Yield the number of each remaining step; see `Recorder.training_steps`."""
        for step in self.recorder.training_steps(self):
            self._attempt = step, get_randomness(self.rng)
            yield step
            self.step = step
            if step % RECORD_EVERY == 0:
                self.keep_good_state()

    # --------------------------------------------------------------------------------- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return the state, including how steps are computed, for a checkpoint."""
        sync_buffers(self.generator, self.world)
        newest = self._newest if self._newest is not None and self._newest["step"] < self.step else None
        return super().state_dict() | {
            "precision": self.precision,
            "rate": self.lr_scale,
            "halved_to": self.objective.micro_batch if self._halved else None,
            "good": self._good,
            "newest": newest,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the run as it was when a checkpoint was saved.

        Raises:
            RunError: the checkpoint does not fit.
        """
        super().load_state_dict(state_dict)
        if state_dict.get("precision") == "fp32":
            self._use_fp32()
        if state_dict.get("rate") == LOWER:
            self._lower_rate()
        size = state_dict.get("halved_to")
        if isinstance(size, int):
            self._halved, self.objective.micro_batch = True, min(size, self.objective.micro_batch or size)
        for state in (good := state_dict.get("good"), newest := state_dict.get("newest")):
            if state is not None and not (isinstance(state, dict) and isinstance(state.get("step"), int)):
                raise RunError("the checkpoint does not fit its recipe: it does not contain a good state.")
        self._good, self._newest, self.fit = good, newest, state_dict.get("fit")

    @phase("checkpoints")
    def keep_good_state(self) -> None:
        """Copy the current state from time to time, if its weights are finite and the run may have to return to it.

        The values of all steps so far have been checked.
        """
        if not self._may_roll_back:
            return
        if self._newest is not None and self.step >= self._newest["step"] + RECORD_EVERY:
            self._good, self._newest = self._newest, None
        if self._good is not None and self.step % KEEP_EVERY != 0:
            return
        state = super().state_dict()
        weights = [t for t in state["trained"].values() if isinstance(t, Tensor) and t.is_floating_point()]
        if weights and not torch.stack([tensor.isfinite().all() for tensor in weights]).all():
            return
        if self._good is None:
            self._good = copy.deepcopy(state)
        else:
            self._newest = copy.deepcopy(state)

    # ---------------------------------------------------------------------------------- divergence

    @property
    def _may_give_up_bf16(self) -> bool:
        return self.precision == "bf16" and self.recipe.fall_back

    @property
    def _may_roll_back(self) -> bool:
        return self._may_give_up_bf16 or self.lr_scale == 1.0

    def roll_back(self, error: DivergedError) -> None:
        """Return to the last good state, and switch from bf16 to fp32 or else lower the rate.

        Raises:
            DivergedError: the given error, if both were tried or would make no difference, or no good state is known.
        """
        good, in_bf16 = self._good, self._may_give_up_bf16
        # A step that fails right after that state would fail again at any rate.
        if good is None or not (in_bf16 or (self.lr_scale == 1.0 and error.step > good["step"] + 1)):
            raise error
        fell_back = {"after_step": good["step"], "reason": error.what}
        if in_bf16:
            self._use_fp32()
            self.recorder.note(precision="fp32", fell_back=fell_back)
            place, way = "in bf16 ", "in fp32"
        else:
            self._lower_rate()
            self.recorder.note(lowered_rate={"factor": LOWER, **fell_back})
            place, way = "", f"at {LOWER} times the rate"
        if self.world.rank == 0:
            log.warning("%s%s: the run returns to step %d and continues %s", place, error.what, good["step"], way)
        self._newest = None
        if not self._may_roll_back:
            self._good = None
        super().load_state_dict(copy.deepcopy(good))  # the optimizer keeps the tensors and changes them
        self.recorder.go_back(self.step)

    def _use_fp32(self) -> None:
        self.precision = "fp32"
        self.objective.autocast = autocast(torch.device(self.recipe.device), "fp32")
        self.recorder.advise(self.recipe.optimizer.lr, self.precision)

    def _lower_rate(self) -> None:
        self.lr_scale = LOWER
        lower = self.recipe.optimizer.lr * LOWER / 3
        self.recorder.advice = (
            f"The run also diverged at {LOWER} times the rate. Try an even lower rate "
            f"({setting('optimizer.lr', float(f'{lower:.1g}'))}), or a smaller weight for the term that diverged."
        )

    # -------------------------------------------------------------------------------------- memory

    def halve_micro_batch(self, error: Exception) -> None:
        """From now on, hold half as many images in memory at a time, and restore the state before the failed step.

        Raises:
            RunError: the size was already halved, or cannot be.
        """
        step, drawn = self._attempt
        now = self.objective.micro_batch or self.recipe.batch_size // self.world.size
        # The other processes are already waiting for this one's rows, so it cannot repeat the step alone.
        if self._halved or now <= 2 or self.world.size > 1:
            raise RunError(
                f"out of memory at step {step}, with {now} images at a time: set {self._what_helps(now)}."
                f"{self.recorder.kept()}"
            ) from error
        self._halved, self.objective.micro_batch = True, max(2, -(-now // 2))
        size = setting("micro_batch", self.objective.micro_batch)
        log.warning("out of memory at step %d: the run continues with %s", step, size)
        self.recorder.note(micro_batch=self.objective.micro_batch)
        stop_compiling(self.generator)
        set_randomness(drawn, self.rng)  # running statistics may already include the batch

    def _what_helps(self, now: int) -> str:
        recipe = self.recipe
        ways = [setting("micro_batch", now // 2)] if now >= 4 else []
        if recipe.batch_size // 2 >= 2 * recipe.generators:
            ways.append(setting("batch_size", recipe.batch_size // 2))
        width = recipe.generator.options.get("width") if recipe.generator is not None else None
        example = f" ({setting('generator.width', width // 2)})" if isinstance(width, int) else ""
        return ", ".join([*ways, "or a narrower generator" + example])
