"""`finish` turns an inversion into a complete run folder: its files, history, samples, metrics and the report."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from interpkit.errors import RunError, command, listed, setting
from interpkit.evaluation import scoring
from interpkit.evaluation.metrics import every_run
from interpkit.evaluation.statistics import still_rising
from interpkit.interfaces.inversions import Inversion
from interpkit.io.atomic import to_json, write_atomically
from interpkit.io.images import save_grid
from interpkit.report import run as report
from interpkit.runs.folder import Run, write_samples

log = logging.getLogger("interpkit")


def save(inversion: Inversion, folder: Path, *, force: bool = False) -> Path:
    """Write a new run folder of an inversion; see `Inversion.save`."""
    with Run(folder).locked():
        run = Run.create(folder, force=force)
        run.begin(inversion.recipe, inversion.target, **inversion.noted)
        finish(run, inversion)
    return folder


def finish(run: Run, inversion: Inversion, on_samples: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Write the results of a run: the inversion's files, history, samples, metrics, the grid and the report.

    What is written stays if the user interrupts it; resuming the run completes the rest.

    Args:
        run: the folder.
        inversion: the result to write.
        on_samples: called now and then with the number of samples that the target has classified, and their total.

    Returns:
        the content of metrics.json.

    Raises:
        RunError: every class is empty.
    """
    recipe, target = inversion.recipe, inversion.target
    started = time.monotonic()
    empty = {"empty": _empty(inversion)} if inversion.empty or run.manifest().empty else {}
    run.write_files(inversion, steps_done=inversion.steps_done, **empty)
    rows = [json.dumps(record.to_row()) + "\n" for record in inversion.history]
    write_atomically(run / "history.jsonl", "".join(rows))
    for reason in dict.fromkeys(inversion.empty.values()):
        named = [f"{k} ({target.class_names[k]})" for k, why in inversion.empty.items() if why == reason]
        what = f"class {named[0]} is" if len(named) == 1 else f"classes {listed(named)} are"
        log.warning("%s empty: %s", what, reason)
    if not inversion.classes:
        raise RunError(f"{recipe.inverter.name} found no image of any class; {run.folder} says why of each.")
    done = inversion.steps_done >= recipe.steps
    rise = still_rising(inversion.history, recipe.batch_size) if done else None
    if rise is not None:
        log.warning(
            "the inversion accuracy was still rising when the training ended, from %.0f %% to %.0f %%: try %s",
            *(100 * share for share in rise),
            setting("steps", 2 * recipe.steps),
        )
    try:
        metrics = _measure(run, inversion, started, on_samples)
    except KeyboardInterrupt:
        run.note(status="interrupted")
        raise
    run.note(status="finished" if done else "interrupted")  # all of it is there, or the run can be resumed
    return metrics


def _measure(
    run: Run, inversion: Inversion, started: float, on_samples: Callable[[int, int], None] | None
) -> dict[str, Any]:
    """Write what is drawn from an inversion: samples, metrics and the report; return the content of metrics.json."""
    target, total = inversion.target, scoring.size_for_run(inversion)
    on_done = None
    if on_samples is not None:
        on_samples(0, total)
        on_done = lambda done: on_samples(done, total)  # noqa: E731
    samples = scoring.judge(inversion, scoring.draw_for_run(inversion), on_done)
    counts = [inversion.available(label) for label in inversion.classes]
    if None not in counts and len(samples.labels) < (total := sum(count or 0 for count in counts)):
        log.warning("the run keeps %d of the %d images", len(samples.labels), total)
    write_samples(samples, run / "samples.safetensors")
    if samples.images.dim() == 4:
        save_grid(samples.images, samples.labels, target.class_names, run / "samples.png")
    most = scoring.at_once(inversion.recipe, target)
    metrics = every_run(target, samples, seed=inversion.recipe.seed, device=inversion.device, most=most)
    if inversion.empty:
        metrics["empty"] = _empty(inversion)
    write_atomically(run / "metrics.json", to_json(metrics))
    last = inversion.history[-1].seconds if inversion.history else 0.0
    seconds = {"training_seconds": last, "sampling_seconds": time.monotonic() - started}
    run.note(timings={name: round(value, 3) for name, value in seconds.items()})
    try:
        report.render_report(run, inversion, samples, metrics)
    except Exception as error:  # the run is finished, and a fault here must not lose it
        log.warning("report.html could not be written: %r. Try again: %s", error, command("report", str(run.folder)))
    return metrics


def _empty(inversion: Inversion) -> dict[str, str]:
    return {str(label): reason for label, reason in sorted(inversion.empty.items())}
