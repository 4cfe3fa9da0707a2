"""What the target itself says of the samples. It is the target's own opinion: see an evaluator for another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from interpkit.errors import RunError, listed
from interpkit.files import read_tensors
from interpkit.interfaces import Target
from interpkit.inversion import Draw, Inversion

SCHEMA = 1
MAX_PROBABILITIES = 100
"""Up to this many classes the whole distribution of each sample is kept."""
Z_95 = 1.959963984540054
"""The 97.5 % quantile of the normal law."""
LOW_EXCESS_VENDI = 0.3
LOW_POOLED_VENDI = 1.2
MANY_DUPLICATES = 0.7
LOW_AGREEMENT = 0.5
HIGH_ACCURACY = 0.9
"""Where `warnings` draws its lines. A hundred real images of a class have a pooled Vendi score of 1.48 or more and 62 %
duplicates at most (MNIST, FashionMNIST, CIFAR-10, SVHN): what is beyond these lines is no real class.
"""


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
        distribution: (N, n) float32, the conditions' distributions P, up to 100 classes; not kept on disk either.
    """

    images: Tensor
    labels: Tensor
    predicted: Tensor
    confidence: Tensor
    divergence: Tensor | None
    generator: Tensor
    probabilities: Tensor | None
    distribution: Tensor | None = None

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


def judge(inversion: Inversion, draw: Draw) -> Samples:
    """Let the target judge images in [0, 1] after rounding them to 8 bits (vectors are not rounded)."""
    images = draw.images
    if images.dim() == 4:
        images = (images * 255).round().to(torch.uint8)
    target = inversion.target
    predicted, confidence, probabilities, divergence = _look(
        target, images, draw.labels, draw.distribution, inversion.device
    )
    if images.dim() == 2:
        images = target.low + (target.high - target.low) * images
    distribution = None if probabilities is None else draw.distribution
    return Samples(images, draw.labels, predicted, confidence, divergence, draw.generator, probabilities, distribution)


def read_samples(path: Path, target: Target, device: torch.device) -> Samples:
    """Read the samples of a run, and let the target judge them again; see `read_images`."""
    images, labels, generator = read_images(path, target)
    unit = images if images.dim() == 4 else to_unit(images, target)
    predicted, confidence, probabilities, _ = _look(target, unit, labels, None, device)
    return Samples(images, labels, predicted, confidence, None, generator, probabilities)


def read_images(path: Path, target: Target) -> tuple[Tensor, Tensor, Tensor]:
    """Read samples.safetensors: images (or vectors) as they are stored, labels, and generators; see `Samples`.

    Raises:
        RunError: there are none, or they are not of this target.
    """
    tensors = read_tensors(path)
    name = "images" if len(target.input_shape) == 3 else "inputs"
    if not {name, "labels", "generator"} <= tensors.keys():
        raise RunError(f"{path} holds {listed(tensors)}; samples of {target.name} are {name}, labels and generator.")
    images, labels, generator = tensors[name], tensors["labels"], tensors["generator"]
    n = labels.numel()
    whole = images.dtype == (torch.uint8 if name == "images" else torch.float32) and bool(images.isfinite().all())
    if not whole or not n or labels.dtype != torch.int64 or labels.shape != (n,) or generator.shape != (n,):
        raise RunError(f"{path} is no file of samples: {name} {images.dtype} {tuple(images.shape)}, {n} labels.")
    if tuple(images.shape) != (n, *target.input_shape) or labels.min() < 0 or labels.max() >= target.num_classes:
        raise RunError(
            f"{path} holds samples of shape {tuple(images.shape[1:])} and labels {int(labels.min())} to "
            f"{int(labels.max())}; {target.name} takes {target.input_shape} and has {target.num_classes} classes."
        )
    return images, labels, generator


@torch.no_grad()
def _look(
    target: Target,
    images: Tensor,
    labels: Tensor,
    distribution: Tensor | None,
    device: torch.device,
    batch_size: int = 256,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return predictions, confidence, probabilities (to 100 classes) and KL of images, uint8 or in [0, 1]."""
    columns: list[tuple[Tensor, ...]] = []
    with target.frozen(device):
        for start in range(0, len(images), batch_size):
            rows = slice(start, start + batch_size)
            batch = images[rows].to(device)
            logits = target(batch / 255 if batch.dtype == torch.uint8 else batch).cpu()
            softmax = logits.softmax(1)
            confidence = softmax.gather(1, labels[rows][:, None])[:, 0]
            asked = softmax if distribution is None else distribution[rows]
            divergence = F.kl_div(logits.log_softmax(1), asked, reduction="none").sum(1)
            kept = softmax if target.num_classes <= MAX_PROBABILITIES else softmax[:, :0]
            columns.append((logits.argmax(1), confidence, kept, divergence))
    predicted, confidence, probabilities, divergence = (torch.cat(c) for c in zip(*columns, strict=True))
    return (
        predicted,
        confidence,
        probabilities if target.num_classes <= MAX_PROBABILITIES else None,
        None if distribution is None else divergence,
    )


def to_unit(images: Tensor, target: Target) -> Tensor:
    """Return images, uint8 or in [0, 1], or vectors in the units of the target's input range, as float in [0, 1]."""
    if images.dim() == 2:
        return (images - target.low) / (target.high - target.low)
    return images / 255 if images.dtype == torch.uint8 else images


@torch.no_grad()
def accuracy(target: Target, reference: str, batch_size: int = 256) -> float:
    """Return the target's accuracy on reference data, a spec as `interpkit.data.load_data` takes it.

    Raises:
        UsageError: the data cannot be read or does not fit.
    """
    from interpkit.data import load_data

    data = load_data(reference, target.input_shape, target.class_names)
    images = to_unit(data.images, target)
    with target.frozen():
        pairs = zip(images.split(batch_size), data.labels.split(batch_size), strict=True)
        right = [target(rows).argmax(1) == labels for rows, labels in pairs]
    return torch.cat(right).double().mean().item()


def measure(samples: Samples, class_names: Sequence[str]) -> dict[str, Any]:
    """Return what every metrics.json has: inversion accuracy, confidence and KL, in all and per class.

    Inversion accuracy is the share of samples that the target itself puts in the class asked for (argmax), with
    its 95 % interval (`wilson`); confidence is the mean probability that it gives that class; ``kl`` is the mean of
    KL(P || Q) in nats of the condition's distribution P and the target's softmax Q, where P is known.
    """
    right = samples.predicted == samples.labels

    def figures(rows: Tensor) -> dict[str, Any]:
        count, hits = int(rows.sum()), int(right[rows].sum())
        kl = {} if samples.divergence is None else {"kl": samples.divergence[rows].double().mean().item()}
        return {
            "inversion_accuracy": hits / count,
            "inversion_accuracy_interval": wilson(hits, count),
            "confidence": samples.confidence[rows].double().mean().item(),
            "count": count,
            **kl,
        }

    per_class = [
        {"label": label, "name": class_names[label], **figures(samples.labels == label)}
        for label in samples.labels.unique().tolist()
    ]
    return {"schema": SCHEMA, **figures(torch.ones_like(right)), "per_class": per_class}


def wilson(hits: float, count: float) -> list[float]:
    r"""Return the Wilson score interval of a share, [low, high], at 95 %.

    .. math:: \frac{1}{1 + z^2/n} \left( \hat p + \frac{z^2}{2n}
              \pm z \sqrt{\frac{\hat p (1 - \hat p)}{n} + \frac{z^2}{4 n^2}} \right), \qquad z = 1.96

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    Args:
        hits: in [0, count].
        count: n, above 0; of trials that depend on each other, the number of independent ones that they are worth.
    """
    share, part = hits / count, Z_95**2 / count
    middle = share + part / 2
    half = Z_95 * math.sqrt(share * (1 - share) / count + part / (4 * count))
    low, high = (middle - half) / (1 + part), (middle + half) / (1 + part)
    return [low if hits > 0 else 0.0, high if hits < count else 1.0]  # exactly so, but for rounding


def warnings(metrics: Mapping[str, Any]) -> list[str]:
    """Return, in plain words, what a reader of metrics.json should not miss: little variety, judges who disagree.

    Args:
        metrics: the content of metrics.json; what is not measured, is not warned of.
    """
    told = [_of_variety(metrics), *(_of_agreement(judge, metrics) for judge in metrics.get("evaluators", ()))]
    return [warning for warning in told if warning is not None]


def _of_variety(metrics: Mapping[str, Any]) -> str | None:
    per_class = metrics.get("per_class", [])
    excess = {row["name"]: row.get("reference", {}).get("excess_vendi") for row in per_class}
    known = {name: value for name, value in excess.items() if value is not None}
    if known:
        low = [name for name, value in known.items() if value < LOW_EXCESS_VENDI]
        if not low:
            return None
        mean = sum(known.values()) / len(known)
        return (
            f"Low variety: the samples vary much less than real images of the class in {len(low)} of {len(known)} "
            f"classes ({listed(low)}); the excess Vendi ratio is {mean:.2f}, and 1 is as varied as real images."
        )
    measured = {row["name"]: row["diversity"] for row in per_class if row.get("diversity")}
    low = [
        name
        for name, figures in measured.items()
        if figures.get("vendi_pooled", math.inf) < LOW_POOLED_VENDI or figures.get("duplicates", 0) > MANY_DUPLICATES
    ]
    if not low:
        return None
    return (
        f"Low variety: the samples of {len(low)} of {len(measured)} classes are nearly one and the same picture "
        f"({listed(low)})."
    )


def _of_agreement(judge: Mapping[str, Any], metrics: Mapping[str, Any]) -> str | None:
    agreement = judge.get("agreement")
    if agreement is None or agreement >= LOW_AGREEMENT:
        return None
    said = f"The evaluator {judge['name']} agrees on {agreement:.0%} of the samples only"
    if judge.get("reference_accuracy") is not None:
        said += f" (it is right on {judge['reference_accuracy']:.0%} of the reference images)"
    accuracy = metrics.get("inversion_accuracy", 0.0)
    if accuracy >= HIGH_ACCURACY:
        return (
            f"{said}, while the target takes {accuracy:.0%} for the class asked for: the target is fooled, so do not "
            f"read the pictures as what the class looks like."
        )
    return f"{said}."
