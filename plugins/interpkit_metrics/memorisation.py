"""Whether the samples are typical of the class, or remember the images that the target was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

import interpkit
from interpkit import Metric, Study, wilson
from interpkit_metrics.classes import LEAST, large_enough, leave_out_of_vectors
from interpkit_metrics.similarity import distances, pooled


class Memorisation(Metric):
    r"""Nearest training image against nearest held-out image, equal numbers of both, within a class.

    With :math:`d_T` and :math:`d_H` the Euclidean distances of a sample to the nearest training image and to the
    nearest held-out image of its class, in the pictures average-pooled 2 x 2 (``pixels``) and in the penultimate
    features of each evaluator, else of the target (``features``):

    - ``nearer_to_training``, in [0, 1]: share of samples with :math:`d_T < d_H`, ties counted half. 0.5 is typical of
      the class; more remembers the training images. Its 95 % interval (Wilson 1927) is that of
      :math:`N^2 / \sum_i n_i^2` trials, :math:`n_i` the samples that have image i for nearest: whether that image is a
      training one decides all of them at once, so that a hundred copies of one sample are one trial.
    - ``gap``: :math:`\sum (d_H - d_T) / \sum d_H`, at most 1: how much nearer, on the whole.

    The larger set of a class is subsampled at random to the size of the smaller, as more images are nearer by chance.
    The features of the target itself know its training images; an evaluator's do not. Needs 10 of each in a class.
    The question is that of Meehan et al. 2020, "A Non-Parametric Test to Detect Data-Copying in Generative Models", who
    ask with the same three sets whether samples lie nearer to the training set than held-out images do.

    Example:
        >>> import torch
        >>> from interpkit import ImageInversion, Recipe, evaluate, wrap
        >>> target = wrap(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)), input_shape=(1, 4, 4))
        >>> images, labels = torch.eye(16).view(16, 1, 4, 4), torch.zeros(16, dtype=torch.long)
        >>> inversion = ImageInversion(target, Recipe(labels=[0]), [], images, labels)
        >>> data = {"training": (images, labels), "reference": (1 - images, labels)}  # it copies its training images
        >>> evaluate(inversion, metrics=["memorisation"], **data)["memorisation"]["pixels"]["nearer_to_training"]
        1.0
    """

    name = "memorisation"
    describe = {
        r"memorisation\..*nearer_to_training": "Share nearer to a training than to a held-out image; half is chance.",
        r"memorisation\..*gap": "How much nearer they are to the training images, as a share; 0 is not at all.",
    }
    needs = ("training", "reference")

    class Options(interpkit.Options):
        """How many images."""

        images: int = Field(500, ge=LEAST, description="the most images of a class, of both kinds")
        pool: int = Field(2, ge=1, description="pixels: side of the squares that are averaged")

    options: Options

    def measure(self, study: Study) -> dict[str, Any]:
        """Return ``memorisation``."""
        labels = large_enough(study, self.name, ["samples", "training", "reference"])
        training: list[Tensor] = []
        held_out: list[Tensor] = []
        sizes = []
        for label in labels:
            ours, theirs = (study.rows(which, label) for which in ("training", "reference"))
            size = min(len(ours), len(theirs), self.options.images)
            sizes.append(size)
            for rows, chosen in ((ours, training), (theirs, held_out)):
                chosen.append(rows[torch.randperm(len(rows), generator=study.rng)[:size]])
        asked = [study.rows("samples", label) for label in labels]
        images = (
            study.images[torch.cat(asked)],
            study.unit_images("training")[torch.cat(training)],
            study.unit_images("reference")[torch.cat(held_out)],
        )
        counts = [len(rows) for rows in asked]

        def compared(samples: Tensor, seen: Tensor, unseen: Tensor) -> dict[str, Any]:
            return _figures(samples.split(counts), seen.split(sizes), unseen.split(sizes))

        leave_out_of_vectors(study, self, "pool")
        pictures = [pooled(part, self.options.pool) for part in images]
        features = {}
        for name, judge in study.judges.items():
            # not `Study.response`: a large training set's other images need no forward pass
            found = [study.look(judge, part).features for part in images]
            broken = sum(int((~part.isfinite()).any(1).sum()) for part in found)
            if broken:
                study.leave_out(f"{self.name}.features.{name}", f"the features of {broken} images are not finite.")
            else:
                features[name] = compared(*found)
        return {"memorisation": {"pixels": compared(*pictures), "features": features}}


def _figures(samples: Sequence[Tensor], training: Sequence[Tensor], held_out: Sequence[Tensor]) -> dict[str, Any]:
    """Compare, within each class; one tensor of vectors per class."""
    columns: list[tuple[Tensor, Tensor]] = []
    squares = 0
    for x, seen, unseen in zip(samples, training, held_out, strict=True):
        apart = distances(x, torch.cat([seen, unseen]))
        columns.append((apart[:, : len(seen)].amin(1), apart[:, len(seen) :].amin(1)))
        squares += int(apart.argmin(1).bincount().square().sum())
    to_training, to_held_out = (torch.cat(column) for column in zip(*columns, strict=True))
    hits = float((to_training < to_held_out).double().sum() + (to_training == to_held_out).double().sum() / 2)
    share, trials = hits / len(to_training), len(to_training) ** 2 / squares
    total = to_held_out.sum()
    gap = {"gap": float((to_held_out - to_training).sum() / total)} if total > 0 else {}
    return {"nearer_to_training": share, "nearer_to_training_interval": wilson(share * trials, trials), **gap}
