"""`Queries`: a target's answers to an outsider, who has no gradient; each query is counted, and its answer kept."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from interpkit.errors import InterpkitError, RunError, UsageError, first_line, setting
from interpkit.interfaces.components import Options
from interpkit.interfaces.targets import Target
from interpkit.runtime.devices import is_out_of_memory
from interpkit.runtime.recorder import Recorder, Resumable


class QueryOptions(Options):
    """Base class of the ``Options`` of a component that uses a target's answers alone: the budget and the pace."""

    budget: int | None = Field(None, ge=1, description="most images that the classifier is asked about; any if omitted")
    pause: float = Field(0.0, ge=0, le=60, description="seconds to wait after each batch of queries")


class Queries:
    """Classifies images with a target, batch by batch and without a gradient, and counts the images.

    Args:
        target: the classifier, on the device of the run.
        options: the budget and the pause.
        batch_size: the most images in one batch.
        device: the device of the run.

    Attributes:
        asked: how many images the target has classified.
        answers: (M, n), the logits of the first M images of `collect`, on the CPU.

    Example:
        >>> import torch
        >>> from interpkit import Queries, QueryOptions, wrap
        >>> queries = Queries(wrap(torch.nn.Identity(), input_shape=(2,)), QueryOptions(budget=5))
        >>> queries(torch.tensor([[0.0, 1.0], [1.0, 0.0]])).argmax(1)
        tensor([1, 0])
        >>> queries.asked, queries.left
        (2, 3)
    """

    def __init__(
        self,
        target: Target,
        options: QueryOptions | None = None,
        *,
        batch_size: int = 128,
        device: torch.device | str = "cpu",
    ) -> None:
        self.target = target
        self.options = options or QueryOptions()
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.asked = 0
        self.answers = torch.zeros(0, target.num_classes)

    @property
    def left(self) -> int | None:
        """How many more images the budget allows; None without a budget."""
        return None if self.options.budget is None else self.options.budget - self.asked

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the target's logits, (B, n), for images (B, *input_shape) in [0, 1]; on the device of the run.

        Raises:
            UsageError: the budget does not allow so many images.
            RunError: the target fails, or an answer is not finite.
        """
        if self.left is not None and len(images) > self.left:
            raise self._too_few(len(images))
        logits = []
        for part in images.split(self.batch_size):
            try:
                logits.append(self.target(part.to(self.device)))
            except Exception as error:
                if isinstance(error, InterpkitError) or is_out_of_memory(error):
                    raise
                raise RunError(f"the classifier failed at query {self.asked + 1:,}: {first_line(error)}.") from error
            self.asked += len(part)
            if not logits[-1].isfinite().all():
                raise RunError(
                    f"the classifier answered one of the queries {self.asked - len(part) + 1:,} to {self.asked:,} with "
                    f"values that are not finite. Check those images, and the classifier."
                )
            time.sleep(self.options.pause)
        return torch.cat(logits)

    def collect(self, images: Tensor, recorder: Recorder, state: Resumable) -> Tensor:
        """Return the target's logits, (N, n), for images (N, *input_shape); query only those without an answer yet.

        If the classifier fails or the user stops the run, the answers so far are kept in a checkpoint. Call this before
        the first step. A trial of a run (`Recorder.trial`) gets random answers and queries nothing.

        Args:
            images: in [0, 1]; the same ones, in the same order, as before the run was interrupted.
            recorder: saves the checkpoints.
            state: what a checkpoint saves, with this object's `state_dict` in it.

        Raises:
            UsageError: the budget does not allow so many images.
            RunError: the classifier fails.
            KeyboardInterrupt: the user stopped the run.
        """
        if recorder.trial:
            generator = torch.Generator().manual_seed(0)
            self.answers = torch.randn(len(images), self.target.num_classes, generator=generator)
        missing = len(images) - len(self.answers)
        if self.left is not None and missing > self.left:
            raise self._too_few(missing)
        while len(self.answers) < len(images):
            recorder.part(len(self.answers), len(images), "queries", 0)
            if recorder.pause(state) or recorder.stop_requested:
                raise KeyboardInterrupt
            rows = images[len(self.answers) :][: self.batch_size]
            try:
                self.answers = torch.cat([self.answers, self(rows).cpu()])
            except InterpkitError as error:
                recorder.save(recorder.next_step - 1, state.state_dict())
                kept = f" The {len(self.answers):,} answers so far are kept: resume with {setting('resume')}."
                raise type(error)(f"{error}{kept * bool(recorder.kept())}") from error
        recorder.images_so_far = None
        return self.answers

    def _too_few(self, needed: int) -> UsageError:
        raised = setting(f"{self.options._component}.budget", self.asked + needed)
        return UsageError(
            f"the budget of {self.options.budget:,} queries leaves {self.left:,}, and {needed:,} are needed. Start a "
            f"new run with {raised} or more, or name fewer pictures."
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the answers and the count, for a checkpoint."""
        return {"asked": self.asked, "answers": self.answers}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the answers and the count from a checkpoint.

        Raises:
            RunError: the checkpoint is of another classifier.
        """
        answers = state_dict.get("answers")
        if not isinstance(answers, Tensor) or answers.shape[1:] != self.answers.shape[1:]:
            raise RunError("the checkpoint does not fit its recipe.")
        self.asked, self.answers = int(state_dict["asked"]), answers
