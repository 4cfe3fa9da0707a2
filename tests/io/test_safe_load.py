"""Files of torch.save are read without running code and in bounded memory."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import functools
import importlib
import os
import pickle
import runpy
import subprocess
import sys
import types
import uuid
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from interpkit import load_plain


@pytest.mark.parametrize("archive", [True, False])
def test_tensors_and_plain_values_are_read(tmp_path: Path, archive: bool) -> None:
    path = tmp_path / "state.pt"
    torch.save({"w": torch.arange(3.0), "step": 7}, path, _use_new_zipfile_serialization=archive)
    found = load_plain(path)
    assert found["step"] == 7 and found["w"].tolist() == [0.0, 1.0, 2.0]


def test_a_tensor_that_repeats_one_stored_number_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    torch.save({"w": torch.zeros(1).expand(10_000, 10_000)}, path)
    with pytest.raises(ValueError, match="its tensors have 400,000,000 bytes together"):
        load_plain(path)


def test_an_archive_that_unpacks_to_more_than_its_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(5_000_000))
    with pytest.raises(ValueError, match="it unpacks to 5,000,000 bytes"):
        load_plain(path)


@dataclasses.dataclass
class Config:
    lr: float = 0.1


class Attributes(dict[str, Any]):
    """A dictionary with attributes, like many configurations."""


class Calls:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


OBJECTS = {
    "namespace": argparse.Namespace(lr=0.1),
    "simple namespace": types.SimpleNamespace(lr=0.1),
    "path": PurePosixPath("x"),
    "paths": {PurePosixPath("x"), PurePosixPath("y")},
    "day": {datetime.date(2024, 1, 1): 0.9},
    "uuid": uuid.UUID(int=3),
    "dataclass": Config(),
    "dictionary of a class": Attributes(lr=0.1),
    "defaults": collections.defaultdict(int, {"a": 1}),
    "function with arguments": functools.partial(torch.optim.SGD, lr=0.1),
    "queue": collections.deque([1, 2]),
    "classes and functions": [Config, dict, int, torch.optim.SGD, nn.functional.relu],
    "optimizer": torch.optim.Adam([nn.Parameter(torch.ones(1))]),
    "module": nn.Sequential(nn.Linear(2, 2)),
}


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.filterwarnings("ignore:.*torch.nn.Module")
def test_objects_besides_the_weights_are_refused_unless_skipped(name: str, archive: bool, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save({"w": torch.ones(2), "extra": OBJECTS[name]}, path, _use_new_zipfile_serialization=archive)
    with pytest.raises(pickle.UnpicklingError):
        load_plain(path)
    if name == "module" and not archive:
        return  # such a file refers to the module's source
    allowed = set(torch.serialization.get_safe_globals())
    content = load_plain(path, skip_objects=True)
    assert content["w"].tolist() == [1, 1]
    assert not isinstance(content["extra"], type(OBJECTS[name])) or name in ("paths", "day", "classes and functions")
    assert set(torch.serialization.get_safe_globals()) == allowed


def test_a_skipped_object_keeps_its_attributes_and_items(tmp_path: Path) -> None:
    torch.save([Config(0.5), Attributes(lr=0.5)], tmp_path / "net.pt")
    config, attributes = load_plain(tmp_path / "net.pt", skip_objects=True)
    assert vars(config) == {"lr": 0.5} and attributes == {"lr": 0.5}
    assert type(config) is type(attributes) is collections.OrderedDict


@pytest.mark.parametrize("kind", ["f4", "f8", "f2", "i8", "u1", "b1", "c8", ">f4", ">i2"])
def test_numpy_arrays_and_numbers_are_read_as_tensors(kind: str, tmp_path: Path) -> None:
    array = np.arange(6).reshape(2, 3).astype(kind)
    content = {"c": array, "f": np.asfortranarray(array), "number": array[1, 2], "none": array[:0]}
    torch.save(content, tmp_path / "net.pt")
    read = load_plain(tmp_path / "net.pt", skip_objects=True)
    for name in ("c", "f", "none"):
        assert np.array_equal(read[name].tensor.numpy(), content[name])
    assert read["number"].item() == array[1, 2].item() and read["number"].shape == ()


def test_numpy_arrays_of_anything_but_numbers_are_skipped(tmp_path: Path) -> None:
    torch.save({"text": np.array(["a"]), "objects": np.array([None, {}]), "day": np.datetime64("2024-01-01")},
               tmp_path / "net.pt")  # fmt: skip
    read = load_plain(tmp_path / "net.pt", skip_objects=True)
    assert read["text"].tensor is None and read["objects"].tensor is None and read["day"] is None


@pytest.mark.parametrize("function", [os.system, subprocess.call, print, eval, runpy.run_path, os.remove])
def test_functions_that_would_run_when_unpickled_are_refused(function: Any, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    command = f"open({str(marker)!r}, 'w')" if function is eval else f"touch {marker}"
    torch.save({"w": torch.ones(2), "extra": Calls(function, command)}, tmp_path / "net.pt")
    with pytest.raises(pickle.UnpicklingError, match=r"GLOBAL"):
        load_plain(tmp_path / "net.pt", skip_objects=True)
    assert not marker.exists()


def test_code_of_a_package_is_neither_imported_nor_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_package.py").write_text("def act(path):\n    open(path, 'w')\n", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    evil = importlib.import_module("evil_package")
    torch.save({"w": torch.ones(2), "extra": Calls(evil.act, str(tmp_path / "marker"))}, tmp_path / "net.pt")
    (tmp_path / "evil_package.py").write_text("raise SystemExit('imported')", "utf-8")
    monkeypatch.delitem(sys.modules, "evil_package")
    content = load_plain(tmp_path / "net.pt", skip_objects=True)
    assert content["w"].tolist() == [1, 1] and content["extra"] == {}
    assert not (tmp_path / "marker").exists()


def test_a_pickle_with_very_many_names_is_refused_at_once(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "net.pt")
    names = b"".join(b"ca\nn%d\n" % i for i in range(2000))
    with zipfile.ZipFile(tmp_path / "names.pt", "w") as made, zipfile.ZipFile(tmp_path / "net.pt") as saved:
        for entry in saved.namelist():
            content = b"\x80\x02(" + names + b"t." if entry.endswith("data.pkl") else saved.read(entry)
            made.writestr(entry, content)
    with pytest.raises(ValueError, match="more than 1,000 classes and functions"):
        load_plain(tmp_path / "names.pt", skip_objects=True)


def pickled(path: Path, content: bytes) -> Path:
    """Write an archive of torch.save that contains this pickle of protocol 2."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + content)
        archive.writestr("a/version", "3\n")
    return path


def text(value: str) -> bytes:
    return pickle.BINUNICODE + len(value).to_bytes(4, "little") + value.encode()


LONG = "a " * 50_000
ENCODED = b"c_codecs\nencode\nq\x00" + text(LONG) + b"q\x01" + text("latin1") + b"q\x02\x86R"


def test_a_string_that_is_copied_very_often_is_refused(tmp_path: Path) -> None:
    path = pickled(tmp_path / "bomb.pt", b"(" + ENCODED + b"h\x00h\x01h\x02\x86R" * 1000 + b"t.")
    with pytest.raises(ValueError, match="repeats its texts"):
        load_plain(path)


@pytest.mark.parametrize("order", ["<", ">"])
def test_arrays_that_share_bytes_use_the_memory_of_one(order: str, tmp_path: Path) -> None:
    kind = b"cnumpy\ndtype\n" + text("f4") + b"\x89\x88\x87R(K\x03" + text(order) + b"tbq\x04"
    array = b"cnumpy\nndarray\n)R(K\x01J" + (len(LONG) // 4).to_bytes(4, "little") + b"\x85h\x04\x89h\x03tb"
    path = pickled(tmp_path / "bomb.pt", b"(" + ENCODED + b"q\x03" + kind + array * 2000 + b"t.")
    if order == ">":
        with pytest.raises(ValueError, match="foreign byte order"):
            load_plain(path, skip_objects=True)
        return
    arrays = load_plain(path, skip_objects=True)[2:]
    assert len(arrays) == 2000 and len({array.tensor.data_ptr() for array in arrays}) == 1


def test_attributes_cannot_hide_the_methods_of_loaded_objects(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.ones(2))
    weight.__dict__["numel"] = weight.__dict__["is_floating_point"] = 5
    options = argparse.Namespace(values=3, items=4, keys=5)
    torch.save({"w": weight, "options": options}, tmp_path / "net.pt")
    found = load_plain(tmp_path / "net.pt", skip_objects=True)
    assert found["w"].numel() == 2 and found["w"].is_floating_point()
