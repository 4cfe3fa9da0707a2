"""``interpkit sample``: images from a run."""

from __future__ import annotations

import signal
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interpkit.cli import console, options
from interpkit.cli.signals import INTERRUPTED, on_stop
from interpkit.errors import UsageError

if TYPE_CHECKING:
    from interpkit.runs.shards import ShardJob

_SCALE = "Any number, as shards"


class FormatName(StrEnum):
    """Formats of shards."""

    SAFETENSORS = "safetensors"
    WEBDATASET = "webdataset"
    PARQUET = "parquet"


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
    shard_size: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Write files of N images into --out FOLDER.", rich_help_panel=_SCALE),
    ] = None,
    accepted: Annotated[
        bool,
        typer.Option(
            "--accepted", help="Only images that the classifier puts in the class asked for.", rich_help_panel=_SCALE
        ),
    ] = False,
    format_: Annotated[
        FormatName | None,
        typer.Option("--format", help="Of the shards; safetensors by default.", rich_help_panel=_SCALE),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps, ...")] = "cpu",
    model: Annotated[Path | None, typer.Option(metavar="FILE", help="The classifier, if it has moved.")] = None,
    arch: options.Arch = None,
    trust: options.Trust = False,
    plugin: options.PluginFile = None,
    json_: options.Json = False,
) -> None:
    """Draw images from a run, with the classifier's judgement of them.

    A FOLDER gets one PNG an image, in a folder a class. The same arguments give the same images. With --shard-size,
    any number of images in the memory of one shard; the same command goes on with what was interrupted.
    Example: interpkit sample runs/mnist-vecmat-1 --count 1000000 --shard-size 10000 --out samples
    """
    from interpkit.evaluation import scoring
    from interpkit.io import images
    from interpkit.runs import folder, shards
    from interpkit.runtime.devices import choose_device
    from interpkit.runtime.distributed import World

    if per_class is not None and count is not None:
        raise UsageError("give --per-class or --count, not both.")
    if shard_size is None and (accepted or format_ is not None or World.current().size > 1):
        raise UsageError("--accepted, --format and several processes take shards: add --shard-size 10000.")
    if shard_size is not None and (count is None or out is None or png is not None):
        raise UsageError("--shard-size takes --count N and --out FOLDER, and neither --per-class nor --png.")
    for place in filter(None, (out, png)):
        folder.refuse_run_files(place)
    options.load_plugin_files(plugin)
    inversion = folder.Run.open(run).load(model=model, arch=arch, trust=trust).to(choose_device(device))
    if shard_size is not None and count is not None and out is not None:
        job = shards.ShardJob(
            inversion,
            out,
            count=count,
            shard_size=shard_size,
            accepted=accepted,
            labels=options.numbers("--labels", labels, int),
            seed=seed,
            format=(format_ or FormatName.SAFETENSORS).value,
        )
        _write_shards(job, json_)
        return
    samples = scoring.draw_samples(
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
        folder.write_samples(samples, place)
    elif place.suffix:
        raise UsageError(f"--out {place}: name a .safetensors file or a folder.")
    else:
        images.save_images(samples.images, samples.labels, names, place)
    if png is not None:
        images.save_grid(samples.images, samples.labels, names, png)
    metrics = scoring.measure(samples, names)
    if json_:
        console.print_json({"out": str(place), "png": None if png is None else str(png), "metrics": metrics})
        return
    console.note(f"{len(samples.labels)} images, {metrics['inversion_accuracy']:.1%} in the class asked for")
    console.out.out(str(place))
    if png is not None:
        console.out.out(str(png))


def _write_shards(job: ShardJob, as_json: bool) -> None:
    from interpkit.runs.shards import in_bytes

    there = f", of which {job.done} are there" if job.done else ""
    console.note(
        f"{job.count} images in {job.shards} shards{there}; at most about {in_bytes(job.bytes_needed)} to write"
    )
    own = sum(map(job.images_in, job.todo))
    part = f" by process 0 of {job.world.size}" if job.world.size > 1 else ""
    try:
        with console.CountDisplay(own, f"images{part}") as display, on_stop(signal.default_int_handler):
            index = job.run(display.show)
    except KeyboardInterrupt as error:
        console.note(f"interrupted; finished shards stay in {job.folder}, and the same command makes the others")
        raise typer.Exit(INTERRUPTED) from error
    if as_json:
        console.print_json({"out": str(job.folder), "index": index})
        return
    console.note(
        f"{job.count} images; the classifier takes {index['rate']:.1%} of {index['tries']} for the class asked for"
    )
    console.out.out(str(job.folder))


def _next_file(run: Path) -> Path:
    number = 1
    while (place := run / f"samples-{number}.safetensors").exists():
        number += 1
    return place
