"""``interpkit distill``: a smaller classifier from a run, without data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interpkit.cli import console, options


def distill(
    run: options.RunFolder,
    arch: Annotated[
        str,
        typer.Option(metavar="SPEC", help="Architecture of the student, FAMILY:NAME.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE.safetensors", help="File to write.", show_default=False)],
    arch_arg: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Argument of the architecture; repeatable."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Batches of samples that the student sees.")] = 2000,
    batch_size: Annotated[int, typer.Option(min=2, help="Samples in a batch.")] = 100,
    labels: Annotated[bool, typer.Option("--labels/--no-labels", help="Teach it the classes asked for.")] = True,
    logits: Annotated[bool, typer.Option("--logits/--no-logits", help="Teach it the target's logits.")] = True,
    augment: Annotated[
        bool | None,
        typer.Option("--augment/--no-augment", help="Turn and move the samples at random (default: those of images)."),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(metavar="DATA", help="Real images with labels to test it on, as in evaluate.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
    model: Annotated[Path | None, typer.Option(metavar="FILE", help="Path of the classifier, if it has moved.")] = None,
    trust: options.Trust = False,
    plugin: options.PluginFile = None,
    json_: options.Json = False,
) -> None:
    """Train a classifier of your choice to answer as the run's does, on the run's samples alone, without data.

    Example: interpkit distill runs/mnist-vecmat-1 --arch interpkit:cnn --out small.safetensors --reference mnist.npz
    """
    from interpkit.api import distill
    from interpkit.errors import UsageError, percent
    from interpkit.evaluation import scoring, teaching
    from interpkit.runs.folder import Run

    if out.exists() and not force:
        raise UsageError(f"{out} exists: name another file, or add --force.")
    options.load_plugin_files(plugin)
    inversion = Run.open(run).load(model=model, trust=trust)
    data = None if reference is None else scoring.load_labelled(reference, inversion.target)
    student = distill.distill(
        inversion,
        arch,
        out=out,
        arch_args=dict(options.pair("--arch-arg", text) for text in arch_arg or []),
        steps=steps,
        batch_size=batch_size,
        labels=labels,
        logits=logits,
        augment=augment,
        seed=seed,
    )
    found = {} if data is None else teaching.graded(student, inversion.target, data)
    if not found:
        console.note("only real images tell how good it is: add --reference DATA.")
    for name, share in found.items():
        console.note(f"{name.replace('_', ' ')}: {percent(share)}")
    if json_:
        console.print_json({"file": str(out), **found})
    else:
        console.out.out(str(out))
