"""All checks of a component at once, and as cases of pytest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from interpkit.errors import UsageError
from interpkit.interfaces.attributions import Attribution
from interpkit.interfaces.generation import Conditioner, Generator
from interpkit.interfaces.inverters import Inverter
from interpkit.interfaces.loaders import Loader
from interpkit.interfaces.losses import InversionLoss
from interpkit.interfaces.metrics import Metric
from interpkit.interfaces.targets import Target
from interpkit.testing.checks import check_all, checks_of, label_of, waivers_of

if TYPE_CHECKING:
    import pytest

Waivers = Mapping[str, str]
"""Names of checks, each with the reason why it does not apply."""


def check_conditioner(cls: type[Conditioner], *, waive: Waivers | None = None) -> None:
    """Check all promises of a conditioner; see `interpkit.Conditioner`.

    Args:
        cls: the class.
        waive: checks that are not run, each with its reason.

    Raises:
        CheckFailed: promises are broken; lists each with what was seen and how to mend it.
        UsageError: it is no conditioner, or a waiver names no check or gives no reason.
    """
    check_all(cls, "conditioner", waive)


def check_generator(cls: type[Generator], *, waive: Waivers | None = None) -> None:
    """Check all promises of a generator; see `interpkit.Generator`, and `check_conditioner` for the rest."""
    check_all(cls, "generator", waive)


def check_loss(cls: type[InversionLoss], *, waive: Waivers | None = None) -> None:
    """Check all promises of an inversion loss; see `interpkit.InversionLoss`, and `check_conditioner` for the rest."""
    check_all(cls, "loss", waive)


def check_inverter(cls: type[Inverter], *, waive: Waivers | None = None) -> None:
    """Check all promises of an inverter; see `interpkit.Inverter`, and `check_conditioner` for the rest."""
    check_all(cls, "inverter", waive)


def check_metric(cls: type[Metric], *, waive: Waivers | None = None) -> None:
    """Check all promises of a metric; see `interpkit.Metric`, and `check_conditioner` for the rest."""
    check_all(cls, "metric", waive)


def check_attribution(cls: type[Attribution], *, waive: Waivers | None = None) -> None:
    """Check all promises of an attribution; see `interpkit.Attribution`, and `check_conditioner` for the rest."""
    check_all(cls, "attribution", waive)


def check_loader(cls: type[Loader], *, waive: Waivers | None = None) -> None:
    """Check all promises of a loader, and of the target that it makes of its `Loader.example`.

    See `interpkit.Loader`, and `check_conditioner` for the rest.

    Example:
        >>> from interpkit import testing
        >>> from interpkit_targets import SafetensorsLoader
        >>> testing.check_loader(SafetensorsLoader)
    """
    check_all(cls, "loader", waive)


def check_target(target: Target, *, waive: Waivers | None = None) -> None:
    """Check all promises of a target; see `interpkit.Target`, and `check_conditioner` for the rest.

    Example:
        >>> from torch import nn
        >>> from interpkit import testing, wrap
        >>> testing.check_target(wrap(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), input_shape=(1, 8, 8)))
    """
    check_all(target, "target", waive)


def parametrize_with_checks(components: Iterable[Any], *, waive: Waivers | None = None) -> pytest.MarkDecorator:
    """Return a decorator that runs a test once for each check of each component.

    Args:
        components: classes of components and loaders, and targets.
        waive: checks that pytest skips, each with its reason; of several components, those that have it. A component
            may name its own in ``waivers``.

    Raises:
        UsageError: a waiver is of no check of any of them, or without a reason.

    Example:
        >>> from interpkit import testing
        >>> from interpkit_losses import CrossEntropy, KLDivergence
        >>> @testing.parametrize_with_checks([CrossEntropy, KLDivergence])
        ... def test_my_losses(component, check):
        ...     check(component)
    """
    import pytest

    components = list(components)
    of_each = [checks_of(component) for component in components]
    used = {check.name for checks in of_each for check in checks} & set(waive or {})
    cases = []
    for component, checks in zip(components, of_each, strict=True):
        names = {check.name for check in checks}
        # what no component has is left in, to be refused with the names that there are
        theirs = {name: reason for name, reason in (waive or {}).items() if name in names or name not in used}
        waived = waivers_of(component, theirs)
        for check in checks:
            marks = [pytest.mark.skip(reason=waived[check.name])] if check.name in waived else []
            cases.append(pytest.param(component, check, id=f"{label_of(component)}-{check.name}", marks=marks))
    if not cases:
        raise UsageError("parametrize_with_checks needs at least one component.")
    return pytest.mark.parametrize(("component", "check"), cases)
