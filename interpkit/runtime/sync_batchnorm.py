"""Batch norm over the batch of all processes, on any device; `torch.nn.SyncBatchNorm` does not support CPUs."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from interpkit.runtime.distributed import all_gather


class _Moments(torch.autograd.Function):
    """Mean and variance of each channel, by the kernel of batch norm: torch's reductions take many times as long."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        exact = x.new_zeros(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))  # its type is the result's
        mean, variance = torch.batch_norm_update_stats(x, exact, exact.clone(), 0.0)
        ctx.count = x.numel() // x.shape[1]
        ctx.save_for_backward(x, mean)
        return mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Return d mean / n + 2 (x - mean) d var / n."""
        (x, mean), (of_mean, of_variance) = ctx.saved_tensors, gradients
        one = torch.ones_like(mean)
        return F.batch_norm(x, mean, one, 2 * of_variance / ctx.count, of_mean / ctx.count, eps=0.0)


class SyncBatchNorm(_BatchNorm):
    """Batch norm with the mean and variance of the rows of all processes of a group.

    If a channel has n values on each of P processes, with means m_i and variances v_i:

        mean = mean(m_i),        var = mean(v_i + (m_i - mean)^2)

    The gradient passes through both, to the rows of every process (Ioffe & Szegedy 2015, arXiv:1502.03167, section 3).
    """

    group: dist.ProcessGroup | None

    def forward(self, input: Tensor) -> Tensor:
        """Normalize; see `torch.nn.BatchNorm2d`."""
        if not self.training:
            return super().forward(input)
        means, variances = all_gather(torch.stack(_Moments.apply(input)), self.group).unbind(1)
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)
        fixed_mean, fixed_variance = mean.detach(), variance.detach()
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
            momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            count = input.numel() // input.shape[1] * len(means)
            self.running_mean.lerp_(fixed_mean, momentum)
            self.running_var.lerp_(fixed_variance * count / max(count - 1, 1), momentum)
        scale = (variance + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        # Torch's kernel treats the statistics as constants. Their gradient passes through this weight and bias, whose
        # values equal the layer's own.
        weight, bias = scale * (fixed_variance + self.eps).sqrt(), (fixed_mean - mean) * scale
        if self.bias is not None:
            bias = bias + self.bias
        return F.batch_norm(input, fixed_mean, fixed_variance, weight, bias, eps=self.eps)

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any number of dimensions: the original layer was made for its input."""


def sync_batch_norms(network: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Turn every batch norm of a network into a `SyncBatchNorm` of the group, with the same parameters and buffers."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = SyncBatchNorm  # like torch's lazy modules
            module.group = group  # type: ignore[assignment]
