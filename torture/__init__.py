"""Long-running reliability tests: run each module with ``python -m torture.NAME``; its ``main()`` saves the figures.

`make torture` runs them all and writes the table of ``docs/reliability.md``; ``tests/torture/`` has short versions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "docs" / "reliability.json"


def keep(name: str, result: Any) -> None:
    """Save a result in ``docs/reliability.json`` under a name, next to the results of the other modules."""
    results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    text = json.dumps(results | {name: result}, indent=1, sort_keys=True, ensure_ascii=False)
    RESULTS.write_text(text + "\n", "utf-8")


def keep_part(name: str, group: str, part: str, result: Any, **facts: Any) -> None:
    """Save the result of one part in a group of a module's result, and facts beside it; keep the other parts."""
    before = json.loads(RESULTS.read_text("utf-8")).get(name, {}) if RESULTS.exists() else {}
    keep(name, {**before, **facts, group: {**before.get(group, {}), part: result}})
