"""Values that are read from files that the user names."""

from __future__ import annotations

from pathlib import Path

import pytest

from interpkit import UsageError
from interpkit.cli.options import classes, lines


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cat\n\n  dog \r\nÄffle\n", ["cat", "dog", "Äffle"]),
        (' ["cat", "dog, or so", 7]', ["cat", "dog, or so", "7"]),
        ('{"1": "dog", "0": "cat"}', ["cat", "dog"]),
        ("", []),
    ],
    ids=["lines", "JSON", "by number", "nothing"],
)
def test_names_stand_in_lines_or_in_a_json_list(text: str, names: list[str], tmp_path: Path) -> None:
    for encoding in ("utf-8", "utf-8-sig"):  # the second begins with a byte-order mark
        (tmp_path / "names.txt").write_text(text, encoding)
        assert lines(tmp_path / "names.txt") == names


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'["cat", ', r"names.txt does not list class names: "),
        (b"[" * 100_000, r"names.txt does not list class names: "),
        (b'{"1": "cat", "2": "dog"}', r"names.txt does not list class names: '0'. Write one name per line"),
        (b'{"0": ["n01440764", "tench"]}', r"names.txt does not list class names: a name is not a string"),
        (b"\xff\xfe", r"cannot read .*names.txt: .*Save it as UTF-8"),
        (None, r"there is no file .*names.txt: name one with one class name per line"),
    ],
    ids=["torn", "deep", "from 1", "lists", "no text", "missing"],
)
def test_an_unreadable_file_of_class_names_is_refused(content: bytes | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(UsageError, match=words):
        lines(tmp_path / "names.txt")


def test_classes_are_numbers_ranges_and_names() -> None:
    assert classes("--labels", '3, 5-7,T-shirt,"tench, Tinca"') == ["3", 5, 6, 7, "T-shirt", "tench, Tinca"]
    assert classes("--labels", None) is None
