"""Every bundled component satisfies the contract of its interface."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

import pytest

from interpkit import testing
from interpkit.errors import DISTRIBUTION
from interpkit.plugins.discovery import Plugins
from interpkit.testing.checks import COMPONENTS

BUNDLED = [point for point in entry_points(group="interpkit") if point.dist and point.dist.name == DISTRIBUTION]
ITEMS = [entry.item for entry in Plugins(BUNDLED).registry.entries() if entry.kind in (*COMPONENTS, "loader")]


def test_there_are_components_of_every_kind() -> None:
    kinds = {entry.kind for entry in Plugins(BUNDLED).registry.entries()}
    assert kinds >= {*COMPONENTS, "loader"}
    assert len(ITEMS) >= 35


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of the formats' own libraries
@testing.parametrize_with_checks(ITEMS)
def test_bundled(component: Any, check: Any) -> None:
    check(component)
