"""Fixtures for the bundled plugins: small targets, handmade batches, and memory limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from interpkit import Condition, GeneratedBatch, InversionBatch, Response, Target, wrap


@pytest.fixture(scope="session")
def rng() -> Callable[[int], torch.Generator]:
    """Return a maker of seeded random generators: ``rng(3)``."""
    return lambda seed: torch.Generator().manual_seed(seed)


@pytest.fixture(scope="session")
def linear_target() -> Callable[..., Target]:
    """Return a maker of two-class linear targets: the logits are (w.x, -w.x), so the optimal attack is known."""

    def make(shape: tuple[int, ...] = (3, 4, 4), size: float = 0.1) -> Target:
        features = torch.Size(shape).numel()
        weights = size * torch.randn(features, generator=torch.Generator().manual_seed(5))
        net = nn.Sequential(nn.Flatten(), nn.Linear(features, 2, bias=False))
        net[1].weight.data = torch.stack([weights, -weights])
        return wrap(net, shape)

    return make


@pytest.fixture(scope="session")
def batch_of(linear_target: Callable[..., Target]) -> Callable[..., InversionBatch]:
    """Return a maker of batches with only the fields that a term needs: ``batch_of(logits=..., labels=...)``."""

    def make(
        *,
        logits: Tensor | None = None,
        distribution: Tensor | None = None,
        labels: Tensor | None = None,
        images: Tensor | None = None,
        features: dict[str, Tensor] | Tensor | None = None,
        view_logits: Tensor | None = None,
        target: Target | None = None,
    ) -> InversionBatch:
        by_layer = features if isinstance(features, dict) else {} if features is None else {"default": features}
        given = (logits, distribution, labels, images, *by_layer.values())
        count = next(len(tensor) for tensor in given if tensor is not None)
        nothing = torch.zeros(count, 0)
        by_layer = {"default": nothing} | by_layer
        labels = torch.zeros(count, dtype=torch.int64) if labels is None else labels
        return InversionBatch(
            target=linear_target() if target is None else target,
            condition=Condition(labels, nothing if distribution is None else distribution, nothing),
            latent=nothing,
            images=nothing if images is None else images,
            progress=0.0,
            response=Response(nothing if logits is None else logits, by_layer, "default"),
            view_response=None if view_logits is None else Response(view_logits, {}, "default"),
        )

    return make


@pytest.fixture(scope="session")
def generated() -> Callable[[Target, Tensor, Tensor], GeneratedBatch]:
    """Return a maker of generated batches: ``generated(target, images, labels)``."""

    def make(target: Target, images: Tensor, labels: Tensor) -> GeneratedBatch:
        one_hot = torch.nn.functional.one_hot(labels, target.num_classes).float()
        return GeneratedBatch(target, Condition(labels, one_hot, one_hot), torch.zeros(len(images), 1), images, 0.0)

    return make


class _Allocations(TorchDispatchMode):
    """Adds up the bytes of all tensors that operations return, freed or not: an upper bound for the peak."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.total += tensor.numel() * tensor.element_size()
        return result


@pytest.fixture
def allocations() -> type[_Allocations]:
    """Return a context manager that counts the bytes of tensors: ``with allocations() as a: ... a.total``."""
    return _Allocations


class TooMuchError(BaseException):
    """A file made something grow beyond the limit; ``except Exception`` does not catch this."""


class _NoLargeTensors(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        on_meta = str((kwargs or {}).get("device", "")) == "meta"
        if str(func).startswith(("aten.full.", "aten.empty.", "aten.zeros.")) and not on_meta:
            elements = 1
            for size in args[0]:
                elements *= size
            if elements > 100_000_000:
                raise TooMuchError(f"{func} of {tuple(args[0])}")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def modest() -> Callable[[], AbstractContextManager[None]]:
    """Return a context that forbids tensors of 100 million numbers and 50,000 modules."""

    @contextmanager
    def limits() -> Iterator[None]:
        count = 0

        def counted(*_: Any) -> None:
            nonlocal count
            count += 1
            if count > 50_000:
                raise TooMuchError("more than 50,000 modules")

        handle = nn.modules.module.register_module_module_registration_hook(counted)
        try:
            with _NoLargeTensors():  # type: ignore[no-untyped-call]
                yield
        finally:
            handle.remove()

    return limits
