"""``interpkit attribute``: which pixels led the classifier to its prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from interpkit.cli import console, options, tables
from interpkit.errors import UsageError

COLUMNS = (
    "Values closer to 0 are better: sum, the error of completeness; del., class, rand., the area under the deletion "
    "curve by the maps, by class evidence and by chance; infidelity; sensitivity; weights, the rank correlation with "
    "the maps of random weights."
)


def attribute(
    source: options.Source,
    ctx: typer.Context,
    images: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|DATA",
            help="Images to explain: a photo, a folder of photos, samples.safetensors, FILE.npz[:train], FILE.csv, a "
            "folder with one subfolder per class, or torchvision:NAME (default: the run's samples).",
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Attribution method, or all; repeatable (chosen automatically if omitted)."),
    ] = None,
    target_class: Annotated[
        str,
        typer.Option(
            metavar="asked|predicted|N|A-B",
            help="Class to explain: each image's label, the prediction, class N, or A against B; names work too.",
        ),
    ] = "asked",
    baseline: Annotated[
        str,
        typer.Option(
            metavar="black|mean|class:N",
            help="Baseline that images are compared with; class:N is the run's samples of class N.",
        ),
    ] = "black",
    per_class: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Images per class (default: 10, and at most 100 in total).")
    ] = None,
    layer: Annotated[
        str | None, typer.Option(metavar="NAME", help="Layer for Grad-CAM (chosen automatically if omitted).")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="METHOD.OPTION=VALUE", help="Set an option of a method; repeatable."),
    ] = None,
    checks: Annotated[
        bool, typer.Option(help="Measure infidelity, sensitivity and the effect of randomized weights.")
    ] = True,
    quantus: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC", help="Metric of Quantus to compute on the maps, such as Sparseness; repeatable."
        ),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Largest number of images in one forward pass (default: 64, or of large images as many as fit).",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Random seed.")] = 0,
    device: options.Device = "auto",
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder to write (default: RUN/attributions or attributions/MODEL)."),
    ] = None,
    model: options.RunsModel = None,
    plugin: options.PluginFile = None,
    json_: options.Json = False,
) -> None:
    """Explain images: show which pixels support a class, and test whether the maps can be trusted.

    Writes METHOD.safetensors, METHOD.png, METHOD-classes.png and summary.json.
    Example: interpkit attribute runs/mnist-vecmat-1 --images mnist.npz --method integrated-gradients --method grad-cam
    """
    from interpkit.attribution import export
    from interpkit.evaluation import scoring
    from interpkit.interfaces import samples
    from interpkit.io.atomic import inner_folder
    from interpkit.plugins import loading
    from interpkit.runs.manifest import weights_digest

    options.load_plugin_files(plugin)
    inverted = None
    run = options.run_of(source, model, ctx.obj)
    if run is not None:
        target = run.load_target(model, **ctx.obj)
        stored, labels, _ = scoring.read_images(run / "samples.safetensors", target)
        inverted = (samples.to_unit(stored, target), labels)
    else:
        if images is None:
            raise UsageError("a classifier alone has no images to explain: name some by --images, or name a run.")
        target = loading.load_target(source, **ctx.obj)
    if run is not None:
        place = out or inner_folder(run / "attributions")
    else:
        place = out or options.default_folder("attributions", source, target, "summary.json")
    given = None if images is None else export.load_images(images, target)
    if given is not None and given[1] is None and target_class == "asked":
        console.note("the picture has no label, so the predicted class is explained.")
    summary = export.explain(
        target,
        place,
        images=given,
        inverted=inverted,
        methods=method or [],
        target_class=target_class,
        baseline=baseline,
        per_class=per_class,
        layer=layer,
        options=dict(options.pair("--set", text) for text in set_ or []),
        checks=checks,
        quantus=quantus or [],
        seed=seed,
        rows=rows,
        device=device,
        on_method=lambda name: console.note(f"{name} ..."),
        classifier=weights_digest(target),
    )
    for name, reason in summary.get("left_out", {}).items():
        console.warning(f"{name} is left out: {reason}")
    for figures in summary["methods"].values():
        for note in figures.get("notes", ()):
            console.note(note)
    if json_:
        console.print_json({"out": str(place), **summary})
        return
    console.note(COLUMNS)
    tables.show(_table(summary))
    for name, figures in summary["methods"].items():
        for metric, value in figures.get("quantus", {}).items():
            console.out.out(f"{name} {metric}: {'-' if value is None else f'{value:.4g}'}")
    for figures in summary["methods"].values():
        for name in figures["files"]:
            console.out.out(str(place / name))
    console.out.out(str(place / "summary.json"))


def _table(summary: dict[str, Any]) -> Any:
    """Return a table with one row per method."""
    from rich import box
    from rich.table import Table

    names = ("sum", "del.", "class", "rand.", "infid", "sens.", "weights")
    table = Table("method", *tables.figures(*names), box=box.SIMPLE, pad_edge=False)
    for name, figures in summary["methods"].items():
        last = figures.get("randomisation", [{}])[-1].get("rank_correlation_absolute")
        deletion = figures["deletion"]
        values = [
            figures.get("completeness", {}).get("relative_error"),
            *(deletion.get(key) for key in ("maps", "class_evidence", "random")),
            figures.get("infidelity"),
            figures.get("sensitivity"),
            last,
        ]
        table.add_row(name, *("-" if value is None else f"{value:.3f}" for value in values))
    return table
