"""How varied the samples of a class are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pydantic
import torch
from pydantic import Field

import interpkit
from interpkit import Metric, Study
from interpkit_metrics.classes import large_enough, leave_out_of_vectors, mean, names
from interpkit_metrics.similarity import directions, pooled, vendi

LOW_POOLED_VENDI = 1.2
MANY_DUPLICATES = 0.7
"""Beyond these the variety is warned of. A hundred real images of a class have a pooled Vendi score of at least 1.48
and at most 62 % duplicates (MNIST, FashionMNIST, CIFAR-10, SVHN), so no real class is beyond them.
"""

CLOSE = 0.01
"""Mean difference of the values of two vectors up to which they are the same."""


class Entry(pydantic.BaseModel):
    """The entry of metrics.json."""

    diversity: dict[str, pydantic.FiniteFloat | None]


class Diversity(Metric):
    r"""Variety within a class, per class and as the mean over classes; needs 10 samples of a class.

    - ``vendi_pixels``, ``vendi_pooled``, ``vendi_features``, in [1, N] for N samples: the Vendi score
      :math:`\exp(H(\lambda(K / N)))`, H Shannon's entropy of the eigenvalues, K the cosines of the images, of the
      images average-pooled 4 x 4, of the target's penultimate features. It grows with N: compare equal N. Source:
      Friedman & Dieng 2023, eq. 2.
    - ``cosine_within``, in [-1, 1]: mean cosine of the features over the pairs :math:`i \ne j` of a class;
      ``cosine_between``: over the pairs of samples of different classes. Source: the cosine term of Suhail & Sethi.
    - ``duplicates``, in [0, 1]: share of samples whose nearest other sample in the class has a cosine of at least
      0.99 in the pooled pictures; of vectors, a distance of at most :math:`0.01 \sqrt D` in [0, 1].

    Example:
        >>> import torch
        >>> from interpkit import ImageInversion, Recipe, evaluate, wrap
        >>> target = wrap(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)), input_shape=(1, 4, 4))
        >>> images, labels = torch.eye(16).view(16, 1, 4, 4), torch.zeros(16, dtype=torch.long)  # orthogonal
        >>> inversion = ImageInversion(target, Recipe(labels=[0]), [], images, labels)
        >>> metrics = evaluate(inversion, metrics=["diversity"], options={"diversity.pool": 1})
        >>> round(metrics["diversity"]["vendi_pixels"], 3), metrics["diversity"]["duplicates"]
        (16.0, 0.0)
    """

    name = "diversity"
    every_run = True
    describe = {
        r"diversity\.vendi_pixels": "How many different images a class amounts to, pixel by pixel; 1 if all are alike.",
        r"diversity\.vendi_pooled": "The same for coarse images, so that noise does not count as variety.",
        r"diversity\.vendi_features": "The same in the features of the target's last layer.",
        r"diversity\.cosine_within": "How alike two samples of a class are to the target, from -1 to 1; 1 means equal.",
        r"diversity\.cosine_between": "How alike samples of different classes are to the target.",
        r"diversity\.duplicates": "Share of samples with a near copy among those of their class.",
    }
    columns = {"vendi": r"diversity\.vendi_pooled", "dupl.": r"diversity\.duplicates"}
    schema = Entry

    @classmethod
    def warnings(cls, metrics: Mapping[str, Any]) -> list[str]:
        """Return a warning if the samples of some classes are nearly equal; `Reference` warns where it was measured."""
        rows = metrics.get("per_class", [])
        if any((row.get("reference") or {}).get("excess_vendi") is not None for row in rows):
            return []
        measured = {row["name"]: row["diversity"] for row in rows if row.get("diversity")}
        low = [
            name
            for name, figures in measured.items()
            if figures.get("vendi_pooled", math.inf) < LOW_POOLED_VENDI
            or figures.get("duplicates", 0) > MANY_DUPLICATES
        ]
        if not low:
            return []
        return [
            f"Low variety: the samples of {len(low)} of {len(measured)} classes are nearly identical ({names(low)})."
        ]

    @classmethod
    def doubts(cls, row: Mapping[str, Any]) -> dict[str, float]:
        """Return the share of near copies; `Reference` compares with real images where it was measured."""
        known = (row.get("reference") or {}).get("excess_vendi") is not None
        share = (row.get("diversity") or {}).get("duplicates")
        return {} if known or share is None else {"near copies of another": share}

    class Options(interpkit.Options):
        """What counts as the same picture."""

        pool: int = Field(4, ge=1, description="side in pixels of the squares that are averaged")
        duplicate: float = Field(0.99, gt=0, le=1, description="cosine from which two pictures are the same")

    options: Options

    def measure(self, study: Study) -> dict[str, Any]:
        """Return ``diversity``, in all and per class."""
        labels = large_enough(study, self.name, ["samples"])
        leave_out_of_vectors(study, self, "pool", "duplicate")
        features = directions(study.response(study.target, "samples").features)
        rows = {label: study.rows("samples", label) for label in labels}
        per_class = {label: self._figures(study.images[r], features[r]) for label, r in rows.items()}
        sums = torch.stack([features[r].sum(0) for r in rows.values()])
        counts = torch.tensor([len(r) for r in rows.values()], dtype=torch.float64)
        found = mean(per_class.values())
        if len(labels) > 1:
            apart = sums.sum(0).square().sum() - sums.square().sum()
            found["cosine_between"] = float(apart / (counts.sum() ** 2 - counts.square().sum()))
        return {"diversity": found, "per_class": {label: {"diversity": row} for label, row in per_class.items()}}

    def _figures(self, images: torch.Tensor, features: torch.Tensor) -> dict[str, float]:
        pictures = directions(pooled(images, self.options.pool))
        count = len(images)
        if images.dim() == 4:
            copies = (pictures @ pictures.T).fill_diagonal_(-1).amax(1) >= self.options.duplicate
        else:  # vectors in [0, 1] nearly all point the same way
            apart = torch.cdist(images, images).fill_diagonal_(math.inf).amin(1)
            copies = apart <= CLOSE * math.sqrt(images.shape[1])
        return {
            "vendi_pixels": vendi(directions(images)),
            **({"vendi_pooled": vendi(pictures)} if images.dim() == 4 else {}),
            "vendi_features": vendi(features),
            "cosine_within": float((features.sum(0).square().sum() - count) / (count * (count - 1))),
            "duplicates": copies.double().mean().item(),
        }
