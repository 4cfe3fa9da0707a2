"""Classifiers of signals (C, L) and volumes (C, D, H, W): targets of vectors, which are reshaped for the network."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import interpkit
from interpkit.api.invert import prepare
from interpkit.io.plots import sample_figure
from interpkit.report import encode

KINDS = {
    "signals": (nn.Conv1d, nn.AdaptiveAvgPool1d(6), (3, 20)),
    "volumes": (nn.Conv3d, nn.AdaptiveAvgPool3d((2, 3, 2)), (1, 4, 5, 6)),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> tuple[nn.Module, tuple[int, ...]]:
    convolution, pool, shape = KINDS[request.param]
    layers = [convolution(shape[0], 4, 3), nn.ReLU(), pool, nn.Flatten()]
    width = nn.Sequential(*layers)(torch.zeros(1, *shape)).shape[1]
    return nn.Sequential(*layers, nn.Linear(width, 3)).eval(), shape


@pytest.fixture
def target(kind: tuple[nn.Module, tuple[int, ...]]) -> interpkit.Target:
    net, shape = kind
    mean = [0.1 * (channel + 1) for channel in range(shape[0])]
    return interpkit.wrap(net, shape, mean=mean, std=2.0, input_range=(-1.0, 3.0))


def test_a_target_gives_the_networks_logits_for_vectors_and_for_the_shape_itself(
    kind: tuple[nn.Module, tuple[int, ...]], target: interpkit.Target
) -> None:
    net, shape = kind
    assert target.input_shape == (math.prod(shape),) and target.description.input_shape == shape
    x = torch.rand(2, *shape)
    mean = torch.tensor(target.description.mean).view(-1, *(1,) * (len(shape) - 1))
    expected = net((-1 + 4 * x - mean) / 2)
    torch.testing.assert_close(target(x), expected)
    torch.testing.assert_close(target(x.flatten(1)), expected)
    assert target.respond(x.flatten(1), layers=["0"]).features["0"].shape[1] == 4


def test_they_are_inverted_saved_measured_and_explained(target: interpkit.Target, tmp_path: Path) -> None:
    shape = target.description.input_shape
    assert shape is not None
    inversion = interpkit.invert(
        target, ["vecmat"], generator="dense", steps=2, batch_size=6, device="cpu", out=tmp_path / "run"
    )
    images, labels = inversion.sample(2)
    assert images.shape == (6, math.prod(shape))
    assert (tmp_path / "run" / "report.html").exists()
    maps = interpkit.attribute(target, images.view(6, *shape), labels, baseline="mean", options={"steps": 4})
    assert maps.shape == images.shape
    np.savez(tmp_path / "data.npz", X=np.random.default_rng(0).random((6, *shape)) * 4 - 1, y=[0, 1, 2, 0, 1, 2])
    metrics = interpkit.evaluate(
        tmp_path / "run", target=target, reference=str(tmp_path / "data.npz"), metrics=["reference"]
    )
    assert "inversion_accuracy" in metrics and "failed" not in str(metrics.get("left_out"))


def test_a_generator_of_images_names_the_one_that_serves(target: interpkit.Target) -> None:
    with pytest.raises(interpkit.UsageError, match="Use --conditioner vector --generator dense"):
        interpkit.invert(target, ["vecmat"], generator="upconv", steps=1)


def test_a_preset_says_which_part_it_replaces_for_vectors(
    target: interpkit.Target, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"dense.latent": 8}  # an option of the part that comes in its place
    recipe = prepare(target, presets=["vecmat"], options=settings).recipe
    assert recipe.generator is not None and recipe.conditioner is not None
    assert (recipe.conditioner.name, recipe.generator.name, recipe.generator.options["latent"]) == (
        "vecmat",
        "dense",
        8,
    )
    assert "so the run uses generator='dense'" in caplog.text
    caplog.clear()
    prepare(target, presets=["vecmat"], generator="dense")
    assert "so the run uses" not in caplog.text


def test_packed_they_are_the_same_classifier(target: interpkit.Target, tmp_path: Path) -> None:
    shape = target.description.input_shape
    assert shape is not None
    packed = interpkit.load_target(interpkit.pack_target(target, tmp_path / "a.safetensors"))
    assert packed.description.input_shape == shape
    x = torch.rand(2, math.prod(shape))
    torch.testing.assert_close(packed(x), target(x), rtol=1e-4, atol=1e-4)


def test_data_far_outside_the_input_range_are_warned_of(
    target: interpkit.Target, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from interpkit.evaluation.scoring import load_labelled

    shape = target.description.input_shape
    assert shape is not None
    for high, warned in ((3, False), (255, True)):
        np.savez(tmp_path / "data.npz", images=np.full((2, *shape), high, np.uint8), labels=[0, 1])
        load_labelled(str(tmp_path / "data.npz"), target)
        assert ("far outside the input range" in caplog.text) is warned


def test_signals_are_drawn_as_rows_of_bars_and_volumes_as_their_middle_slice() -> None:
    signals = torch.rand(2, 3, 200)
    drawn = encode.drawable(signals.flatten(1), shape=(3, 200))
    assert drawn.shape == (2, 1, 3 * encode.BAR_HEIGHT, 200)
    heights = (drawn.view(2, 3, encode.BAR_HEIGHT, 200) == 255).sum(2)
    assert torch.equal(heights.argmax(2), signals.argmax(2)) or (heights.amax((0, 2)) == encode.BAR_HEIGHT).all()
    assert encode.drawable(torch.rand(2, 9000)).shape == (2, 1, encode.BAR_HEIGHT, encode.WIDEST)
    volumes: Tensor = torch.arange(2 * 60.0).view(2, 1, 3, 4, 5)
    slices = encode.drawable(volumes.flatten(1), shape=(1, 3, 4, 5))
    assert torch.equal(slices, (volumes[:, :, 1] / 119 * 255).round().to(torch.uint8))
    labels = torch.tensor([0, 1])
    lines = sample_figure(signals.flatten(1), labels, ["a", "b"], (3, 200)).axes[0].lines
    assert np.array_equal(lines[1].get_ydata(), signals[0, 1].numpy())
    shown = sample_figure(volumes.flatten(1) / 119, labels, ["a", "b"], (1, 3, 4, 5)).axes[1].images[0]
    assert np.array_equal(np.asarray(shown.get_array()), slices[1, 0].numpy())
