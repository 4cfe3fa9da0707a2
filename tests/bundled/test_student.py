"""The metric `student`: it passes real images as samples, and fails one image per class."""

from __future__ import annotations

import pytest
import torch
from interpkit_metrics.student import Student, student
from torch import Tensor, nn

import interpkit
from interpkit import ImageInversion, LabelledImages, Recipe, Samples, Study, Target, TooFew, evaluate, wrap

SHAPE = (1, 12, 12)


def strokes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return images of a bar at a random place: flat, upright or on the diagonal, which is their class."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = 0.1 * torch.rand(count, *SHAPE, generator=rng)
    for image, label, place in zip(images, labels.tolist(), torch.randint(0, 10, (count,), generator=rng), strict=True):
        if label == 0:
            image[:, place : place + 2, :] += 0.8
        elif label == 1:
            image[:, :, place : place + 2] += 0.8
        else:
            image[0] += 0.8 * torch.eye(12).roll(int(place), 1)
    return images, labels


def test_the_student_is_always_the_same_network() -> None:
    def size(of: Target) -> int:
        return sum(parameter.numel() for parameter in student(of).parameters())

    digits, rows = wrap(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), (1, 28, 28)), wrap(nn.Identity(), (4,))
    # Kernels of 3 x 3 with 16, 32 and 64 channels, their batch norms, and a linear layer of 3 x 3 places.
    assert size(digits) == 9 * (16 + 16 * 32 + 32 * 64) + 2 * (16 + 32 + 64) + 10 * (64 * 9 + 1)
    assert size(rows) == 128 * (4 + 1) + 128 * 129 + 4 * 129


def test_the_student_takes_images_as_the_target_does() -> None:
    facts = {"mean": [0.4], "std": [0.2], "input_range": (0.0, 2.0), "class_names": ["a", "b"]}
    taught = student(wrap(nn.Sequential(nn.Flatten(), nn.Linear(144, 2)), (1, 12, 12), **facts))
    known = {name: getattr(taught.description, name) for name in facts}
    assert {name: value if name == "class_names" else pytest.approx(value) for name, value in known.items()} == facts


@pytest.fixture(scope="module")
def target() -> Target:
    """A network trained on `strokes`, which knows nearly all of them."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(200, 32),
            nn.ReLU(),
            nn.Linear(32, 3),
        )
        images, labels = strokes(600, 0)
        optimizer = torch.optim.Adam(net.parameters(), 0.01)
        for rows in torch.arange(600).repeat(8).split(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[rows]), labels[rows]).backward()
            optimizer.step()
    return wrap(net, SHAPE)


def measured(target: Target, images: Tensor, labels: Tensor, **options: int) -> dict[str, dict[str, float]]:
    inversion = ImageInversion(target, Recipe(), [], images, labels)
    return evaluate(
        inversion,
        metrics=["student"],
        reference=strokes(150, 2),
        options={f"student.{name}": value for name, value in {"steps": 60, "rate": 0.01, **options}.items()},
    )["student"]


def test_real_images_teach_and_one_image_per_class_does_not(target: Target) -> None:
    good = measured(target, *strokes(300, 1))
    assert good["target_accuracy"] > 0.95
    assert good["labels"]["relative"] > 0.9
    assert good["logits"]["fidelity"] > 0.9
    images, labels = strokes(3, 1)
    poor = measured(target, images.repeat(100, 1, 1, 1), labels.repeat(100))
    assert poor["labels"]["relative"] < good["labels"]["relative"] - 0.2
    assert poor["labels"]["accuracy"] < 0.75


def test_wrong_labels_fail_the_student_of_labels_alone(target: Target) -> None:
    images, labels = strokes(300, 1)
    found = measured(target, images, (labels + 1) % 3)
    assert found["labels"]["accuracy"] < 0.2
    assert found["logits"]["accuracy"] > 0.8


def test_each_class_has_its_figures(target: Target) -> None:
    inversion = ImageInversion(target, Recipe(), [], *strokes(60, 1))
    found = evaluate(inversion, metrics=["student"], reference=strokes(90, 2), options={"student.steps": 5})
    rows = [row["student"] for row in found["per_class"]]
    assert len(rows) == 3
    whole = sum(row["labels"]["accuracy"] for row in rows) / 3  # thirty images of each
    assert whole == pytest.approx(found["student"]["labels"]["accuracy"])


def test_it_is_measured_only_if_it_is_named(target: Target) -> None:
    inversion = ImageInversion(target, Recipe(), [], *strokes(60, 1))
    assert "student" not in evaluate(inversion, reference=strokes(90, 2))


def test_fresh_samples_are_drawn_where_there_is_a_generator(target: Target) -> None:
    inversion = interpkit.invert(target, ["vecmat"], steps=2, batch_size=6)
    counts = []
    sample = inversion.sample

    def spy(**arguments: object) -> tuple[Tensor, Tensor]:
        images, labels = sample(**arguments)  # type: ignore[arg-type]
        counts.append(len(images))
        return images, labels

    inversion.sample = spy  # type: ignore[method-assign,assignment]
    options = {"student.steps": 4, "student.batch_size": 50}
    evaluate(inversion, metrics=["student"], reference=strokes(90, 2), options=options)
    assert counts == [50] * 4


def study(target: Target, reference: tuple[Tensor, Tensor]) -> Study:
    images, labels = strokes(30, 1)
    samples = Samples(images, labels, labels, torch.ones(30), None, torch.zeros_like(labels), None)
    return Study(target, samples, LabelledImages(*reference))


def test_twenty_reference_images_of_a_class_are_enough_and_nineteen_are_not(target: Target) -> None:
    metric = Student(Student.Options(steps=2))
    images, labels = strokes(60, 2)
    assert "student" in metric.measure(study(target, (images, labels)))
    with pytest.raises(TooFew, match="20 images of a class of each: reference"):
        metric.measure(study(target, (images[:57], labels[:57])))


def test_samples_of_a_single_class_teach_nothing(target: Target) -> None:
    asked = study(target, strokes(90, 2))
    asked.samples.labels.zero_()
    with pytest.raises(TooFew, match="samples of 2 classes"):
        Student(Student.Options(steps=2)).measure(asked)


def test_labels_that_do_not_exclude_each_other_are_left_out() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(144, 3))
    many = wrap(net, SHAPE, output="sigmoid_logits")
    asked = study(many, strokes(90, 2))
    assert Student().measure(asked) == {}
    assert "exclude each other" in asked.left_out["student"]


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 40, 24), (2, 30), (1, 4, 8, 8), (7,), (1, 2, 2)])
def test_a_student_fits_any_input(shape: tuple[int, ...]) -> None:
    net = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    net(torch.zeros(1, *shape))
    classifier = wrap(net, shape, mean=0.25)
    found = student(classifier)
    assert found(torch.rand(2, *classifier.input_shape)).shape == (2, 3)
    assert found.description.mean == classifier.description.mean
