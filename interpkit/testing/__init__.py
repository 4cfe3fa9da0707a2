"""The conformance kit: whether a component keeps what its interface promises, said in words that help to mend it.

    from interpkit import testing

    @testing.parametrize_with_checks([MyLoss, MyConditioner], waive={"batch-mean": "it counts, on purpose"})
    def test_keeps_its_promises(component, check):
        check(component)

Outside pytest, ``testing.check_loss(MyLoss)`` runs all checks of a loss and raises one `CheckFailed` that lists what is
broken, and ``interpkit plugins check NAME`` does so for all that a plugin provides. The pytest fixtures ``tiny_target``
and ``tiny_inversion`` come with interpkit.

Names are imported when they are first used: pytest loads this package in every session, torch only where it is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from interpkit._lazy import lazy

if TYPE_CHECKING:
    from interpkit.testing.checks import Check, CheckFailed, Outcome, checks_of, outcomes
    from interpkit.testing.suites import (
        check_attribution,
        check_conditioner,
        check_generator,
        check_inverter,
        check_loader,
        check_loss,
        check_metric,
        check_target,
        parametrize_with_checks,
    )

_HOMES = {
    "checks": ("Check", "CheckFailed", "Outcome", "checks_of", "outcomes"),
    "suites": (
        "check_attribution",
        "check_conditioner",
        "check_generator",
        "check_inverter",
        "check_loader",
        "check_loss",
        "check_metric",
        "check_target",
        "parametrize_with_checks",
    ),
}
__getattr__ = lazy(__name__, _HOMES)

__all__ = [
    "Check",
    "CheckFailed",
    "Outcome",
    "check_attribution",
    "check_conditioner",
    "check_generator",
    "check_inverter",
    "check_loader",
    "check_loss",
    "check_metric",
    "check_target",
    "checks_of",
    "outcomes",
    "parametrize_with_checks",
]


def __dir__() -> list[str]:
    return sorted(__all__)
