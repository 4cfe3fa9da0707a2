"""``interpkit pack``: any classifier as one self-describing file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interpkit.cli import console, options


def pack(
    model: options.Model,
    out: Annotated[Path, typer.Option(metavar="FILE.safetensors", help="The file to write.", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
    arch: options.Arch = None,
    arch_arg: options.ArchArg = None,
    input_shape: options.InputShape = None,
    mean: options.Mean = None,
    std: options.Std = None,
    input_range: options.InputRange = None,
    num_classes: options.NumClasses = None,
    class_names: options.ClassNames = None,
    layout: options.Layout = None,
    channel_order: options.ChannelOrder = None,
    output: options.Output = None,
    feature_layer: options.FeatureLayer = None,
    trust: options.Trust = False,
) -> None:
    """Write a classifier as one self-describing safetensors file, which the other commands take with no flags.

    A registered architecture is named in the file; anything else is written as an ONNX graph (interpkit[onnx]).
    """
    from interpkit import loading, target_file
    from interpkit.errors import UsageError

    if out.exists() and not force:
        raise UsageError(f"{out} exists: name another file, or add --force.")
    said = options.target_options(
        arch=arch,
        arch_arg=arch_arg,
        input_shape=input_shape,
        mean=mean,
        std=std,
        input_range=input_range,
        num_classes=num_classes,
        class_names=class_names,
        layout=layout,
        channel_order=channel_order,
        output=output,
        feature_layer=feature_layer,
        trust=trust,
    )
    target = loading.load_target(model, **said)
    console.note_facts(target)
    console.out.out(str(target_file.pack_target(target, out)))
