"""``interpkit sample``: images from a run."""

from __future__ import annotations

import itertools
import os
import secrets
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from interpkit.cli import console, options
from interpkit.cli.signals import INTERRUPTED, on_stop
from interpkit.errors import UsageError, percent

if TYPE_CHECKING:
    from interpkit.interfaces.samples import Samples
    from interpkit.runs.shards import ShardJob

Format = Literal["safetensors", "webdataset", "parquet"]
_SCALE = "Large numbers of images, as shards"


def sample(
    run: options.RunFolder,
    per_class: Annotated[int | None, typer.Option(min=1, metavar="N", help="Images per class (default: 10).")] = None,
    count: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Total number of images, spread evenly over the classes.")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(metavar="3,5,NAME", help="Draw only these classes; 0-49 is a range."),
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Random seed (default: the run's).")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.safetensors|FOLDER", help="File or folder to write (default: samples-N.safetensors in RUN)."
        ),
    ] = None,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a grid of the images.")] = None,
    shard_size: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Write shards of N images each into --out FOLDER.", rich_help_panel=_SCALE
        ),
    ] = None,
    accepted: Annotated[
        bool,
        typer.Option(
            "--accepted",
            help="Keep only images that the classifier assigns to the requested class.",
            rich_help_panel=_SCALE,
        ),
    ] = False,
    format_: Annotated[
        Format | None,
        typer.Option("--format", help="Format of the shards (default: safetensors).", rich_help_panel=_SCALE),
    ] = None,
    device: options.Device = "cpu",
    model: Annotated[Path | None, typer.Option(metavar="FILE", help="Path of the classifier, if it has moved.")] = None,
    arch: options.Arch = None,
    trust: options.Trust = False,
    plugin: options.PluginFile = None,
    json_: options.Json = False,
) -> None:
    """Draw images from a run, with the classifier's predictions.

    A FOLDER gets one PNG per image (.npy if it has other than one or three channels), in one folder per class. The
    same arguments give the same images. --shard-size writes any number of images and holds only one shard in memory;
    the same command resumes after an interruption.
    Example: interpkit sample runs/mnist-vecmat-1 --count 1000000 --shard-size 10000 --out samples
    """
    from interpkit.api.outputs import result_file
    from interpkit.evaluation import scoring
    from interpkit.io import images
    from interpkit.io.picture_files import IMAGE_ENDINGS
    from interpkit.runs import folder, shards
    from interpkit.runtime.devices import choose_device
    from interpkit.runtime.distributed import World

    if per_class is not None and count is not None:
        raise UsageError("--per-class and --count exclude each other: give one of them.")
    if shard_size is None and (accepted or format_ is not None or World.current().size > 1):
        raise UsageError("--accepted, --format and several processes need shards: add --shard-size 10000.")
    if shard_size is not None and (count is None or out is None or png is not None):
        raise UsageError("--shard-size needs --count N and --out FOLDER, and excludes --per-class and --png.")
    if png is not None and png.suffix.lower() in IMAGE_ENDINGS[1:]:
        raise UsageError(f"--png {png}: it is a PNG, so name it {png.with_suffix('.png').name}.")
    for place in filter(None, (out, png)):
        folder.refuse_run_files(place)
    if out is not None and shard_size is None and not out.suffix and os.path.isdir(out) and os.listdir(out):
        raise UsageError(f"{out} is not empty, and its pictures would stand beside the new ones: name another folder.")
    file = result_file(out) if out is not None and out.suffix == ".safetensors" else None
    drawing = None if png is None else result_file(png)
    options.load_plugin_files(plugin)
    inversion = folder.Run.open(run).load(model=model, arch=arch, trust=trust).to(choose_device(device))
    if shard_size is not None and count is not None and out is not None:
        job = shards.ShardJob(
            inversion,
            out,
            count=count,
            shard_size=shard_size,
            accepted=accepted,
            labels=options.classes("--labels", labels),
            seed=seed,
            format=format_ or "safetensors",
        )
        _write_shards(job, json_)
        return
    samples = scoring.draw_samples(
        inversion,
        per_class=per_class,
        count=count,
        labels=options.classes("--labels", labels),
        seed=seed,
    )
    names = inversion.target.class_names
    if samples.images.dim() == 2 and (png is not None or (out is not None and not out.suffix)):
        raise UsageError("vectors cannot be drawn as pictures: omit --png, and name a .safetensors file with --out.")
    if out is None:
        out = _write_next(samples, run)
    elif out.suffix == ".safetensors":
        folder.write_samples(samples, file or out)
    elif out.suffix:
        raise UsageError(f"--out {out}: name a .safetensors file or a folder.")
    else:
        images.save_images(samples.images, samples.labels, names, out)
        channels = samples.images.shape[1]
        if not images.is_picture(tuple(samples.images.shape[1:])):
            console.note(f"images of {channels} channels are written as .npy, (C, H, W) uint8: no PNG holds them.")
    if drawing is not None:
        images.save_grid(samples.images, samples.labels, names, drawing)
    metrics = scoring.measure(samples, names)
    if json_:
        console.print_json({"out": str(out), "png": None if png is None else str(png), "metrics": metrics})
        return
    console.note(f"{len(samples.labels)} images, {percent(metrics['inversion_accuracy'])} in the requested class")
    console.out.out(str(out))
    if png is not None:
        console.out.out(str(png))


def _write_shards(job: ShardJob, as_json: bool) -> None:
    from rich.filesize import decimal

    there = f", of which {job.done} are there" if job.done else ""
    console.note(
        f"{job.count} images in {job.shards} shard{'s' * (job.shards > 1)}{there}; "
        f"at most about {decimal(job.bytes_needed)} to write"
    )
    own = sum(map(job.images_in, job.todo))
    part = f" by process 0 of {job.world.size}" if job.world.size > 1 else ""
    try:
        with console.ProgressDisplay(own, f"images{part}") as display, on_stop(signal.default_int_handler):
            index = job.run(display.count)
    except KeyboardInterrupt as error:
        console.note(f"interrupted; the finished shards stay in {job.folder}, and the same command writes the others")
        raise typer.Exit(INTERRUPTED) from error
    if as_json:
        console.print_json({"out": str(job.folder), "index": index})
        return
    rate = percent(index["rate"])
    console.note(f"{job.count} images; the classifier assigns {rate} of {index['tries']} to the requested class")
    console.out.out(str(job.folder))


def _write_next(samples: Samples, run: Path) -> Path:
    """Write samples to the next free name, which is taken at once: another process may be about to do the same."""
    from interpkit.runs import folder

    ready = run / f".samples-{secrets.token_hex(4)}"
    try:
        folder.write_samples(samples, ready)
        for number in itertools.count(1):
            place = run / f"samples-{number}.safetensors"
            with suppress(FileExistsError):
                _rename_if_free(ready, place)
                break
    finally:
        ready.unlink(missing_ok=True)
    return place


def _rename_if_free(file: Path, place: Path) -> None:
    """Rename a file; raise a `FileExistsError` if there is one of the new name, also if it appears at that moment."""
    try:
        os.link(file, place)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if place.exists():
            raise FileExistsError(place) from None
        file.rename(place)
