"""Choose a run's device and precision, from hardware features and never by timing."""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from typing import Any, Literal

import torch
from torch import nn

from interpkit.errors import UsageError, first_line, setting

log = logging.getLogger("interpkit")

Precision = Literal["fp32", "bf16"]


def choose_device(name: str) -> torch.device:
    """Return the device; ``auto`` prefers CUDA, then Apple's MPS, then the CPU.

    A name that is not of a device, or of one that this machine does not have, is a `UsageError`.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except Exception as error:  # torch raises many kinds here
        raise UsageError(f"{setting('device', name)}: {first_line(error)} Use auto or cpu.") from error
    return device


def choose_precision(name: str, device: torch.device) -> Precision:
    """Return the precision of the networks' arithmetic; ``auto`` chooses bf16 if the hardware supports it.

    CUDA from compute capability 8.0 and CPUs with AVX512-BF16 or AMX do. Losses are always computed in fp32.
    """
    multiplies = _multiplies_bf16(device)
    if name == "fp32" or (name == "auto" and not multiplies):
        return "fp32"
    if not multiplies:
        bf16 = setting("precision", "bf16")
        log.warning("this %s has no bf16 arithmetic, so %s is emulated: fp32 is faster", device.type, bf16)
    return "bf16"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which the networks compute in ``bf16``, or else in fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        features = torch.cpu.get_capabilities()
        return bool(features.get("amx_bf16") or features.get("avx512_bf16"))
    return False


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
MOST_FREE = 2**30
"""Bytes of freed memory that a process keeps between the pieces of a batch."""


def keep_freed_memory(device: torch.device) -> bool:
    """On a CPU, let this process keep the memory of freed tensors for the next step; return whether it does.

    By default, glibc returns free memory to the system at the end of a step, and the system has to fill it with zeros,
    page by page, for the next one. Without glibc, or if an environment variable ``MALLOC_...`` is set, nothing changes.
    """
    decided = any(name.startswith("MALLOC_") for name in os.environ)
    if device.type != "cpu" or decided or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    # A threshold would not do: blocks over 32 MiB are mapped under any.
    kept = bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
    if kept and hasattr(libc, "mallinfo2"):  # from glibc 2.33 on
        libc.mallinfo2.restype = _Heap
        _heaps[:] = [libc]
    return kept


class _Heap(ctypes.Structure):
    """What glibc knows of its memory, in bytes; ``uordblks`` is in use."""

    _fields_ = [("before", 7 * ctypes.c_size_t), ("uordblks", ctypes.c_size_t), ("after", 2 * ctypes.c_size_t)]


_heaps: list[Any] = []
"""The C library, if this process keeps freed memory; empty or one."""


def bound_freed_memory() -> None:
    """Return memory that `keep_freed_memory` keeps to the system, once it is more than `MOST_FREE`.

    Call this between pieces of work that leave something behind: what they leave splits the free blocks, which then are
    too small for the next piece, so that memory would grow with the number of pieces.
    """
    for libc in _heaps:
        with open("/proc/self/statm", encoding="ascii") as file:
            _, resident, shared = (int(pages) * mmap.PAGESIZE for pages in file.read().split()[:3])
        if resident - shared - libc.mallinfo2().uordblks > MOST_FREE:
            libc.malloc_trim(0)


@contextmanager
def in_float32() -> Iterator[None]:
    """Compute convolutions in float32 on CUDA as well, where torch uses TF32 by default, with 10 bits."""
    backend: Any = torch.backends.cudnn
    before = False
    with suppress(RuntimeError):  # the user has decided for single operations, by torch's newer settings
        before = torch.cuda.is_available() and backend.allow_tf32
    if not before:
        yield
        return
    backend.allow_tf32 = False
    try:
        yield
    finally:
        backend.allow_tf32 = True


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that a device is out of memory; CPUs and MPS raise a plain ``RuntimeError``."""
    phrases = ("DefaultCPUAllocator", "not enough memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in phrases)
    )


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a module's first parameter or buffer; the CPU if it has none."""
    return next((tensor.device for tensor in chain(module.parameters(), module.buffers())), torch.device("cpu"))
