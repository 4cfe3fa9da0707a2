"""What a run does where it cannot go on: fp32 in place of bf16, a lower rate, half as many images at a time.

`RecoverableTraining.drive` calls the loop, and calls it again after it has set the run back.
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
"""Steps from one state that is kept to the next, so that copying costs next to nothing."""
LOWER = 0.3
"""The factor of the learning rate after a run diverged."""


class RecoverableTraining(TrainingState):
    """A training that changes how its steps are computed, once in each respect, rather than fail.

    - Out of memory: the step is repeated, with what it drew, on micro-batches of half the size.
    - Divergence: the run goes back to its last good state, and on from there in fp32 if it was in bf16 (unless the user
      asked for bf16), else at a lower rate. A state is good once the values of the steps after it have been checked, as
      it takes some steps to diverge.

    The changes depend on the numbers and on memory alone, so a resumed run recovers where an uninterrupted one does.

    Args:
        trained: all networks that are trained, the generator among them.
        optimizer: the optimizer of their parameters.
        rng: the run's own randomness.
        objective: whose precision and micro-batch change.
        recipe: the precision, batch size and rate that the user asked for.
        recorder: detects divergence, and notes what changed.

    Attributes:
        lr_scale: the factor of the learning rate.
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
        self._halved = False
        self._attempt: tuple[int, dict[str, Tensor]] = (0, {})
        """The step that was begun last, and the randomness before it."""
        self._good: dict[str, Any] | None = None
        self._newest: dict[str, Any] | None = None
        """A newer state, not known to be good yet."""

    def drive(self, loop: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Call a loop over `steps` until it returns, and recover when it runs out of memory or diverges.

        Raises:
            RunError: the run cannot recover, or not another time.
        """
        while True:
            try:
                return loop(*args, **kwargs)
            except DivergedError as error:
                self.roll_back(error)
            except Exception as error:
                # A step that the recorder has, has changed the weights and cannot be repeated.
                if not is_out_of_memory(error) or self.recorder.next_step != self._attempt[0]:
                    raise
                self.halve_micro_batch(error)

    def steps(self) -> Iterator[int]:
        """Yield the number of each step that is still to do; see `Recorder.training_steps`."""
        for step in self.recorder.training_steps(self):
            self._attempt = step, get_randomness(self.rng)
            yield step
            self.step = step
            if step % RECORD_EVERY == 0:
                self.keep_good_state()

    # --------------------------------------------------------------------------------- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return the state, and how steps are computed, for a checkpoint."""
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
        """Go on as the run was when a checkpoint was saved.

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
                raise RunError(
                    f"the checkpoint does not fit its recipe: no good state is in it. Start again with "
                    f"{setting('force')}."
                )
        self._good, self._newest = good, newest

    @phase("checkpoints")
    def keep_good_state(self) -> None:
        """Copy the present state now and then, if the run may yet have to go back to it and its weights are finite.

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
        """Go back to the last good state, and give up bf16 or else lower the rate.

        Raises:
            DivergedError: this one, if all was tried, or would make no difference, or no good state is known.
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
            log.warning("%s%s: going back to step %d, and on from there %s", place, error.what, good["step"], way)
        self._newest = None
        if not self._may_roll_back:
            self._good = None
        super().load_state_dict(copy.deepcopy(good))  # the optimizer takes its tensors for its own
        self.recorder.go_back(self.step)

    def _use_fp32(self) -> None:
        self.precision = "fp32"
        self.objective.autocast = autocast(torch.device(self.recipe.device), "fp32")

    def _lower_rate(self) -> None:
        self.lr_scale = LOWER
        lower = self.recipe.optimizer.lr * LOWER / 3
        self.recorder.advice = (
            f"It was tried at {LOWER} times the rate as well. Try a still lower one "
            f"({setting('optimizer.lr', float(f'{lower:.1g}'))}), or less weight on what diverged."
        )

    # -------------------------------------------------------------------------------------- memory

    def halve_micro_batch(self, error: Exception) -> None:
        """Hold half as many images in memory at a time from here on, and go back to before the step that failed.

        Raises:
            RunError: that was done before, or cannot be.
        """
        step, drawn = self._attempt
        now = self.objective.micro_batch or self.recipe.batch_size // self.world.size
        # The other processes already wait for the rows of this one, so alone it cannot repeat the step.
        if self._halved or now <= 2 or self.world.size > 1:
            raise RunError(
                f"out of memory at step {step}, with {now} images at a time: set {self._what_helps(now)}."
                f"{self.recorder.kept()}"
            ) from error
        self._halved, self.objective.micro_batch = True, max(2, -(-now // 2))
        size = setting("micro_batch", self.objective.micro_batch)
        log.warning("out of memory at step %d: from here on with %s", step, size)
        self.recorder.note(micro_batch=self.objective.micro_batch)
        stop_compiling(self.generator)
        set_randomness(drawn, self.rng)  # running statistics may have seen the batch already

    def _what_helps(self, now: int) -> str:
        recipe = self.recipe
        ways = [setting("micro_batch", now // 2)] if now >= 4 else []
        if recipe.batch_size // 2 >= 2 * recipe.generators:
            ways.append(setting("batch_size", recipe.batch_size // 2))
        width = recipe.generator.options.get("width") if recipe.generator is not None else None
        example = f" ({setting('generator.width', width // 2)})" if isinstance(width, int) else ""
        return ", ".join([*ways, "or a narrower generator" + example])
