"""Random streams: each purpose has its own seed, and the caller's global generators do not change."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Return a seed in [0, 2^63) for one purpose of a run, independent of those for other purposes.

    Example:
        >>> from interpkit import derive_seed
        >>> first, second, again = (derive_seed(0, "samples", chunk) for chunk in (1, 2, 1))
        >>> first == again, first == second
        (True, False)
    """
    text = ":".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def random_generator(device: torch.device, seed: int) -> torch.Generator:
    """Return a generator of random numbers on a device.

    Example:
        >>> import torch
        >>> from interpkit import random_generator
        >>> first, again = (torch.rand(3, generator=random_generator(torch.device("cpu"), seed=5)) for _ in range(2))
        >>> torch.equal(first, again)
        True
    """
    return torch.Generator(device).manual_seed(seed)


@contextmanager
def global_seed(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators (weight initialization and dropout use them), and restore them at the end."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
