"""The pytest plugin: a tiny trained classifier and a finished inversion of it. Heavy imports wait until then."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from interpkit.interfaces.inversions import Inversion
    from interpkit.interfaces.targets import Target


@pytest.fixture
def tiny_target() -> Target:
    """A small trained classifier of 1 x 12 x 12 images and 3 classes, the same in every test; a copy for each."""
    from interpkit.testing import toy_models

    return toy_models.tiny_target()


@pytest.fixture
def tiny_inversion() -> Inversion:
    """A short finished inversion of it, by vector-matrix conditioning; each test gets its own copy."""
    from interpkit.testing import toy_models

    return toy_models.tiny_inversion()
