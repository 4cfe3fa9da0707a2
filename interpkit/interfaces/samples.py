"""`Samples`: images with the target's predictions for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from interpkit.interfaces.targets import Target

MAX_PROBABILITIES = 100
"""The maximum number of classes for which the whole distribution of each sample is kept."""


@dataclass(frozen=True)
class Samples:
    """Samples and the target's predictions for them.

    Attributes:
        images: (N, C, H, W) uint8; of a classifier of vectors (N, D) float32, in the units of its input range.
        labels: (N,) int64, the requested classes.
        predicted: (N,) int64, the classes that the target predicts; see `Target.predictions`.
        confidence: (N,) float32, the target's probability of the requested class.
        divergence: (N,) float32, KL(P || Q) in nats of the condition's distribution P and the target's
            probabilities Q; not stored on disk, so None for samples that were read from a file.
        generator: (N,) int64, which generator made each.
        probabilities: (N, n) float32, for up to 100 classes; else None.
        distribution: (N, n) float32, the conditions' distributions P, for up to 100 classes; not stored on disk.
        figures: (N,) float32 each, what the terms of the objective say of each image, by ``TERM.FIGURE``; see
            `InversionLoss.figures`.
    """

    images: Tensor
    labels: Tensor
    predicted: Tensor
    confidence: Tensor
    divergence: Tensor | None
    generator: Tensor
    probabilities: Tensor | None
    distribution: Tensor | None = None
    figures: Mapping[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that samples.safetensors stores."""
        name = "images" if self.images.dim() == 4 else "inputs"
        tensors = {
            name: self.images,
            "labels": self.labels,
            "confidence": self.confidence,
            "generator": self.generator,
            **self.figures,
        }
        if self.probabilities is not None:
            tensors["probabilities"] = self.probabilities
        return {name: tensor.contiguous() for name, tensor in tensors.items()}


def to_unit(images: Tensor, target: Target) -> Tensor:
    """Return images, uint8 or in [0, 1], or vectors in the units of the target's input range, as float in [0, 1]."""
    return target.to_unit(images)
