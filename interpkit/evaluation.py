"""What the target itself says of the samples. It is the target's own opinion: see an evaluator for another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from interpkit.interfaces import Target
from interpkit.inversion import Draw, Inversion

SCHEMA = 1
MAX_PROBABILITIES = 100
"""Up to this many classes the whole distribution of each sample is kept."""


@dataclass(frozen=True)
class Samples:
    """Samples and the target's judgement of them.

    Attributes:
        images: (N, C, H, W) uint8; of a classifier of vectors (N, D) float32, in the units of its input range.
        labels: (N,) int64, the classes asked for.
        predicted: (N,) int64, the classes that the target gives.
        confidence: (N,) float32, the probability that the target gives the class asked for.
        divergence: (N,) float32, KL(P || Q) in nats of the condition's distribution P and the target's
            softmax Q; not kept on disk, so None for samples that were read.
        generator: (N,) int64, which generator made each.
        probabilities: (N, n) float32, up to 100 classes; else None.
    """

    images: Tensor
    labels: Tensor
    predicted: Tensor
    confidence: Tensor
    divergence: Tensor | None
    generator: Tensor
    probabilities: Tensor | None

    def tensors(self) -> dict[str, Tensor]:
        """Return what is written to samples.safetensors."""
        name = "images" if self.images.dim() == 4 else "inputs"
        tensors = {
            name: self.images,
            "labels": self.labels,
            "confidence": self.confidence,
            "generator": self.generator,
        }
        if self.probabilities is not None:
            tensors["probabilities"] = self.probabilities
        return {name: tensor.contiguous() for name, tensor in tensors.items()}


def draw_samples(inversion: Inversion, **sampling: Any) -> Samples:
    """Sample an inversion and let the target judge the images as they are stored, in 8 bits.

    Args:
        inversion: to be sampled.
        sampling: arguments of `Inversion.sample`.
    """
    return judge(inversion, inversion.draw(**sampling))


@torch.no_grad()
def judge(inversion: Inversion, draw: Draw, batch_size: int = 256) -> Samples:
    """Let the target judge images in [0, 1] after rounding them to 8 bits (vectors are not rounded)."""
    images = draw.images
    if images.dim() == 4:
        images = (images * 255).round().to(torch.uint8)
    target = inversion.target
    keep = target.num_classes <= MAX_PROBABILITIES
    columns: list[tuple[Tensor, ...]] = []
    device = inversion.device
    with target.frozen(device):
        for start in range(0, len(images), batch_size):
            rows = slice(start, start + batch_size)
            batch = images[rows].to(device)
            logits = target(batch / 255 if batch.dtype == torch.uint8 else batch).cpu()
            softmax = logits.softmax(1)
            divergence = F.kl_div(logits.log_softmax(1), draw.distribution[rows], reduction="none").sum(1)
            confidence = softmax.gather(1, draw.labels[rows][:, None])[:, 0]
            columns.append((logits.argmax(1), confidence, divergence, softmax[:, : target.num_classes * keep]))
    predicted, confidence, divergence, probabilities = (torch.cat(c) for c in zip(*columns, strict=True))
    if images.dim() == 2:
        images = target.low + (target.high - target.low) * images
    return Samples(
        images, draw.labels, predicted, confidence, divergence, draw.generator, probabilities if keep else None
    )


@torch.no_grad()
def accuracy(target: Target, reference: str, batch_size: int = 256) -> float:
    """Return the target's accuracy on reference data, a spec as `interpkit.data.load_data` takes it.

    Raises:
        UsageError: the data cannot be read or does not fit.
    """
    from interpkit.data import load_data

    data = load_data(reference, target.input_shape, target.class_names)
    images = data.images if data.images.dim() == 4 else (data.images - target.low) / (target.high - target.low)
    with target.frozen():
        pairs = zip(images.split(batch_size), data.labels.split(batch_size), strict=True)
        right = [target(rows).argmax(1) == labels for rows, labels in pairs]
    return torch.cat(right).double().mean().item()


def measure(samples: Samples, class_names: Sequence[str]) -> dict[str, Any]:
    """Return the content of metrics.json: inversion accuracy and confidence, in all and per class.

    Inversion accuracy is the share of samples that the target itself puts in the class asked for (argmax);
    confidence is the mean probability that it gives that class.
    """
    right = (samples.predicted == samples.labels).double()
    per_class = []
    for label in samples.labels.unique().tolist():
        rows = samples.labels == label
        per_class.append(
            {
                "label": label,
                "name": class_names[label],
                "count": int(rows.sum()),
                "inversion_accuracy": right[rows].mean().item(),
                "confidence": samples.confidence[rows].double().mean().item(),
            }
        )
    return {
        "schema": SCHEMA,
        "inversion_accuracy": right.mean().item(),
        "confidence": samples.confidence.double().mean().item(),
        "count": len(samples.labels),
        "per_class": per_class,
    }
