"""Batch norm over the batch of all processes, on any device; `torch.nn.SyncBatchNorm` refuses a CPU."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from interpkit.runtime.distributed import all_gather


class SyncBatchNorm(_BatchNorm):
    """Batch norm by the mean and variance of the rows of all processes of a group.

    With m_i and v_i of the n values that a channel has on each of P processes:

        mean = mean(m_i),        var = mean(v_i + (m_i - mean)^2)

    The gradient passes through both, to the rows of every process (Ioffe & Szegedy 2015, arXiv:1502.03167, section 3).
    """

    group: dist.ProcessGroup | None

    def forward(self, input: Tensor) -> Tensor:
        """Normalize; see `torch.nn.BatchNorm2d`."""
        if not self.training:
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        own = torch.var_mean(x, [d for d in range(x.dim()) if d != 1], correction=0)
        variances, means = all_gather(torch.stack(own), self.group).unbind(1)
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
            momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            count = x.numel() // x.shape[1] * len(means)
            self.running_mean.lerp_(mean.detach(), momentum)
            self.running_var.lerp_(variance.detach() * count / max(count - 1, 1), momentum)
        channel = (-1, *(1,) * (x.dim() - 2))
        scale = (variance + self.eps).rsqrt() * (1 if self.weight is None else self.weight)
        y = (x - mean.view(channel)) * scale.view(channel)
        return (y if self.bias is None else y + self.bias.view(channel)).to(input.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any number of dimensions: the layer was made for its input."""


def sync_batch_norms(network: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Turn every batch norm of a network into a `SyncBatchNorm` of the group; parameters, buffers and names stay."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = SyncBatchNorm  # as torch's lazy modules become what they stand for
            module.group = group  # type: ignore[assignment]
