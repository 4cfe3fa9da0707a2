"""Loaders of folders: a config.json that says what the weights beside it are."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic
from torch import Tensor, nn

from interpkit import (
    Loader,
    ModelError,
    Target,
    TargetOptions,
    build_architecture,
    make_target,
    read_target_file,
    setting,
)
from interpkit_targets import checkpoints, examples, formats
from interpkit_targets.loaders import INDEX, WEIGHTS, assemble, weights_in

log = logging.getLogger("interpkit")
MAX_CONFIG_BYTES = 16_000_000
LARGEST_FACTOR = 10**9
CONFIG = "its config.json"
FLIPPED = ("mobilevit", "mobilevitv2")
"""The model types whose processor, unless told otherwise, turns RGB into BGR and does not normalize."""
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
"""The names of the weights of a PEFT adapter."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a sensible size.

    Raises:
        ModelError: it is not one.
    """
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ModelError(f"{path} is larger than {MAX_CONFIG_BYTES:,} bytes: no config is.")
        value = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object.")
    return value


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read the weights of a folder, from one file or from those that an index names.

    Raises:
        ModelError: there are none, or they are torn, or those of an adapter alone.
    """
    if any((folder / name).is_file() for name in ADAPTERS):
        raise ModelError(checkpoints.adapter_words(folder))
    path = weights_in(folder)
    if path is None:
        raise ModelError(f"{folder} has no {' or '.join(WEIGHTS)}.")
    return read_parts(path) if path.name.endswith(INDEX) else read_file(path)


def read_file(path: Path) -> dict[str, Tensor]:
    """Read one file of weights.

    Raises:
        ModelError: it is torn, or holds more than weights.
    """
    if formats.kind_of(path) == "safetensors":
        return read_target_file(path)[0]
    return checkpoints.strip(checkpoints.read_checkpoint(path))


def read_parts(index: Path) -> dict[str, Tensor]:
    """Read weights that are split into several files, which lie beside their index.

    Raises:
        ModelError: the index names a file elsewhere, or a tensor that is not where it says.
    """
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise ModelError(f"{index} does not name the files that the weights are split into: it has no weight_map.")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        path = index.parent / name
        if Path(name).name != name or not os.path.isfile(path):  # Path.is_file raises if it is too long
            raise ModelError(
                f"{index}, the index of split weights, names {name!r:.80}, which is not in the same folder."
            )
        tensors |= read_file(path)
    absent = [name for name in places if name not in tensors]
    if absent:
        raise ModelError(f"{index} names tensors that its files do not hold: {', '.join(absent[:4])}.")
    return tensors


def as_options(folder: Path, **facts: Any) -> TargetOptions:
    """Check what a config says.

    Raises:
        ModelError: it is of the wrong form.
    """
    try:
        return TargetOptions(**{key: value for key, value in facts.items() if value is not None})
    except pydantic.ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise ModelError(f"{folder / 'config.json'}: {where} = {fault['input']!r}: {fault['msg']}.") from error


class FolderLoader(Loader):
    """Base: a folder with a config.json, or one of the files in it."""

    def accepts(self, path: Path) -> bool:
        """Say whether the folder's config.json is of this kind."""
        config = path / "config.json"
        if not config.is_file():
            return False
        try:
            return self.knows(read_json(config))
        except ModelError:
            return False

    def knows(self, config: Mapping[str, Any]) -> bool:
        """Say whether a config is of this kind."""
        raise NotImplementedError


class TimmFolderLoader(FolderLoader):
    """A folder as timm saves it: config.json with ``architecture``, and the weights; current and legacy layout.

    Example:
        >>> import timm
        >>> from interpkit import load_target
        >>> net = timm.create_model("test_resnet", num_classes=3)
        >>> timm.models.save_for_hf(net, "my-resnet", safe_serialization=True)
        >>> target = load_target("my-resnet")
        >>> target.num_classes, target.description.arch
        (3, 'timm:test_resnet')
    """

    name = "timm"
    help = "a timm folder: config.json and model.safetensors"
    example = staticmethod(examples.timm_folder)

    def knows(self, config: Mapping[str, Any]) -> bool:
        """Say whether it names a timm architecture."""
        return isinstance(config.get("architecture"), str)

    def load(self, path: Path, options: TargetOptions) -> Target:
        """Build the architecture as the config says, and fill in the weights; see `Loader.load`."""
        config = read_json(path / "config.json")
        pretrained = config.get("pretrained_cfg")
        # Legacy files are flat; in current ones the root's keys win.
        both = {**(pretrained if isinstance(pretrained, dict) else {}), **config}
        arguments = config.get("model_args") or {}
        if not isinstance(arguments, dict):
            raise ModelError(f"{path / 'config.json'}: model_args is not an object, but {str(arguments)[:60]}.")
        arguments = dict(arguments)
        if isinstance(both.get("num_classes"), int):
            arguments.setdefault("num_classes", both["num_classes"])
        if isinstance(config.get("global_pool"), str):
            arguments.setdefault("global_pool", config["global_pool"])
        names = both.get("label_names", both.get("labels"))  # as older versions of timm call it
        written = as_options(
            path,
            arch=f"timm:{config['architecture'].partition('.')[0]}",
            arch_args=arguments,
            input_shape=both.get("input_size"),
            mean=both.get("mean"),
            std=both.get("std"),
            crop_pct=both.get("crop_pct"),
            class_names=names if isinstance(names, list) and len(names) == both.get("num_classes") else None,
        )
        return assemble(path, read_weights(path), written, options, CONFIG)


class TransformersFolderLoader(FolderLoader):
    """An image classifier as transformers saves it: config.json, preprocessor_config.json and the weights.

    Example:
        >>> from transformers import ViTConfig, ViTForImageClassification
        >>> from interpkit import load_target
        >>> sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        >>> config = ViTConfig(**sizes, image_size=16, patch_size=8, id2label={0: "cat", 1: "dog"})
        >>> ViTForImageClassification(config).save_pretrained("my-vit")
        >>> load_target("my-vit").class_names
        ['cat', 'dog']
    """

    name = "transformers"
    help = "a transformers image-classification folder"
    example = staticmethod(examples.transformers_folder)

    def knows(self, config: Mapping[str, Any]) -> bool:
        """Say whether it names a transformers model type."""
        return isinstance(config.get("model_type"), str)

    def load(self, path: Path, options: TargetOptions) -> Target:
        """Build the model from its config, and fill in the weights; see `Loader.load`."""
        config = read_json(path / "config.json")
        named = config.get("architectures") or []
        if not isinstance(named, list):
            raise ModelError(f"{path / 'config.json'}: architectures is not a list, but {str(named)[:60]}.")
        classes = [name for name in named if isinstance(name, str)]
        if classes and not any("ForImageClassification" in name for name in classes):
            raise ModelError(f"{path} holds {', '.join(classes)}, which is not an image classifier.")
        if "auto_map" in config:
            raise ModelError(
                f"{path}: its config.json has an auto_map, which names code to run; interpkit runs no code from a file."
            )
        skipped = ("model_type", "transformers_version", "torch_dtype", "dtype", "_name_or_path")
        arguments = {key: value for key, value in config.items() if key not in skipped}
        labels = config.get("id2label")
        names = [str(labels[key]) for key in sorted(labels, key=int)] if labels and _is_labels(labels) else None
        written = as_options(
            path,
            arch=f"transformers:{config['model_type']}",
            arch_args=arguments,
            class_names=names,
            output=_output(path, config.get("problem_type")),
            **self._preprocessing(path, config, options.input_shape),
        )
        facts, sources = written.overlaid(options, CONFIG)
        if facts.input_shape is None:
            raise ModelError(f"{path} does not say its image size. Add {setting('input_shape', 'C,H,W')}.")
        assert facts.arch is not None
        tensors = checkpoints.chosen(read_weights(path), facts.weights_key, path)
        module = fill(path, facts.arch, facts.arch_args, tensors)
        recorded = {"arch": facts.arch, "arch_args": facts.arch_args, "weights_key": facts.weights_key}
        return make_target(module, path.name, facts, sources, **recorded)

    def _preprocessing(
        self, path: Path, config: Mapping[str, Any], given: Sequence[int] | None = None
    ) -> dict[str, Any]:
        file = path / "preprocessor_config.json"
        processor = read_json(file) if file.is_file() else {}
        channels = config.get("num_channels", 3)
        size, prepared = _size(config.get("image_size")), None
        if processor.get("do_resize", True):
            prepared = _size(processor.get("crop_size") if processor.get("do_center_crop") else None)
            prepared = prepared or _size(processor.get("size"))
        if given is None and size and prepared and size != prepared:
            log.warning(
                "%s: its config.json is for images of %s, its preprocessor_config.json makes images of %s. The former "
                "are used; for the latter, add %s.",
                *(path.name, size, prepared, setting("input_shape", [channels, *prepared])),
            )
        size = size or prepared
        facts: dict[str, Any] = {"input_shape": None if size is None else [channels, *size]}
        if processor:
            facts["crop_pct"] = _crop_pct(processor)
            factor = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1.0
            if not isinstance(factor, int | float) or not abs(factor) < LARGEST_FACTOR:
                raise ModelError(f"{file}: rescale_factor is not a number, but {str(factor)[:60]}.")
            kind = config.get("model_type")
            twice = kind == "efficientnet" and processor.get("include_top", True)
            low = -1.0 if kind == "efficientnet" and factor != 1 and processor.get("rescale_offset") else 0.0
            # 255 / 255 is 1 but for rounding, and 0..1 is what people expect to read.
            facts["input_range"] = [low, round(low + 255.0 * factor, 9)]
            mean, std = processor.get("image_mean"), processor.get("image_std")
            normalizes = processor.get("do_normalize", kind not in FLIPPED)
            if normalizes or twice:
                facts |= {"mean": mean if normalizes else 0.0, "std": std}
            if normalizes and twice and std is not None:  # it divides by std again
                facts["std"] = [s * s for s in (std if isinstance(std, list) else [std])]
            if kind in FLIPPED and processor.get("do_flip_channel_order", True):
                facts["channel_order"] = "bgr"
        return facts


def fill(path: Path, arch: str, arguments: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """Build a transformers model and let transformers rename the weights of older versions into it.

    Raises:
        ModelError: the config asks for more than the weights hold, or they do not fit.
    """
    skeleton = build_architecture(arch, arguments, meta=True)
    asked = sum(tensor.numel() for tensor in skeleton.state_dict().values())
    held = sum(tensor.numel() for tensor in tensors.values())
    if asked > 1.1 * held:
        raise ModelError(f"{path}: its config.json asks for {asked:,} weights, and the file holds {held:,}.")
    try:
        module, told = type(skeleton).from_pretrained(  # type: ignore[attr-defined]
            None, config=skeleton.config, state_dict=dict(tensors), output_loading_info=True
        )
    except Exception as error:  # transformers has many kinds
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(f"{path}: the weights do not fit its config.json: {reason[:300]}") from error
    unused = told["unexpected_keys"]
    faults = {"missing": told["missing_keys"], "of another shape": told["mismatched_keys"]}
    if len(unused) > 0.1 * len(tensors):  # a few, such as a pooler's, are usual
        faults["unexpected"] = unused
    difference = "; ".join(f"{what}: {', '.join(map(str, list(keys)[:4]))}" for what, keys in faults.items() if keys)
    if difference:
        raise ModelError(f"{path}: the weights do not fit its config.json: {difference}.")
    loaded: nn.Module = module
    return loaded


def _output(path: Path, problem: Any) -> str | None:
    """Return what a config's ``problem_type`` says about the output.

    Raises:
        ModelError: it is a regression.
    """
    if problem == "regression":
        raise ModelError(
            f"{path} is a regression (problem_type in its config.json), so it has no classes to invert. To invert "
            f"ranges of its value, wrap it in a module that returns one logit per range, the largest for the nearest: "
            f"-(value - centers) ** 2."
        )
    return "sigmoid_logits" if problem == "multi_label_classification" else None


def _is_labels(labels: Any) -> bool:
    return (
        isinstance(labels, dict) and bool(labels) and all(str(key).isdecimal() and len(str(key)) < 10 for key in labels)
    )


def _crop_pct(processor: Mapping[str, Any]) -> float | None:
    """Return the share of a resized photo's shorter side that a processor keeps; None if it does not say."""
    if not processor.get("do_center_crop"):
        stated: float = processor.get("crop_pct", 1.0)
        return stated
    resized, cropped = (_size(processor.get(key)) for key in ("size", "crop_size"))
    return min(cropped) / min(resized) if resized and cropped and 0 < min(cropped) <= min(resized) else None


def _size(value: Any) -> list[int] | None:
    """Return [height, width] of the ways in which a config says a size."""
    if isinstance(value, int):
        return [value, value]
    if isinstance(value, list) and len(value) == 2:
        return value
    if isinstance(value, dict):
        edge = value.get("shortest_edge")
        sides = [value.get("height", edge), value.get("width", edge)]
        return [side for side in sides if isinstance(side, int)] if None not in sides else None
    return None


class HubMixinFolderLoader(FolderLoader):
    """A folder of `PyTorchModelHubMixin`: the class's arguments and the weights; the user names the class."""

    name = "hub-mixin"
    help = "a PyTorchModelHubMixin folder with --arch py:module:Class and --input-shape"
    example = staticmethod(examples.hub_mixin_folder)

    def accepts(self, path: Path) -> bool:
        """Say whether it is of neither of the other kinds; one that cannot be read is refused by `load`, with why."""
        if not (path / "config.json").is_file():
            return any((path / name).is_file() for name in ADAPTERS)
        try:
            return self.knows(read_json(path / "config.json"))
        except ModelError:
            return True

    def knows(self, config: Mapping[str, Any]) -> bool:
        """Say whether it is of neither of the other kinds."""
        return "architecture" not in config and "model_type" not in config

    def load(self, path: Path, options: TargetOptions) -> Target:
        """Build the user's class with the config's arguments, and fill in the weights; see `Loader.load`."""
        if any((path / name).is_file() for name in ADAPTERS):
            raise ModelError(checkpoints.adapter_words(path))
        config = read_json(path / "config.json")
        if options.arch is None:
            raise ModelError(
                f"{path}: its config.json names no architecture. Add {setting('arch', 'py:package.module:Class')} (or "
                f"py:path/to/file.py:Class) and {setting('input_shape', 'C,H,W')}."
            )
        return assemble(path, read_weights(path), TargetOptions(), options, CONFIG, config)
