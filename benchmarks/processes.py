"""Two processes that share a batch, compared with one: how much faster they are, and how exactly they agree.

Each process has one thread. For weak scaling, the global batch is twice that of one process. For exactness, the global
batch is the same and dropout is off, in fp32 and fp64. In both cases latents are drawn globally, and the batch
statistics are those of the global batch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

import interpkit
from benchmarks.measuring import Figure, machine, stepwise
from interpkit.api import invert
from interpkit.runtime.distributed import processes

MODEL = Path(__file__).parent.parent / "examples" / "models" / "mnist.safetensors"
EXACT = {"precision": "fp32", "options": {"upconv.dropout": 0.0}}
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def measure(steps: int, batch: int, exact: str, generators: int) -> dict[str, list[float]]:
    """Take steps in this process, which may be one of several; return the seconds and the loss of each.

    If ``exact`` names a type of `DTYPES`, everything is computed in it.
    """
    target = interpkit.load_target(MODEL)
    settings = {"steps": steps, "batch_size": batch, "generators": generators, "device": "cpu"}
    job = invert.prepare(target, ["vecmat"], **settings, **(EXACT if exact else {}))
    if exact:  # only now, as `prepare` accepts nothing but float32
        torch.set_default_dtype(DTYPES[exact])
        target.to(DTYPES[exact])
    seconds, begun = [], time.perf_counter()

    def after_step(step: int, loss: float) -> None:
        nonlocal begun
        seconds.append(time.perf_counter() - begun)
        losses.append(loss)
        begun = time.perf_counter()

    losses: list[float] = []
    stepwise(job, after_step)
    return {"seconds": seconds, "losses": losses}


def start(count: int, steps: int, batch: int, exact: str = "", threads: int = 1, generators: int = 1) -> Any:
    """Run ``count`` processes; return the measurements of the first."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        words = ["-m", "benchmarks.processes", "--part", str(out), str(steps), str(batch), exact, str(generators)]
        if count > 1:
            words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), *words]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        process = subprocess.run([sys.executable, *words], env=environment, stderr=subprocess.PIPE, text=True)
        if process.returncode:
            raise SystemExit(process.stderr)
        return json.loads(out.read_text())


def apart(some: list[float], others: list[float]) -> float:
    """Return the largest relative difference between two sequences of losses."""
    return max(abs(a - b) / abs(a) for a, b in zip(some, others, strict=True))


def figures(steps: int = 30, pairs: int = 3) -> Iterator[Figure]:
    """Yield the figures."""
    efficiencies, shares, own, slower, times = [], [], [], [], []

    def step(count: int, generators: int = 1) -> float:
        return statistics.median(start(count, steps, 128 * count, generators=generators)["seconds"][5:])

    for _ in range(pairs):
        one, two, apiece = step(1), step(2), step(2, 2)
        with ThreadPoolExecutor() as both:
            independent = [both.submit(start, 1, steps, 128) for _ in range(2)]
        seconds = [each.result()["seconds"][5:] for each in independent]
        beside = statistics.mean(statistics.median(each) for each in seconds)
        slower.append(one / statistics.median(max(step) for step in zip(*seconds, strict=True)))
        efficiencies.append(one / two)
        shares.append(beside / two)
        own.append(one / apiece)
        times.append(", ".join(f"{1e3 * each:.0f}" for each in (one, two, apiece, beside)))
    names = "1 process, 2 that share a batch, 2 with a generator each, 2 independent ones"
    detail = f"ms per step of {names}: {'; '.join(times)}"
    yield Figure.of("weak scaling efficiency of 2 processes, one thread each, over 1", efficiencies, ">= 0.9", detail)
    what = "the same, of 2 processes that share a batch over 2 independent ones"
    yield Figure.of(what, shares)
    what = "the same, of 2 independent ones that wait for each other once a step: the most that can be had here"
    yield Figure.of(what, slower)
    yield Figure.of("weak scaling efficiency with a generator per process (--generators 2)", own, ">= 0.95")
    for exact in DTYPES:
        one, two, threads = (start(count, 10, 128, exact, n)["losses"] for count, n in ((1, 1), (2, 1), (1, 2)))
        what = f"largest relative difference of the loss of 2 processes over 10 steps, {exact}"
        detail = f"{apart(one, threads):.1e} between one and two threads of one process"
        yield Figure(what, apart(one, two), "<= 0.0001", detail=detail)


def _part(out: str, steps: str, batch: str, exact: str, generators: str) -> None:
    with processes() as world:
        result = measure(int(steps), int(batch), exact, int(generators))
        if world.rank == 0:
            Path(out).write_text(json.dumps(result))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        _part(*arguments.part)
    else:
        print(machine(torch.device("cpu")))
        for figure in figures():
            print(figure.row(), flush=True)
