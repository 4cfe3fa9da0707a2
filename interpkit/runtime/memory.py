"""How much memory there is, how much a process has used, and how much a backward pass will need."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor, nn

MOST_ON_CPU = 2 << 30
"""Bytes that a run takes by default for what its backward pass needs, on a CPU, which is shared with other programs."""
SHARE, SHARE_ON_CPU = 0.6, 0.5
"""The largest share of the free memory that it takes, on an accelerator that it has to itself, and on a CPU."""
PASSING = 1.25
"""What a step needs over what is kept for its backward pass: gradients, and the workspace of convolutions."""
GROUP = Path("/sys/fs/cgroup")
LIMITS = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
"""The files of a container's limit and of what it uses, in the two versions of control groups."""


def free(device: torch.device) -> int | None:
    """Return the bytes that are free on a device, within the limit of a container; None if that is not known."""
    if device.type == "cuda":
        # what torch keeps for its next tensors counts as used there
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    found = []
    with suppress(OSError, StopIteration, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    for limit, used in LIMITS:
        with suppress(OSError, ValueError):  # no such group, or no limit, which reads "max"
            found.append(int((GROUP / limit).read_text("ascii")) - int((GROUP / used).read_text("ascii")))
    return max(0, min(found)) if found else None


def allowed(device: torch.device) -> int | None:
    """Return the bytes that a run takes by default for its activations; None if nothing is known of the device."""
    left = free(device)
    if device.type == "cuda" or left is None:
        return None if left is None else int(SHARE * left)
    return min(MOST_ON_CPU, int(SHARE_ON_CPU * left))


def peak(device: torch.device) -> int | None:
    """Return the most bytes that this process has used so far; None if that is not known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    with suppress(ImportError):
        import resource

        unit = 1 if os.uname().sysname == "Darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


class Kept:
    """The bytes that a forward pass keeps for the backward pass; see `counting_kept`."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self._networks = networks
        self._found: dict[int, int] = {}

    @property
    def bytes(self) -> int:
        """The bytes since the last `restart`, without the weights of the networks."""
        weights = {
            tensor.untyped_storage().data_ptr()
            for network in self._networks
            for tensor in (*network.parameters(), *network.buffers())
        }
        return sum(size for place, size in self._found.items() if place not in weights)

    def restart(self) -> None:
        """Forget what was counted, at the end of a step, when its memory is free for the next."""
        self._found.clear()

    def add(self, tensor: Tensor) -> Tensor:
        """Count a tensor once, and return it."""
        with suppress(RuntimeError, NotImplementedError):  # a kind of tensor without memory of its own
            storage = tensor.untyped_storage()
            self._found[storage.data_ptr()] = storage.nbytes()
        return tensor


@contextmanager
def counting_kept(*networks: nn.Module) -> Iterator[Kept]:
    """Count what the forward passes in a block keep for their backward passes.

    Example:
        >>> import torch
        >>> from interpkit.runtime.memory import counting_kept
        >>> layer, x = torch.nn.Linear(10, 10), torch.zeros(4, 10)
        >>> with counting_kept(layer) as kept:
        ...     y = layer(x).sigmoid()
        >>> kept.bytes  # of x and of y, each 4 x 10 numbers of 4 bytes
        320
    """
    kept = Kept(networks)
    unpack: Callable[[Tensor], Tensor] = lambda tensor: tensor  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(kept.add, unpack):
        yield kept
