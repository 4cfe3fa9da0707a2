"""Teach classifiers by the samples of an inversion: distillation without data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from interpkit.errors import RunError, UsageError
from interpkit.interfaces.inversions import Inversion
from interpkit.interfaces.targets import Target
from interpkit.io.datasets import LabelledImages
from interpkit.runtime import progress
from interpkit.runtime.at_once import in_batches
from interpkit.runtime.autograd import with_autograd
from interpkit.runtime.random import derive_seed, global_seed
from interpkit.targets.module_target import ModuleTarget

ROTATION, SHEAR, SCALE, SHIFT = 15.0, 0.15, 0.15, 0.1
"""The most that an image is moved: degrees, slope, share of its size, share of its side."""


@dataclass(frozen=True)
class Lesson:
    """A student, and what it is taught.

    Attributes:
        student: from `interpkit.wrap`; its module is trained in place.
        labels: whether by the classes that were asked for: the cross-entropy of its logits s.
        logits: whether by the target's logits z: :math:`|s - z|_1 / |z|_1`, both centered if its classes exclude each
            other. A confident target's probabilities tell little but its class.
        augment: whether the images, which the target sees as well, are turned, sheared, scaled and shifted at random.
    """

    student: Target
    labels: bool = False
    logits: bool = True
    augment: bool = False


@with_autograd
def teach(
    target: Target,
    lessons: Sequence[Lesson],
    samples: Inversion | tuple[Tensor, Tensor],
    *,
    steps: int,
    batch_size: int = 100,
    rate: float = 0.002,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> None:
    """Train students on the same samples, by AdamW with a rate that rises and then falls to 0 (Smith & Topin 2019).

    Args:
        target: the teacher.
        lessons: the students, and what each is taught.
        samples: an inversion, of which fresh images are drawn where it can; or images (N, *input_shape) in [0, 1] and
            the classes that were asked for, (N,).
        steps: how many batches each student sees.
        batch_size: images in a batch, the classes in turn.
        rate: the highest learning rate.
        seed: of the samples and of what moves them.
        device: what it runs on; the students stay there.

    Raises:
        RunError: the target or a student has returned NaN.

    Example:
        >>> import torch
        >>> from interpkit import Lesson, teach, wrap
        >>> target = wrap(torch.nn.Identity(), input_shape=(2,))  # its logits are its inputs
        >>> student = wrap(torch.nn.Linear(2, 2), input_shape=(2,))
        >>> images = torch.rand(100, 2)
        >>> teach(target, [Lesson(student)], (images, images.argmax(1)), steps=100, rate=0.1)
        >>> bool((student(images).argmax(1) == images.argmax(1)).double().mean() > 0.9)
        True
    """
    batches = _batches(samples, batch_size, seed)
    students = []
    for lesson in lessons:
        assert isinstance(lesson.student, ModuleTarget), "a student comes from interpkit.wrap"
        optimizer = torch.optim.AdamW(lesson.student.to(device).parameters(), rate, weight_decay=0.01)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=max(2, steps))
        students.append((lesson, lesson.student, optimizer, cycle))
    rng = torch.Generator().manual_seed(derive_seed(seed, "lessons", 0))
    with target.frozen(device), global_seed(seed, torch.device(device)):  # the students' dropout draws from it
        for step in range(steps):
            images, labels = (part.to(device) for part in next(batches))
            seen = {augment: moved(images, rng) if augment else images for augment in {le.augment for le in lessons}}
            with torch.no_grad():
                taught = {augment: _relative(target, target(shown)) for augment, shown in seen.items()}
            for lesson, student, optimizer, cycle in students:
                with student.learning():
                    logits = student(seen[lesson.augment])
                loss = logits.new_zeros(())
                if lesson.labels:
                    loss = loss + target.cross_entropy(logits, labels).mean()
                if lesson.logits:
                    answer = taught[lesson.augment]
                    loss = loss + (_relative(target, logits) - answer).abs().mean() / answer.abs().mean().clamp(
                        min=1e-6
                    )
                if not loss.isfinite():
                    whose = "student" if all(part.isfinite().all() for part in taught.values()) else "target"
                    raise RunError(
                        f"the loss is not finite after {step} batches: the {whose} returns NaN or infinite logits. "
                        + ("Lower the rate." if whose == "student" else "Are its weights intact?")
                    )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                cycle.step()
            progress.tell("batches taught", step + 1, steps)
    for _, _, optimizer, _ in students:
        optimizer.zero_grad()


@torch.no_grad()
def graded(student: Target, target: Target, data: LabelledImages) -> dict[str, float]:
    """Return the accuracy of both on real images, and the student's fidelity: the share of equal answers.

    Of classes that do not exclude each other, each is an answer.
    """
    images, labels = target.to_unit(data.images), data.labels

    def answers(classifier: Target) -> tuple[Tensor, Tensor]:
        def some(rows: slice) -> tuple[Tensor, Tensor]:
            logits = classifier(images[rows])
            predicted = classifier.predictions(logits, labels[rows])
            return predicted, logits > 0 if target.multi_label else predicted

        with classifier.frozen():
            predicted, each = zip(*in_batches(classifier, images, some), strict=True)
        return torch.cat(predicted), torch.cat(each)

    (ours, our_answers), (theirs, their_answers) = answers(student), answers(target)
    shares = {
        "student_accuracy": ours == labels,
        "target_accuracy": theirs == labels,
        "fidelity": our_answers == their_answers,
    }
    return {name: share.double().mean().item() for name, share in shares.items()}


def _batches(samples: Inversion | tuple[Tensor, Tensor], size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches for ever. Images that were made one by one come again, in another order each time."""
    rng = torch.Generator().manual_seed(seed)
    if isinstance(samples, Inversion) and samples.images_per_class is None:
        classes, turn = torch.tensor(samples.classes), 0
        while True:
            order = classes[torch.randperm(len(classes), generator=rng)].tolist()
            yield samples.sample(count=size, labels=order, seed=derive_seed(seed, "taught", turn))
            turn += 1
    if isinstance(samples, Inversion):
        samples = samples.sample_up_to(max(samples.available(label) or 0 for label in samples.classes))
    images, labels = samples
    if len(images) < 2:
        raise UsageError("a student learns from at least 2 samples, and there is only 1.")
    size = min(size, len(images))
    while True:
        for rows in torch.randperm(len(images), generator=rng)[: len(images) // size * size].split(size):
            yield images[rows], labels[rows]


def _relative(target: Target, logits: Tensor) -> Tensor:
    """Return centered logits, whose softmax is the same; the sigmoids of a `multi_label` target would change."""
    return logits if target.multi_label else logits - logits.mean(1, keepdim=True)


def moved(images: Tensor, rng: torch.Generator) -> Tensor:
    """Return images (B, C, H, W), each turned, sheared, scaled and shifted at random; what enters repeats the rim."""

    def draw(most: float) -> Tensor:
        return most * (2 * torch.rand(len(images), generator=rng) - 1)

    angle, shear = draw(math.radians(ROTATION)), draw(SHEAR)
    across, down = 1 + draw(SCALE), 1 + draw(SCALE)
    ratio = images.shape[2] / images.shape[3]  # affine_grid's coordinates run from -1 to 1 on both axes
    rows = [
        torch.stack([across * angle.cos(), (shear - down * angle.sin()) * ratio, 2 * draw(SHIFT)], 1),
        torch.stack([across * angle.sin() / ratio, down * angle.cos(), 2 * draw(SHIFT)], 1),
    ]
    where = F.affine_grid(torch.stack(rows, 1).to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, where, padding_mode="border", align_corners=False)
