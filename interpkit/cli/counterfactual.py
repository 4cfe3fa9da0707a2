"""``interpkit counterfactual``: what would have to change for the classifier to give another answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from interpkit.cli import console, options, tables
from interpkit.errors import UsageError


def counterfactual(
    source: options.Source,
    ctx: typer.Context,
    images: Annotated[
        str,
        typer.Option(
            metavar="FILE|DATA",
            help="Inputs to change: a photo, a folder of photos, samples.safetensors, FILE.npz[:train], FILE.csv, a "
            "folder with one subfolder per class, or torchvision:NAME.",
            show_default=False,
        ),
    ],
    to: Annotated[
        str | None, typer.Option(metavar="CLASS", help="Class asked for, by name or number (default: any other).")
    ] = None,
    fixed: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Column of a table that keeps its value, by name; repeatable."),
    ] = None,
    smooth: Annotated[
        float, typer.Option(min=0, max=100, metavar="PIXELS", help="Blur of the change of an image (default: none).")
    ] = 0.0,
    starts: Annotated[int, typer.Option(min=0, max=100, metavar="N", help="Further random starting points.")] = 0,
    count: Annotated[int, typer.Option(min=1, metavar="N", help="Largest number of inputs, from the first.")] = 100,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder to write report.html to, and for images counterfactual.png."),
    ] = None,
    model: options.RunsModel = None,
    plugin: options.PluginFile = None,
    json_: options.Json = False,
) -> None:
    """Change inputs as little as possible until the classifier gives another answer, or the one that you name.

    Rows of a table change in their own units. With the run of a generator, its nearest samples are a second answer, to
    which --smooth and --starts do not apply.
    Example: interpkit counterfactual resnet18.safetensors --images cat.jpg --to dog --out why-not-a-dog
    """
    from interpkit.api import counterfactual as api
    from interpkit.plugins import loading

    options.load_plugin_files(plugin)
    run = options.run_of(source, model, ctx.obj)
    known = loading.load_target(source, **ctx.obj) if run is None else run.load(model=model, **ctx.obj)
    result = api.counterfactual(
        known,
        images,
        to,
        fixed=fixed or (),
        smooth=smooth,
        starts=starts,
        count=count,
        out=out,
        seed=seed,
        device=device,
    )
    rows = result.rows()
    if json_:
        console.print_json({"name": result.target.name, "counterfactuals": rows})
    else:
        _print(rows)
    if out is not None:
        console.note(f"wrote {out / 'report.html'}")
    if not any("after" in row or "along_after" in row for row in rows):
        raise UsageError(f"nothing was found for any of the {len(rows)} inputs. The first: {rows[0]['reason']}.")


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table("input", "before", "after", *tables.figures("distance"), "what changes")
    for row in rows:
        for key, how in (("", "free"), ("along_", "along the generator")):
            if f"{key}after" in row:
                changes = row.get("changes", {}).items() if not key else ()
                what = ", ".join(f"{name} {old:.10g} -> {new:.10g}" for name, (old, new) in changes) or how
                cells = row[f"{key}after"], f"{row[f'{key}distance']:.3f}", what
            elif f"{key}reason" in row:
                cells = "", "", row[f"{key}reason"]
            else:
                continue
            table.add_row("" if key else str(row["row"]), "" if key else row["before"], *cells)
    tables.show(table)
