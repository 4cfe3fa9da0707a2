"""Score samples with the target itself; an evaluator gives an independent opinion."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interpkit.config.recipe import Recipe
from interpkit.config.sizes import is_large
from interpkit.errors import RunError, UsageError, listed, setting
from interpkit.evaluation.statistics import wilson
from interpkit.interfaces.inversions import Draw, Inversion
from interpkit.interfaces.samples import MAX_PROBABILITIES, Samples, to_unit
from interpkit.interfaces.targets import Target, tell_nan
from interpkit.io.atomic import read_tensors
from interpkit.io.datasets import LabelledImages, load_data
from interpkit.runtime.at_once import in_batches
from interpkit.runtime.autograd import with_autograd
from interpkit.targets.units import UnitTarget

log = logging.getLogger("interpkit")

SCHEMA = 1
ROUNDED = 64
"""Images that are rounded at a time, as in between they need twice the memory."""


def draw_samples(inversion: Inversion, on_done: Callable[[int], None] | None = None, **sampling: Any) -> Samples:
    """Sample an inversion and score the images with its target, in 8 bits as they are stored.

    Args:
        inversion: the inversion to sample.
        on_done: called now and then with the number of images scored so far.
        sampling: arguments of `Inversion.sample`.
    """
    return judge(inversion, inversion.draw(**sampling), on_done)


def at_once(recipe: Recipe, target: Target) -> int | None:
    """Return the most images to judge at a time, those of a micro-batch, or else of a batch; None for large images.

    Of large images memory alone decides, as a batch may be far smaller than what fits without a gradient.
    """
    return None if is_large(target.input_shape) else recipe.micro_batch or recipe.batch_size


def sample_size(inversion: Inversion) -> dict[str, Any]:
    """Return how many samples a run keeps: 100 per class, or 1,000 in total for more than 10 classes."""
    classes, there = len(inversion.classes), inversion.images_per_class
    if classes <= 10:
        return {"per_class": 100 if there is None else min(100, there)}
    most = most_samples(classes)
    return {"count": most if there is None else min(most, there * classes)}


def draw_for_run(inversion: Inversion) -> Draw:
    """Draw the samples that a run keeps: of a fixed set with more images of some classes, as many as there are."""
    each = _each(inversion)
    return inversion.draw_up_to(each) if each else inversion.draw(**sample_size(inversion))


def size_for_run(inversion: Inversion) -> int:
    """Return how many samples `draw_for_run` draws."""
    if each := _each(inversion):
        return sum(min(each, inversion.available(label) or each) for label in inversion.classes)
    size: dict[str, int] = sample_size(inversion)
    return size.get("count") or size["per_class"] * len(inversion.classes)


def _each(inversion: Inversion) -> int:
    """Return the most samples of each class of a fixed set with more images of some; 0 if it has as many of each."""
    uneven = len({inversion.available(label) for label in inversion.classes}) > 1
    return max(1, most_samples(len(inversion.classes)) // len(inversion.classes)) if uneven else 0


def most_samples(classes: int) -> int:
    """Return how many samples a run keeps at most, by its number of classes; see `sample_size`."""
    return 100 * classes if classes <= 10 else max(1000, classes)


def judge(inversion: Inversion, draw: Draw, on_done: Callable[[int], None] | None = None) -> Samples:
    """Score images in [0, 1] with the target, after rounding them to 8 bits (vectors are not rounded)."""
    images = draw.images
    if images.dim() == 4:
        images = torch.cat([(some * 255).round().to(torch.uint8) for some in images.split(ROUNDED)])
    target = inversion.target
    predicted, confidence, probabilities, divergence = _classify(
        target, images, draw.labels, draw.distribution, inversion.device, at_once(inversion.recipe, target), on_done
    )
    figures = inversion.figures(images / 255 if images.dtype == torch.uint8 else images)
    if images.dim() == 2:
        images = target.low + (target.high - target.low) * images
    distribution = None if probabilities is None else draw.distribution
    return Samples(
        images, draw.labels, predicted, confidence, divergence, draw.generator, probabilities, distribution, figures
    )


def read_samples(path: Path, target: Target, device: torch.device, most: int | None = None) -> Samples:
    """Read the samples of a run, and score them again with the target, ``most`` at a time; see `read_images`."""
    images, labels, generator = read_images(path, target)
    figures = {name: tensor for name, tensor in read_tensors(path).items() if "." in name}
    for name, tensor in figures.items():
        if tensor.dtype != torch.float32 or tensor.shape != labels.shape or not tensor.isfinite().all():
            raise RunError(f"{path} is not a file of samples: {name} is not a finite number of each.")
    unit = images if images.dim() == 4 else to_unit(images, target)
    predicted, confidence, probabilities, _ = _classify(target, unit, labels, None, device, most)
    return Samples(images, labels, predicted, confidence, None, generator, probabilities, figures=figures)


def read_images(path: Path, target: Target) -> tuple[Tensor, Tensor, Tensor]:
    """Return the stored images (or vectors), labels and generators of samples.safetensors; see `Samples`.

    Raises:
        RunError: the file is missing or invalid, or its samples do not fit the target.
    """
    tensors = read_tensors(path)
    name = "images" if len(target.input_shape) == 3 else "inputs"
    if not {name, "labels", "generator"} <= tensors.keys():
        raise RunError(f"{path} holds {listed(tensors)}; samples of {target.name} need {name}, labels and generator.")
    images, labels, generator = tensors[name], tensors["labels"], tensors["generator"]
    n = labels.numel()
    whole = images.dtype == (torch.uint8 if name == "images" else torch.float32) and bool(images.isfinite().all())
    if not whole or not n or labels.dtype != torch.int64 or labels.shape != (n,) or generator.shape != (n,):
        raise RunError(f"{path} is not a file of samples: {name} {images.dtype} {tuple(images.shape)}, {n} labels.")
    if tuple(images.shape) != (n, *target.input_shape) or labels.min() < 0 or labels.max() >= target.num_classes:
        raise RunError(
            f"{path} holds samples of shape {tuple(images.shape[1:])} and labels {int(labels.min())} to "
            f"{int(labels.max())}; {target.name} takes {target.input_shape} and has {target.num_classes} classes."
        )
    return images, labels, generator


@torch.no_grad()
def _classify(
    target: Target,
    images: Tensor,
    labels: Tensor,
    distribution: Tensor | None,
    device: torch.device,
    most: int | None = None,
    on_done: Callable[[int], None] | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return predictions, confidence, probabilities (up to 100 classes) and KL of images, uint8 or in [0, 1]."""

    def classify(rows: slice) -> tuple[Tensor, ...]:
        batch = images[rows].to(device)
        logits = target(batch / 255 if batch.dtype == torch.uint8 else batch).cpu()
        q, asked = target.probabilities(logits), labels[rows]
        confidence = q.gather(1, asked[:, None])[:, 0]
        divergence = target.divergence(logits, q if distribution is None else distribution[rows])
        kept = q if target.num_classes <= MAX_PROBABILITIES else q[:, :0]
        return target.predictions(logits, asked), confidence, kept, divergence

    with target.frozen(device):
        columns = in_batches(target, images, classify, most=most, on_done=on_done)
    predicted, confidence, probabilities, divergence = (torch.cat(c) for c in zip(*columns, strict=True))
    return (
        predicted,
        confidence,
        probabilities if target.num_classes <= MAX_PROBABILITIES else None,
        None if distribution is None else divergence,
    )


def load_labelled(spec: str, target: Target) -> LabelledImages:
    """Load labeled data with `interpkit.load_data`, and warn of vectors far outside the target's input range."""
    facts = target.description
    if isinstance(target, UnitTarget):
        raise UsageError(f"the classes of {target.name} are units, of which {spec} has no labels: leave it out.")
    data = load_data(spec, facts.input_shape or target.input_shape, target.class_names, facts.crop_pct)
    unit = to_unit(data.images, target)
    low, high = unit.min().item(), unit.max().item()
    if low < -1 or high > 2:
        log.warning(
            "%s has values from %g to %g, far outside the input range %s of %s. Is %s right?",
            *(spec, data.images.min().item(), data.images.max().item()),
            *(target.description.input_range or (0, 1), target.name, setting("input_range", None)),
        )
    return data


@torch.no_grad()
def accuracy(target: Target, data: LabelledImages) -> float:
    """Return the share of labeled images that the target accepts as their class."""
    images = to_unit(data.images, target)
    with target.frozen():
        logits = torch.cat(in_batches(target, images, lambda rows: target(images[rows])))
    tell_nan(target.name, logits)
    return target.accepts(logits, data.labels).double().mean().item()


@with_autograd
@torch.no_grad()
def top_classes(
    target: Target, images: Tensor, count: int, device: torch.device | str = "cpu"
) -> list[list[dict[str, Any]]]:
    """Return the ``count`` most probable classes of each image in [0, 1], with label, name and probability."""
    with target.frozen(device):
        logits = torch.cat(in_batches(target, images, lambda rows: target(images[rows].to(device)).cpu()))
    # by the logits, as probabilities may be equal by rounding
    labels = logits.sort(dim=1, descending=True, stable=True).indices[:, :count]
    probabilities = target.probabilities(logits).gather(1, labels)
    return [
        [
            {"label": label, "name": target.class_names[label], "probability": probability}
            for probability, label in zip(*row, strict=True)
        ]
        for row in zip(probabilities.tolist(), labels.tolist(), strict=True)
    ]


def measure(samples: Samples, class_names: Sequence[str]) -> dict[str, Any]:
    """Return the figures of every metrics.json: inversion accuracy, confidence and KL, overall and per class.

    Inversion accuracy is the share of samples that the target itself accepts as the class asked for (`Target.accepts`),
    with its 95 % interval (`wilson`). Confidence is the mean probability that the target assigns to that class. ``kl``
    is the mean of KL(P || Q) in nats, of the condition's distribution P, if it is known, and the target's Q
    (`Target.divergence`). Further figures are means of `InversionLoss.figures`, by term.
    """
    right = samples.predicted == samples.labels

    def figures(rows: Tensor) -> dict[str, Any]:
        count, hits = int(rows.sum()), int(right[rows].sum())
        kl = {} if samples.divergence is None else {"kl": samples.divergence[rows].double().mean().item()}
        of_terms: dict[str, dict[str, float]] = {}
        for name, values in samples.figures.items():
            term, _, figure = name.partition(".")
            of_terms.setdefault(term, {})[figure] = values[rows].double().mean().item()
        return {
            "inversion_accuracy": hits / count,
            "inversion_accuracy_interval": wilson(hits, count),
            "confidence": samples.confidence[rows].double().mean().item(),
            "count": count,
            **kl,
            **of_terms,
        }

    per_class = [
        {"label": label, "name": class_names[label], **figures(samples.labels == label)}
        for label in samples.labels.unique().tolist()
    ]
    return {"schema": SCHEMA, **figures(torch.ones_like(right)), "per_class": per_class}
