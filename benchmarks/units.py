"""Measures whether inverted units are excited more than by any real image.

    python -m benchmarks.units mnist fashion_mnist --data DIR --work runs/units

Of each shipped classifier with batch norm, 25 units are drawn at random among the channels of its activation layers,
and inverted by `pixels` with `excite`, four images each. The ratio is a unit's mean activation over its samples,
divided by that over the 100 of all real images (train and test) that excite it most. Finished runs are kept in
--work.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import interpkit
from benchmarks.harness import SHIPPED
from examples.train_classifier import load_data

STRONGEST = 100


def chosen(target: interpkit.Target, count: int, seed: int = 0) -> list[str]:
    """Return units at random, as LAYER:CHANNEL, of the layers of activations."""
    layers = [name for name, layer in target.layers().items() if isinstance(layer, nn.LeakyReLU)]
    with torch.no_grad():
        features = target.respond(torch.zeros(1, *target.input_shape), layers).features
    units = [f"{name}:{channel}" for name in layers for channel in range(features[name].shape[1])]
    order = torch.randperm(len(units), generator=torch.Generator().manual_seed(seed))[:count]
    return [units[place] for place in sorted(order.tolist())]


@torch.no_grad()
def activations(target: interpkit.Target, images: Tensor, units: list[str]) -> Tensor:
    """Return the units' activations, (N, units): means over positions."""
    places = [(name, int(channel)) for name, channel in (unit.split(":") for unit in units)]
    layers, rows = list({name for name, _ in places}), []
    for part in images.split(500):
        features = target.respond(part, layers).features
        means = {name: features[name].reshape(*features[name].shape[:2], -1).mean(2) for name in layers}
        rows.append(torch.stack([means[name][:, channel] for name, channel in places], 1))
    return torch.cat(rows)


def main() -> None:
    """Print a row for each unit, and the share above 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", help="Data sets of the classifiers.")
    parser.add_argument("--data", type=Path, required=True, help="Folder of the data sets' .npz files.")
    parser.add_argument("--work", type=Path, default=Path("runs/units"), help="Folder for the runs.")
    parser.add_argument("--presets", nargs="+", default=["pixels", "excite"], help="Presets.")
    parser.add_argument("--units", type=int, default=25, help="Units of each classifier (default: 25).")
    parser.add_argument("--steps", type=int, default=100, help="Steps of an inversion (default: 100).")
    args = parser.parse_args()
    ratios = []
    print("| classifier | unit | inverted | 100 strongest real | ratio |\n|---|---|---|---|---|", flush=True)
    for dataset in args.datasets:
        target = interpkit.load_target(SHIPPED / f"{dataset}_bn.safetensors")
        units, folder = chosen(target, args.units), args.work / f"{dataset}_bn-{'-'.join(args.presets)}-{args.steps}"
        if not (folder / "report.html").exists():
            begun = time.process_time()
            found = interpkit.units(target, units)
            interpkit.invert(
                found, args.presets, steps=args.steps, per_class=4, seed=0, device="cpu", out=folder, force=True
            )
            print(f"{time.process_time() - begun:.0f} CPU s", flush=True)
        images, labels = interpkit.load_inversion(folder).sample(per_class=4)
        x_train, _, x_test, _ = load_data(str(args.data / f"{dataset}.npz"), "")
        made, real = activations(target, images, units), activations(target, torch.cat([x_train, x_test]), units)
        for k, unit in enumerate(units):
            own, best = made[labels == k, k].mean().item(), real[:, k].topk(STRONGEST).values.mean().item()
            ratios.append(own / best)
            print(f"| {target.name} | {unit} | {own:.3f} | {best:.3f} | {ratios[-1]:.2f} |", flush=True)
    found = torch.tensor(ratios)
    print(f"\nabove 1: {(found > 1).sum().item()} of {len(found)}; median {found.median():.2f}", flush=True)


if __name__ == "__main__":
    main()
