"""Checks of components, and their outcomes."""

from __future__ import annotations

import importlib
import inspect
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from interpkit.errors import PluginError, UsageError, a, did_you_mean, listed, with_place
from interpkit.interfaces.contracts import KINDS, module_of
from interpkit.interfaces.targets import Target

COMPONENTS = ("conditioner", "generator", "loss", "inverter", "metric", "attribution", "audit")
"""The kinds that have `Options`."""
MODULES = (
    *("components", "conditioners", "generators", "losses"),
    *("inverters", "metrics", "attributions", "audits", "targets"),
)
"""The modules of the checks; some import `parts`, which has more."""
LONGEST = 1000
"""Characters of an error that are shown."""
PREREQUISITE = "builds"
"""The check that must pass for the others to run."""
only_importing = False
"""Whether a script runs only so that this process has its classes: then no check of it runs again."""


class Broken(Exception):  # noqa: N818  # for raise Broken("...")
    """A component violates the contract; the message says what was found."""


def expect(kept: object, seen: str) -> None:
    """Raise `Broken` with what was found, unless the contract is satisfied."""
    if not kept:
        raise Broken(seen)


@dataclass(frozen=True)
class Outcome:
    """The outcome of one check.

    Attributes:
        check: the check.
        status: ``kept``, ``broken``, ``waived``, or ``unchecked`` where the component cannot be built at all.
        detail: what was found if it is broken, the reason if it is waived.
    """

    check: Check
    status: Literal["kept", "broken", "waived", "unchecked"]
    detail: str = ""


class CheckFailed(AssertionError):  # noqa: N818  # what pytest shows; reads as what it says
    """A component violates the contract of its interface.

    Args:
        component: the component that was checked.
        broken: the checks that failed.

    Attributes:
        broken: the checks that failed.
    """

    def __init__(self, component: Any, broken: Sequence[Outcome]) -> None:
        self.broken = list(broken)
        lines = [f"the {kind_of(component)} {label_of(component)!r} violates the contract of its interface:"]
        for outcome in broken:
            lines += [
                f"  {outcome.check.name}: {outcome.check.promise}.",
                f"    seen: {outcome.detail}",
                f"    mend: {outcome.check.remedy}.",
            ]
        super().__init__("\n".join(lines))


@dataclass(frozen=True)
class Check:
    """The check of one promise of an interface: ``check(component)``.

    Attributes:
        name: to waive it by.
        promise: what the interface promises, a sentence without its period.
        remedy: how to fix a component that fails, likewise.
        verify: function of the component; raises if the check fails.
    """

    name: str
    promise: str
    remedy: str
    verify: Callable[[Any], None]

    def __call__(self, component: Any) -> None:
        """Check a component.

        Raises:
            CheckFailed: the check failed.
        """
        outcome = self.outcome(component)
        if outcome.status == "broken":
            raise CheckFailed(component, [outcome])

    def outcome(self, component: Any) -> Outcome:
        """Return whether the check passes, and if not, what was found; the process's random states are unchanged."""
        if only_importing:
            return Outcome(self, "kept")
        try:
            with _as_before():
                self.verify(component)
        except Broken as fault:
            return Outcome(self, "broken", str(fault))
        except (Exception, SystemExit) as error:  # whatever the component raises
            return Outcome(self, "broken", _told(error, component))
        return Outcome(self, "kept")


@contextmanager
def _as_before() -> Iterator[None]:
    """Seed the global generators of torch, numpy and Python, and restore them afterwards."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([]), torch.enable_grad():
            torch.manual_seed(0)
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


def _told(error: BaseException, component: Any) -> str:
    """Return an error as one line, with the place in the component's own code if it comes from there."""
    said = str(error) if isinstance(error, PluginError) else with_place(error, module_of(component))
    line = " ".join(said.split()) or type(error).__name__
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."


_CHECKS: dict[str, list[Check]] = {}


def promised(by: str | Sequence[str], remedy: str) -> Callable[[Any], Any]:
    """Return a decorator that registers a function as a check of its own name, whose docstring is the promise.

    Args:
        by: the kinds of component that promise it.
        remedy: how to fix a component that fails, a sentence without its period.
    """

    def add(verify: Callable[[Any], None]) -> Callable[[Any], None]:
        said = " ".join((verify.__doc__ or "").split()).removesuffix(".")
        check = Check(verify.__name__.replace("_", "-"), said[:1].lower() + said[1:], remedy, verify)
        for kind in (by,) if isinstance(by, str) else by:
            _CHECKS.setdefault(kind, []).append(check)
        return verify

    return add


def kind_of(component: Any) -> str:
    """Return the kind of a component's class, of a loader, or of a target: ``loss``, say.

    Raises:
        UsageError: it is of no kind that has checks.
    """
    if isinstance(component, Target):
        return "target"
    cls = class_of(component)
    kind = next((kind for kind in (*COMPONENTS, "loader") if issubclass(cls, KINDS[kind])), None)
    if kind is None or not (inspect.isclass(component) or kind == "loader"):
        raise UsageError(
            f"{component!r} cannot be checked: pass a class of {listed([*COMPONENTS, 'loader'])}, or a target that is "
            f"made."
        )
    return kind


def label_of(component: Any) -> str:
    """Return the label of a component: its name, or else its class's."""
    return str(getattr(component, "name", class_of(component).__name__))


def checks_of(component: Any) -> list[Check]:
    """Return the checks of a component, in the order in which they are run.

    Args:
        component: the class of a conditioner, generator, loss, inverter, metric, attribution, audit or loader; or a
            target.

    Raises:
        UsageError: it is of no kind that has checks.

    Example:
        >>> from interpkit import testing
        >>> from interpkit_losses import CrossEntropy
        >>> check = next(check for check in testing.checks_of(CrossEntropy) if check.name == "batch-mean")
        >>> check(CrossEntropy)  # raises CheckFailed if the loss violates the contract
    """
    return checks_of_kind(kind_of(component))


def checks_of_kind(kind: str) -> list[Check]:
    """Return the checks of a kind, in the order in which they are run."""
    for module in MODULES:
        importlib.import_module(f"interpkit.testing.{module}")
    return sorted(_CHECKS.get(kind, []), key=lambda check: check.name != PREREQUISITE)


def waivers_of(component: Any, waive: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the checks that are waived for a component, each with its reason: its own ``waivers``, then these.

    Raises:
        UsageError: there is no such check, or a reason is empty.
    """
    waived = {**getattr(component, "waivers", {}), **(waive or {})}
    known = [check.name for check in checks_of(component)]
    for name, reason in waived.items():
        if name not in known:
            raise UsageError(
                f"there is no check {name!r} of {a(kind_of(component))} to waive.{did_you_mean(name, known)} "
                f"There are: {listed(known, len(known))}."
            )
        if not isinstance(reason, str) or not reason.strip():
            raise UsageError(f"the waiver of {name!r} needs a reason, such as {name!r}: 'why it does not apply here'.")
    return waived


def outcomes(component: Any, waive: Mapping[str, str] | None = None) -> Iterator[Outcome]:
    """Run all checks of a component, and yield each outcome as soon as it is known.

    Args:
        component: as for `checks_of`.
        waive: checks to skip, each with its reason, in addition to the component's ``waivers``.

    Raises:
        UsageError: its kind has no checks, or a waiver names no check or has no reason.

    Example:
        >>> from torch import nn
        >>> from interpkit import testing, wrap
        >>> target = wrap(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), input_shape=(1, 8, 8))
        >>> {outcome.status for outcome in testing.outcomes(target)}
        {'kept'}
    """
    waived = waivers_of(component, waive)
    unbuilt = False
    for check in checks_of(component):
        if check.name in waived:
            yield Outcome(check, "waived", waived[check.name])
        elif unbuilt:
            yield Outcome(check, "unchecked")
        else:
            outcome = check.outcome(component)
            unbuilt = outcome.status == "broken" and check.name == PREREQUISITE
            yield outcome


def class_of(component: Any) -> type:
    """Return the class of a component that may be an instance, as a loader is in the registry."""
    return component if inspect.isclass(component) else type(component)
