"""The checks that all components share: a name, documentation, options."""

from __future__ import annotations

import inspect
import random
import tomllib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pydantic
import tomli_w
import torch
from torch import Tensor, nn

from interpkit.config.recipe import validated
from interpkit.errors import UsageError
from interpkit.interfaces.components import Options
from interpkit.interfaces.generation import Conditioner, ConditionSpec, Generator
from interpkit.interfaces.losses import InversionLoss
from interpkit.plugins.registry import NAME
from interpkit.testing import toy_models
from interpkit.testing.checks import COMPONENTS, Broken, class_of, expect, kind_of, promised

Build = Callable[[toy_models.Shape, int], Any]


def builder(cls: Any, options: Options | None = None) -> Build:
    """Return the function that builds a component for a shape of images and a number of classes."""
    if issubclass(cls, Conditioner):
        return lambda shape, count: cls(count, shape, options)
    if issubclass(cls, Generator):
        return lambda shape, count: cls(ConditionSpec(count, 1, 3), shape, options)
    if issubclass(cls, InversionLoss):
        return lambda shape, count: cls(toy_models.target_of(shape, count), options)
    return lambda shape, count: cls(options)


def one_of(cls: Any) -> Any:
    """Return a component, built for the first shape and number of classes that it accepts."""
    build = builder(cls)
    return build(*toy_models.home_of(build))


@promised(
    "builds",
    by=COMPONENTS,
    promise="it can be built with its default options for at least one of the classifiers tried, and refuses "
    "the others with a UsageError",
    remedy="accept the arguments of the base class and pass them to super().__init__(...); raise "
    "interpkit.UsageError, with what to do instead, for what it does not support; give every option a "
    "default",
)
def builds(cls: Any) -> None:
    """It can be built."""
    missing = ", ".join(sorted(getattr(cls, "__abstractmethods__", ())))
    expect(not missing, f"{cls.__name__} does not define: {missing}")
    build = builder(cls)
    toy_models.home_of(build)
    if kind_of(cls) in ("conditioner", "generator", "loss"):
        toy_models.settings_of(cls, build)


@promised(
    "named",
    by=(*COMPONENTS, "loader"),
    promise="it has a name of its own that is easy to type: lower case letters, digits, - and _",
    remedy="write name = 'my-name' in the class",
)
def named(component: Any) -> None:
    """It has a name."""
    cls = class_of(component)
    name = getattr(cls, "name", None)
    expect(isinstance(name, str) and NAME.fullmatch(name), f"its name is {name!r}")
    theirs = next((base for base in cls.__mro__[1:] if base.__dict__.get("name") == name), None)
    expect(theirs is None, f"it has the name {name!r} from {getattr(theirs, '__name__', '')}")


@promised(
    "documented",
    by=(*COMPONENTS, "loader", "target"),
    promise="its class has a docstring of its own, which `interpkit plugins show` prints",
    remedy="describe what it does in the class's docstring, with the formula, ranges and source",
)
def documented(component: Any) -> None:
    """It has a docstring."""
    cls = class_of(component)
    expect((cls.__dict__.get("__doc__") or "").strip(), f"{cls.__name__} has none")


@promised(
    "options-declared",
    by=COMPONENTS,
    promise="its Options are a subclass of interpkit.Options, and every default passes the option's own validation",
    remedy="write class Options(interpkit.Options): in the class, each option with a default within its bounds",
)
def options_declared(cls: Any) -> None:
    """Options are declared."""
    options = cls.Options
    expect(
        inspect.isclass(options) and issubclass(options, Options),
        f"Options is {options!r}, not a subclass of interpkit.Options",
    )
    for name, field in options.model_fields.items():
        expect(not field.is_required(), f"the option {name!r} has no default")
    defaults = {name: field.get_default(call_default_factory=True) for name, field in options.model_fields.items()}
    try:
        options.model_validate(defaults)
    except pydantic.ValidationError as error:
        raise Broken(f"the defaults are invalid: {_first(error)}") from error


@promised(
    "options-strict",
    by=COMPONENTS,
    promise="an option that it does not have is refused, so that a misspelled option is an error",
    remedy="keep extra='forbid' in the model_config of Options, as in interpkit.Options",
)
def options_strict(cls: Any) -> None:
    """Unknown options are refused."""
    if not _declared(cls):
        return  # the check options-declared reports it
    try:
        validated(cls.Options, {"no_such_option": 1}, "it")
    except UsageError:
        return
    raise Broken("no_such_option = 1 is accepted")


@promised(
    "options-documented",
    by=COMPONENTS,
    promise="every option has a description, for `interpkit plugins show`",
    remedy="write Field(default, description='...') for each option, with the unit or range where it has one",
)
def options_documented(cls: Any) -> None:
    """Options are documented."""
    if not _declared(cls):
        return
    silent = [name for name, field in cls.Options.model_fields.items() if not (field.description or "").strip()]
    expect(not silent, f"without a description: {', '.join(silent)}")


@promised(
    "options-in-recipe",
    by=COMPONENTS,
    promise="its options survive in a recipe: written as TOML and read again, they are the same",
    remedy="use numbers, strings, and lists and tables of them; an option that may be None must default to "
    "None, which TOML cannot write",
)
def options_in_recipe(cls: Any) -> None:
    """Options survive TOML."""
    if not _declared(cls):
        return
    options = cls.Options()
    values = options.model_dump(mode="json", exclude_none=True)
    try:
        again = cls.Options.model_validate(tomllib.loads(tomli_w.dumps(values)))
    except pydantic.ValidationError as error:
        raise Broken(f"the TOML that was written is refused: {_first(error)}") from error
    expect(again == options, f"{options!r} comes back as {again!r}")


@promised(
    "options-kept",
    by=COMPONENTS,
    promise="`options` holds the options that it was built with, or the defaults if there were none",
    remedy="pass options to super().__init__(..., options), and read self.options",
)
def options_kept(cls: Any) -> None:
    """Options are kept."""
    if not _declared(cls):
        return
    given = cls.Options()
    expect(one_of_with(cls, given).options is given, "`options` is not the object that was passed")
    expect(one_of(cls).options == cls.Options(), "`options` are not the defaults if none were passed")


def one_of_with(cls: Any, options: Options) -> Any:
    """Return a component with some options."""
    build = builder(cls, options)
    return build(*toy_models.home_of(build))


def _declared(cls: Any) -> bool:
    return inspect.isclass(cls.Options) and issubclass(cls.Options, Options)


def _first(error: pydantic.ValidationError) -> str:
    fault = error.errors()[0]
    return f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}, not {fault['input']!r}"


# ------------------------------------------------------------------------------- helpers of the checks


def random_states() -> dict[str, Any]:
    """Return the state of each global generator of random numbers."""
    _, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": (np.asarray(keys).tobytes(), rest),
        "Python": random.getstate(),
    }


def expect_untouched(before: Mapping[str, Any]) -> None:
    """Raise `Broken` if the state of a global generator has changed."""
    after = random_states()
    moved = [name for name in before if before[name] != after[name]]
    expect(not moved, f"the global random state of {' and '.join(moved)} was changed")


def with_seed(seed: int, act: Callable[[], Any]) -> Any:
    """Return a call's result under a seed of torch's global generator; the other generators get random seeds."""
    others = torch.randint(2**31, ()).item()
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        random.seed(others)
        np.random.seed(int(others))
        return act()


def same(one: Any, other: Any, *, tolerance: float = 0.0) -> bool:
    """Return whether two tensors, or collections of them, are the same."""
    if isinstance(one, Tensor):
        if not isinstance(other, Tensor) or one.shape != other.shape or one.dtype != other.dtype:
            return False
        return torch.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)
    if isinstance(one, Mapping):
        return isinstance(other, Mapping) and same(list(one.items()), list(other.items()), tolerance=tolerance)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b, tolerance=tolerance) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def expect_gradients(module: nn.Module, what: str) -> None:
    """Raise `Broken` unless every parameter of a module has a finite gradient."""
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            expect(parameter.grad is not None, f"the parameter {name!r} gets no gradient {what}")
            assert parameter.grad is not None
            expect(parameter.grad.isfinite().all(), f"the gradient of the parameter {name!r} is not finite {what}")


def expect_images(images: Any, shape: toy_models.Shape, count: int, where: str) -> None:
    """Raise `Broken` unless these are (count, *shape) floats in [0, 1]."""
    expect(isinstance(images, Tensor), f"{type(images).__name__} instead of a tensor, {where}")
    expect(images.shape == (count, *shape), f"shape {tuple(images.shape)} instead of {(count, *shape)}, {where}")
    expect(images.is_floating_point(), f"images of {images.dtype}, {where}")


def expect_unit(images: Tensor, where: str) -> None:
    """Raise `Broken` unless all values are in [0, 1]."""
    low, high = images.min().item(), images.max().item()
    expect(images.isfinite().all(), f"values that are not finite, {where}")
    expect(low >= 0 and high <= 1, f"values from {low:g} to {high:g}, {where}")


def expect_on(device: torch.device, **tensors: Tensor | None) -> None:
    """Raise `Broken` unless all tensors are on the device."""
    for name, tensor in tensors.items():
        if tensor is not None:
            expect(tensor.device == device, f"{name} is on {tensor.device}, but everything else is on {device}")
