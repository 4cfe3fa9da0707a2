"""The checks that all components share: a name, documentation, options."""

from __future__ import annotations

import inspect
import random
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pydantic
import tomli_w
import torch
from torch import Tensor

from interpkit.config.recipe import validated
from interpkit.errors import UsageError
from interpkit.interfaces.components import Options
from interpkit.interfaces.generation import Conditioner, ConditionSpec, Generator
from interpkit.interfaces.inversions import Inversion
from interpkit.interfaces.losses import InversionLoss
from interpkit.interfaces.targets import Target
from interpkit.plugins.registry import NAME
from interpkit.testing import toy_models
from interpkit.testing.checks import COMPONENTS, Broken, class_of, expect, kind_of, promised

Build = Callable[[toy_models.Shape, int], Any]


def builder(cls: Any, options: Options | None = None) -> Build:
    """Return the function that builds a component for a shape of images and a number of classes."""
    if issubclass(cls, Conditioner):
        return lambda shape, count: cls(count, shape, options)
    if issubclass(cls, Generator):
        return lambda shape, count: generator_of(cls, ConditionSpec(count, 1, 3), shape, options)
    if issubclass(cls, InversionLoss):
        return lambda shape, count: loss_of(cls, toy_models.target_of(shape, count), options)
    return lambda shape, count: cls(options)


def loss_of(cls: type[InversionLoss], target: Target, options: Options | None = None) -> InversionLoss:
    """Return a loss for a target; one that reads images gets toy images unless there are options."""
    with toy_models.data_for(cls, target.input_shape, target.num_classes) as data:
        return cls(target, cls.Options(**data) if data and options is None else options)


def generator_of(
    cls: type[Generator], spec: ConditionSpec, shape: toy_models.Shape, options: Options | None = None
) -> Generator:
    """Return a generator; one that reads images gets toy images of three classes unless there are options."""
    with toy_models.data_for(cls, shape, 3) as data:
        return cls(spec, shape, cls.Options(**data) if data and options is None else options)


@contextmanager
def prepared(cls: Any, target: Target, **short: int) -> Iterator[Any]:
    """Give a component that is built from options alone, with toy images to read while the block runs.

    Args:
        cls: the class of a metric, an attribution or an audit.
        target: the classifier whose images it reads.
        short: values of options such as ``steps``, where it has them.
    """
    with toy_models.data_for(cls, target.input_shape, target.num_classes) as data:
        yield one_of(cls, cls.Options(**data, **toy_models.shortest(cls, **short)))


def one_of(cls: Any, options: Options | None = None) -> Any:
    """Return a component, built for the first shape and number of classes that it accepts."""
    return next(toy_models.accepted(builder(cls, options), toy_models.HOMES))[-1]


@promised(
    COMPONENTS,
    "accept the arguments of the base class and pass them to super().__init__(...); raise interpkit.UsageError, with "
    "what to do instead, for what it does not support; give every option a default",
)
def builds(cls: Any) -> None:
    """It can be built with its default options for some classifier, and refuses the others with a UsageError."""
    missing = ", ".join(sorted(getattr(cls, "__abstractmethods__", ())))
    expect(not missing, f"{cls.__name__} does not define: {missing}")
    one_of(cls)
    if kind_of(cls) in ("conditioner", "generator", "loss"):
        list(toy_models.settings_of(builder(cls)))


@promised((*COMPONENTS, "loader"), "write name = 'my-name' in the class")
def named(component: Any) -> None:
    """It has a name of its own that is easy to type: lower case letters, digits, - and _."""
    cls = class_of(component)
    name = getattr(cls, "name", None)
    expect(isinstance(name, str) and NAME.fullmatch(name), f"its name is {name!r}")
    theirs = [base.__name__ for base in cls.__mro__[1:] if base.__dict__.get("name") == name]
    expect(not theirs, f"it has the name {name!r} from {theirs[:1]}")


@promised((*COMPONENTS, "loader", "target"), "describe it in the class's docstring, with formula, ranges and source")
def documented(component: Any) -> None:
    """Its class has a docstring of its own, which `interpkit plugins show` prints."""
    cls = class_of(component)
    expect((cls.__dict__.get("__doc__") or "").strip(), f"{cls.__name__} has none")


@promised(COMPONENTS, "write class Options(interpkit.Options): in the class, and give each option a valid default")
def options_declared(cls: Any) -> None:
    """Its Options are a subclass of interpkit.Options, and every default passes the option's own validation."""
    expect(_declared(cls), f"Options is {cls.Options!r}, not a subclass of interpkit.Options")
    fields = cls.Options.model_fields
    for name, field in fields.items():
        expect(not field.is_required(), f"the option {name!r} has no default")
    with _valid("the defaults are invalid"):
        cls.Options.model_validate({n: field.get_default(call_default_factory=True) for n, field in fields.items()})


@promised(COMPONENTS, "keep extra='forbid' in the model_config of Options, as in interpkit.Options")
def options_strict(cls: Any) -> None:
    """An option that it does not have is refused, so that a misspelled option is an error."""
    if _declared(cls):
        with expect_refusal(UsageError, "no_such_option = 1 is accepted"):
            validated(cls.Options, {"no_such_option": 1}, "it")


@promised(COMPONENTS, "write Field(default, description='...') for each option, with its unit or range")
def options_documented(cls: Any) -> None:
    """Every option has a description, for `interpkit plugins show`."""
    if _declared(cls):
        silent = [name for name, field in cls.Options.model_fields.items() if not (field.description or "").strip()]
        expect(not silent, f"without a description: {', '.join(silent)}")


@promised(
    COMPONENTS,
    "use numbers, strings, and lists and tables of them; an option that may be None must default to None, which TOML "
    "cannot write",
)
def options_in_recipe(cls: Any) -> None:
    """Its options survive in a recipe: written as TOML and read again, they are the same."""
    if _declared(cls):
        options = cls.Options()
        text = tomli_w.dumps(options.model_dump(mode="json", exclude_none=True))
        with _valid("the TOML that was written is refused"):
            again = cls.Options.model_validate(tomllib.loads(text))
        expect(again == options, f"{options!r} comes back as {again!r}")


@promised(COMPONENTS, "pass options to super().__init__(..., options), and read self.options")
def options_kept(cls: Any) -> None:
    """`options` holds the options that it was built with, or the defaults if there were none."""
    if _declared(cls):
        shape, count, usual = next(toy_models.accepted(builder(cls), toy_models.HOMES))
        with toy_models.data_for(cls, shape, count) as data:
            given = cls.Options(**data)
            kept = builder(cls, given)(shape, count).options
        expect(kept is given, "`options` is not the object that was passed")
        known = usual.options.model_copy(update=data)  # each build reads a file of its own
        expect(known == given, "`options` are not the defaults if none were passed")


def _declared(cls: Any) -> bool:
    """Return whether a component's options are `Options`; where they are not, options-declared reports it alone."""
    return inspect.isclass(cls.Options) and issubclass(cls.Options, Options)


@contextmanager
def _valid(what: str) -> Iterator[None]:
    try:
        yield
    except pydantic.ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise Broken(f"{what}: {place}: {fault['msg']}, not {fault['input']!r}") from error


# ------------------------------------------------------------------------------- helpers of the checks


@contextmanager
def expect_refusal(error: type[Exception], seen: str) -> Iterator[None]:
    """Raise `Broken` unless the block raises an error of this type."""
    with suppress(error):
        yield
        raise Broken(seen)


@contextmanager
def expect_no_draws(*libraries: str) -> Iterator[None]:
    """Raise `Broken` if the block changes the global random state of these libraries, or of any if none is named."""
    before = _random_states()
    yield
    after = _random_states()
    moved = [name for name in libraries or before if before[name] != after[name]]
    expect(not moved, f"the global random state of {' and '.join(moved)} was changed")


def _random_states() -> dict[str, Any]:
    _, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": (np.asarray(keys).tobytes(), rest),
        "Python": random.getstate(),
    }


@contextmanager
def expect_unchanged(target: Target, said: str = "changed") -> Iterator[None]:
    """Raise `Broken` if the block changes anything of a target: parameters, buffers, modes, hooks, requires_grad."""
    before = _state_of(target)
    yield
    after = _state_of(target)
    changed = [what for what in before if before[what] != after[what]]
    expect(not changed, f"{said}: {', '.join(changed)}")


def _state_of(target: Target) -> dict[str, Any]:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    tensors = [*target.named_parameters(), *target.named_buffers()]
    return {
        "mode (train or eval) of a layer": [part.training for part in target.modules()],
        "requires_grad of a parameter": [p.requires_grad for p in target.parameters()],
        "gradient of a parameter": [p.grad is None for p in target.parameters()],
        "identity of a parameter or buffer": [(name, id(tensor)) for name, tensor in tensors],
        "value of a parameter or buffer": [tensor.detach().cpu().numpy().tobytes() for _, tensor in tensors],
        "hooks of a layer": [list(getattr(part, hook).values()) for part in target.modules() for hook in hooks],
        "attributes of a layer": [sorted(vars(part)) for part in target.modules()],
    }


def with_seed(seed: int, act: Callable[[], Any]) -> Any:
    """Return a call's result under a seed of torch's global generator; the other generators get random seeds."""
    others = int(torch.randint(2**31, ()))
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        random.seed(others)
        np.random.seed(others)
        return act()


def same(one: Any, other: Any, *, tolerance: float = 0.0) -> bool:
    """Return whether two tensors, or collections of them, are the same."""
    try:
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)
    except AssertionError:
        return False
    return True


def expect_unit(images: Tensor, where: str) -> None:
    """Raise `Broken` unless all values are in [0, 1]."""
    low, high = images.min().item(), images.max().item()
    expect(images.isfinite().all(), f"values that are not finite, {where}")
    expect(low >= 0 and high <= 1, f"values from {low:g} to {high:g}, {where}")


def expect_on(device: torch.device, **tensors: Tensor) -> None:
    """Raise `Broken` unless all tensors are on the device."""
    for name, tensor in tensors.items():
        expect(tensor.device == device, f"{name} is on {tensor.device}, but everything else is on {device}")


def expect_learned(inversion: Inversion) -> None:
    """Raise `Broken` unless the loss fell and the target assigns most images to the requested class."""
    first, last = inversion.history[0], inversion.history[-1]
    expect(last.loss < first.loss, f"the loss went from {first.loss:.4g} to {last.loss:.4g}")
    expect(
        last.inversion_accuracy >= 0.6,
        f"inversion accuracy {last.inversion_accuracy:.0%} at step {last.step}, of {inversion.target.num_classes} "
        f"classes",
    )
