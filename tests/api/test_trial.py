"""Trials of two steps: what they choose and say, and that they leave nothing behind."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import interpkit
from interpkit import Recipe, RunError, Target
from interpkit.api import trial
from interpkit.api.invert import Job, prepare
from interpkit.attribution import explainer
from interpkit.evaluation import scoring
from interpkit.plugins.discovery import Plugins
from interpkit.runtime import memory

SHAPE = (3, 64, 64)
SMALL = {"upconv.width": 4, "upconv.min_width": 4, "upconv.latent": 4, "upconv.hidden": 4}
QUICK: dict[str, Any] = {"presets": ["vecmat"], "steps": 2, "device": "cpu", "precision": "fp32", "options": SMALL}
PIXELS: dict[str, Any] = {"presets": ["pixels"], "steps": 2, "device": "cpu", "precision": "fp32"}


@pytest.fixture
def target() -> Target:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 12)
    )
    return interpkit.wrap(net, input_shape=SHAPE)


@pytest.fixture
def scarce(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow 10 MB for the activations of a run."""
    monkeypatch.setattr(memory, "allowed", lambda device: 10_000_000)


def weights(inversion: interpkit.Inversion) -> dict[str, torch.Tensor]:
    assert isinstance(inversion, interpkit.GeneratorInversion)
    return inversion.tensors()


def test_a_run_is_the_same_with_and_without_a_trial(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    tried = prepare(target, **QUICK, batch_size=8, micro_batch=8)
    assert tried.estimate is not None
    drawn, with_trial = torch.rand(3), weights(tried.run())
    monkeypatch.setattr(trial, "try_out", lambda *_: None)
    torch.manual_seed(5)
    untried = prepare(target, **QUICK, batch_size=8, micro_batch=8)
    assert torch.equal(torch.rand(3), drawn)  # the caller's randomness
    for name, tensor in weights(untried.run()).items():
        assert torch.equal(tensor, with_trial[name]), name


def test_small_images_have_no_trial_and_keep_the_defaults(tiny_model: Path) -> None:
    job = prepare(tiny_model, presets=["vecmat"], device="cpu")
    assert job.estimate is None
    assert (job.recipe.steps, job.recipe.batch_size, job.recipe.micro_batch) == (300, 128, None)


@pytest.mark.usefixtures("scarce")
def test_a_batch_is_computed_in_equal_pieces_that_fit(target: Target) -> None:
    recipe = prepare(target, **QUICK).recipe
    assert recipe.batch_size == 128 and recipe.micro_batch is not None
    found = trial.try_out(recipe, target, prepare(target, **QUICK).plugins)
    assert found is not None and found.needs(recipe.micro_batch) <= 10_000_000 < found.needs(128)


def test_a_batch_that_fits_is_computed_whole_and_the_recipe_says_so(target: Target) -> None:
    assert prepare(target, **QUICK, batch_size=8).recipe.micro_batch == 8


@pytest.mark.usefixtures("scarce")
def test_stated_sizes_are_kept(target: Target) -> None:
    recipe = prepare(target, **QUICK, batch_size=100, micro_batch=90).recipe
    assert (recipe.batch_size, recipe.micro_batch) == (100, 90)


def test_an_inverter_without_a_generator_takes_a_smaller_batch(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prepare(target, **PIXELS).recipe.batch_size == 128
    monkeypatch.setattr(memory, "allowed", lambda device: 2_000_000)
    recipe = prepare(target, **PIXELS).recipe
    assert 2 <= recipe.batch_size < 64 and recipe.micro_batch is None
    assert prepare(target, **PIXELS, batch_size=100).recipe.batch_size == 100


@pytest.mark.usefixtures("scarce")
def test_a_resumed_run_keeps_what_it_chose_even_where_its_preset_is_named_again(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**PIXELS, "options": {"pixels.per_class": 1}}
    monkeypatch.setattr(scoring, "sample_size", lambda _: {"per_class": 1})
    monkeypatch.setattr(memory, "allowed", lambda device: 1_000_000)
    interpkit.invert(target, out=tmp_path, **settings)
    chosen = Recipe.model_validate(interpkit.load_inversion(tmp_path, target=target).recipe.model_dump())
    monkeypatch.setattr(memory, "allowed", lambda device: 1 << 40)
    for named in ({"steps": 3}, {**settings, "steps": 3}):
        job = prepare(target, resume_from=tmp_path, **named)
        assert (job.recipe.batch_size, job.recipe.sampling) == (chosen.batch_size, chosen.sampling)
        assert job.estimate is None and chosen.batch_size < 128
    interpkit.invert(target, out=tmp_path, resume=True, **{**settings, "steps": 3})


def test_too_little_memory_for_one_image_is_said_before_anything_runs(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free", lambda device: 1000)
    with pytest.raises(RunError, match=r"for one image of 3 x 64 x 64 .* on cpu, and 1.0 kB are free"):
        prepare(target, **QUICK)


def test_a_trial_tries_fewer_images_until_the_least(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def fails(*arguments: Any) -> trial.Trial:
        tried.append(arguments[3])
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trial, "_try", fails)
    with pytest.raises(RunError, match="too little memory for 2 images"):
        prepare(target, **QUICK)
    assert tried == [4, 2]


def test_a_trial_that_fails_otherwise_leaves_the_error_to_the_run(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any) -> trial.Trial:
        raise ValueError

    monkeypatch.setattr(trial, "_try", fails)
    assert prepare(target, **QUICK).estimate is None


def test_an_estimate_counts_all_steps_pieces_twice_and_the_samples() -> None:
    found = trial.Trial(images=4, seconds=2.0, kept=1000, peak=10_000)
    whole = trial.estimate(Recipe(device="cuda", steps=10, batch_size=8, micro_batch=8), found, samples=30, images=8)
    assert (whole.seconds, whole.bytes) == (10 * 4.0 + 30 * 0.5 * 2, 10_000 + 4 * 1250)
    pieces = trial.estimate(Recipe(steps=10, batch_size=8, micro_batch=4), found, samples=0, images=8)
    assert (pieces.seconds, pieces.bytes) == (pytest.approx(10 * 4.0 * 4 / 3), 10_000)


def test_an_estimate_includes_the_fit_to_another_runs_images(target: Target, tmp_path: Path) -> None:
    interpkit.invert(target, out=tmp_path, **PIXELS, labels=[0, 1], options={"pixels.per_class": 2})
    times = iter([1.0, 4.0, 10.0, 12.0])
    job = prepare(target, **QUICK, labels=[0, 1], batch_size=8, warm_start=tmp_path)
    assert job.estimate is not None
    found = trial.try_out(job.recipe, target, job.plugins, clock=lambda: next(times))
    assert found is not None and (found.images, found.seconds, found.fitting) == (4, 3.0, 0.5)
    without, whole = (trial.estimate(job.recipe, found, 0, 8, fitted_to=count) for count in (0, 4))
    assert whole.seconds - without.seconds == 100 * 8 * 0.5  # the least number of steps


def test_a_generators_run_is_made_smaller_by_the_preset_for_photographs_and_others_by_fewer_images(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Plugins, "photograph_preset", lambda *_: "snapshots")
    assert prepare(target, **QUICK, labels=[3, 4, 5]).smaller == [
        "labels=[3, 4]",
        "presets=['snapshots']",
        "steps=1",
        "batch_size=64",
    ]
    assert prepare(target, **PIXELS, labels=[3, 4]).smaller == ["per_class=5", "steps=1", "batch_size=64"]


def test_an_inverter_without_a_generator_is_tried_at_all_its_stages(target: Target) -> None:
    times = iter([1.0, 19.0])
    job = prepare(target, **PIXELS)
    found = trial.try_out(job.recipe, target, job.plugins, clock=lambda: next(times))
    assert found is not None and (found.images, found.seconds) == (4, 2.0)


def test_a_trial_takes_the_time_of_the_second_step(target: Target) -> None:
    times = iter([1.0, 4.0])
    job = prepare(target, **QUICK)
    found = trial.try_out(job.recipe, target, job.plugins, clock=lambda: next(times))
    assert found is not None and (found.images, found.seconds) == (4, 3.0)


def test_an_estimate_says_what_to_type_and_warns_over_an_hour(caplog: pytest.LogCaptureFixture) -> None:
    recipe = Recipe(device="cpu", batch_size=16, steps=300)
    with caplog.at_level(logging.INFO, "interpkit"):
        trial.Estimate(recipe, 600, 2_000_000_000).tell(["steps=100", "batch_size=8"])
        trial.Estimate(recipe, 9000, None).tell(["steps=100"])
    short, long = caplog.records
    assert (short.levelname, long.levelname) == ("INFO", "WARNING")
    assert short.message == (
        "the run takes about 10 min on cpu and needs 2.0 GB of memory; to make it smaller: steps=100, batch_size=8"
    )
    assert "about 2 h 30 min on cpu, more than an hour on this device; to make it smaller" in long.message


@pytest.mark.parametrize(("step_seconds", "lines"), [(0.1, 0), (1.0, 1)])
def test_a_run_without_a_trial_is_estimated_by_its_first_two_steps_if_it_is_long(
    caplog: pytest.LogCaptureFixture, step_seconds: float, lines: int
) -> None:
    now = iter([10.0, 10.0 + step_seconds])
    first = trial.FirstSteps(Recipe(device="cpu", steps=102), ["steps=34"], clock=lambda: next(now))
    with caplog.at_level(logging.INFO, "interpkit"):
        for step in (1, 2, 3, 4):
            first.step_done(step)
    assert len(caplog.records) == lines
    assert not lines or "the rest of the run takes about 100 s on cpu" in caplog.text


def test_a_run_that_goes_back_is_estimated_by_the_steps_after_it(caplog: pytest.LogCaptureFixture) -> None:
    now = iter([10.0, 50.0, 51.0])
    first = trial.FirstSteps(Recipe(device="cpu", steps=102), ["steps=34"], clock=lambda: next(now))
    with caplog.at_level(logging.INFO, "interpkit"):
        for step in (1, 1, 2):
            first.step_done(step)
    assert "the rest of the run takes about 100 s on cpu" in caplog.text


def test_an_estimate_is_logged_before_the_first_step(target: Target, caplog: pytest.LogCaptureFixture) -> None:
    logged: list[int] = []
    with caplog.at_level(logging.INFO, "interpkit"):
        job = prepare(target, **QUICK)
        job.run(on_step=lambda step: logged.append(sum("the run takes" in text for text in caplog.messages)))
    assert logged == [1, 1]


def test_a_stop_says_what_still_happens(target: Target) -> None:
    job = prepare(target, **QUICK, labels=[0, 1])
    assert job.after_stop == "stopping after this step; then 200 samples are drawn and judged"
    said: list[str] = []
    job.run(on_step=lambda step: said.append(job.after_stop))
    assert "samples are drawn and judged, which takes about" in said[-1]


def test_samples_are_as_many_as_a_run_keeps(target: Target) -> None:
    for settings in ({}, {"labels": [1, 2, 3]}):
        job: Job = prepare(target, **QUICK, **settings)
        inversion = job.run()
        size = scoring.sample_size(inversion)
        assert job.samples == size.get("count", size.get("per_class", 0) * len(inversion.classes))
    assert prepare(target, **PIXELS, labels=[1, 2]).samples == 20


def test_large_images_are_judged_as_many_at_a_time_as_fit(target: Target, tiny_model: Path) -> None:
    assert scoring.at_once(Recipe(batch_size=16, micro_batch=2), target) is None
    assert scoring.at_once(Recipe(batch_size=16, micro_batch=2), interpkit.load_target(tiny_model)) == 2


def test_large_images_are_explained_as_many_at_a_time_as_fit(
    target: Target, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "allowed", lambda device: 100_000)
    assert 1 <= explainer.how_many(target, "cpu") < explainer.ROWS
    assert explainer.how_many(interpkit.load_target(tiny_model), "cpu") == explainer.ROWS
