"""The result: images, each with a certificate of the largest margin in its region."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean

import safetensors.torch
from torch import Tensor

from interpkit import ImageInversion, Recipe, RunError, Section, StepRecord, Target

PROOFS = "certificates.json"
IMAGES = "inputs.safetensors"
CLOSE = 1e-4
"""The largest gap between a margin and its bound, relative to their size, that rounding to float32 explains."""


@dataclass(frozen=True)
class Proof:
    """What is known about the region of linearity of one image.

    Attributes:
        label: the class.
        margin: by how many logits the class leads at the image; negative if the target predicts another class.
        bound: no input of the image's region, within [0, 1], has a larger margin; None if there is no bound.
        status: of the linear program: ``optimal``, ``time`` (the solver ran out of its time; the bound holds),
            ``failed``, or ``skipped``.
    """

    label: int
    margin: float
    bound: float | None
    status: str

    @property
    def tight(self) -> bool:
        """Whether the image attains the bound, up to rounding."""
        return self.bound is not None and self.bound - self.margin <= CLOSE * max(1.0, abs(self.bound))


class ConstrainedInversion(ImageInversion):
    """Images that operator splitting found, and the certificates of their margins.

    Args:
        target: the classifier.
        recipe: the resolved recipe.
        history: the run's history.
        images: (N, *input_shape) float32 in [0, 1].
        labels: (N,) int64.
        proofs: one for each image, in their order.
    """

    def __init__(
        self,
        target: Target,
        recipe: Recipe,
        history: Sequence[StepRecord],
        images: Tensor,
        labels: Tensor,
        proofs: Sequence[Proof],
    ) -> None:
        super().__init__(target, recipe, history, images, labels)
        self.proofs = list(proofs)

    def files(self) -> Mapping[str, bytes]:
        """Return the certificates, and the images as the target receives them, not rounded to 8 bits."""
        rows = [{"image": number, **asdict(proof)} for number, proof in enumerate(self.proofs)]
        tensors = {"images": self.images.contiguous(), "labels": self.labels.contiguous()}
        return {
            PROOFS: (json.dumps({"schema": 1, "certificates": rows}, indent=1) + "\n").encode(),
            IMAGES: safetensors.torch.save(tensors),
        }

    def sections(self) -> list[Section]:
        """Return a table of the margins and their bounds, class by class."""
        rows = []
        for label in self.classes:
            own = [proof for proof in self.proofs if proof.label == label]
            bounds = [proof.bound for proof in own if proof.bound is not None]
            rows.append(
                (
                    self.target.class_names[label],
                    len(own),
                    sum(proof.margin > 0 for proof in own),
                    sum(proof.tight for proof in own),
                    round(mean(proof.margin for proof in own), 4),
                    round(mean(bounds), 4) if bounds else "-",
                    sum(proof.bound is not None and proof.bound < 0 for proof in own),
                )
            )
        text = (
            "Around each image, the classifier is affine. A linear program bounds the margin, by how many logits the "
            "class leads the next, in this region: certified images attain the bound, so no input of their region has "
            "a larger margin. A negative bound proves that no input of the region is in the class. The bounds follow "
            f"from weak duality in float64. {PROOFS} lists every image."
        )
        columns = ("class", "images", "in class", "certified", "mean margin", "mean bound", "proved out of class")
        return [Section("Certificates", text, columns, rows)]


def read_proofs(content: bytes, labels: Tensor) -> list[Proof]:
    """Return the certificates of a run's file.

    Raises:
        RunError: the file is not one that this inverter writes, or is about other images.
    """
    try:
        rows = json.loads(content)["certificates"]
        proofs = [Proof(int(row["label"]), float(row["margin"]), row["bound"], str(row["status"])) for row in rows]
        fits = [proof.label for proof in proofs] == labels.tolist()
        fits = fits and all(proof.bound is None or isinstance(proof.bound, float) for proof in proofs)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        fits = False
    if not fits:
        raise RunError(f"{PROOFS} does not hold one certificate for each image of {IMAGES}. Run again with --force.")
    return proofs
