"""All long-running reliability tests, and the table of their results: ``make torture``; takes hours.

``python -m torture --table`` rewrites the table of ``docs/reliability.md`` from the saved results and runs no tests.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torture import RESULTS

PARTS = ("kills", "faults", "fuzz", "long_run", "coverage", "mutants", "twice", "differences")
PAGE = RESULTS.with_suffix(".md")
START, END = "<!-- table -->\n", "<!-- end of table -->\n"
Row = tuple[str, str, str, bool]
"""What was measured, the figure, its goal, and whether the goal is met."""


def rows(kept: dict[str, Any]) -> list[Row]:
    """Return a row for each test that has a saved result."""
    rows: list[Row] = []
    if kills := kept.get("kills"):
        killed, same = kills["killed"], kills["the same"]
        rows.append(("runs killed with -9, bit-identical once resumed", f"{same} of {killed}", "all", same == killed))
    if faults := kept.get("faults"):
        commands = faults["commands"].values()
        operations, possible, tried = (
            sum(row[key] for row in commands) for key in ("operations", "possible", "faults")
        )
        failed = sum(len(row["failed"]) for row in commands)
        what = f"{possible:,} faults at {operations:,} file operations of {len(commands)} commands: guarantees violated"
        rows.append((what, f"{failed} of {tried:,} tried", f"0 of {possible:,}", failed == 0 and tried == possible))
    if fuzz := kept.get("fuzz"):
        readers = fuzz["readers"].values()
        inputs, wrong = (sum(row["inputs"] for row in readers), sum(sum(row["findings"].values()) for row in readers))
        what = f"mutated inputs of {len(readers)} readers: tracebacks, hangs, growth, imports, files outside"
        rows.append((what, f"{wrong} of {inputs:,}", "0 of 300,000", wrong == 0 and inputs >= 300_000))
    if long_run := kept.get("long_run"):
        ratio = long_run["memory at the end over memory at step 500"]
        what = f"memory after {long_run['steps']:,} steps over that after 500"
        rows.append((what, f"{ratio:.4f}", "<= 1.02", ratio <= 1.02))
    if coverage := kept.get("coverage"):
        share, whole = coverage["branches"], coverage["statements and branches"]
        figure = f"{share:.1%} ({whole:.1%} with statements)"
        rows.append(("branch coverage of interpkit/ and plugins/", figure, ">= 95 %", share >= 0.95))
    for name, group in kept.get("mutants", {}).get("groups", {}).items():
        low, high = group["interval"]
        figure = f"{group['share']:.1%} of {group['tried']} ({low:.1%} to {high:.1%})"
        rows.append((f"mutants of {name} that the tests notice", figure, ">= 85 %", group["share"] >= 0.85))
    if twice := kept.get("twice"):
        settings = [row for row in twice.values() if isinstance(row, dict)]
        runs, same = (sum(row[key] for row in settings) for key in ("runs", "the same"))
        rows.append(
            ("pairs of runs in fresh processes, identical bit for bit", f"{same} of {runs}", "all", same == runs)
        )
    return rows


def table(kept: dict[str, Any]) -> str:
    """Return the table as Markdown."""
    commands = [f"`{entry['command']}`" for _, entry in sorted(kept.items()) if "command" in entry]
    lines = ["| what | measured | goal | met |", "|---|---|---|---|"]
    lines += [
        f"| {what} | {figure} | {goal} | {'yes' if met else '**no**'} |" for what, figure, goal, met in rows(kept)
    ]
    return "\n".join(lines) + f"\n\nBy {', '.join(commands)}.\n"


def write_table(page: Path = PAGE) -> None:
    """Write the table between its marks in ``docs/reliability.md``."""
    before, rest = page.read_text("utf-8").split(START)
    after = rest.split(END)[1]
    page.write_text(before + START + table(json.loads(RESULTS.read_text("utf-8"))) + END + after, "utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all tests, or write only the table."""
    parser = argparse.ArgumentParser(prog="python -m torture", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--table", action="store_true", help="Write the table from the saved results; run no tests.")
    if not parser.parse_args(arguments).table:
        for part in PARTS:  # each in its own process, because some limit or monitor theirs
            print(f"\n{part}", flush=True)
            subprocess.run([sys.executable, "-m", f"torture.{part}"])
            write_table()
    write_table()


if __name__ == "__main__":
    main()
