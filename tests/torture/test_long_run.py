"""Long runs, by the functions of the full trial: few steps of them, and nothing that grows with their number."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("there are no pseudo-terminals", allow_module_level=True)

from torture.long_run import counted, long_run, recorded, without_a_reader


def test_what_python_holds_does_not_grow_with_the_steps(tmp_path: Path) -> None:
    found = long_run(tmp_path, 600, 100, counted)
    assert list(found) == [100, 200, 300, 400, 500, 600]
    assert found[600]["tensors"] == found[200]["tensors"]
    records = 400 // 10
    # A record with its terms, some slack, and what rich keeps of each step to estimate speed: at most 1,000 samples.
    assert found[600]["objects"] - found[200]["objects"] <= 6 * records + 400


def test_a_history_and_its_curves_are_bounded(tmp_path: Path) -> None:
    """Of a million steps, 10,000 are recorded: every hundredth, and the first."""
    found = recorded(tmp_path, 1_000_000, 3000)
    assert found["records"] == 31
    assert found["history.jsonl bytes"] < 31 * 300
    assert found["points of a curve"] == 32


@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
def test_a_run_does_not_end_because_nobody_reads_its_progress(tmp_path: Path, terminal: bool) -> None:
    assert without_a_reader(tmp_path, terminal, 20) == "finished"
