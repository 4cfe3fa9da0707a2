"""Report turns of phrase that this project does not use: ``python tools/prose.py [FILE]...``, or ``make lint``.

Read are Markdown, and of Python the comments, strings and names of tests. The list is ``tools/prose.txt``; spelling is
codespell's business.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIST = Path(__file__).with_suffix(".txt")
SKIPPED = ("tests/fixtures/", "CODE_OF_CONDUCT.md")


def rules() -> list[tuple[re.Pattern[str], str]]:
    """Return the patterns of the list, each with what to write instead."""
    lines = [line for line in LIST.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    pairs = [line.split(" => ") for line in lines]
    return [(re.compile(pattern.replace(" ", r"\s+"), re.IGNORECASE), advice) for pattern, advice in pairs]


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the prose of a file in pieces, each with the line that it begins on."""
    text = path.read_text("utf-8")
    if path.suffix != ".py":
        yield 1, text
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING) or tokenize.tok_name[token.type] == "FSTRING_MIDDLE":
            yield token.start[0], token.string
        elif token.type == tokenize.NAME and token.string.startswith("test_"):
            yield token.start[0], token.string.replace("_", " ")


def findings(path: Path) -> Iterator[str]:
    """Yield a line for each banned phrase of a file: place, phrase, advice."""
    for first, text in prose(path):
        for pattern, advice in rules():
            for match in pattern.finditer(text):
                line = first + text.count("\n", 0, match.start())
                yield f"{path.relative_to(ROOT)}:{line}: {' '.join(match[0].split())!r}: write {advice}"


def main() -> None:
    """Check the files named, or all that git knows; exit with 1 if a phrase was found."""
    named = [Path(name).resolve() for name in sys.argv[1:]]
    tracked = subprocess.run(["git", "ls-files", "*.md", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = named or [ROOT / name for name in tracked.stdout.split() if not name.startswith(SKIPPED)]
    found = [line for path in files if path.exists() for line in findings(path)]
    sys.stdout.write("".join(line + "\n" for line in found))
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
