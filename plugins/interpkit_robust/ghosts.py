"""Robustness to perturbations of the target's weights, as the term ``ghosts``."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

import interpkit
from interpkit import InversionBatch, InversionLoss, Target


class Ghosts(InversionLoss):
    r"""Cross-entropy of the requested label under a randomly perturbed copy of the target.

    .. math:: L = -\frac{1}{B} \sum_b \log Q_{\tilde\theta}(y_b \mid x_b), \qquad
              \tilde\theta_i = \theta_i + \sigma\, \mathrm{std}(\theta_l)\, \epsilon_i, \quad \epsilon_i \sim N(0, 1)

    for every weight i of each matrix or kernel l; new noise is drawn at each step. Adversarial patterns depend on the
    exact weights, while the features that define a class do not: a network that was trained on other images is, in
    this sense, a perturbed copy too. Sources: ghost networks (Li et al. 2020) for the transfer of adversarial
    examples; weight noise as a crude posterior (Blundell et al. 2015).

    Example:
        >>> import torch
        >>> from interpkit import testing, wrap
        >>> from interpkit_robust import Ghosts
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
        >>> target = wrap(net, input_shape=(1, 4, 4))
        >>> ghosts = Ghosts(target, Ghosts.Options(sigma=0.5))
        >>> images = torch.rand(8, 1, 4, 4)
        >>> values = [testing.evaluate_loss(ghosts, target, images, labels=[0] * 8) for _ in range(2)]
        >>> bool(values[0] == values[1])  # each call draws new weights
        False
    """

    name = "ghosts"

    class Options(interpkit.Options):
        """Size of the perturbation."""

        sigma: float = Field(
            0.3, gt=0, le=10, description="noise in units of the standard deviation of each layer's weights"
        )

    options: Options

    def __init__(self, target: Target, options: Options | None = None) -> None:
        super().__init__(target, options)
        parameters = {name: p.detach() for name, p in target.named_parameters() if p.dim() > 1}
        self.spreads = {name: float(p.float().std()) for name, p in parameters.items()}

    def forward(self, batch: InversionBatch) -> Tensor:
        """Return the mean cross-entropy, a scalar."""
        weights = dict(batch.target.named_parameters())
        perturbed = {
            name: weights[name] + self.options.sigma * spread * torch.randn_like(weights[name])
            for name, spread in self.spreads.items()
        }
        logits = torch.func.functional_call(batch.target, perturbed, batch.images)
        return batch.target.cross_entropy(logits, batch.condition.labels).mean()
