"""``interpkit predict``: a classifier's predictions for images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from interpkit.cli import console, options
from interpkit.errors import UsageError


def predict(
    model: options.Model,
    ctx: typer.Context,
    photos: Annotated[
        list[Path] | None, typer.Argument(metavar="[PHOTO]...", help="Pictures.", show_default=False)
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE|DATA",
            help="A picture, samples.safetensors, FILE.npz[:train], FILE.csv, a folder with one subfolder per "
            "class, or torchvision:NAME; repeatable.",
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, metavar="N", help="Number of classes to show for each image.")] = 5,
    device: Annotated[str, typer.Option(metavar="NAME", help="Device: auto, cpu, cuda, mps, ...")] = "auto",
    plugin: options.PluginFile = None,
    json_: options.Json = False,
) -> None:
    """Show the most probable classes of images, such as photos.

    A photo is turned upright, resized so that it just covers the classifier's input, and cropped at the center.
    Example: interpkit predict resnet18.safetensors --images cat.jpg dog.jpg
    """
    from interpkit.attribution.export import load_images
    from interpkit.evaluation import scoring
    from interpkit.plugins import loading
    from interpkit.runtime.devices import choose_device

    specs = [*(images or []), *map(str, photos or [])]
    if not specs:
        raise UsageError("there are no images to classify: name some by --images FILE.")
    options.load_plugin_files(plugin)
    target = loading.load_target(model, **ctx.obj)
    predictions: list[dict[str, Any]] = []
    for spec in specs:
        inputs, labels = load_images(spec, target)
        found = scoring.top_classes(target, inputs, top, choose_device(device))
        for number, classes in enumerate(found):
            one: dict[str, Any] = {"image": spec if labels is None else f"{spec}[{number}]", "classes": classes}
            predictions.append(one if labels is None else one | {"label": int(labels[number])})
    if json_:
        console.print_json({"name": target.name, "predictions": predictions})
        return
    from rich.table import Table

    table = Table("image", "class", "probability")
    for prediction in predictions:
        for place, row in enumerate(prediction["classes"]):
            table.add_row("" if place else prediction["image"], row["name"], f"{row['probability']:.1%}")
        table.add_section()
    console.out.print(table)
