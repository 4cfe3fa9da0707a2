"""Shared by the benchmarks of the method: data, classifiers, and one measured run for each recipe and seed."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import interpkit
from benchmarks.evaluators import EVALUATORS, FIRST, evaluator, held_out
from examples.train_classifier import load_data
from interpkit.api import invert
from interpkit.io.atomic import sha256, write_atomically
from interpkit.runs.folder import Run

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "docs" / "results.json"
PICTURES = ROOT / "docs" / "images" / "results"
SHIPPED = ROOT / "examples" / "models"
EPOCHS = {"cifar10": 30}
RADIUS = 1.0
"""Radius of the L2 ball in which the robustness metric searches."""
TAUGHT = ("labels", "logits", "augmented")
"""What the students of the metric ``student`` learn from."""


@dataclass(frozen=True)
class Recipe:
    """One way of inverting: presets, and changes to them.

    Attributes:
        name: the name in the tables.
        plugins: the presets.
        settings: other arguments of `interpkit.invert`.
        taught: whether students are to learn from its samples.
    """

    name: str
    plugins: Sequence[str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    taught: bool = False


@dataclass(frozen=True)
class Place:
    """The folders that the benchmarks read and write.

    Attributes:
        data: folder of mnist.npz, fashion_mnist.npz, svhn.npz, cifar10.npz.
        models: folder of classifiers that others trained (svhn_cnn.pth).
        work: folder of trained targets, evaluators and runs; those that exist are reused.
        fresh: whether to ignore the results in docs/results.json.
        done: whether to use only finished runs, and run nothing.
    """

    data: Path
    models: Path
    work: Path
    fresh: bool = False
    done: bool = False

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add the flags that `parse` reads."""
        parser.add_argument("--data", type=Path, required=True, help="Folder of the data sets' .npz files.")
        parser.add_argument("--models", type=Path, required=True, help="Folder of svhn_cnn.pth.")
        parser.add_argument(
            "--work", type=Path, default=Path("runs/benchmarks"), help="Folder for runs (default: runs/benchmarks)."
        )
        parser.add_argument("--fresh", action="store_true", help="Ignore the figures in docs/results.json.")
        parser.add_argument("--done", action="store_true", help="Use only finished runs, and run nothing.")
        parser.add_argument("--write", action="store_true", help="Write the tables and pictures into docs/.")

    @classmethod
    def parse(cls, args: argparse.Namespace) -> Place:
        """Return the folders that the flags name."""
        return cls(args.data, args.models, args.work, args.fresh, args.done)

    @property
    def trained(self) -> Path:
        """Folder of the classifiers that the benchmarks train."""
        return self.work / "models"


def dataset(target: str) -> str:
    """Return the data set of a target: ``mnist`` for ``mnist_bn`` and ``mnist_bn_smoothed``."""
    return target.removesuffix("_smoothed").removesuffix("_bn")


def _path(name: str, place: Place) -> Path:
    shipped = SHIPPED / f"{name}.safetensors"
    return shipped if shipped.exists() else place.trained / f"{name}.safetensors"


def load(name: str, place: Place) -> interpkit.Target:
    """Load a target: shipped, trained by others, or trained now with our script."""
    if name == "svhn":
        return interpkit.load_target(
            place.models / "svhn_cnn.pth",
            arch=f"py:{ROOT / 'benchmarks' / 'foreign_nets.py'}:svhn_cnn",
            input_shape=(3, 32, 32),
            mean=[0.4377, 0.4438, 0.4728],
            std=[0.198, 0.201, 0.197],
        )
    path = _path(name, place)
    if not path.exists():
        kind = dataset(name)
        command = [sys.executable, str(ROOT / "examples" / "train_classifier.py"), str(place.data / f"{kind}.npz")]
        command += ["--train-images", str(FIRST), "--epochs", str(EPOCHS.get(kind, 20)), "--out", str(path)]
        command += ["--batch-norm"] * ("_bn" in name) + ["--noise", "0.5"] * name.endswith("_smoothed")
        path.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(command, check=True)
    return interpkit.load_target(path)


@dataclass(frozen=True)
class Result:
    """The result of one recipe on one target with one seed.

    Attributes:
        name: name of the run, with a hash of the resolved recipe.
        model: sha256 of the target's file.
        figures: the figures of the tables, by name.
        evaluators: each evaluator's accuracy on the real images.
        target_accuracy: the target's accuracy on them.
    """

    name: str
    model: str
    figures: dict[str, float]
    evaluators: dict[str, float]
    target_accuracy: float


def run(target: str, recipe: Recipe, seeds: Sequence[int], place: Place) -> list[Result]:
    """Return a result for each seed; with ``place.done``, only for the finished ones."""
    results = [_run(target, recipe, seed, place) for seed in seeds]
    return [result for result in results if result is not None]


def _run(target: str, recipe: Recipe, seed: int, place: Place) -> Result | None:
    """Invert and measure, unless ``place.work`` or docs/results.json already has the result."""
    if place.done and target != "svhn" and not _path(target, place).exists():
        return None
    classifier = load(target, place)
    job = invert.prepare(classifier, recipe.plugins, seed=seed, **recipe.settings)
    free = {"target", "device", "plugin_files", "micro_batch", "compile", "fall_back"}
    known = job.recipe.model_dump_json(exclude=free)
    key = hashlib.sha256(known.encode()).hexdigest()[:8]
    name = f"{target}-{recipe.name.replace(' ', '_')}-{seed}-{key}"
    folder = place.work / "runs" / name
    assert classifier.origin is not None
    model = sha256(classifier.origin)
    kept = figures_of(KEPT).get(name)
    if kept is not None and kept["model"] == model and not folder.exists() and not place.fresh:
        return Result(**kept)
    done = job.is_done(folder)
    wanted = {"reference"} | ({"student"} if recipe.taught else set())
    if place.done and not (done and wanted <= Run.open(folder).metrics().keys()):
        return None
    if not done:
        print(f"{name} ...", file=sys.stderr, flush=True)
        job.run(out=folder, resume=True)
    metrics = Run.open(folder).metrics()
    if "reference" not in metrics:
        kind = dataset(target)
        evaluators = [evaluator(kind, name, place.data, place.trained) for name in EVALUATORS]
        x_train, y_train = load_data(str(place.data / f"{kind}.npz"), "")[:2]
        metrics = interpkit.evaluate(
            folder,
            target=classifier,
            evaluators=evaluators,
            reference=held_out(kind, place.data)[2:],
            options={"robustness.radius": [RADIUS], "robustness.sigma": [0.3], "robustness.samples": 100},
            training=None if kind == "svhn" else (x_train[:FIRST], y_train[:FIRST]),
        )
    if recipe.taught and "student" not in metrics:
        reference = held_out(dataset(target), place.data)[2:]
        metrics = interpkit.evaluate(folder, target=classifier, reference=reference, metrics=["student"])
    accuracies = {row["name"]: row["reference_accuracy"] for row in metrics["evaluators"]}
    return Result(name, model, figures(metrics), accuracies, metrics["reference"]["target_accuracy"])


def keep(results: Sequence[Result], place: Place, *, pictures: bool = False) -> None:
    """Add results to docs/results.json; with ``pictures``, also copy the grids of local runs to docs/images/results."""
    entries = figures_of(KEPT) | {result.name: asdict(result) for result in results}
    KEPT.write_text(json.dumps(dict(sorted(entries.items())), indent=1) + "\n", "utf-8")
    PICTURES.mkdir(parents=True, exist_ok=True)
    for result in results if pictures else ():
        grid = place.work / "runs" / result.name / "samples.png"
        title, _, seed = result.name.rpartition("-")[0].rpartition("-")
        if grid.exists() and seed == "0":
            shutil.copy(grid, PICTURES / f"{title}.png")


def figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of the tables, flat: means over the evaluators where there are several."""
    reference, evaluators = metrics["reference"], metrics["evaluators"]
    values = {
        "inversion accuracy": metrics["inversion_accuracy"],
        "agreement": mean(row["agreement"] for row in evaluators),
        "agreement / accuracy": mean(row["relative"] for row in evaluators),
        "agreement, worst class": min(
            mean(row["agreement"] for row in scored["evaluators"]) for scored in metrics["per_class"]
        ),
        "excess Vendi": reference.get("excess_vendi"),
        **{
            name: mean(space[name] for space in reference["features"].values())
            for name in ("coverage", "density", "precision", "recall")
        },
        "SSIM": reference.get("ssim", {}).get("mean"),
        **{f"student, {taught}": metrics.get("student", {}).get(taught, {}).get("relative") for taught in TAUGHT},
        f"kept, PGD {RADIUS:g}": metrics.get("robustness", {}).get("pgd", {}).get(f"{RADIUS:g}", {}).get("kept"),
        "nearer to training": metrics.get("memorisation", {}).get("pixels", {}).get("nearer_to_training"),
    }
    return {name: float(value) for name, value in values.items() if value is not None}


def over_seeds(rows: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """Return each figure's mean over the seeds, and its standard deviation where there are several."""

    def cell(name: str) -> str:
        values = [row[name] for row in rows if name in row]
        if not values:
            return "-"
        return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")

    names = dict.fromkeys(name for row in rows for name in row)
    return {name: cell(name) for name in names}


def figures_of(kept: Path) -> dict[str, Any]:
    """Return the settings and figures of each cell in a file; none if there is no such file."""
    return json.loads(kept.read_text("utf-8")) if kept.exists() else {}


def measured_once(
    kept: Path, cell: str, settings: Mapping[str, Any], measure: Callable[[], dict[str, float]]
) -> dict[str, float]:
    """Return the figures of a cell: those in the file if they have the same settings, or else new ones, added to it."""
    figures = figures_of(kept)
    if figures.get(cell, {}).get("settings") != settings:
        begun = time.process_time()
        found = measure()
        found["CPU seconds"] = time.process_time() - begun
        figures = figures_of(kept) | {cell: {"settings": dict(settings), "figures": found}}
        write_atomically(kept, json.dumps(figures, indent=1) + "\n")
        print(f"{cell}: {found['CPU seconds']:.0f} s", flush=True)
    return figures[cell]["figures"]


def table(rows: Mapping[str, Mapping[str, str]], corner: str) -> str:
    """Return a Markdown table with a row for each entry and a column for each figure that any entry has."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = [f"| {corner} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(row.get(c, "-") for c in columns) + " |" for name, row in rows.items()]
    return "\n".join(lines) + "\n"


def write_section(file: str, name: str, text: str) -> None:
    """Replace the text between the marks ``<!-- NAME -->`` and ``<!-- /NAME -->`` of a page in docs/results."""
    page = ROOT / "docs" / "results" / file
    before, mark, rest = page.read_text("utf-8").partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    assert mark and end, f"docs/results/{file} does not have the marks of section {name}"
    page.write_text(before + mark + text + end + after, "utf-8")
