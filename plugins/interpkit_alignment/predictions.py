"""Conditions made of a classifier's answers, as an outsider receives them: the m largest probabilities."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

import interpkit
from interpkit import Condition, Conditioner, ConditionSpec

KEPT, MOST_NUMBERS = 200, 5_000_000
"""The most answers of a class that are kept to draw from, and the most probabilities in all of them together."""
SURE = 0.9
"""The probability of the class in the answers that are drawn for a class without learned ones."""
FINEST = 17.0
"""The largest log-odds. Those of the largest probability below 1 that float32 can represent are 16.6."""


class PredictionConditioner(Conditioner):
    r"""Conditions on the m largest probabilities of an answer, as log-odds, and on which classes they belong to.

    .. math:: v_k = \left(\log \frac{p_k}{1 - p_k} - \mu_k\right) / \sigma_k
        \text{ for the } m \text{ largest } p_k, \quad v_k = 0 \text{ elsewhere}

    with the log-odds clamped to [-c, 17], and with their mean and standard deviation over the learned answers. If
    m < n, n numbers follow: 1 for each of the m classes, 0 for the others. `sample` draws from the learned answers; for
    a class without any, it uses an answer that is sure of the class. The distribution consists of the m probabilities,
    with the remainder spread evenly over the other classes.

    Source: after Yang et al., "Neural Network Inversion in Adversarial Setting via Background Knowledge Alignment"
    (2019), who shift log-probabilities by c = 50. Log-odds distinguish sure answers, whose
    log-probabilities are all nearly 0.

    Example:
        >>> import torch
        >>> from interpkit_alignment import PredictionConditioner
        >>> options = PredictionConditioner.Options(truncation=1)
        >>> conditioner = PredictionConditioner(3, input_shape=(2,), options=options)
        >>> condition = conditioner.of_answers(torch.tensor([[0.8, 0.15, 0.05]]).log())
        >>> condition.labels, condition.distribution, condition.vector[0, 3:]
        (tensor([0]), tensor([[0.8000, 0.1000, 0.1000]]), tensor([1., 0., 0.]))
    """

    name = "predictions"

    class Options(interpkit.Options):
        """How much of an answer the decoder receives."""

        truncation: int = Field(100, ge=1, description="probabilities of an answer that are used, the largest ones: m")
        c: float = Field(50.0, gt=0, le=80, description="log-odds are clamped at -c")

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
        p, places = sure.topk(self.m, 1)
        self.register_buffer("kept", p[:, None].repeat(1, rows, 1))
        self.register_buffer("places", places[:, None].repeat(1, rows, 1))
        self.register_buffer("count", torch.ones(num_classes, dtype=torch.int64))
        self.register_buffer("center", torch.zeros(num_classes))
        self.register_buffer("scale", torch.ones(num_classes))
        self._standardize_by(p, places)

    @property
    def spec(self) -> ConditionSpec:
        """A vector of length n, or 2n if answers are truncated."""
        return ConditionSpec(self.num_classes * (1 if self.m == self.num_classes else 2))

    def learn_answers(self, answers: Tensor) -> None:
        """Keep the first answers of each class to draw from; see `Conditioner.learn_answers`."""
        p, places = self._truncated(answers)
        self._standardize_by(p, places)
        for label in range(self.num_classes):
            rows = (places[:, 0] == label).nonzero()[: self.kept.shape[1], 0]
            if len(rows):
                self.count[label] = len(rows)
                self.kept[label, : len(rows)] = p[rows]
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
        """Return the m largest probabilities of answers, and their classes; both (B, m)."""
        p, places = answers.float().softmax(1).topk(self.m, 1)
        return p, places

    def _log_odds(self, p: Tensor) -> Tensor:
        return (p.log() - (-p).log1p()).clamp(-self.options.c, FINEST)

    def _standardize_by(self, p: Tensor, places: Tensor) -> None:
        """Set each class's mean and deviation of log-odds, over the answers that contain the class; 0 and 1 if none."""
        odds, sums = self._log_odds(p), p.new_zeros(3, self.num_classes)
        for power in range(3):
            sums[power].index_add_(0, places.flatten(), odds.flatten() ** power)
        count = sums[0].clamp(min=1)
        self.center.copy_(sums[1] / count)
        spread = (sums[2] / count - self.center.square()).clamp(min=0).sqrt()
        self.scale.copy_(torch.where(spread > 0.01, spread, 1.0))

    def _condition(self, p: Tensor, places: Tensor) -> Condition:
        odds = (self._log_odds(p) - self.center[places]) / self.scale[places]
        vector = p.new_zeros(len(p), self.num_classes).scatter(1, places, odds)
        if self.m < self.num_classes:
            vector = torch.cat([vector, torch.zeros_like(vector).scatter(1, places, 1.0)], 1)
        rest = (1 - p.sum(1, keepdim=True)).clamp(min=0) / max(self.num_classes - self.m, 1)
        others = torch.minimum(rest, p[:, -1:]).expand(-1, self.num_classes)
        distribution = others.scatter(1, places, p)
        return Condition(places[:, 0], distribution / distribution.sum(1, keepdim=True), vector)
