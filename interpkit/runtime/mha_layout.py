"""Lay out the inputs of a frozen classifier's attention so that each projection is one matrix product.

`torch.nn.MultiheadAttention` projects x (L, N, E) by one product if x is contiguous, or if the weights require
gradients. In a frozen classifier, x is strided if ``batch_first`` or the classifier's own code transposed it, and torch
then projects it by L products of N rows, each with a copy of the weights: a ViT-B/16 takes 16 times as long in bf16
(``python -m benchmarks large``).

This works around `torch.nn.functional.multi_head_attention_forward` passing a strided x to `linear`, where `addmm`
cannot merge its two leading axes; needed as of torch 2.14. Remove it once torch lays x out itself: then the last
comparison in ``test_frozen_attention_is_projected_by_one_product`` fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def contiguous_attention(network: nn.Module) -> Iterator[None]:
    """Make the inputs of each attention layer contiguous as (L, N, E), for a block; shapes and values do not change."""
    with ExitStack() as stack:
        for module in network.modules():
            if isinstance(module, nn.MultiheadAttention):
                hook = module.register_forward_pre_hook(_laid_out, with_kwargs=True)
                stack.callback(hook.remove)
        yield


def _laid_out(
    module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    names = ("query", "key", "value")
    # Often all three are one tensor, and must remain so: torch then computes the projections together.
    done = {id(x): _contiguous(x, module.batch_first) for x in (*args[:3], *map(kwargs.get, names))}
    changed = {name: done[id(x)] if name in names else x for name, x in kwargs.items()}
    return (*(done[id(x)] for x in args[:3]), *args[3:]), changed


def _contiguous(x: Any, batch_first: bool) -> Any:
    if not isinstance(x, Tensor) or x.is_nested or x.dim() != 3:  # without a batch nothing is transposed
        return x
    return x.transpose(0, 1).contiguous().transpose(0, 1) if batch_first else x.contiguous()
