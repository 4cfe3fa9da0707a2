"""Values that are read from files that the user names."""

from __future__ import annotations

from pathlib import Path

import pytest

import interpkit
from interpkit import UsageError
from interpkit.cli.options import classes, default_folder, lines
from interpkit.runs.manifest import weights_digest


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


def test_results_go_to_a_folder_of_the_whole_name(
    tiny_target: interpkit.Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vit-v1.5").mkdir()
    monkeypatch.chdir(tmp_path / "vit-v1.5")
    for source, name in (
        ("net.v2.pt", "net.v2"),
        ("../vit-v1.5", "vit-v1.5"),
        (".", "vit-v1.5"),
        ("..", tmp_path.name),
    ):
        assert default_folder("audits", Path(source), tiny_target, "audit.json") == Path("audits", name)


def test_results_of_another_classifier_of_the_same_name_are_not_replaced(
    tiny_target: interpkit.Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("audits/net").mkdir(parents=True)
    for known in ("[]", "{", "{}", f'{{"classifier": "{weights_digest(tiny_target)}"}}'):
        Path("audits/net/audit.json").write_text(known)
        assert default_folder("audits", Path("b/net.pt"), tiny_target, "audit.json") == Path("audits/net")
    Path("audits/net/audit.json").write_text('{"classifier": "of another"}')
    with pytest.raises(
        UsageError, match=r"results of another classifier called net: .* replace them \(out='audits/net'"
    ):
        default_folder("audits", Path("b/net.pt"), tiny_target, "audit.json")
