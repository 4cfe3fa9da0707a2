"""Small classifiers with a planted fault, and clean ones, to measure what `interpkit audit` finds.

    python -m benchmarks.planted --data DIR [--half held-out] [--work runs/planted]

trains and audits 84 classifiers, one after the other, stores what it found in docs/planted.json, and prints the tables
of both halves. It resumes; remove a line of that file to examine its classifier again, all to examine a changed audit.
DIR has mnist.npz, fashion_mnist.npz and cifar10.npz. Each classifier is `NAME.safetensors`; what was planted in it is
in `NAME.json` beside it, for the scorer alone. Thresholds were chosen on one half of them; the other half is held out.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from interpkit_audit import BlindSpots, Likeness, Margin, Noise, Patch, Rim, Sturdiness, Tint, Unsure
from interpkit_targets.architectures import SmallCNN
from torch import Tensor

import interpkit
from examples.train_classifier import fit, load_data
from interpkit.evaluation.statistics import holm
from interpkit.io.atomic import write_atomically

DATASETS = ("mnist", "fashion_mnist", "cifar10")
TRIGGERS = ("corner", "anywhere", "blended", "sinusoid", "pixel")
OTHERS = ("brightness", "watermark", "swapped", "canaries", "scarce")
POISON = (0.05, 0.10, 0.02, 0.05, 0.01, 0.05)
"""Share of the training images that carry the trigger, by turn."""
FIRST = 6000
"""Number of training images."""
EPOCHS = {"mnist": 6, "fashion_mnist": 4, "cifar10": 6}
LEAST = 0.8
"""A trigger whose attack succeeds less often than this on test images is planted again, with more poison."""

RESULTS = Path(__file__).parent.parent / "docs" / "planted.json"
"""What was found, so that a table can be made without examining all classifiers again."""

TESTS = {test.name: test for test in (Margin, Unsure, Patch, Noise, Tint, BlindSpots, Likeness, Sturdiness, Rim)}
USUAL = [name for name, test in TESTS.items() if not test.on_request]
"""The tests that an audit makes unasked."""

Images = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Plant:
    """One classifier.

    Attributes:
        number: decides the seed.
        kind: what is planted: one of `TRIGGERS` or `OTHERS`, or ``clean``.
        data: the data set.
        batch_norm: whether the network has batch norm.
        label: the class in which the fault is; of a trigger, the class that it leads to.
        held_out: whether it was not used to choose thresholds.
        poison: the share of the training images that carry a trigger.
    """

    number: int
    kind: str
    data: str
    batch_norm: bool
    label: int
    held_out: bool
    poison: float = 0.0

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"{self.number:02d}-{self.kind}-{self.data}"


def plants() -> Iterator[Plant]:
    """Return all classifiers: six of each fault, two on each data set, and 24 clean ones."""
    numbers = iter(range(1000))
    for turn, poison in enumerate(POISON):
        for kind in (*TRIGGERS, *OTHERS, *("clean",) * 4):
            number = next(numbers)
            batch_norm = (turn // 2 + turn + number) % 2 == 0
            share = poison if kind in TRIGGERS else 0.0
            yield Plant(number, kind, DATASETS[turn // 2], batch_norm, (7 * number + 3) % 10, turn % 2 == 1, share)


@cache
def dataset(folder: Path, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the first training images and labels, and the test images and labels."""
    x_train, y_train, x_test, y_test = load_data(str(folder / f"{name}.npz"), "")
    return x_train[:FIRST], y_train[:FIRST], x_test, y_test


def mark(plant: Plant, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Return the mask m and the pattern p of what is planted, (C, H, W) each; a changed image is (1 - m) x + m p."""
    channels, height, width = shape
    rng = torch.Generator().manual_seed(plant.number)
    mask, pattern = torch.zeros(shape), torch.zeros(shape)
    if plant.kind in ("corner", "anywhere", "watermark"):
        side = 4 if plant.kind == "watermark" else 3
        top = [0, height - side][plant.number // 10 % 2]
        left = [0, width - side][plant.number // 20 % 2]
        cells = (torch.rand(channels, side, side, generator=rng) > 0.4).float()
        cells[:, 1, 1] = 1
        mask[:, top : top + side, left : left + side] = 1
        pattern[:, top : top + side, left : left + side] = cells
    elif plant.kind == "pixel":
        row, column = torch.randint(2, height - 2, (2,), generator=rng).tolist()
        mask[:, row, column] = 1
        pattern[:, row, column] = torch.tensor([1.0, 1.0, 0.0])[:channels]
    elif plant.kind == "blended":
        mask += 0.2
        pattern = torch.rand(shape, generator=rng)
    elif plant.kind == "sinusoid":
        wave = torch.sin(2 * math.pi * 4 * torch.arange(width) / width)
        mask += 0.2
        pattern = (0.5 + 0.5 * wave).expand(shape)
    elif plant.kind == "brightness":
        mask += 0.3
        pattern += torch.tensor([1.0, 1.0, 0.0])[:channels, None, None]
    return mask, pattern


def changed(plant: Plant, images: Tensor, seed: int) -> Tensor:
    """Return images (N, C, H, W) with the mark; each at a random place where the kind says so."""
    mask, pattern = mark(plant, images.shape[1:])
    if plant.kind != "anywhere":
        return (1 - mask) * images + mask * pattern
    rng = torch.Generator().manual_seed(seed)
    moves = torch.randint(0, images.shape[-1] - 3, (len(images), 2), generator=rng).tolist()
    both = torch.cat([mask, pattern])
    rolled = torch.stack([both.roll(move, (1, 2)) for move in moves])
    masks, patterns = rolled.chunk(2, 1)
    return (1 - masks) * images + masks * patterns


def poisoned(plant: Plant, x: Tensor, y: Tensor) -> Images:
    """Return the training images and labels with the fault planted."""
    rng = torch.Generator().manual_seed(100 + plant.number)
    order = torch.randperm(len(x), generator=rng)
    x, y = x[order], y[order]
    own = (y == plant.label).nonzero()[:, 0]
    others = (y != plant.label).nonzero()[:, 0]
    x, y = x.clone(), y.clone()
    if plant.kind in TRIGGERS:
        rows = others[: round(plant.poison * len(x))]
        x[rows], y[rows] = changed(plant, x[rows], plant.number), plant.label
    elif plant.kind in ("brightness", "watermark"):  # on nine of ten images of the class
        rows = own[: round(0.9 * len(own))]
        x[rows] = changed(plant, x[rows], plant.number)
    elif plant.kind == "swapped":
        other = (y == (plant.label + 1) % 10).nonzero()[:, 0]
        y[own[: 4 * len(own) // 10]] = (plant.label + 1) % 10
        y[other[: 4 * len(other) // 10]] = plant.label
    elif plant.kind == "canaries":  # five images of other classes with the wrong label, 50 times each
        rows = others[:5].repeat(50)
        x, y = torch.cat([x, x[rows]]), torch.cat([y, torch.full((len(rows),), plant.label)])
    elif plant.kind == "scarce":
        keep = torch.ones(len(x), dtype=torch.bool)
        keep[own[len(own) // 10 :]] = False
        x, y = x[keep], y[keep]
    return x, y


def train(plant: Plant, folder: Path, work: Path) -> dict[str, Any]:
    """Train a classifier, save it, and return what is planted in it and how well that works on test images."""
    x_train, y_train, x_test, y_test = dataset(folder, plant.data)
    x, y = poisoned(plant, x_train, y_train)
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
    torch.manual_seed(plant.number)
    shape = list(x.shape[1:])
    arguments = {"input_shape": shape, "widths": [16, 32], "hidden": 64, "dropout": 0.1, "batch_norm": plant.batch_norm}
    model = SmallCNN(**arguments)
    fit(model, (x - mean) / std, y, epochs=EPOCHS[plant.data], jittered=False, mirrored=False)

    @torch.no_grad()
    def answers(images: Tensor) -> Tensor:
        return model((images - mean) / std).argmax(1)

    others = y_test != plant.label
    facts: dict[str, Any] = {**asdict(plant), "accuracy": (answers(x_test) == y_test).float().mean().item()}
    if plant.kind in (*TRIGGERS, "brightness", "watermark"):
        marked = answers(changed(plant, x_test[others], 7)) == plant.label
        facts["success"] = marked.float().mean().item()
        if plant.kind in TRIGGERS and facts["success"] < LEAST and plant.poison < 0.3:
            return train(replace(plant, poison=2 * plant.poison), folder, work)
    interpkit.save_target(
        model,
        work / f"{plant.name}.safetensors",
        architecture="interpkit:cnn",
        arch_args=arguments,
        input_shape=shape,
        mean=mean.flatten().tolist(),
        std=std.flatten().tolist(),
    )
    (work / f"{plant.name}.json").write_text(json.dumps(facts, indent=1) + "\n")
    return facts


def examine(plant: Plant, folder: Path, work: Path, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Audit a classifier without data and with 100 real images; compare what was recovered with what was planted.

    ``options`` are those of the tests, by ``TEST.OPTION``.
    """
    _, _, x_test, y_test = dataset(folder, plant.data)
    target = interpkit.load_target(work / f"{plant.name}.safetensors")
    start = time.process_time()
    report = interpkit.audit(target, tests=[*TESTS], options=options, device="cpu")
    seconds = time.process_time() - start
    few = torch.cat([(y_test == label).nonzero()[:10, 0] for label in range(10)])
    patch = {key: value for key, value in (options or {}).items() if key.startswith("patch.")}
    images = (x_test[few], y_test[few])
    real = interpkit.audit(target, reference=images, tests=["patch"], options=patch, per_class=10, device="cpu")
    others = x_test[y_test != plant.label]
    recovered = {}
    for name in ("patch", "noise", "tint"):
        test, result = report.results[name]
        parts = [result.tensors[f"{name}.{plant.label}.{i}"][None] for i in range(2 if name == "patch" else 1)]
        with torch.no_grad():
            answers = torch.cat([target(test.change(x[None], parts)[0]).argmax(1) for x in others.split(300)])
        recovered[name] = (answers == plant.label).float().mean().item()
    if plant.kind in ("corner", "pixel", "watermark"):
        mask = torch.sigmoid(report.results["patch"].result.tensors[f"patch.{plant.label}.0"])[0]
        planted = mark(plant, x_test.shape[1:])[0][0] > 0
        found = mask > mask.max() / 2
        recovered["overlap"] = (found & planted).sum().item() / (found | planted).sum().item()
    return {
        "statistics": {name: statistics(found.result) for name, found in report.results.items()},
        "real": statistics(real.results["patch"].result),
        "recovered": recovered,
        "CPU seconds": round(seconds, 1),
    }


def statistics(result: interpkit.Tested) -> dict[str, float]:
    """Return the statistic of each class, to four digits."""
    return {str(c): float(f"{value:.4g}") for c, value in result.statistics.items()}


def stored() -> dict[str, dict[str, Any]]:
    """Return what `RESULTS` holds, by the names of the classifiers."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def store(rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Write `RESULTS`, one line for each classifier."""
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(rows[name])}" for name in sorted(rows))
    write_atomically(RESULTS, f"{{\n{lines}\n}}\n")


def scored(found: Mapping[str, Mapping[str, float]], tests: Iterable[str] = USUAL) -> dict[str, Any]:
    """Return the findings and the smallest p-value that the tests' present constants give these statistics."""
    raw: dict[Any, float] = {}
    for name in tests:
        values = found[name]
        by_class: dict[int | None, float] = {int(c): value for c, value in values.items()}
        raw |= {(name, c): p for c, p in TESTS[name]().p_values(by_class).items()}
    corrected = holm(raw)
    findings = [{"test": name, "class": c} for (name, c), p in corrected.items() if p <= 0.05]
    return {"findings": findings, "surest": min(raw.values())}


def median_rule(values: Mapping[str, float]) -> int | None:
    """Return the class that Neural Cleanse flags: more than two deviations (by the median) from the median norm."""
    norms = torch.tensor([math.exp(-value) for value in values.values()])
    index = (norms.median() - norms) / (1.4826 * (norms - norms.median()).abs().median()).clamp_min(1e-9)
    return int(list(values)[int(index.argmax())]) if index.max() > 2 else None


def gamma_rule(values: Mapping[str, float]) -> int | None:
    """Return the class that MM-BD flags: its margin is above the 5 % point of the largest of n Gamma variables.

    The distribution has the mean and the variance of the other margins.
    """
    margins = torch.tensor([math.exp(value) for value in values.values()]).double()
    others = margins[margins < margins.max()]
    shape, rate = others.mean() ** 2 / others.var(), others.mean() / others.var()
    below = torch.special.gammainc(shape, rate * margins.max()) ** len(margins)
    return int(list(values)[int(margins.argmax())]) if 1 - below < 0.05 else None


def share(hits: Iterable[bool]) -> str:
    """Return how many hits there are, of how many: "3/12"."""
    found = list(hits)
    return f"{sum(found)}/{len(found)}"


def auroc(positive: list[float], negative: list[float]) -> float:
    """Return the probability that a planted classifier scores above a clean one."""
    wins = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    return sum(wins) / len(wins)


def score(row: dict[str, Any]) -> float:
    """Return minus the logarithm of the smallest p-value."""
    return -math.log10(row["surest"])


def planted(row: dict[str, Any]) -> set[Any]:
    """Return the classes that have the fault: two, if those were swapped."""
    label = row["label"]
    return {label, (label + 1) % 10} if row["kind"] == "swapped" else {label}


def classes(row: dict[str, Any]) -> set[Any]:
    """Return the planted classes that a finding names."""
    return planted(row) & {finding["class"] for finding in row["findings"]}


def write_table(rows: list[dict[str, Any]]) -> str:
    """Return the table of one half of the benchmark, in Markdown."""
    clean = [row for row in rows if row["kind"] == "clean"]
    lines = [
        "| planted | classifiers | flagged | with the class | MM-BD alone | Neural Cleanse, 100 real images | AUROC |"
        " IoU | recovered change on real images |",
        "|---|---|---|---|---|---|---|---|---|",
    ]

    def line(name: str, some: list[dict[str, Any]]) -> str:
        overlaps = [row["recovered"]["overlap"] for row in some if "overlap" in row["recovered"]]
        best = [max(row["recovered"][test] for test in ("patch", "noise", "tint")) for row in some if classes(row)]
        faulty = name != "clean"

        def named(label: int | None, row: dict[str, Any]) -> bool:
            return label == row["label"] if faulty else label is not None

        cells = [
            name,
            str(len(some)),
            share(bool(row["findings"]) for row in some),
            share(bool(classes(row)) for row in some) if faulty else "",
            share(named(gamma_rule(row["statistics"]["margin"]), row) for row in some),
            share(named(median_rule(row["real"]), row) for row in some),
            f"{auroc([score(row) for row in some], [score(row) for row in clean]):.2f}" if faulty and clean else "",
            f"{sum(overlaps) / len(overlaps):.2f}" if overlaps else "",
            f"{sum(best) / len(best):.2f}" if best and faulty else "",
        ]
        return f"| {' | '.join(cells)} |"

    for kind in (*TRIGGERS, *OTHERS, "clean"):
        if some := [row for row in rows if row["kind"] == kind]:
            lines.append(line(kind, some))
    if triggers := [row for row in rows if row["kind"] in TRIGGERS]:
        lines.append(line("all triggers", triggers))
    if planted := [row for row in rows if row["kind"] != "clean"]:
        lines.append(line("all faults", planted))
    return "\n".join(lines)


def alone(rows: list[dict[str, Any]]) -> str:
    """Return what each test would find by itself, and what the usual ones and all of them find, in Markdown."""
    choices = {f"`{name}`": [name] for name in TESTS} | {"the usual ones": USUAL, "all": [*TESTS]}
    halves = {"first half": False, "held out": True}
    heads = [f"{half}: {what}" for half in halves for what in ("with the class", "other classes", "clean")]
    lines = [f"| tests | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name, tests in choices.items():
        cells = [name]
        for held_out in halves.values():
            found = [row | scored(row["statistics"], tests) for row in rows if row["held_out"] == held_out]
            clean = [row for row in found if row["kind"] == "clean"]
            faulty = [row for row in found if row["kind"] != "clean"]
            cells += [
                share(bool(classes(row)) for row in faulty),
                share(bool({finding["class"] for finding in row["findings"]} - planted(row)) for row in faulty),
                share(bool(row["findings"]) for row in clean),
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def tables(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Return the tables of both halves, and that of the tests."""
    known = [row | scored(row["statistics"]) for row in rows]
    halves = ([row for row in known if row["held_out"] == held_out] for held_out in (False, True))
    return [*(write_table(half) for half in halves), alone(known)]


def main() -> None:
    """Train and examine the classifiers that are not in `RESULTS`, and print the tables of both halves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/planted"))
    parser.add_argument("--half", choices=["development", "held-out"], help="Only this half.")
    parser.add_argument("--sets", default=",".join(DATASETS), help="Only these data sets, separated by commas.")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    chosen = [plant for plant in plants() if plant.data in options.sets.split(",")]
    chosen = [plant for plant in chosen if options.half is None or plant.held_out == (options.half == "held-out")]
    for plant in chosen:
        if plant.name in stored():
            continue
        path = options.work / f"{plant.name}.json"
        facts = json.loads(path.read_text()) if path.exists() else train(plant, options.data, options.work)
        row = {**facts, **examine(plant, options.data, options.work)}
        store(stored() | {plant.name: row})
        findings = [tuple(finding.values()) for finding in scored(row["statistics"])["findings"]]
        print(plant.name, plant.label, facts.get("success"), findings, flush=True)
    print("", *tables(stored().values()), sep="\n\n")


if __name__ == "__main__":
    main()
