"""Measures rules by ``hypinv`` on three tables, beside a tree of single features.

    python -m benchmarks.rules [--epochs N]

For each table and five seeds, a network with two layers of 16 tanh units learns 70 % of the rows. ``hypinv`` makes
rules from these rows and noisy copies of them; an axis-parallel tree with as many leaves is fitted to the network's
answers for such points. Both are tested on the other rows, and on further noisy copies ("near").
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import mean

import numpy as np
import torch
import torch.nn.functional as F
from sklearn import datasets
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor, nn

import interpkit
from interpkit import Target

TABLES = {"wine": datasets.load_wine, "breast cancer": datasets.load_breast_cancer, "iris": datasets.load_iris}
SEEDS = range(5)
SIGMA = 0.15
POINTS = 2000
PLANES = 4
COLUMNS = ("net accuracy", "planes", "rules", "rows", "near", "axis: rows", "axis: near", "CPU seconds")


def trained(x: Tensor, y: Tensor, rows: Tensor, epochs: int, names: list[str]) -> Target:
    """Return a classifier of features in the table's own units that has learned the given rows."""
    low, high = x.amin(0), x.amax(0)
    width = x.shape[1]
    net = nn.Sequential(nn.Linear(width, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, len(names)))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(epochs):
        optimizer.zero_grad()
        F.cross_entropy(net((x[rows] - low) / (high - low)), y[rows]).backward()
        optimizer.step()
    ranges, scale = torch.stack([low, high], 1).tolist(), (high - low).tolist()
    return interpkit.wrap(net, (width,), input_range=ranges, mean=low.tolist(), std=scale, class_names=names)


def figures(table: str, seed: int, epochs: int, folder: Path) -> tuple[float, ...]:
    """Return the figures of one table and seed, in the order of ``COLUMNS``."""
    data, rng = TABLES[table](), torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    x, y = torch.tensor(data.data, dtype=torch.float32), torch.tensor(data.target)
    train, test = torch.randperm(len(x), generator=rng).tensor_split([round(0.7 * len(x))])
    target = trained(x, y, train, epochs, list(map(str, data.target_names)))
    rows, held_out = target.to_unit(x[train]), target.to_unit(x[test])

    def noisy(count: int) -> Tensor:
        copies = rows[torch.randint(len(rows), (count,), generator=rng)]
        return (copies + SIGMA * torch.randn(copies.shape, generator=rng)).clamp(0, 1)

    def answers(points: Tensor) -> Tensor:
        with torch.no_grad():
            return target(points).argmax(1)

    file = folder / "rows.npz"
    np.savez(file, X=x[train], y=y[train], feature_names=data.feature_names)
    options = {"data": str(file), "sigma": SIGMA, "points": POINTS, "held_out": 0.0, "fidelity": 0.998}
    begun = time.process_time()
    inversion = interpkit.invert(
        target,
        inverter="hypinv",
        steps=PLANES,
        seed=seed,
        device="cpu",
        options={f"hypinv.{name}": value for name, value in options.items()},
    )
    seconds = time.process_time() - begun
    size = inversion.rules.complexity
    learned, near = torch.cat([rows, noisy(POINTS - len(rows))]), noisy(4000)
    axis = DecisionTreeClassifier(max_leaf_nodes=size["rules"], random_state=0).fit(learned, answers(learned))
    agreements = [
        (torch.as_tensor(classify(points)) == answers(points)).double().mean().item()
        for classify in (inversion.classify, axis.predict)
        for points in (held_out, near)
    ]
    accuracy = (answers(held_out) == y[test]).double().mean().item()
    return accuracy, size["planes"], size["rules"], *agreements, seconds


def main() -> None:
    """Print the means, and the lowest agreement near the data of any seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=300, help="Steps of Adam that train each network (default: 300).")
    args = parser.parse_args()
    print(f"| table | {' | '.join(COLUMNS)} | lowest near |\n|{'---|' * (len(COLUMNS) + 2)}")
    for table in TABLES:
        with tempfile.TemporaryDirectory() as folder:
            rows = [figures(table, seed, args.epochs, Path(folder)) for seed in SEEDS]
        means = [mean(column) for column in zip(*rows, strict=True)]
        shown = [
            f"{value:.1f}" if name in ("planes", "rules", "CPU seconds") else f"{value:.3f}"
            for name, value in zip(COLUMNS, means, strict=True)
        ]
        print(f"| {table} | {' | '.join(shown)} | {min(row[4] for row in rows):.3f} |", flush=True)


if __name__ == "__main__":
    main()
