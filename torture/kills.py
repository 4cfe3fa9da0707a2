"""Kill -9 at any moment: a run that is killed, even twice, and then resumed ends as if nothing had happened.

Short runs of a tiny classifier are started with ``interpkit invert``, killed at a moment drawn uniformly over their
life, from before the first file to after the last, and resumed with ``--resume``; three of ten are killed again while
they resume. At the end every file is compared, bit for bit, with those of an undisturbed run, and no partially written
file may be left.

Each process is forked from one that has loaded torch and the plugins but run nothing, which saves seconds per process.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import interpkit
from interpkit.plugins.discovery import installed
from interpkit.report.page import _templates
from torture import keep
from torture.long_run import classifier
from torture.twice import content, differing

KINDS = {
    "vecmat": ["--plugin", "vecmat"],
    "training-like": ["--plugin", "vecmat", "--plugin", "training-like"],
    "two generators": ["--plugin", "vecmat", "--plugin", "robust", "--generators", "2"],
    "pixels": ["--plugin", "pixels"],
}
NARROW = [f"--set=generator.{size}=8" for size in ("width", "min_width", "latent", "hidden")]
TIMES = ("resumed_from", "moves", "created", "timings")
"""The manifest's entries about times and interruptions, which may differ."""
KILLED_AGAIN = 0.3


def arguments(kind: str, model: Path, out: Path, steps: int) -> list[str]:
    """Return the command line that starts a run of this kind, and also resumes it."""
    short = ["--steps", str(steps), "--batch-size", "12", "--checkpoint-every", "3", "--device", "cpu", "--seed", "1"]
    narrow = [] if kind == "pixels" else NARROW
    return ["invert", str(model), *KINDS[kind], *narrow, *short, "--out", str(out), "--resume"]


def load_all() -> None:
    """Import everything that a command needs, so that no fork has to, and compute in one thread."""
    torch.set_num_threads(1)
    for name in ("torch._dynamo", "PIL.ImageDraw", "PIL.ImageFont", "PIL.PngImagePlugin", "captum.attr", "scipy.stats"):
        importlib.import_module(name)
    for module in pkgutil.walk_packages(interpkit.__path__, "interpkit."):
        if module.name.startswith(("interpkit.api.", "interpkit.cli.", "interpkit.report.", "interpkit.runs.")):
            importlib.import_module(module.name)
    for kind in ("loss", "generator", "conditioner", "inverter", "preset", "metric", "attribution", "loader"):
        for name in installed().registry.names(kind):
            installed().registry.get(kind, name)
    for page in ("report.html", "compare.html", "concepts.html", "audit.html", "counterfactual.html"):
        _templates().get_template(page)


def command(
    words: Sequence[str], log: Path, seconds: float | None = None, before: Callable[[], object] | None = None
) -> int:
    """Run interpkit in its own process, and kill it after ``seconds``.

    Args:
        words: the words of the command line.
        log: file to which the output is appended.
        seconds: when to kill the process; never if None.
        before: called in the process before anything else.

    Returns:
        The exit status; -9 if the process was killed.
    """
    child = os.fork()
    if child == 0:
        try:
            with log.open("ab") as file:
                for stream in (1, 2):
                    os.dup2(file.fileno(), stream)
            from interpkit.cli import main

            sys.argv = ["interpkit", *words]
            if before is not None:
                before()
            main()
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
            status = 99
        os._exit(status)
    timer = None
    if seconds is not None:
        timer = threading.Timer(seconds, os.kill, (child, signal.SIGKILL))
        timer.start()
    # Wait without reaping the child, so that a late timer can kill only this child.
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    if timer is not None:
        timer.cancel()
        timer.join()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def differences(whole: Path, run: Path) -> list[str]:
    """Return the names of the files that differ between a run and the undisturbed one."""
    names = [name for name in differing(whole, run) if name != "manifest.json"]
    one, other = (
        {k: v for k, v in content(run / "manifest.json")[0].items() if k not in TIMES} for run in (whole, run)
    )
    names += ["manifest.json"] if one != other else []
    names += [] if (run / "report.html").exists() else ["report.html"]
    states = [torch.load(folder / "checkpoint", weights_only=True) | {"seconds": 0} for folder in (whole, run)]
    return names + ([] if same(*states) else ["checkpoint"])


def same(one: Any, other: Any) -> bool:
    """Return whether two values of a checkpoint are equal, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def kill_and_resume(
    whole: Path, run: Path, kind: str, model: Path, steps: int, life: float, drawn: random.Random
) -> tuple[str, list[str]]:
    """Kill a run at a random moment, resume it to its end, and compare it with an undisturbed one.

    Args:
        whole: the undisturbed run.
        run: folder of the new run.
        kind: the kind of run.
        model: the classifier.
        steps: the run's number of steps.
        life: how long an undisturbed run takes, in seconds.
        drawn: random source of the moments.

    Returns:
        what there was when it was killed; what differs at the end.
    """
    log = run.with_suffix(".log")
    words = arguments(kind, model, run, steps)
    status = command(words, log, drawn.uniform(0, 1.05 * life))
    there = "a finished run"
    if status != 0:
        files = {path.name for path in run.iterdir() if not path.name.startswith(".")} if run.exists() else set()
        there = "nothing" if not files else "a checkpoint" if "checkpoint" in files else "no checkpoint yet"
        if "samples.safetensors" in files:
            there = "samples"
    if drawn.random() < KILLED_AGAIN:
        command(words, log, drawn.uniform(0, 1.05 * life))
    status = command(words, log)
    if status != 0:
        return there, [f"exit {status}: {log.read_text(errors='replace')[-400:]}"]
    return there, differences(whole, run)


def kills(folder: Path, count: int, steps: int, seed: int, kinds: Sequence[str] = tuple(KINDS)) -> dict[str, Any]:
    """Kill ``count`` runs, the kinds taking turns; return the result."""
    load_all()
    model, drawn = classifier(folder), random.Random(seed)
    lives = {}
    for kind in kinds:
        whole = folder / f"whole-{kind}"
        begun = time.monotonic()
        status = command(arguments(kind, model, whole, steps), folder / "whole.log")
        lives[kind] = time.monotonic() - begun
        if status != 0:
            raise SystemExit(f"{kind}: exit {status}: {(folder / 'whole.log').read_text()}")
    states: Counter[str] = Counter()
    faults = []
    for number in range(count):
        kind = kinds[number % len(kinds)]
        run = folder / f"run-{number}"
        state, different = kill_and_resume(folder / f"whole-{kind}", run, kind, model, steps, lives[kind], drawn)
        states[state] += 1
        if different:
            faults.append({"number": number, "kind": kind, "killed with": state, "differs": different})
        else:
            shutil.rmtree(run)
    return {"killed": count, "the same": count - len(faults), "killed with": dict(states), "faults": faults}


def main(words: Sequence[str] = ()) -> None:
    """Kill the runs and save the result."""
    parser = argparse.ArgumentParser(prog="python -m torture.kills", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=200, help="Runs to kill (default: 200).")
    parser.add_argument("--steps", type=int, default=30, help="Steps of each run (default: 30).")
    parser.add_argument("--seed", type=int, default=0, help="Random seed of the moments (default: 0).")
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        result = kills(Path(folder), options.count, options.steps, options.seed)
    line = f"python -m torture.kills --count {options.count} --steps {options.steps} --seed {options.seed}"
    keep("kills", {"command": line, "kinds": list(KINDS), **result})
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
