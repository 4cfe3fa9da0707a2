"""Conditions that distinguish the classes to invert and no others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from interpkit.interfaces import contracts
from interpkit.interfaces.generation import Condition, Conditioner, ConditionSpec


class RequestedClasses(Conditioner):
    """A conditioner of k of a target's n classes, which draws as for a classifier of those k alone.

    Five classes of 1,000 then have vectors of length 5 and a hot matrix of 5 x 5, as in the paper's case. The labels
    and the distribution, (B, n), are the target's; the distribution is 0 at the other classes.

    Args:
        inner: built for k classes.
        classes: the k classes, in the order of the inner conditioner's.
        num_classes: n.
    """

    name = "requested"
    classes: Tensor

    def __init__(self, inner: Conditioner, classes: Sequence[int], num_classes: int) -> None:
        super().__init__(num_classes, inner.input_shape, inner.options)
        self.inner = inner
        self.register_buffer("classes", torch.tensor(classes), persistent=False)

    @property
    def responsible(self) -> Conditioner:
        """The component that error messages name."""
        return self.inner

    @property
    def spec(self) -> ConditionSpec:
        """The sizes of the inner conditioner's conditions."""
        return contracts.spec(self.inner)

    def sample(self, batch_size: int, *, labels: Tensor | None = None, rng: torch.Generator | None = None) -> Condition:
        """Draw conditions of these classes; see `Conditioner.sample`."""
        if labels is not None:
            labels = (labels[:, None] == self.classes).int().argmax(1)
        self.inner.progress = self.progress
        return self._of_target(contracts.condition(self.inner, batch_size, labels, rng, check_values=False))

    def learn_answers(self, answers: Tensor) -> None:
        """Learn answers as if these were the only classes; see `Conditioner.learn_answers`."""
        self.inner.learn_answers(answers[:, self.classes])

    def of_answers(self, answers: Tensor, *, rng: torch.Generator | None = None) -> Condition:
        """Return the conditions of answers as if these were the only classes; see `Conditioner.of_answers`."""
        self.inner.progress = self.progress
        return self._of_target(self.inner.of_answers(answers[:, self.classes], rng=rng))

    def _of_target(self, drawn: Condition) -> Condition:
        """Return a condition of the inner conditioner with the target's labels and classes."""
        distribution = drawn.distribution.new_zeros(len(drawn.labels), self.num_classes)
        distribution[:, self.classes] = drawn.distribution
        return Condition(self.classes[drawn.labels], distribution, drawn.vector, drawn.draw_maps)
