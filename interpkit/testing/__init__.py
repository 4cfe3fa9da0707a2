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

import importlib
from typing import TYPE_CHECKING, Any

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
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

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


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'interpkit.testing' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"interpkit.testing.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
