"""`finish` turns an inversion into a complete run folder: weights, history, samples, metrics and the report."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

from torch import nn

from interpkit.evaluation import scoring
from interpkit.evaluation.metrics import every_run
from interpkit.interfaces.inversions import Inversion
from interpkit.inversion.results import GeneratorInversion, ImageInversion
from interpkit.io.atomic import to_json, write_atomically, write_tensors
from interpkit.io.images import save_grid
from interpkit.report import run as report
from interpkit.runs.folder import Run, write_samples
from interpkit.runs.manifest import SCHEMA

log = logging.getLogger("interpkit")


def save(inversion: Inversion, folder: Path, *, force: bool = False) -> Path:
    """Write a new run folder of an inversion; see `Inversion.save`."""
    with Run(folder).held():
        return finish(Run.create(folder, force=force), inversion)


def finish(run: Run, inversion: Inversion) -> Path:
    """Write what comes of a run: weights, history, samples, metrics, the grid and the report.

    Returns:
        the folder.
    """
    recipe, target = inversion.recipe, inversion.target
    begun = time.monotonic()
    if not (run / "manifest.json").exists():
        run.begin(recipe, target, [])
    if isinstance(inversion, GeneratorInversion):
        write_weights(run, inversion)
    rows = [json.dumps(record.to_row()) + "\n" for record in inversion.history]
    write_atomically(run / "history.jsonl", "".join(rows))
    samples = scoring.draw_samples(inversion, **scoring.sample_size(inversion))
    if isinstance(inversion, ImageInversion) and len(samples.labels) < len(inversion.images):
        log.warning("the run keeps %d of the %d images", len(samples.labels), len(inversion.images))
    write_samples(samples, run / "samples.safetensors")
    if samples.images.dim() == 4:
        save_grid(samples.images, samples.labels, target.class_names, run / "samples.png")
    metrics = every_run(target, samples, seed=recipe.seed, device=inversion.device)
    write_atomically(run / "metrics.json", to_json(metrics))
    done = inversion.steps_done >= recipe.steps
    last = inversion.history[-1].seconds if inversion.history else 0.0
    run.note(
        steps_done=inversion.steps_done,
        timings={
            "training_seconds": round(last, 3),
            "sampling_seconds": round(time.monotonic() - begun, 3),
        },
    )
    try:
        report.render_report(run, inversion, samples)
    except Exception as error:  # the run is finished, and a fault here must not lose it
        log.warning("report.html could not be written: %r. Try again by interpkit report %s", error, run.folder)
    run.note(status="finished" if done else "interrupted")  # all of it is there, or --resume goes on
    return run.folder


def write_weights(run: Run, inversion: GeneratorInversion) -> None:
    """Write generator.safetensors: the weights of the generator and the conditioner."""
    parts: dict[str, nn.Module] = {"generator": inversion.generator, "conditioner": inversion.conditioner}
    weights = {
        f"{prefix}.{name}": tensor.detach().cpu().contiguous().clone()
        for prefix, part in parts.items()
        for name, tensor in part.state_dict().items()
    }
    metadata = {
        "format": "pt",
        "interpkit.schema": str(SCHEMA),
        "interpkit.kind": "generator",
        "interpkit.recipe": inversion.recipe.model_dump_json(exclude_none=True),
    }
    write_tensors(run / "generator.safetensors", weights, metadata)
