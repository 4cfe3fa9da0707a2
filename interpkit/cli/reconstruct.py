"""``interpkit reconstruct``: the pictures that go with a classifier's answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interpkit.cli import console, options
from interpkit.errors import UsageError, percent


def reconstruct(
    run: options.RunFolder,
    images: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|DATA",
            help="Images that the classifier answers: a photo, a folder of photos, samples.safetensors, "
            "FILE.npz[:train], FILE.csv, or torchvision:NAME. Labels are ignored.",
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Answers instead of images: probabilities in .npy, .npz, .safetensors or .csv."
        ),
    ] = None,
    logits: Annotated[bool, typer.Option("--logits", help="The predictions are logits or log-probabilities.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.safetensors",
            help="File to write the pictures to, in the order of the input; a PNG of them is written beside it.",
        ),
    ] = None,
    device: options.Device = "auto",
    model: Annotated[Path | None, typer.Option(metavar="FILE", help="Path of the classifier, if it has moved.")] = None,
    arch: options.Arch = None,
    trust: options.Trust = False,
    plugin: options.PluginFile = None,
    json_: options.Json = False,
) -> None:
    """Show what picture goes with an answer of the classifier, by the decoder of a run.

    The run has to be one that learned from answers, such as that of an inverter that reads public pictures.
    Example: interpkit reconstruct runs/decoder --images mnist.npz --out decoded.safetensors
    """
    from interpkit.api import reconstruct as api
    from interpkit.runs.folder import Run

    if out is not None and out.suffix != ".safetensors":
        raise UsageError(f"--out names a .safetensors file, not {out}: the pictures are stored as tensors.")
    if out is not None:
        api.result_files(out)
    options.load_plugin_files(plugin)
    inversion = Run.open(run).load(model=model, arch=arch, trust=trust)
    result = api.reconstruct(inversion, images, predictions=predictions, logits=logits, device=device)
    rows = result.rows()
    errors = result.errors
    figures = {"count": len(rows), "kept": round(result.kept.double().mean().item(), 6)}
    if errors is not None:
        figures["error"] = round(errors.mean().item(), 6)
    written = [] if out is None else result.save(out)
    if json_:
        console.print_json({"name": result.target.name, **figures, "reconstructions": rows})
    else:
        error = "" if errors is None else f" The mean squared error is {figures['error']:.4f}."
        console.out.print(
            f"{len(rows):,} pictures; the classifier assigns {percent(figures['kept'])} of them to the class of their "
            f"answer.{error}",
            highlight=False,
        )
    for path in written:
        console.note(f"wrote {path}")
    if out is None and not json_:
        console.note("the pictures were not kept: name a file by --out FILE.safetensors")
