"""``interpkit plugins check``: whether a plugin's components satisfy the contracts of their interfaces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interpkit.cli import console, describing, options
from interpkit.errors import UsageError, did_you_mean, listed

if TYPE_CHECKING:
    from interpkit.plugins.registry import Entry
    from interpkit.testing.checks import Outcome


def check(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Name of a plugin or of a component, or a plugin file.", show_default=False
        ),
    ],
    waive: Annotated[
        list[str] | None,
        typer.Option(metavar="CHECK=REASON", help="Skip a check, for a stated reason; repeatable."),
    ] = None,
    json_: options.Json = False,
) -> None:
    """Check that a plugin's components satisfy the contracts of their interfaces; exit with code 1 if one does not."""
    from interpkit.testing.checks import checks_of_kind, outcomes

    _, entries = describing.named(name)
    promising = {entry.kind: [c.name for c in checks_of_kind(entry.kind)] for entry in entries}
    entries = [entry for entry in entries if promising[entry.kind]]
    waived = _waivers(waive or [], {check for kind in promising.values() for check in kind})
    rows = []
    for entry in entries:
        theirs = {check: reason for check, reason in waived.items() if check in promising[entry.kind]}
        found = list(outcomes(entry.item, theirs))
        rows.append(_row(entry, found))
        if not json_:
            _print(entry, found)
    if json_:
        console.print_json(rows)
    elif not rows:
        console.note(f"{name} provides nothing that is checked: no component and no loader.")
    if any(row["broken"] for row in rows):
        raise typer.Exit(1)


def _waivers(given: list[str], known: set[str]) -> dict[str, str]:
    waived = {}
    for text in given:
        check, equals, reason = text.partition("=")
        if not equals or not reason.strip():
            raise UsageError(f"--waive {text}: a waiver needs its reason: --waive CHECK=REASON.")
        if check not in known:
            raise UsageError(
                f"--waive {text}: there is no check {check!r}.{did_you_mean(check, known)} "
                f"There are: {listed(sorted(known), len(known))}."
            )
        waived[check] = reason.strip()
    return waived


def _of(found: list[Outcome], status: str) -> list[Outcome]:
    return [outcome for outcome in found if outcome.status == status]


def _row(entry: Entry, found: list[Outcome]) -> dict[str, Any]:
    return {
        "plugin": entry.owner,
        "kind": entry.kind,
        "name": entry.name,
        "kept": [outcome.check.name for outcome in _of(found, "kept")],
        "waived": {outcome.check.name: outcome.detail for outcome in _of(found, "waived")},
        "unchecked": [outcome.check.name for outcome in _of(found, "unchecked")],
        "broken": [
            {
                "check": outcome.check.name,
                "promise": outcome.check.promise,
                "seen": outcome.detail,
                "remedy": outcome.check.remedy,
            }
            for outcome in _of(found, "broken")
        ],
    }


def _print(entry: Entry, found: list[Outcome]) -> None:
    """Print how many checks of a component passed, and the details of the others."""
    counts: Mapping[str, int] = {
        status: len(_of(found, status)) for status in ("kept", "waived", "broken", "unchecked")
    }
    said = ", ".join(f"{count} {status}" for status, count in counts.items() if count or status == "kept")
    console.out.out(f"{entry.kind} {entry.name}: {said}", highlight=False)
    for outcome in _of(found, "waived"):
        console.out.out(f"  waived {outcome.check.name}: {outcome.detail}", highlight=False)
    for outcome in _of(found, "broken"):
        console.out.out(f"  broken {outcome.check.name}: {outcome.check.promise}.", highlight=False)
        console.out.out(f"    seen: {outcome.detail}", highlight=False)
        console.out.out(f"    mend: {outcome.check.remedy}.", highlight=False)
