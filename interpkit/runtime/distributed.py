"""One batch shared by several processes: each makes and looks at its rows of it, and every term sees them all.

    part   = generator(latent[rows], condition[rows])      # the rows of this process
    images = share.whole(part)                             # all rows, on every process, with gradient
    terms of all rows, the same on every process; backward; share.average(gradients)

So a term needs to know nothing of processes, and is exact over the global batch: cosines, log-determinants and batch
statistics alike. Gradients are those of the sum of the processes' (equal) losses, so their mean is the gradient
of one. Started by ``torchrun``; without it there is one process, and nothing here costs anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from interpkit.errors import RunError, UsageError

PATIENCE = timedelta(seconds=20)
"""How long the others wait for a sign of life once a process seems to be gone."""


class Share:
    """This process's part of every batch: the rows ``rank``, ``rank + size``, ``rank + 2 size``, ...

    With several generators row i is made by generator ``i mod K``, so where K and the number of processes divide one
    another, each process runs its own generators alone.

    Args:
        rank: of this process.
        size: how many processes there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size

    @classmethod
    def current(cls) -> Share:
        """Return this process's share; the whole, where no process group was initialised."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def check(self, batch_size: int, generators: int) -> None:
        """See that a recipe can be shared.

        Raises:
            UsageError: the processes are no multiple of the generators, nor the other way round; or the batch is none
                of the processes.
        """
        if generators % self.size and self.size % generators:
            raise UsageError(
                f"{generators} generators cannot be spread over {self.size} processes: one number has to be a "
                f"multiple of the other, for instance --generators {self.size}."
            )
        if batch_size % self.size:
            nearest = max(self.size, round(batch_size / self.size) * self.size)
            raise UsageError(
                f"a batch of {batch_size} cannot be shared evenly by {self.size} processes: --batch-size {nearest}."
            )

    def rows(self, count: int, device: torch.device) -> Tensor:
        """Return which of ``count`` rows are this process's, (ceil(count / size),) int64; the last may be repeated."""
        own = torch.arange(self.rank, count + self.rank, self.size, device=device)
        return own[: -(-count // self.size)].clamp(max=count - 1)

    def whole(self, part: Tensor, count: int) -> Tensor:
        """Return all processes' rows in order, (count, ...), from this one's, with gradient."""
        return self.wholes([part], count)[0]

    def wholes(self, parts: Sequence[Tensor], count: int) -> list[Tensor]:
        """Return the same of several tensors, by one exchange."""
        if self.size == 1:
            return list(parts)
        flat = [part.reshape(len(part), -1) for part in parts]
        rows = cast(Tensor, _Whole.apply(torch.cat(flat, 1), self))[:count]
        columns = rows.split([part.shape[1] for part in flat], 1)
        return [
            found.reshape(count, *part.shape[1:]).to(part.dtype) for found, part in zip(columns, parts, strict=True)
        ]

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make each parameter's gradient the mean over the processes."""
        if self.size == 1:
            return
        trained = [p for p in parameters if p.requires_grad]
        for parameter in trained:
            if parameter.grad is None:  # a generator that another process runs
                parameter.grad = torch.zeros_like(parameter)
        gradients = [cast(Tensor, p.grad) for p in trained]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        with _together():
            dist.all_reduce(flat)
        flat /= self.size
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag whether it is up on any process."""
        if self.size == 1:
            return list(flags)
        raised = torch.tensor(flags, dtype=torch.int32, device=_device())
        with _together():
            dist.all_reduce(raised)
        return [bool(count) for count in raised.tolist()]

    def group(self, generators: int) -> Any:
        """Return the processes that run the same generators as this one; None stands for all of them."""
        if generators == 1:
            return None
        fellows = [
            [r for r in range(self.size) if (r - s) % generators == 0] for s in range(min(generators, self.size))
        ]
        groups = [dist.new_group(ranks) for ranks in fellows]  # every process has to make every group
        return groups[self.rank % len(groups)]

    def from_rank(self, rank: int, value: Tensor) -> Tensor:
        """Return the value that a tensor has on one of the processes."""
        value = value.clone()
        with _together():
            dist.broadcast(value, src=rank)
        return value

    def from_first(self, value: Any) -> Any:
        """Return the first process's value on every process."""
        if self.size == 1:
            return value
        box = [value]
        with _together():
            dist.broadcast_object_list(box, src=0, device=_device())
        return box[0]

    def all(self, value: Any) -> list[Any]:
        """Return every process's value, by rank, on every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _together():
            dist.all_gather_object(values, value)
        return values


def _device() -> torch.device:
    """Return where the process group's own tensors lie."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


class _Whole(torch.autograd.Function):
    """Gather rows; the gradient of a row is the sum of what all processes found for it."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, share: Share) -> Tensor:
        ctx.share = share
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(share.size)]
        with _together():
            dist.all_gather(parts, part.contiguous())
        return torch.stack(parts, 1).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].contiguous().clone()
        with _together():
            dist.all_reduce(gradient)
        return gradient[ctx.share.rank :: ctx.share.size], None


# --------------------------------------------------------------------------------- pieces of a batch


# --------------------------------------------------------------------------------- starting and losing


def started_by_torchrun() -> bool:
    """Say whether this process is one of several that ``torchrun`` (or a scheduler like it) started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def restarted() -> bool:
    """Say whether ``torchrun`` started this process again after another had ended."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextmanager
def processes() -> Iterator[Share]:
    """Join the processes that ``torchrun`` started, for a block; alone without it."""
    if not started_by_torchrun() or dist.is_initialized():
        yield Share.current()
        return
    # Its default arguments are the group of the moment: imported later, they would keep the group and its threads, and
    # now and then one of those aborts the process while it ends.
    import torch.distributed.nn.functional

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Share.current()
    finally:
        dist.destroy_process_group()


@contextmanager
def _together() -> Iterator[None]:
    """Name the processes that are gone, where a word between them fails.

    Raises:
        RunError: it did.
    """
    try:
        yield
    except RuntimeError as error:
        share = Share.current()
        raise RunError(
            f"process {_missing(share)} of {share.size} ended, so process {share.rank} stops. A run with --out goes on "
            f"from its last checkpoint: the same command with --resume."
        ) from error


def _missing(share: Share) -> str:
    """Return the ranks that give no sign of life, for a message."""
    store = dist.distributed_c10d._get_default_store()
    store.set(f"interpkit/alive/{share.rank}", "yes")
    missing = []
    for rank in range(share.size):
        try:
            store.wait([f"interpkit/alive/{rank}"], PATIENCE / share.size)
        except dist.DistError:
            missing.append(str(rank))
    return ", ".join(missing) or "(unknown)"
