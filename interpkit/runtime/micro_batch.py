"""Compute a batch in micro-batches, with the result of a single batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from interpkit.runtime import progress
from interpkit.runtime.devices import bound_freed_memory


def in_micro_batches(
    make: Callable[[Tensor], Any], rows: Tensor, size: int | None, networks: nn.Module, what: str = "images"
) -> list[Any]:
    """Apply ``make`` to some rows at a time, and keep each piece's result but not its activations.

    The backward pass computes each piece once more (activation checkpointing; Chen et al. 2016, arXiv:1604.06174) with
    the same dropout, so it needs only the memory of one piece, at the cost of a second forward pass.

    Args:
        make: computes tensors, with gradient, from row numbers.
        rows: (B,) int64.
        size: the number of rows at a time; if None, all of them, and nothing is computed twice.
        networks: the networks that ``make`` runs; their batch norms count each piece once in the running statistics.
        what: what ``make`` does, for progress: ``images classified``.
    """
    if size is None or size >= len(rows):
        return [make(rows)]
    contexts = lambda: (nullcontext(), _no_running_statistics(networks))  # noqa: E731
    made = 0
    states: dict[int, Tensor] = {}

    def counted(number: int, piece: Tensor) -> Any:
        nonlocal made
        bound_freed_memory()
        with nullcontext() if piece.device.type != "mps" else _on_mps(states, number):
            result = make(piece)
        again, made = made >= len(rows), made + len(piece)
        words = f"{what}, and once more for the gradient" if again else what
        progress.tell(words, made - len(rows) * again, len(rows))
        return result

    with set_checkpoint_early_stop(False):  # it stops by an exception, which would look like an error in `make`
        return [
            checkpoint(counted, number, piece, use_reentrant=False, context_fn=contexts)
            for number, piece in enumerate(rows.split(size))
        ]


@contextmanager
def _on_mps(states: dict[int, Tensor], number: int) -> Iterator[None]:
    """Draw the second time as the first time, for which torch's checkpoints do not provide there."""
    now = torch.mps.get_rng_state()
    first = number not in states
    torch.mps.set_rng_state(states.setdefault(number, now))
    try:
        yield
    finally:
        if not first:
            torch.mps.set_rng_state(now)


@contextmanager
def _no_running_statistics(network: nn.Module) -> Iterator[None]:
    norms = [(m, m.momentum) for m in network.modules() if isinstance(m, _BatchNorm) and m.training]
    try:
        for norm, _ in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum in norms:
            norm.momentum = momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked -= 1
