"""The generator through `torch.compile`: fewer, larger kernels, and on CUDA one graph of them, replayed each step."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from interpkit.errors import setting

log = logging.getLogger("interpkit")


WORTH_IT = 2000
"""Steps of a run from which on compiling, which takes up to a minute, is earned back."""


def choose_compile(name: str, device: torch.device, steps: int) -> Literal["on", "off"]:
    """Return whether to compile; ``auto`` does for long runs on CUDA where Triton is installed, which it takes."""
    if name == "auto":
        there = device.type == "cuda" and importlib.util.find_spec("triton") is not None
        return "on" if there and steps >= WORTH_IT else "off"
    return "on" if name == "on" else "off"


@contextmanager
def compiled(generator: nn.Module, wanted: bool, **options: Any) -> Iterator[None]:
    """Compile a generator for a block; where that fails it runs as it is, and one warning says so.

    Args:
        generator: names and weights stay as they are.
        wanted: nothing is done otherwise.
        options: of `torch.compile`.
    """
    if not wanted:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException

    fast = torch.compile(generator.forward, **options)

    def attempt(*inputs: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        try:
            return fast(*inputs)
        except TorchDynamoException as error:
            stop_compiling(generator)
            reason = " ".join((str(error) or type(error).__name__).split("\n")[:2])
            off = setting("compile", "off")
            log.warning("the generator cannot be compiled, so it runs as it is (%s): %s", off, reason)
            return generator.forward(*inputs)

    generator.forward = attempt  # of this object, not of its class
    try:
        yield
    finally:
        stop_compiling(generator)


def stop_compiling(generator: nn.Module) -> None:
    """Let a generator run as it is from here on."""
    vars(generator).pop("forward", None)
