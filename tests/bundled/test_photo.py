"""Photographs: their parametrisation, the views of them, and runs group by group."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from interpkit_photo.inverter import Photo
from interpkit_photo.spectrum import Spectrum
from interpkit_photo.views import random_view
from torch import Tensor, nn

import interpkit
from interpkit import ImageInversion, RunError, Target, UsageError
from interpkit.api.invert import prepare
from interpkit.runtime import progress

Rng = Callable[[int], torch.Generator]
ON_CPU: dict[str, Any] = {"device": "cpu", "precision": "fp32"}


def classifier(height: int, width: int) -> Target:
    """Return a classifier of three colors, for images of this size and of any other."""
    net = nn.Sequential(nn.AvgPool2d(8), nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    net[4].weight.data = 8 * torch.eye(3) - 4  # type: ignore[union-attr,operator]
    net[1].running_mean = torch.full((3,), 0.4)  # type: ignore[assignment]
    net[1].running_var = torch.full((3,), 0.06)  # type: ignore[assignment]
    return interpkit.wrap(net, (3, height, width), class_names=["red", "green", "blue"])


@pytest.fixture
def target() -> Target:
    """Return such a classifier for images of 64 x 80 pixels."""
    return classifier(64, 80)


def invert(target: Target | Path, *, per_class: int = 2, steps: int = 12, **settings: Any) -> ImageInversion:
    inversion = interpkit.invert(target, inverter="photo", per_class=per_class, steps=steps, **ON_CPU | settings)
    assert isinstance(inversion, ImageInversion)
    return inversion


def spectrum(rng: torch.Generator, shape: tuple[int, int, int], count: int = 1, **settings: float) -> Spectrum:
    return Spectrum(count, shape, rng=rng, **{"falloff": 1.0, "chroma": 1.0, "spread": 0.3} | settings)


# -------------------------------------------------------------------------------------- parametrisation


@pytest.mark.parametrize("shape", [(1, 16, 24), (1, 15, 21)])
@pytest.mark.parametrize("size", [(8, 12), (9, 11), (32, 48), (31, 45)])
def test_an_image_rendered_at_another_size_shows_the_same_wave(
    rng: Rng, shape: tuple[int, int, int], size: tuple[int, int]
) -> None:
    def wave(height: int, width: int) -> Tensor:
        down, across = torch.arange(height)[:, None] / height, torch.arange(width) / width
        return 0.2 + torch.cos(2 * math.pi * (2 * down + 3 * across + 0.1))

    images = spectrum(rng(0), shape)
    field = torch.fft.rfft2(wave(*shape[1:])[None, None], norm="ortho")
    images.theta.data = torch.view_as_real(field / images.scale)
    assert torch.allclose(images()[0, 0], wave(*shape[1:]).sigmoid(), atol=1e-5)
    assert torch.allclose(images(size)[0, 0], wave(*size).sigmoid(), atol=1e-5)


@pytest.mark.parametrize("width", [24, 21])
def test_an_enlarged_image_has_the_same_pixels_in_between_others(rng: Rng, width: int) -> None:
    images = spectrum(rng(0), (1, 16, width), falloff=0.0)
    torch.testing.assert_close(images((32, 2 * width))[..., ::2, ::2], images(), rtol=0, atol=1e-5)


def test_the_field_has_the_spread_asked_for_and_falls_off_as_asked_for(rng: Rng) -> None:
    field = spectrum(rng(0), (2, 16, 24), 60, falloff=1.5, spread=0.5)().detach().logit()
    assert field.std().item() == pytest.approx(0.5, rel=0.15)
    power = torch.fft.rfft2(field, norm="ortho").abs().square().mean((0, 1))
    assert (power[0, 2] / power[0, 8]).item() == pytest.approx(4**3, rel=0.5)


def test_colors_vary_less_than_brightness_unless_chroma_is_zero(rng: Rng) -> None:
    def share(chroma: float) -> float:
        field = spectrum(rng(0), (3, 32, 32), 20, chroma=chroma, spread=0.3)().detach().logit()
        return float(field.var(1, correction=0).mean() / field.var())

    assert share(1.0) < 0.2 < share(0.5) < 0.5 < share(0.0)


# ------------------------------------------------------------------------------------------------ views

STILL: dict[str, Any] = {"zoom": 1.0, "shift": 0.0, "flip": False, "blur": 0.0}


def test_a_view_without_changes_is_the_image(rng: Rng) -> None:
    images = spectrum(rng(0), (3, 16, 24), 2)
    assert torch.equal(random_view(images, (16, 24), Photo.Options(**STILL), rng(1)), images())
    assert torch.equal(random_view(images, (8, 12), Photo.Options(**STILL), rng(1)), images((8, 12)))


def test_a_zoomed_view_is_a_crop_of_the_image_rendered_larger(rng: Rng) -> None:
    images = spectrum(rng(0), (1, 16, 16), 3)
    places = set()
    for seed in range(20):
        view = random_view(images, (8, 8), Photo.Options(**STILL | {"zoom": 0.5}), rng(seed))
        assert view.shape == (3, 1, 8, 8)
        crops = [
            (side, i, j)
            for side in range(8, 17)
            for i in range(side - 7)
            for j in range(side - 7)
            if torch.equal(view[0], images((side, side))[0, :, i : i + 8, j : j + 8])
        ]
        assert len(crops) == 1
        places.update(crops)
    assert len({side for side, _, _ in places}) > 4 and len({i for _, i, _ in places}) > 3


@pytest.mark.parametrize(
    ("options", "changes"), [({"flip": True}, 0.5), ({"shift": 0.2}, 0.8), ({"color": 0.3}, 1.0), ({"blur": 40.0}, 0.5)]
)
def test_each_option_changes_the_views(rng: Rng, options: dict[str, Any], changes: float) -> None:
    images = spectrum(rng(0), (3, 16, 16), 2)
    opt = Photo.Options.model_construct(**Photo.Options(**STILL).model_dump() | options)
    changed = [not torch.equal(random_view(images, (16, 16), opt, rng(seed)), images()) for seed in range(40)]
    assert sum(changed) / 40 == pytest.approx(changes, abs=0.25)


def test_shifted_colors_stay_in_range(target: Target) -> None:
    options = {"photo.color": 1.0, "photo.spread": 3.0}
    assert invert(target, steps=4, options=options).images.shape == (6, 3, 64, 80)


# ----------------------------------------------------------------------------------------------- a run


def test_images_are_of_the_class_asked_for_and_keep_to_the_statistics(target: Target) -> None:
    inversion = invert(target, steps=60, per_class=3)
    images, labels = inversion.sample()
    assert images.shape == (9, 3, 64, 80) and labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert images.min() >= 0 and images.max() <= 1
    with torch.no_grad():
        assert torch.equal(target(images).argmax(1), labels)
    assert inversion.history[-1].terms.keys() == {"ce", "statistics", "tv", "l2"}


def test_the_first_steps_run_at_a_smaller_size_but_not_below_64_pixels(add_plugin: Callable[..., None]) -> None:
    seen = []

    class Watch(interpkit.InversionLoss):
        """Notes the sizes that it is shown."""

        name = "watch"

        def forward(self, batch: interpkit.InversionBatch) -> Tensor:
            seen.append((tuple(batch.images.shape[2:]), batch.progress))
            return batch.images.sum() * 0

    add_plugin(Watch)
    large = classifier(128, 160)
    options = {"photo.sizes": [0.25, 0.75], "photo.changes": [0.75]}
    invert(large, steps=8, losses={"watch": 1.0}, options=options)
    seen = seen[-8:]  # before it, a trial of a few steps was seen
    assert [size for size, _ in seen] == 6 * [(64, 80)] + 2 * [(96, 120)]
    assert [progress for _, progress in seen] == [step / 8 for step in range(8)]


class Picky(nn.Module):
    """A classifier of 3 x 96 x 96 that answers images of other sizes in its own way."""

    def __init__(self, answer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.answer = answer
        self.net = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(3 * 8 * 8, 2))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits if x.shape[-1] % 32 == 0 and x.shape[-1] != 64 else self.answer(logits)


def leaves(logits: Tensor) -> Tensor:
    raise SystemExit(1)


@pytest.mark.parametrize(
    "answer",
    [lambda logits: logits[:, :, None].squeeze(3), lambda logits: logits / 0, lambda logits: logits[:1], leaves],
    ids=["raises", "not finite", "another shape", "leaves"],
)
def test_a_classifier_of_one_size_is_shown_that_size(
    caplog: pytest.LogCaptureFixture, answer: Callable[[Tensor], Tensor]
) -> None:
    inversion = invert(interpkit.wrap(Picky(answer), (3, 96, 96)), steps=2)
    assert inversion.images.shape == (4, 3, 96, 96)
    assert "does not accept images of 64x64 or 68x68 pixels, so those steps run at 96x96: slower" in caplog.text


def test_sizes_that_are_accepted_are_kept_where_another_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    sizes: list[int] = []

    class Multiples(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(x.shape[-1])
            if x.shape[-1] % 32:
                raise RuntimeError("not a multiple of 32")
            return super().forward(x)  # type: ignore[no-any-return]

    net = Multiples(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
    target = interpkit.wrap(net, (3, 96, 96))
    inverted = prepare(target, inverter="photo", steps=10, per_class=1, batch_size=2, **ON_CPU)
    sizes.clear()
    inverted.run()
    assert sizes[:12] == [64, 68] + 8 * [64] + 2 * [96]
    assert "does not accept images of 68x68 pixels, so those steps run at 96x96" in caplog.text


def test_groups_follow_each_other_and_a_resumed_run_is_the_run_that_was_never_stopped(
    target: Target, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"inverter": "photo", "per_class": 2, "steps": 10, "batch_size": 2, **ON_CPU}
    straight = interpkit.invert(target, **settings)
    job = prepare(target, **settings)
    stopped = job.run(out=tmp_path, on_step=lambda step: job.request_stop() if step == 4 else None)
    assert isinstance(stopped, ImageInversion) and stopped.steps_done == 4
    assert len(stopped.images) == 4  # of three groups, one is done and one begun
    assert set(stopped.empty.values()) <= {"the run was stopped before its images were begun"}
    resumed = prepare(target, resume_from=tmp_path).run(out=tmp_path, resume=True)
    assert torch.equal(resumed.sample()[0], straight.sample()[0])
    assert resumed.history[-1].terms == straight.history[-1].terms
    with pytest.raises(RunError, match=r"in 3 groups of 10 steps each.*--steps 12 needs a new run"):
        prepare(target, resume_from=tmp_path, steps=12).run(out=tmp_path, resume=True)


def test_a_step_of_many_groups_says_how_far_it_is_and_stops_within(target: Target, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"inverter": "photo", "per_class": 2, "steps": 4, "batch_size": 2, **ON_CPU}
    straight = interpkit.invert(target, **settings)
    job, seen = prepare(target, **settings), []

    def stop_in_the_fifth_move(net: nn.Module, arguments: object) -> None:
        if net.training or not torch.is_grad_enabled() or job.recorder is None:
            return
        seen.append(str(progress.current()))
        if len(seen) == 5:
            job.request_stop()
            seen.append(job.after_stop)

    with target.register_forward_pre_hook(stop_in_the_fifth_move):
        stopped = job.run(out=tmp_path)
    assert seen[4].startswith("1 of 3 parts of step 2 (group 1 of 3 at its step 4 of 4, 0 of 6 images finished; about ")
    assert seen[5].startswith("stopping within this step; then the 2 images so far are judged, which takes about ")
    assert len(stopped.images) == 4 and stopped.steps_done == 1  # the fifth move was the first of the second group
    assert progress.current() is None
    resumed = prepare(target, resume_from=tmp_path).run(out=tmp_path, resume=True)
    assert torch.equal(resumed.sample()[0], straight.sample()[0])
    assert resumed.history[-1].terms == straight.history[-1].terms


def test_a_run_that_is_stopped_within_its_first_step_is_finished_and_resumed(target: Target, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"inverter": "photo", "per_class": 2, "steps": 2, "batch_size": 2, **ON_CPU}
    job = prepare(target, **settings)
    job.request_stop()
    stopped = job.run(out=tmp_path)
    assert stopped.steps_done == 0 and len(stopped.images) == 2 and (tmp_path / "report.html").exists()
    resumed = prepare(target, resume_from=tmp_path).run(out=tmp_path, resume=True)
    assert torch.equal(resumed.sample()[0], interpkit.invert(target, **settings).sample()[0])


def test_one_group_can_go_on(target: Target, tmp_path: Path) -> None:
    invert(target, steps=4, out=tmp_path)
    assert prepare(target, resume_from=tmp_path, steps=6).run(out=tmp_path, resume=True).steps_done == 6


def test_sizes_and_the_changes_between_them_have_to_fit(target: Target) -> None:
    with pytest.raises(UsageError, match="changes are 1 increasing shares of the steps, one between each two of sizes"):
        invert(target, options={"photo.sizes": [0.5, 1.0]})


def test_vectors_are_refused() -> None:
    with pytest.raises(UsageError, match="'photo' makes images"):
        invert(interpkit.wrap(nn.Linear(4, 2), (4,)), losses={"tv": 0.0})


def test_photographs_get_the_preset_if_none_is_named(target: Target, caplog: pytest.LogCaptureFixture) -> None:
    job = prepare(target, labels=[1], per_class=3)
    assert job.presets == ["photo"] and job.recipe.inverter.options["per_class"] == 3
    assert "no preset is named: applying presets=['photo'], for images of 64x80" in caplog.text
    small = interpkit.wrap(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), (1, 8, 8))
    with pytest.raises(UsageError, match="name a preset"):
        prepare(small)


def test_images_per_class_are_refused_for_a_generator(target: Target) -> None:
    with pytest.raises(UsageError, match=r"'generator' does not make a fixed number of images.*leave per_class out"):
        prepare(target, presets=["vecmat"], per_class=3)
