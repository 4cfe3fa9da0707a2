"""The paper's evaluation: every recipe and baseline on MNIST, FashionMNIST, SVHN and CIFAR-10, with numbers.

    python -m benchmarks.paper --data DIR --models DIR [--targets mnist_bn,...] [--recipes vecmat,...] [--seeds 0,1,2]

Finished runs and measurements are kept in ``--work`` by recipe and seed, so a second call goes on where the first
stopped. ``--write`` puts the tables into docs/results.md and the grids beside it.
"""

from __future__ import annotations

import argparse
import shutil

from benchmarks.harness import ROOT, Place, Recipe, figures, over_seeds, run, table, write_section

TARGETS = ("mnist_bn", "mnist", "fashion_mnist_bn", "fashion_mnist", "svhn", "cifar10_bn", "cifar10")
RECIPES = {
    r.name: r
    for r in (
        Recipe("vecmat", ["vecmat"]),
        Recipe("robust", ["vecmat", "robust"]),
        Recipe("training-like", ["vecmat", "training-like"]),
    )
}
BASELINES = {
    name: Recipe(name, [name], {"options": {"inverter.per_class": 10}})
    for name in ("pixels", "deepinversion", "evolution")
}
"""At 100 samples and one seed: they make images one by one."""
BASELINE_TARGETS = ("mnist_bn", "mnist", "cifar10_bn", "cifar10")
GRID = Recipe("vecmat, 8 generators", ["vecmat"], {"generators": 8})
"""The paper's Figure 2: a row a class, a column a generator."""


def main() -> None:
    """Run what is not there yet, and print a table for each target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    Place.add_arguments(parser)
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--recipes", default=",".join([*RECIPES, *BASELINES, "grid"]))
    parser.add_argument("--seeds", default="0,1,2")
    args = parser.parse_args()
    place, names = Place.parse(args), args.recipes.split(",")
    seeds = [int(seed) for seed in args.seeds.split(",")]
    sections = []
    for target in args.targets.split(","):
        rows = {}
        for name in names:
            if name in RECIPES:
                done = [run(target, RECIPES[name], seed, place) for seed in seeds]
            elif name == "grid":
                done = [run(target, GRID, seeds[0], place)]
            elif target in BASELINE_TARGETS and not (name == "deepinversion" and not target.endswith("_bn")):
                done = [run(target, BASELINES[name], seeds[0], place)]
            else:
                continue
            rows[name if name != "grid" else GRID.name] = over_seeds([figures(metrics) for _, metrics in done])
            if args.write:
                pictures = ROOT / "docs" / "images" / "results"
                pictures.mkdir(parents=True, exist_ok=True)
                shutil.copy(done[0][0] / "samples.png", pictures / f"{target}-{name}.png")
        if not rows:
            continue
        judges = ", ".join(f"{j['name']} {j['reference_accuracy']:.1%}" for j in done[0][1]["evaluators"])
        accuracy = done[0][1]["reference"]["target_accuracy"]
        head = f"### {target}\n\nTarget {accuracy:.1%} on real test images; evaluators: {judges}.\n\n"
        sections.append(head + table(rows, "recipe"))
        print(sections[-1], flush=True)
    if args.write:
        write_section("paper", "\n" + "\n".join(sections) + "\n")


if __name__ == "__main__":
    main()
