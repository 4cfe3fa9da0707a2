"""Conditions that are a classifier's own answers, as an outsider receives them: the m largest probabilities."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

import interpkit
from interpkit import Condition, Conditioner, ConditionSpec

KEPT, MOST_NUMBERS = 200, 5_000_000
"""Answers of a class that are kept to draw from, and numbers in all of them together."""
SURE = 0.9
"""The probability of the class in the answers that are drawn before any were learned."""


class PredictionConditioner(Conditioner):
    r"""The m largest log-probabilities of an answer, in their places, and zero elsewhere.

    .. math:: v_k = \max(\log p_k, -c) / c + 1 \text{ for the } m \text{ largest } p_k, \quad v_k = 0 \text{ elsewhere}

    standardized by the mean and the deviation of each v_k over the answers that it has learned. `sample` draws some of
    those answers; of a class that had none, an answer that is sure of the class. The distribution is that of the m
    probabilities, with what they leave spread evenly over the other classes.

    Source: Yang et al., "Neural Network Inversion in Adversarial Setting via Background Knowledge Alignment" (2019),
    after the authors' code; the standardization and the clamp at -c are ours.

    Example:
        >>> import torch
        >>> from interpkit_alignment import PredictionConditioner
        >>> options = PredictionConditioner.Options(truncation=1, c=10)
        >>> conditioner = PredictionConditioner(3, input_shape=(2,), options=options)
        >>> condition = conditioner.of_answers(torch.tensor([[0.8, 0.15, 0.05]]).log())
        >>> condition.labels, condition.distribution
        (tensor([0]), tensor([[0.8000, 0.1000, 0.1000]]))
    """

    name = "predictions"

    class Options(interpkit.Options):
        """How much of an answer the decoder receives."""

        truncation: int = Field(100, ge=1, description="probabilities of an answer that are used, the largest ones: m")
        c: float = Field(50.0, gt=0, le=1000, description="log-probabilities are clamped at -c and divided by c")

    options: Options
    kept: Tensor
    places: Tensor
    count: Tensor
    center: Tensor
    scale: Tensor

    def __init__(self, num_classes: int, input_shape: tuple[int, ...], options: Options | None = None) -> None:
        super().__init__(num_classes, input_shape, options)
        self.m = min(self.options.truncation, num_classes)
        rows = max(1, min(KEPT, MOST_NUMBERS // (num_classes * self.m)))
        sure = torch.full((num_classes, num_classes), (1 - SURE) / (num_classes - 1)).fill_diagonal_(SURE)
        values, places = sure.log().topk(self.m, 1)
        self.register_buffer("kept", values[:, None].repeat(1, rows, 1))
        self.register_buffer("places", places[:, None].repeat(1, rows, 1))
        self.register_buffer("count", torch.ones(num_classes, dtype=torch.int64))
        self.register_buffer("center", torch.zeros(num_classes))
        self.register_buffer("scale", torch.ones(num_classes))
        self._standardize_by(values, places)

    @property
    def spec(self) -> ConditionSpec:
        """A vector of length n."""
        return ConditionSpec(self.num_classes)

    def learn_answers(self, answers: Tensor) -> None:
        """Keep the first answers of each class to draw from; see `Conditioner.learn_answers`."""
        values, places = self._truncated(answers)
        self._standardize_by(values, places)
        for label in range(self.num_classes):
            rows = (places[:, 0] == label).nonzero()[: self.kept.shape[1], 0]
            if len(rows):
                self.count[label] = len(rows)
                self.kept[label, : len(rows)] = values[rows]
                self.places[label, : len(rows)] = places[rows]

    def of_answers(self, answers: Tensor, *, rng: torch.Generator | None = None) -> Condition:
        """Return the conditions of answers; see `Conditioner.of_answers`."""
        return self._condition(*self._truncated(answers))

    def sample(self, batch_size: int, *, labels: Tensor | None = None, rng: torch.Generator | None = None) -> Condition:
        """Draw answers of the labels' classes; see `Conditioner.sample`."""
        if labels is None:
            labels = torch.randint(self.num_classes, (batch_size,), device=self.device, generator=rng)
        share = torch.rand(batch_size, device=self.device, generator=rng)
        row = (share * self.count[labels]).long()
        return self._condition(self.kept[labels, row], self.places[labels, row])

    def _truncated(self, answers: Tensor) -> tuple[Tensor, Tensor]:
        """Return the m largest log-probabilities of answers, clamped at -c, and their places; both (B, m)."""
        values, places = answers.float().log_softmax(1).topk(self.m, 1)
        return values.clamp(min=-self.options.c), places

    def _standardize_by(self, values: Tensor, places: Tensor) -> None:
        vectors = self._placed(values, places)
        self.center.copy_(vectors.mean(0))
        self.scale.copy_(vectors.std(0, correction=0).clamp(min=1e-4))

    def _placed(self, values: Tensor, places: Tensor) -> Tensor:
        vectors = values.new_zeros(len(values), self.num_classes)
        return vectors.scatter(1, places, values / self.options.c + 1)

    def _condition(self, values: Tensor, places: Tensor) -> Condition:
        vector = (self._placed(values, places) - self.center) / self.scale
        p = values.exp()
        rest = (1 - p.sum(1, keepdim=True)).clamp(min=0) / max(self.num_classes - self.m, 1)
        others = torch.minimum(rest, p[:, -1:]).expand(-1, self.num_classes)
        distribution = others.scatter(1, places, p)
        return Condition(places[:, 0], distribution / distribution.sum(1, keepdim=True), vector)
