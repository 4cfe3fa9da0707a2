"""The statistics of a generator's batch norms belong to its final weights, however the run came to them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import interpkit
from interpkit.api.invert import prepare
from interpkit.inversion import batch_norms
from interpkit.inversion.batch_norms import estimate_batch_norms

Quick = Callable[..., dict[str, Any]]
EXAMPLES = Path(__file__).parents[2] / "examples" / "models"


def weights(inversion: interpkit.Inversion) -> dict[str, Tensor]:
    assert isinstance(inversion, interpkit.GeneratorInversion)
    return inversion.generator.state_dict()


def test_statistics_are_plain_averages_over_new_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_norms, "IMAGES", 7)
    norm, batches = nn.BatchNorm1d(2, momentum=0.3), torch.randn(3, 3, 2)
    norm.running_mean.fill_(9.0)
    left = iter(batches)
    estimate_batch_norms(nn.ModuleList([norm]), lambda: norm(next(left)), batch_size=3)
    assert torch.allclose(norm.running_mean, batches.mean((0, 1)))
    assert torch.allclose(norm.running_var, batches.var(1).mean(0))
    assert norm.momentum == 0.3 and norm.training


def test_a_network_without_batch_norm_draws_nothing() -> None:
    drawn: list[int] = []
    estimate_batch_norms(nn.ModuleList([nn.Linear(2, 2)]), partial(drawn.append, 1), batch_size=4)
    assert not drawn


def test_after_a_short_training_samples_are_as_good_as_in_training() -> None:
    inversion = interpkit.invert(
        EXAMPLES / "mnist.safetensors",
        presets=["vecmat"],
        steps=40,
        batch_size=64,
        device="cpu",
        precision="fp32",
        options={"upconv.width": 16, "upconv.min_width": 16, "optimizer.lr": 0.01},
    )
    trained = inversion.history[-1].inversion_accuracy
    assert trained > 0.4
    assert interpkit.evaluate(inversion, metrics=["diversity"])["inversion_accuracy"] > trained - 0.1


@pytest.mark.parametrize("changes", [{}, {"micro_batch": 4}, {"generators": 2}, {"labels": [0, 2]}])
def test_a_stopped_and_resumed_run_ends_with_the_same_statistics(
    tiny_model: Path, quick: Quick, tmp_path: Path, changes: dict[str, Any]
) -> None:
    whole = interpkit.invert(tiny_model, **quick(**changes))
    job = prepare(tiny_model, **quick(**changes))
    job.run(out=tmp_path / "run", on_step=lambda step: job.request_stop() if step == 5 else None)
    resumed = interpkit.invert(tiny_model, out=tmp_path / "run", resume=True, **quick(**changes))
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(resumed).values(), strict=True))
    assert torch.equal(whole.sample(per_class=2)[0], resumed.sample(per_class=2)[0])
