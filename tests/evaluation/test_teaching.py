"""Teaching students by samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import interpkit
from interpkit import ImageInversion, LabelledImages, Lesson, Recipe, RunError, Target, teach, wrap
from interpkit.evaluation import teaching
from interpkit.evaluation.teaching import _batches, graded

SHAPE = (1, 8, 8)


def halves(count: int) -> tuple[Tensor, Tensor]:
    """Return noisy images whose left or right half is bright, which is their class."""
    labels = torch.arange(count) % 2
    images = 0.3 * torch.rand(count, *SHAPE)
    images[labels == 0, :, :, :4] += 0.5
    images[labels == 1, :, :, 4:] += 0.5
    return images, labels


@pytest.fixture
def target() -> Target:
    """A classifier of `halves` that is always right."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    side = torch.zeros(*SHAPE)
    side[:, :, :4] = 1.0
    net[1].weight.data, net[1].bias.data = torch.stack([side.flatten(), 1 - side.flatten()]), torch.zeros(2)
    return wrap(net, SHAPE)


def small() -> Target:
    return wrap(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)), SHAPE)


@pytest.mark.parametrize("lesson", [{"labels": True, "logits": False}, {}, {"labels": True, "augment": True}])
def test_a_student_learns_what_the_samples_show(target: Target, lesson: dict[str, bool]) -> None:
    student = small()
    teach(target, [Lesson(student, **lesson)], halves(40), steps=40, batch_size=20, rate=0.02)
    figures = graded(student, target, LabelledImages(*halves(60)))
    assert figures["target_accuracy"] == 1.0
    assert figures["student_accuracy"] == figures["fidelity"] > 0.95


def test_a_wide_image_is_moved_as_part_of_a_square_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teaching, "SHIFT", 0.0)  # which is a share of the side
    square = torch.rand(8, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    square[:, :, :18] = square[:, :, 30:] = 0
    whole, wide = (teaching.moved(images, torch.Generator().manual_seed(1)) for images in (square, square[:, :, 12:36]))
    assert torch.allclose(whole[:, :, 12:36], wide, atol=1e-4)


def test_labels_that_do_not_exclude_each_other_are_learned_with_their_level() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    net[1].bias.data += 3.0  # both labels are present in most images
    target = wrap(net, SHAPE, output="sigmoid_logits")
    student = wrap(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), SHAPE, output="sigmoid_logits")
    teach(target, [Lesson(student)], halves(40), steps=100, batch_size=20, rate=0.05)
    images, _ = halves(60)
    with torch.no_grad():
        assert torch.allclose(student(images), target(images), atol=0.5)


def test_of_labels_that_do_not_exclude_each_other_each_is_an_answer_of_the_student() -> None:
    targets = []
    for bias in (-0.5, -2.0):  # the student never answers the third label
        net = nn.Linear(3, 3)
        net.weight.data, net.bias.data = torch.eye(3), torch.tensor([-0.5, -0.5, bias])
        targets.append(wrap(net, (3,), output="sigmoid_logits"))
    target, student = targets
    images, labels = torch.tensor([[0.9, 0.1, 0.8], [0.9, 0.8, 0.1]]), torch.tensor([0, 0])
    figures = graded(student, target, LabelledImages(images, labels))
    assert figures == {"student_accuracy": 1.0, "target_accuracy": 1.0, "fidelity": pytest.approx(5 / 6)}


def test_labels_that_lie_mislead_only_the_student_that_learns_them(target: Target) -> None:
    images, labels = halves(40)
    by_labels, by_logits = small(), small()
    lessons = [Lesson(by_labels, labels=True, logits=False), Lesson(by_logits)]
    teach(target, lessons, (images, 1 - labels), steps=40, batch_size=20, rate=0.02)
    real = LabelledImages(*halves(60))
    assert graded(by_labels, target, real)["student_accuracy"] < 0.05
    assert graded(by_logits, target, real)["student_accuracy"] > 0.95


def test_teaching_changes_the_student_alone_and_repeats_itself(target: Target) -> None:
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    weights = []
    for _ in range(2):
        torch.manual_seed(5)
        net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 2))
        student = wrap(net, SHAPE)
        torch.rand(3)  # what else happens does not matter
        teach(target, [Lesson(student, augment=True)], halves(40), steps=3, batch_size=8, seed=1)
        weights.append(net[2].weight.detach().clone())
        assert net.training  # as it was
    assert torch.equal(*weights)
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


def test_a_students_batch_norms_are_those_of_the_samples(target: Target) -> None:
    student = small()
    teach(target, [Lesson(student)], halves(40), steps=30, batch_size=40)
    norm = student.get_submodule("module.1")
    assert isinstance(norm, nn.BatchNorm2d)
    seen = student.respond(halves(200)[0], layers=["1:in"]).features["1:in"].mean((0, 2, 3))
    assert norm.running_mean is not None
    assert torch.allclose(norm.running_mean, seen, atol=0.05)


def test_all_classes_of_a_generator_are_taught_though_a_batch_has_fewer(target: Target) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 7))
    many = wrap(net, SHAPE)
    inversion = interpkit.invert(many, ["vecmat"], steps=2, batch_size=8)
    asked: list[Tensor] = []

    sample = inversion.sample

    def spy(**arguments: object) -> tuple[Tensor, Tensor]:
        images, labels = sample(**arguments)  # type: ignore[arg-type]
        asked.append(labels)
        return images, labels

    inversion.sample = spy  # type: ignore[method-assign,assignment]
    student = wrap(nn.Sequential(nn.Flatten(), nn.Linear(64, 7)), SHAPE)
    teach(many, [Lesson(student)], inversion, steps=12, batch_size=3)
    assert {len(labels) for labels in asked} == {3}
    assert torch.cat(asked).unique().tolist() == list(range(7))
    assert not torch.equal(asked[0], asked[1])


def test_a_class_with_few_images_does_not_limit_the_others(target: Target) -> None:
    images, labels = halves(6)
    few = torch.cat([(labels == 0).nonzero()[:1, 0], (labels == 1).nonzero()[:, 0]])
    inversion = ImageInversion(target, Recipe(), [], images[few], labels[few])
    assert inversion.images_per_class == 1
    batches = _batches(inversion, 100, seed=0)
    assert len(next(batches)[1]) == len(few)
    assert inversion.sample_up_to(2)[1].tolist() == [0, 1, 1]


def test_images_made_one_by_one_come_again(target: Target) -> None:
    images, labels = halves(6)
    inversion = ImageInversion(target, Recipe(), [], images, labels)
    student = small()
    teach(target, [Lesson(student, labels=True)], inversion, steps=30, batch_size=4, rate=0.02)
    assert graded(student, target, LabelledImages(*halves(60)))["student_accuracy"] > 0.9


def test_teaching_works_where_the_caller_has_switched_gradients_off(target: Target) -> None:
    weights = []
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        torch.manual_seed(5)
        student = wrap(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), SHAPE)
        images, labels = halves(40)
        with mode():
            teach(target, [Lesson(student)], (images, labels), steps=3, batch_size=8)
        weights.append([parameter.detach().clone() for parameter in student.parameters()])
    assert all(torch.equal(*pair) for other in weights[1:] for pair in zip(weights[0], other, strict=True))


def frozen_norm() -> nn.Sequential:
    """Return a student's network in training mode, but for its batch norm, which its user has put in eval mode."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).train()
    net[1].eval()
    return net


def test_a_frozen_batch_norm_in_a_student_in_training_mode_stays_frozen(target: Target) -> None:
    net = frozen_norm()
    modes, mean, kernel = [part.training for part in net.modules()], net[1].running_mean.clone(), net[0].weight.clone()
    seen: list[bool] = []
    net[1].register_forward_hook(lambda norm, *_: seen.append(norm.training))
    student = wrap(net, SHAPE)
    seen.clear()
    teach(target, [Lesson(student)], halves(40), steps=3, batch_size=20, rate=0.02)
    assert seen == [False] * 3 and torch.equal(net[1].running_mean, mean)
    assert not torch.equal(net[0].weight, kernel)
    assert [part.training for part in net.modules()] == modes
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_student_in_eval_mode_learns_in_training_mode_and_is_in_eval_mode_again(target: Target) -> None:
    net = frozen_norm().eval()
    mean = net[1].running_mean.clone()
    teach(target, [Lesson(wrap(net, SHAPE))], halves(40), steps=3, batch_size=20)
    assert not torch.equal(net[1].running_mean, mean)
    assert not any(part.training for part in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())


class Patchy(nn.Module):
    """A classifier that returns NaN for images whose first number is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x.flatten(1))
        return logits.masked_fill(x.flatten(1)[:, :1] == 0, torch.nan)


def test_answers_that_are_not_finite_are_refused_with_the_name_of_who_gave_them(target: Target) -> None:
    images, labels = halves(40)
    images[:, :, 0, 0] = 0
    broken = wrap(Patchy(), SHAPE)
    with pytest.raises(RunError, match=r"not finite after 0 batches: the target returns NaN.*weights intact"):
        teach(broken, [Lesson(small())], (images, labels), steps=3, batch_size=8)
    with pytest.raises(RunError, match=r"not finite after 0 batches: the student returns NaN.*Lower the rate"):
        teach(target, [Lesson(broken)], (images, labels), steps=3, batch_size=8)
