"""How much the result depends on threads, precision, micro-batches, processes and folded batch norms.

A shipped classifier is inverted with the preset `vecmat`, in fp32 and one thread, and again with one setting changed.
We compare the losses during the runs, then 1,000 samples and the inversion accuracy. A run with another seed, which
nobody expects to give the same result, shows how large a difference is insignificant.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from interpkit.runs.folder import Run
from torture import keep

MODEL = Path(__file__).parents[1] / "examples" / "models" / "mnist_bn.safetensors"
BATCH = 64
FLAGS = ["--plugin", "vecmat", "--device", "cpu", "--batch-size", str(BATCH)]
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
UNFOLDED = """
from interpkit import cli
from interpkit.inversion import objective
objective.fuse = lambda target, layers=(): (target, 0)
cli.main()
"""
CHANGES: dict[str, dict[str, Any]] = {
    "2 threads": {"threads": 2},
    "2 processes": {"start": [*TWO, "-m", "interpkit"]},
    "batch norm not folded": {"start": ["-c", UNFOLDED]},
    f"--micro-batch {BATCH // 2}": {"flags": ["--micro-batch", str(BATCH // 2)]},
    "--precision bf16": {"flags": ["--precision", "bf16"]},
    "--seed 1": {"flags": ["--seed", "1"]},
}


def invert(
    folder: Path,
    steps: int,
    *,
    threads: int = 1,
    start: Sequence[str] = ("-m", "interpkit"),
    flags: Sequence[str] = (),
) -> Run:
    """Make a run in one or more fresh processes."""
    command = [sys.executable, *start, "invert", str(MODEL), *FLAGS, "--steps", str(steps), "--out", str(folder)]
    command += flags if "--precision" in flags else ["--precision", "fp32", *flags]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, check=False, **quiet)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{process.stderr}")
    return Run.open(folder)


def difference(one: Run, other: Run, at: Sequence[int]) -> dict[str, Any]:
    """Return how much two runs differ: the relative difference of the losses at some steps, and of the samples."""
    losses, images = [], []
    for run in (one, other):
        inversion = run.load()
        losses.append({record.step: record.loss for record in inversion.history})
        images.append(inversion.sample(per_class=100)[0])
    off = (images[0] - images[1]).abs()
    return {
        "relative difference of the loss": {step: abs(losses[0][step] / losses[1][step] - 1) for step in at},
        "of the samples": {"largest": off.max().item(), "mean": off.mean().item()},
        "inversion accuracy": [run.metrics()["inversion_accuracy"] for run in (one, other)],
    }


def main() -> None:
    """Make the runs, print one line for each, and save the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=100, help="Steps of each run (default: 100).")
    steps = parser.parse_args().steps
    at = sorted({min(step, steps) for step in (1, 10, 100)})
    torch.set_num_threads(1)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        first = invert(Path(name, "first"), steps)
        for what, change in CHANGES.items():
            entry = result[what] = difference(invert(Path(name, what), steps, **change), first, at)
            losses = ", ".join(f"{off:.1e} at {step}" for step, off in entry["relative difference of the loss"].items())
            largest, mean = entry["of the samples"].values()
            here, there = entry["inversion accuracy"]
            print(
                f"{what}: the loss differs by {losses}; samples by at most {largest:.3f}, {mean:.4f} on average;",
                end=" ",
            )
            print(f"inversion accuracy is {here:.1%} instead of {there:.1%}", flush=True)
        facts = first.manifest()
    kept = {"cpu": facts.machine["cpu"], "torch": facts.versions["torch"], "batch": BATCH, "steps": steps}
    keep("differences", {"command": f"python -m torture.differences --steps {steps}", **kept, "changed": result})


if __name__ == "__main__":
    main()
