"""Classifier file -> Target, through the registered loaders and architectures."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn

from interpkit.config.recipe import LoadOptions, TargetOptions, target_facts, validated
from interpkit.errors import DISTRIBUTION, ModelError, PluginError, UsageError, did_you_mean
from interpkit.interfaces import contracts
from interpkit.interfaces.loaders import Loader
from interpkit.interfaces.targets import Target
from interpkit.io.atomic import sha256, to_path
from interpkit.plugins.discovery import installed
from interpkit.plugins.registry import Entry
from interpkit.runtime.autograd import with_autograd
from interpkit.runtime.devices import is_out_of_memory
from interpkit.runtime.random import global_seed
from interpkit.targets.wrapping import in_order, wrap

log = logging.getLogger("interpkit")


def load_target(path: str | Path, **options: Unpack[LoadOptions]) -> Target:
    """Load a classifier from a file or folder.

    Args:
        path: in a format that one of the loaders accepts (``interpkit plugins list`` names them).
        options: facts that the file lacks or has wrong: ``arch``, ``arch_args``, ``weights_key``,
            ``input_shape``, ``num_classes``, ``mean``, ``std``, ``input_range``, ``class_names``, ``crop_pct``,
            ``layout``, ``channel_order``, ``output``, ``feature_layer``; and ``trust=True`` for a file that may run
            code (.pt2, TorchScript).

    Raises:
        ModelError: it is missing, cannot be read, or was refused.
        UsageError: an option is unknown or out of range.

    Example:
        >>> from interpkit import build_architecture, load_target, save_target
        >>> sizes = {"input_shape": [1, 12, 12], "num_classes": 3, "widths": [4], "hidden": 8}
        >>> net = build_architecture("interpkit:cnn", sizes)  # train it
        >>> path = save_target(
        ...     net, "net.safetensors", architecture="interpkit:cnn", arch_args=sizes, input_shape=(1, 12, 12)
        ... )
        >>> target = load_target(path, class_names=["cat", "dog", "owl"])
        >>> target.name, target.input_shape, target.class_names
        ('net', (1, 12, 12), ['cat', 'dog', 'owl'])
    """
    values = {**options, "class_names": in_order(options.get("class_names"))}
    return load(Path(path), validated(TargetOptions, values, "about the classifier"))


def loader_of(path: Path) -> Entry | None:
    """Return the first loader that accepts the file or folder; a loader that fails is skipped.

    Those of plugin files are asked first, then those of other packages, and the bundled ones last.
    """
    loaders = installed().registry.entries("loader")
    for entry in sorted(loaders, key=lambda entry: (entry.package == DISTRIBUTION, entry.package != "")):
        try:
            with contracts.blamed(entry.item):
                if entry.item.accepts(path):
                    return entry
        except PluginError as error:
            log.warning("%s It is skipped.", error)
    return None


def digest(path: Path) -> str:
    """Return the sha256 of a classifier's file or folder, together with any other files that its loader reads."""
    entry = loader_of(path)
    files: list[Path] = [path]
    if entry is not None:
        with contracts.blamed(entry.item):
            files = list(entry.item.files(path))
    if files == [path]:
        return sha256(path)
    return hashlib.sha256("".join(f"{file.name}\0{sha256(file)}\n" for file in files).encode()).hexdigest()


@with_autograd
def load(path: Path, options: TargetOptions) -> Target:
    """Load a classifier with validated options; see `load_target`."""
    cpu = torch.device("cpu")
    if not to_path(path).exists():
        near = path.parent.glob("*") if path.parent.is_dir() else []
        raise ModelError(f"there is no file {path}.{did_you_mean(path.name, (p.name for p in near))}")
    entry = loader_of(path)
    if entry is None:
        known = "; ".join(f"{entry.name} ({entry.item.help})" for entry in installed().registry.entries("loader"))
        raise ModelError(
            f"{path} is in no format that interpkit reads. It reads: {known or 'none'}.{installed().left_out_words()}"
        )
    loader: Loader = entry.item
    with global_seed(0, cpu):  # building draws weights, which are overwritten; the caller's generator stays as it is
        try:
            target = contracts.loaded(loader, path, options)
        except ModelError as error:
            if error.__cause__ is not None and is_out_of_memory(error.__cause__):
                raise error.__cause__ from None
            if path.name in str(error):
                raise
            raise ModelError(f"{path}: {error}") from error
    for module in target.modules():
        module.training = False  # not target.eval(), which exported programs do not support
    target.origin = path.resolve()
    target.description = target.description.model_copy(update={"path": str(target.origin)})
    return target


def make_target(
    module: nn.Module, name: str, facts: TargetOptions, sources: Mapping[str, str], **recorded: Any
) -> Target:
    """Wrap a loaded module with the known facts of the classifier; the last step of every loader.

    Args:
        module: the classifier.
        name: for headings and folders.
        facts: all that are known; ``input_shape`` is required.
        sources: where each fact came from; facts that are missing here were found by running the module.
        recorded: further entries of the target's description, such as ``arch``.

    Raises:
        ModelError: the module does not classify such inputs.

    Example:
        >>> from torch import nn
        >>> from interpkit import TargetOptions, make_target
        >>> facts = TargetOptions(input_shape=(4,), class_names=["setosa", "versicolor", "virginica"])
        >>> target = make_target(nn.Linear(4, 3), "iris", facts, {"class_names": "the file's header"})
        >>> target.name, target.sources["class_names"]
        ('iris', "the file's header")
    """
    assert facts.input_shape is not None
    known = {fact.name: getattr(facts, fact.name) for fact in target_facts() if not fact.of_file}
    try:
        target = wrap(module, name=name, **known)
    except UsageError as error:
        if "given" in sources.values():
            raise
        raise ModelError(str(error)) from error  # the fact is from a file, not from the user
    target.sources |= {key: source for key, source in sources.items() if key in TargetOptions.model_fields}
    target.description = target.description.model_copy(update=recorded)
    return target
