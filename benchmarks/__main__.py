"""Measure interpkit's speed and memory: ``make bench``, or ``python -m benchmarks [PART]...``.

Writes docs/performance.json, and the tables of docs/performance.md from it. Parts named on the command line replace
only their own rows. ``python -m benchmarks gpu`` measures all that a GPU changes and adds a table for it, and
``--device cuda`` the CPU's parts there; ``OMP_NUM_THREADS=1`` adds a table for one thread. CPUs that compute in bf16
and those that do not have a table each.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import HEAD, Figure, machine
from interpkit.runtime.devices import choose_precision

PARTS = ("step", "convergence", "samples_cost", "growth", "processes", "start", "vecmat_accuracy", "large", "gpu")
ON_A_GPU = ("gpu",)
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
KEPT = PAGE.with_suffix(".json")
START, END = "<!-- table -->\n", "<!-- end of table -->\n"


def table(kept: dict[str, Any]) -> str:
    """Return a Markdown table for each device, with the machine that it was measured on."""
    text = ""
    for device, parts in sorted(kept.items()):
        machines = {json.dumps(part["machine"], sort_keys=True): part["machine"] for part in parts.values()}
        text += f"**{device.replace('cpu', 'CPU')}**\n\n{HEAD}"
        for name in PARTS:
            text += "".join(Figure(**row).row() + "\n" for row in parts.get(name, {"figures": []})["figures"])
        setup = "; ".join(
            f"{m['processor']} ({m['capability']}), {m['threads']} of {m['cores']} cores"
            f"{', ' + m['device'] if m['device'] != 'cpu' else ''}, torch {m['torch']}, Python {m['python']}"
            for m in machines.values()
        )
        text += f"\nOn {setup}.\n\n"
    return text


def write_table() -> None:
    """Write the table between its marks in docs/performance.md."""
    before, rest = PAGE.read_text("utf-8").split(START)
    text = table(json.loads(KEPT.read_text("utf-8")))
    PAGE.write_text(before + START + text + END + rest.split(END)[1], "utf-8")


def main() -> None:
    """Measure the parts, print their figures and save them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"One of {', '.join(PARTS)} (default: all).")
    parser.add_argument("--device", help="Device to measure on (default: cuda for the part gpu alone, else cpu).")
    arguments = parser.parse_args()
    arguments.device = arguments.device or ("cuda" if arguments.parts == ["gpu"] else "cpu")
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(
            "torch finds no GPU here. Pass --device cpu to try the part gpu, without figures that mean anything."
        )
    on_a_gpu = arguments.device != "cpu"
    kind = arguments.device
    if not on_a_gpu:
        threads = torch.get_num_threads()
        kind += " with bf16" if choose_precision("auto", torch.device("cpu")) == "bf16" else " without bf16"
        kind += "" if threads == os.cpu_count() else f", {threads} thread{'s'[: threads - 1]}"
    for part in arguments.parts or (ON_A_GPU if on_a_gpu else PARTS[:-1]):
        figures = importlib.import_module(f"benchmarks.{part}").figures
        print(f"\n{part}\n{HEAD}", end="", flush=True)
        rows = []
        for figure in figures(arguments.device) if on_a_gpu or part in ON_A_GPU else figures():
            print(figure.row(), flush=True)
            rows.append(asdict(figure))
        kept = json.loads(KEPT.read_text("utf-8")) if KEPT.exists() else {}
        kept.setdefault(kind, {})[part] = {
            "machine": machine(torch.device(arguments.device)),
            "figures": rows,
        }
        KEPT.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
        write_table()


if __name__ == "__main__":
    main()
