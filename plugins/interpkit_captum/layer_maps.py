"""Grad-CAM and guided Grad-CAM: a layer's activations, weighted by how much the score depends on them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

import interpkit
from interpkit import Attribution, AttributionContext, Target, UsageError
from interpkit_captum.axes import Reading, hooked, read_layers
from interpkit_captum.pixels import with_gradient


class GradCam(Attribution):
    r"""Grad-CAM, :math:`\mathrm{ReLU}(\sum_k \alpha_k A^k)`: where a layer's activations support the class.

    :math:`A^k` is channel k of the layer's output, and :math:`\alpha_k` the mean gradient of the score on it. The map
    is enlarged to the image's size (bilinear), and is the same for every channel of the image. By default the layer is
    the last one that runs once, has a spatial grid and receives a gradient from the score at more than one position.
    Which axes are the grid's is measured (`interpkit_captum.axes`): channels may come last, and the tokens of a vision
    transformer are arranged as the grid of their patches. For convolutions the result equals Captum's LayerGradCam,
    which reads (B, C, h, w) alone. Source: Selvaraju et al. 2017, "Grad-CAM", eq. 1 and 2.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from interpkit import attribute, wrap
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))
        >>> target = wrap(net, input_shape=(1, 8, 8))
        >>> maps = attribute(target, torch.rand(2, 1, 8, 8), [0, 1], method="grad-cam", layer="0")
        >>> maps.shape, bool((maps >= 0).all())
        (torch.Size([2, 1, 8, 8]), True)
    """

    name = "grad-cam"

    class Options(interpkit.Options):
        """Whether the sign is kept."""

        signed: bool = Field(False, description="keep negative evidence too: no ReLU")

    options: Options

    def attribute(self, target: Target, images: Tensor, classes: Tensor, context: AttributionContext) -> Tensor:
        """Return maps; see `Attribution.attribute`."""
        return grad_cam(target, images, classes, context, signed=self.options.signed)


class GuidedGradCam(Attribution):
    """Guided Grad-CAM: Grad-CAM times guided backpropagation, which lets only positive gradients through a ReLU.

    Captum guides only ``nn.ReLU`` modules: functional ReLU and other activations pass ordinary gradients, and a note
    tells the user if the target has no ``nn.ReLU``. Sources: Selvaraju et al. 2017, section 3.2; Springenberg et al.
    2015, "Striving for simplicity".

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from interpkit import Explainer, wrap
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(256, 3))
        >>> explainer = Explainer(wrap(net, input_shape=(1, 8, 8)), "guided-grad-cam", layer="0")
        >>> explainer.maps(torch.rand(2, 1, 8, 8), torch.tensor([0, 1])).shape
        torch.Size([2, 1, 8, 8])
        >>> explainer.notes[0]
        'Sequential does not have an nn.ReLU to guide, so guided-grad-cam is Grad-CAM times the ordinary gradient.'
    """

    name = "guided-grad-cam"

    def attribute(self, target: Target, images: Tensor, classes: Tensor, context: AttributionContext) -> Tensor:
        """Return maps; see `Attribution.attribute`."""
        from captum.attr import GuidedBackprop

        cam = grad_cam(target, images, classes, context)
        if not any(isinstance(layer, nn.ReLU) for layer in target.layers().values()):
            context.note(
                f"{target.name} does not have an nn.ReLU to guide, so guided-grad-cam is Grad-CAM times the ordinary "
                f"gradient."
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
        UsageError: the target does not have a hookable layer with a grid, or the named layer is not one.
    """
    if images.dim() != 4:
        raise UsageError(
            f"Grad-CAM needs images; {target.name} classifies vectors of {images.shape[1]} features. Use another "
            f"method, such as integrated-gradients."
        )
    layers = target.layers()
    # Two images suffice to choose the layer; the maps come from a second pass that keeps only that layer.
    kept = layers if context.layer is None else [context.layer]
    passes = _passes(layers, kept, context.scores, images[:2], classes[:2])
    readings = read_layers({name: layers[name] for name in kept}, context.scores, images, context.rows)
    layer = context.layer
    if layer is None:
        layer = _last_with_grid(target, layers, passes, readings)
    else:
        _check_layer(target, layer, passes.get(layer, []), readings)
    reading, shape = readings[layer], tuple(passes[layer][0][0].shape)
    shown = shape[1:] if reading.batch == 0 else shape
    doubt = "" if reading.is_found else "; no change of the image's halves confirms that"
    if context.layer is None or doubt or reading.words(len(shape)) != "(C, h, w)":
        context.note(f"Grad-CAM reads the layer {layer!r}, {shown}, as {reading.words(len(shape))}{doubt}.")
    left_out = [] if context.layer else _left_out_after(layer, passes, readings)
    if left_out:
        context.note(f"Grad-CAM leaves out later layers, none of whose axes run along the image's: {left_out}.")
    ((output, gradient),) = _passes(layers, [layer], context.scores, images, classes)[layer]
    assert gradient is not None
    activation, slope = reading.grid(output), reading.grid(gradient)
    cam = (slope.mean((2, 3), keepdim=True) * activation).sum(1, keepdim=True)
    cam = cam if signed else cam.relu()
    return F.interpolate(cam.float(), images.shape[2:], mode="bilinear", align_corners=False).expand_as(images)


Pass = tuple[Tensor, Tensor | None]
"""A layer's output in one of its passes, and the gradient of the score with respect to it, or None."""


def _passes(
    layers: Mapping[str, nn.Module], kept: Iterable[str], scores: nn.Module, images: Tensor, classes: Tensor
) -> dict[str, list[Pass]]:
    """Return the passes of the ``kept`` layers that run, ordered by when each layer last finished."""
    kept = set(kept)
    outputs: list[tuple[str, Tensor]] = []

    def keep(name: str, output: Any) -> Tensor | None:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return None
        if name in kept:
            outputs.append((name, output))
        return output.clone()  # of every layer, so that later in-place changes affect only the copy

    with hooked(layers, keep):
        score = scores(with_gradient(images)).gather(1, classes[:, None]).sum()
    tracked = [tensor for _, tensor in outputs if tensor.requires_grad]
    slopes = torch.autograd.grad(score, tracked, allow_unused=True) if tracked else ()
    gradients = {id(tensor): slope for tensor, slope in zip(tracked, slopes, strict=True)}
    passes: dict[str, list[Pass]] = {}
    for name, tensor in outputs:
        # Removed and added again, so that the order is that of the last pass.
        passes[name] = [*passes.pop(name, []), (tensor.detach(), gradients.get(id(tensor)))]
    return passes


def _last_with_grid(
    target: Target, layers: Mapping[str, nn.Module], passes: dict[str, list[Pass]], readings: Mapping[str, Reading]
) -> str:
    """Return the last layer with a grid that the score depends on, or else the last layer with a grid.

    In a vision transformer the patches of the last block may not affect the score, because only the class token does.
    Layers whose reading has evidence come before others, and whole tokens before those of an attention's heads.
    """
    if not passes:
        raise UsageError(
            f"Grad-CAM cannot explain {target.name}: its layers do not accept hooks, as in TorchScript or an exported "
            f"program. Use another method, such as integrated-gradients."
        )
    with_grid = []
    for name, of_layer in reversed(passes.items()):
        if len(of_layer) != 1 or isinstance(layers[name], nn.modules.dropout._DropoutNd) or name not in readings:
            continue
        gradient = of_layer[0][1]
        if gradient is not None:
            reading = readings[name]
            positions = int(reading.grid(gradient).abs().sum((0, 1)).count_nonzero())
            whole = min(reading.size) > 1  # not yet averaged along one axis, as some exporters pool
            with_grid.append((reading.is_found, whole, positions > 1, not reading.has_heads(gradient.dim()), name))
    if not with_grid:
        raise UsageError(
            f"Grad-CAM cannot explain {target.name}: no layer that runs once outputs a grid of positions in the image "
            f"that the score depends on: (C, h, w), (h, w, C), or the patches of a vision transformer. If the "
            f"classifier processes one image at a time, use rows=1 (--rows 1)."
        )
    return max(with_grid, key=lambda found: found[:-1])[-1]  # the first of equals, which is the last to run


def _left_out_after(layer: str, passes: dict[str, list[Pass]], readings: Mapping[str, Reading]) -> str:
    """Return the layers after one that look like a grid by their number of axes, but are not found to be one."""
    later = list(passes)[list(passes).index(layer) + 1 :]
    shapes = {name: passes[name][0][0].shape for name in later if name not in readings or not readings[name].is_found}
    like_grids = [name for name, shape in shapes.items() if len(shape) > 2 and shape[2:].numel() > 1]
    return ", ".join(f"{name!r} {tuple(shapes[name][1:])}" for name in like_grids[-3:])


def _check_layer(target: Target, layer: str, passes: list[Pass], readings: Mapping[str, Reading]) -> None:
    if len(passes) > 1:
        raise UsageError(
            f"Grad-CAM cannot use the layer {layer!r} of {target.name}: it runs {len(passes)} times in one forward "
            f"pass, because the module is reused or the classifier processes one image at a time. In the second case "
            f"use rows=1 (--rows 1); otherwise choose another layer (--layer)."
        )
    if not passes or passes[0][1] is None:
        raise UsageError(
            f"{target.name}: the score does not depend on the layer {layer!r}. Choose another layer (--layer)."
        )
    if layer not in readings:
        raise UsageError(
            f"{target.name}: the layer {layer!r} outputs {tuple(passes[0][0].shape[1:])} for an image, which is "
            f"not a grid: none of its axes run along the image's, as in (C, h, w), (h, w, C) or the patches of a "
            f"vision transformer. Choose another layer (--layer)."
        )


@contextmanager
def _not_in_place(target: Target) -> Iterator[None]:
    """Disable in-place activations, which backward hooks do not support; restore them afterwards."""
    changed = [layer for layer in target.layers().values() if getattr(layer, "inplace", False) is True]
    try:
        for layer in changed:
            layer.inplace = False  # type: ignore[assignment]
        yield
    finally:
        for layer in changed:
            layer.inplace = True  # type: ignore[assignment]
