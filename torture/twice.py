"""The same result twice: in fresh processes, every kind of run writes the same files, bit for bit.

The kinds are every installed preset, every generator and conditioner, all losses at once, several generators, and
micro-batches. Two processes make a run of each kind; the second one in reverse order, in another folder and with
another hash seed of Python. The files of the two run folders are compared byte by byte, JSON files without the times in
them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import interpkit
from interpkit.plugins.discovery import installed
from torture import keep

MODEL = Path(__file__).parents[1] / "examples" / "models" / "mnist_bn.safetensors"
NARROW = ("width", "min_width", "latent", "hidden")
ELSEWHERE = ("alignment", "audit", "autoinverse", "boundary", "cnf", "hypinv", "min")
"""Presets that need data, a binarized network or a known boundary, whose own tests compare a resumed run; and a short
form of another preset."""
FEW = {"preset constrained": {"constrained.per_class": 1}}
"""Options of kinds that would take minutes for each image."""
CLOCK = ("seconds", "created", "timings")


def kinds() -> dict[str, dict[str, Any]]:
    """Return the arguments of `interpkit.invert` for each kind of run, by name."""
    known = installed().registry
    settings: dict[str, dict[str, Any]] = {}
    for name in [name for name in known.names("preset") if name not in ELSEWHERE]:
        # Presets without an inverter need a complete one below.
        whole = name == "vecmat" or "inverter" in installed().preset(name).layer
        settings[f"preset {name}"] = {"plugins": [name] if whole else ["vecmat", name]}
    vecmat: dict[str, Any] = {"plugins": ["vecmat"]}
    for kind in ("generator", "conditioner"):
        own = installed().preset("vecmat").layer[kind]["name"]
        settings |= {f"{kind} {name}": vecmat | {kind: name} for name in known.names(kind) if name != own}
    alone = [
        name for name in known.names("loss") if "data" not in installed().component("loss", name).Options.model_fields
    ]
    settings["all losses"] = vecmat | {"losses": dict.fromkeys(alone, 0.1)}
    settings["two generators"] = vecmat | {"generators": 2}
    settings["in pieces"] = vecmat | {"micro_batch": 4}
    return settings


def run_all(model: Path, folder: Path, names: Sequence[str], **settings: Any) -> None:
    """Make a run of each kind, each in its own folder."""
    every = kinds()
    own = installed().preset("vecmat").layer["generator"]["name"]
    for name in names:
        arguments = every[name]
        fields = installed().component("generator", arguments.get("generator", own)).Options.model_fields
        narrow = {f"generator.{size}": 8 for size in NARROW if size in fields}
        options = narrow if "vecmat" in arguments["plugins"] else FEW.get(name, {})
        interpkit.invert(model, out=folder / name, device="cpu", options=options, **arguments, **settings)


def fresh(folder: Path, names: Sequence[str], *, model: Path, threads: int, hashes: int, **settings: Any) -> Any:
    """Start a process that makes the runs; return it."""
    folder.mkdir(parents=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONHASHSEED": str(hashes)}
    job = json.dumps({"model": str(model), "folder": str(folder), "names": list(names), **settings})
    return subprocess.Popen([sys.executable, "-m", "torture.twice", "--job", job], env=environment)


def content(path: Path) -> Any:
    """Return the digest of a run's file; for a JSON file, its content without times."""
    if path.suffix in (".json", ".jsonl"):
        rows = [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines()
        return [{key: value for key, value in json.loads(row).items() if key not in CLOCK} for row in rows]
    return hashlib.sha256(path.read_bytes()).hexdigest()


def differing(one: Path, other: Path) -> list[str]:
    """Return the files that differ between two run folders, including those that only one of them has."""
    files = {path.name for folder in (one, other) for path in folder.iterdir()}
    files -= {"checkpoint", "report.html"}  # these contain times
    both = [name for name in files if (one / name).exists() and (other / name).exists()]
    return sorted(files - set(both)) + sorted(name for name in both if content(one / name) != content(other / name))


def twice(folder: Path, kinds: Sequence[str], **settings: Any) -> dict[str, list[str]]:
    """Make the runs in two fresh processes; return the files that differ for each kind."""
    places = [folder / "one", folder / "other"]
    orders = [list(kinds), list(kinds)[::-1]]
    both = [
        fresh(place, names, hashes=i, **settings) for i, (place, names) in enumerate(zip(places, orders, strict=True))
    ]
    if sum(process.wait() for process in both):
        raise SystemExit("a run failed: see above")
    return {name: differing(*(place / name for place in places)) for name in kinds}


def main() -> None:
    """Make every kind of run twice in one thread and in two, in fp32 and in bf16."""
    result: dict[str, Any] = {}
    for threads in (1, 2):
        for precision in ("fp32", "bf16"):
            with tempfile.TemporaryDirectory() as folder:
                settings = {"steps": 30, "batch_size": 32, "seed": 1, "precision": precision}
                outcome = twice(Path(folder), list(kinds()), model=MODEL, threads=threads, **settings)
            different = {name: files for name, files in outcome.items() if files}
            result[f"{threads} thread{'s'[: threads - 1]}, {precision}"] = {
                "runs": len(outcome), "the same": len(outcome) - len(different), "different": different,
            }  # fmt: skip
            print(threads, precision, different or f"all {len(outcome)} identical", flush=True)
    keep("twice", {"command": "python -m torture.twice", "steps": 30, **result})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    job = parser.parse_args().job
    if job is None:
        main()
    else:
        run_all(Path(job.pop("model")), Path(job.pop("folder")), job.pop("names"), **job)
