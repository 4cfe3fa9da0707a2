"""Reliability, tried at length: each module has a ``main()``, is run by ``python -m torture.NAME``, keeps its figures.

`make torture` runs them all and fills the table of ``docs/reliability.md``; short versions are tests in
``tests/torture/``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "docs" / "reliability.json"


def keep(name: str, result: Any) -> None:
    """Write a result into ``docs/reliability.json`` under a name, beside those of the others."""
    results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    text = json.dumps(results | {name: result}, indent=1, sort_keys=True, ensure_ascii=False)
    RESULTS.write_text(text + "\n", "utf-8")
