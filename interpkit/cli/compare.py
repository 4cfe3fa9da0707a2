"""``interpkit compare``: the figures of several runs side by side."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from interpkit.cli import console, options, tables
from interpkit.errors import UsageError
from interpkit.evaluation.flatten import flattened


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN RUN...", help="Two or more run folders.", show_default=False)
    ],
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a page with the samples side by side.")
    ] = None,
    json_: options.Json = False,
) -> None:
    """Show the metrics of several runs side by side, one column per run.

    Metrics that only interpkit evaluate measures appear once it has measured the run.
    """
    from interpkit.runs.folder import Run

    if len(runs) < 2:
        raise UsageError("compare needs at least two runs: interpkit compare RUN RUN...")
    opened = [Run.open(folder) for folder in runs]
    models = [run.manifest().model for run in opened]
    metrics = [run.metrics() for run in opened]
    figures = [flattened(column) for column in metrics]
    measured_on = [column.get("measured_on", {}) for column in metrics]
    known = [on for on in measured_on if on]
    recent = {key for on in known for key in on if key.endswith(".sha256") and not all(key in other for other in known)}
    facts = [{key: value for key, value in on.items() if key not in recent} for on in known]  # others had no digest
    if len({json.dumps(on, sort_keys=True) for on in facts}) > 1:
        told = "; ".join(f"{folder}: {json.dumps(on)}" for folder, on in zip(runs, measured_on, strict=True))
        console.note(f"These runs were measured on different data or with different options: {told}.")
    digests = [model.sha256 for model in models]  # early runs of a classifier in memory have none
    if len(set(digests if all(digests) else [model.name for model in models])) > 1:
        told = ", ".join(f"{folder} of {model.name}" for folder, model in zip(runs, models, strict=True))
        console.note(f"These runs are of different classifiers: {told}.")
    names = list(dict.fromkeys(name for column in figures for name in column))
    if html is not None:
        from interpkit.report import write_comparison

        if len(set(runs)) < len(runs):
            raise UsageError("a run is named twice: the page compares different runs.")
        write_comparison(dict(zip(_headings(runs), opened, strict=True)), html)
    if json_:
        columns: list[dict[str, Any]] = [
            {"run": str(folder), "model": model.name, "metrics": {name: f.value for name, f in column.items()}}
            for folder, model, column in zip(runs, models, figures, strict=True)
        ]
        console.print_json(columns)
        return
    from rich.table import Table

    table = Table("", *tables.figures(*_headings(runs)))
    for name in names:
        table.add_row(name, *(str(column.get(name, "-")) for column in figures))
    tables.show(table)
    if html is not None:
        console.out.out(str(html))


def _headings(runs: list[Path]) -> list[str]:
    """Return the folders' names, or their paths where two have the same name."""
    names = [Path(os.path.abspath(folder)).name for folder in runs]
    return names if len(set(names)) == len(names) else [str(folder) for folder in runs]
