"""``interpkit evaluate``: how true the samples of a run are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interpkit.cli import console, figures, options


def evaluate(
    run: options.RunFolder,
    evaluator: Annotated[
        list[Path] | None,
        typer.Option(metavar="MODEL", help="Another classifier of the same classes, as a judge; repeatable."),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Held-out real images: FILE.npz[:train], a folder of folders, or torchvision:NAME.",
        ),
    ] = None,
    training: Annotated[
        str | None, typer.Option(metavar="DATA", help="Images that the classifier was trained on, likewise.")
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Measure this one only; repeatable. By default all that can be."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="METRIC.OPTION=VALUE", help="Set an option; repeatable."),
    ] = None,
    model: Annotated[Path | None, typer.Option(metavar="FILE", help="The classifier, if it has moved.")] = None,
    arch: options.Arch = None,
    trust: options.Trust = False,
    plugin: options.PluginFile = None,
    json_: options.Json = False,
) -> None:
    """Measure the stored samples of a run: variety, robustness, other classifiers' agreement, nearness to real images.

    The figures go into the run's metrics.json. An evaluator's file must say itself what it is: interpkit pack.
    Example: interpkit evaluate runs/mnist-vecmat-1 --evaluator other.safetensors --reference mnist.npz
    """
    from interpkit.api import evaluate
    from interpkit.evaluation import warnings

    options.load_plugin_files(plugin)
    metrics = evaluate.evaluate(
        run,
        evaluators=evaluator or [],
        reference=reference,
        training=training,
        metrics=metric or [],
        options=dict(options.pair("--set", text) for text in set_ or []),
        model=model,
        arch=arch,
        trust=trust,
    )
    console.note_left_out(metrics)
    for warning in warnings.warnings(metrics):
        console.warning(warning)
    if json_:
        console.print_json(metrics)
        return
    classes = figures.table_of_classes(metrics)
    if classes is not None:
        console.out.print(classes)
    console.out.print(figures.table_of_all(metrics))
    if (run / "report.html").exists():
        console.note(f"report.html is from before: interpkit report {run} writes it anew")
    console.out.out(str(run / "metrics.json"))
