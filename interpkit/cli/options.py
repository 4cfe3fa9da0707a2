"""Options that several commands share, and the reading of their values."""

from __future__ import annotations

import functools
import inspect
import tomllib
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from interpkit.errors import UsageError

_FILE = "Where the file does not say"


class LayoutName(StrEnum):
    """Layouts."""

    NCHW = "nchw"
    NHWC = "nhwc"
    FLAT = "flat"


class ChannelOrderName(StrEnum):
    """Orders of three channels."""

    RGB = "rgb"
    BGR = "bgr"


class OutputName(StrEnum):
    """Kinds of output."""

    LOGITS = "logits"
    LOG_PROBS = "log_probs"
    PROBS = "probs"


Model = Annotated[Path, typer.Argument(metavar="MODEL", help="The classifier's file or folder.", show_default=False)]
PluginFile = Annotated[
    list[Path] | None,
    typer.Option("--plugin", metavar="FILE.py", help="Load a plugin of one file, such as the run's; repeatable."),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Arch = Annotated[
    str | None,
    typer.Option(help="Architecture, FAMILY:NAME, e.g. torchvision:resnet18.", rich_help_panel=_FILE),
]
ArchArg = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="Argument of the architecture; repeatable.", rich_help_panel=_FILE),
]
InputShape = Annotated[str | None, typer.Option(metavar="C,H,W", help="Shape of one image.", rich_help_panel=_FILE)]
Mean = Annotated[str | None, typer.Option(help="Mean per channel, in units of the input range.", rich_help_panel=_FILE)]
Std = Annotated[str | None, typer.Option(help="Standard deviation per channel, likewise.", rich_help_panel=_FILE)]
InputRange = Annotated[
    str | None, typer.Option(metavar="LO,HI", help="What black and white are to it.", rich_help_panel=_FILE)
]
NumClasses = Annotated[int | None, typer.Option(min=2, help="Number of classes.", rich_help_panel=_FILE)]
ClassNames = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A text file with a class name a line.", rich_help_panel=_FILE),
]
Layout = Annotated[
    LayoutName | None, typer.Option(help="How it takes an image; found by trying.", rich_help_panel=_FILE)
]
ChannelOrder = Annotated[ChannelOrderName | None, typer.Option(help="rgb by default.", rich_help_panel=_FILE)]
Output = Annotated[OutputName | None, typer.Option(help="What it gives; found from its sums.", rich_help_panel=_FILE)]
Trust = Annotated[
    bool, typer.Option("--trust", help="Load a file that may run code (.pt2, TorchScript).", rich_help_panel=_FILE)
]
FeatureLayer = Annotated[
    str | None,
    typer.Option(
        metavar="LAYER[:in]",
        help="Default features, in place of the last linear layer's input.",
        rich_help_panel=_FILE,
    ),
]


def load_plugin_files(paths: list[Path] | None) -> None:
    """Load the plugins of one file that were typed.

    Raises:
        PluginError: one is missing or broken.
        UsageError: one is no file of Python.
    """
    from interpkit.plugins.discovery import installed

    for path in paths or []:
        if path.suffix != ".py":
            raise UsageError(
                f"--plugin takes the file of a plugin here, FILE.py, not {path}: installed ones are loaded anyway."
            )
        installed().add_file(path)


def target_options(
    arch: Arch = None,
    arch_arg: ArchArg = None,
    input_shape: InputShape = None,
    mean: Mean = None,
    std: Std = None,
    input_range: InputRange = None,
    num_classes: NumClasses = None,
    class_names: ClassNames = None,
    layout: Layout = None,
    channel_order: ChannelOrder = None,
    output: Output = None,
    feature_layer: FeatureLayer = None,
    trust: Trust = False,
) -> dict[str, Any]:
    """Return what was typed about the classifier, in the words of a recipe's ``[target]``."""
    said: dict[str, Any] = {
        "arch": arch,
        "arch_args": dict(pair("--arch-arg", text) for text in arch_arg or []) or None,
        "input_shape": numbers("--input-shape", input_shape, int),
        "mean": numbers("--mean", mean, float),
        "std": numbers("--std", std, float),
        "input_range": _ranges(input_range),
        "num_classes": num_classes,
        "class_names": None if class_names is None else lines(class_names),
        "layout": layout and layout.value,
        "channel_order": channel_order and channel_order.value,
        "output": output and output.value,
        "feature_layer": feature_layer,
        "trust": trust or None,
    }
    return {key: value for key, value in said.items() if value is not None}


def with_target_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags of `target_options`, in place of its parameter ``said``, which takes their values."""
    flags = inspect.signature(target_options).parameters
    hints = {**get_type_hints(target_options, include_extras=True), **get_type_hints(command, include_extras=True)}
    own = [parameter for name, parameter in inspect.signature(command).parameters.items() if name != "said"]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        said = target_options(**{name: values.pop(name) for name in flags})
        command(said=said, **values)

    parameters = [
        parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in (*own, *flags.values())
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _ranges(text: str | None) -> list[Any] | None:
    """Read LO,HI, or LO,HI;LO,HI;... with a pair for each feature."""
    if text is None:
        return None
    pairs = [numbers("--input-range", part, float) or [] for part in text.split(";")]
    if any(len(pair) != 2 for pair in pairs):
        raise UsageError(f"--input-range takes LO,HI (or LO,HI;LO,HI;... for the features of vectors), not {text!r}.")
    return pairs[0] if len(pairs) == 1 else pairs


def numbers(flag: str, text: str | None, kind: Callable[[str], Any]) -> list[Any] | None:
    """Read comma-separated numbers.

    Raises:
        UsageError: one is none.
    """
    if text is None:
        return None
    try:
        return [kind(part.strip()) for part in text.split(",")]
    except ValueError as error:
        word = "whole numbers" if kind is int else "numbers"
        raise UsageError(f"{flag} takes comma-separated {word}, not {text!r}.") from error


def pair(flag: str, text: str) -> tuple[str, Any]:
    """Read KEY=VALUE; the value as TOML writes it (0.5, true, [1, 2]), comma-separated, or plain text.

    Raises:
        UsageError: there is no ``=``.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"{flag} takes NAME=VALUE, not {text!r}.")
    return key.strip(), _value(value.strip())


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except (ValueError, RecursionError):
        return [_value(part.strip()) for part in text.split(",")] if "," in text else text


def weight(text: str) -> tuple[str, float]:
    """Read NAME or NAME=WEIGHT.

    Raises:
        UsageError: the weight is no number.
    """
    name, equals, value = text.partition("=")
    try:
        return name.strip(), float(value) if equals else 1.0
    except ValueError as error:
        raise UsageError(f"--loss takes NAME or NAME=WEIGHT, not {text!r}.") from error


def lines(path: Path) -> list[str]:
    """Read a file with a name a line (or a JSON list of names).

    Raises:
        UsageError: it cannot be read.
    """
    from interpkit.io.strict_json import parse, read_text  # pydantic takes a while to import

    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}.") from error
    if text.lstrip().startswith("["):
        try:
            return [str(name) for name in parse(text)]
        except ValueError as error:
            raise UsageError(f"{path} is not a JSON list: {error}.") from error
    return [line.strip() for line in text.splitlines() if line.strip()]
