"""Long runs: memory, history and report do not grow without bound, and a run survives the loss of its terminal.

A tiny classifier is inverted over 20,000 steps with the preset `vecmat`, with a run folder, checkpoints and a progress
line, while its memory is measured. A recorder receives a million steps. And short runs lose the reader of their output,
a pipe or a terminal.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import pty
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import interpkit
from interpkit.api.invert import prepare
from interpkit.cli import console
from interpkit.report.curves import curves
from interpkit.runs.folder import Run
from interpkit.runs.recorder import RunRecorder
from torture import keep

SHAPE = (1, 12, 12)
CNN = {"input_shape": list(SHAPE), "num_classes": 3, "widths": [4], "hidden": 8}
GENERATOR = {"upconv.width": 8, "upconv.min_width": 4, "upconv.latent": 8, "upconv.hidden": 8}
FROM = 500
"""The step from which memory must stay constant: by then everything that is allocated once has been."""
PAGE = os.sysconf("SC_PAGE_SIZE")


def classifier(folder: Path) -> Path:
    """Write a tiny classifier with random weights."""
    torch.manual_seed(0)
    module = interpkit.build_architecture("interpkit:cnn", CNN)
    path = folder / "tiny.safetensors"
    return interpkit.save_target(module, path, architecture="interpkit:cnn", arch_args=CNN, input_shape=SHAPE)


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def counted() -> dict[str, int]:
    """Return how many objects and tensors Python holds."""
    gc.collect()
    objects = gc.get_objects()
    return {"objects": len(objects), "tensors": sum(issubclass(type(thing), torch.Tensor) for thing in objects)}


def long_run(folder: Path, steps: int, every: int, count: Callable[[], Any] = resident) -> dict[int, Any]:
    """Invert over many steps into ``folder / "run"``; return ``count()`` for every ``every`` steps."""
    counts: dict[int, Any] = {}
    job = prepare(
        classifier(folder), ["vecmat"], steps=steps, batch_size=16, device="cpu", precision="fp32", options=GENERATOR
    )

    with console.ProgressDisplay(steps) as display:

        def on_step(step: int) -> None:
            display.step(step)
            if step % every == 0:
                counts[step] = count()

        job.run(out=folder / "run", on_step=on_step, on_record=display.record)
    taken = sum(path.stat().st_size for path in (folder / "run").iterdir() if path.is_file())
    assert taken <= job.disk_bytes, f"the run used {taken} bytes, but announced at most {job.disk_bytes}"
    return counts


def recorded(folder: Path, steps: int, fed: int | None = None) -> dict[str, int]:
    """Pass ``steps`` steps (or the first ``fed``) to a recorder; return the size of its history and of a curve."""
    target = interpkit.load_target(classifier(folder))
    job = prepare(target, ["vecmat"], steps=steps, device="cpu", precision="fp32")
    run = Run(folder / "recorded")
    run.folder.mkdir()
    run.begin(job.recipe, target, presets=job.presets)
    recorder = RunRecorder(run, job.recipe, class_names=target.class_names)
    recorder.start()
    images, logits, labels = torch.rand(4, *SHAPE), torch.rand(4, 3), torch.arange(4) % 3
    terms = {name: torch.tensor(0.123456) for name in ("kl", "ce", "cosine", "orthogonality")}
    for step in range(1, (fed or steps) + 1):
        recorder.step(step, terms["kl"], terms, images, logits, labels)
    return {
        "records": len(recorder.history),
        "history.jsonl bytes": (run / "history.jsonl").stat().st_size,
        "points of a curve": max(curve.points.count(",") for curve in curves(recorder.history)),
    }


def without_a_reader(folder: Path, terminal: bool, steps: int) -> str:
    """Close the terminal or pipe of a run after its first output; return the run's final status."""
    if terminal:
        reader, writer = pty.openpty()
    else:
        reader, writer = os.pipe()
    flags = [word for name, value in GENERATOR.items() for word in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "interpkit", "invert", str(classifier(folder)), "--plugin", "vecmat", *flags]
    command += ["--out", str(folder / "run"), "--steps", str(steps), "--batch-size", "16", "--device", "cpu"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=writer, stderr=writer)
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    process.wait()
    return Run.open(folder / "run").manifest().status


def main() -> None:
    """Measure, and save the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000, help="Steps of the long run (default: 20,000).")
    parser.add_argument("--recorded", type=int, default=1_000_000, help="Steps to record (default: 1,000,000).")
    steps, many = (arguments := parser.parse_args()).steps, arguments.recorded
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder, begun = Path(name), time.monotonic()
        memory = long_run(folder, steps, 10)
        seconds = time.monotonic() - begun
        early = statistics.median(size for step, size in memory.items() if abs(step - FROM) <= 50)
        late = statistics.median(size for step, size in memory.items() if step > steps - 100)
        run = folder / "run"
        result: dict[str, Any] = {
            "command": f"python -m torture.long_run --steps {steps} --recorded {many}",
            "torch": torch.__version__,
            "steps": steps,
            "seconds": round(seconds),
            "MB at step 500": round(early / 1e6, 1),
            "MB at the end": round(late / 1e6, 1),
            "memory at the end over memory at step 500": round(late / early, 4),
            "most over memory at step 500": round(max(memory.values()) / early, 4),
            "history.jsonl bytes": (run / "history.jsonl").stat().st_size,
            "report.html bytes": (run / "report.html").stat().st_size,
            f"{many:,} steps": recorded(folder, many),
        }
    for terminal, what in ((False, "pipe"), (True, "terminal")):
        with tempfile.TemporaryDirectory() as name:
            result[f"run whose {what} is gone"] = without_a_reader(Path(name), terminal, 300)
    keep("long_run", result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
