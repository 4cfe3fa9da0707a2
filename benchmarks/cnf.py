"""What the inverter cnf reaches: a network of MNIST, random small ones against brute force, and a convolutional one.

    python -m benchmarks.cnf --data mnist.npz

Needs the extra ``sat``. Prints one line per figure; seconds are those of one core.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from pathlib import Path
from typing import Any

import torch
from interpkit_sat import BinaryNet

from interpkit import Target, invert, wrap

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))  # the examples import each other as scripts do
from train_bnn import fit
from train_classifier import accuracy, load_data

PER_CLASS = 10


def trained(data: tuple[torch.Tensor, ...], steps: int, **arguments: Any) -> Target:
    """Train a network and print its accuracy."""
    torch.manual_seed(0)
    x_train, y_train, x_test, y_test = data
    net = BinaryNet(input_shape=(1, 28, 28), threshold=0.3, **arguments)
    start = time.process_time()
    fit(net, x_train, y_train, steps=steps)
    seconds = time.process_time() - start
    print(
        f"{arguments}: test accuracy {accuracy(net, x_test, y_test):.3f} after {steps} steps, {seconds:.0f} s",
        flush=True,
    )
    return wrap(net, (1, 28, 28), output="logits")


def sampled(target: Target, **options: Any) -> None:
    """Sample all classes and print how right, distinct and varied the images are."""
    options = {"per_class": PER_CLASS, **options}
    start = time.process_time()
    run = invert(target, inverter="cnf", device="cpu", options={f"cnf.{k}": v for k, v in options.items()})
    seconds = time.process_time() - start
    right = target(run.images).argmax(1) == run.labels
    bits = run.images.flatten(1)
    apart = []
    for label in run.classes:
        own = bits[run.labels == label]
        rows, columns = torch.triu_indices(len(own), len(own), 1)
        apart.append((own[rows] != own[columns]).float().mean(1))
    hamming = torch.cat(apart)
    print(
        f"{options}: {len(bits)} images, {right.float().mean():.0%} right, {len(bits.unique(dim=0))} distinct, Hamming "
        f"mean {hamming.mean():.3f}, least {hamming.min():.3f}, {seconds:.0f} s, empty {dict(run.empty)}",
        flush=True,
    )


def against_brute_force(count: int) -> None:
    """Compare the inputs of random networks of ten bits, all of them, with brute force."""
    inputs = torch.tensor(list(itertools.product([0.0, 1.0], repeat=10)))
    equal = classes = empty = proved = 0
    for seed in range(count):
        torch.manual_seed(seed)
        net = BinaryNet(
            input_shape=(10,),
            num_classes=3 + seed % 8,
            hidden=[[8], [16], [12, 8]][seed % 3],
            fan_in=[4, 6, 0][seed % 3],
        )
        net.train()
        net(
            torch.randint(2, (64, 10)).float()
        )  # batch norms record statistics, so that units are neither all 0 nor all 1
        target = wrap(net.eval(), (10,), output="logits")
        run = invert(target, inverter="cnf", device="cpu", options={"cnf.per_class": 1025})
        votes = target(inputs)
        for label in range(target.num_classes):
            others = votes.clone()
            others[:, label] = -torch.inf
            wanted = {tuple(row) for row in inputs[votes[:, label] > others.max(1).values].tolist()}
            found = run.images[run.labels == label].tolist()
            equal += wanted == {tuple(row) for row in found} and len(wanted) == len(found)
            classes += 1
            empty += not wanted
            proved += not wanted and f"class-{label}.drat" in run.files()
    print(
        f"{count} networks of 10 bits: {equal} of {classes} classes equal to brute force, {proved} of {empty} empty "
        f"ones proved",
        flush=True,
    )


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="mnist.npz")
    parser.add_argument("--networks", type=int, default=50, help="Random networks of ten bits (default: 50).")
    parser.add_argument("--steps", type=int, default=3000, help="Steps of training (default: 3000).")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data(str(args.data), "")
    sparse = trained(data, args.steps, hidden=[200], fan_in=32)
    sampled(sparse)
    sampled(sparse, distance=100)
    against_brute_force(args.networks)
    conv = trained(data, args.steps, channels=[12], kernel=5, stride=2, hidden=[256], fan_in=32)
    sampled(conv)


if __name__ == "__main__":
    main()
