"""Scores, the weight of each picture in the training, and a conditioner that requests scores."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

import interpkit
from interpkit import Condition, Conditioner, ConditionSpec, Target

BINS = 20
"""The number of bins in the histogram of scores, as published."""
SMOOTHING = 1e-3
HEAVIEST = 5.0
"""The largest weight of a picture, as published."""


def log_odds(target: Target, logits: Tensor, labels: Tensor) -> Tensor:
    r"""Return the score of each image for its class, :math:`\log (p_y / (1 - p_y))`, (B,), from logits (B, n)."""
    own = logits.gather(1, labels[:, None])[:, 0]
    if target.multi_label:
        return own
    return own - logits.scatter(1, labels[:, None], -torch.inf).logsumexp(1)


def reweighted(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return weights of scores (N,) that favor the highest ones.

    .. math:: p_b \propto e^{e_b / \tau} \frac{h_b}{h_b + 10^{-3}}, \qquad w_i = \min(5, p_{b(i)} / h_{b(i)})

    with h the shares of the N scores in 20 bins of equal width, e_b the right edge of a bin, b(i) the bin of a score,
    and :math:`\tau` the distance from the largest score to the 90 % quantile.

    Returns:
        the edges of the bins, (21,); p, (20,), by which scores are drawn; w, (N,), how often to learn from each.
    """
    low, high = scores.min(), scores.max()
    edges = low + (high - low) * torch.linspace(0, 1, BINS + 1)
    bins = torch.bucketize(scores, edges[1:-1], right=True)
    counted = bins.bincount(minlength=BINS) / len(scores)
    temperature = (high - scores.quantile(0.9)).clamp(min=1e-6)
    shares = ((edges[1:] - high) / temperature).exp() * counted / (counted + SMOOTHING)
    shares = shares / shares.sum()
    return edges, shares, (shares / counted)[bins].clamp(max=HEAVIEST)


class Score(Conditioner):
    """Conditions on a label and on the score that its image should have; it learns the scores of the data from ``min``.

    The vector consists of the one-hot label and the score, in standard deviations from the class's mean. A drawn score
    is the right edge of a bin, from the published distribution, plus an exponential variate, so most are among the
    highest scores of the data or above them.

    Example:
        >>> import torch
        >>> from interpkit_min import Score
        >>> conditioner = Score(num_classes=3, input_shape=(1, 28, 28))
        >>> weights = conditioner.learn(1, torch.linspace(0, 10, 1001))  # of the pictures
        >>> bool(weights[-1] > 100 * weights[0])
        True
        >>> labels = torch.ones(500, dtype=torch.int64)
        >>> bool((conditioner.ask(labels) > 9).float().mean() > 0.5)
        True
        >>> conditioner.at(labels[:1], torch.tensor([5.0])).vector
        tensor([[0., 1., 0., 0.]])
    """

    name = "score"

    class Options(interpkit.Options):
        """How far beyond the data to ask."""

        beyond: float = Field(
            0.1, ge=0, le=100, description="mean of what is added to a score, in standard deviations of the class's"
        )

    options: Options
    edges: Tensor
    shares: Tensor
    centers: Tensor
    scales: Tensor

    def __init__(self, num_classes: int, input_shape: tuple[int, ...], options: Options | None = None) -> None:
        super().__init__(num_classes, input_shape, options)
        self.register_buffer("edges", torch.linspace(-1, 1, BINS + 1).repeat(num_classes, 1))
        self.register_buffer("shares", torch.full((num_classes, BINS), 1 / BINS))
        self.register_buffer("centers", torch.zeros(num_classes))
        self.register_buffer("scales", torch.ones(num_classes))

    @property
    def spec(self) -> ConditionSpec:
        """A vector of length n + 1."""
        return ConditionSpec(self.num_classes + 1)

    def learn(self, label: int, scores: Tensor) -> Tensor:
        """Learn the scores (N,) of a class's pictures; return the weights of these pictures, (N,)."""
        self.edges[label], self.shares[label], weights = reweighted(scores)
        self.centers[label], self.scales[label] = scores.mean(), scores.std().clamp(min=1e-6)
        return weights

    def ask(self, labels: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Draw a score to request for each label, (B,)."""
        bins = self.shares[labels].multinomial(1, generator=rng)
        more = torch.empty(len(labels), device=self.device).exponential_(generator=rng)
        return self.edges[labels, bins[:, 0] + 1] + self.options.beyond * self.scales[labels] * more

    def at(self, labels: Tensor, scores: Tensor) -> Condition:
        """Return the condition of labels (B,) and scores (B,)."""
        one_hot = F.one_hot(labels, self.num_classes).float()
        units = (scores - self.centers[labels]) / self.scales[labels]
        return Condition(labels, one_hot, torch.cat([one_hot, units[:, None]], 1))

    def sample(self, batch_size: int, *, labels: Tensor | None = None, rng: torch.Generator | None = None) -> Condition:
        """Draw labels and scores; see `Conditioner.sample`."""
        if labels is None:
            labels = torch.randint(self.num_classes, (batch_size,), device=self.device, generator=rng)
        return self.at(labels, self.ask(labels, rng))
