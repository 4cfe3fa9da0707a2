"""Every error that interpkit raises on purpose, each with the exit code of the command line.

An error is one readable message: what is wrong, what was found, and what to do.
"""

from __future__ import annotations

import difflib
import os
import shlex
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from types import FrameType

DISTRIBUTION = "network-inversion"
"""The name that pip installs interpkit by; PyPI's project ``interpkit`` is a different one."""


class InterpkitError(Exception):
    """Base of all errors that interpkit raises on purpose: the run failed (exit code 1)."""

    exit_code = 1


class RunError(InterpkitError):
    """A run failed, or a run folder cannot be used (exit code 1)."""


class DivergedError(RunError):
    """A run failed because a value turned non-finite, or the loss exploded (exit code 1).

    Args:
        message: what happened, and what to do.
        what: what happened, in short.
        step: the step at which it happened.
    """

    def __init__(self, message: str, what: str, step: int) -> None:
        super().__init__(message)
        self.what = what
        self.step = step


class UsageError(InterpkitError, ValueError):
    """The call is wrong: an unknown option, a value out of range (exit code 2)."""

    exit_code = 2


class ModelError(InterpkitError):
    """The classifier could not be loaded, or was refused (exit code 3)."""

    exit_code = 3


class PluginError(InterpkitError):
    """A plugin is unknown or broken (exit code 4)."""

    exit_code = 4


def a(noun: str) -> str:
    """Return a noun with its indefinite article."""
    return f"{'an' if noun[0] in 'aeio' else 'a'} {noun}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that is not empty, or the name of its type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def with_place(error: BaseException, module: str) -> str:
    """Return an error's type and message, with the file and line of the innermost frame in the code of a module.

    Args:
        error: any exception.
        module: the name that the responsible code is imported by; the modules inside it count as well.
    """
    if isinstance(error, SyntaxError) and error.filename:  # its message names the file without its folder
        return f"{type(error).__name__}: {error.msg} ({error.filename}, line {error.lineno})"
    place = ""
    for frame, line in walk_tb(error.__traceback__):
        if _is_of(frame, module):
            place = f" ({frame.f_code.co_filename}, line {line})"
    return f"{type(error).__name__}: {error}{place}"


def raised_in(error: BaseException, module: str) -> bool:
    """Return whether code of ``module`` itself raised an error, rather than code that it called."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    return bool(frames) and _is_of(frames[-1], module)


def _is_of(frame: FrameType, module: str) -> bool:
    name = str(frame.f_globals.get("__name__"))
    return bool(module) and (name == module or name.startswith(f"{module}."))


def install_extra(extra: str) -> str:
    """Return the command that installs an extra of interpkit where this process runs.

    That is ``pip install 'network-inversion[onnx]'``, or ``pip install -e '.[onnx]'`` where interpkit is imported from
    a clone; outside the clone's folder, its path stands in place of the dot.

    Args:
        extra: one of the optional dependencies in interpkit's ``pyproject.toml``, such as ``onnx``.

    Example:
        >>> from interpkit import install_extra
        >>> command = install_extra("onnx")
        >>> command.startswith("pip install ") and "[onnx]" in command
        True
    """
    clone = _clone()
    if clone is None:
        return f"pip install {shlex.quote(f'{DISTRIBUTION}[{extra}]')}"
    place = "." if clone.samefile(os.curdir) else clone
    return f"pip install -e {shlex.quote(f'{place}[{extra}]')}"


def upgrade() -> str:
    """Return the command that upgrades interpkit where this process runs: pip's, or git's in a clone."""
    clone = _clone()
    return f"pip install --upgrade {DISTRIBUTION}" if clone is None else f"git -C {shlex.quote(str(clone))} pull"


def _clone() -> Path | None:
    """Return the root of the clone that interpkit is imported from; None if it was installed from a wheel."""
    root = Path(__file__).resolve().parent.parent
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text("utf-8")).get("project", {})
    except (OSError, ValueError):
        return None
    return root if project.get("name") == DISTRIBUTION else None  # a wheel may be in another project's folder


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def listed(names: Iterable[str], limit: int = 12) -> str:
    """Return the names as ``a, b, c``; past ``limit`` as ``a, b, ... (40 in all)``."""
    names = list(names)
    if len(names) <= limit:
        return ", ".join(names) or "none"
    return f"{', '.join(names[:limit])}, ... ({len(names)} in all)"


def percent(share: float, digits: int = 1) -> str:
    """Return a share in percent, with so many digits after the point.

    Only a share of exactly 0 or 1 is written as 0 or 100 %.

    Example:
        >>> from interpkit import percent
        >>> percent(0.5), percent(0.9999), percent(0.001, digits=0), percent(1)
        ('50.0%', '>99.9%', '<1%', '100.0%')
    """
    text, least = f"{share:.{digits}%}", 10**-digits
    if share > 0 and float(text[:-1]) == 0:
        return f"<{least:.{digits}f}%"
    return f">{100 - least:.{digits}f}%" if share < 1 and float(text[:-1]) == 100 else text


# ----------------------------------------------------------------- settings in messages

_in_shell = False
_IN_PYTHON = {
    "evaluator": "evaluators=[{}]",
    "loss": "losses={{{}: 1.0}}",
    "metric": "metrics=[{}]",
    "no_plugin": "leaving_out([{}])",
    "plugin": "plugins=[{}]",
    "preset": "presets=[{}]",
    "unit": "units=[{}]",
}
"""Settings that are spelled differently there; ``{}`` stands for the value."""
_CALLS = {"report": "write_report({})", "sample": "load_inversion({}).sample()"}


@contextmanager
def in_shell() -> Iterator[None]:
    """Make `setting` and `command` write shell flags and commands within the block."""
    global _in_shell
    before, _in_shell = _in_shell, True
    try:
        yield
    finally:
        _in_shell = before


def setting(name: str, value: object = True) -> str:
    """Return a setting as the user types it: a flag in the shell, an argument in Python.

    ``setting("batch_size", 140)`` is ``--batch-size 140`` or ``batch_size=140``, and ``setting("optimizer.lr", 0.001)``
    is ``--set optimizer.lr=0.001`` or ``options={'optimizer.lr': 0.001}``.

    Args:
        name: the flag's name with underscores, or ``COMPONENT.OPTION``.
        value: a string in capitals is a placeholder and is not quoted; None names the setting without a value.

    Example:
        >>> from interpkit import setting
        >>> f"Add {setting('input_shape', 'C,H,W')}."  # for a user of the shell: Add --input-shape C,H,W.
        'Add input_shape=(C, H, W).'
    """
    if _in_shell:
        text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        if "." in name:
            return f"--set {name}" if value is None else f"--set {shlex.quote(f'{name}={text}')}"
        flag = f"--{name.replace('_', '-')}"
        return flag if value is None or value is True else f"{flag} {shlex.quote(text)}"
    if name == "arch_arg":
        key, _, text = str(value).partition("=")
        return f"arch_args={{{key!r}: {True if text == 'true' else text!r}}}"
    if value is None:
        return f"options[{name!r}]" if "." in name else name
    text = value if isinstance(value, str) and value.isupper() and ":" not in value else repr(value)
    text = f"({text.replace(',', ', ')})" if text is value and "," in text else text
    return f"options={{{name!r}: {text}}}" if "." in name else _IN_PYTHON.get(name, f"{name}={{}}").format(text)


def resume(folder: Path | str) -> str:
    """Return what resumes a run, as the user types it in the shell or in Python."""
    if _in_shell:
        return f"interpkit invert MODEL --out {shlex.quote(str(folder))} --resume"
    return f"interpkit.invert(MODEL, out={str(folder)!r}, resume=True)"


def restart() -> str:
    """Return the sentence that says how to start a run again whose checkpoint is of no use."""
    settings = f"{setting('config', 'RUN/recipe.toml')} and {setting('force')}"
    return f"Start again with {settings}, without {setting('resume', None)}."


def packing(model: str, *settings: str) -> str:
    """Return a call for a message to suggest that packs a classifier, with settings of what its file does not say."""
    if _in_shell:
        return " ".join([command("pack", model), *settings, "--out FILE.safetensors"])
    loaded = ", ".join([model if model.isupper() else repr(model), *settings])
    return f"interpkit.pack_target(interpkit.load_target({loaded}), 'FILE.safetensors')"


def command(name: str, argument: str) -> str:
    """Return a call for a message to suggest: ``interpkit evaluate RUN``, or ``interpkit.evaluate(RUN)`` in Python."""
    if _in_shell:
        return f"interpkit {name} {shlex.quote(argument)}"
    call = _CALLS.get(name, f"{name}({{}})")
    return f"interpkit.{call.format(argument if argument.isupper() else repr(argument))}"
