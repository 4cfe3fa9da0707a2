"""The two terms that ask for the class: KL divergence to the soft distribution, cross-entropy to the label."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from interpkit import InversionBatch, InversionLoss


class KLDivergence(InversionLoss):
    r"""KL(P || Q), mean over the batch; the paper's L_KL, weighted by alpha.

    .. math:: L_{KL} = \frac{1}{B} \sum_b \sum_i P_b(i) \log \frac{P_b(i)}{Q_b(i)}

    P is the condition's distribution, (B, n), and Q the softmax of the target's logits, (B, n); 0 log 0 = 0.
    In nats, at least 0. With a cross-entropy term beside it the minimiser over Q of a KL(P || Q) + b CE(y, Q)
    is (a P + b y) / (a + b). Source: section 2.
    """

    name = "kl"

    def forward(self, batch: InversionBatch) -> Tensor:
        """Return the mean divergence, a scalar."""
        return F.kl_div(batch.response.logits.log_softmax(1), batch.condition.distribution, reduction="batchmean")


class CrossEntropy(InversionLoss):
    r"""Cross-entropy of the label asked for, mean over the batch; the paper's L_CE, weighted by beta.

    .. math:: L_{CE} = -\frac{1}{B} \sum_b \log Q_b(y_b)

    y is the condition's label, (B,), and Q the softmax of the target's logits, (B, n). In nats, at least 0.
    Source: section 2.
    """

    name = "ce"

    def forward(self, batch: InversionBatch) -> Tensor:
        """Return the mean cross-entropy, a scalar."""
        return F.cross_entropy(batch.response.logits, batch.condition.labels)
