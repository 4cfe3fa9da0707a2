"""What the samples teach: the accuracy on real images of a network that has seen nothing else."""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

import interpkit
from interpkit import Lesson, Metric, Study, Target, TooFew, wilson
from interpkit_metrics.classes import large_enough

LEAST = 20
"""Reference images of a class below which an accuracy says little."""


class Student(Metric):
    r"""Accuracy on real images of a small network that was trained on the samples of the inversion alone.

    Three networks s of the same architecture see the same fresh samples x of the classes y, and learn from

    - ``labels``: the classes asked for, :math:`CE(s(x), y)`. It measures what the *pictures* show of the classes.
    - ``logits``: the target's answers z(x) to them, both centered, :math:`|s(x) - z(x)|_1 / |z(x)|_1`. It measures how
      much of the target the samples make visible: data-free distillation.
    - ``augmented``: the sum of both, on images that are also turned, sheared, scaled and shifted at random.

    For each, on the reference images of the classes that were sampled: ``accuracy``, with its 95 % interval (Wilson
    1927); ``relative``, the accuracy / ``target_accuracy``, above 1 for a student that is better; and ``fidelity``,
    the share on which student and target answer the same. All others are in [0, 1]. The real images of a class all
    count, so that one picture of it, however well made, does not pass.

    The network has a convolution 3 x 3 with batch norm, ReLU and pooling for each halving of the image down to about
    four pixels (16 channels, then twice as many, at most 128), and a linear layer; for vectors, two hidden layers of
    128. The time is that of ``steps`` batches through the generator, the target and three students: 1 to 2 minutes of a
    CPU for 28 x 28 pixels. It is measured only if it is named. Needs 20 reference images of a class, and samples of 2
    classes.

    Sources: Chen et al. 2019, "Data-Free Learning of Student Networks" (DAFL); for the absolute difference of logits,
    Fang et al. 2019, "Data-Free Adversarial Distillation"; for training on samples to test on real images, Ravuri &
    Vinyals 2019, "Classification Accuracy Score".

    Example:
        >>> import torch
        >>> from interpkit import ImageInversion, Recipe, evaluate, wrap
        >>> target = wrap(torch.nn.Identity(), input_shape=(2,))  # its logits are its inputs
        >>> images = torch.rand(400, 2)
        >>> labels = images.argmax(1)
        >>> inversion = ImageInversion(target, Recipe(), [], images[:200], labels[:200])
        >>> metrics = evaluate(inversion, metrics=["student"], reference=(images[200:], labels[200:]))
        >>> metrics["student"]["labels"]["accuracy"] > 0.9
        True
    """

    name = "student"
    needs = ("reference",)
    on_request = True
    describe = {
        r"student\.labels\.accuracy": "Accuracy on real images of a network that learned the classes asked for.",
        r"student\.logits\.accuracy": "Accuracy on real images of a network that learned the target's logits.",
        r"student\.augmented\.accuracy": "The same of one that learned both, on images that were also moved.",
        r"student\..*\.relative": "Its accuracy as a share of the target's.",
        r"student\..*\.fidelity": "Share of the real images on which it answers as the target does.",
        r"student\.target_accuracy": "The target's own accuracy on them.",
    }
    columns = {"student": r"student\.labels\.accuracy"}

    class Options(interpkit.Options):
        """How long the students learn."""

        steps: int = Field(600, ge=1, le=1_000_000, description="batches that each student sees")
        batch_size: int = Field(100, ge=2, le=10_000, description="samples in a batch")
        rate: float = Field(0.002, gt=0, le=1, description="highest learning rate")

    options: Options

    def measure(self, study: Study) -> dict[str, Any]:
        """Return ``student``, in all and per class."""
        target, opt, seed = study.target, self.options, study.rng.initial_seed()
        if target.multi_label:
            study.leave_out(self.name, "it takes a target whose classes exclude each other.")
            return {}
        if len(study.classes) < 2:
            raise TooFew("it takes samples of 2 classes: a student of one gives that answer to every image.")
        classes = large_enough(study, self.name, ["reference"], LEAST)
        lessons = {
            "labels": Lesson(student(target, seed), labels=True, logits=False),
            "logits": Lesson(student(target, seed)),
        }
        if len(target.input_shape) == 3:
            lessons["augmented"] = Lesson(student(target, seed), labels=True, augment=True)
        interpkit.teach(
            target,
            list(lessons.values()),
            study.inversion or (study.images, study.labels("samples")),
            steps=opt.steps,
            batch_size=opt.batch_size,
            rate=opt.rate,
            seed=seed,
            device=study.device,
        )
        rows = torch.cat([study.rows("reference", label) for label in classes])
        images, labels = study.unit_images("reference")[rows], study.labels("reference")[rows]

        @torch.no_grad()
        def answered(taught: Target) -> Tensor:
            parts = study.in_batches(taught, images, lambda rows: taught(images[rows].to(study.device)).cpu())
            return torch.cat(parts).argmax(1)

        answers = {name: answered(lesson.student) for name, lesson in lessons.items()}
        own = study.response(target, "reference").logits[rows].argmax(1)

        def figures(chosen: Tensor) -> dict[str, Any]:
            count, known = int(chosen.sum()), float((own == labels)[chosen].double().mean())
            found: dict[str, Any] = {"target_accuracy": known}
            for name, answer in answers.items():
                hits = int((answer == labels)[chosen].sum())
                found[name] = {
                    "accuracy": hits / count,
                    "accuracy_interval": wilson(hits, count),
                    "fidelity": float((answer == own)[chosen].double().mean()),
                    **({"relative": hits / count / known} if known else {}),
                }
            return found

        return {
            "student": figures(torch.ones_like(labels, dtype=torch.bool)),
            "per_class": {label: {"student": figures(labels == label)} for label in classes},
        }


def student(target: Target, seed: int = 0) -> Target:
    """Return an untrained network for a target's inputs and classes, with the target's own normalization."""
    facts = target.description
    shape = facts.input_shape or target.input_shape
    sizes = shape[1:]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        width, layers = math.prod(shape), list[nn.Module]()
        if sizes:
            conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(sizes) - 1]
            norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[len(sizes) - 1]
            pool = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[len(sizes) - 1]
            last = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[len(sizes) - 1]
            before = shape[0]
            for halving in range(max(1, int(math.log2(min(sizes) / 3)))):
                after = min(16 * 2**halving, 128)
                layers += [
                    conv(before, after, 3, padding=1, bias=False),
                    norm(after),
                    nn.ReLU(),
                    pool(2, ceil_mode=True),
                ]
                before = after
            layers.append(last(3))
            width = before * 3 ** len(sizes)
        else:
            layers += [nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()]
            width = 128
        net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, target.num_classes))
    return interpkit.wrap(
        net,
        shape,
        name="student",
        mean=facts.mean,
        std=facts.std,
        input_range=facts.input_range,
        channel_order=facts.channel_order,
        output="logits",
        class_names=target.class_names,
    )
