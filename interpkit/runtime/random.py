"""Random streams: each purpose has its own seed, and the caller's global generators are left alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Return a seed in [0, 2^63) for one purpose of a run, independent of those for other purposes."""
    text = ":".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def random_generator(device: torch.device, seed: int) -> torch.Generator:
    """Return a generator of random numbers on a device."""
    return torch.Generator(device).manual_seed(seed)


@contextmanager
def global_seed(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators (weight initialisation and dropout use them); restore them after."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
