"""``interpkit invert``: train an inversion of a classifier into a run folder."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from interpkit.cli import console, options, tables
from interpkit.cli.signals import INTERRUPTED, on_stop
from interpkit.errors import UsageError, command, setting
from interpkit.runtime import torchrun

if TYPE_CHECKING:
    from interpkit.api.invert import Job

_METHOD = "The method"
_TRAINING = "The training"


def invert(
    model: options.Model,
    ctx: typer.Context,
    preset: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Preset to apply over the recipe; repeatable, later ones override earlier ones.",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    plugin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE.py|NAME",
            help="Plugin file to load, whose own preset is applied after --preset; repeatable. The name of a preset "
            "works too.",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Recipe in TOML to start from.", rich_help_panel=_METHOD)
    ] = None,
    conditioner: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Conditioner to use instead of the preset's.", rich_help_panel=_METHOD),
    ] = None,
    generator: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Generator to use instead of the preset's.", rich_help_panel=_METHOD),
    ] = None,
    loss: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=WEIGHT]",
            help="Loss term to add or reweight; weight 0 removes it. Repeatable.",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="COMPONENT.OPTION=VALUE",
            help="Set an option of a component; repeatable.",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    inverter: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Inverter to use (default: generator, which trains one). Others may need no preset.",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    generators: Annotated[
        int | None,
        typer.Option(metavar="K", help="Number of generators that share each batch.", rich_help_panel=_METHOD),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="3,5,NAME",
            help="Invert only these classes, by number or name; 0-49 is a range.",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    per_class: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Number of images of each class, for inverters that make them one by one.",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Images for the component that reads some: FILE.npz, FILE.csv, a folder, or torchvision:NAME.",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    classes_per_batch: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Classes in each batch (default: any number). Few classes leave more images of each to compare.",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    warm_start: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Run folder of images that the generator is fitted to before the training.",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Number of training steps (default: the preset's, or 300; more on CUDA for many classes of large "
            "images).",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Images per step (default: the preset's, or 128; fewer for large images on a CPU).",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    micro_batch: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Compute each batch N images at a time: slower, but with less memory and the same result (default: "
            "all; as many large images as fit into memory).",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Random seed (default: 0).", rich_help_panel=_TRAINING)
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Device: auto, cpu, cuda, mps, ...", rich_help_panel=_TRAINING),
    ] = None,
    precision: Annotated[
        Literal["auto", "fp32", "bf16"] | None,
        typer.Option(
            help="Precision of the networks; auto uses bf16 where the hardware supports it.", rich_help_panel=_TRAINING
        ),
    ] = None,
    compile_: Annotated[
        Literal["auto", "on", "off"] | None,
        typer.Option(
            "--compile",
            help="Compile the generator; auto does so for long runs on CUDA.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    checkpoint_every: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Save a checkpoint every N steps, in addition to once a minute.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Run folder to write (default: runs/MODEL-PRESET-N).", show_default=False),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in --out from its checkpoint.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the run in --out.")] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Report where the time of a step goes, also in RUN/profile.json.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and exit.")] = False,
    json_: options.Json = False,
) -> None:
    """Train a generator of the images that a classifier assigns to each class.

    Example: interpkit invert model.safetensors --preset vecmat
    """
    from rich.filesize import decimal

    from interpkit.api import invert
    from interpkit.runs.folder import Run
    from interpkit.runtime.distributed import World
    from interpkit.targets import preprocessing

    world = World.current()
    invert.refuse_both(resume, force)
    resume = resume or torchrun.RESTARTED
    if world.size > 1 and out is None:
        raise UsageError(f"{world.size} processes write one run: name its folder with --out DIR.")
    if resume and out is None:
        raise UsageError("--resume continues the run in a folder: name it by --out DIR.")
    job = invert.prepare(
        model,
        plugin or [],
        presets=preset or [],
        config=config,
        conditioner=conditioner,
        generator=generator,
        inverter=inverter,
        losses=dict(options.weight(text) for text in loss or []),
        options=dict(options.pair("--set", text) for text in set_ or []),
        resume_from=out if resume else None,
        steps=steps,
        batch_size=batch_size,
        micro_batch=micro_batch,
        generators=generators,
        labels=options.classes("--labels", labels),
        per_class=per_class,
        data=data,
        classes_per_batch=classes_per_batch,
        warm_start=warm_start,
        seed=seed,
        device=device,
        precision=precision,
        compile=compile_,
        checkpoint_every=checkpoint_every,
        target_options=ctx.obj,
    )
    if dry_run:
        _print_recipe(job, json_)
        console.note(f"a run takes up to {decimal(job.disk_bytes)} of the disk")
        if job.estimate is not None:
            job.estimate.tell(job.smaller)
        return
    folder = out or _next_folder(model, job.presets or [config.stem if config else inverter or "recipe"])
    if world.broadcast(world.rank == 0 and resume and job.is_done(folder)):
        if world.rank > 0:
            return
        done = Run.open(folder).manifest().steps_done
        console.note(f"{folder} is finished after {done} steps: nothing to do. A larger --steps extends it.")
        _print_result(folder, json_)
        return
    recipe = job.recipe
    console.note_facts(job.target)
    for unstated in preprocessing.notes(job.target):
        console.note(unstated)
    processes = f", {world.size} processes" if world.size > 1 else ""
    moved = "" if job.images_per_step is None else f" of {job.images_per_step}"
    console.note(f"{recipe.steps} steps{moved} on {recipe.device} in {recipe.precision}{processes}")
    console.note(f"into {folder}, which takes up to {decimal(job.disk_bytes)} of the disk")

    def sampled(done: int, total: int) -> None:
        if done:
            display.count(done)
            return
        if job.stop_requested:
            console.note(f"drawing {total} samples and measuring them; press Ctrl-C again to stop without them")
        display.restart(total, "samples")

    typed = [command("invert", str(model)), setting("out", str(folder)), *recipe.to_type_again(), setting("resume")]
    again = f"    {' '.join(typed)}"
    try:
        with console.ProgressDisplay(recipe.steps) as display, on_stop(_stopping(job)):
            inversion = job.run(
                out=folder,
                resume=resume,
                force=force,
                on_step=display.step,
                on_record=display.record,
                on_samples=sampled,
                profile=profile,
            )
    except KeyboardInterrupt as error:
        if not (job.trained or (folder / "checkpoint").exists()):
            raise
        before = "the samples were measured; the training" if job.trained else "the end; the last checkpoint"
        console.note(f"interrupted before {before} is saved in {folder}. Resume with:\n{again}")
        raise typer.Exit(INTERRUPTED) from error
    if inversion.steps_done < recipe.steps:
        console.note(
            f"interrupted after step {inversion.steps_done}; everything so far is saved in {folder}. Resume with:\n"
            f"{again}"
        )
        raise typer.Exit(INTERRUPTED)
    if world.rank > 0:
        return
    _print_result(folder, json_, job.metrics)
    if job.profile is not None and not json_:
        _print_profile(job.profile.to_json())


def _next_folder(model: Path, presets: list[str]) -> Path:
    """Create and return a new folder at once, so that a process that starts at the same moment gets the next one."""
    name = f"{model.stem or model.name}-{'-'.join(presets)}"
    for number in itertools.count(1):
        folder = Path("runs") / f"{name}-{number}"
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError


def _stopping(job: Job) -> Callable[[int, Any], None]:
    """Return a handler of signals: the first ends the training after the current step, the next everything at once."""

    def stop(number: int, frame: Any) -> None:
        if job.stop_requested or job.trained:
            raise KeyboardInterrupt
        job.request_stop()
        console.note(f"{job.after_stop}; press Ctrl-C again to leave now, and --resume continues")

    return stop


def _print_recipe(job: Job, as_json: bool) -> None:
    if as_json:
        console.print_json(job.recipe.model_dump(mode="json", exclude_none=True))
    else:
        console.out.out(job.recipe.to_toml(), highlight=False)


def _print_profile(profile: dict[str, Any]) -> None:
    from rich.table import Table

    from interpkit.runtime.profiler import WARM_UP

    if not profile["phases"]:
        console.note(f"nothing to profile: the first {WARM_UP} steps are left out, and the run had no more.")
        return
    table = Table("of a step", *tables.figures("ms", "share"))
    for phase in profile["phases"]:
        table.add_row(phase["name"], f"{phase['ms']:.2f}", f"{phase['share']:.1%}")
    table.add_row("all", f"{profile['ms_per_step']:.2f}", "100.0%")
    tables.show(table)


def _print_result(folder: Path, as_json: bool, metrics: dict[str, Any] | None = None) -> None:
    from rich.table import Table

    from interpkit.cli.figures import class_titles
    from interpkit.evaluation import warnings
    from interpkit.runs.folder import FILES, Run

    metrics = Run.open(folder).metrics() if metrics is None else metrics
    console.note_left_out(metrics)
    for warning in warnings.warnings(metrics):
        console.warning(warning)
    files = {name: str(folder / name) for name in FILES if (folder / name).exists()}
    if as_json:
        console.print_json({"run": str(folder), "files": files, "metrics": metrics})
        return
    table = Table("class", *tables.figures("samples", "inversion accuracy", "confidence"))
    rows = metrics.get("per_class", [])
    rows = [{**row, "name": title} for row, title in zip(rows, class_titles(rows), strict=True)]
    for row in [*rows, {**metrics, "name": "all"}] if len(rows) <= 20 else [{**metrics, "name": f"all {len(rows)}"}]:
        figures = {"count": "{}", "inversion_accuracy": "{:.1%}", "confidence": "{:.2f}"}
        said = ("-" if row.get(key) is None else form.format(row[key]) for key, form in figures.items())
        table.add_row(row["name"], *said)
    tables.show(table)
    console.out.print(
        "Inversion accuracy is the target's own opinion of the samples: noise that fools it counts as well.",
        highlight=False,
    )
    console.print_worst(metrics)
    console.out.out(f"run: {folder}")
    console.out.out(str(folder / "samples.png" if "samples.png" in files else folder / "samples.safetensors"))
    if "report.html" in files:
        console.out.out(files["report.html"])
