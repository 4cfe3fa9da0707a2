"""Robustness to perturbations of the target itself, as the term ``ghosts``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

import interpkit
from interpkit import InversionBatch, InversionLoss, Target


class Ghosts(InversionLoss):
    r"""Cross-entropy of the label asked for, in the eyes of a target whose weights are perturbed.

    .. math:: L = -\frac{1}{B} \sum_b \log Q_{\tilde\theta}(y_b \mid x_b), \qquad
              \tilde\theta_i = \theta_i + \sigma\, \mathrm{std}(\theta_l)\, \epsilon_i, \quad \epsilon_i \sim N(0, 1)

    for every weight i of each matrix or kernel l; a new target is drawn each step. Adversarial patterns depend on the
    exact weights, what a class has in common does not: another network, trained on other images, is a perturbed one
    as well. Sources: ghost networks (Li et al. 2020) for the transfer of adversarial examples; weight noise as a crude
    posterior (Blundell et al. 2015).
    """

    name = "ghosts"

    class Options(interpkit.Options):
        """How far the weights stray."""

        sigma: float = Field(0.3, gt=0, le=10, description="noise in units of each layer's spread of weights")

    options: Options

    def __init__(self, target: Target, options: Options | None = None) -> None:
        super().__init__(target, options)
        parameters = {name: p.detach() for name, p in target.named_parameters() if p.dim() > 1}
        self.spreads = {name: float(p.float().std()) for name, p in parameters.items()}

    def forward(self, batch: InversionBatch) -> Tensor:
        """Return the mean cross-entropy, a scalar."""
        weights = dict(batch.target.named_parameters())
        strayed = {
            name: weights[name] + self.options.sigma * spread * torch.randn_like(weights[name])
            for name, spread in self.spreads.items()
        }
        logits = torch.func.functional_call(batch.target, strayed, batch.images)
        return F.cross_entropy(logits, batch.condition.labels)
