"""``interpkit harden``: retrain a classifier with a garbage class."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interpkit.cli import console, options


def harden(
    model: options.Model,
    ctx: typer.Context,
    data: Annotated[
        str,
        typer.Option(metavar="DATA", help="Training data, by default of the train split.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE.safetensors", help="File to write.", show_default=False)],
    preset: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Preset to invert with, as in invert; repeatable.", show_default=False),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(metavar="DATA", help="Held-out images with labels to test it on, as in evaluate.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=0, help="Most rounds; 0 learns from noise alone.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each round's inversion.")] = 100,
    samples: Annotated[int, typer.Option(min=12, help="Samples of each round to learn from.")] = 600,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over data and garbage in each round.")] = 1,
    batch_size: Annotated[
        int | None, typer.Option(min=2, help="Images in a step of the inversion (default: the preset's).")
    ] = None,
    rate: Annotated[float, typer.Option(help="Highest learning rate of the retraining.")] = 0.001,
    stop_at: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of new samples accepted at which they look like data.")
    ] = 0.5,
    augment: Annotated[
        bool | None,
        typer.Option("--augment/--no-augment", help="Turn and move the images at random (default: those of images)."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="COMPONENT.OPTION=VALUE", help="Option of the inversion; repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    device: options.Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Continue after the last finished round.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
    plugin: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE.py",
            help="Plugin file to invert with, whose own preset, if it has one, is applied after --preset; repeatable.",
        ),
    ] = None,
    json_: options.Json = False,
) -> None:
    """Retrain a classifier to put what is not data into a class "garbage", which its own inversions fill.

    Example: interpkit harden model.safetensors --data mnist.npz --preset vecmat --out hardened.safetensors
    """
    from interpkit.api import harden as api
    from interpkit.errors import UsageError, percent
    from interpkit.plugins import loading

    options.load_plugin_files(plugin)
    if out.exists() and not (force or resume):
        raise UsageError(f"{out} exists: name another file, or add --force; --resume continues an interrupted one.")
    found = api.harden(
        loading.load_target(model, **ctx.obj),
        data,
        [str(path) for path in plugin or []],
        presets=preset or [],
        reference=reference,
        out=out,
        rounds=rounds,
        steps=steps,
        samples=samples,
        epochs=epochs,
        batch_size=batch_size,
        rate=rate,
        stop_at=stop_at,
        augment=augment,
        seed=seed,
        device=device,
        resume=resume,
        options=dict(options.pair("--set", text) for text in set_ or []),
    )
    console.note(f"after {len(found.rounds)} rounds: {found.ended}.")
    for name, share in found.reference.items():
        console.note(f"{name.replace('_', ' ')}: {percent(share)}")
    if json_:
        console.print_json(
            {"file": str(out), "ended": found.ended, "rounds": found.rounds, "reference": found.reference}
        )
    else:
        console.out.out(str(out))
