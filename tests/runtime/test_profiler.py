"""A profile names every phase of a step once, adds up to the step, and leaves a run as it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import interpkit
from interpkit.api.invert import prepare
from interpkit.runtime import profiler

Quick = Callable[..., dict[str, Any]]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the time, in seconds, which stands still until a test moves it."""
    now = [0.0]
    monkeypatch.setattr(profiler.time, "perf_counter", lambda: now[0])
    return now


def test_shares_are_of_the_measured_steps_alone(clock: list[float]) -> None:
    with profiler.profiled(torch.device("cpu")) as profile:
        assert profile is not None
        for step in range(40):
            measured = profiler.WARM_UP <= step < profiler.WARM_UP + profiler.MEASURED
            for name, seconds in (("a", 2.0), ("b", 1.0), ("a", 2.0)):
                with profiler.phase(name):
                    clock[0] += seconds if measured else 100.0
            clock[0] += 5.0
            profile.step_done()
    table = profile.to_json()
    assert (table["steps"], table["ms_per_step"]) == (profiler.MEASURED, 10_000)
    assert [(row["name"], row["ms"], row["share"]) for row in table["phases"]] == [
        ("a", 4000, 0.4),
        ("b", 1000, 0.1),
        ("other", 5000, 0.5),
    ]


def test_phases_do_nothing_without_a_profile(clock: list[float]) -> None:
    clock.clear()  # a clock that is read now raises
    with profiler.profiled(torch.device("cpu"), wanted=False) as profile, profiler.phase("a"):
        assert profile is None
    with profiler.profiled(torch.device("cpu")) as profile, profiler.phase("a"):  # a step that is not measured
        assert profile is not None and not profile.measuring


def test_what_precedes_a_step_of_the_optimizer_is_the_backward_pass(clock: list[float]) -> None:
    class Slow(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            clock[0] += 3.0

    optimizer = Slow([torch.zeros(1)])
    with profiler.profiled(torch.device("cpu")) as profile:
        assert profile is not None
        for _ in range(profiler.WARM_UP + 1):
            clock[0] += 1.0
            with profiler.phase("term"):
                clock[0] += 4.0
            clock[0] += 2.0
            optimizer.step()
            profile.step_done()
    optimizer.step()  # no longer measured
    rows = {row["name"]: row["ms"] for row in profile.to_json()["phases"]}
    assert rows == {"term": 4000, "backward": 2000, "optimizer": 3000, "other": 1000}


def test_profiling_does_not_change_a_run(tiny_target: interpkit.Target, quick: Quick, tmp_path: Path) -> None:
    settings = quick(losses={"cosine": 1.0})
    plugins = settings.pop("plugins")
    job = prepare(tiny_target, plugins, **settings)
    steps: list[int] = []
    one = job.run(out=tmp_path / "run", profile=True, on_step=steps.append)
    other = interpkit.invert(tiny_target, plugins, **settings)
    assert torch.equal(one.sample(per_class=2)[0], other.sample(per_class=2)[0])
    assert steps == list(range(1, 13))
    table = json.loads((tmp_path / "run/profile.json").read_text("utf-8"))
    assert table["steps"] == 7 and table["device"] == "cpu"
    named = [row["name"] for row in table["phases"]]
    assert len(set(named)) == len(named)
    assert {"conditioner", "generator", "look at images", "term cosine", "term kl", "backward", "optimizer"} < set(
        named
    )
    assert {"recorder", "checkpoints", "other"} < set(named)
    assert sum(row["share"] for row in table["phases"]) == pytest.approx(1, abs=0.01)
    assert sum(row["ms"] for row in table["phases"]) == pytest.approx(table["ms_per_step"], rel=0.01)


def test_forward_passes_and_views_of_terms_are_separate_phases(tiny_target: interpkit.Target, quick: Quick) -> None:
    settings = quick(steps=7, losses={"robust": 1.0})
    job = prepare(tiny_target, settings.pop("plugins"), **settings)
    job.run(profile=True)
    assert job.profile is not None
    named = {row["name"] for row in job.profile.to_json()["phases"]}
    assert {"look at images", "look at views", "views of robust", "term robust"} < named


@pytest.mark.parametrize(("steps", "words"), [("8", "look at images"), ("3", "nothing to profile")])
def test_the_command_prints_the_table(
    tiny_model: Path, quick_flags: list[str], tmp_path: Path, steps: str, words: str
) -> None:
    from interpkit.cli import app

    command = ["invert", str(tiny_model), *quick_flags, "--steps", steps, "--out", str(tmp_path / "run"), "--profile"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert words in result.output
    assert (tmp_path / "run/profile.json").is_file()
