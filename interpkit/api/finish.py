"""`finish` turns an inversion into a complete run folder: its files, history, samples, metrics and the report."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

from interpkit.errors import RunError, command
from interpkit.evaluation import scoring
from interpkit.evaluation.metrics import every_run
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
        run.begin(inversion.recipe, inversion.target, [])
        finish(run, inversion)
    return folder


def finish(run: Run, inversion: Inversion) -> dict[str, Any]:
    """Write the results of a run: the inversion's files, history, samples, metrics, the grid and the report.

    Returns:
        the content of metrics.json.

    Raises:
        RunError: every class is empty.
    """
    recipe, target = inversion.recipe, inversion.target
    started = time.monotonic()
    run.write_files(inversion)
    rows = [json.dumps(record.to_row()) + "\n" for record in inversion.history]
    write_atomically(run / "history.jsonl", "".join(rows))
    empty = {str(label): reason for label, reason in sorted(inversion.empty.items())}
    if empty or run.manifest().empty:
        run.note(empty=empty)
    for label, reason in inversion.empty.items():
        log.warning("class %d (%s) is empty: %s", label, target.class_names[label], reason)
    if not inversion.classes:
        raise RunError(f"{recipe.inverter.name} found no image of any class; {run.folder} says why of each.")
    samples = scoring.draw_samples(inversion, **scoring.sample_size(inversion))
    counts = [inversion.available(label) for label in inversion.classes]
    if None not in counts and len(samples.labels) < (total := sum(count or 0 for count in counts)):
        log.warning("the run keeps %d of the %d images", len(samples.labels), total)
    write_samples(samples, run / "samples.safetensors")
    if samples.images.dim() == 4:
        save_grid(samples.images, samples.labels, target.class_names, run / "samples.png")
    metrics = every_run(target, samples, seed=recipe.seed, device=inversion.device)
    if empty:
        metrics["empty"] = empty
    write_atomically(run / "metrics.json", to_json(metrics))
    done = inversion.steps_done >= recipe.steps
    last = inversion.history[-1].seconds if inversion.history else 0.0
    run.note(
        steps_done=inversion.steps_done,
        timings={
            "training_seconds": round(last, 3),
            "sampling_seconds": round(time.monotonic() - started, 3),
        },
    )
    try:
        report.render_report(run, inversion, samples, metrics)
    except Exception as error:  # the run is finished, and a fault here must not lose it
        log.warning("report.html could not be written: %r. Try again: %s", error, command("report", str(run.folder)))
    run.note(status="finished" if done else "interrupted")  # all of it is there, or the run can be resumed
    return metrics
