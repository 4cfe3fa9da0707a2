"""The table of ``docs/reliability.md`` says what is kept, and where a goal is not met."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import torture
from torture import RESULTS
from torture.__main__ import END, PAGE, START, table


def test_the_page_has_the_figures_that_are_kept() -> None:
    kept = json.loads(RESULTS.read_text("utf-8"))
    assert PAGE.read_text("utf-8").split(START)[1].split(END)[0] == table(kept)


def test_a_goal_that_is_not_met_is_said() -> None:
    kept = {
        "kills": {"command": "a", "killed": 200, "the same": 199},
        "faults": {
            "command": "d",
            "commands": {"pack": {"operations": 9, "possible": 73, "faults": 20, "failed": {}}},
        },
        "fuzz": {"command": "b", "readers": {"npz": {"inputs": 300_000, "findings": {}}}},
        "mutants": {
            "command": "c",
            "groups": {"losses": {"tried": 9, "share": 0.8, "interval": [0.5, 0.9]}},
        },
    }
    lines = table(kept).splitlines()
    assert [line.rsplit("|", 2)[1].strip() for line in lines[2:6]] == ["**no**", "**no**", "yes", "**no**"]
    assert "199 of 200" in lines[2] and "80.0% of 9 (50.0% to 90.0%)" in lines[5]
    assert "73 faults at 9 file operations of 1 commands" in lines[3] and "| 0 of 20 tried |" in lines[3]
    assert lines[-1] == "By `d`, `b`, `a`, `c`."


def test_a_part_is_kept_beside_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torture, "RESULTS", tmp_path / "results.json")
    torture.keep_part("fuzz", "readers", "npz", 3, seed=1)
    torture.keep("kills", {"killed": 200})
    torture.keep_part("fuzz", "readers", "table", 4, seed=2)
    torture.keep_part("fuzz", "readers", "npz", 5, seed=2)
    kept = json.loads((tmp_path / "results.json").read_text())
    assert kept == {"fuzz": {"readers": {"npz": 5, "table": 4}, "seed": 2}, "kills": {"killed": 200}}
