"""``interpkit audit``: is something hidden in a classifier?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from interpkit.cli import console, options
from interpkit.errors import UsageError


def audit(
    source: options.Source,
    ctx: typer.Context,
    reference: Annotated[
        str | None, typer.Option(metavar="DATA", help="Real images with labels, which the tests change then.")
    ] = None,
    training: Annotated[
        str | None, typer.Option(metavar="DATA", help="Images that it was trained on, by default of the train split.")
    ] = None,
    test: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Test to make; repeatable (default: the usual ones).")
    ] = None,
    preset: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Preset that makes the samples; repeatable.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="TEST.OPTION=VALUE", help="Set an option; repeatable.")
    ] = None,
    per_class: Annotated[
        int | None, typer.Option(min=2, metavar="N", help="Images of each class (default: 12).")
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Random seed of the tests, and of samples made for them.")
    ] = 0,
    device: options.Device = "auto",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to write (default: RUN/audit or audits/MODEL).")
    ] = None,
    fail_on: Annotated[
        str | None,
        typer.Option(metavar="warning|alarm", help="Exit with code 5 if there is a finding of this level or above."),
    ] = None,
    model: options.RunsModel = None,
    plugin: options.PluginFile = None,
    json_: options.Json = False,
) -> None:
    """Test a classifier for triggers, leaks, mixed-up labels and other faults, with no data.

    Writes audit.html, audit.json and audit.safetensors. A warning is a finding at a family-wise error of 5 %, an alarm
    one at 0.1 %. The page "What an audit cannot show" states its limits. Example: interpkit audit model.safetensors
    """
    from interpkit.api import audit as api
    from interpkit.io.atomic import inner_folder
    from interpkit.plugins import loading

    options.load_plugin_files(plugin)
    if fail_on not in (None, *api.LEVELS):
        raise UsageError(f"--fail-on takes {' or '.join(api.LEVELS)}, not {fail_on!r}.")
    run = options.run_of(source, model, ctx.obj)
    known: Any
    if run is not None:
        known = run.load(model=model, **ctx.obj)
        place = out or inner_folder(run / "audit")
    else:
        known = loading.load_target(source, **ctx.obj)
        place = out or options.default_folder("audits", source, known, api.FIGURES)
    report = api.audit(
        known,
        reference=reference,
        training=training,
        tests=test or (),
        options=dict(options.pair("--set", text) for text in set_ or []),
        presets=preset or (),
        per_class=per_class,
        seed=seed,
        device=device,
        out=place,
        on_test=lambda name: console.note(f"test {name} ..."),
    )
    if json_:
        console.print_json(report.record)
    else:
        _print(report.record)
        console.out.out(str(place / api.PAGE))
    levels = list(api.LEVELS)
    if fail_on and any(levels.index(found["level"]) >= levels.index(fail_on) for found in report.findings):
        raise typer.Exit(5)


def _print(record: dict[str, Any]) -> None:
    from interpkit.report.text import place_of

    for finding in record["findings"]:
        console.note(
            f"{finding['level']}: {place_of(finding)}: {finding['kind']} (p = {finding['p_value']:.2g}). "
            f"{finding['evidence']}"
        )
    if not record["findings"]:
        console.note("nothing found, which does not mean that nothing is there: the page says what was not tested")
    for note in record["notes"]:
        console.note(note)
    for name, reason in record["left_out"].items():
        console.note(f"{name} is left out: {reason}")
