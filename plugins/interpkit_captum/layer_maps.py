"""Grad-CAM and guided Grad-CAM: what a layer saw, weighted by how much the score depends on it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

import interpkit
from interpkit import Attribution, AttributionContext, Target, UsageError
from interpkit_captum.pixels import with_gradient

MOST_EXTRA_TOKENS = 8
"""Class and register tokens that may stand before the patches of a vision transformer."""


class GradCam(Attribution):
    r"""Grad-CAM, :math:`\mathrm{ReLU}(\sum_k \alpha_k A^k)`, :math:`\alpha_k` the score's mean gradient on channel k.

    Enlarged to the image's size (bilinear); every channel of the image has the same map. The layer is the one named,
    or else the last that runs once, has a grid and gives the score a gradient in more than one place; the tokens of a
    vision transformer are laid out as the grid of their patches. On convolutions it equals Captum's LayerGradCam,
    which knows no tokens. Source: Selvaraju et al. 2017, "Grad-CAM", eq. 1 and 2.
    """

    name = "grad-cam"

    class Options(interpkit.Options):
        """The sign."""

        signed: bool = Field(False, description="keep what speaks against the class: no ReLU")

    options: Options

    def attribute(self, target: Target, images: Tensor, classes: Tensor, context: AttributionContext) -> Tensor:
        """Return maps; see `Attribution.attribute`."""
        return grad_cam(target, images, classes, context, signed=self.options.signed)


class GuidedGradCam(Attribution):
    """Guided Grad-CAM: Grad-CAM times guided backpropagation, which lets only positive gradients through a ReLU.

    Captum guides ``nn.ReLU`` alone: functional ReLU and other activations pass plain gradients, and a note says so
    where no ``nn.ReLU`` is found. Sources: Selvaraju et al. 2017, section 3.2; Springenberg et al. 2015, "Striving for
    simplicity".
    """

    name = "guided-grad-cam"

    def attribute(self, target: Target, images: Tensor, classes: Tensor, context: AttributionContext) -> Tensor:
        """Return maps; see `Attribution.attribute`."""
        from captum.attr import GuidedBackprop

        cam = grad_cam(target, images, classes, context)
        if not any(isinstance(layer, nn.ReLU) for layer in target.layers().values()):
            context.note(
                f"{target.name} has no nn.ReLU to guide, so guided-grad-cam is Grad-CAM times the plain gradient."
            )
        with _not_in_place(target), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Setting backward hooks on ReLU")
            guided: Tensor = GuidedBackprop(context.scores).attribute(with_gradient(images), target=classes)
        return cam * guided


def grad_cam(
    target: Target, images: Tensor, classes: Tensor, context: AttributionContext, *, signed: bool = False
) -> Tensor:
    """Return Grad-CAM maps, (B, C, H, W).

    Raises:
        UsageError: the target has no layer with a grid that can be watched, or the named layer is none.
    """
    if images.dim() != 4:
        raise UsageError(f"Grad-CAM takes images; {target.name} takes vectors of {images.shape[1]} features.")
    layers = target.layers()
    size = (images.shape[2], images.shape[3])
    # Which layer serves is found on two images; the maps come from a pass that keeps that layer alone.
    passes = _passes(layers, [context.layer] if context.layer else layers, context.scores, images[:2], classes[:2])
    layer = context.layer or _last_with_grid(target, layers, passes, size)
    _check_layer(target, layer, passes.get(layer, []), size)
    if context.layer is None:
        context.note(f"Grad-CAM reads the layer {layer!r}, {tuple(passes[layer][0][0].shape[1:])}.")
    ((activation, gradient),) = _passes(layers, [layer], context.scores, images, classes)[layer]
    assert gradient is not None
    seen, slope = (_as_grid(tensor, size) for tensor in (activation, gradient))
    assert seen is not None and slope is not None
    cam = (slope.mean((2, 3), keepdim=True) * seen).sum(1, keepdim=True)
    cam = cam if signed else cam.relu()
    return F.interpolate(cam.float(), size, mode="bilinear", align_corners=False).expand_as(images)


Pass = tuple[Tensor, Tensor | None]
"""A layer's output in one of its passes, and the gradient of the score on it; None where there is none."""


def _passes(
    layers: Mapping[str, nn.Module], kept: Iterable[str], scores: nn.Module, images: Tensor, classes: Tensor
) -> dict[str, list[Pass]]:
    """Return the passes of those layers that are kept and run, in the order of their last ends."""
    kept = set(kept)
    seen: list[tuple[str, Tensor]] = []
    handles = []

    def watcher(name: str) -> Callable[..., Any]:
        def watch(module: nn.Module, inputs: Any, output: Any) -> Any:
            if not isinstance(output, Tensor) or not output.is_floating_point():
                return None
            if name in kept:
                seen.append((name, output))
            return output.clone()  # what is changed in place further on is the copy, of every layer

        return watch

    try:
        for name, layer in layers.items():
            handles.append(layer.register_forward_hook(watcher(name)))
        score = scores(with_gradient(images)).gather(1, classes[:, None]).sum()
    finally:
        for handle in handles:
            handle.remove()
    tracked = [tensor for _, tensor in seen if tensor.requires_grad]
    found = torch.autograd.grad(score, tracked, allow_unused=True) if tracked else ()
    gradients = {id(tensor): gradient for tensor, gradient in zip(tracked, found, strict=True)}
    passes: dict[str, list[Pass]] = {}
    for name, tensor in seen:
        # Put last by its last end.
        passes[name] = [*passes.pop(name, []), (tensor.detach(), gradients.get(id(tensor)))]
    return passes


def _last_with_grid(
    target: Target, layers: Mapping[str, nn.Module], passes: dict[str, list[Pass]], size: tuple[int, int]
) -> str:
    """Return the last layer whose grid the score depends on, or at least the last with a grid.

    In a vision transformer the last blocks' patches may no longer matter, as the class token alone is read.
    """
    if not passes:
        raise UsageError(
            f"Grad-CAM cannot serve {target.name}: its layers cannot be watched (TorchScript, an exported program)."
        )
    with_grid = []
    for name, found in reversed(passes.items()):
        if len(found) != 1 or isinstance(layers[name], nn.modules.dropout._DropoutNd):
            continue
        activation, gradient = found[0]
        if _as_grid(activation, size) is None or gradient is None:
            continue
        with_grid.append(name)
        slope = _as_grid(gradient, size)
        assert slope is not None
        if int(slope.abs().sum((0, 1)).count_nonzero()) > 1:
            return name
    if not with_grid:
        raise UsageError(
            f"Grad-CAM cannot serve {target.name}: no layer that runs once gives a grid, (B, C, h, w) or the "
            f"patches of a vision transformer, on the way to the score. If it takes one image at a time, let single "
            f"images pass: rows=1, or --rows 1."
        )
    return with_grid[0]


def _check_layer(target: Target, layer: str, passes: Sequence[Pass], size: tuple[int, int]) -> None:
    if len(passes) > 1:
        raise UsageError(
            f"Grad-CAM cannot read the layer {layer!r} of {target.name}: it runs {len(passes)} times in one pass "
            f"(a reused module, or a classifier that takes one image at a time: rows=1, or --rows 1, serves that). "
            f"Name another by --layer."
        )
    if not passes or passes[0][1] is None:
        raise UsageError(f"{target.name}: the score does not depend on the layer {layer!r}. Name another by --layer.")
    if _as_grid(passes[0][0], size) is None:
        raise UsageError(
            f"{target.name}: the layer {layer!r} gives {tuple(passes[0][0].shape[1:])} for an image, which is no grid, "
            f"(C, h, w) or the patches of a vision transformer. Name another by --layer."
        )


def _as_grid(tensor: Tensor, size: tuple[int, int]) -> Tensor | None:
    """Return a layer's output as (B, C, h, w): as it is, or the patches of (B, T, C) tokens; None if it is neither."""
    if tensor.dim() == 4:
        return tensor if tensor.shape[2] * tensor.shape[3] > 1 else None
    if tensor.dim() != 3:
        return None
    height, width = size
    sides = [p for p in range(1, min(size) + 1) if height % p == 0 and width % p == 0]
    for extra in range(MOST_EXTRA_TOKENS + 1):
        for patch in sides:
            rows, columns = height // patch, width // patch
            if rows * columns == tensor.shape[1] - extra and rows * columns > 1:
                patches = tensor[:, extra:].transpose(1, 2)
                return patches.reshape(*patches.shape[:2], rows, columns)
    return None


@contextmanager
def _not_in_place(target: Target) -> Iterator[None]:
    """Have the activations work out of place, as hooks on them need it; leave them as they were."""
    changed = [layer for layer in target.layers().values() if getattr(layer, "inplace", False) is True]
    try:
        for layer in changed:
            layer.inplace = False  # type: ignore[assignment]
        yield
    finally:
        for layer in changed:
            layer.inplace = True  # type: ignore[assignment]
