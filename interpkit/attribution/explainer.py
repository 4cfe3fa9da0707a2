"""Compute attribution maps, which show the pixels that contribute to a class's logit."""

from __future__ import annotations

import copy
import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interpkit.config.recipe import validated
from interpkit.config.sizes import is_large
from interpkit.errors import PluginError, RunError, UsageError, did_you_mean, first_line, listed, raised_in
from interpkit.interfaces import contracts
from interpkit.interfaces.attributions import Attribution, AttributionContext, Contrast
from interpkit.interfaces.data import fetch
from interpkit.interfaces.targets import Target
from interpkit.plugins.discovery import installed
from interpkit.runtime import memory, progress
from interpkit.runtime.at_once import bytes_per_image
from interpkit.runtime.autograd import with_autograd
from interpkit.runtime.devices import choose_device, is_out_of_memory
from interpkit.runtime.random import derive_seed, global_seed
from interpkit.targets.file_format import ONNX_GRAPH

log = logging.getLogger("interpkit")

ROWS = 64
"""Default number of images per forward pass; for large images fewer if fewer fit into memory."""

TargetClass = str | int | tuple[int | str, int | str]
"""``asked``, ``predicted``, a class by number or name, or two (``3-5``) for the difference of their logits."""


def default_method() -> str:
    """Return the name of the attribution method to use if the user names none.

    Raises:
        UsageError: no installed plugin has an attribution.
    """
    entries = list(installed().registry.entries("attribution"))
    if not entries:
        raise UsageError("no installed plugin has an attribution: install one.")
    usual = next((entry for entry in entries if entry.item.default), entries[0])
    return installed().settled_name("attribution", usual.full_name)


@with_autograd
def attribute(
    target: Target,
    images: Tensor,
    labels: Tensor | Sequence[int] | None = None,
    *,
    method: str | None = None,
    target_class: TargetClass = "asked",
    baseline: str | Tensor = "black",
    layer: str | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    rows: int | None = None,
    device: str = "auto",
) -> Tensor:
    """Return maps of each pixel's contribution to a class's logit.

    Args:
        target: the classifier.
        images: (N, *input_shape) in [0, 1], as returned by `Inversion.sample` (also vectors).
        labels: (N,) the classes asked for; if omitted, those that the target predicts.
        method: a name from ``interpkit plugins list``; if omitted, the default method.
        target_class: ``asked`` (the label), ``predicted``, a class for all images, or two for the difference.
        baseline: ``black``, ``mean`` (the target's mean color), or images (M, *input_shape) as a distribution. Samples
            of class 5, for example, ask "why this class rather than class 5?".
        layer: layer for Grad-CAM; if omitted, chosen automatically.
        options: options of the method.
        seed: random seed of the method.
        rows: maximum number of images per forward pass; lower it if memory is short. If omitted, 64, or for large
            images as many as fit.
        device: device to compute on.

    Returns:
        maps, (N, *input_shape) float32 on the CPU; positive values are evidence for the class. See `Explainer` for
        their completeness error, and `interpkit.attribution.faithfulness` for tests of their faithfulness.

    Raises:
        UsageError: a name or value is wrong, or the method does not support this target.
        PluginError: the method fails, or returns invalid maps.

    Example:
        >>> import torch
        >>> from interpkit import attribute, wrap
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
        >>> target, images = wrap(net, input_shape=(1, 4, 4)), torch.rand(8, 1, 4, 4)
        >>> attribute(target, images).shape  # why the class that the target predicts
        torch.Size([8, 1, 4, 4])
        >>> maps = attribute(target, images, method="occlusion", target_class=(2, 0))  # why 2 rather than 0
    """
    images = checked_images(target, images)
    rows = how_many(target, device) if rows is None else rows
    classes, against = choose_classes(target, images, labels, target_class, rows=rows, device=device)
    explainer = Explainer(
        target,
        method,
        against=against,
        baseline=baseline,
        layer=layer,
        options=options,
        seed=seed,
        rows=rows,
        device=device,
    )
    maps = explainer.maps(images, classes)
    if not maps.any():
        log.warning(
            "the maps of %s are zero all over: %s", explainer.method.name, target.no_gradient or "no pixel counts"
        )
    return maps


class Explainer:
    """An attribution method configured for a target, which computes maps, scores and completeness errors.

    The arguments are those of `attribute`, and ``against``, a class whose logit is subtracted from the explained one.

    Attributes:
        target: the classifier.
        method: the method.
        baselines: (M, *input_shape), on the CPU.
        notes: the method's notes, each once.

    Raises:
        UsageError: a name or value is wrong.

    Example:
        >>> import torch
        >>> from interpkit import Explainer, wrap
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
        >>> explainer = Explainer(wrap(net, input_shape=(1, 4, 4)), "integrated-gradients")
        >>> images, classes = torch.rand(8, 1, 4, 4), torch.zeros(8, dtype=torch.long)
        >>> maps = explainer.maps(images, classes)
        >>> error = maps.flatten(1).sum(1) - explainer.differences(images, classes)  # of completeness
        >>> error.abs().max() < 1e-3
        tensor(True)
    """

    def __init__(
        self,
        target: Target,
        method: str | None = None,
        *,
        against: int | None = None,
        baseline: str | Tensor = "black",
        layer: str | None = None,
        options: Mapping[str, Any] | None = None,
        seed: int = 0,
        rows: int | None = None,
        device: str = "auto",
    ) -> None:
        method = method or default_method()
        cls = installed().component("attribution", method)
        self.target = target
        settled = validated(cls.Options, options or {}, f"the attribution {method!r}")
        fetch(options or {})
        with contracts.blamed(cls):
            self.method: Attribution = cls(settled)
        self.against = against
        self.baselines = _baselines(target, baseline)
        self.layer = None if layer is None else _known_layer(target, layer)
        self.seed = seed
        rows = how_many(target, device) if rows is None else rows
        if rows < 1:
            raise UsageError(f"rows = {rows}: it must be at least 1.")
        self.rows = rows
        self.device = choose_device(device)
        self.notes: list[str] = []

    def on(self, target: Target) -> Explainer:
        """Return an equal explainer for another target of the same shape, such as a copy with other weights."""
        other = copy.copy(self)
        other.target, other.notes = target, []
        return other

    @with_autograd
    def maps(self, images: Tensor, classes: Tensor) -> Tensor:
        """Return maps, (N, *input_shape) float32 on the CPU, of images in [0, 1] for classes (N,) int64.

        Raises:
            UsageError: the method does not support this target.
            PluginError: the method fails, or returns invalid maps.
            RunError: it ran out of memory, or a map is not finite.
        """
        found = []
        with self.target.frozen(self.device), torch.enable_grad():
            module, by_image = self.score_module(), self.method.by_image
            step = 1 if by_image else self.rows
            for start in range(0, len(images), step):
                given = (images[start : start + step], classes[start : start + step], self.baselines)
                batch, wanted, baselines = (tensor.detach().clone().to(self.device) for tensor in given)
                context = AttributionContext(module, baselines, self.layer, self.rows, self._note)
                with global_seed(derive_seed(self.seed, "attribution", start if by_image else 0), self.device):
                    found.append(self._attribute(batch, wanted, context).detach().float().cpu())
                progress.tell("images explained", start + len(batch), len(images))
        maps = torch.cat(found)
        if not maps.isfinite().all():
            what = contracts.described(self.method)
            raise RunError(f"{what} returned maps of {self.target.name} that are not finite.")
        return maps

    @torch.no_grad()
    def scores(self, images: Tensor, classes: Tensor) -> Tensor:
        """Return the explained scores, each the logit of the image's class (or the difference), (N,) on the CPU."""
        found = []
        with self.target.frozen(self.device):
            module = self.score_module()
            for batch, wanted in zip(images.split(self.rows), classes.split(self.rows), strict=True):
                scores = module(batch.to(self.device)).cpu()
                found.append(scores.gather(1, wanted.cpu()[:, None])[:, 0])
        return torch.cat(found)

    @torch.no_grad()
    def differences(self, images: Tensor, classes: Tensor) -> Tensor:
        r"""Return :math:`f(x) - \frac{1}{M} \sum_m f(x'_m)`, (N,): the sum of a complete map."""
        baseline = torch.zeros(len(classes))
        for label in classes.unique().tolist():
            asked = torch.full((len(self.baselines),), label)
            baseline[classes.cpu() == label] = self.scores(self.baselines, asked).mean()
        return self.scores(images, classes) - baseline

    def score_module(self) -> torch.nn.Module:
        """Return the module that maps images to scores (B, n); methods explain one column per image."""
        return self.target if self.against is None else Contrast(self.target, self.against)

    def _attribute(self, images: Tensor, classes: Tensor, context: AttributionContext) -> Tensor:
        try:
            return contracts.maps(self.method, self.target, images, classes, context)
        except PluginError as error:
            if error.__cause__ is None or raised_in(error.__cause__, contracts.module_of(self.method)):
                raise
            # otherwise the user's module raised it, or Captum while running it
            reason = _reason(error.__cause__)
            raise UsageError(f"{self.method.name} does not support {self.target.name}: {reason}") from error
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise RunError(f"{self.method.name} ran out of memory. Lower rows, now {self.rows}.") from error

    def _note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)


def _reason(error: BaseException) -> str:
    """Explain an error of the target, with what to do about it."""
    message = str(error)
    if "modified by an inplace operation" in message or "being modified inplace" in message:
        return (
            "it needs gradients, but the classifier modifies tensors in place that they depend on (such as x += y "
            "after a ReLU). Write x = x + y, or choose a method without gradients."
        )
    if "does not require grad" in message or "not have been used in the graph" in message:
        return (
            "it needs gradients, but none reach the image (a rounding or a detach() stops them). Choose a method "
            "without gradients, such as occlusion."
        )
    return first_line(error)


def checked_images(target: Target, images: Tensor) -> Tensor:
    """Return images as float32, (N, *input_shape) in [0, 1]; flatten signals and volumes to vectors.

    Raises:
        UsageError: their shape or values do not fit the target.
    """
    if tuple(images.shape[1:]) == target.description.input_shape:
        images = images.reshape(len(images), *target.input_shape)
    if images.dim() < 2 or tuple(images.shape[1:]) != target.input_shape or not len(images):
        raise UsageError(
            f"{target.name} takes images of {target.input_shape}; these are {tuple(images.shape)}. Pass "
            f"(N, {', '.join(map(str, target.input_shape))}), N at least 1."
        )
    if images.dtype == torch.uint8:
        images = images / 255
    images = images.float()
    if not images.isfinite().all():
        raise UsageError("the images have values that are not finite.")
    low, high = images.min().item(), images.max().item()
    if images.dim() == 4 and not (low >= -0.001 and high <= 1.001):
        raise UsageError(f"the images reach from {low:g} to {high:g}: pass uint8, or float in [0, 1].")
    return images


def how_many(target: Target, device: str = "auto") -> int:
    """Return how many images pass the target at once, with a gradient, where nobody says it: see `ROWS`."""
    if not is_large(target.input_shape):
        return ROWS
    place = choose_device(device)
    with target.frozen(place):
        one = bytes_per_image(target, torch.full((1, *target.input_shape), 0.5))
    allowed = memory.allowed(place)
    return ROWS if allowed is None or not one else max(1, min(ROWS, allowed // one))


def choose_classes(
    target: Target,
    images: Tensor,
    labels: Tensor | Sequence[int] | None,
    target_class: TargetClass,
    *,
    rows: int = ROWS,
    device: str = "auto",
) -> tuple[Tensor, int | None]:
    """Return the class to explain for each image, (N,) int64, and the class whose logit is subtracted.

    Raises:
        UsageError: ``target_class`` is invalid, or a class does not exist.
    """
    numbers = _class_numbers(target, target_class)
    if numbers:
        asked = torch.full((len(images),), numbers[0])
        return asked, numbers[1] if len(numbers) == 2 else None
    if target_class == "asked" and labels is not None:
        classes = torch.as_tensor(labels).long().cpu()
        if classes.shape != (len(images),):
            raise UsageError(f"there are {len(images)} images but labels of shape {tuple(classes.shape)}.")
        wrong = classes[(classes < 0) | (classes >= target.num_classes)]
        if len(wrong):
            raise UsageError(f"there is no class {int(wrong[0])}; {target.name}'s are 0 to {target.num_classes - 1}.")
        return classes, None
    place = choose_device(device)
    with target.frozen(place), torch.no_grad():
        return torch.cat([target(batch.to(place)).argmax(1).cpu() for batch in images.split(rows)]), None


def _class_numbers(target: Target, target_class: TargetClass) -> tuple[int, ...]:
    """Return one or two classes; none for ``asked`` and ``predicted``."""
    if target_class in ("asked", "predicted"):
        return ()
    pairs: list[Sequence[int | str]] = [(target_class,) if isinstance(target_class, int | str) else target_class]
    if isinstance(target_class, str):  # names may contain hyphens
        pairs += [(target_class[: at.start()], target_class[at.end() :]) for at in re.finditer("-", target_class)]
    first: UsageError | None = None
    for pair in pairs:
        try:
            numbers = tuple(map(target.class_number, pair))
        except UsageError as error:
            first = first or error
            continue
        if len(numbers) in (1, 2) and len(set(numbers)) == len(numbers):
            return numbers
    raise UsageError(
        f"the class to explain is asked, predicted, a number or name, or two as in 3-5; not {target_class!r}"
        f"{'.' if first is None else f': {first}'}"
    )


def _baselines(target: Target, baseline: str | Tensor) -> Tensor:
    if isinstance(baseline, Tensor):
        return checked_images(target, baseline).cpu().clone()
    if baseline == "black":
        return torch.zeros(1, *target.input_shape)
    if baseline == "mean":
        facts = target.description
        inside = facts.arch == ONNX_GRAPH  # which subtracts the mean itself
        if facts.mean is None or target.sources.get("mean") == "default" or inside:
            raise UsageError(f"the mean color of {target.name} is not known: state its mean and std, or use black.")
        mean = torch.tensor(facts.mean)
        if facts.channel_order == "bgr":
            mean = mean.flip(0)
        mean = target.to_unit(mean[None])[0].clamp(0, 1)  # a color is a vector in the same units
        return mean.repeat_interleave(math.prod(target.input_shape) // len(mean)).view(1, *target.input_shape)
    raise UsageError(f"the baseline must be black, mean, or a tensor of images; not {baseline!r}.")


def _known_layer(target: Target, layer: str) -> str:
    known = list(target.layers())
    if layer not in known:
        raise UsageError(
            f"{target.name} has no layer {layer!r} that can be watched.{did_you_mean(layer, known)} "
            f"Layers: {listed(known)}."
        )
    return layer
