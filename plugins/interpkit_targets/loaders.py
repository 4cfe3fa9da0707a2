"""Loaders of classifiers that are weights and the name of an architecture, in one file."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interpkit import (
    ONNX_GRAPH,
    Loader,
    ModelError,
    Target,
    TargetOptions,
    fill_architecture,
    load_target,
    make_target,
    read_target_file,
    setting,
)
from interpkit_targets import checkpoints, examples, formats, graphs, user_code

log = logging.getLogger("interpkit")
METADATA = "the file's metadata"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""The names of a folder's weights; split ones have an index beside them, of that name and `INDEX`."""
INDEX = ".index.json"
TRANSFORM_INPUT = ("torchvision:googlenet", "torchvision:inception_v3")
"""The architectures with an option, off by default, that torchvision turns on for its own weights."""


class SafetensorsLoader(Loader):
    """A ``.safetensors`` file whose metadata, or whose user, names an architecture.

    Example:
        >>> from torchvision.models import resnet18
        >>> from interpkit import load_target, save_target
        >>> net, sizes = resnet18(num_classes=3), {"num_classes": 3}  # train it
        >>> facts = {"architecture": "torchvision:resnet18", "arch_args": sizes, "input_shape": (3, 32, 32)}
        >>> path = save_target(net, "net.safetensors", **facts)
        >>> load_target(path).num_classes  # the file says everything else
        3
    """

    name = "safetensors"
    help = ".safetensors with interpkit metadata, or with --arch and --input-shape"
    example = staticmethod(examples.safetensors_file)

    def accepts(self, path: Path) -> bool:
        """Say whether it is such a file, whatever its name."""
        return formats.kind_of(path) == "safetensors"

    def load(self, path: Path, options: TargetOptions) -> Target:
        """Read the file, build the architecture, fill in the weights; see `Loader.load`."""
        tensors, written = read_target_file(path)
        if written.arch is None and belongs_to_folder(path, options):
            return load_target(path.parent, **options.said(), trust=options.trust)
        if written.arch == ONNX_GRAPH:
            return graphs.load_packed(path, tensors, written, options)
        return assemble(path, tensors, written, options)


class CheckpointLoader(Loader):
    """A state dict saved by `torch.save`, and the architecture that the user names.

    Example:
        >>> import torch
        >>> from torchvision.models import resnet18
        >>> from interpkit import load_target
        >>> torch.save(resnet18(num_classes=3).state_dict(), "net.pt")
        >>> target = load_target("net.pt", arch="torchvision:resnet18", input_shape=(3, 32, 32))
        >>> target.num_classes, target.feature_layer
        (3, 'fc:in')
    """

    name = "checkpoint"
    help = "state dict in a file of torch.save (.pt, .pth, .ckpt, .bin, .pth.tar, ...) with --arch and --input-shape"
    example = staticmethod(examples.checkpoint)

    def accepts(self, path: Path) -> bool:
        """Say whether it is such a file, whatever its name."""
        return formats.kind_of(path) == "checkpoint"

    def load(self, path: Path, options: TargetOptions) -> Target:
        """Read the tensors alone, build the architecture, fill them in; see `Loader.load`."""
        if belongs_to_folder(path, options):
            return load_target(path.parent, **options.said(), trust=options.trust)
        tensors = checkpoints.read_checkpoint(path)
        return assemble(path, tensors, TargetOptions(), options)


def weights_in(folder: Path) -> Path | None:
    """Return the file of a folder's weights, or the index of its parts, that is read first; None without any."""
    files = (folder / f"{name}{ending}" for name in WEIGHTS for ending in ("", INDEX))
    return next((file for file in files if file.is_file()), None)


def belongs_to_folder(path: Path, options: TargetOptions) -> bool:
    """Say whether a file is the weights of a folder whose config.json says the rest."""
    named = options.arch is not None and not options.arch.startswith(user_code.PREFIX)
    whole = re.sub(r"-\d{5}-of-\d{5}", "", path.name)  # where it is a part
    if named or whole not in WEIGHTS or not (path.parent / "config.json").is_file():
        return False
    first = weights_in(path.parent)
    if first is not None and first.name.removesuffix(INDEX) != whole:
        raise ModelError(
            f"{path} stands beside {first.name}, which would be read in its place. Move the one that you do not mean "
            f"to another folder."
        )
    return True


def assemble(
    path: Path,
    tensors: Mapping[str, Tensor],
    written: TargetOptions,
    options: TargetOptions,
    source: str = METADATA,
    known: Mapping[str, Any] | None = None,
) -> Target:
    """Make a target of weights, what the file says of them, and what the user says, who wins.

    Args:
        path: where the weights are from.
        tensors: the state dict.
        written: what the file says; its architecture can only be a registered one.
        options: what the user says; ``py:`` names code of the user's own.
        source: where ``written`` was read.
        known: further arguments for code of the user's own, from a config.

    Raises:
        ModelError: something is missing or does not fit; says what to type.
    """
    checkpoints.refuse_adapter(path, tensors)
    facts, sources = written.overlaid(options, source)
    missing = [
        setting(name, example)
        for name, example in (("arch", "FAMILY:NAME"), ("input_shape", "C,H,W"))
        if getattr(facts, name) is None
    ]
    if missing:
        raise ModelError(
            f"{path} does not say {'which architecture it is' if facts.arch is None else 'its input shape'}. "
            f"Add {' and '.join(missing)} (and {', '.join(setting(name, None) for name in ('mean', 'std'))}, "
            f"{setting('input_range', None)} where the classifier was trained with some)."
        )
    assert facts.arch is not None
    if written.arch is None:  # else it is one network, which may have been packed from a checkpoint that needs the key
        tensors = checkpoints.chosen(tensors, facts.weights_key, path)
        stated = "transform_input" in facts.arch_args or options.path is not None  # runs had the warning
        if facts.arch in TRANSFORM_INPUT and not stated:
            log.warning(
                "%s: torchvision's own weights of %s, and what is fine-tuned from them, expect transform_input=True, "
                "which weights do not show. False is assumed. State %s, or false.",
                *(path.name, facts.arch, setting("arch_arg", "transform_input=true")),
            )
    elif options.weights_key is not None and options.path is None:
        log.warning("%s holds one network: %s has no effect.", path.name, setting("weights_key", options.weights_key))
    arguments, build = facts.arch_args, None
    if written.arch is not None and facts.arch != written.arch:
        arguments = options.arch_args  # the file's are for its own architecture
    if facts.arch.startswith(user_code.PREFIX) and options.arch == facts.arch:
        build = functools.partial(user_code.build, facts.arch, user_code.find_factory(facts.arch))
        if known:
            arguments = {**known, **arguments}
            check_size(path, build, arguments, tensors)
    notes: list[str] = []
    module, arguments = fill_architecture(
        facts.arch, arguments, tensors, build, input_shape=facts.input_shape, notes=notes
    )
    recorded = {"arch": facts.arch, "arch_args": arguments, "weights_key": facts.weights_key}
    target = make_target(module, name_of(path), facts, sources, **recorded)
    if notes:
        target.sources["weights"] = f"found: {'; '.join(notes)}"
    return target


def name_of(path: Path) -> str:
    """Return a file's name without its ending: of ``best.pth.tar``, ``best``."""
    return path.name.removesuffix(".tar").removesuffix(".pth") if path.suffix == ".tar" else path.stem


def check_size(
    path: Path,
    build: Callable[[Mapping[str, Any]], nn.Module],
    arguments: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> None:
    """See that a config asks the user's code for no more weights than the file holds, where that costs nothing.

    Raises:
        ModelError: it does.
    """
    try:
        with torch.device("meta"):
            skeleton = build(arguments)
    except ModelError:  # the code computes with its weights, or fails: told when it is built
        return
    states = (skeleton.state_dict(), tensors)
    asked, held = (sum(t.numel() for t in state.values() if isinstance(t, Tensor)) for state in states)
    if asked > 2 * held:
        raise ModelError(f"{path}: its config.json asks for {asked:,} weights, and the file holds {held:,}.")
