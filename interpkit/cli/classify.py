"""``interpkit classify``: a classifier's predictions for photos."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interpkit.cli import console, options, tables
from interpkit.errors import UsageError, percent, setting

if TYPE_CHECKING:
    from interpkit.interfaces.targets import Target


def classify(
    model: options.Model,
    ctx: typer.Context,
    photos: Annotated[
        list[Path] | None, typer.Argument(metavar="[IMAGE]...", help="Photos, or folders of them.", show_default=False)
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE|DATA",
            help="A photo, a folder of photos, samples.safetensors, FILE.npz[:train], FILE.csv, a folder with one "
            "subfolder per class, or torchvision:NAME; repeatable.",
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, metavar="N", help="Number of classes to show for each image.")] = 5,
    device: options.Device = "auto",
    plugin: options.PluginFile = None,
    json_: options.Json = False,
) -> None:
    """Show the most probable classes of photos, and how each photo was resized and cropped.

    A photo is turned upright, resized (bicubic), and cropped at the center as the classifier's file or --crop-pct says.
    Example: interpkit classify resnet18.safetensors cat.jpg dog.jpg
    """
    from interpkit.attribution.export import load_images
    from interpkit.evaluation import scoring
    from interpkit.io.picture_files import pictures_in
    from interpkit.plugins import loading
    from interpkit.runtime.devices import choose_device
    from interpkit.targets import preprocessing

    named = [*(images or []), *map(str, photos or [])]
    if not named:
        raise UsageError("there are no images to classify: name some, as in interpkit classify MODEL cat.jpg.")
    options.load_plugin_files(plugin)
    target = loading.load_target(model, **ctx.obj)
    for doubt in preprocessing.doubts(target):
        console.warning(doubt)
    for said in (*preprocessing.notes(target), *_preparation(target)):
        console.note(said)
    specs = [each for spec in named for each in [*map(str, pictures_in(spec))] or [spec]]
    predictions: list[dict[str, Any]] = []
    refused: list[UsageError] = []
    for spec in specs:
        try:
            inputs, labels = load_images(spec, target)
        except UsageError as error:
            refused.append(error)
            continue
        found = scoring.top_classes(target, inputs, top, choose_device(device))
        for number, classes in enumerate(found):
            one: dict[str, Any] = {"image": spec if labels is None else f"{spec}[{number}]", "classes": classes}
            predictions.append(one if labels is None else one | {"label": int(labels[number])})
    if predictions or not refused:
        _print(target, predictions, json_)
    if refused:
        raise UsageError("\n".join(map(str, refused)))


def _preparation(target: Target) -> list[str]:
    """Return what happens to a photo before the classifier receives it, in one sentence."""
    from interpkit.io.picture_files import covering

    facts, shape = target.description, target.input_shape
    if len(shape) != 3:
        return []
    (low, high), mean, std = facts.ranges[0], facts.mean or [0.0], facts.std or [1.0]
    values = f"values from {low:g} to {high:g}"
    if any(mean) or set(std) != {1.0}:
        values += f", minus {_numbers(mean)}, divided by {_numbers(std)}"
    crop = "stated" if facts.crop_pct else f"assumed; {setting('crop_pct', None)} states another crop"
    return [
        f"{target.name} receives {values}. A photo of another size is resized (bicubic) "
        f"{covering(shape, facts.crop_pct)} ({crop})."
    ]


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:g}" for value in (values[:1] if len(set(values)) == 1 else values))


def _print(target: Target, predictions: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        console.print_json({"name": target.name, "predictions": predictions})
        return
    from rich.table import Table

    names = target.class_names
    table = Table("image", "class", *tables.figures("probability"))
    for prediction in predictions:
        for place, row in enumerate(prediction["classes"]):
            name = row["name"] if names.count(row["name"]) == 1 else f"{row['name']} ({row['label']})"
            table.add_row("" if place else prediction["image"], name, percent(row["probability"]))
        table.add_section()
    tables.show(table)
