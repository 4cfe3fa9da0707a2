"""`watch`: observe the inputs and outputs of a network's layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn


@contextmanager
def watch(layers: Mapping[str, nn.Module], note: Callable[[str, Any], None]) -> Iterator[None]:
    """Call ``note(layer, value)`` whenever a layer runs within the block; the hooks are removed at its end.

    Args:
        layers: the modules by name. The value is a module's output or, if the name ends in ``:in``, its input before
            it runs.
        note: accepts the name and the value; an input is the tuple of positional arguments or, if there are none, the
            list of keyword arguments.
    """
    with ExitStack() as stack:
        for name, module in layers.items():
            if name.endswith(":in"):
                handle = module.register_forward_pre_hook(
                    lambda _, inputs, named, name=name: note(name, inputs or list(named.values())), with_kwargs=True
                )
            else:
                handle = module.register_forward_hook(lambda _, inputs, output, name=name: note(name, output))
            stack.callback(handle.remove)
        yield


def first_of(value: Any) -> Any:
    """Return the first element of (nested) lists and tuples; any other value unchanged."""
    while isinstance(value, tuple | list) and value:
        value = value[0]
    return value
