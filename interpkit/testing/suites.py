"""All checks of a component at once, and as cases of pytest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from interpkit.errors import UsageError, a
from interpkit.testing.checks import CheckFailed, checks_of, kind_of, label_of, outcomes, waivers_of

if TYPE_CHECKING:
    import pytest

Waivers = Mapping[str, str]
"""Names of checks, each with the reason why it does not apply."""


def check(component: Any, *, waive: Waivers | None = None) -> None:
    """Run all checks of a component; `check_loss` and the like also see that it is of that kind.

    Args:
        component: the class of a component or a loader, or a target.
        waive: checks that are not run, each with its reason.

    Raises:
        CheckFailed: checks failed; lists each with what was found and how to fix it.
        UsageError: no checks exist for such an object, or a waiver names no check or gives no reason.

    Example:
        >>> from interpkit import testing
        >>> from interpkit_targets import SafetensorsLoader
        >>> testing.check(SafetensorsLoader)
    """
    broken = [outcome for outcome in outcomes(component, waive) if outcome.status == "broken"]
    if broken:
        raise CheckFailed(component, broken)


def _check_of(kind: str) -> Callable[..., None]:
    def check_kind(component: Any, *, waive: Waivers | None = None) -> None:
        if kind_of(component) != kind:
            raise UsageError(
                f"{label_of(component)!r} is {a(kind_of(component))}, not {a(kind)}: call check_{kind_of(component)}."
            )
        check(component, waive=waive)

    check_kind.__name__ = check_kind.__qualname__ = f"check_{kind}"
    check_kind.__doc__ = f"Run all checks of {a(kind)}; see `check`."
    return check_kind


check_attribution = _check_of("attribution")
check_audit = _check_of("audit")
check_conditioner = _check_of("conditioner")
check_generator = _check_of("generator")
check_inverter = _check_of("inverter")
check_loader = _check_of("loader")
check_loss = _check_of("loss")
check_metric = _check_of("metric")
check_target = _check_of("target")


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
