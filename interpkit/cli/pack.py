"""``interpkit pack``: any classifier as one self-describing file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interpkit.cli import console, options


def pack(
    model: options.Model,
    ctx: typer.Context,
    out: Annotated[Path, typer.Option(metavar="FILE.safetensors", help="File to write.", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
    plugin: options.PluginFile = None,
) -> None:
    """Write a classifier as one self-describing safetensors file, which the other commands read without flags.

    The file names a registered architecture; any other classifier is written as an ONNX graph (needs the extra onnx).
    """
    from interpkit.api.outputs import result_file
    from interpkit.errors import UsageError
    from interpkit.plugins import loading, packing
    from interpkit.targets import file_format

    file_format.target_path(out)
    if out.exists() and not force:
        raise UsageError(f"{out} exists: name another file, or add --force.")
    result_file(out)
    options.load_plugin_files(plugin)
    target = loading.load_target(model, **ctx.obj)
    console.note_facts(target)
    console.out.out(str(packing.pack_target(target, out)))
