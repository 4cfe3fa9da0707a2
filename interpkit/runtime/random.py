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
    """Seed torch's global generators of the CPU and of a device, and restore them at the end.

    Weight initialization and dropout use them. Those of other devices stay as they are.
    """
    with kept_streams(device):
        seed_streams(seed, device)
        yield


@contextmanager
def kept_streams(device: torch.device) -> Iterator[None]:
    """Restore torch's global generators of the CPU and of a device at the end."""
    before = _states(device)
    try:
        yield
    finally:
        _restore(before, device)


class OwnStream:
    """A stream of torch's global generators for code that runs within another's, such as callbacks within a run."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._seed, self._device = seed, device
        self._now: list[torch.Tensor] = []

    @contextmanager
    def used(self) -> Iterator[None]:
        """Draw from this stream, from where it was left, and put the other one back."""
        with kept_streams(self._device):
            if self._now:
                _restore(self._now, self._device)
            else:
                seed_streams(self._seed, self._device)
            try:
                yield
            finally:
                self._now = _states(self._device)


def _states(device: torch.device) -> list[torch.Tensor]:
    """Return the states of torch's global generators of the CPU and of a device."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    elif device.type == "mps":
        states.append(torch.mps.get_rng_state())
    return states


def _restore(states: list[torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
    elif device.type == "mps":
        torch.mps.set_rng_state(states[1])


def seed_streams(seed: int, device: torch.device) -> None:
    """Seed torch's global generators of the CPU and of a device; `torch.manual_seed` does so for every device."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
