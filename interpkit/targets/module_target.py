"""`wrap`: turn any classifier in memory into a target; loaders of files use it too.

What a classifier expects (its layout, its batch) and what it outputs is specified by the caller or else detected by
running it, and recorded in `Target.sources` either way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn

from interpkit.config.recipe import ClassifierFacts, TargetOptions, target_facts, validated
from interpkit.errors import ModelError, UsageError, did_you_mean, first_line, listed, setting
from interpkit.interfaces.targets import Response, Target
from interpkit.runtime.random import global_seed
from interpkit.targets.scores import Output, as_logits, find_output, in_single
from interpkit.targets.watch import first_of, watch

Layout = Literal["nchw", "nhwc", "flat"]

OUTPUT = "output"
"""Stands for the classifier's own output if it does not have a layer that can be watched."""
LARGE = 1_000_000
"""The number of values in an image above which two probes are tried instead of six."""
GRAY = 0
"""The row of the gray image among the probes; the others are black, white and noise."""


class ModuleTarget(Target):
    """A target that wraps a PyTorch module; created by `wrap`.

    The module receives images x in [0, 1] as ``(lo + (hi - lo) * x - mean) / std``, in its own layout, channel order
    and dtype; its output is converted to logits:

    - log-probabilities are used as logits unchanged, and so are the logarithms of probabilities;
    - a single logit z of a binary classifier becomes (0, z), a single probability p becomes (log(1 - p), log p).
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, module: nn.Module, facts: TargetOptions, name: str) -> None:
        super().__init__()
        assert facts.input_shape is not None
        self.module = module
        self.name = name
        self.input_shape = facts.input_shape
        self.sources = {}
        self.layout: Layout = "nchw"
        self.output: Output = "logits"
        self.one_by_one = False
        self._flip = facts.channel_order == "bgr"
        per_channel = (1, -1, *(1,) * (len(self.input_shape) - 1))
        lo, hi, mean_, std_ = (
            torch.tensor(values, dtype=torch.float64).view(per_channel)
            for values in (*zip(*facts.ranges, strict=True), facts.mean or [0.0], facts.std or [1.0])
        )
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
        self.register_buffer("scale", ((hi - lo) / std_).float().to(device))
        self.register_buffer("shift", ((lo - mean_) / std_).float().to(device))
        self._as_is = bool((self.scale == 1).all() and (self.shift == 0).all())

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, (B, n) float32; see `Target.forward`."""
        return as_logits(self.raw(images), self.output)

    def raw(self, images: Tensor) -> Tensor:
        """Return the module's output for images, (B, n) or (B, 1)."""
        x = images.flip(1) if self._flip else images
        if not self._as_is:
            x = x * self.scale + self.shift
        if self.layout == "nhwc":
            x = x.permute(0, 2, 3, 1)
        elif self.layout == "flat":
            x = x.flatten(1)
        dtype = next((p.dtype for p in self.module.parameters() if p.is_floating_point()), x.dtype)
        x = x.to(dtype)
        if not self.one_by_one or len(x) == 1:
            return first_tensor(self.module(x), len(x))
        return torch.cat([first_tensor(self.module(row), 1) for row in x.split(1)])

    def respond(self, images: Tensor, layers: Sequence[str] = ()) -> Response:
        """Return logits and features; see `Target.respond`."""
        wanted = [layer for layer in dict.fromkeys([self.feature_layer, *layers]) if layer != OUTPUT]
        passed: dict[str, list[Tensor]] = {layer: [] for layer in wanted}

        def keep(layer: str, value: Any) -> None:
            value = first_of(value)
            if isinstance(value, Tensor):
                # Later layers may change an output in place, and an in-place layer changes its own input.
                safe = layer.endswith(":in") and not getattr(modules[layer], "inplace", False)
                passed[layer].append(in_single(value if safe else value.clone()))

        modules = {layer: self.layer(layer) for layer in wanted}
        with watch(modules, keep):
            logits = self(images)
        missing = [layer for layer in wanted if not passed[layer]]
        if missing:
            raise UsageError(f"{self.name}: the layer {missing[0]!r} does not run in the forward pass.")
        # If a layer runs more than once, the last use counts.
        features = {layer: torch.cat(parts) if self.one_by_one else parts[-1] for layer, parts in passed.items()}
        if OUTPUT in (self.feature_layer, *layers):
            features[OUTPUT] = logits
        return Response(logits, features, self.feature_layer)

    def layers(self) -> Mapping[str, nn.Module]:
        """Return the user's layers by dotted name; see `Target.layers`. Those of TorchScript cannot be watched."""
        layers = self.module.named_modules()
        return {name: layer for name, layer in layers if name and not isinstance(layer, torch.jit.ScriptModule)}

    def layer(self, layer: str) -> nn.Module:
        """Return the module of a layer, NAME or NAME:in.

        Raises:
            UsageError: there is no such layer; the message lists similar names.
        """
        name = layer.removesuffix(":in")
        try:
            return self.module.get_submodule(name)
        except (AttributeError, RuntimeError) as error:  # TorchScript raises RuntimeError
            known = list(self.layers())
            raise UsageError(
                f"{self.name} has no layer {name!r}.{did_you_mean(name, known)} Layers: {listed(known)}."
            ) from error


def first_tensor(output: Any, count: int) -> Tensor:
    """Return the logits in a module's output: a tensor, an object or dict with ``logits``, or a tuple's first element.

    A binary classifier's (B,) becomes (B, 1).

    Raises:
        ModelError: there are no logits, or not one row for each of ``count`` images.
    """
    logits = output
    if isinstance(logits, Mapping):
        logits = logits.get("logits", next(iter(logits.values()), None))
    elif hasattr(logits, "logits"):
        logits = logits.logits
    logits = first_of(logits)
    if not isinstance(logits, Tensor):
        raise ModelError(f"it returns {type(output).__name__}, which does not contain a tensor of logits.")
    if logits.dim() == 1:  # (B,) of a binary classifier; (n,) of a graph that accepts one image
        logits = logits[None] if count == 1 and len(logits) != 1 else logits[:, None]
    elif logits.dim() > 2 and sum(size != 1 for size in logits.shape[1:]) <= 1:
        logits = logits.flatten(1)
    if logits.dim() != 2 or len(logits) != count or logits.shape[1] == 0:
        raise ModelError(f"it returns {tuple(logits.shape)} for {count} images; logits have the shape ({count}, n).")
    return logits


def wrap(
    module: nn.Module, input_shape: Sequence[int], *, name: str | None = None, **facts: Unpack[ClassifierFacts]
) -> Target:
    """Turn any classifier into a target. The module is used as it is and not changed.

    Args:
        module: a classifier of images or vectors. It may return a tensor, a tuple, a dict or an object with
            ``logits``; a single logit stands for two classes; it does not need to support batches.
        input_shape: (C, H, W), or (D,) for a classifier of vectors, whatever its layout.
        name: the name used in headings and folder names; the class's name if omitted.
        facts: facts about the module, each a field of `TargetOptions`; those omitted are detected or have a default.

            - ``mean``, ``std``: per channel (in the module's own order) or one value for all, in the units of
              ``input_range``; 0 and 1 by default.
            - ``input_range``: (lo, hi), the values of black and white before mean and std; (0, 1) by default. For
              vectors, optionally one pair per feature.
            - ``num_classes``: n; checked against the module's output.
            - ``class_names``: n names; ``"0"``, ``"1"``, ... by default.
            - ``layout``: ``nchw``, ``nhwc`` or ``flat``; detected by default.
            - ``channel_order``: ``rgb`` (default) or ``bgr``.
            - ``output``: ``logits``, ``log_probs`` or ``probs``; detected by default.
            - ``feature_layer``: the default features, NAME for a layer's output or NAME:in for its input; the input
              of the last linear layer to run (else of the last convolution) by default.

    Raises:
        UsageError: an argument is out of range.
        ModelError: the module fails on such an input, or does not return such logits.

    Example:
        >>> from torch import nn
        >>> from interpkit import wrap
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
        >>> target = wrap(net, input_shape=(1, 28, 28), mean=[0.13], std=[0.31])
        >>> target.num_classes, target.feature_layer
        (10, '1:in')
    """
    accepted = [fact.name for fact in target_facts() if not fact.of_file]
    for key in facts:
        if key not in accepted:
            raise TypeError(f"wrap does not accept the argument {key!r}.{did_you_mean(key, accepted)}")
    names = facts.get("class_names")
    values = {**facts, "input_shape": tuple(input_shape), "class_names": None if names is None else [*map(str, names)]}
    options = validated(TargetOptions, values, name or "wrap")
    target = ModuleTarget(module, options, name or type(module).__name__)
    shape, order = target.input_shape, options.channel_order
    # `_try` and the other functions replace the entries that they detect.
    target.sources = {key: "default" if getattr(options, key) is None else "given" for key in accepted}
    raw, heads = _try(target, options.layout)
    target.output, target.sources["output"] = find_output(raw, options.output)
    target.num_classes = width = max(2, raw.shape[1])
    target.sources["num_classes"] = "found: width of the output"
    if raw.shape[1] == 1:
        target.sources["num_classes"] = "found: one output, which stands for two classes"
    if options.num_classes not in (None, width):
        raise ModelError(
            f"{target.name} returns {width} logits, but {options.num_classes} classes are specified. Use "
            f"{setting('num_classes', width)}."
        )
    target.class_names = [str(i) for i in range(width)] if options.class_names is None else options.class_names
    if len(target.class_names) != width:
        raise UsageError(f"{target.name} has {width} classes, but {len(target.class_names)} names are specified.")
    _find_features(target, heads, options.feature_layer)
    resolved = {
        "num_classes": width,
        "mean": _per_channel(options.mean or [0.0], shape[0]),
        "std": _per_channel(options.std or [1.0], shape[0]),
        "input_range": options.ranges[0] if len(options.ranges) == 1 else options.ranges,
        "class_names": target.class_names,
        "layout": target.layout if len(shape) == 3 else None,
        "channel_order": order or ("rgb" if shape[0] == 3 and len(shape) == 3 else None),
        "output": target.output,
        "feature_layer": target.feature_layer,
    }
    target.description = options.model_copy(update=resolved)
    return target


def _per_channel(values: list[float], channels: int) -> list[float]:
    return values if len(values) == channels else values * channels


def _try(target: ModuleTarget, layout: Layout | None) -> tuple[Tensor, list[tuple[str, bool]]]:
    """Run the module in each layout that it might expect, the usual one first, until one works.

    Returns:
        its output for a few images, (B, n), and its linear and convolution layers in the order they ran (name, linear).
    """
    layouts: list[Layout] = [layout] if layout else ["nchw"]
    if layout is None and len(target.input_shape) == 3:
        layouts += ["flat", "nhwc"]
    generator = torch.Generator().manual_seed(0)
    probes = torch.cat([torch.full((1, *target.input_shape), v) for v in (0.5, 0.0, 1.0)])
    probes = torch.cat([probes, torch.rand(3, *target.input_shape, generator=generator)])
    if probes[0].numel() > LARGE:
        probes = probes[[GRAY, -1]]
    probes = probes.to(target.scale.device)
    first: ModelError | None = None
    for target.layout in layouts:
        for target.one_by_one in (False, True):
            try:
                raw, heads = _run(target, probes)
            except ModelError as error:
                first = first or error
                continue
            sources = {"layout": "given" if layout else "found: it fails as nchw" if len(layouts) > 1 else "default"}
            if len(target.input_shape) == 3:
                target.sources |= sources if target.layout != "nchw" or layout else {"layout": "default"}
            if target.one_by_one:
                target.sources["batch"] = "found: it takes one image at a time"
            return raw, heads
    assert first is not None
    raise first


def _run(target: ModuleTarget, probes: Tensor) -> tuple[Tensor, list[tuple[str, bool]]]:
    ran: list[tuple[str, bool]] = []
    heads = {
        f"{name}:in": layer
        for name, layer in target.module.named_modules()
        if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)
    }

    def note(layer: str, inputs: Any) -> None:
        ran.append((layer.removesuffix(":in"), isinstance(heads[layer], nn.Linear)))

    try:
        with target.frozen(), torch.no_grad(), global_seed(0, probes.device), watch(heads, note):
            raw = target.raw(probes)
            if not target.one_by_one:
                # Some graphs have a fixed batch size of one, and return wrong rows instead of failing.
                alone = torch.cat([target.raw(probe) for probe in probes[:2].split(1)])
                if not torch.allclose(raw[:2].float(), alone.float(), rtol=1e-2, atol=1e-2, equal_nan=True):
                    raise ModelError(f"{target.name} returns other logits for an image in a batch than alone.")
    except Exception as error:  # whatever the user's module raises
        shape = (len(probes), *target.input_shape)
        raise ModelError(
            f"{target.name} fails on an input of shape {shape}: {first_line(error)} Is "
            f"{setting('input_shape', None)} right?"
        ) from error
    if not torch.isfinite(raw[GRAY]).all():
        raise ModelError(
            f"{target.name} returns NaN or infinite logits for a gray image: are its weights intact, and are "
            f"{setting('mean', None)}, {setting('std', None)} and {setting('input_range', None)} right?"
        )
    if raw.shape[1] < 1:
        raise ModelError(f"{target.name} returns no logits: its output has width 0.")
    return raw, ran


def _find_features(target: ModuleTarget, ran: list[tuple[str, bool]], layer: str | None) -> None:
    if layer is not None:
        if layer != OUTPUT:
            target.layer(layer)
        target.feature_layer, target.sources["feature_layer"] = layer, "given"
        return
    linear = [name for name, is_linear in ran if is_linear]
    if linear:
        target.feature_layer, source = f"{linear[-1]}:in", "found: input of the last linear layer to run"
    elif ran:
        target.feature_layer, source = f"{ran[-1][0]}:in", "found: input of the last convolution to run"
    else:
        target.feature_layer, source = OUTPUT, "found: no linear layer can be watched, so the logits themselves"
    target.sources["feature_layer"] = source
