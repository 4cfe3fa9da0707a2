"""Whether the samples give away single images that the target may remember."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

import interpkit
from interpkit import Metric, Study, TooFew
from interpkit_metrics.classes import LEAST, leave_out_of_vectors, names
from interpkit_metrics.similarity import distances, pooled

TOP = 10
SHUFFLES = 9999
"""Random draws that the p-value counts; the smallest that it can be is 1 / (SHUFFLES + 1)."""
UNLIKELY = 0.01


class Canaries(Metric):
    r"""Rank of each canary among decoys, held-out images of its class, by the distance to the nearest sample.

    With :math:`S_y` the samples of class y, :math:`d(z) = \min_{x \in S_y} \|z - x\|_2` in the pictures
    average-pooled 2 x 2, and :math:`z_1, ..., z_m` the decoys of the canary c, of class y:

    - ``rank``, in [1, m + 1]: :math:`1 + \sum_j [d(z_j) < d(c)] + \frac12 \sum_j [d(z_j) = d(c)]`; 1 if no
      decoy is as near to a sample. ``mean_rank`` is its mean over the canaries, ``chance`` what images that the target
      does not remember have on average, m / 2 + 1, and ``within_10`` the share of canaries of rank 10 or better.
    - ``p_value``, in (0, 1]: how often as many images, drawn at random from the canaries and decoys of the same classes
      (9,999 times), lie as near as the canaries do, by the mean of their ranks among all of these. It is only as good
      as the choice of the canaries: they must be drawn at random from where the decoys come from, as a typical image is
      nearer to samples than others are, remembered or not.

    The question is that of Carlini et al. 2019, "The Secret Sharer", whose rank is the likelihood's. Decoys are at most
    1,000 images of the class, without those that equal a canary; a class needs 10. With training images, canaries that
    are not among them are left out.

    Example:
        >>> import torch
        >>> from interpkit import ImageInversion, Recipe, evaluate, wrap
        >>> target = wrap(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)), input_shape=(1, 4, 4))
        >>> canaries, labels = torch.ones(1, 1, 4, 4), torch.zeros(1, dtype=torch.long)
        >>> inversion = ImageInversion(target, Recipe(labels=[0]), [], canaries, labels)  # it gives the canary away
        >>> decoys = (torch.eye(16).view(16, 1, 4, 4), torch.zeros(16, dtype=torch.long))
        >>> metrics = evaluate(inversion, metrics=["canaries"], canaries=(canaries, labels), reference=decoys)
        >>> metrics["canaries"]["mean_rank"], metrics["canaries"]["chance"]
        (1.0, 9.0)
    """

    name = "canaries"
    needs = ("canaries", "reference")
    describe = {
        r"canaries\.by_canary\..*\.rank": "Its rank among the decoys by distance to the nearest sample; 1 is nearest.",
        r"canaries\..*decoys": "Number of held-out images of the class that it is ranked among.",
        r"canaries\.mean_rank": "Mean rank of the canaries among their decoys; compare it with canaries.chance.",
        r"canaries\.chance": "Mean rank of images that the classifier does not remember.",
        r"canaries\.within_10": "Share of canaries of rank 10 or better.",
        r"canaries\.p_value": "How often as many images at random lie as near to the samples as the canaries do.",
    }

    class Options(interpkit.Options):
        """The decoys."""

        decoys: int = Field(1000, ge=LEAST, description="the most decoys of a canary, drawn at random")
        pool: int = Field(2, ge=1, description="side of the squares that are averaged")

    options: Options

    @classmethod
    def warnings(cls, metrics: Mapping[str, Any]) -> list[str]:
        """Return a warning if the samples give the canaries away."""
        found = metrics.get("canaries") or {}
        if not found.get("p_value", 1.0) <= UNLIKELY:
            return []
        return [
            f"The samples lie nearer to the canaries than to other images of their classes: their mean rank is "
            f"{found['mean_rank']:.0f}, where chance gives {found['chance']:.0f} (p = {found['p_value']:.2g}): they "
            f"give away images that the classifier remembers."
        ]

    def measure(self, study: Study) -> dict[str, Any]:
        """Return ``canaries``."""
        images, labels = study.unit_images("canaries"), study.labels("canaries")
        leave_out_of_vectors(study, self, "pool")
        decoys = self._decoys(study, images)
        usable = self._usable(study, images, labels, decoys)
        each: dict[int, dict[str, Any]] = {}
        total, at_random = 0.0, torch.zeros(SHUFFLES, dtype=torch.float64)
        for label in sorted({int(labels[row]) for row in usable}):
            rows = [row for row in usable if labels[row] == label]
            samples = pooled(study.images[study.rows("samples", label)], self.options.pool)
            near = [
                distances(pooled(part, self.options.pool), samples).amin(1)
                for part in (images[rows], study.unit_images("reference")[decoys[label]])
            ]
            for row, rank in zip(rows, ranks(*near).tolist(), strict=True):
                name = f"{row} ({study.target.class_names[label]})"
                each[row] = {"name": name, "rank": rank, "decoys": len(near[1])}
            both = torch.cat(near)
            place = (ranks(both, both) - 0.5) / len(both)  # an image is its own tie
            total += float(place[: len(rows)].sum())
            draws = torch.rand(SHUFFLES, len(both), generator=study.rng).topk(len(rows), dim=1).indices
            at_random += place[draws].sum(1)
        found = [each[row] for row in sorted(each)]
        count = len(found)
        return {
            "canaries": {
                "mean_rank": sum(row["rank"] for row in found) / count,
                "chance": sum(row["decoys"] / 2 + 1 for row in found) / count,
                f"within_{TOP}": sum(row["rank"] <= TOP for row in found) / count,
                "p_value": (1 + int((at_random <= total + 1e-9).sum())) / (SHUFFLES + 1),
                "decoys": min(row["decoys"] for row in found),
                "count": count,
                "by_canary": found,
            }
        }

    def _decoys(self, study: Study, canaries: Tensor) -> dict[int, Tensor]:
        """Return the rows of the reference that are decoys, by class, and note where there are fewer than asked for."""
        known = set(_keys(canaries))
        chosen: dict[int, Tensor] = {}
        for label in sorted(set(study.labels("canaries").tolist())):
            rows = study.rows("reference", label)
            keys = _keys(study.unit_images("reference")[rows])
            others = rows[torch.tensor([key not in known for key in keys], dtype=torch.bool)]
            chosen[label] = others[torch.randperm(len(others), generator=study.rng)[: self.options.decoys]]
        fewest = min(len(rows) for rows in chosen.values())
        if "decoys" in self.options.model_fields_set and fewest < self.options.decoys:
            study.leave_out(
                f"{self.name}.decoys",
                f"{self.options.decoys:,} were asked for, and the reference has only {fewest:,} other images of a "
                f"canary's class: the ranks are among fewer.",
            )
        return chosen

    def _usable(self, study: Study, images: Tensor, labels: Tensor, decoys: Mapping[int, Tensor]) -> list[int]:
        """Return the rows of the canaries that can be ranked, and note the others."""
        seen = None if study.training is None else set(_keys(study.unit_images("training")))
        reasons: dict[str, list[int]] = {}
        usable = []
        for row, (label, key) in enumerate(zip(labels.tolist(), _keys(images), strict=True)):
            if seen is not None and key not in seen:
                reason = "not among the training images, so the classifier cannot remember them"
            elif label not in study.classes:
                reason = "of classes that have no samples"
            elif len(decoys[label]) < LEAST:
                reason = f"of classes with fewer than {LEAST} other images in the reference"
            else:
                usable.append(row)
                continue
            reasons.setdefault(reason, []).append(row)
        said = "; ".join(
            f"{len(rows)} of {len(labels)} canaries are {reason}: number {names([str(row) for row in rows])}"
            for reason, rows in reasons.items()
        )
        if not usable:
            raise TooFew(f"{said}.")
        if said:
            study.leave_out(f"{self.name}.by_canary", f"{said}.")
        return usable


def ranks(these: Tensor, others: Tensor) -> Tensor:
    """Return the rank (K,) of each of K numbers among others, from 1; a tie counts half."""
    return 1 + (others < these[:, None]).double().sum(1) + (others == these[:, None]).double().sum(1) / 2


def _keys(images: Tensor) -> list[bytes]:
    """Return what tells images in [0, 1] apart: their pixels in 8 bits, or a vector's numbers."""
    if images.dim() == 4:
        images = (images * 255).round().to(torch.uint8)
    return [image.numpy().tobytes() for image in images.contiguous()]
