"""`wrap`: turn any classifier in memory into a target; loaders of files use it too.

What a classifier expects (its layout, its batch) and what it outputs is specified by the caller or else detected by
running it, and recorded in `Target.sources` either way.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor, nn

from interpkit.config.recipe import ClassifierFacts, TargetOptions, target_facts, validated
from interpkit.errors import ModelError, UsageError, did_you_mean, first_line, listed, setting
from interpkit.interfaces.targets import Target
from interpkit.runtime.autograd import with_autograd
from interpkit.runtime.devices import is_out_of_memory
from interpkit.runtime.random import global_seed
from interpkit.targets.module_target import OUTPUT, Layout, ModuleTarget
from interpkit.targets.outputs import FinalError, choose, select
from interpkit.targets.scores import find_output, names_of
from interpkit.targets.units import units
from interpkit.targets.watch import watch

log = logging.getLogger("interpkit")

LARGE = 1_000_000
"""The number of values in an image above which two probes are tried instead of six."""
GRAY = 0
"""The row of the gray image among the probes; the others are black, white and noise."""
DIM = (0.005, 0.02, 0.1, 0.3)
"""Amplitudes of noise where a network may have a gradient that has none for the probes."""
SAME = "its logits are the same for every image"
CUT = "its forward has no_grad, a detach, a rounding or integers in the way"
SHAPE = re.compile(r"shape|size|dimension|channel|broadcast|expected|axis|view|rank", re.IGNORECASE)
"""Words in an error about the shape of an image."""
KIND = re.compile(
    r"\bdtype|scalar type|uint8|\b(byte|u?int\d*|long|double|half|bfloat16)\b|torch\.\w+Tensor", re.IGNORECASE
)
"""Words in an error about numbers of another kind, such as bytes."""
KEY = re.compile(r"\[\s*(['\"])(\w+)\1\s*\]")
"""A name in square brackets, in a line of Python."""
DEVICE = re.compile(r"NVIDIA|CUDA|same device|\bMPS\b")
BATCH = re.compile(r"(?:Guard failed: \w+\.size\(\)\[0\] ==|Expected input at \S+\.shape\[0\] to be equal to) (\d+)")
"""What an exported program raises for another number of images, in new releases of torch and in old ones."""
MISSING = re.compile(r"missing \d+ required (?:positional|keyword-only) arguments?: (.*)")


@with_autograd
def wrap(
    module: nn.Module, input_shape: Sequence[int], *, name: str | None = None, **facts: Unpack[ClassifierFacts]
) -> Target:
    """Turn any classifier into a target. The module is used as it is and not changed.

    Args:
        module: a classifier of images or vectors. It may return a tensor, or a tuple, list, dict or object that
            contains one; a single logit or probability stands for two classes; it does not need to support batches.
        input_shape: (C, H, W), or (D,) for a classifier of vectors, whatever its layout. For one of signals, (C, L), or
            volumes, (C, D, H, W), the target's inputs are vectors, which are reshaped for the module.
        name: the name used in headings and folder names; the class's name if omitted.
        facts: facts about the module, each a field of `TargetOptions`; those omitted are detected or have a default.

            - ``mean``, ``std``: per channel (in the module's own order) or one value for all, in the units of
              ``input_range``; 0 and 1 by default.
            - ``input_range``: (lo, hi), the values of black and white before mean and std; (0, 1) by default. For
              vectors, optionally one pair per feature.
            - ``num_classes``: n; checked against the module's output.
            - ``class_names``: n names, or a dict of them by number; ``"0"``, ``"1"``, ... by default. One name for a
              single output makes the classes ``not NAME`` and ``NAME``.
            - ``crop_pct``: the share of a photo's shorter side that the classifier sees.
            - ``layout``: ``nchw``, ``nhwc`` or ``flat``; detected by default.
            - ``channel_order``: ``rgb`` (default) or ``bgr``.
            - ``output``: ``logits``, ``log_probs``, ``neg_log_probs`` or ``probs``; of labels that do not exclude each
              other, ``sigmoid`` (probabilities) or ``sigmoid_logits``. All but the last are detected by default.
            - ``output_name``, ``output_index``: which of several outputs are the logits, by name (key, field or
              position, such as ``heads.age`` or ``1``) or by position among all tensors; detected by default.
            - ``feature_layer``: the default features, NAME for a layer's output or NAME:in for its input; the input
              of the last linear layer to run (else of the last convolution) by default.
            - ``units``: the target's classes are these units, ``LAYER:CHANNEL``, instead of the classifier's classes;
              see `interpkit.units`.

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
    if isinstance(input_shape, int):
        raise UsageError(f"input_shape is (C, H, W), or (D,) for vectors such as ({input_shape},), not {input_shape}.")
    values = {**facts, "input_shape": tuple(input_shape), "class_names": in_order(facts.get("class_names"))}
    options = validated(TargetOptions, values, name or "wrap")
    target = ModuleTarget(module, options, name or type(module).__name__)
    shape, order = target.module_shape, options.channel_order
    if len(shape) == 2 and shape[0] == shape[1]:
        log.warning(
            "%s: the shape %s is taken for a signal of %d channels; for a gray image, use %s.",
            *(target.name, shape, shape[0], setting("input_shape", [1, *shape])),
        )
    # `_try` and the other functions replace the entries that they detect.
    target.sources = {key: "default" if getattr(options, key) is None else "given" for key in accepted}
    raw, heads = _try(target, options)
    if "batch" in target.sources and not target.one_by_one:
        log.warning("%s: %s.", target.name, target.sources["batch"].removeprefix("found: "))
    find_output(target, raw, options)
    target.num_classes = width = max(2, raw.shape[1])
    target.sources["num_classes"] = "found: width of the output"
    if raw.shape[1] == 1:
        target.sources["num_classes"] = "found: one output, which stands for two classes"
    if options.num_classes not in (None, width):
        raise ModelError(
            f"{target.name} returns {width} logits, but {options.num_classes} classes are specified. Use "
            f"{setting('num_classes', width)}."
        )
    target.class_names = names_of(options.class_names, raw.shape[1])
    if len(target.class_names) != width:
        raise UsageError(f"{target.name} has {width} classes, but {len(target.class_names)} names are specified.")
    _find_features(target, heads, options.feature_layer, len(raw))
    resolved = {
        "num_classes": width,
        "mean": _per_channel(options.mean or [0.0], shape[0]),
        "std": _per_channel(options.std or [1.0], shape[0]),
        "input_range": options.ranges[0] if len(options.ranges) == 1 else options.ranges,
        "class_names": target.class_names,
        "layout": target.layout if len(shape) == 3 else None,
        "channel_order": order or ("rgb" if shape[0] == 3 and len(shape) == 3 else None),
        "output": target.output,
        "output_name": target.output_name or None,
        "output_index": None,
        "feature_layer": target.feature_layer,
    }
    target.description = options.model_copy(update=resolved)
    return units(target, options.units) if options.units else target


def in_order(names: Any) -> list[str] | None:
    """Return class names as a list; a mapping has them by the number of the class, from 0.

    Raises:
        UsageError: their order is not known.
    """
    if isinstance(names, Mapping) and set(names) == set(range(len(names))):
        names = [names[number] for number in range(len(names))]
    if isinstance(names, str | bytes | Set | Mapping):
        raise UsageError(
            f"class_names is a {type(names).__name__}, not a list of names in the order of the logits: {names!r:.80}. "
            f'Pass a list such as ["cat", "dog"], or a dict such as {{0: "cat", 1: "dog"}}.'
        )
    if names is None:
        return None
    return [name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in names]


def _per_channel(values: list[float], channels: int) -> list[float]:
    return values if len(values) == channels else values * channels


class _Ran(NamedTuple):
    """A linear layer or convolution that ran."""

    name: str
    is_linear: bool
    output: Tensor


def _try(target: ModuleTarget, options: TargetOptions) -> tuple[Tensor, list[_Ran]]:
    """Run the module in each layout that it might expect, the usual one first, until one works.

    Returns:
        its output for a few images, (B, n), and the layers that ran, in that order.
    """
    layouts: list[Layout] = [options.layout] if options.layout else ["nchw"]
    if options.layout is None and len(target.input_shape) == 3:
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
                raw, ran = _run(target, probes, options)
            except ModelError as error:
                if isinstance(error.__cause__, FinalError):
                    raise
                first = first or error
                continue
            if len(target.input_shape) == 3:
                found = "default" if target.layout == "nchw" else "found: it fails as nchw"
                target.sources["layout"] = "given" if options.layout else found
            if target.one_by_one:
                target.sources["batch"] = "found: it takes one image at a time"
            return raw, ran
    assert first is not None
    if first.__cause__ is not None and is_out_of_memory(first.__cause__):
        raise first.__cause__
    raise first


def _run(target: ModuleTarget, probes: Tensor, options: TargetOptions) -> tuple[Tensor, list[_Ran]]:
    """Run the module on the probes, and find out all that depends on how it answers.

    Raises:
        ModelError: it fails, or does not return logits that one can rely on.
    """
    ran: list[_Ran] = []
    layers = {
        name: layer
        for name, layer in target.module.named_modules()
        if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)
    }

    def note(name: str, output: Any) -> None:
        if isinstance(output, Tensor):
            ran.append(_Ran(name, isinstance(layers[name], nn.Linear), output))

    before = {name: buffer.clone() for name, buffer in target.module.named_buffers() if buffer.is_floating_point()}
    try:
        with target.frozen():
            with watch(layers, note), global_seed(0, probes.device):
                raw = _with_gradient(target, probes, options, ran)
            with torch.no_grad():
                _check_state(target, probes, raw, before)
                _check_repeats(target, probes, raw)
    except Exception as error:  # whatever the user's module raises
        raise ModelError(_words(target, error, probes)) from error
    finally:
        with torch.no_grad():
            for name, buffer in _changed(target, before):
                buffer.copy_(before[name])
    if torch.isfinite(raw[GRAY]).all():
        return raw, ran
    if torch.isfinite(raw[-1]).all():
        raise ModelError(
            f"{target.name} returns NaN or infinite logits for an image of one color, but not for others: does it "
            f"divide by the image's standard deviation or range? Add a small number to that, such as 1e-6."
        )
    raise ModelError(
        f"{target.name} returns NaN or infinite logits for a gray image: are its weights intact, and are "
        f"{setting('mean', None)}, {setting('std', None)} and {setting('input_range', None)} right?"
    )


def _with_gradient(target: ModuleTarget, probes: Tensor, options: TargetOptions, ran: list[_Ran]) -> Tensor:
    """Return the output for the probes; choose it if there are several, and see whether a gradient passes.

    It keeps its graph of operations, by which one sees what the numbers are.
    """
    target.no_gradient, target.keeps_input = "", True
    images = probes.clone().requires_grad_()
    given = images * 1  # like a generated image, not a leaf
    version = given._version
    try:
        outputs = target.outputs(given)
    except Exception as error:
        with torch.no_grad():
            outputs = target.outputs(probes.clone())
        target.no_gradient = first_line(error)
    target.keeps_input = given._version == version
    width = options.num_classes or (len(options.class_names) if options.class_names else None)
    heads = [layer.output for layer in ran]
    output, count = outputs[0]
    name, source = choose(output, count, heads, width, options.output_name, options.output_index)
    target.output_name = name
    if name:
        target.sources["output_name"] = source or "found: the only tensor"
        if source not in ("", "given"):
            log.warning("%s returns several outputs; %r is taken as the logits (%s).", target.name, name, source)
    raw = torch.cat([select(output, name, count) for output, count in outputs])
    if any(weight.is_inference() for weight in target.module.parameters()):
        target.no_gradient = "its weights were created in torch.inference_mode(); create or load it outside"
    elif not target.no_gradient and not _has_gradient(raw, images):
        dim = torch.cat([level * probes[-1:] for level in DIM]).requires_grad_()
        answers = target.raw(dim * 1)
        if not _has_gradient(answers, dim):
            same = bool((torch.cat([raw, answers]) == raw[:1]).all())
            target.no_gradient = SAME if same else CUT
    return raw


def _has_gradient(logits: Tensor, images: Tensor) -> bool:
    if logits.requires_grad:
        with suppress(RuntimeError):  # such as of operations in place
            (logits * torch.randn_like(logits)).sum().backward()
    return images.grad is not None and bool(images.grad.any())


def _changed(target: ModuleTarget, before: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Return the buffers that hold other numbers than before."""
    return [
        (name, buffer)
        for name, buffer in target.module.named_buffers()
        if name in before and buffer.shape == before[name].shape and not _close(buffer, before[name], 0)
    ]


def _check_state(target: ModuleTarget, probes: Tensor, raw: Tensor, before: Mapping[str, Tensor]) -> None:
    """Check that the logits do not depend on buffers that follow the images, such as ranges that are still observed.

    Raises:
        ModelError: they do.
    """
    changed = _changed(target, before)
    if changed:  # possibly computed at the first call, once and for all
        with global_seed(0, probes.device):
            for _ in range(8):
                target.raw(4 * probes - 2)
            again = target.raw(probes)
        if not _close(raw, again, 1e-4):
            raise FinalError(
                f"its buffers {listed([name for name, _ in changed], 4)} follow the images that it is called with, in "
                f"eval mode as well, and its logits follow them. Stop that first, for example with "
                f"module.apply(torch.ao.quantization.disable_observer)."
            )


def _check_repeats(target: ModuleTarget, probes: Tensor, raw: Tensor) -> None:
    """Find out whether the output depends on chance, on earlier calls, on the batch or on the memory layout.

    Raises:
        ModelError: it depends on earlier calls, or is wrong for several images at once.
    """

    def run(images: Tensor, seed: int = 0) -> Tensor:
        with global_seed(seed, probes.device):
            return target.raw(images)

    target.channels_last = False
    if not _close(raw, run(probes, seed=1), 1e-4):
        if not _close(raw, run(probes), 1e-4):
            raise ModelError(
                "it returns other logits for the same images when it is called again, so it keeps something from call "
                "to call. Wrap it in a module that resets it before each call."
            )
        target.sources["batch"] = "found: it draws at random in eval mode, so the same images get other logits"
    elif not target.one_by_one:
        # Some graphs have a fixed batch size of one, and return wrong rows instead of failing.
        alone = torch.cat([target.raw(probe) for probe in probes[:2].split(1)])
        if not _close(raw[:2], alone, 1e-2):
            if not _close(raw, run(probes.flip(0)).flip(0), 1e-2):
                raise ModelError("it returns other logits for an image in a batch than alone.")
            if any(_close(values.sum(0), torch.ones_like(values[0]), 1e-3) for values in (raw, raw.exp())):
                raise FinalError(
                    "its probabilities sum to 1 over the images of a batch instead of the classes. Its softmax has "
                    "dim=0; use dim=1."
                )
            target.sources["batch"] = (
                "found: an image's logits depend on the other images of its batch (such as batch norm without running "
                "statistics), so they hold for the batches that interpkit forms"
            )
    if len(target.input_shape) == 3 and target.layout == "nchw":
        target.channels_last = True
        with suppress(Exception), target.frozen(layout=torch.channels_last):
            if _close(raw, run(probes.to(memory_format=torch.channels_last)), 1e-2):
                return
        target.channels_last = False


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return torch.allclose(a.float(), b.float(), rtol=tolerance, atol=tolerance, equal_nan=True)


def _words(target: ModuleTarget, error: Exception, probes: Tensor) -> str:
    """Explain why the module cannot be used; ask about the shape only where the shape may be the reason."""
    if isinstance(error, ModelError):
        return f"{target.name} cannot be used: {error}"
    reason = first_line(error)
    place = f"an input of shape {target.module_shape} (in a batch of {len(probes)})"
    words = f"{target.name} fails on {place}: {reason.rstrip('.')}."
    if missing := MISSING.search(reason):
        return (
            f"{words} interpkit passes only images. Wrap it in a module whose forward(x) passes a fixed value for "
            f"{missing[1]}."
        )
    if exported := BATCH.search(reason):
        return (
            f"{target.name} accepts {exported[1]} images at a time, no more and no less. Export it with a free batch "
            f"size, torch.export.export(model, (x,), dynamic_shapes=({{0: torch.export.Dim('batch')}},)), or for one."
        )
    line = traceback.extract_tb(error.__traceback__)[-1].line or ""
    if isinstance(error, IndexError | TypeError) and (key := KEY.search(line)):
        return (
            f"{words} Its forward seems to read a dict ({line}), and interpkit passes only images. Wrap it in a "
            f"module whose forward(x) calls it with {{{key[2]!r}: x}}."
        )
    if KIND.search(reason):
        kind = str(next((p.dtype for p in target.module.parameters() if p.is_floating_point()), probes.dtype))
        return (
            f"{words} interpkit passes {kind.removeprefix('torch.')} numbers. Wrap it in a module whose forward(x) "
            f"converts them, such as net(x.to(torch.uint8)). No gradient passes whole numbers, so if the network can "
            f"start from floating-point ones, let it."
        )
    if DEVICE.search(reason):
        return f"{words} Its forward seems to name a device; write .to(x.device) there instead."
    if SHAPE.search(reason):
        return f"{words} Is {setting('input_shape', None)} right?"
    return f"{words} That error comes from the model's own code."


def _run_for_some(target: ModuleTarget, ran: list[_Ran], images: int) -> tuple[str, ...]:
    """Return what the names of layers begin with that may run for some images alone, such as experts in a list."""
    rows: Counter[str] = Counter()
    for one in ran:
        rows[one.name] += len(one.output)
    lists = {f"{name}.": part for name, part in target.module.named_modules() if isinstance(part, nn.ModuleList)}
    return tuple(
        prefix
        for prefix, part in lists.items()
        if any(rows[prefix + name] < images for name, layer in part.named_modules() if isinstance(layer, nn.Linear))
    )


def _find_features(target: ModuleTarget, ran: list[_Ran], layer: str | None, images: int) -> None:
    if layer is not None:
        if layer != OUTPUT:
            target.layer(layer)
        target.feature_layer, target.sources["feature_layer"] = layer, "given"
        return
    some = _run_for_some(target, ran, images)
    always = [one for one in ran if not one.name.startswith(some)]
    if any(one.is_linear for one in always):  # else the list holds the heads, of which one is in use
        ran = always
    linear = [one.name for one in ran if one.is_linear]
    if linear:
        target.feature_layer, source = f"{linear[-1]}:in", "found: input of the last linear layer to run"
    elif ran:
        target.feature_layer, source = f"{ran[-1].name}:in", "found: input of the last convolution to run"
    else:
        target.without_features = True
        target.feature_layer, source = OUTPUT, "found: no linear layer can be watched, so the logits themselves"
    target.sources["feature_layer"] = source
