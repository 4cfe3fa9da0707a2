"""Inversion that stays where an ensemble is sure, beside plain pixels and beside ghosts at equal cost.

    python -m benchmarks.ensemble mnist fashion_mnist --data DIR --models DIR --work DIR

Each row inverts the shipped classifier with batch norm, 10 images of each class. The members of ``autoinverse`` learn
from the 2,000 test images, which neither the target nor an evaluator was trained on; in the row "evaluators' images"
from the 6,000 that the evaluators were trained on. ``ghosts`` takes as many steps as the CPU seconds of ``autoinverse``
allow, the training of its members included. No evaluator is a member. Finished rows are kept in --work.

The last columns are areas under the ROC curve: how well the mutual information (I) and the entropy of the members' mean
(H) tell the images that an evaluator puts in another class ("other"), and those on which evaluators differ ("split").
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

import interpkit
from benchmarks.evaluators import EVALUATORS, FIRST, evaluator
from benchmarks.harness import SHIPPED

ROWS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "pixels": ("pixels", {}),
    "autoinverse": ("autoinverse", {"data": "test"}),
    "ghosts": ("pixels", {"losses": {"ghosts": 1.0}}),
    "ghosts, weight 10": ("pixels", {"losses": {"ghosts": 10.0}}),
    "the target's answers": ("autoinverse", {"data": "test", "options": {"disagreement.answers": True}}),
    "without the label": ("autoinverse", {"data": "test", "options": {"disagreement.label": 0.0}}),
    "evaluators' images": ("autoinverse", {"data": "second"}),
}
"""Preset and settings by name, where ``data`` names the images that the members learn from."""
PROBE = 5
"""Steps by which the cost of a step is measured."""


def auroc(scores: Tensor, positive: Tensor) -> float:
    """Return the share of pairs in which the positive one has the larger score; ties count half."""
    ours, theirs = scores[positive][:, None], scores[~positive][None]
    return ((ours > theirs).double() + (ours == theirs).double() / 2).mean().item()


def images_for_members(dataset: str, which: str, data: Path, work: Path) -> str:
    """Return the test images, or the training images that the target has not seen, as a spec of data."""
    if which == "test":
        return str(data / f"{dataset}.npz")
    path = work / f"{dataset}_second.npz"
    with np.load(data / f"{dataset}.npz") as arrays:
        np.savez(path, images=arrays["x_train"][FIRST:], labels=arrays["y_train"][FIRST:])
    return str(path)


def invert(dataset: str, preset: str, settings: Mapping[str, Any], place: Path | None = None) -> float:
    """Return the CPU seconds of an inversion, which is saved in ``place`` or read from there."""
    kept = place and place / "seconds.json"
    if kept and kept.exists():
        return float(json.loads(kept.read_text("utf-8")))
    begun = time.process_time()
    inversion = interpkit.invert(SHIPPED / f"{dataset}_bn.safetensors", [preset], seed=0, device="cpu", **settings)
    seconds = time.process_time() - begun
    if place and kept:
        inversion.save(place, force=True)
        kept.write_text(json.dumps(seconds), "utf-8")
    return seconds


def row(name: str, judges: list[interpkit.Target], place: Path, seconds: float) -> str:
    """Return the figures of a finished inversion as a row of a table."""
    samples = safetensors.torch.load_file(place / "samples.safetensors")
    with torch.no_grad():
        answers = torch.stack([judge(samples["images"] / 255).argmax(1) for judge in judges])
    right = (answers == samples["labels"]).double().mean(1)
    found = {"other": (answers != samples["labels"]).any(0), "split": (answers != answers[0]).any(0)}
    metrics = json.loads((place / "metrics.json").read_text("utf-8"))
    told = [
        f"{auroc(samples[figure], found[what]):.2f}" if figure in samples else "-"
        for what in found
        for figure in ("disagreement.mutual_information", "disagreement.entropy")
    ]
    shares = [f"{share:.2f}" for share in right.tolist()]
    own = [f"{right.mean():.3f}", f"{metrics['inversion_accuracy']:.2f}", f"{seconds:.0f}"]
    return f"| {name} | {' | '.join([*shares, *own, *told])} |"


def main() -> None:
    """Print a table for each data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", choices=["mnist", "fashion_mnist"])
    parser.add_argument("--data", type=Path, required=True, help="Folder of the data sets' .npz files.")
    parser.add_argument("--models", type=Path, required=True, help="Folder of the evaluators.")
    parser.add_argument("--work", type=Path, default=Path("runs/ensemble"), help="Folder for the runs.")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), help="Rows (default: all).")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    columns = ["", *EVALUATORS, "mean agreement", "accuracy", "CPU s", "other, I", "other, H", "split, I", "split, H"]
    for dataset in args.datasets:
        print(f"\n| {dataset}{' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
        judges = [evaluator(dataset, judge, args.data, args.models) for judge in EVALUATORS]
        for name in args.rows:
            preset, given = ROWS[name]
            settings = dict(given)
            if "data" in settings:
                settings["data"] = images_for_members(dataset, settings["data"], args.data, args.work)
            if name.startswith("ghosts"):
                spent = json.loads((args.work / f"{dataset}-autoinverse" / "seconds.json").read_text("utf-8"))
                settings["steps"] = round(spent * PROBE / invert(dataset, preset, settings | {"steps": PROBE}))
            place = args.work / f"{dataset}-{name.translate({32: '_', 39: None, 44: None})}"
            print(row(name, judges, place, invert(dataset, preset, settings, place)), flush=True)


if __name__ == "__main__":
    main()
