"""``interpkit evaluate``: the metrics of a run's samples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interpkit.cli import console, figures, options, tables
from interpkit.errors import command, setting


def evaluate(
    run: options.RunFolder,
    evaluator: Annotated[
        list[Path] | None,
        typer.Option(metavar="MODEL", help="Independent classifier of the same classes; repeatable."),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Held-out real images: FILE.npz[:train], FILE.csv, a folder with one subfolder per class, or "
            "torchvision:NAME.",
        ),
    ] = None,
    training: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Images that the classifier was trained on, in the same forms (default: the train split).",
        ),
    ] = None,
    canaries: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="A few images that the classifier may remember, in the same forms; they are ranked among those of "
            "--reference.",
        ),
    ] = None,
    ood: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Images that the classifier should refuse, without labels, of any size; they are held against "
            "--reference.",
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Metric to measure; repeatable (default: all that the given data allow)."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="METRIC.OPTION=VALUE", help="Set an option of a metric; repeatable."),
    ] = None,
    model: Annotated[Path | None, typer.Option(metavar="FILE", help="Path of the classifier, if it has moved.")] = None,
    arch: options.Arch = None,
    trust: options.Trust = False,
    plugin: options.PluginFile = None,
    json_: options.Json = False,
) -> None:
    """Measure a run's samples: diversity, robustness, agreement of other classifiers, closeness to real images.

    The results go into the run's metrics.json. Evaluator files must be self-describing; create one with interpkit pack.
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
        canaries=canaries,
        ood=ood,
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
        tables.show(classes)
    tables.show(figures.table_of_all(metrics))
    console.print_worst(metrics)
    if (run / "report.html").exists():
        facts = {"model": model, "arch": arch, "trust": trust}
        typed = [command("report", str(run)), *(setting(name, value) for name, value in facts.items() if value)]
        typed += [setting("plugin", path) for path in plugin or []]
        console.note(f"report.html is older than these results; rewrite it: {' '.join(typed)}")
    console.out.out(str(run / "metrics.json"))
