"""The two terms that make the target predict the requested class: KL divergence and cross-entropy."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

import interpkit
from interpkit import InversionBatch, InversionLoss


class KLDivergence(InversionLoss):
    r"""KL divergence of the target's probabilities Q from the requested P; the paper's L_KL, weighted by alpha.

    .. math:: L_{KL} = \frac{1}{B} \sum_b \sum_i P_b(i) \log \frac{P_b(i)}{Q_b(i)}

    P is the condition's distribution, (B, n), and Q the softmax of the target's logits, (B, n); 0 log 0 = 0. Of a
    multi-label target it is the sum over labels i of the divergence of (Q_i, 1 - Q_i) from (P_i, 1 - P_i), where Q_i is
    the sigmoid of the label's logit, so that labels that were not requested become absent.
    In nats, at least 0. Together with a cross-entropy term, the minimiser over Q of a KL(P || Q) + b CE(y, Q)
    is (a P + b y) / (a + b). Source: section 2.

    Example:
        >>> import torch
        >>> from interpkit import testing, wrap
        >>> from interpkit_losses import KLDivergence
        >>> target = wrap(torch.nn.Identity(), input_shape=(2,))  # its logits are its inputs
        >>> images, soft = torch.zeros(1, 2), torch.tensor([[0.75, 0.25]])
        >>> testing.evaluate_loss(KLDivergence(target), target, images, labels=[0], distribution=soft)
        tensor(0.1308)
    """

    name = "kl"

    def forward(self, batch: InversionBatch) -> Tensor:
        """Return the mean divergence, a scalar."""
        return batch.target.divergence(batch.response.logits, batch.condition.distribution).mean()


class CrossEntropy(InversionLoss):
    r"""Cross-entropy of the target's prediction and the requested label; the paper's L_CE, weighted by beta.

    .. math:: L_{CE} = -\frac{T}{B} \sum_b \log \operatorname{softmax}(z_b / T)_{y_b}

    y is the condition's label, (B,), and z are the target's logits, (B, n); of a multi-label target their sigmoids take
    the place of the softmax, and the labels that were not requested are free. In nats times T, at least 0. With T = 1,
    which is the paper's, the gradient is all but gone once y leads by 5, while classifiers are often surer of their
    training images. It falls as :math:`e^{-\text{margin} / T}`, so that a higher ``temperature`` goes on asking.
    Source: section 2.

    Example:
        >>> import torch
        >>> from interpkit import testing, wrap
        >>> from interpkit_losses import CrossEntropy
        >>> target = wrap(torch.nn.Identity(), input_shape=(3,))  # its logits are its inputs
        >>> testing.evaluate_loss(CrossEntropy(target), target, torch.zeros(1, 3), labels=[2])  # log 3
        tensor(1.0986)
    """

    name = "ce"

    class Options(interpkit.Options):
        """How sure the target is to be."""

        temperature: float = Field(
            1.0, gt=0, le=1000, description="T, what the logits are divided by; a higher one asks for larger margins"
        )

    options: Options

    def forward(self, batch: InversionBatch) -> Tensor:
        """Return the mean cross-entropy, a scalar."""
        t = self.options.temperature
        return t * batch.target.cross_entropy(batch.response.logits / t, batch.condition.labels).mean()
