"""``interpkit concepts``: what a layer tells apart, learned from samples alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from interpkit.cli import console, options, tables
from interpkit.errors import UsageError, percent

TABLE = 12


def concepts(
    source: options.Source,
    ctx: typer.Context,
    layer: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Layer, NAME or NAME:in (default: that before the last linear one)."),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(metavar="DATA", help="Real images with labels, to judge the concepts on.")
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(metavar="FILE|DATA", help="Images to learn from, in place of the run's samples; see attribute."),
    ] = None,
    learn_from: Annotated[
        str,
        typer.Option(metavar="samples|reference|both", help="Learn from these; of reference images a random half."),
    ] = "samples",
    dictionary: Annotated[str, typer.Option(metavar="topk|nmf", help="Sparse auto-encoder or NMF.")] = "topk",
    latents: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Number of concepts (default: 256, or 32 by NMF).")
    ] = None,
    active: Annotated[int, typer.Option(min=1, metavar="N", help="Most concepts at one position, for topk.")] = 8,
    count: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Samples, or images, to draw (default: 10000 samples, or all images)."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Steps of the dictionary's training (default: 2000, or 200 by NMF)."),
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option(metavar="N=TEXT", help="Name of a concept by its number; repeatable.")
    ] = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to write (default: RUN/concepts or concepts/MODEL).")
    ] = None,
    model: options.RunsModel = None,
    plugin: options.PluginFile = None,
    json_: options.Json = False,
) -> None:
    """Learn the concepts of a layer from a run's samples, without data; with data, judge them on it.

    Writes concepts.json, concepts.safetensors and report.html; the same concepts keep the names that you gave them.
    Example: interpkit concepts runs/mnist-vecmat-1 --reference mnist.npz --name 12="closed loop"
    """
    from interpkit.api import concepts as api
    from interpkit.io.atomic import inner_folder
    from interpkit.plugins import loading

    options.load_plugin_files(plugin)
    if learn_from not in ("samples", "reference", "both"):
        raise UsageError(f"--learn-from takes samples, reference or both, not {learn_from!r}.")
    names = dict(_numbered(text) for text in name or [])
    run = options.run_of(source, model, ctx.obj)
    known: Any
    if run is not None:
        known = run.load(model=model, **ctx.obj)
        place = out or inner_folder(run / api.FOLDER)
    else:
        known = loading.load_target(source, **ctx.obj)
        place = out or options.default_folder("concepts", source, known, api.FIGURES)
    found = api.concepts(
        known,
        images,
        layer=layer,
        reference=reference,
        learn_from=learn_from,  # type: ignore[arg-type]  # checked above
        dictionary=dictionary,
        latents=latents,
        active=active,
        count=count,
        steps=steps,
        names=names,
        out=place,
        seed=seed,
        device=device,
    )
    if json_:
        console.print_json(found.record)
        return
    _print(found.record)
    console.out.out(str(place / api.PAGE))


def _numbered(text: str) -> tuple[int, str]:
    number, equals, words = text.partition("=")
    if not equals or not number.strip().isdecimal() or not words.strip():
        raise UsageError(f"--name takes the number of a concept and its name, N=TEXT, not {text!r}.")
    return int(number), words.strip()


def _print(record: dict[str, Any]) -> None:
    from rich.table import Table

    for kind in ("samples", "reference"):
        if kind in record:
            own = record[kind]
            console.note(
                f"{kind}: variance explained {own['variance_explained']:.3f}, label kept {own['label_kept']:.3f}"
            )
    for kind, words in (("only_samples", "samples"), ("only_reference", "the reference")):
        if kind in record:
            console.note(f"concepts that fire on {words} only: {', '.join(map(str, record[kind][:TABLE])) or 'none'}")
    table = Table("concept", *tables.figures("fires on"), "strongest in", "logit without it")
    for row in record["concepts"][:TABLE]:
        share, effect = f"{row['class']['name']} ({percent(row['selectivity'], 0)})", row["effect"]
        table.add_row(
            str(row["name"] or row["concept"]),
            percent(row["fires"]),
            share,
            f"{effect['name']} {effect['logit']:+.2f}",
        )
    tables.show(table)
