"""The recipe: the complete configuration of a run, including its seed, read from and written to TOML.

`compose` merges a recipe from layers, of which later ones take precedence: defaults, presets named in a file, the file
itself, presets named on the command line, then single settings. A component's own table is validated against its
``Options`` when the recipe is resolved (`interpkit.plugins.assembly`).
"""

from __future__ import annotations

import copy
import functools
import math
import operator
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, TypeVar, get_args, get_origin

import pydantic
import tomli_w
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from interpkit.errors import UsageError, did_you_mean, setting
from interpkit.io.strict_json import MAX_DEPTH, is_too_deep, read_text

M = TypeVar("M", bound=BaseModel)

Layer = Mapping[str, Any]
"""A fragment of a recipe, structured like its TOML."""
Output = Literal["logits", "log_probs", "neg_log_probs", "probs", "sigmoid", "sigmoid_logits"]
"""The kinds of output a classifier may have; see `interpkit.targets.scores.as_logits`."""

MAX_RECIPE_BYTES = 1_000_000
MAX_INPUT = 10_000_000
"""Most values in one image, about 1,800 x 1,800 pixels with three channels."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _WithOptions(_Model):
    model_config = ConfigDict(extra="allow", frozen=True)

    @property
    def options(self) -> dict[str, Any]:
        """The component's own settings: all except the declared fields."""
        return dict(self.model_extra or {})


class Component(_WithOptions):
    """A named component and its options: ``{name = "vecmat", temperature = 1.0}`` in TOML."""

    name: str


class Term(_WithOptions):
    """One term of the objective: its weight, and the options of the loss with the same name."""

    weight: float = Field(1.0, ge=0.0, allow_inf_nan=False)


class Optimizer(_Model):
    """Adam (Kingma & Ba 2015), with a learning rate that falls linearly to zero in the last ``decay`` of training."""

    lr: float = Field(2e-3, gt=0, le=10, description="learning rate")
    beta1: float = Field(0.5, ge=0, lt=1, description="decay of the mean of the gradients")
    beta2: float = Field(0.99, ge=0, lt=1, description="decay of the mean of their squares")
    decay: float = Field(0.5, ge=0, le=1, description="share of the training over which lr falls to zero")


class Sampling(_Model):
    """How the trained generator is sampled; batch norm is always in eval mode."""

    dropout: bool = Field(True, description="keep the generator's dropout on, as the paper does for variety")
    chunk: int = Field(100, ge=1, le=4096, description="images drawn at once; decides the dropout masks")


class WarmStart(_Model):
    """How the generator is fitted to the images of another run before the training."""

    run: str | None = Field(None, description="run folder of the images; no such fit if omitted")
    steps: int | None = Field(
        None,
        ge=1,
        le=100_000_000,
        description="length of the fit, which does not run the classifier; by default each image is used forty times, "
        "in at least 100 steps",
    )


def _listed(value: Any) -> Any:
    value = value.tolist() if hasattr(value, "tolist") else value  # numpy's and torch's
    return value if value is None or isinstance(value, Sequence) else [value]


class TargetOptions(_Model):
    """What the user states about a classifier; each field takes precedence over the metadata in the classifier's file.

    Each fact is declared only here: its flag, its metadata key and its keyword argument are derived from its name,
    type, description and ``json_schema_extra`` (see `Fact`).
    """

    path: str | None = Field(
        None,
        description="Where the classifier was loaded from (a record).",
        json_schema_extra={"flag": None, "key": None, "of_file": True},
    )
    arch: str | None = Field(
        None,
        description="Architecture as FAMILY:NAME, e.g. torchvision:resnet18.",
        json_schema_extra={"key": "architecture", "of_file": True},
    )
    arch_args: dict[str, Any] = Field(
        {},
        description="Arguments of the architecture (one per flag; repeatable).",
        json_schema_extra={"flag": "--arch-arg", "metavar": "KEY=VALUE", "of_file": True},
    )
    weights_key: str | None = Field(
        None,
        description="Key of the weights in a checkpoint that holds several networks, e.g. teacher.",
        json_schema_extra={"metavar": "KEY", "key": None, "of_file": True},
    )
    input_shape: tuple[int, ...] | None = Field(
        None,
        description="Shape of one image, C,H,W; or D for vectors, C,L for signals, C,D,H,W for volumes.",
        json_schema_extra={"metavar": "C,H,W"},
    )
    num_classes: int | None = Field(None, ge=2, description="Number of classes (checked against the model's output).")
    mean: Annotated[list[float] | None, BeforeValidator(_listed)] = Field(
        None, description="Mean per channel, in units of the input range (default: 0)."
    )
    std: Annotated[list[float] | None, BeforeValidator(_listed)] = Field(
        None, description="Standard deviation per channel, in units of the input range (default: 1)."
    )
    input_range: tuple[float, float] | list[tuple[float, float]] | None = Field(
        None,
        description="Values of black and white before mean and std (default: 0,1); for vectors optionally a pair per "
        "feature, LO,HI;LO,HI;...",
        json_schema_extra={"metavar": "LO,HI"},
    )
    class_names: list[str] | None = Field(
        None,
        description="Class names in the order of the logits (as a flag: a file with one name per line).",
        json_schema_extra={"metavar": "FILE"},
    )
    family: str | None = Field(
        None,
        description="Family of architectures, e.g. resnet, which reports compare with an evaluator's (default: by the "
        "architecture's name; a graph has none).",
        json_schema_extra={"metavar": "NAME"},
    )
    crop_pct: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of a photo's shorter side that the classifier sees once it is resized, e.g. 0.875 for 224 "
        "of 256 pixels (default: 0.875 from 128 pixels on, else 1).",
        json_schema_extra={"metavar": "SHARE"},
    )
    layout: Literal["nchw", "nhwc", "flat"] | None = Field(
        None, description="Layout of images that the model expects (detected if omitted)."
    )
    channel_order: Literal["rgb", "bgr"] | None = Field(
        None, description="Order of three channels that the model expects (default: rgb)."
    )
    output: Output | None = Field(
        None,
        description="What the model outputs: logits, log_probs, neg_log_probs or probs; of labels that do not exclude "
        "each other, sigmoid (probabilities) or sigmoid_logits (detected if omitted, but for the last).",
    )
    output_name: str | None = Field(
        None,
        description="Name of the logits where the model returns several outputs, e.g. logits or heads.age (detected if "
        "omitted).",
        json_schema_extra={"metavar": "NAME"},
    )
    output_index: int | None = Field(
        None, ge=0, description="Position of the logits among several outputs, from 0 (detected if omitted)."
    )
    feature_layer: str | None = Field(
        None,
        description="Layer of the default features, NAME for its output or NAME:in for its input (default: the input "
        "of the last linear layer).",
        json_schema_extra={"metavar": "LAYER[:in]"},
    )
    units: tuple[str, ...] | None = Field(
        None,
        description="Take a layer's units for the classes, LAYER:CHANNEL, or LAYER:CHANNEL,CHANNEL for several "
        "(repeatable).",
        json_schema_extra={"flag": "--unit", "key": None, "metavar": "LAYER:CHANNEL"},
    )
    trust: bool = Field(
        False,
        description="Load a file that can run code (.pt2, TorchScript); recorded, but never taken from a recipe.",
        json_schema_extra={"key": None, "of_file": True},
    )

    @field_validator("input_shape")
    @classmethod
    def _sensible_shape(cls, shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if shape is not None and (not 1 <= len(shape) <= 4 or min(shape) < 1 or math.prod(shape) > MAX_INPUT):
            raise ValueError(
                f"input_shape is C,H,W (or D for vectors, C,L for signals, C,D,H,W for volumes), each at least 1 and "
                f"{MAX_INPUT:,} in all"
            )
        return shape

    @field_validator("mean")
    @classmethod
    def _finite(cls, mean: list[float] | None) -> list[float] | None:
        if mean is not None and not all(map(math.isfinite, mean)):
            raise ValueError("mean must be finite")
        return mean

    @field_validator("std")
    @classmethod
    def _positive(cls, std: list[float] | None) -> list[float] | None:
        if std is not None and not all(0 < value < math.inf for value in std):
            raise ValueError("std must be above 0 and finite")
        return std

    @model_validator(mode="after")
    def _fit_together(self) -> TargetOptions:
        channels = self.input_shape[0] if self.input_shape else None
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and channels is not None and len(values) not in (1, channels):
                counts = f"1 or {channels} values for {channels} channels" if channels > 1 else "1 value for 1 channel"
                raise ValueError(f"{name} takes {counts}, not {len(values)}")
        pairs = self.ranges
        if any(not -math.inf < lo < hi < math.inf for lo, hi in pairs):
            raise ValueError(f"input_range is LO,HI with LO < HI, not {self.input_range}")
        vectors = self.input_shape is not None and len(self.input_shape) == 1
        if channels is not None and len(pairs) not in ((1, channels) if vectors else (1,)):
            raise ValueError(
                f"input_range takes one pair LO,HI, or for vectors one for each of D features, not {len(pairs)}"
            )
        if (
            self.channel_order == "bgr"
            and self.input_shape is not None
            and (len(self.input_shape) != 3 or channels != 3)
        ):
            raise ValueError(f"the channel order bgr is for 3 channels; this classifier takes {self.input_shape}")
        return self

    @property
    def target_shape(self) -> tuple[int, ...] | None:
        """The shape of the target's inputs: signals and volumes are flattened to vectors everywhere outside it."""
        shape = self.input_shape
        return shape if shape is None or len(shape) in (1, 3) else (math.prod(shape),)

    @property
    def ranges(self) -> list[tuple[float, float]]:
        """The input range as a list of pairs, (0, 1) by default."""
        ranges = self.input_range
        return [(0.0, 1.0)] if ranges is None else ranges if isinstance(ranges, list) else [ranges]

    def said(self) -> dict[str, Any]:
        """Return the stated facts, without the records of path and trust."""
        return {k: v for k, v in self if v is not None and v != {} and k not in ("path", "trust")}

    def overlaid(self, options: TargetOptions, source: str) -> tuple[TargetOptions, dict[str, str]]:
        """Override these facts, which come from a file, with those that the user states.

        Returns:
            the combined facts, and the source of each: ``source``, or ``given`` for the user.
        """
        sources = {**dict.fromkeys(self.said(), source), **dict.fromkeys(options.said(), "given")}
        return self.model_copy(update=options.said()), sources

    @property
    def runs_code(self) -> bool:
        """Whether loading requires code that only the user may name: a ``py:`` architecture, or ``trust``."""
        return self.trust or (self.arch or "").startswith("py:")


class ClassifierFacts(TypedDict, total=False):
    """The keyword arguments of `interpkit.wrap`, for type checkers: the facts of `TargetOptions` about a module."""

    mean: Sequence[float] | float | None
    std: Sequence[float] | float | None
    input_range: tuple[float, float] | Sequence[tuple[float, float]] | None
    num_classes: int | None
    class_names: Sequence[str] | Mapping[int, str] | None
    family: str | None
    crop_pct: float | None
    layout: Literal["nchw", "nhwc", "flat"] | None
    channel_order: Literal["rgb", "bgr"] | None
    output: Output | None
    output_name: str | None
    output_index: int | None
    feature_layer: str | None
    units: Sequence[str] | None


class LoadOptions(ClassifierFacts, total=False):
    """The keyword arguments of `interpkit.load_target`, for type checkers."""

    arch: str | None
    arch_args: dict[str, Any]
    weights_key: str | None
    input_shape: Sequence[int] | None
    trust: bool


@dataclass(frozen=True)
class Fact:
    """How a field of `TargetOptions` appears outside the recipe.

    ``type`` is the field's, without None. ``flag`` and ``key`` (in a file's metadata, after ``interpkit.``) are None if
    there is none; a ``metavar`` of None means the type's own. `interpkit.wrap` does not accept facts ``of_file``.
    """

    name: str
    type: Any
    help: str
    minimum: int | None
    flag: str | None
    key: str | None
    metavar: str | None = None
    of_file: bool = False

    @property
    def is_word(self) -> bool:
        """Whether metadata stores the value as plain text instead of JSON."""
        return self.type is str or get_origin(self.type) is Literal


def target_facts() -> list[Fact]:
    """Return the fields of `TargetOptions` as facts."""
    facts = []
    for name, field in TargetOptions.model_fields.items():
        kinds = [kind for kind in get_args(field.annotation) if kind is not type(None)]
        kind = functools.reduce(operator.or_, kinds) if type(None) in get_args(field.annotation) else field.annotation
        minimum = next((limit.ge for limit in field.metadata if hasattr(limit, "ge")), None)
        extra: dict[str, Any] = {"flag": f"--{name.replace('_', '-')}", "key": name}
        extra |= field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        facts.append(Fact(name, kind, field.description or "", minimum, **extra))
    return facts


class PluginFile(_Model):
    """Record of a single-file plugin that a run used; it is never loaded from here, the user has to pass it again."""

    path: str
    sha256: str

    @property
    def name(self) -> str:
        """The plugin's name, which is the file's."""
        return Path(self.path).stem


def _parse_list(value: Any) -> Any:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _distinct(labels: list[int] | None) -> list[int] | None:
    if labels is not None and (not labels or len(set(labels)) < len(labels)):
        raise ValueError("name each label once, and at least one")
    return labels


class Recipe(_Model):
    """Everything that determines a run, apart from the classifier's weights.

    Example:
        >>> from interpkit import Recipe
        >>> recipe = Recipe(steps=500, losses={"ce": {"weight": 2.0}})
        >>> recipe.steps, recipe.losses["ce"].weight, recipe.optimizer.lr
        (500, 2.0, 0.002)
    """

    seed: int = Field(0, ge=0, lt=2**63, description="random seed")
    steps: int = Field(300, ge=1, le=100_000_000, description="length of the training")
    batch_size: int = Field(128, ge=2, le=1_000_000, description="images per step; terms that compare images need two")
    micro_batch: int | None = Field(
        None, ge=2, description="images of a batch in memory at a time, computed twice; all if omitted"
    )
    generators: int = Field(1, ge=1, le=1000, description="generators that share each batch")
    labels: Annotated[list[int] | None, BeforeValidator(_parse_list), AfterValidator(_distinct)] = Field(
        None, description="the classes to invert; all if omitted"
    )
    conditions: Literal["all", "requested"] = Field(
        "all", description="the classes that conditions distinguish: all, or those to invert, as invert asks for"
    )
    classes_per_batch: int | None = Field(
        None, ge=1, description="classes in each batch, for terms that compare images of a class; any if omitted"
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps, ...")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 where the hardware has it")
    fall_back: bool = Field(
        False, description="continue in fp32 if bf16 makes a value non-finite; set by auto precision"
    )
    compile: Literal["auto", "on", "off"] = Field("auto", description="compile the generator; auto: long runs on CUDA")
    checkpoint_every: int | None = Field(None, ge=1, description="steps between checkpoints, in addition to every 60 s")
    inverter: Component = Component(name="generator")
    conditioner: Component | None = None
    generator: Component | None = None
    losses: dict[str, Term] = {}
    optimizer: Optimizer = Optimizer()
    sampling: Sampling = Sampling()
    warm_start: WarmStart = WarmStart()
    target: TargetOptions = TargetOptions()
    plugin_files: list[PluginFile] | None = Field(
        None, description="single-file plugins; a record, loaded only if the user passes them again"
    )

    def to_toml(self) -> str:
        """Return the recipe as TOML, without the fields that are None, because TOML has no null."""
        return tomli_w.dumps(_without_none(self.model_dump(mode="json")))

    def to_type_again(self) -> list[str]:
        """Return the settings that no file may make: code and trust, which whoever uses the recipe types again."""
        words = [setting("plugin", file.path) for file in self.plugin_files or []]
        if self.target.arch is not None and self.target.arch.startswith("py:"):
            words.append(setting("arch", self.target.arch))
        return [*words, setting("trust")] if self.target.trust else words


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value


@dataclass(eq=False)
class Preset:
    """A named recipe fragment, which users apply to a run by its name.

    Args:
        name: what the user types.
        layer: the fragment, structured like the recipe's TOML.
        help: one sentence.
        adds_variety: whether to suggest the preset when the images of a class have become identical.
        photographs_from: if specified, a run that names no preset applies this one to a classifier of images whose
            sides are at least this many pixels.
        audits: whether `interpkit audit` makes its samples with the preset, unless one for photographs applies.
        for_vectors: what changes for a classifier of vectors, signals or volumes; the user's settings override it.
        without_batch_norm: what changes for a classifier that has recorded no statistics of its training images in
            batch norms; the user's settings override it.

    Example:
        >>> from interpkit import Preset
        >>> preset = Preset("quick", {"steps": 50, "batch_size": 32}, "A short run, to try things out.")
    """

    name: str
    layer: Layer
    help: str
    _: KW_ONLY
    adds_variety: bool = False
    photographs_from: int | None = None
    audits: bool = False
    for_vectors: Layer | None = None
    without_batch_norm: Layer | None = None

    def layers(self, vectors: bool, batch_norm: bool) -> list[Layer]:
        """Return the fragments to apply, in order, to a classifier of vectors or of images, with batch norm or not."""
        changes = (self.for_vectors if vectors else None, None if batch_norm else self.without_batch_norm)
        return [self.layer, *(change for change in changes if change is not None)]


def merge(base: Layer, over: Layer) -> dict[str, Any]:
    """Merge one fragment into another: tables are merged key by key, other values are replaced.

    A component with another name replaces the whole table, because the old options do not apply to it. Options without
    a name are those of the component that the other fragment names.
    """
    merged: dict[str, Any] = copy.deepcopy(dict(base))
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            another = "name" in value and old.get("name", value["name"]) != value["name"]
            merged[key] = copy.deepcopy(dict(value)) if another else merge(old, value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def read_toml(path: Path) -> dict[str, Any]:
    """Read a recipe file; raise a `UsageError` if it is missing, too large, or not TOML."""
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise UsageError(f"{path} is larger than {MAX_RECIPE_BYTES:,} bytes, which is too large for a recipe.")
        layer = tomllib.loads(read_text(path))
    except OSError as error:
        raise UsageError(f"cannot read the recipe {path}: {error.strerror}.") from error
    except UsageError:
        raise
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, or a number with thousands of digits
        raise UsageError(f"{path} is not TOML: {error}.") from error
    if is_too_deep(layer):
        raise UsageError(f"{path} nests tables more than {MAX_DEPTH} levels deep, which no recipe needs.")
    return layer


def compose(layers: Iterable[Layer], settings: Sequence[tuple[str, Any]] = ()) -> Recipe:
    """Merge the layers, of which later ones take precedence, apply ``COMPONENT.OPTION`` settings, and validate.

    COMPONENT is a slot, ``conditioner``, ``generator``, ``inverter``, ``optimizer``, ``sampling`` or ``warm_start``, or
    the name of a component. A loss that shares its name with a slot or another component is ``losses.NAME``.

    Raises:
        UsageError: a key is unknown, a value is out of range, or a setting names no component in use, or several.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = merge(merged, layer)
    for key, value in settings:
        example = setting("optimizer.lr", 0.001)
        set_option(_tables(merged, key), key, value, "COMPONENT", example, "this recipe has no component {!r}")
    return validated(Recipe, merged, "the recipe")


def _tables(recipe: dict[str, Any], key: str) -> dict[str, dict[str, Any]]:
    """Return the tables of a recipe's components by slot and by name, of which ``key`` may name one.

    A slot takes precedence over an equal name; a loss hidden by it, or by another component, is ``losses.NAME``.
    """
    recipe.setdefault("inverter", {"name": "generator"})
    slots = ("inverter", "conditioner", "generator")
    used = {slot: recipe[slot] for slot in slots if isinstance(recipe.get(slot), dict)}
    of_slots = used | {slot: recipe.setdefault(slot, {}) for slot in ("optimizer", "sampling", "warm_start")}
    places = [(table["name"], slot, table) for slot, table in used.items() if "name" in table]
    places += [(name, f"losses.{name}", table) for name, table in recipe.get("losses", {}).items()]
    alike = {name: [place for other, place, _ in places if other == name] for name, *_ in places}
    typed, _, option = key.rpartition(".")
    if typed not in of_slots and len(alike.get(typed, ())) > 1:
        choices = " or ".join(setting(f"{place}.{option}", None) for place in alike[typed])
        raise UsageError(f"{setting(key, None)}: several components are named {typed!r}. Say {choices}.")
    alone = {name for name, places in alike.items() if len(places) == 1 and name not in of_slots}
    return {name if name in alone else place: table for name, place, table in places} | of_slots


def set_option(
    tables: Mapping[str, dict[str, Any]], key: str, value: Any, kind: str, example: str, unknown: str
) -> None:
    """Store the value of a setting ``NAME.OPTION`` in the table of NAME; raise a `UsageError` for any other key.

    ``kind`` (what to call NAME), ``example`` and ``unknown`` (with ``{!r}`` for the name) are parts of its message.
    """
    name, _, option = key.rpartition(".")
    if not name or not option:
        raise UsageError(f"options are named {kind}.OPTION, not {key!r}; e.g. {example}")
    if name not in tables:
        known = sorted(tables)
        fault = f"{setting(key, None)}: {unknown.format(name)}.{did_you_mean(name, known)}"
        raise UsageError(f"{fault} There are: {', '.join(known)}.")
    tables[name][option] = value


def validated(model: type[M], values: Layer, where: str) -> M:
    """Validate ``values`` as ``model``; raise a `UsageError` with one line per fault and the nearest known name."""
    try:
        return model.model_validate(dict(values))
    except pydantic.ValidationError as error:
        raise UsageError("\n".join(_explain(model, where, fault) for fault in error.errors())) from error


def _explain(model: type[BaseModel], where: str, fault: Any) -> str:
    path = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = sorted(_fields_at(model, fault["loc"][:-1]))
        name = str(fault["loc"][-1])
        return f"{where} has no option {path!r}.{did_you_mean(name, known)} It has: {', '.join(known) or 'none'}."
    if fault["type"] == "value_error":
        if not path:
            return f"{where}: {fault['ctx']['error']}."
        words = str(fault["ctx"]["error"])
        return f"{where}: {'' if words.startswith(path) else f'{path}: '}{words}, not {fault['input']!r}."
    reason = fault["msg"].partition(", unable to")[0]  # what follows says the same again
    return f"{where}: {path} = {fault['input']!r} is not valid: {reason[:1].lower()}{reason[1:]}."


def _fields_at(model: type[BaseModel], path: Sequence[Any]) -> Iterable[str]:
    for part in path:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return model.model_fields
