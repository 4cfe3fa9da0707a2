"""`wrap`: any classifier in memory as a target; loaders of files end here too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from interpkit.errors import ModelError, UsageError, did_you_mean, listed
from interpkit.interfaces import Response, Target
from interpkit.recipe import TargetOptions


class ModuleTarget(Target):
    """A target around a PyTorch module; made by `wrap`.

    Images x in [0, 1] reach the module as ``(lo + (hi - lo) * x - mean) / std``, in the module's own dtype.
    """

    sources: dict[str, str]
    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        module: nn.Module,
        input_shape: tuple[int, ...],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        input_range: tuple[float, float],
        name: str,
    ) -> None:
        super().__init__()
        self.module = module
        self.name = name
        self.input_shape = input_shape
        lo, hi = input_range
        per_channel = (1, -1, *(1,) * (len(input_shape) - 1))
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
        mean_, std_ = (torch.tensor(values, dtype=torch.float64).view(per_channel) for values in (mean, std))
        self.register_buffer("scale", ((hi - lo) / std_).float().to(device))
        self.register_buffer("shift", ((lo - mean_) / std_).float().to(device))
        self._plain = bool((self.scale == 1).all() and (self.shift == 0).all())

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, (B, n) float32; see `Target.forward`."""
        x = images if self._plain else images * self.scale + self.shift
        dtype = next((p.dtype for p in self.module.parameters() if p.is_floating_point()), x.dtype)
        logits: Tensor = self.module(x.to(dtype))
        return at_least_single(logits)

    def respond(self, images: Tensor, layers: Sequence[str] = ()) -> Response:
        """Return logits and features; see `Target.respond`."""
        wanted = dict.fromkeys([self.feature_layer, *layers])
        features: dict[str, Tensor] = {}
        handles = []
        try:
            for layer in wanted:
                handles.append(_watch(self._layer(layer), layer, features))
            logits = self(images)
        finally:
            for handle in handles:
                handle.remove()
        missing = [layer for layer in wanted if layer not in features]
        if missing:
            raise UsageError(f"{self.name}: the layer {missing[0]!r} takes no part in the forward pass.")
        return Response(logits, features, self.feature_layer)

    def layers(self) -> Mapping[str, nn.Module]:
        """Return the user's layers by dotted name; see `Target.layers`."""
        return {name: module for name, module in self.module.named_modules() if name}

    def _layer(self, layer: str) -> nn.Module:
        name = layer.removesuffix(":in")
        try:
            return self.module.get_submodule(name)
        except AttributeError as error:
            known = list(self.layers())
            raise UsageError(
                f"{self.name} has no layer {name!r}.{did_you_mean(name, known)} Layers: {listed(known)}."
            ) from error


def at_least_single(tensor: Tensor) -> Tensor:
    """Return half-precision numbers as float32, and others as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _watch(module: nn.Module, layer: str, features: dict[str, Tensor]) -> Any:
    """Hook a layer so that what passes it is kept under its name, safe from in-place changes further on."""

    def keep(value: Any, copy: bool) -> None:
        while isinstance(value, tuple | list) and value:
            value = value[0]
        if isinstance(value, Tensor):
            features[layer] = at_least_single(value.clone() if copy else value)

    if layer.endswith(":in"):
        in_place = bool(getattr(module, "inplace", False))
        return module.register_forward_pre_hook(lambda _, inputs: keep(inputs, in_place))
    return module.register_forward_hook(lambda _, inputs, output: keep(output, True))


def wrap(
    module: nn.Module,
    input_shape: Sequence[int],
    *,
    mean: Sequence[float] | float = 0.0,
    std: Sequence[float] | float = 1.0,
    input_range: tuple[float, float] = (0.0, 1.0),
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    feature_layer: str | None = None,
    name: str | None = None,
) -> Target:
    """Make any classifier a target. The module is used as it is, and left as it was.

    Args:
        module: images (B, *input_shape) to logits (B, n).
        input_shape: (C, H, W), or (D,) for a classifier of vectors.
        mean: per channel or one for all, in the units of ``input_range``.
        std: likewise.
        input_range: (lo, hi), what black and white are to the module before mean and std.
        num_classes: n; checked against the module's output.
        class_names: n names; ``"0"``, ``"1"``, ... if left out.
        feature_layer: the default features, NAME for a layer's output or NAME:in for its input; the input of
            the last linear layer to run (else of the last convolution) if left out.
        name: for headings and folders; the class's name if left out.

    Raises:
        UsageError: an argument is out of range.
        ModelError: the module fails on such an input, or gives no such logits.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
        >>> target = wrap(net, input_shape=(1, 28, 28), mean=[0.13], std=[0.31])
        >>> target.num_classes, target.feature_layer
        (10, '1:in')
    """
    shape = tuple(int(size) for size in input_shape)
    if len(shape) not in (1, 3) or min(shape, default=0) < 1:
        raise UsageError(f"input_shape is C,H,W (or D for vectors), each at least 1, not {shape}.")
    means, stds = _per_channel("mean", mean, shape[0]), _per_channel("std", std, shape[0])
    if min(stds) <= 0:
        raise UsageError(f"std must be above 0, not {stds}.")
    lo, hi = (float(bound) for bound in input_range)
    if not lo < hi:
        raise UsageError(f"input_range is LO,HI with LO < HI, not {lo},{hi}.")
    target = ModuleTarget(module, shape, mean=means, std=stds, input_range=(lo, hi), name=name or type(module).__name__)
    width, ran = _probe(target)
    if num_classes is not None and num_classes != width:
        raise ModelError(
            f"{target.name} gives {width} logits, but {num_classes} classes are named. Use --num-classes {width}."
        )
    if width < 2:
        raise ModelError(f"{target.name} gives {width} logit; a classifier needs at least 2.")
    target.num_classes = width
    target.class_names = [str(i) for i in range(width)] if class_names is None else [str(c) for c in class_names]
    if len(target.class_names) != width:
        raise UsageError(f"{target.name} has {width} classes, but {len(target.class_names)} names are given.")
    found = feature_layer is None
    if feature_layer is None:
        heads = [name for name, kind in ran if kind is nn.Linear] or [name for name, _ in ran]
        if not heads:
            raise UsageError(f"{target.name} has no linear layer or convolution: name a feature_layer.")
        feature_layer = f"{heads[-1]}:in"
    target.feature_layer = feature_layer
    target._layer(feature_layer)
    given = {
        "mean": mean != 0.0,
        "std": std != 1.0,
        "input_range": (lo, hi) != (0.0, 1.0),
        "input_shape": True,
    }
    given |= {"class_names": class_names is not None, "feature_layer": not found}
    target.sources = {key: "given" if said else "default" for key, said in given.items()}
    target.sources["num_classes"] = "found: width of the logits"
    if found:
        target.sources["feature_layer"] = "found: input of the last linear layer to run"
    target.description = TargetOptions(
        input_shape=shape,
        num_classes=width,
        mean=means,
        std=stds,
        input_range=(lo, hi),
        class_names=target.class_names,
        feature_layer=feature_layer,
    )
    return target


def _per_channel(name: str, value: Sequence[float] | float, channels: int) -> list[float]:
    values = [float(v) for v in value] if isinstance(value, Sequence) else [float(value)]
    if len(values) not in (1, channels):
        raise UsageError(f"{name} takes 1 or {channels} values for {channels} channels, not {len(values)}.")
    return values if len(values) == channels else values * channels


def _probe(target: ModuleTarget) -> tuple[int, list[tuple[str, type[nn.Module]]]]:
    """Run the module once: return the number of logits, and the linear and convolution layers as they ran."""
    ran: list[tuple[str, type[nn.Module]]] = []
    handles = []
    shape = (2, *target.input_shape)
    try:
        for name, layer in target.module.named_modules():
            kind = nn.Linear if isinstance(layer, nn.Linear) else nn.modules.conv._ConvNd
            if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
                handles.append(layer.register_forward_pre_hook(_noter(ran, name, kind)))
        with target.frozen(), torch.no_grad():
            logits = target(torch.full(shape, 0.5, device=target.scale.device))
    except Exception as error:  # whatever the user's module raises
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"{target.name} fails on an input of shape {shape}: {reason[0]} Is --input-shape right?"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    if logits.dim() != 2 or len(logits) != 2:
        raise ModelError(f"{target.name} gives {tuple(logits.shape)} for 2 images; logits are (2, n).")
    if not torch.isfinite(logits).all():
        raise ModelError(
            f"{target.name} gives NaN or infinite logits for a grey image: are its weights whole, and are "
            f"--mean, --std and --input-range right?"
        )
    return logits.shape[1], ran


def _noter(
    ran: list[tuple[str, type[nn.Module]]], name: str, kind: type[nn.Module]
) -> Callable[[nn.Module, Any], None]:
    return lambda _, inputs: ran.append((name, kind))
