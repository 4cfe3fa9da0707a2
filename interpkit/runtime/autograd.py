"""`with_autograd`: functions that compute alike whatever `no_grad`, `inference_mode` or autocast surrounds them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import ParamSpec, TypeVar

import torch

from interpkit.errors import UsageError

KINDS = ("cpu", "cuda", "mps", "xpu")
"""Kinds of devices for which a caller may have switched autocast on."""
P = ParamSpec("P")
R = TypeVar("R")


def with_autograd(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function with gradients enabled, and in the precision that it chooses itself, wherever it is called.

    Raises:
        UsageError: torch's default dtype is not float32, in which everything here is computed.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.get_default_dtype() != torch.float32:
            raise UsageError(
                f"torch's default dtype is {torch.get_default_dtype()}, and interpkit computes in float32: call "
                "torch.set_default_dtype(torch.float32) before."
            )
        with ExitStack() as modes:
            modes.enter_context(torch.inference_mode(False))
            modes.enter_context(torch.enable_grad())
            for kind in KINDS:
                if torch.is_autocast_enabled(kind):
                    modes.enter_context(torch.autocast(kind, enabled=False))
            return function(*args, **kwargs)

    return run
