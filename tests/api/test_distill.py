"""`interpkit.distill`: a smaller classifier, without data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import interpkit
from interpkit import Inversion, Lesson, ModelError, UsageError, distill, invert, load_target, wrap


@pytest.fixture(scope="module")
def inversion() -> Inversion:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 3))
    target = wrap(net, (1, 12, 12), mean=0.2, std=0.5, class_names=["a", "b", "c"])
    return invert(target, ["vecmat"], steps=5, batch_size=12)


def test_an_architecture_becomes_a_file_that_needs_no_flags(inversion: Inversion, tmp_path: Path) -> None:
    sizes = {"widths": [4], "hidden": 8}  # the classes and the shape follow from the target
    student = distill(inversion, "interpkit:cnn", arch_args=sizes, out=tmp_path / "small.safetensors", steps=3)
    again = load_target(tmp_path / "small.safetensors")
    images = torch.rand(2, 1, 12, 12)
    assert torch.allclose(again(images), student(images), atol=1e-6)
    assert again.class_names == ["a", "b", "c"]
    assert again.description.mean == [0.2]


def test_the_same_seed_gives_the_same_student(inversion: Inversion) -> None:
    images = torch.rand(2, 1, 12, 12)
    one, same, other = (distill(inversion, "interpkit:cnn", steps=3, seed=seed)(images).detach() for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_student_learns_the_targets_answers(inversion: Inversion) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(144, 3))
    student = distill(inversion, net, steps=400, rate=0.02, labels=False, augment=False)
    images, _ = inversion.sample(per_class=20, seed=9)
    with torch.no_grad():
        assert (student(images).argmax(1) == inversion.target(images).argmax(1)).double().mean() > 0.9


def test_a_students_modes_and_frozen_batch_norm_are_as_before_and_it_keeps_no_gradient(inversion: Inversion) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(200, 3)).train()
    net[1].eval()
    modes, mean, kernel = [part.training for part in net.modules()], net[1].running_mean.clone(), net[0].weight.clone()
    distill(inversion, net, steps=3)
    assert [part.training for part in net.modules()] == modes
    assert torch.equal(net[1].running_mean, mean) and not torch.equal(net[0].weight, kernel)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_student_in_eval_mode_is_trained_with_its_batch_norm(inversion: Inversion) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(200, 3)).eval()
    mean, kernel = net[1].running_mean.clone(), net[0].weight.clone()
    distill(inversion, net, steps=3)
    assert not (torch.equal(net[1].running_mean, mean) or torch.equal(net[0].weight, kernel))
    assert not any(part.training for part in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize(
    ("student", "words"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(144, 4)), "has 4 classes, and Sequential has 3"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(100, 3)),
            r"cannot learn from Sequential, whose inputs .*\(1, 12, 12\): .* Choose a student that takes them\.$",
        ),
        ("interpkit:cn", "there is no architecture 'interpkit:cn'"),
        ("nothing", "is not a registered one"),
    ],
)
def test_a_student_that_does_not_fit_is_refused(inversion: Inversion, student: nn.Module | str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        distill(inversion, student, steps=1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 0}, "at least 1 step"),
        ({"labels": False, "logits": False}, "nothing to learn from"),
        ({"out": "small.safetensors"}, "pass FAMILY:NAME"),
    ],
)
def test_settings_that_make_no_sense_are_refused(inversion: Inversion, settings: dict[str, object], words: str) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(144, 3))
    with pytest.raises(UsageError, match=words):
        distill(inversion, module, **settings)  # type: ignore[arg-type]


def test_a_file_that_cannot_be_written_is_refused_before_the_training(
    inversion: Inversion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interpkit.api.distill.teach", lambda *_, **__: pytest.fail("it was trained"))
    with pytest.raises(UsageError, match=r"small\.pt: .* must end in \.safetensors"):
        distill(inversion, "interpkit:cnn", out=tmp_path / "small.pt", steps=1)


def test_the_user_is_warned_of_classes_without_samples(inversion: Inversion, caplog: pytest.LogCaptureFixture) -> None:
    some = invert(inversion.target, ["vecmat"], steps=1, batch_size=12, labels=["c", "a"])
    caplog.clear()
    distill(some, nn.Sequential(nn.Flatten(), nn.Linear(144, 3)), steps=1)
    assert caplog.messages == ["the samples show 2 of 3 classes; the student learns no others"]


def test_a_single_sample_is_refused(inversion: Inversion) -> None:
    image, label = torch.rand(1, 1, 12, 12), torch.tensor([0])
    one = interpkit.ImageInversion(inversion.target, interpkit.Recipe(labels=[0]), [], image, label)
    with pytest.raises(UsageError, match="at least 2 samples, and there is only 1"):
        distill(one, nn.Sequential(nn.Flatten(), nn.Linear(144, 3)), steps=1)


def test_of_labels_that_do_not_exclude_each_other_a_student_learns_the_logits_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lessons: list[Lesson] = []
    monkeypatch.setattr("interpkit.api.distill.teach", lambda target, taught, *_, **__: lessons.extend(taught))
    target = wrap(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), (1, 6, 6), output="sigmoid_logits")
    inversion = interpkit.ImageInversion(target, interpkit.Recipe(), [], torch.rand(6, 1, 6, 6), torch.arange(6) % 3)
    student = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    distill(inversion, student, steps=1)
    assert [(lesson.labels, lesson.logits) for lesson in lessons] == [(False, True)]
    with pytest.raises(UsageError, match=r"do not exclude each other, .* which others it shows: leave logits"):
        distill(inversion, student, steps=1, logits=False)


def test_vectors_are_not_moved() -> None:
    net = nn.Sequential(nn.Linear(4, 3))
    inversion = invert(wrap(net, (4,)), ["pixels"], steps=3, losses={"tv": 0})
    assert distill(inversion, nn.Linear(4, 3), steps=2).input_shape == (4,)
    with pytest.raises(interpkit.UsageError, match="only images can be turned"):
        distill(inversion, nn.Linear(4, 3), steps=2, augment=True)
