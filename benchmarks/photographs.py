"""Compares recipes for photographs on a classifier of ImageNet, by what a sister network makes of the images.

    python -m benchmarks.photographs --model lite0.safetensors --evaluator lite1.safetensors --work DIR [--only NAME]

By default, one image of each of 20 classes spread over ImageNet (number 25, 75, ...). It prints a row per recipe: in
which share of the images the classifier and an evaluator see the requested class, the evaluator also after a blur of
one pixel at 224 px, and the CPU seconds per image and peak memory of the run. Runs in --work are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

LABELS = ",".join(str(label) for label in range(25, 1000, 50))
FOURIER = (
    "--inverter deepinversion --preset deepinversion --set deepinversion.parametrisation=fourier --steps 80 "
    "--set deepinversion.flip=true --set deepinversion.spread=0.2 --loss tv=1 --loss batchnorm=5 --loss chroma=10"
)
PHOTO = "--preset photo"
RECIPES = {
    "deepinversion as published": "--preset deepinversion --steps 100",
    "deepinversion, Fourier": FOURIER,
    "photo": PHOTO,
    "photo, half the steps": f"{PHOTO} --steps 105",
    "photo, no zoom": f"{PHOTO} --set photo.zoom=1",
    "photo, no blur": f"{PHOTO} --set photo.blur=0",
    "photo, colors shifted": f"{PHOTO} --set photo.color=0.2",
    "photo, spectrum 1/f": f"{PHOTO} --set photo.falloff=1",
    "photo, colors as in an average photograph": f"{PHOTO} --set photo.chroma=1",
    "photo, no limit of contrast": f"{PHOTO} --loss l2=0",
    "photo, one size, 65 steps": f"{PHOTO} --set photo.sizes=[1.0] --set photo.changes=[] --steps 65",
    "photo, no batch-norm statistics": f"{PHOTO} --loss statistics=0",
}


def interpkit(*words: object) -> tuple[dict[str, Any], float, int]:
    """Run a command with --json; return its output, its CPU seconds and its peak memory in bytes."""
    command = [sys.executable, "-m", "interpkit", *map(str, words), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    scale = 1 if sys.platform == "darwin" else 1024
    return json.loads(output), usage.ru_utime + usage.ru_stime, usage.ru_maxrss * scale


def measure(recipe: str, out: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Invert and judge by one recipe; return its figures."""
    kept = out / "figures.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    asked = ["--labels", given.labels, "--per-class", given.per_class, "--seed", given.seed]
    _, seconds, peak = interpkit("invert", given.model, *recipe.split(), *asked, "--out", out, "--force")
    metrics, _, _ = interpkit("evaluate", out, "--evaluator", given.evaluator, "--metric", "agreement")
    (row,) = metrics["evaluators"]
    found = {
        "accuracy": metrics["inversion_accuracy"],
        "agreement": row["agreement"],
        "blurred": row["blurred_agreement"],
        "seconds": seconds / metrics["count"],
        "gigabytes": peak / 1e9,
    }
    kept.write_text(json.dumps(found))
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--evaluator", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--labels", default=LABELS)
    parser.add_argument("--per-class", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="only the recipes whose name contains this")
    given = parser.parse_args()
    print("| recipe | accuracy | agreement | blurred | CPU s an image | peak GB |\n|---|---|---|---|---|---|")
    for number, (name, recipe) in enumerate(RECIPES.items()):
        if given.only is None or given.only in name:
            found = measure(recipe, given.work / f"{number}-{given.per_class}-{given.seed}", given)
            figures = [f"{found[key]:.2f}" for key in ("accuracy", "agreement", "blurred", "seconds", "gigabytes")]
            print(f"| {name} |", " | ".join(figures), "|", flush=True)


if __name__ == "__main__":
    main()
