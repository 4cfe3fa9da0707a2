"""Kill -9 at a random moment, by the function of the full trial: a run of each kind, and one that has to be found."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from torture.kills import KINDS, differences

if sys.platform == "win32":
    pytest.skip("there is no fork", allow_module_level=True)

# In a process of its own: one that has run something is not to be forked.
TRY = """
import json, sys
from pathlib import Path
from torture.kills import kills
print(json.dumps(kills(Path(sys.argv[1]), 8, 8, 3)))
"""


def test_runs_that_are_killed_end_as_if_they_had_not_been(tmp_path: Path, run_python: Callable[..., Any]) -> None:
    tried = run_python("-c", TRY, tmp_path, cwd=Path(__file__).parents[2])
    assert tried.returncode == 0, tried.stderr
    result = json.loads(tried.stdout)
    assert (result["killed"], result["the same"], result["faults"]) == (8, 8, [])
    assert sum(result["killed with"].values()) == 8 and set(result["killed with"]) != {"a finished run"}
    assert {path.name for path in tmp_path.glob("whole-*")} == {f"whole-{kind}" for kind in KINDS}


def spoil_checkpoint(run: Path) -> None:
    state = torch.load(run / "checkpoint", weights_only=True)
    next(value for value in state["optimizer"]["state"].values())["exp_avg"].view(-1)[0] += 1e-6
    torch.save(state, run / "checkpoint")


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("checkpoint", spoil_checkpoint),
        ("report.html", lambda run: (run / "report.html").unlink()),
        (".metrics.json.1a2b3c4d", lambda run: (run / ".metrics.json.1a2b3c4d").write_text("half")),
        ("history.jsonl", lambda run: (run / "history.jsonl").write_text("")),
    ],
)
def test_what_is_not_the_same_is_found(
    finished_run: Path, run_copy: Path, name: str, spoil: Callable[[Path], Any]
) -> None:
    assert differences(finished_run, run_copy) == []
    spoil(run_copy)
    assert differences(finished_run, run_copy) == [name]


def test_the_time_of_the_interruption_makes_no_difference(finished_run: Path, run_copy: Path) -> None:
    manifest = json.loads((run_copy / "manifest.json").read_text())
    (run_copy / "manifest.json").write_text(json.dumps(manifest | {"resumed_from": 5, "timings": {}}))
    assert differences(finished_run, run_copy) == []
    (run_copy / "manifest.json").write_text(json.dumps(manifest | {"precision": "bf16"}))
    assert differences(finished_run, run_copy) == ["manifest.json"]
    shutil.rmtree(run_copy)
