"""What a dictionary of a layer's features finds in images, where in them, and what the classifier makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from interpkit.attribution.dictionaries import Dictionary
from interpkit.attribution.explainer import Explainer
from interpkit.errors import UsageError, listed
from interpkit.interfaces.targets import Response, Target
from interpkit.runtime.at_once import in_batches
from interpkit.runtime.devices import choose_device
from interpkit.targets.around import TargetAround
from interpkit.targets.layers import count_runs, list_layers
from interpkit.targets.units import grid_of, has_channels_last

MOST_VALUES = 2**28
"""Values of features that are kept at once, 1 GiB."""
KEPT = 2000
"""Images on which the label is compared."""


class ConceptTarget(TargetAround):
    """A target whose classes are the concepts: its logits (N, n) say how strongly each is present in an image.

    Whatever explains a target explains a concept: `interpkit.attribute` and any tool for Captum.
    """

    def __init__(self, classifier: Target, layer: str, dictionary: Dictionary, names: list[str]) -> None:
        super().__init__(classifier)
        self.layer, self.dictionary = layer, dictionary
        self.name = f"concepts of {classifier.name}"
        self.num_classes, self.class_names, self.multi_label = len(names), names, True

    def forward(self, images: Tensor) -> Tensor:
        """Return how strongly each concept is present, (N, n), at its strongest position."""
        return self.respond(images).logits

    def respond(self, images: Tensor, layers: Sequence[str] = ()) -> Response:
        """Return the concepts and the classifier's features; see `Target.respond`."""
        response = self.target.respond(images, [self.layer, *layers])
        rows = positions(self.target, self.layer, response.features[self.layer])
        logits = self.dictionary.evidence(rows.flatten(0, 1)).unflatten(0, rows.shape[:2]).amax(1)
        return Response(logits, response.features, self.feature_layer)


@dataclass(frozen=True)
class Found:
    """What a dictionary finds in images.

    Attributes:
        codes: (N, n), each concept at its strongest position in each image.
        variance_explained: 1 - (squared error) / (squared distance from the mean), over all features.
        label_kept: the share of images whose label stays when the features are replaced by what the codes stand for.
        active: how many concepts a position has on average.
        predicted: (N,) the labels.
    """

    codes: Tensor
    variance_explained: float
    label_kept: float
    active: float
    predicted: Tensor

    @property
    def fires(self) -> Tensor:
        """The share of images in which each concept is present, (n,)."""
        return (self.codes > 0).double().mean(0)

    def to_json(self) -> dict[str, Any]:
        """Return the figures."""
        return {
            "images": len(self.codes),
            "variance_explained": self.variance_explained,
            "label_kept": self.label_kept,
            "active": self.active,
            "silent": int((self.fires == 0).sum()),
        }


def positions(target: Target, layer: str, features: Tensor) -> Tensor:
    """Return a layer's features as (N, P, D): P places of a grid or of a signal, or tokens; one position for (N, D)."""
    if features.dim() == 2:
        return features[:, None]
    last = has_channels_last(target, layer, features.shape[1:])
    return features.flatten(1, -2) if last else features.flatten(2).transpose(1, 2)


def grid(target: Target, layer: str, shape: Sequence[int]) -> tuple[int, int] | None:
    """Return the height and width of a layer's grid, of its output's shape for one image; None if it has none.

    Tokens may have one for the class ahead of the patches.
    """
    if len(shape) not in (2, 3):
        return None
    places = shape[:-1] if has_channels_last(target, layer, shape) else shape[1:]
    if len(places) == 1:
        return grid_of(target, places)
    return (places[0], places[1]) if math.prod(places) > 1 else None


def check_layer(target: Target, layer: str) -> None:
    """Refuse a layer that runs several times: its concepts would be those of one run, taken out of all of them."""
    runs = count_runs(target)
    if (count := runs[layer.removesuffix(":in")]) > 1:
        once = [name for name in target.layers() if runs[name] == 1]
        raise UsageError(
            f"the layer {layer!r} of {target.name} runs {count} times for an image, so its features are of several "
            f"places in the network. Name a layer that runs once: {listed(once)}."
        )


@torch.no_grad()
def read(target: Target, layer: str, images: Tensor, device: str = "auto") -> tuple[Tensor, Tensor]:
    """Return a layer's features of images and the target's logits, on the CPU.

    Raises:
        UsageError: the layer does not exist, or has no features.
    """
    place = choose_device(device)

    def respond(rows: slice) -> tuple[Tensor, Tensor]:
        response = target.respond(images[rows].to(place), [layer])
        return response.features[layer].cpu(), response.logits.cpu()

    with target.frozen(place):
        first, _ = respond(slice(0, 1))
        if first.dim() not in (2, 3, 4) or first[0].numel() < 2:
            shapes = [f"{known.name} {known.shape}" for known in list_layers(target) if known.shape]
            raise UsageError(
                f"the layer {layer!r} of {target.name} returns {tuple(first.shape)}, which cannot be used as "
                f"features of images: name one that returns (N, D), (N, C, H, W) or (N, tokens, D). Its layers: "
                f"{', '.join(shapes)}."
            )
        parts = in_batches(target, images, respond)
    features, logits = (torch.cat(column) for column in zip(*parts, strict=True))
    return features, logits


@contextmanager
def replaced(detector: ConceptTarget, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let the classifier continue from changed features: ``change`` maps (N, D) to (N, D), on the CPU."""

    def swap(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return type(value)([swap(value[0]), *value[1:]])
        rows = positions(detector.target, layer, value)
        new = change(rows.flatten(0, 1).float().cpu()).unflatten(0, rows.shape[:2])
        last = value.dim() == 2 or has_channels_last(detector.target, layer, value.shape[1:])
        return (new if last else new.transpose(1, 2)).reshape(value.shape).to(value)

    layer = detector.layer
    module = detector.layers()[layer.removesuffix(":in")]
    if layer.endswith(":in"):
        handle = module.register_forward_pre_hook(lambda _, inputs: swap(inputs))
    else:
        handle = module.register_forward_hook(lambda _, inputs, output: swap(output))
    try:
        yield
    finally:
        handle.remove()


def drawn(count: int, most: int, seed: int = 0) -> Tensor:
    """Return the numbers of at most so many of ``count`` rows, at random, in ascending order."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most].sort().values


@torch.no_grad()
def find(detector: ConceptTarget, images: Tensor, features: Tensor, logits: Tensor, device: str) -> Found:
    """Return what a dictionary finds in images, whose features and logits `read` returned."""
    target, dictionary, predicted = detector.target, detector.dictionary, logits.argmax(1)
    rows = positions(target, detector.layer, features)
    mean = rows.flatten(0, 1).mean(0)
    codes, error, variance, active = [], 0.0, 0.0, 0.0
    for part in rows.split(max(1, 4096 // rows.shape[1])):
        flat = part.flatten(0, 1)
        code = dictionary.encode(flat)
        error += float((dictionary.decode(code) - flat).square().sum())
        variance += float((flat - mean).square().sum())
        active += float((code > 0).sum())
        codes.append(code.unflatten(0, part.shape[:2]).amax(1))
    place, chosen = choose_device(device), drawn(len(images), KEPT)
    few = images[chosen]
    with target.frozen(place), replaced(detector, lambda flat: dictionary.decode(dictionary.encode(flat))):
        again = torch.cat(in_batches(target, few, lambda rows: target(few[rows].to(place)).cpu()))
    same = again.argmax(1) == predicted[chosen]
    if target.multi_label:  # each label is an answer
        same = (again > 0) == (logits[chosen] > 0)
    kept = same.double().mean().item()
    explained = 1 - error / variance if variance > 0 else math.nan
    return Found(torch.cat(codes), explained, kept, active / rows.shape[:2].numel(), predicted)


@torch.no_grad()
def effect(detector: ConceptTarget, concept: int, images: Tensor, logits: Tensor, device: str) -> Tensor:
    """Return by how much the logits (N, n) of images change on average when a concept is taken out, (n,).

    Logarithms of probabilities change relative to their mean, as those of all other classes rise where one falls.
    """
    target, dictionary, place = detector.target, detector.dictionary, choose_device(device)

    def without(flat: Tensor) -> Tensor:
        codes = dictionary.encode(flat)
        rest = codes.clone()
        rest[:, concept] = 0
        return flat - dictionary.decode(codes) + dictionary.decode(rest)

    with replaced(detector, without):
        change: Tensor = (target(images.to(place)).cpu() - logits).mean(0)
    relative = target.description.output in ("probs", "log_probs", "neg_log_probs")
    return change - change.mean() if relative else change


def maps(detector: ConceptTarget, images: Tensor, concepts: Tensor, device: str = "auto") -> Tensor:
    """Return where in each image its concept is, (N, 1 or C, H, W).

    Where the layer has a grid, these are the concept's codes on it, enlarged (bilinear); elsewhere the default
    attribution method explains how strongly it is present.
    """
    features, _ = read(detector.target, detector.layer, images, device)
    size = grid(detector.target, detector.layer, features.shape[1:])
    if size is None or images.dim() != 4:
        return Explainer(detector, device=device).maps(images, concepts)
    rows = positions(detector.target, detector.layer, features)[:, -size[0] * size[1] :]
    with torch.no_grad():
        codes = detector.dictionary.encode(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])
    own = codes.gather(2, concepts[:, None, None].expand(-1, codes.shape[1], 1))
    small = own.transpose(1, 2).unflatten(2, size)
    return F.interpolate(small, size=images.shape[2:], mode="bilinear", align_corners=False)
