"""The decisions of `interpkit.runtime.devices` that depend on the machine alone."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch
from torch import nn

import interpkit
from interpkit.runtime.devices import device_of, in_float32, is_out_of_memory, keep_freed_memory

GLIBC = platform.libc_ver()[0] == "glibc"
KEPT = """
import pathlib, torch
from interpkit.runtime.devices import keep_freed_memory

def taken():
    many = [torch.ones(size << 20, dtype=torch.uint8) for size in (4, 100) for _ in range(100 // size)]
    del many
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096

before = taken()
assert keep_freed_memory(torch.device("cpu"))
assert taken() - before > 150 << 20
"""

BOUNDED = """
import pathlib, torch
from interpkit.runtime import devices

def taken():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096

devices.keep_freed_memory(torch.device("cpu"))
small = []
for size in (100, 80, 60):  # what is left behind splits the free blocks
    large = torch.ones(size << 20, dtype=torch.uint8)
    small.append(torch.ones(1 << 20, dtype=torch.uint8))
    del large
before = taken()
devices.bound_freed_memory()
assert before - taken() < 1 << 20, "less is free than may be"
devices.MOST_FREE = 50 << 20
devices.bound_freed_memory()
assert before - taken() > 60 << 20
assert all(part.all() for part in small)
"""


def unset() -> dict[str, str]:
    """Return the environment without the variables that affect memory."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}


@pytest.mark.skipif(not GLIBC, reason="another C library")
def test_memory_that_was_freed_stays_with_the_process():
    done = subprocess.run([sys.executable, "-c", KEPT], env=unset(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not GLIBC, reason="another C library")
def test_what_is_freed_between_the_pieces_of_a_batch_is_bounded():
    done = subprocess.run([sys.executable, "-c", BOUNDED], env=unset(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_memory_is_left_alone_where_the_user_decides_or_there_is_a_device(monkeypatch: pytest.MonkeyPatch):
    assert not keep_freed_memory(torch.device("cuda"))
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not keep_freed_memory(torch.device("cpu"))


def test_a_module_is_on_the_device_of_its_parameters_or_else_of_its_buffers() -> None:
    target = interpkit.wrap(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (1, 2, 2))
    assert device_of(target) == torch.device("cpu")
    assert device_of(target.to("meta")).type == "meta"
    assert device_of(interpkit.wrap(nn.Flatten(), (1, 2, 2)).to("meta")).type == "meta"  # its scale and shift
    assert device_of(nn.Flatten()) == torch.device("cpu")


def test_convolutions_are_computed_in_float32_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch.backends.cudnn.allow_tf32
    for there in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        with in_float32():
            assert torch.backends.cudnn.allow_tf32 is not there
        assert torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("library", ["CUBLAS", "CUDNN"])
def test_a_library_without_memory_is_out_of_memory(library: str) -> None:
    assert is_out_of_memory(RuntimeError(f"CUDA error: {library}_STATUS_ALLOC_FAILED when calling `cublasCreate`"))
