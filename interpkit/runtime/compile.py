"""Run the generator through `torch.compile`: fewer, larger kernels, and on CUDA one graph, replayed each step."""

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


def choose_compile(name: str, device: torch.device, steps: int) -> Literal["on", "off"]:
    """Return whether to compile; ``auto`` does for long runs on CUDA if Triton, which this requires, is installed."""
    if name == "auto":
        supported = device.type == "cuda" and importlib.util.find_spec("triton") is not None
        return "on" if supported and steps >= 2000 else "off"  # from there on, up to a minute of compiling pays off
    return "on" if name == "on" else "off"


@contextmanager
def compiled(generator: nn.Module, wanted: bool, **options: Any) -> Iterator[None]:
    """Compile a generator for a block, if wanted; if that fails, it runs uncompiled after one warning.

    Its names and weights do not change. The options are those of `torch.compile`.
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
            log.warning("the generator cannot be compiled, so it runs uncompiled (%s): %s", off, reason)
            return generator.forward(*inputs)

    generator.forward = attempt  # on this object, not on its class
    try:
        yield
    finally:
        stop_compiling(generator)


def stop_compiling(generator: nn.Module) -> None:
    """Run a generator uncompiled from now on."""
    vars(generator).pop("forward", None)
