"""Share one batch among several processes: each generates and classifies its rows, and every loss term sees all rows.

    local  = generator(latent[rows], condition[rows])      # the rows of this process
    images = world.all_gather(B, local)                    # all rows, on every process, with gradient
    terms of all rows, the same on every process; backward; world.average_gradients(parameters)

So a term does not need to know about processes, and is exact over the global batch, including cosines, log-determinants
and batch statistics; `DistributedDataParallel` is not. Gradients are those of the sum of the processes' (equal) losses,
so their mean is the gradient of one. ``torchrun`` starts the processes; without it there is a single process, without
any overhead.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from interpkit.errors import RunError, UsageError, setting
from interpkit.runtime import torchrun

PATIENCE = timedelta(seconds=20)
"""How long the other processes wait for a sign of life once a process seems to have ended."""


@dataclass
class World:
    """The processes that share a batch, as one of them sees it: its rows are ``rank``, ``rank + size``, ...

    With K generators, generator ``i mod K`` generates row i. So if K divides the number of processes or the reverse,
    each process runs only its own generators. ``rank`` is the number of this process, ``size`` that of all processes.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> World:
        """Return the world of torch's process group; one process if there is no group."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def check(self, batch_size: int, generators: int) -> None:
        """Raise a `UsageError` unless the processes can share a batch, and the generators, evenly."""
        if generators % self.size and self.size % generators:
            raise UsageError(
                f"{generators} generators cannot be spread over {self.size} processes: one number has to be a "
                f"multiple of the other, for instance {setting('generators', self.size)}."
            )
        if batch_size % self.size:
            nearest = max(self.size, round(batch_size / self.size) * self.size)
            raise UsageError(
                f"a batch of {batch_size} cannot be shared evenly by {self.size} processes: "
                f"{setting('batch_size', nearest)}."
            )

    def rows(self, count: int, device: torch.device) -> Tensor:
        """Return this process's rows of ``count``, (ceil(count / size),) int64; the last row may be repeated."""
        own = torch.arange(self.rank, count + self.rank, self.size, device=device)
        return own[: -(-count // self.size)].clamp(max=count - 1)

    def all_gather(self, count: int, *parts: Tensor) -> list[Tensor]:
        """Return, for each tensor of this process's `rows`, all processes' rows in order, with gradient.

        All tensors, each (ceil(count / size), ...), are exchanged at once; each result is (count, ...).
        """
        if self.size == 1:
            return list(parts)
        flat = [part.reshape(len(part), -1) for part in parts]
        gathered = all_gather(torch.cat(flat, 1)).transpose(0, 1).flatten(0, 1)[:count]
        columns = gathered.split([part.shape[1] for part in flat], 1)
        return [c.reshape(count, *part.shape[1:]).to(part.dtype) for c, part in zip(columns, parts, strict=True)]

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each parameter's gradient by its mean over the processes."""
        if self.size == 1:
            return
        trained = [p for p in parameters if p.requires_grad]
        for parameter in trained:
            if parameter.grad is None:  # belongs to a generator that another process runs
                parameter.grad = torch.zeros_like(parameter)
        gradients = [cast(Tensor, p.grad) for p in trained]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        with _collective():
            dist.all_reduce(flat)
        flat /= self.size
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def any_rank(self, *flags: bool) -> list[bool]:
        """Return for each flag whether it is true on any process."""
        if self.size == 1:
            return list(flags)
        raised = torch.tensor(flags, dtype=torch.int32, device=_device())
        with _collective():
            dist.all_reduce(raised)
        return [bool(count) for count in raised.tolist()]

    def subgroup(self, generators: int) -> dist.ProcessGroup | None:
        """Return the group of the processes that run the same generator as this one; None stands for all of them.

        There are fewer generators than processes.
        """
        if generators == 1:
            return None
        # Every process must create every group.
        groups = [dist.new_group(list(range(first, self.size, generators))) for first in range(generators)]
        return cast(dist.ProcessGroup, groups[self.rank % generators])

    def broadcast(self, value: Any) -> Any:
        """Return the first process's value on every process."""
        if self.size == 1:
            return value
        box = [value]
        with _collective():
            dist.broadcast_object_list(box, src=0, device=_device())
        return box[0]

    def broadcast_tensor(self, tensor: Tensor, source: int) -> None:
        """Overwrite a tensor with its value on the process ``source``."""
        if self.size > 1:
            with _collective():
                dist.broadcast(tensor, src=source)

    def all_gather_object(self, value: Any) -> list[Any]:
        """Return every process's value, by rank, on every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _collective():
            dist.all_gather_object(values, value)
        return values


def all_gather(part: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Return the tensors of all processes of a group, (P, *part.shape), with gradient."""
    return cast(Tensor, _AllGather.apply(part, group))


class _AllGather(torch.autograd.Function):
    """Gather tensors; the gradient of each is the sum of its gradients on all processes.

    `torch.distributed.nn.functional.all_gather` does the same, but if a process ends during the backward pass, its
    error does not name the process.
    """

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        part = part.contiguous()
        parts = [torch.empty_like(part) for _ in range(dist.get_world_size(group))]
        with _collective():
            dist.all_gather(parts, part, group=group)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].contiguous().clone()
        with _collective():
            dist.all_reduce(gradient, group=ctx.group)
        return gradient[dist.get_rank(ctx.group)], None


def _device() -> torch.device:
    """Return the device of what processes exchange beside gradients: the CPU, but for a group of NCCL alone."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


@contextmanager
def processes() -> Iterator[World]:
    """Join the processes that ``torchrun`` started, for a block; without ``torchrun`` there is one process."""
    if torchrun.WORLD_SIZE == 1 or dist.is_initialized():
        yield World.current()
        return
    # Its default arguments hold the current group. Imported later, they would keep the group and its threads alive,
    # and occasionally such a thread aborts the process at exit.
    import torch.distributed.nn.functional

    if torch.cuda.is_available() and torch.cuda.device_count() > torchrun.LOCAL_RANK:
        torch.cuda.set_device(torchrun.LOCAL_RANK)
    # gloo too: a run may ask for the CPU on a machine with GPUs
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield World.current()
    finally:
        dist.destroy_process_group()


@contextmanager
def _collective() -> Iterator[None]:
    """Turn the failure of a collective operation into a `RunError` that names the processes that ended."""
    try:
        yield
    except RuntimeError as error:
        world = World.current()
        raise RunError(
            f"process {_missing(world)} of {world.size} ended, or did not call interpkit as all processes of the group "
            f"have to, so process {world.rank} stops. A run with "
            f"{setting('out', None)} continues from its last checkpoint with {setting('resume')}."
        ) from error


def _missing(world: World) -> str:
    """Return the ranks that do not respond, for a message.

    `torch.distributed.monitored_barrier` reports them only on gloo's first process.
    """
    store = dist.distributed_c10d._get_default_store()
    store.set(f"interpkit/alive/{world.rank}", "yes")
    missing = []
    for rank in range(world.size):
        try:
            store.wait([f"interpkit/alive/{rank}"], PATIENCE / world.size)
        except dist.DistError:
            missing.append(str(rank))
    return ", ".join(missing) or "(unknown)"
