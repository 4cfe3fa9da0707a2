"""Calls of plugins' components: a fault is told with its maker, and what comes back is held to the interfaces.

Types, shapes and devices are looked at on each call, which waits for no device; whether values are finite and in
range is looked at where they are read anyway, by `interpkit.recorder`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from interpkit.devices import is_out_of_memory
from interpkit.ensemble import Ensemble
from interpkit.errors import InterpkitError, PluginError, told
from interpkit.interfaces import (
    Condition,
    Conditioner,
    ConditionSpec,
    GeneratedBatch,
    Generator,
    InversionBatch,
    InversionLoss,
    Target,
)


def described(component: object) -> str:
    """Return what a component, or its class, is and whose: ``the loss 'tv' of the plugin 'losses'``."""
    from interpkit.plugins import installed
    from interpkit.registry import KINDS

    if isinstance(component, Ensemble):
        component = component.members[0]
    cls = component if inspect.isclass(component) else type(component)
    entry = next((entry for entry in installed().registry.entries() if entry.item is cls), None)
    if entry is not None:
        return f"the {entry.kind} {entry.name!r} of the plugin {entry.owner!r}"
    kind = next((kind for kind, base in KINDS.items() if issubclass(cls, base)), "object")
    return f"the {kind} {getattr(cls, 'name', '')!r} ({cls.__module__}.{cls.__qualname__})"


@contextmanager
def blamed(component: object) -> Iterator[None]:
    """Turn whatever is raised in this block into an error that names the component, its plugin and the place.

    Errors of interpkit's own pass, and so does a device's being out of memory: that is nobody's fault.

    Raises:
        PluginError: something else was raised.
    """
    try:
        yield
    except InterpkitError:
        raise
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):
            raise
        cls = component if inspect.isclass(component) else type(component)
        module = cls.__module__.partition(".")[0]
        raise PluginError(f"{described(component)} failed: {told(error, module)}") from error


def _broken(component: object, promise: str, seen: str) -> PluginError:
    return PluginError(f"{described(component)} broke a promise of its interface: {promise}, not {seen}.")


def _check(
    component: object,
    what: str,
    value: Any,
    shape: tuple[int, ...],
    device: torch.device,
    dtypes: str = "floating point",
) -> None:
    """See that a value is a tensor of the shape, the device and the kind of numbers that the interface promises.

    Raises:
        PluginError: it is not.
    """
    if not isinstance(value, Tensor):
        raise _broken(component, f"{what} is a tensor", type(value).__name__)
    if value.shape != shape:
        raise _broken(component, f"{what} has the shape {shape}", str(tuple(value.shape)))
    if value.device != device:
        raise _broken(component, f"{what} is on the device {device}", str(value.device))
    if not (value.dtype == torch.int64 if dtypes == "int64" else value.is_floating_point()):
        raise _broken(component, f"{what} is {dtypes}", str(value.dtype))


def spec(conditioner: Conditioner) -> ConditionSpec:
    """Return a conditioner's `ConditionSpec`.

    Raises:
        PluginError: it has none.
    """
    with blamed(conditioner):
        value = conditioner.spec
    if not isinstance(value, ConditionSpec):
        raise _broken(conditioner, "spec is a ConditionSpec", type(value).__name__)
    return value


def latent_dim(generator: Generator) -> int:
    """Return a generator's ``latent_dim``.

    Raises:
        PluginError: it has none.
    """
    value = getattr(generator, "latent_dim", None)
    if not isinstance(value, int) or value < 0:
        raise _broken(generator, "latent_dim is a number, which __init__ sets", repr(value))
    return value


def layers(loss: InversionLoss, target: Target) -> list[str]:
    """Return the layers that a loss reads.

    Raises:
        PluginError: it fails, or what it returns is no list of names.
    """
    with blamed(loss):
        names = loss.layers(target)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _broken(loss, "layers(target) returns a list of names", repr(names))
    return names


def condition(conditioner: Conditioner, count: int, labels: Tensor | None, rng: torch.Generator | None) -> Condition:
    """Draw ``count`` conditions; see `Conditioner.sample`.

    Raises:
        PluginError: it fails, or what it returns is no condition for so many images.
    """
    with blamed(conditioner):
        drawn = conditioner.sample(count, labels=labels, rng=rng)
    if not isinstance(drawn, Condition):
        raise _broken(conditioner, "sample returns a Condition", type(drawn).__name__)
    device = conditioner.device
    _check(conditioner, "Condition.labels", drawn.labels, (count,), device, "int64")
    _check(conditioner, "Condition.distribution", drawn.distribution, (count, conditioner.num_classes), device)
    _check(conditioner, "Condition.vector", drawn.vector, (count, conditioner.spec.vector_dim), device)
    return drawn


def images(generator: Generator, latent: Tensor, condition: Condition, *made_by: Tensor) -> Tensor:
    """Make images, (B, *input_shape) float32; see `Generator.forward`.

    Raises:
        PluginError: it fails, or what it returns are not so many images.
    """
    with blamed(generator):
        made: Tensor = generator(latent, condition, *made_by)
    _check(generator, "forward's images", made, (len(latent), *generator.input_shape), latent.device)
    return made.float()


def views(loss: InversionLoss, batch: GeneratedBatch, rng: torch.Generator) -> Tensor | None:
    """Return the extra images that a loss asks for; see `InversionLoss.views`.

    Raises:
        PluginError: it fails, or what it returns are no images.
    """
    with blamed(loss):
        asked = loss.views(batch, rng)
    if asked is not None:
        count = len(asked) if isinstance(asked, Tensor) and asked.dim() else 0
        _check(loss, "views's images", asked, (count, *batch.images.shape[1:]), batch.images.device)
    return asked


def term(loss: InversionLoss, batch: InversionBatch) -> Tensor:
    """Return a term of the objective, a scalar; see `InversionLoss.forward`.

    Raises:
        PluginError: it fails, or what it returns is no scalar.
    """
    with blamed(loss):
        value: Tensor = loss(batch)
    _check(loss, "forward's value", value, (), batch.images.device)
    return value
