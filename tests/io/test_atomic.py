"""Files are written atomically, refused if incomplete, and hashed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

import interpkit
from interpkit import InterpkitError, RunError, UsageError
from interpkit.io.atomic import (
    followed,
    inner_folder,
    read_tensors,
    replacing,
    save_tensors,
    sha256,
    to_json,
    to_path,
    write_atomically,
    write_tensors,
)


@pytest.mark.parametrize("content", ["grün\n", "grün\n".encode(), ""], ids=["text", "bytes", "nothing"])
def test_an_atomic_write_leaves_only_the_file(content: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    for _ in range(2):  # new, and over the old one
        write_atomically(path, content)
        assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
        assert list(tmp_path.iterdir()) == [path]


def test_the_old_file_remains_until_the_new_one_is_complete_and_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "file", []
    path.write_text("old")
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (seen.append(os.fstat(handle).st_ino), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda old, new: (seen.append("renamed"), replace(old, new)))
    with replacing(path) as temporary:
        assert temporary.parent == tmp_path and temporary.name.startswith(".file.") and temporary.read_bytes() == b""
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert seen == []
        inode = temporary.stat().st_ino
    # The new file's content is flushed before it takes the name, and the folder's names after.
    assert seen == [inode, "renamed", tmp_path.stat().st_ino]
    assert path.read_text() == "new" and not temporary.exists()


def test_two_writers_of_a_file_use_different_temporary_files(tmp_path: Path) -> None:
    with replacing(tmp_path / "file") as one, replacing(tmp_path / "file") as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "file").read_text() == "one"  # the last to end


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("mine"), OSError("without a number")], ids=repr)
def test_a_failing_block_changes_nothing_and_its_error_reaches_the_caller(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)) as caught:
        write()
    assert caught.value is error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_disk_error_names_the_file_not_the_temporary_one(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left on device") as caught, replacing(tmp_path / "file"):
        raise OSError(errno.ENOSPC, "No space left on device", "/somewhere/else")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "file"))
    with pytest.raises(FileNotFoundError) as missing:
        write_atomically(tmp_path / "none" / "file", "x")
    assert missing.value.filename == str(tmp_path / "none" / "file")


def test_a_folder_that_cannot_be_flushed_and_a_leftover_that_cannot_be_removed_cause_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[int] = []
    fsync, close = os.fsync, os.close

    def refuse(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refuse)
    monkeypatch.setattr(os, "close", lambda handle: (closed.append(handle), close(handle)))
    write_atomically(tmp_path / "file", "x")
    assert (tmp_path / "file").read_text() == "x" and len(closed) == 1

    def stuck(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", stuck)
    with pytest.raises(ValueError, match="mine"), replacing(tmp_path / "file"):
        raise ValueError("mine")


def test_an_inner_folder_is_created_but_a_link_is_not_followed(tmp_path: Path) -> None:
    inside = tmp_path / "a" / "b"
    assert inner_folder(inside) == inside and inside.is_dir()
    assert inner_folder(inside) == inside  # is there already
    (tmp_path / "link").symlink_to(inside)
    with pytest.raises(RunError, match=rf"link is a link to {inside}. interpkit does not write through links"):
        inner_folder(tmp_path / "link")


def test_tensors_are_read_or_refused_with_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "samples.safetensors"
    safetensors.torch.save_file({"a": torch.arange(3.0)}, path)
    assert read_tensors(path)["a"].tolist() == [0, 1, 2]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunError, match=r"samples.safetensors is not a complete safetensors file: .*\. Sample again\.$"):
        read_tensors(path, torn=" Sample again.")
    path.unlink()
    with pytest.raises(
        RunError, match=r"there is no .*samples.safetensors: the run was not finished. Resume it: .*resume=True"
    ):
        read_tensors(path)
    os.mkfifo(path)  # which would be waited for without end
    with pytest.raises(RunError, match=r"^mine$"):
        read_tensors(path, missing="mine")


METADATA = {f"key {number}": f'a "quoted" grün\\\n\x01 {number}' for number in range(8)}


@pytest.mark.parametrize("write", [write_tensors, save_tensors])
def test_equal_tensors_and_metadata_give_equal_bytes(write: Any, tmp_path: Path) -> None:
    tensors = {"b": torch.arange(3.0), "ä": torch.ones(2, 2, dtype=torch.uint8), "none": torch.zeros(0)}
    path = tmp_path / "file.safetensors"
    seen = set()
    for turn in range(10):  # safetensors orders the metadata differently each time
        write(path, tensors, dict(sorted(METADATA.items(), reverse=bool(turn % 2))))
        seen.add(path.read_bytes())
    (content,) = seen
    size = int.from_bytes(content[:8], "little")
    assert size % 8 == 0
    header = json.loads(content[8 : 8 + size])
    assert next(iter(header)) == "__metadata__" and list(header["__metadata__"].items()) == sorted(METADATA.items())
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == METADATA
        read = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    assert read.keys() == tensors.keys() and all(torch.equal(read[name], tensors[name]) for name in tensors)
    assert list(tmp_path.iterdir()) == [path]


def test_json_ends_with_a_newline_keeps_unicode_and_refuses_nan() -> None:
    assert to_json({"ä": [1, None]}) == '{\n  "ä": [\n    1,\n    null\n  ]\n}\n'
    assert json.loads(to_json({"a": 1.5})) == {"a": 1.5}
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            to_json(value)


def test_the_hash_covers_a_files_content_and_a_folders_files_and_names(tmp_path: Path) -> None:
    for name, content in (("b/c.txt", b"c"), ("a.txt", b"a")):
        (tmp_path / "one" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "one" / name).write_bytes(content)
    (tmp_path / "one" / "empty").mkdir()
    a, c = (hashlib.sha256(text).hexdigest() for text in (b"a", b"c"))
    assert sha256(tmp_path / "one" / "a.txt") == a
    assert sha256(tmp_path / "one") == hashlib.sha256(f"a.txt\0{a}\nb/c.txt\0{c}\n".encode()).hexdigest()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x" * 5000, "too long for a file name: 500"),
        ("a\0b", "not the name of"),
        ("\udce9", "is not a name in utf-8, the encoding of names here. Rename it"),
    ],
)
def test_a_name_that_no_file_can_have_is_refused_wherever_it_is_passed(name: str, words: str) -> None:
    net = torch.nn.Linear(4, 3)
    for use in (
        to_path,
        interpkit.load_target,
        interpkit.load_inversion,
        interpkit.evaluate,
        lambda name: interpkit.load_data(name, (1, 8, 8)),
        lambda name: interpkit.invert(interpkit.wrap(net, (4,)), [f"{name}.py"]),
        lambda name: interpkit.invert(interpkit.wrap(net, (4,)), ["vecmat"], steps=1, out=name),
    ):
        with pytest.raises(UsageError, match=words):
            use(name)
    assert issubclass(UsageError, InterpkitError) and to_path("new.txt") == Path("new.txt")


def test_a_new_file_has_the_permissions_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for mode in (0o600, 0o440):
        path.write_text("old")
        path.chmod(mode)
        with replacing(path) as temporary:
            assert stat.S_IMODE(temporary.stat().st_mode) == mode | 0o600  # already while it is written
            temporary.write_text("new")
        assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", mode)
        path.unlink()


def test_a_pipe_a_device_and_a_folder_are_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    for place, what in ((tmp_path / "pipe", "a pipe or a device"), (tmp_path, "a folder")):
        with pytest.raises(UsageError, match=f"is {what}, which a file does not replace: name another"):
            write_atomically(place, "x")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    with pytest.raises(UsageError, match="is a pipe or a device"):
        followed(tmp_path / "link")


def test_a_link_that_the_user_named_stays_but_a_run_has_no_links(tmp_path: Path) -> None:
    link, file = tmp_path / "link", tmp_path / "file"
    link.symlink_to("file")  # which does not exist yet
    write_atomically(followed(link), "first")
    assert link.is_symlink() and file.read_text() == "first" and followed(file) == file
    write_atomically(link, "second")
    assert not link.is_symlink() and (link.read_text(), file.read_text()) == ("second", "first")
