"""``interpkit inspect``: a classifier's facts and layers."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from interpkit.cli import console, options, tables


def inspect(
    model: options.Model,
    ctx: typer.Context,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Labeled images to measure the accuracy on: FILE.npz[:train], FILE.csv, a folder with one "
            "subfolder per class, or torchvision:NAME.",
        ),
    ] = None,
    plugin: options.PluginFile = None,
    json_: options.Json = False,
) -> None:
    """Show how interpkit reads a classifier: its input, its output and its layers, and where each fact came from."""
    from interpkit.evaluation import scoring
    from interpkit.interfaces.samples import to_unit
    from interpkit.plugins import loading
    from interpkit.plugins.assembly import without_gradient
    from interpkit.plugins.discovery import installed
    from interpkit.targets import preprocessing
    from interpkit.targets.layers import list_layers

    options.load_plugin_files(plugin)
    target = loading.load_target(model, **ctx.obj)
    layers = list_layers(target)
    accuracy, images = None, None
    if reference is not None:
        data = scoring.load_labelled(reference, target)
        accuracy, images = scoring.accuracy(target, data), to_unit(data.images, target)
    doubts = preprocessing.doubts(target, images)
    for doubt in doubts:
        console.warning(doubt)
    for unstated in preprocessing.notes(target):
        console.note(unstated)
    facts = target.description.model_dump(mode="json", exclude_none=True)
    if json_:
        resolved = {key: {"value": value, "source": target.sources.get(key)} for key, value in facts.items()}
        console.print_json(
            {"name": target.name, "resolved": resolved, "layers": [layer.to_row() for layer in layers]}
            | ({} if accuracy is None else {"accuracy": accuracy})
            | ({"warnings": doubts} if doubts else {})
        )
        return
    _print_facts(facts, target.sources)
    _print_layers(layers, target.feature_layer)
    if target.no_gradient:
        usable = without_gradient(installed())
        console.note(f"No gradient passes from its logits to its images: {target.no_gradient}. Invert it by {usable}.")
    if accuracy is not None:
        console.out.out(f"accuracy on {reference}: {accuracy:.2%}")
        if accuracy < min(2 / target.num_classes, 1 / target.num_classes + 0.1):
            console.note(
                "Little better than chance: are --mean, --std, --input-range, --channel-order and --layout right?"
            )


def _print_facts(facts: dict[str, Any], sources: dict[str, str]) -> None:
    from rich.table import Table

    table = Table("fact", "value", "from")
    for key, value in facts.items():
        text = str(value)
        table.add_row(key, text if len(text) <= 100 else f"{text[:97]}...", sources.get(key, ""))
    if "weights" in sources:
        table.add_row("weights", "", sources["weights"])
    tables.show(table)


def _print_layers(layers: list[Any], default: str) -> None:
    from rich.table import Table

    table = Table("layer", "type", *tables.figures("output", "parameters"), "features")
    for layer in layers:
        mark = "default (its input)" if f"{layer.name}:in" == default else "default" if layer.name == default else ""
        shape = " x ".join(map(str, layer.shape)) if layer.shape else "-"
        table.add_row(layer.name, layer.kind, shape, f"{layer.parameters:,}" if layer.parameters else "", mark)
    tables.show(table)
