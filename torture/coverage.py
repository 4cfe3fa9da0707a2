"""Branch coverage of interpkit and its plugins by all tests together; ``make coverage`` runs this module.

Python processes that tests start are measured too. ``[tool.coverage]`` in ``pyproject.toml`` specifies what is excluded
and how much coverage is required.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torture import keep

ROOT = Path(__file__).parents[1]
PYTEST = ("-m", "pytest", "--numprocesses", "auto", "--maxprocesses", "8", "--dist", "loadfile")
COUNTS = ("num_statements", "missing_lines", "num_branches", "missing_branches")


def coverage(*words: str) -> int:
    """Run a command of coverage.py at the root; return its exit status."""
    return subprocess.run([sys.executable, "-m", "coverage", *words], cwd=ROOT).returncode


def figures(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Return the counts of ``coverage json``, in total and by package."""
    packages: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(COUNTS, 0))
    for file, entry in measured["files"].items():
        counts = packages[Path(file).parent.as_posix()]
        for name in COUNTS:
            counts[name] += entry["summary"][name]
    total = {name: sum(counts[name] for counts in packages.values()) for name in COUNTS}
    return {
        **total,
        "branches": round(1 - total["missing_branches"] / total["num_branches"], 4),
        "statements and branches": round(measured["totals"]["percent_covered"] / 100, 4),
        "packages": dict(packages),
        "coverage.py": measured["meta"]["version"],
        "python": ".".join(map(str, sys.version_info[:3])),
    }


def main(arguments: Sequence[str] = ()) -> None:
    """Run all tests, with additional pytest arguments; print uncovered lines, and save the figures if all passed."""
    coverage("erase")
    failed = coverage("run", *PYTEST, *arguments)
    coverage("combine", "--quiet")
    with tempfile.TemporaryDirectory() as folder:
        coverage("json", "--quiet", "--fail-under=0", "-o", f"{folder}/coverage.json")
        result = figures(json.loads(Path(folder, "coverage.json").read_text("utf-8")))
    too_little = coverage("report")
    if failed:
        sys.exit("tests failed, so the figures were not saved")
    keep("coverage", {"command": "make coverage", **result})
    if too_little:
        sys.exit(too_little)


if __name__ == "__main__":
    main(sys.argv[1:])
