"""The effect of each part: every term, half of the conditioning and added idea removed in turn, and two sweeps.

    python -m benchmarks.ablation --data DIR --models DIR [--targets mnist_bn,mnist] [--seeds 0]

Finished runs are stored in ``--work``; ``--write`` writes the tables into docs/results/paper.md.
"""

from __future__ import annotations

import argparse

from benchmarks.harness import Place, Recipe, keep, over_seeds, run, table, write_section

LIKE = ["vecmat", "training-like"]


def paper_recipes() -> list[Recipe]:
    """Return the paper's recipe, the recipe without each of its parts, and the sweeps of gamma and dropout."""
    recipes = [Recipe("vecmat", ["vecmat"])]
    recipes += [Recipe(f"without {term}", ["vecmat"], {"losses": {term: 0.0}}) for term in ("kl", "ce", "cosine")]
    recipes += [Recipe(f"conditioning: {c}", ["vecmat"], {"conditioner": c}) for c in ("vector", "matrix", "label")]
    recipes += [Recipe(f"gamma = {g:g}", ["vecmat"], {"losses": {"cosine": g}}) for g in (0.3, 3.0, 10.0, 30.0)]
    recipes += [
        Recipe(f"dropout {d}", ["vecmat"], {"options": {"generator.dropout": d}}) for d in (0.0, 0.1, 0.3, 0.4, 0.5)
    ]
    recipes.append(Recipe("dropout off in sampling", ["vecmat"], {"options": {"sampling.dropout": False}}))
    return recipes


def like_recipes() -> list[Recipe]:
    """Return the preset ``training-like``, without each of its parts, and with ideas that it does not include."""
    recipes = [Recipe("training-like", LIKE)]
    recipes += [
        Recipe(f"without {term}", LIKE, {"losses": {term: 0.0}}) for term in ("statistics", "robust", "tv", "spread")
    ]
    recipes += [Recipe(f"conditioning: {c}", LIKE, {"conditioner": c}) for c in ("vector", "matrix", "label")]
    recipes.append(Recipe("generator upconv, no warp", LIKE, {"generator": "upconv"}))
    changed = {
        "tv the same all over": ("tv.edge", 1.0),
        "no occlusion": ("robust.occlusion", 0.0),
        "bilinear doubling": ("generator.upsample", "bilinear"),
        "dropout 0.2": ("generator.dropout", 0.2),
    }
    recipes += [Recipe(name, LIKE, {"options": {option: value}}) for name, (option, value) in changed.items()]
    added = {"kl": 0.3, "cosine": 1.0, "orthogonality": 1.0, "ghosts": 1.0}
    recipes += [Recipe(f"with {term} {weight:g}", LIKE, {"losses": {term: weight}}) for term, weight in added.items()]
    recipes.append(Recipe("cross-entropy 1, not 3", LIKE, {"losses": {"ce": 1.0}}))
    recipes.append(Recipe("4 generators", LIKE, {"generators": 4}))
    return recipes


TABLES = {"vecmat": paper_recipes, "training-like": like_recipes}


def main() -> None:
    """Run the recipes that are not finished yet, and print a table for each target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    Place.add_arguments(parser)
    parser.add_argument("--targets", default="mnist_bn,mnist", help="Targets, separated by commas.")
    parser.add_argument("--seeds", default="0", help="Random seeds, separated by commas.")
    parser.add_argument("--tables", default=",".join(TABLES), help=f"Which of the tables {', '.join(TABLES)} to make.")
    args = parser.parse_args()
    place, seeds = Place.parse(args), [int(seed) for seed in args.seeds.split(",")]
    sections, everything = [], []
    for target in args.targets.split(","):
        for title in args.tables.split(","):
            recipes = TABLES[title]()
            done = {recipe.name: run(target, recipe, seeds, place) for recipe in recipes}
            done = {name: results for name, results in done.items() if results}
            if not done:
                continue
            everything += [result for results in done.values() for result in results]
            rows = {name: over_seeds([result.figures for result in results]) for name, results in done.items()}
            sections.append(f"### `{title}`, on {target}\n\n" + table(rows, "recipe"))
            print(sections[-1], flush=True)
    if args.write:
        keep(everything, place)
        write_section("paper.md", "ablation", "\n" + "\n".join(sections) + "\n")


if __name__ == "__main__":
    main()
