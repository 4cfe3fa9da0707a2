"""How the speed benchmarks measure, and that the rivals compute the same."""

from __future__ import annotations

import functools
import importlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import interpkit
from interpkit.api.invert import Job, prepare
from interpkit.inversion import loop as training
from interpkit.inversion import objective
from interpkit.plugins import assembly
from interpkit.plugins.discovery import installed

ROOT = Path(__file__).parents[2]
TINY = {"upconv.width": 8, "upconv.min_width": 4, "upconv.latent": 8, "upconv.hidden": 8, "upconv.dropout": 0.0}


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def job(tiny_model: Path) -> Job:
    return prepare(tiny_model, ["vecmat"], steps=3, batch_size=8, device="cpu", precision="fp32", options=TINY)


def test_a_figure_knows_its_goal_and_its_row(benchmark: Any) -> None:
    figure = benchmark("measuring").Figure
    whole = figure.of("a", [0.2, 0.4, 0.9], "<= 0.5", "on b")
    assert (whole.value, whole.low, whole.high, whole.met) == (0.4, pytest.approx(0.3), pytest.approx(0.65), True)
    assert whole.row() == "| a | 0.4 (0.3 to 0.65) | <= 0.5 | yes | on b |"
    assert figure("a", 0.4, ">= 0.5").met is False and figure("a", 0.4).met is None


def test_rivals_take_turns_and_each_is_first_as_often(benchmark: Any) -> None:
    order: list[str] = []
    rivals = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    seconds = benchmark("measuring").in_turn(rivals, rounds=4, warm_up=2)
    assert {name: len(times) for name, times in seconds.items()} == {"a": 4, "b": 4}
    assert order[::2].count("a") == 3
    assert all({*order[i : i + 2]} == {"a", "b"} for i in range(0, 12, 2))


def test_a_rival_apart_is_in_another_process(benchmark: Any) -> None:
    rival = benchmark("measuring").Apart(functools.partial(functools.partial, os.getpid))
    assert rival() == rival() != os.getpid()
    assert rival.ask(callable) is True
    rival.end()


def test_our_loop_a_step_at_a_time_is_our_loop(job: Job, benchmark: Any) -> None:
    measuring = benchmark("measuring")
    losses: list[float] = []
    measuring.stepwise(job, lambda step, loss: losses.append(loss))
    loop = measuring.OurLoop(job)
    assert all(0 <= loop() <= 1 for _ in range(2))
    before = [p.clone() for p in loop.parts.generator.parameters()]
    loop()
    assert any(not torch.equal(a, b) for a, b in zip(before, loop.parts.generator.parameters(), strict=True))
    assert len(losses) == 3 and loop._recorder.history[0].loss == losses[0]


def test_a_fault_of_our_loop_is_not_lost_in_its_thread(
    job: Job, benchmark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(training, "train", broken)
    with pytest.raises(ZeroDivisionError):
        benchmark("measuring").OurLoop(job)()


@pytest.mark.parametrize("rival", ["PlainLoop", "HandWritten"])
def test_the_rival_minimises_what_ours_does(job: Job, benchmark: Any, rival: str) -> None:
    """Only then is a ratio of times one of equal work."""
    module = benchmark("peers" if rival == "PlainLoop" else "step")
    plain = getattr(module, rival)(job)
    condition = plain.conditioner.sample(8)
    images = torch.rand(8, *job.target.input_shape)
    theirs, _ = plain.objective(images, condition.distribution, condition.labels)
    _, parts = assembly.build(job.recipe, job.target, installed())
    generated = interpkit.GeneratedBatch(job.target, condition, torch.zeros(8, 1), images, 0.0)
    autocast = torch.autocast("cpu", enabled=False)
    with job.target.frozen():
        ours, _, _ = objective.objective(generated, parts.losses, [], torch.Generator(), autocast)
    torch.testing.assert_close(theirs, ours)


def test_arithmetic_is_counted_forwards_and_backwards(benchmark: Any) -> None:
    a, b = torch.randn(3, 4, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    with benchmark("step").Flops() as counted:
        (a @ b).sum().backward()
    assert counted.total == 3 * 2 * 3 * 4 * 5


def test_images_of_a_class_that_are_alike_are_not_counted(benchmark: Any) -> None:
    images = torch.randint(0, 256, (6, 1, 12, 12), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    images[1] = images[0]
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    assert benchmark("samples_cost").distinct(images, labels, rows=2) == pytest.approx(4 / 6)
    assert benchmark("samples_cost").distinct(images, torch.tensor([0, 1, 0, 1, 0, 1])) == 1.0


def test_the_table_is_made_of_what_is_kept(benchmark: Any) -> None:
    runner = benchmark("__main__")
    machine = {"processor": "P", "capability": "AVX2", "cores": 4, "threads": 2, "device": "cpu"}
    machine |= {"torch": "2.0", "python": "3.11"}
    row = {"what": "w", "value": 2.0, "goal": "<= 1", "low": None, "high": None, "detail": "d"}
    text = runner.table({"cpu with bf16": {"step": {"machine": machine, "figures": [row]}}})
    assert text.startswith("**CPU with bf16**\n\n") and "| w | 2 | <= 1 | **no** | d |\n" in text
    assert text.strip().endswith("On P (AVX2), 2 of 4 cores, torch 2.0, Python 3.11.")
    kept = json.loads(runner.KEPT.read_text("utf-8"))
    page = runner.PAGE.read_text("utf-8")
    assert page.split(runner.START)[1].split(runner.END)[0] == runner.table(kept)


def test_the_figures_of_a_gpu_are_tried_on_a_cpu(benchmark: Any) -> None:
    figures = {figure.what: figure.value for figure in benchmark("gpu").figures("cpu")}
    compiled = "mnist_bn, batch 4: steps per second, bf16, compiled"
    photo = "ResNet-50, 32 x 32, batch 4, preset photo: steps per second"
    assert {compiled, photo, "20 classes, 4 steps: seconds of the run"} <= set(figures)
    assert all(0 < value < float("inf") for value in figures.values())
    assert not any("left out" in what for what in figures)
