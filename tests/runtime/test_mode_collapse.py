"""The recorder reports each class that collapses once, during the run, and no other class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import interpkit
from interpkit import Condition, ConditionSpec, Generator, Recorder
from interpkit.api.invert import prepare
from interpkit.runs.folder import Run
from interpkit.runtime.mode_collapse import NEVER_HIT, ONE_PICTURE, Collapse, directions

Quick = Callable[..., dict[str, Any]]


def judged(
    images: Tensor, labels: Tensor, right: Tensor | bool = True, times: int = 5, classes: int = 3
) -> dict[str, list[int]]:
    """Return the collapsed classes after several steps with the same images."""
    collapse = Collapse(classes)
    for _ in range(times):
        collapse.look(images, labels, torch.as_tensor(right).expand(len(labels)))
    return collapse.judge(50)


def batch(count: int = 24) -> tuple[Tensor, Tensor]:
    return torch.rand(count, 1, 28, 28), torch.arange(count) % 3


# ----------------------------------------------------------------------------------------- one picture


def test_a_class_with_identical_images_is_reported() -> None:
    images, labels = batch()
    images[labels == 1] = images[1].clone()
    assert judged(images, labels) == {ONE_PICTURE: [1]}


def test_noise_and_brightness_do_not_make_another_picture() -> None:
    images, labels = batch()
    picture = torch.zeros(1, 28, 28)
    picture[:, 6:20, 10:14] = 0.5
    images[labels == 2] = picture + 0.1 * torch.rand(8, 1, 28, 28) + torch.linspace(0, 0.3, 8)[:, None, None, None]
    assert judged(images, labels) == {ONE_PICTURE: [2]}


def test_flat_images_are_one_picture_whatever_noise_nobody_sees() -> None:
    images, labels = batch()
    images[labels == 0] = 1 - 0.001 * torch.rand(8, 1, 28, 28)
    assert judged(images, labels) == {ONE_PICTURE: [0]}


def test_textures_that_look_gray_from_a_distance_are_several_pictures() -> None:
    """Their pooled images have a cosine close to 1, the measure of duplicates in metrics.json."""
    images, labels = batch()
    pooled = torch.nn.functional.avg_pool2d(images, 4).flatten(1)
    assert torch.nn.functional.cosine_similarity(pooled[0], pooled[3], 0) > 0.95
    assert judged(images, labels) == {}


def test_drawings_on_the_same_background_are_several_pictures() -> None:
    images, labels = torch.zeros(24, 1, 28, 28), torch.arange(24) % 3
    for i, image in enumerate(images):
        image[:, 4:24, 8 + i // 3 : 11 + i // 3] = 1  # a stroke, one pixel further right each time
    assert judged(images, labels) == {}


def test_images_of_different_steps_are_not_compared() -> None:
    """An inverter may move one image per class, which is not a collapse even if the image hardly changes."""
    assert judged(torch.rand(3, 1, 28, 28), torch.arange(3), times=50) == {}


def test_the_mean_cosine_is_that_of_all_pairs_of_a_class() -> None:
    images, labels = batch(30)
    collapse = Collapse(3)
    collapse.look(images, labels, labels == 0)
    counts, hits, pairs, cosines = collapse.state()["seen"]
    assert counts.tolist() == [10, 10, 10] and hits.tolist() == [10, 0, 0] and pairs.tolist() == [90] * 3
    units = directions(images)
    for label in range(3):
        gram = units[labels == label] @ units[labels == label].T
        assert cosines[label].item() == pytest.approx((gram.sum() - gram.trace()).item(), rel=1e-4)


def test_vectors_are_never_reported_as_one_picture() -> None:
    assert judged(torch.full((24, 4), 0.5), torch.arange(24) % 3) == {}


def test_large_images_are_pooled_to_few_numbers() -> None:
    assert directions(torch.rand(2, 3, 224, 200)).shape == (2, 3 * 16 * 16 + 1)
    assert directions(torch.rand(2, 1, 8, 28)).shape == (2, 8 * 7 + 1)


# ------------------------------------------------------------------------------------------- never hit


def test_a_class_that_is_never_hit_is_reported_after_enough_images() -> None:
    images, labels = batch()
    assert judged(images, labels, labels != 2, times=6) == {}  # 48 images
    assert judged(images, labels, labels != 2, times=7) == {NEVER_HIT: [2]}


def test_a_single_hit_prevents_a_never_hit_report() -> None:
    images, labels = batch()
    collapse = Collapse(3)
    for step in range(20):
        collapse.look(images, labels, (labels != 2) | (torch.arange(24) == 23) & (step == 0))
    assert collapse.judge(50) == {}


def test_a_class_is_reported_once_and_judged_again_each_time() -> None:
    images, labels = batch()
    collapse = Collapse(3)
    reports = []
    for never in (-1, 1, 1, 2):
        for _ in range(10):
            collapse.look(images, labels, labels != never)
        reports.append(collapse.judge(50))
    assert reports == [{}, {NEVER_HIT: [1]}, {}, {NEVER_HIT: [2]}]


def test_classes_that_are_rare_are_judged_later() -> None:
    """If a step has fewer images than there are classes, the counts of several steps add up."""
    collapse, reports = Collapse(1000), []
    for step in range(1, 61):
        collapse.look(torch.rand(2, 1, 28, 28), torch.tensor([7, 7]), torch.tensor([False, False]))
        reports += [(step, what) for what in collapse.judge(step)]
    assert reports == [(25, NEVER_HIT)]


# --------------------------------------------------------------------------------------------- in a run


class OnePicture(Generator):
    """Ignores the latent for class 1, and uses it for the other classes."""

    name = "one_picture"
    latent_dim = 16

    def __init__(self, spec: ConditionSpec, input_shape: tuple[int, ...], options: Any = None) -> None:
        super().__init__(spec, input_shape, options)
        self.map = torch.nn.Linear(16, 144)

    def forward(self, latent: Tensor, condition: Condition) -> Tensor:
        ignored = (condition.labels == 1)[:, None]
        free = torch.sigmoid(3 * self.map(latent))
        fixed = torch.linspace(0, 1, 144) + 0 * free
        return torch.where(ignored, fixed, free).view(-1, 1, 12, 12)


def settings(quick: Quick, **changes: Any) -> dict[str, Any]:
    options = {"sampling.chunk": 100}
    return quick(steps=100, batch_size=24, generator="one_picture", **changes) | {"options": options}


def test_a_generator_that_ignores_its_latent_for_a_class_is_reported_during_training(
    add_plugin: Callable[..., None],
    tiny_target: interpkit.Target,
    quick: Quick,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    add_plugin(OnePicture)
    reported_at: list[int] = []
    interpkit.invert(
        tiny_target,
        out=tmp_path,
        on_step=lambda step: reported_at.append(step) if "one picture" in caplog.text else None,
        **settings(quick),
    )
    pictures = [message for message in caplog.messages if "one picture" in message]
    assert len(pictures) == 1
    assert pictures[0].startswith(
        "at step 50 the images of 1 of 3 classes (class 1) have collapsed to one picture per class: try more weight"
    )
    assert reported_at[0] == 51
    collapsed = Run.open(tmp_path).manifest().collapsed
    assert {"label": 1, "name": "class 1", "what": ONE_PICTURE, "step": 50} in collapsed
    assert [row["label"] for row in collapsed if row["what"] == ONE_PICTURE] == [1]


def test_a_resumed_run_does_not_report_a_collapse_again(
    add_plugin: Callable[..., None],
    tiny_target: interpkit.Target,
    quick: Quick,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    add_plugin(OnePicture)
    changes = settings(quick)
    job = prepare(tiny_target, changes.pop("plugins"), **changes)
    job.run(out=tmp_path, on_step=lambda step: job.request_stop() if step == 65 else None)
    before = Run.open(tmp_path).manifest().collapsed
    assert "one picture" in caplog.text
    caplog.clear()
    interpkit.invert(tiny_target, ["vecmat"], out=tmp_path, resume=True, **changes)
    assert "one picture" not in caplog.text
    assert Run.open(tmp_path).manifest().collapsed[: len(before)] == before


def test_a_collapse_of_most_classes_suggests_a_lower_rate(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder(100, class_names=["a", "b"], variety_preset="training-like")
    labels = torch.arange(16) % 2
    for step in range(1, 101):
        logits = torch.eye(2)[labels] if step < 70 else torch.eye(2)[torch.zeros(16, dtype=torch.long)]
        loss = torch.tensor(1.0)
        recorder.step(step, loss, {"ce": loss}, torch.ones(16, 1, 12, 12), logits, labels)
    assert caplog.messages == [
        "at step 50 the images of 2 of 2 classes (a, b) have collapsed to one picture per class: try a lower rate, "
        "more weight on a term for variety, or presets=['training-like'] over the recipe"
    ]


def test_collapsed_classes_are_counted_among_those_that_are_inverted(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder(100, class_names=["a", "b", "c", "d", "e"], classes=2)
    labels, loss = torch.arange(16) % 2 + 1, torch.tensor(1.0)
    for step in range(1, 101):
        recorder.step(step, loss, {"ce": loss}, torch.ones(16, 1, 12, 12), torch.eye(5)[labels], labels)
    assert "2 of 2 classes (b, c) have collapsed to one picture per class: try a lower rate" in caplog.messages[0]


def test_a_run_of_some_classes_counts_collapsed_ones_among_them(
    tmp_path: Path, tiny_model: Path, quick: Quick, add_plugin: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    add_plugin(OnePicture)
    interpkit.invert(tiny_model, out=tmp_path, **settings(quick, labels=[1, 2]))
    assert "the images of 1 of 2 classes (class 1) have collapsed" in caplog.text


def test_collapse_is_not_reported_in_the_first_part_of_a_run(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder(1000, class_names=["a", "b"])
    labels = torch.arange(16) % 2
    for step in range(1, 400):
        loss = torch.tensor(1.0)
        recorder.step(step, loss, {"ce": loss}, torch.ones(16, 1, 12, 12), torch.eye(2)[1 - labels], labels)
    assert not caplog.messages
