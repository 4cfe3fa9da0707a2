"""A second device that every machine has: tensors that say they are on ``cpu:1`` and refuse those on the CPU.

PyTorch takes the index of a CPU for decoration. Here it is obeyed: what is made there stays there, an operation on
tensors of both places is refused as CUDA refuses it, and all is computed on the CPU, with real values, gradients and
random numbers. So a component that forgets ``device=`` is found out without a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

SECOND = torch.device("cpu", 1)
CPU = torch.device("cpu")
_COPIES = (torch.ops.aten._to_copy, torch.ops.aten.copy_)
"""Operations that move values from one device to another."""
_JOINING = (torch.ops.aten.stack, torch.ops.aten.cat)
_INDEXING = (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_, torch.ops.aten._index_put_impl_)
"""Operations that take indices on the CPU as well."""


class OtherDeviceError(RuntimeError):
    """Tensors of two devices met in one operation."""


class _There(Tensor):
    """A tensor on the second device; `here` is where its values are."""

    here: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, here: Tensor) -> _There:
        there: _There = Tensor._make_wrapper_subclass(
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            layout=here.layout,
            device=SECOND,
        )
        there.here = here
        return there

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"tensor({self.here.tolist()}, device='{SECOND}')"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run one operation on the CPU; its result is on the second device if its arguments are, or if it is asked so."""
    packet = func.overloadpacket
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    there = any(isinstance(tensor, _There) for tensor in tensors)
    if there and packet not in _COPIES:
        indexed = packet in _INDEXING and isinstance(args[0], _There)
        for tensor in tensors:
            single = tensor.dim() == 0 and packet not in _JOINING  # which torch takes from the CPU nearly everywhere
            if not (isinstance(tensor, _There) or single or (indexed and not tensor.is_floating_point())):
                raise OtherDeviceError(
                    f"{packet.__name__} was given tensors of two devices: one of shape {tuple(tensor.shape)} is on the "
                    f"CPU, where the others are not"
                )
    device = kwargs.get("device")
    if device is not None:
        there = device == SECOND
        kwargs = {**kwargs, "device": CPU}
    ours = tree_map(lambda value: value.here if isinstance(value, _There) else value, (args, kwargs))
    result = func(*ours[0], **ours[1])
    if func._schema.name.endswith("_") and isinstance(args[0], Tensor):
        return args[0]
    if isinstance(kwargs.get("out"), _There):
        return kwargs["out"]
    if not there:
        return result
    return tree_map(lambda value: _There(value) if type(value) is Tensor else value, result)


class _Operations(TorchDispatchMode):
    """Sees what is made on the second device from no tensor at all."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Sees what torch does in C++ before any operation: it would lose the device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor):
            device = kwargs.pop("device", None)
            made = func(*args, **kwargs)
            return made if device is None else made.to(device)
        if func is Tensor.new_tensor and isinstance(args[0], _There):
            device = kwargs.pop("device", None)
            made = torch.tensor(args[1], dtype=kwargs.pop("dtype", args[0].dtype), **kwargs)
            return made.to(SECOND if device is None else device)
        if func is Tensor.tolist and isinstance(args[0], _There):
            return args[0].here.tolist()
        if func is Tensor.numpy and isinstance(args[0], _There):
            raise TypeError("a tensor on a device other than the CPU has no numpy array: call .cpu() first")
        return func(*args, **kwargs)


@contextmanager
def second_device() -> Iterator[torch.device]:
    """Have a second device for a while; modules and tensors go there by ``.to(device)``, and come back by ``.cpu()``.

    Modules that were moved there must not be used outside.
    """
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with _Functions(), _Operations():  # type: ignore[no-untyped-call]
            yield SECOND
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


@contextmanager
def _cuda() -> Iterator[torch.device]:
    yield torch.device("cuda", torch.cuda.current_device())


def other_devices() -> list[AbstractContextManager[torch.device]]:
    """Return the devices on which a component is tried, each for one ``with``: the second one, and CUDA if there is."""
    return [second_device(), *([_cuda()] if torch.cuda.is_available() else [])]
