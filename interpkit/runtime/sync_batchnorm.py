"""Batch norm over the batch of all processes."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from interpkit.runtime.distributed import _together


class _Normalise(torch.autograd.Function):
    """Batch norm by the mean and variance of all processes' rows, and its gradient.

    With m_i and v_i of the n rows of each of P processes: m = mean(m_i), v = mean(v_i + (m_i - m)^2). Backward, for
    N = P n values of a channel, z = (x - m) / sqrt(v + eps), y = w z + b and g the gradient of y:

        gradient of x = w / sqrt(v + eps) * (g - sum(g) / N - z * sum(g z) / N)

    with the sums over all processes (Ioffe & Szegedy 2015, arXiv:1502.03167, section 3). The first of its terms is that
    of fixed statistics, and the others are an affine map of z: each is one pass of torch's own kernel over x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, group: Any) -> tuple[Tensor, ...]:
        _, mean, scale = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)
        own = torch.stack([mean, scale.pow(-2)])  # v + eps rather than v, so that nothing cancels
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
        with _together():
            dist.all_gather(parts, own, group=group)
        means, spreads = torch.stack(parts, 1)
        mean = means.mean(0)
        variance = ((spreads + (means - mean).square()).mean(0) - eps).clamp(min=0)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps, ctx.group = eps, group
        ctx.mark_non_differentiable(mean, variance)
        y = torch.native_batch_norm(x, weight, bias, mean, variance, False, 0.0, eps)[0]
        return y, mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance = ctx.saved_tensors
        fixed, for_weight, for_bias = torch.ops.aten.native_batch_norm_backward(
            gradients[0], x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.stack([for_weight, for_bias])
        with _together():
            dist.all_reduce(sums, group=ctx.group)
        count = x.numel() // x.shape[1] * dist.get_world_size(ctx.group)
        of_z, of_one = -sums * weight * (variance + ctx.eps).rsqrt() / count
        fixed += torch.native_batch_norm(x, of_z, of_one, mean, variance, False, 0.0, ctx.eps)[0]
        return fixed, for_weight, for_bias, None, None


class SharedBatchNorm(_BatchNorm):
    """Batch norm over the rows of all processes: what `torch.nn.SyncBatchNorm` is on CUDA, on any device."""

    group: Any = None

    def _check_input_dim(self, input: Tensor) -> None:
        """Take any number of dimensions: the layer that this one stands in for was made for its input."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise; see `torch.nn.BatchNorm2d`."""
        if not self.training:
            return super().forward(input)
        # Statistics take the type of the weights: fp32 at least.
        exact = torch.promote_types(input.dtype, torch.float32)
        one = input.new_ones(self.num_features, dtype=exact)
        weight, bias = (self.weight.to(exact), self.bias.to(exact)) if self.affine else (one, 0 * one)
        y, mean, variance = _Normalise.apply(input, weight, bias, self.eps, self.group)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
            share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            count = input.numel() // input.shape[1] * dist.get_world_size(self.group)
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance * count / max(count - 1, 1), share)
        return cast(Tensor, y)


def share_batch_norms(network: nn.Module, group: Any = None) -> None:
    """Let every batch norm of a network see the rows of all processes of a group; parameters and names stay."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, _BatchNorm) and not isinstance(child, SharedBatchNorm):
                track = child.track_running_stats
                shared = SharedBatchNorm(child.num_features, child.eps, child.momentum, child.affine, track)
                shared.load_state_dict(child.state_dict())
                if child.affine:
                    shared.weight, shared.bias = child.weight, child.bias
                for buffer, value in child.named_buffers(recurse=False):
                    setattr(shared, buffer, value)
                shared.group = group
                setattr(module, name, shared.train(child.training))
