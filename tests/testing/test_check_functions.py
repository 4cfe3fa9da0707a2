"""There is a function for each kind that has checks, and each sends what is of another kind to the right one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import interpkit
from interpkit import testing
from interpkit.plugins.discovery import installed
from interpkit.testing.checks import COMPONENTS

FUNCTIONS: dict[str, Callable[..., None]] = {
    "conditioner": testing.check_conditioner,
    "generator": testing.check_generator,
    "loss": testing.check_loss,
    "inverter": testing.check_inverter,
    "metric": testing.check_metric,
    "attribution": testing.check_attribution,
    "audit": testing.check_audit,
    "loader": testing.check_loader,
    "target": testing.check_target,
}


def one_of(kind: str, target: interpkit.Target) -> Any:
    return target if kind == "target" else next(installed().registry.entries(kind)).item


def test_every_kind_with_checks_has_a_function() -> None:
    assert set(FUNCTIONS) == {*COMPONENTS, "loader", "target"}
    assert {f"check_{kind}" for kind in FUNCTIONS} == {name for name in testing.__all__ if name.startswith("check_")}


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_a_function_takes_its_own_kind_alone(kind: str, tiny_target: interpkit.Target) -> None:
    own = one_of(kind, tiny_target)
    for other, function in FUNCTIONS.items():
        if other != kind:
            with pytest.raises(interpkit.UsageError, match=rf"is an? {kind}, not an? {other}: call check_{kind}\."):
                function(own)


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_check_names_are_unique(kind: str, tiny_target: interpkit.Target) -> None:
    checks = testing.checks_of(one_of(kind, tiny_target))
    assert checks and all(isinstance(check, testing.Check) for check in checks)
    assert len({check.name for check in checks}) == len(checks)
