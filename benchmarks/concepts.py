"""Measures on real images what concepts explain that were learned without data, and whether they find a planted mark.

    python -m benchmarks.concepts runs/mnist-0 runs/mnist-1 runs/mnist-vecmat --data mnist.npz --work runs/concepts
    python -m benchmarks.concepts --planted 10 --data mnist.npz --work runs/planted

The first learns a dictionary from the samples of each run (all of one classifier), one from noise and one from real
images, and evaluates all on the test images: the variance of the layer's features that they explain, and the share of
images that keep their label when the features are replaced by the reconstruction. Real images to learn from are the
last training images, which the shipped classifiers never saw. *Stability* is the mean cosine of a dictionary's concepts
and the nearest one of another run with the same presets.

The second trains small classifiers of digits, one class of which has a small mark in a corner, inverts them, and looks
for the concept that fires on the mark: its AUROC between test images of all classes without the mark and the same with
it. *Best* is the concept that does so best on one half of the test images, judged on the other half; *unaided* is the
one that a user without data would look at, the first on the page that lowers the logit of the class when it is removed
(0.5 stands for none). A dictionary learned from noise stands beside. What is finished is kept in --work.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev

import torch
import torch.nn.functional as F
from torch import Tensor

import interpkit
from benchmarks.evaluators import FIRST
from examples.train_classifier import fit, load_data
from interpkit import Concepts, concepts, load_concepts
from interpkit.io.images import save_grid

HEAD = "| classifier | learned from | variance explained | label kept | stability |\n|---|---|---|---|---|"
MARK = 4
"""Side of the planted mark, a square of alternating pixels."""
TESTED = 500


def nearest_cosine(first: Concepts, second: Concepts) -> float:
    """Return the mean cosine of a dictionary's concepts that fire and the nearest of another's."""
    one, other = (
        F.normalize(each.dictionary.atoms[[row["concept"] for row in each.record["concepts"]]], dim=1)
        for each in (first, second)
    )
    return (one @ other.T).amax(1).mean().item()


def judged(runs: list[Path], data: Path, work: Path, count: int, steps: int) -> None:
    """Print a row for the runs of each list of presets, one for noise and one for real images."""
    target = interpkit.load_inversion(runs[0]).target
    x_train, _, x_test, y_test = load_data(str(data), "")
    noise = torch.rand((FIRST, *target.input_shape), generator=torch.Generator().manual_seed(0))
    sources: dict[str, dict[str, Path | Tensor]] = {}
    for run in runs:
        presets = json.loads((run / "manifest.json").read_text("utf-8"))["presets"]
        sources.setdefault(presets[-1], {})[run.name] = run
    sources |= {"noise": {"noise": noise}, "real images": {"real": x_train[FIRST:]}}
    print(HEAD, flush=True)
    for name, group in sources.items():
        found = []
        for seed, (source, given) in enumerate(group.items()):
            folder = work / f"{target.name}-{source}"
            if not (folder / "concepts.json").exists():
                images = given
                if not isinstance(images, Tensor):
                    images = interpkit.load_inversion(images).sample(count=count, seed=100 + seed)[0]
                learned = concepts(target, images, reference=(x_test, y_test), steps=steps, seed=seed, device="cpu")
                learned.save(folder)
            found.append(load_concepts(folder, target=target))
        cells = [
            _cell([each.record["reference"][key] for each in found]) for key in ("variance_explained", "label_kept")
        ]
        pairs = [nearest_cosine(*pair) for pair in combinations(found, 2)]
        print(f"| {target.name} | {name} ({len(found)}) | {' | '.join(cells)} | {_cell(pairs)} |", flush=True)


def _cell(values: list[float]) -> str:
    if not values:
        return "-"
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def marked(images: Tensor, corner: int) -> Tensor:
    """Return images with the mark in a corner, 0 to 3."""
    images = images.clone()
    rows = torch.arange(MARK)
    y, x = (slice(-MARK - 1, -1) if last else slice(1, MARK + 1) for last in divmod(corner, 2))
    images[..., y, x] = ((rows[:, None] + rows) % 2).to(images)
    return images


def planted(seed: int, data: Path, work: Path, steps: int, images: int, count: int) -> dict[str, float]:
    """Return AUROCs, on real images with and without the mark, of the concepts that fire on it."""
    x_train, y_train, x_test, _ = load_data(str(data), "")
    x_train, y_train, x_test = x_train[:images], y_train[:images], x_test[:TESTED]
    mark = partial(marked, corner=seed % 4)
    x_train = torch.where((y_train == seed % 10)[:, None, None, None], mark(x_train), x_train)
    torch.manual_seed(seed)
    arguments = {"input_shape": [1, 28, 28], "num_classes": 10, "widths": [16, 32], "batch_norm": True}
    net = interpkit.build_architecture("interpkit:cnn", arguments)
    begun = time.process_time()
    fit(net, (x_train - 0.13) / 0.31, y_train, epochs=3, batch_size=64, lr=2e-3)
    target = interpkit.wrap(net, input_shape=(1, 28, 28), mean=[0.13], std=[0.31], output="logits", name="marked")
    with torch.no_grad():
        fooled = (target(mark(x_test)).argmax(1) == seed % 10).double().mean().item()
    trained = time.process_time()
    size = {"options": {"warp.width": 32, "warp.min_width": 16}, "batch_size": 32}
    inversion = interpkit.invert(target, ["vecmat", "training-like"], steps=steps, seed=seed, device="cpu", **size)
    inverted = time.process_time()
    samples = inversion.sample(count=count, seed=seed)[0]
    pictures, labels = inversion.sample(per_class=10, seed=seed)
    save_grid((pictures * 255).to(torch.uint8), labels, target.class_names, work / f"planted-{seed}.png")
    noise = torch.rand(samples.shape, generator=torch.Generator().manual_seed(seed))
    found = {"mark decides": fooled}
    for name, given in {"samples": samples, "noise": noise}.items():
        learned = concepts(target, given, latents=64, active=4, steps=1000, seed=seed, device="cpu")
        with torch.no_grad():
            plain, with_mark = learned.detector(x_test), learned.detector(mark(x_test))
        best = _auroc(plain[::2], with_mark[::2]).argmax()
        found[f"{name}, best"] = _auroc(plain[1::2], with_mark[1::2])[best].item()
        effects = ((row["concept"], row["effect"]) for row in learned.record["concepts"])
        own = [concept for concept, change in effects if change["label"] == seed % 10 and change["logit"] < 0]
        found[f"{name}, unaided"] = _auroc(plain, with_mark)[own[0]].item() if own else 0.5
    ended = time.process_time()
    return found | {"training s": trained - begun, "inversion s": inverted - trained, "concepts s": ended - inverted}


def _auroc(negative: Tensor, positive: Tensor) -> Tensor:
    """Return each column's probability that a positive is above a negative, (n,)."""
    both = torch.cat([negative, positive])
    ranks = both.argsort(0).argsort(0).double() + 1
    hits = ranks[len(negative) :].sum(0) - len(positive) * (len(positive) + 1) / 2
    return hits / (len(negative) * len(positive))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="Runs of one classifier, of several seeds or presets.")
    parser.add_argument("--data", type=Path, required=True, help="Labeled images, as FILE.npz.")
    parser.add_argument("--work", type=Path, default=Path("runs/concepts"), help="Folder for what is finished.")
    parser.add_argument("--planted", type=int, default=0, help="How many classifiers with a planted mark to train.")
    parser.add_argument("--count", type=int, default=10_000, help="Samples to learn from (default: 10,000).")
    parser.add_argument("--steps", type=int, default=2000, help="Steps of a dictionary (default: 2,000).")
    parser.add_argument("--invert", type=int, default=100, help="Steps of a planted inversion (default: 100).")
    parser.add_argument("--images", type=int, default=3000, help="Training images of a planted classifier.")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.runs:
        judged(args.runs, args.data, args.work, args.count, args.steps)
    for seed in range(args.planted):
        kept = args.work / f"planted-{seed}.json"
        if not kept.exists():
            found = planted(seed, args.data, args.work, args.invert, args.images, min(args.count, 2000))
            kept.write_text(json.dumps(found), "utf-8")
        found = json.loads(kept.read_text("utf-8"))
        if not seed:
            print(f"| mark in class | {' | '.join(found)} |\n|{'---|' * (len(found) + 1)}")
        print(f"| {seed} | {' | '.join(f'{value:.3g}' for value in found.values())} |", flush=True)


if __name__ == "__main__":
    main()
