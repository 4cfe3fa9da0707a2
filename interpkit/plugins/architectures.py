"""Build registered architectures and fill them with the weights of a file."""

from __future__ import annotations

import difflib
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from interpkit.errors import InterpkitError, ModelError, UsageError, did_you_mean, first_line, listed, setting
from interpkit.interfaces.loaders import Architectures
from interpkit.io.safe_load import tensors_in
from interpkit.plugins import replaced_layers, state_dicts
from interpkit.plugins.discovery import installed
from interpkit.runtime.devices import is_out_of_memory
from interpkit.targets.watch import watch

log = logging.getLogger("interpkit")

MAX_LAYERS = 1_000
MAX_SIZE = 1_000_000
MAX_REAL_CLASSES = 25_000
"""Bounds of an architecture's arguments: for counts of layers, for any other number or length,
and for the classes of a network whose shapes cannot be computed without memory."""
LARGE_INPUT = 100_000
"""Number of values in an image from which a network is first run without memory."""
MAX_NUMBERS = 200_000_000
"""Most values that a layer may output for one image: 0.8 GB."""
HEAD_WIDTH = ("num_classes", "n_classes", "num_labels", "classes")
STEM_WIDTH = ("in_chans", "num_channels", "in_channels")
"""Usual names of the arguments that set the widths of the head and of the first layer, tried in turn."""


def build_architecture(spec: str, arguments: Mapping[str, Any], *, meta: bool = False) -> nn.Module:
    """Build a registered architecture by FAMILY:NAME; with ``meta``, only its shapes, without memory.

    Raises:
        ModelError: it is not registered, or the arguments do not fit it.

    Example:
        >>> from interpkit import build_architecture
        >>> net = build_architecture("interpkit:cnn", {"input_shape": [3, 32, 32], "num_classes": 7})
        >>> net[-1].out_features
        7
    """
    registry = installed().registry
    family_name, _, name = spec.partition(":")
    try:
        family: Architectures = registry.get("architectures", family_name)
    except UsageError as error:
        if registry.has("architectures", family_name):
            raise  # several are
        known = listed(f"{f}:..." for f in registry.names("architectures"))
        raise ModelError(
            f"the architecture {spec!r} is not a registered one. Registered: {known}.{installed().left_out_words()}"
        ) from error
    name = family.resolve(name)
    if name not in family.names():
        raise ModelError(
            f"there is no architecture {spec!r}.{did_you_mean(name, family.names())} "
            f"{family_name} has: {listed(family.names())}."
        )
    check_arguments(spec, arguments)
    classes = arguments.get("num_classes", 0)
    modest = set(arguments) <= {"num_classes"} and isinstance(classes, int) and classes <= MAX_REAL_CLASSES
    if meta and modest:
        try:
            return _built(lambda: family.build(name, arguments), spec, arguments, "meta")
        except ModelError:  # regnets, for one, compute their shapes with tensors; their default sizes are sensible
            meta = False
    return _built(lambda: family.build(name, arguments), spec, arguments, "meta" if meta else "cpu")


def check_arguments(spec: str, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments from a file that would take forever to build: huge numbers, deep or long lists.

    Raises:
        ModelError: an argument is too large; the message names it.
    """

    def largest(key: str) -> int:
        return MAX_LAYERS if any(word in key for word in ("layer", "depth", "block", "repeat")) else MAX_SIZE

    def check(key: str, value: Any, depth: int) -> None:
        if isinstance(value, Mapping) and depth < 3 and len(value) <= MAX_SIZE:
            for inner, item in value.items():
                check(f"{key}.{inner}", item, depth + 1)
        elif isinstance(value, list | tuple) and depth < 2 and len(value) <= MAX_SIZE:
            for item in value:
                check(key, item, depth + 1)
            numbers = [item for item in value if isinstance(item, int | float)]
            if largest(key) == MAX_LAYERS and sum(numbers) > MAX_LAYERS:
                raise ModelError(f"{spec}: the argument {key} asks for {sum(numbers)} layers, which is far too many.")
        elif isinstance(value, Mapping | list | tuple) or (
            isinstance(value, int | float) and abs(value) > largest(key)
        ):
            raise ModelError(f"{spec}: the argument {key} = {str(value)[:60]} is far too large.")

    for key, value in arguments.items():
        check(key, value, 1)


def _built(build: Callable[[], nn.Module], spec: str, arguments: Mapping[str, Any], device: str) -> nn.Module:
    try:
        with torch.device(device):
            return build()
    except InterpkitError:
        raise
    except Exception as error:  # architectures raise anything on wrong arguments
        if is_out_of_memory(error):
            raise
        raise ModelError(f"{spec} cannot be built with {_short(arguments)}: {first_line(error)}") from error


def fill_architecture(
    spec: str,
    arguments: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    build: Callable[[Mapping[str, Any]], nn.Module] | None = None,
    *,
    input_shape: tuple[int, ...] | None = None,
    notes: list[str] | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Build an architecture with the given weights.

    A registered architecture is first built without memory and its shapes are compared, so that no argument in a file
    can allocate more than the file itself holds. The weights are found by the architecture's names, under whatever
    prefix they stand (``state_dict.model.``); every weight has to be there. The widths of the head and of the first
    layer set ``num_classes`` and the number of channels, where the architecture accepts them.

    Args:
        spec: FAMILY:NAME of a registered architecture, or a description of what ``build`` builds.
        arguments: of the architecture.
        tensors: its state dict, or all tensors of a checkpoint, with names of nested mappings joined by dots.
        build: arguments -> module, for the user's own code.
        input_shape: of one image; a large one that makes a layer's output huge is refused.
        notes: receives what was assumed: where the weights were found, and what was renamed, filled or left out.

    Returns:
        the module, and the arguments that it was built with.

    Raises:
        ModelError: the tensors do not fit; the message names them, and an architecture that would fit.

    Example:
        >>> from interpkit import build_architecture, fill_architecture
        >>> tensors = build_architecture("interpkit:cnn", {"num_classes": 7}).state_dict()  # read from a file
        >>> net, arguments = fill_architecture("interpkit:cnn", {}, tensors)
        >>> arguments  # found from the weights
        {'num_classes': 7}
    """
    arguments, activation, replaced = dict(arguments), None, []
    if build is None:
        activation = arguments.pop(replaced_layers.ACTIVATION, None)

    def skeleton(args: Mapping[str, Any]) -> nn.Module:
        if build is None:
            return build_architecture(spec, args, meta=True)
        return _built(lambda: build(args), spec, args, "cpu")

    module = skeleton(arguments)
    found = differing = state_dicts.match(module, tensors)
    if not found.fits:
        refusal = _misfit(spec, arguments, module, found, registered=build is None)
        for sizes in [*_other_sizes(found, arguments), {}]:
            try:
                module = skeleton(arguments | sizes)
            except ModelError:  # it does not have such an argument
                continue
            found = differing = state_dicts.match(module, tensors)
            if build is None and not found.fits:
                replaced = replaced_layers.replace(module, found, activation)
                found = state_dicts.match(module, tensors)
            if found.fits:
                arguments |= sizes
                break
        else:
            raise ModelError(refusal())
    if build is None:
        if input_shape is not None:
            check_shape(spec, module, input_shape)
        if found.filled or not _take_memory(module):
            module = build_architecture(spec, arguments)
            replaced_layers.replace(module, differing, activation)
    if activation is not None:
        if not any(activation in what for what in replaced):
            raise ModelError(
                f"{spec}: {replaced_layers.ACTIVATION} is for a head of several layers, and the file does not have "
                f"one in the place of the architecture's own. Leave it out."
            )
        arguments[replaced_layers.ACTIVATION] = activation
    tensors = found.tensors
    dtype = _dtype(tensors)
    if dtype is not None:
        module.to(dtype)  # half-precision weights stay as they are
    try:
        state = module.state_dict()  # with the versions of its layers, which files rarely keep
        if any(tensor.is_complex() and not state[name].is_complex() for name, tensor in tensors.items()):
            raise TypeError("they are complex numbers, and its own are not")
        sparse = {name: tensor.to_dense() for name, tensor in tensors.items() if tensor.layout != torch.strided}
        state.update({**tensors, **sparse})
        module.load_state_dict(state)
    except (RuntimeError, TypeError, NotImplementedError) as error:  # quantized tensors
        reason = str(error).strip().splitlines()[-1].strip()
        raise ModelError(f"the weights do not fit {spec}: {reason[:200]}") from error
    _report(spec, found, notes)
    if extra := [name.removesuffix("_extra_state") for name, value in state.items() if not isinstance(value, Tensor)]:
        log.warning(
            "%s keeps more than tensors in its state dict (get_extra_state of %s), which is not read from the file. If "
            "its logits depend on it, set it in your code, or keep it in a buffer.",
            spec,
            listed([name.rstrip(".") or "the network itself" for name in extra], 4),
        )
    if replaced and notes is not None:
        notes.append(f"other than {spec}, by their sizes: {listed(replaced)}")
    return module, arguments


def _other_sizes(found: state_dicts.Match, arguments: Mapping[str, Any]) -> Iterator[dict[str, int]]:
    """Yield arguments that may give the architecture the widths of the file's head and first layer.

    The file may also lack the heads that some architectures have for the training alone.
    """
    width, channels = found.width(), found.channels()
    without = {"aux_logits": False} if found.missing else {}
    if not all(name.lower().startswith("aux") for name in found.missing) or found.unexpected:
        return
    heads: list[dict[str, int]] = [{}] if width is None else [{key: width} for key in HEAD_WIDTH]
    stems: list[dict[str, int]] = [{}] if channels is None else [*({key: channels} for key in STEM_WIDTH), {}]
    for sizes, keys in ((width, HEAD_WIDTH), (channels, STEM_WIDTH)):
        if sizes is not None and arguments.keys() & set(keys):  # stated, so not to be overruled
            return
    yield from (head | stem | without for head, stem in itertools.product(heads, stems) if head or stem or without)


def _report(spec: str, found: state_dicts.Match, notes: list[str] | None) -> None:
    """Note what was assumed about the weights, and log what the user should check."""
    parts = {
        "under": [found.prefix.rstrip(".")] if found.prefix else [],
        "beside": found.beside,
        "left out": found.ignored,
        "computed, as the file lacks": found.filled,
        "renamed": [f"{old} to {new}" for old, new in found.renamed.items()],
    }
    if notes is not None:
        notes += [f"{what} {listed(names, 4)}" for what, names in parts.items() if names]
    if found.others:
        others = " or ".join(setting("weights_key", key.rstrip(".")) for key in found.others if key)
        another = f" For another: {others}." if others else ""
        log.warning("several networks in the file fit; the averaged one is used: %s.%s", found.prefix[:-1], another)
    if found.head is not None:
        log.warning(
            "the file's layer %s is used as %s of %s. That is right if only dropout stands beside it; if an activation "
            "does, %s",
            *found.head,
            spec,
            _own_code(),
        )
    filled = [name for name in found.filled if not state_dicts.COMPUTED.search(name)]
    if filled:
        log.warning("the file lacks %s; %s computes them when it is built", listed(filled, 4), spec)
    if found.layers:
        log.warning("the file has layers beside %s that %s lacks: %s", found.prefix[:-1], spec, listed(found.layers, 4))


def _own_code() -> str:
    return f"write a function that builds the network, and pass {setting('arch', 'py:FILE.py:FUNCTION')}"


def _take_memory(module: nn.Module) -> bool:
    """Replace a module's meta tensors with uninitialized ones in place, if its state dict holds all of them.

    Returns:
        whether it does: loading weights cannot fill other tensors, such as non-persistent buffers.
    """
    state = {id(tensor): tensor for tensor in module.state_dict(keep_vars=True).values()}
    if any(t.is_meta and id(t) not in state for part in module.modules() for t in tensors_in(vars(part))):
        return False
    try:
        for tensor in state.values():
            if tensor.is_meta:
                empty = torch.empty(tensor.shape, dtype=tensor.dtype)  # empty_like would import sympy
                if isinstance(tensor, nn.Parameter):
                    empty = nn.Parameter(empty, tensor.requires_grad)
                torch.utils.swap_tensors(tensor, empty)  # in place, so that tied weights stay tied
    except RuntimeError:  # the network keeps weak references to its weights
        return False
    return True


def check_shape(spec: str, skeleton: nn.Module, shape: tuple[int, ...]) -> None:
    """Check that a network without memory accepts a large image, in some layout, and no layer's output is huge.

    Raises:
        ModelError: it does not, or an output is huge.
    """
    if math.prod(shape) < LARGE_INPUT or not all(tensor.is_meta for tensor in skeleton.state_dict().values()):
        return
    sizes = [0]

    def note(name: str, output: Any) -> None:
        sizes.append(output.numel() if isinstance(output, Tensor) else 0)

    faults = []
    training = skeleton.training
    with watch(dict(skeleton.named_modules()), note), torch.no_grad():
        for layout in (shape, (math.prod(shape),), (*shape[1:], shape[0])):  # nchw, flat, nhwc
            try:
                skeleton.eval()(torch.empty(1, *layout, device="meta"))
                break
            except Exception as error:  # networks raise anything on the wrong input
                faults.append(first_line(error))
    skeleton.train(training)
    if len(faults) < 3 and max(sizes) > MAX_NUMBERS:
        raise ModelError(f"for one image of {shape} a layer outputs {max(sizes):,} numbers, which is far too many.")
    if len(faults) == 3 and "meta" not in faults[0]:  # else it computes with values, which meta tensors lack
        raise ModelError(
            f"{spec} fails on an input of shape {shape}: {faults[0][:300].rstrip('.')}. Is "
            f"{setting('input_shape', None)} right?"
        )


def _short(arguments: Mapping[str, Any], limit: int = 300) -> str:
    try:
        text = str(dict(arguments))
    except ValueError:  # a number of thousands of digits
        return "{...}"
    return text if len(text) <= limit else f"{text[:limit]}...}}"


def _dtype(tensors: Mapping[str, Tensor]) -> torch.dtype | None:
    """Return the precision that all floating-point weights share, if it is not the usual one."""
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    kind = kinds.pop() if len(kinds) == 1 else None
    return kind if kind in (torch.float16, torch.bfloat16, torch.float64) else None


def _misfit(
    spec: str, arguments: Mapping[str, Any], module: nn.Module, found: state_dicts.Match, *, registered: bool
) -> Callable[[], str]:
    """Return a function that says how the weights differ: it may take a while to look for an architecture that fits."""

    def refusal() -> str:
        expected = {name: tensor for name, tensor in state_dicts.tensors_of(module) if name not in found.filled}
        theirs = found.tensors | {name: found.given[name] for name in found.unexpected}
        built = f" with {_short(arguments)}" if arguments else ""
        fitting = nearest_fit(spec, found.given) if registered else None
        quantized = f"whole numbers instead of weights: {listed(found.counts, 4)}" if found.counts else ""
        difference = "; ".join(words for words in (quantized, mismatch(expected, theirs)) if words)
        hint = f" {fitting} would fit: {setting('arch', fitting)}." if fitting else _advice(spec, found)
        return f"the weights do not fit {spec}{built}: {difference}.{hint}"

    return refusal


def _advice(spec: str, found: state_dicts.Match) -> str:
    """Return what to do about a head, a first layer or further layers that an architecture does not have."""
    own = _own_code()
    first = {name.partition(".")[0] for name in found.missing}
    layers = sorted({name.rpartition(".")[0] for name in found.unexpected if name.partition(".")[0] in first})
    if len(first) == 1 and layers:
        return f" The file has {listed(layers, 4)} in the place of {first.pop()}: {own}."
    if not found.missing and found.kernels():
        return (
            f" Weights do not tell the stride of {listed(found.kernels(), 4)}, whose kernels have another size: {own}."
        )
    if not found.missing and not found.unexpected and found.channels() is not None:
        return f" The file's first layer takes {found.channels()} channels, and {spec} has no argument for that: {own}."
    if not found.missing and not found.unexpected and found.width() is not None:
        return (
            f" The file has {found.width()} classes: pass that number to {spec} if it has an argument for it, or {own}."
        )
    if found.counts:
        return " It is quantized: save the weights as they were before, or after they were turned back into floats."
    if not found.missing and not found.shapes:
        return f" If they do not belong to the classifier, save the file without them; otherwise {own}."
    return ""


def nearest_fit(spec: str, tensors: Mapping[str, Tensor], tries: int = 12) -> str | None:
    """Return an architecture of the same family, similar in name first, that the tensors fit except for the head."""
    family, _, name = spec.partition(":")
    names = installed().registry.get("architectures", family).names()
    stem = name[:3]
    near = difflib.get_close_matches(name, [other for other in names if other != name], n=tries, cutoff=0.3)
    near = sorted(near, key=lambda other: not other.startswith(stem))
    for other in near:
        try:
            found = state_dicts.match(build_architecture(f"{family}:{other}", {}, meta=True), tensors)
        except ModelError:
            continue
        if found.fits or (not found.kernels() and next(_other_sizes(found, {}), None) is not None):
            return f"{family}:{other}"
    return None


def mismatch(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], limit: int = 4) -> str:
    """Return a short account of how two state dicts differ in names and shapes; empty if they do not."""
    shapes = [
        f"{name} ({list(tensors[name].shape)}, expected {list(expected[name].shape)})"
        for name in expected
        if name in tensors and tensors[name].shape != expected[name].shape
    ]
    groups = {
        "missing": [name for name in expected if name not in tensors],
        "unexpected": [name for name in tensors if name not in expected],
        "of another shape": shapes,
    }
    return "; ".join(f"{what}: {listed(names, limit)}" for what, names in groups.items() if names)
