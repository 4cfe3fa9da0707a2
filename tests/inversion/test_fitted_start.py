"""A generator is fitted to single images first: if the target has no gradient at gray, or to those of another run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import interpkit
from interpkit import GeneratorInversion, ImageInversion, RunError, Target, UsageError
from interpkit.api.invert import prepare
from interpkit.inversion import fitted_start
from interpkit.runtime import progress

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


# ------------------------------------------------------------------------------------- the images of another run


@pytest.fixture
def stripes(tmp_path: Path) -> tuple[Target, Path]:
    """Return a target, and a run of two pictures of each of its classes 0 and 2."""
    target = interpkit.wrap(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), (1, 6, 6))
    made = interpkit.invert(target, inverter="pixels", steps=1, labels=[0, 2], options={"pixels.per_class": 2})
    pictures = torch.full((4, 1, 6, 6), 0.1)
    for number in range(4):
        pictures[number, 0, number] = 0.9
    labels = torch.tensor([0, 2, 0, 2])
    ImageInversion(target, made.recipe, made.history, pictures, labels).save(tmp_path / "pictures")
    return target, tmp_path / "pictures"


def warm(target: Target, run: Path, steps: int = 400, **changes: Any) -> interpkit.Inversion:
    options = SETTINGS["options"] | {"warm_start.steps": steps, "upconv.dropout": 0.0, "sampling.dropout": False}
    settings = SETTINGS | {"labels": [0, 2], "options": options, "losses": {"ce": 1e-6, "kl": 0, "cosine": 0}}
    return interpkit.invert(target, warm_start=run, **(settings | changes))


def test_a_generator_begins_with_the_images_of_another_run(stripes: tuple[Target, Path]) -> None:
    target, run = stripes
    (pictures, _), (images, labels) = interpkit.load_inversion(run, target=target).sample(2), warm(*stripes).sample(20)
    for label in (0, 2):
        of_class = pictures[:2] if label == 0 else pictures[2:]
        distances = torch.cdist(images[labels == label].flatten(1), of_class.flatten(1))
        assert distances.amin(1).median() < 1.0  # the two pictures are 1.6 apart
        assert set(distances.argmin(1).tolist()) == {0, 1}  # some samples are of either
    assert target.num_classes == 3


@pytest.mark.parametrize("modes", [2, 5])
def test_a_generator_with_modes_learns_the_images_in_turn(stripes: tuple[Target, Path], modes: int) -> None:
    options = {"pyramid.modes": modes, "pyramid.width": 8, "pyramid.dropout": 0.0, "warm_start.steps": 100}
    settings = SETTINGS | {"labels": [0, 2], "options": options | {"sampling.dropout": False, "optimizer.lr": 0.005}}
    inversion = interpkit.invert(stripes[0], **settings, generator="pyramid", warm_start=stripes[1])
    assert isinstance(inversion, GeneratorInversion)
    (pictures, _) = interpkit.load_inversion(stripes[1], target=stripes[0]).sample(2)
    condition = inversion.conditioner.sample(modes, labels=torch.zeros(modes, dtype=torch.int64))
    with torch.no_grad():
        images = inversion.generator.eval()(3 * torch.eye(modes, inversion.generator.latent_dim), condition)
    distances = torch.cdist(images.flatten(1), pictures.flatten(1))
    assert distances.argmin(1).tolist() == [mode % 2 for mode in range(modes)]


@pytest.mark.parametrize("generators", [1, 2])
def test_a_generator_that_moves_its_pictures_learns_the_images_unmoved(
    stripes: tuple[Target, Path], generators: int
) -> None:
    options = {"modes": 2, "width": 8, "dropout": 0.0, "zoom": 0.3, "flip": True}
    options = {f"pyramid.{name}": value for name, value in options.items()} | {"optimizer.lr": 0.005}
    settings = SETTINGS | {"labels": [0, 2], "generators": generators, "options": options}
    inversion = interpkit.invert(stripes[0], **settings, generator="pyramid", warm_start=stripes[1])
    assert isinstance(inversion, GeneratorInversion)
    (images, _) = interpkit.load_inversion(stripes[1], target=stripes[0]).sample(2)
    condition = inversion.conditioner.sample(4, labels=torch.zeros(4, dtype=torch.int64))
    latent = 3 * torch.eye(2, inversion.generator.latent_dim).repeat_interleave(2, 0)
    with torch.no_grad():
        unmoved = inversion.generator.eval()(latent, condition)
    assert (unmoved - images[:2].repeat_interleave(2, 0)).abs().mean() < 0.05


def test_the_target_does_not_run_during_the_fit(stripes: tuple[Target, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    target, run = stripes
    seen: list[int] = []
    target.register_forward_hook(lambda *_: seen.append(1))
    counts = []
    for steps in (1, 30):
        seen.clear()
        warm(target, run, steps)
        counts.append(len(seen))
    assert counts[0] == counts[1]


def test_a_class_without_images_is_refused_before_anything_is_written(
    stripes: tuple[Target, Path], tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=r"no images of 1 of the 3 classes to invert, 1 \(.*labels=\[0, 2\]"):
        warm(*stripes, labels=None, out=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_folder_without_a_run_and_images_of_another_size_are_refused(
    stripes: tuple[Target, Path], tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        warm(stripes[0], tmp_path / "nothing")
    larger = interpkit.wrap(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), (1, 8, 8))
    with pytest.raises(RunError, match=r"\(1, 6, 6\)"):
        warm(larger, stripes[1])


def test_an_inverter_that_trains_no_generator_has_nothing_to_start(stripes: tuple[Target, Path]) -> None:
    with pytest.raises(UsageError, match=r"'pixels' trains no generator: leave warm_start out"):
        interpkit.invert(stripes[0], inverter="pixels", steps=1, warm_start=stripes[1])


@pytest.mark.parametrize("at", [4, 6])
def test_a_fit_that_is_stopped_is_resumed_where_it_was(
    stripes: tuple[Target, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    options = SETTINGS["options"] | {"upconv.dropout": 0.3, "warm_start.steps": 7}
    settings = SETTINGS | {"labels": [0, 2], "options": options, "warm_start": stripes[1], "steps": 3}
    straight = interpkit.invert(stripes[0], **settings)
    job, begun = prepare(stripes[0], **settings), []
    tell = progress.tell

    def stop(what: str, done: int, total: int, detail: str = "") -> None:
        tell(what, done, total, detail)
        if what == "steps fitted to images":
            begun.append(done)
            if done == at:
                job.request_stop()
                assert job.after_stop == "stopping before the first step; nothing is drawn"

    monkeypatch.setattr(progress, "tell", stop)
    with pytest.raises(KeyboardInterrupt):
        job.run(out=tmp_path / "run")
    assert progress.current() is None
    begun.clear()
    resumed = prepare(stripes[0], resume_from=tmp_path / "run").run(out=tmp_path / "run", resume=True)
    assert begun == [*range(at + 1, 7), 7]
    assert isinstance(resumed, GeneratorInversion) and isinstance(straight, GeneratorInversion)
    for name, tensor in resumed.tensors().items():
        assert torch.equal(tensor, straight.tensors()[name]), name
    assert [record.loss for record in resumed.history] == [record.loss for record in straight.history]


def test_a_fit_ends_when_asked_to_stop(stripes: tuple[Target, Path]) -> None:
    job = prepare(stripes[0], warm_start=stripes[1], **(SETTINGS | {"labels": [0, 2]}))
    job.request_stop()
    with pytest.raises(KeyboardInterrupt):
        job.run()
