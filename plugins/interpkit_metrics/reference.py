"""How the samples compare to real images of their classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pydantic
import torch
from pydantic import Field
from torch import Tensor

import interpkit
from interpkit import Metric, Study, Target, UsageError, percent
from interpkit_metrics.classes import LEAST, large_enough, mean, names, span
from interpkit_metrics.similarity import directions, distances, kernel_distance, pooled, vendi

LEAST_FOR_KID = 50
SSIM_SIDE = 11
"""The window of SSIM in pixels; smaller images have none."""
SIMILAR = 0.4
PAIRS_AT_ONCE = 4_000_000
"""Numbers in the images of one batch of pairs."""


class Figures(pydantic.BaseModel):
    """What other code reads of the entry in metrics.json."""

    excess_vendi: pydantic.FiniteFloat | None = None


class Entry(pydantic.BaseModel):
    """The entry of metrics.json."""

    reference: Figures


class Reference(Metric):
    r"""Samples against held-out real images, within a class, per class and as the mean over classes.

    In the penultimate features of each evaluator (of the target, where there is none), with x the M samples and r the
    N real images of a class, B(a) the ball about a that reaches to its k-th nearest other image of its own kind
    (k = 5), its rim included, all in [0, 1] but density:

    - ``precision`` :math:`\frac1M \sum_j [x_j \in \cup_i B(r_i)]`, ``recall``
      :math:`\frac1N \sum_i [r_i \in \cup_j B(x_j)]`. Source: Kynkaanniemi et al. 2019, eq. 1 and 2.
    - ``density`` :math:`\frac1{kM} \sum_j \sum_i [x_j \in B(r_i)]`, about 1 for real images; ``coverage``
      :math:`\frac1N \sum_i [\exists j: x_j \in B(r_i)]`. Source: Naeem et al. 2020, eq. 3 and 4.
    - ``kid``, over all classes at once: the unbiased squared MMD under the kernel :math:`(a \cdot b / D + 1)^3`, 0 for
      the same law and maybe a little below; its scale is that of the features. Source: Binkowski et al. 2018.

    In the pictures:

    - ``excess_vendi`` :math:`(V - 1) / (V_{real} - 1)`, V the Vendi score of the first 40 samples and of the first 40
      real images, average-pooled 4 x 4: 0 for one picture, 1 for the variety of real images.
    - ``ssim``: each of the first 40 samples is matched to another of the first 40 real images so that the sum of
      the structural similarities is largest (Hungarian method, Kuhn 1955; SSIM of Wang et al. 2004, Gaussian window
      of 11); ``mean`` in [-1, 1] and ``at_least_0.4``, the share of pairs that similar.

    ``target_accuracy`` is the target's own on those real images. Needs 10 samples and 10 real images of a class, more
    than k of both, and 50 of both in all for KID.

    Example:
        >>> import torch
        >>> from interpkit import ImageInversion, Recipe, evaluate, wrap
        >>> target = wrap(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)), input_shape=(1, 4, 4))
        >>> images, labels = torch.eye(16).view(16, 1, 4, 4), torch.zeros(16, dtype=torch.long)
        >>> inversion = ImageInversion(target, Recipe(labels=[0]), [], images, labels)
        >>> metrics = evaluate(inversion, metrics=["reference"], reference=(images, labels))  # against themselves
        >>> metrics["reference"]["features"]["Sequential"]["precision"]
        1.0
    """

    name = "reference"
    needs = ("reference",)
    describe = {
        r"reference\..*\.precision": "Share of samples that lie among real images in this classifier's features.",
        r"reference\..*\.recall": "Share of real images that lie among the samples of the class.",
        r"reference\..*\.density": "How deep among real images the samples lie; 1 is as deep as real images.",
        r"reference\..*\.coverage": "Share of real images with a sample near: how much of the class was found.",
        r"reference\..*\.kid": "Distance of the samples' distribution from that of real images; about 0 if equal.",
        r"reference\.excess_vendi": "Variety beyond a single image, relative to real images; 1 is as varied.",
        r"reference\.ssim\.mean": "Mean similarity of samples and real images, matched one to one; 1 means identical.",
        r"reference\.ssim\.at_least.*": "Share of these pairs that are at least this similar.",
        r"reference\.target_accuracy": "Accuracy of the target on the real images.",
    }
    columns = {"excess": r"reference\.excess_vendi", "cov.: {}": r"reference\.(?:features\.)?(.*)\.coverage"}
    schema = Entry

    @classmethod
    def warnings(cls, metrics: Mapping[str, Any]) -> list[str]:
        """Return a warning if the samples of some classes vary much less than real images do."""
        per_class = metrics.get("per_class", [])
        excess = {row["name"]: row.get("reference", {}).get("excess_vendi") for row in per_class}
        known = {name: value for name, value in excess.items() if value is not None}
        low = [name for name, value in known.items() if value < 0.3]
        if not low:
            return []
        average = sum(known.values()) / len(known)
        return [
            f"Low variety: the samples vary much less than real images of the class in {len(low)} of {len(known)} "
            f"classes ({names(low)}); the excess Vendi ratio is {average:.2f}, and 1 is as varied as real images."
        ]

    @classmethod
    def doubts(cls, row: Mapping[str, Any]) -> dict[str, float]:
        """Return how much of the variety of real images is missing."""
        excess = (row.get("reference") or {}).get("excess_vendi")
        return {} if excess is None else {"of the variety of real images missing": max(0.0, 1 - excess)}

    @classmethod
    def summary(cls, metrics: Mapping[str, Any]) -> str:
        """Return how varied the samples are, and how much of the real images they cover."""
        figures, text = metrics.get("reference", {}), ""
        if figures.get("excess_vendi") is not None:
            text = f"Within a class they are {percent(figures['excess_vendi'], 0)} as varied as real images."
        rows = figures.get("features", {}).values()
        covered = [row["coverage"] for row in rows if row.get("coverage") is not None]
        return f"{text} A sample lies near {span(covered)} of the real images.".strip() if covered else text

    class Options(interpkit.Options):
        """How many images are compared: figures are comparable only at equal numbers."""

        k: int = Field(5, ge=1, le=1000, description="neighbors that the radius of a ball reaches to")
        samples: int = Field(100, ge=2, description="samples of a class in feature space, the first ones")
        references: int = Field(200, ge=2, description="real images of a class in feature space, the first ones")
        matched: int = Field(40, ge=LEAST, description="of both, for excess_vendi and ssim, the first ones")
        pool: int = Field(4, ge=1, description="excess_vendi: side in pixels of the squares that are averaged")

    options: Options

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        few = min(self.options.samples, self.options.references)
        if few <= self.options.k:
            raise UsageError(
                f"the metric 'reference' takes more images than neighbors: k = {self.options.k} of {few} images; set "
                f"k to {few - 1} or less, or samples and references to {self.options.k + 1} or more."
            )

    def measure(self, study: Study) -> dict[str, Any]:
        """Return ``reference``, in all and per class."""
        opt = self.options
        labels = large_enough(study, self.name, ["samples", "reference"], max(LEAST, opt.k + 1))
        ours = {label: study.rows("samples", label) for label in labels}
        real = {label: study.rows("reference", label) for label in labels}
        references = study.unit_images("reference")
        per_class: dict[int, dict[str, Any]] = {label: {"features": {}} for label in labels}
        kid = {}
        for name, judge in study.judges.items():
            samples, held_out = (study.response(judge, which).features for which in ("samples", "reference"))
            near = {c: (samples[ours[c][: opt.samples]], held_out[real[c][: opt.references]]) for c in labels}
            for label, (x, r) in near.items():
                per_class[label]["features"][name] = manifold(x, r, opt.k)
            x, r = (torch.cat(parts) for parts in zip(*near.values(), strict=True))
            if min(len(x), len(r)) >= LEAST_FOR_KID:
                kid[name] = kernel_distance(x, r)
            else:
                study.leave_out(
                    f"{self.name}.kid",
                    f"it takes {LEAST_FOR_KID} samples and {LEAST_FOR_KID} real images in all; here are {len(x)} and "
                    f"{len(r)}.",
                )
        for label in labels:
            most = min(opt.matched, len(ours[label]), len(real[label]))
            x, r = study.images[ours[label][:most]], references[real[label][:most]]
            per_class[label] |= self._in_pictures(x, r)
        self._explain(study, per_class)
        found = mean(per_class.values())
        for name, value in kid.items():
            found["features"][name]["kid"] = value
        found["target_accuracy"] = _accuracy(study, study.target, torch.cat(list(real.values())))
        return {"reference": found, "per_class": {label: {"reference": row} for label, row in per_class.items()}}

    def _in_pictures(self, samples: Tensor, real: Tensor) -> dict[str, Any]:
        found: dict[str, Any] = {}
        v, v_real = (vendi(directions(pooled(images, self.options.pool))) for images in (samples, real))
        if v_real > 1 + 1e-6:
            found["excess_vendi"] = max(0.0, v - 1) / (v_real - 1)
        if samples.dim() == 4 and min(samples.shape[2:]) >= SSIM_SIDE:
            matched = matched_ssim(samples, real)
            found["ssim"] = {
                "mean": matched.mean().item(),
                f"at_least_{SIMILAR}": (matched >= SIMILAR).double().mean().item(),
            }
        return found

    def _explain(self, study: Study, per_class: dict[int, dict[str, Any]]) -> None:
        """Note the figures that some classes have none of."""
        alike = [study.target.class_names[label] for label, row in per_class.items() if "excess_vendi" not in row]
        if alike:
            study.leave_out(
                f"{self.name}.excess_vendi",
                f"it takes real images that differ; those of {', '.join(alike[:5])} are all the same picture.",
            )
        if not any("ssim" in row for row in per_class.values()):
            study.leave_out(f"{self.name}.ssim", f"it takes images of at least {SSIM_SIDE} x {SSIM_SIDE} pixels.")


def _accuracy(study: Study, judge: Target, rows: Tensor) -> float:
    right = judge.accepts(study.response(judge, "reference").logits, study.labels("reference"))
    return right[rows].double().mean().item()


def manifold(samples: Tensor, real: Tensor, k: int) -> dict[str, float]:
    """Return precision, recall, density and coverage of (M, F) samples and (N, F) real images, M and N > k.

    The ball about an image reaches to its k-th neighbor, itself not counted; see `Reference`.
    """
    apart = distances(real, samples)
    reach_real, reach_samples = (distances(x, x).kthvalue(k + 1, dim=1).values for x in (real, samples))
    in_real = apart <= reach_real[:, None]
    in_samples = apart <= reach_samples
    return {
        "precision": in_real.any(0).double().mean().item(),
        "recall": in_samples.any(1).double().mean().item(),
        "density": in_real.sum(0).double().mean().item() / k,
        "coverage": in_real.any(1).double().mean().item(),
    }


def matched_ssim(samples: Tensor, real: Tensor) -> Tensor:
    """Return the SSIM (N,) of each sample and its real image, (N, C, H, W) in [0, 1], matched for the largest sum."""
    from scipy.optimize import linear_sum_assignment
    from torchmetrics.functional.image import structural_similarity_index_measure

    first, second = torch.meshgrid(torch.arange(len(samples)), torch.arange(len(real)), indexing="ij")
    batch = max(1, PAIRS_AT_ONCE // samples[0].numel())
    values: list[Tensor] = []
    for i, j in zip(first.flatten().split(batch), second.flatten().split(batch), strict=True):
        similarity = structural_similarity_index_measure(samples[i], real[j], reduction="none", data_range=1.0)
        assert isinstance(similarity, Tensor)
        values.append(similarity.reshape(-1))
    table = torch.cat(values).reshape(first.shape).double()
    rows, columns = (torch.from_numpy(index) for index in linear_sum_assignment(table.numpy(), maximize=True))
    return table[rows, columns]
