"""What the tests of several benchmarks use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Write 300 training and 200 test images of ten classes, each image another one."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", 300), ("test", 200)):
        arrays[f"x_{split}"] = rng.integers(0, 256, (count, 12, 12), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(count) % 10
    np.savez(tmp_path / "data.npz", **arrays)
    return tmp_path / "data.npz"
