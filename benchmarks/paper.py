"""The paper's evaluation, with numbers: every recipe and baseline on MNIST, FashionMNIST, SVHN and CIFAR-10.

    python -m benchmarks.paper --data DIR --models DIR [--targets mnist_bn,...] [--recipes vecmat,...] [--seeds 0,1,2]

Finished runs and measurements are stored in ``--work`` by recipe and seed, so a second call resumes where the first one
stopped. ``--write`` writes the tables into docs/results/paper.md and copies the grids into docs/images/results.
"""

from __future__ import annotations

import argparse

from benchmarks.harness import Place, Recipe, keep, over_seeds, run, table, write_section

TARGETS = (
    "mnist_bn",
    "mnist",
    "fashion_mnist_bn",
    "fashion_mnist",
    "svhn",
    "cifar10_bn",
    "cifar10",
    "mnist_bn_smoothed",
)
RECIPES = {
    r.name: r
    for r in (
        Recipe("vecmat", ["vecmat"]),
        Recipe("robust", ["vecmat", "robust"]),
        Recipe("training-like", ["vecmat", "training-like"], taught=True),
        Recipe("exhaustive", ["vecmat", "exhaustive"], taught=True),
    )
}
BASELINES = {
    name: Recipe(name, [name], {"options": {"inverter.per_class": 10}})
    for name in ("pixels", "deepinversion", "evolution")
}
"""With 100 samples and one seed, because they generate images one by one."""
BASELINE_TARGETS = ("mnist_bn", "mnist", "cifar10_bn", "cifar10")
GRID = Recipe("eight generators", ["vecmat"], {"generators": 8})
"""The paper's Figure 2: one row per class, one column per generator, for one target per data set."""
GRID_TARGETS = ("mnist_bn", "fashion_mnist_bn", "svhn", "cifar10_bn")


def main() -> None:
    """Run the recipes that are not finished yet, and print a table for each target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    Place.add_arguments(parser)
    parser.add_argument("--targets", default=",".join(TARGETS), help="Targets, separated by commas.")
    recipes = ",".join([*RECIPES, *BASELINES, GRID.name])
    parser.add_argument("--recipes", default=recipes, help="Recipes, separated by commas.")
    parser.add_argument("--seeds", default="0,1,2", help="Random seeds, separated by commas.")
    args = parser.parse_args()
    place, names = Place.parse(args), args.recipes.split(",")
    seeds = [int(seed) for seed in args.seeds.split(",")]
    sections, everything = [], []
    for target in args.targets.split(","):
        rows = {}
        for name in names:
            recipe, times = cells(name, target, seeds)
            done = run(target, recipe, times, place)
            if done:
                rows[recipe.name] = over_seeds([result.figures for result in done])
                everything += done
        if rows:
            evaluators = ", ".join(f"{name} {accuracy:.1%}" for name, accuracy in everything[-1].evaluators.items())
            head = f"Target {everything[-1].target_accuracy:.1%} on real test images; evaluators: {evaluators}."
            sections.append(f"### {target}\n\n{head}\n\n{table(rows, 'recipe')}")
            print(sections[-1], flush=True)
    if args.write:
        keep(everything, place, pictures=True)
        write_section("paper.md", "paper", "\n" + "\n".join(sections) + "\n")


def cells(name: str, target: str, seeds: list[int]) -> tuple[Recipe, list[int]]:
    """Return a recipe and the seeds to run it with on a target; no seeds where it does not apply."""
    if name in RECIPES:
        return RECIPES[name], seeds
    if name == GRID.name:
        return GRID, seeds[:1] if target in GRID_TARGETS else []
    fits = target in BASELINE_TARGETS and (name != "deepinversion" or target.endswith("_bn"))
    return BASELINES[name], seeds[:1] if fits else []


if __name__ == "__main__":
    main()
