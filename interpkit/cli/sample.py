"""``interpkit sample``: images from a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interpkit.cli import console, options
from interpkit.errors import UsageError


def sample(
    run: options.RunFolder,
    per_class: Annotated[int | None, typer.Option(min=1, help="Images of each class; 10 by default.")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Images in all, the classes taking turns.")] = None,
    labels: Annotated[str | None, typer.Option(metavar="3,5", help="These classes only.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the samples; the run's by default.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.safetensors|FOLDER", help="Where to; by default samples-N.safetensors in RUN."),
    ] = None,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a grid too.")] = None,
    model: Annotated[Path | None, typer.Option(metavar="FILE", help="The classifier, if it has moved.")] = None,
    arch: options.Arch = None,
    trust: options.Trust = False,
    plugin: options.PluginFile = None,
    json_: options.Json = False,
) -> None:
    """Draw images from a run, with the classifier's judgement of them.

    A FOLDER gets one PNG an image, in a folder a class. The same arguments give the same images.
    """
    from interpkit import evaluation, pictures, runs

    if per_class is not None and count is not None:
        raise UsageError("give --per-class or --count, not both.")
    options.load_plugin_files(plugin)
    inversion = runs.Run.open(run).load(model=model, arch=arch, trust=trust)
    samples = evaluation.draw_samples(
        inversion,
        per_class=per_class,
        count=count,
        labels=options.numbers("--labels", labels, int),
        seed=seed,
    )
    names = inversion.target.class_names
    if samples.images.dim() == 2 and (png is not None or (out is not None and not out.suffix)):
        raise UsageError("vectors have no pictures: leave --png out, and name a .safetensors file by --out.")
    place = out or _next_file(run)
    if place.suffix == ".safetensors":
        runs.write_samples(samples, place)
    elif place.suffix:
        raise UsageError(f"--out {place}: name a .safetensors file or a folder.")
    else:
        pictures.save_images(samples.images, samples.labels, names, place)
    if png is not None:
        pictures.save_grid(samples.images, samples.labels, names, png)
    metrics = evaluation.measure(samples, names)
    if json_:
        console.print_json({"out": str(place), "png": None if png is None else str(png), "metrics": metrics})
        return
    console.note(f"{len(samples.labels)} images, {metrics['inversion_accuracy']:.1%} in the class asked for")
    console.out.out(str(place))
    if png is not None:
        console.out.out(str(png))


def _next_file(run: Path) -> Path:
    number = 1
    while (place := run / f"samples-{number}.safetensors").exists():
        number += 1
    return place
