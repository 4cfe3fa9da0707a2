"""A generator is fitted to single images first, if the target has no gradient at gray."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import interpkit
from interpkit import GeneratorInversion, Target
from interpkit.inversion import fitted_start

SETTINGS: dict[str, Any] = {
    "presets": ["vecmat"],
    "steps": 1,
    "batch_size": 64,
    "device": "cpu",
    "precision": "fp32",
    "options": {"upconv.width": 16, "upconv.min_width": 16, "optimizer.lr": 0.01},
}


class Bands(nn.Module):
    """One ReLU per band of two rows, which is on if its band is bright and the others are dark; all are off at gray."""

    def forward(self, x: Tensor) -> Tensor:
        bright = x.view(-1, 3, 12).mean(2)
        return (0.1 + 5 * bright - 4 * bright.sum(1, keepdim=True)).relu() * 20


@pytest.fixture
def bands() -> Target:
    return interpkit.wrap(Bands(), (1, 6, 6))


def accuracy(inversion: interpkit.Inversion) -> float:
    return inversion.history[0].inversion_accuracy


def test_a_training_begins_with_images_that_the_target_accepts(bands: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = interpkit.invert(bands, **SETTINGS)
    monkeypatch.setattr(fitted_start, "IMAGES", 2)  # fewer than the classes
    unfitted = interpkit.invert(bands, **SETTINGS)
    assert accuracy(fitted) > 0.9 and accuracy(unfitted) < 0.6


def test_the_fit_depends_on_the_seed_alone_and_leaves_the_global_one(bands: Target) -> None:
    state = torch.get_rng_state()
    one = interpkit.invert(bands, **SETTINGS)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    two = interpkit.invert(bands, **SETTINGS)
    assert isinstance(one, GeneratorInversion) and isinstance(two, GeneratorInversion)
    pairs = zip(one.tensors().values(), two.tensors().values(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("changes", [{"labels": [2, 0]}, {"generators": 2}, {"micro_batch": 16}])
def test_it_fits_some_classes_several_generators_and_small_batches(bands: Target, changes: dict[str, Any]) -> None:
    assert accuracy(interpkit.invert(bands, **SETTINGS, **changes)) > 0.8


def test_a_target_with_a_gradient_at_gray_is_not_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interpkit.inversion.loop.fit_start", pytest.fail)
    interpkit.invert(interpkit.wrap(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), (1, 6, 6)), **SETTINGS)
