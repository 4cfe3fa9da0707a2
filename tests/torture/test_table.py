"""The table of ``docs/reliability.md`` says what is kept, and where a goal is not met."""

from __future__ import annotations

import json

from torture import RESULTS
from torture.__main__ import END, PAGE, START, table


def test_the_page_has_the_figures_that_are_kept() -> None:
    kept = json.loads(RESULTS.read_text("utf-8"))
    assert PAGE.read_text("utf-8").split(START)[1].split(END)[0] == table(kept)


def test_a_goal_that_is_not_met_is_said() -> None:
    kept = {
        "kills": {"command": "a", "killed": 200, "the same": 199},
        "fuzz": {"command": "b", "inputs": 200_000, "findings": {}, "readers": {"npz": 200_000}},
        "mutants": {
            "command": "c",
            "groups": {"losses": {"tried": 9, "share": 0.8, "interval": [0.5, 0.9]}},
        },
    }
    lines = table(kept).splitlines()
    assert [line.rsplit("|", 2)[1].strip() for line in lines[2:5]] == ["**no**", "yes", "**no**"]
    assert "199 of 200" in lines[2] and "80.0% of 9 (50.0% to 90.0%)" in lines[4]
    assert lines[-1] == "By `b`, `a`, `c`."
