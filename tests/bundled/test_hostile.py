"""Malicious or damaged classifier files are refused with one message; no code runs and nothing is written."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import timm
import torch
import torchvision
import transformers
from interpkit_targets.architectures import SmallCNN
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from typer.testing import CliRunner

import interpkit
from interpkit import ModelError, load_target
from interpkit.cli import app

ARGUMENTS: dict[str, Any] = {"input_shape": [1, 12, 12], "num_classes": 3, "widths": [4], "hidden": 8}
CNN_FLAGS = ["--arch", "interpkit:cnn", "--input-shape", "1,12,12", "--arch-arg", "widths=[4]"]
CNN_FLAGS += ["--arch-arg", "input_shape=[1,12,12]", "--arch-arg", "num_classes=3", "--arch-arg", "hidden=8"]
Modest = Callable[[], AbstractContextManager[None]]
Process = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail if anything looks up a host name, even if it handles the error."""
    places: list[Any] = []

    def refuse(*place: Any, **_: Any) -> None:
        places.append(place[-2:])
        raise OSError("there is no network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    yield
    assert places == []


@pytest.fixture
def refused(tmp_path: Path, modest: Modest) -> Callable[..., str]:
    """Return a check that the command line refuses a file: one message, code 3, little memory, nothing written."""

    def check(path: Path, words: str = "", *flags: str) -> str:
        before = {p: p.lstat().st_mtime_ns for p in tmp_path.rglob("*")}
        arguments = ["invert", str(path), "--plugin", "vecmat", "--steps", "1", "--out", str(tmp_path / "out"), *flags]
        with modest():
            result = CliRunner().invoke(app, arguments)
        message = " ".join(result.stderr.split())
        assert result.exit_code == 3, result.output
        assert result.stdout == "" and len(re.findall("^error: ", result.stderr, re.MULTILINE)) == 1
        assert "Traceback" not in message and "fault of interpkit" not in message
        assert len(message) < 2500 and re.search(words, message), message
        assert {p: p.lstat().st_mtime_ns for p in tmp_path.rglob("*")} == before
        return message

    return check


class Runs:
    """Calls os.system when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """Return the file that hostile code would create."""
    return tmp_path / "marker"


@pytest.fixture
def evil_code(tmp_path: Path, marker: Path) -> Path:
    """Return a Python file that creates the marker when it is imported."""
    path = tmp_path / "evil.py"
    path.write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\nNet = print\n", "utf-8")
    return path


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), "utf-8")
    return path


def cnn() -> nn.Module:
    return SmallCNN(**ARGUMENTS).eval()


# ---------------------------------------------------------------------------------------------------- pickles


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".bin", ".ckpt"])
@pytest.mark.parametrize("form", ["zip", "old zip-less", "bare pickle", "beside weights"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_with_code_in_it_runs_nothing(
    suffix: str, form: str, tmp_path: Path, marker: Path, refused: Callable[..., str]
) -> None:
    evil = Runs(f"touch {marker}")
    path = tmp_path / f"net{suffix}"
    if form == "bare pickle":
        path.write_bytes(pickle.dumps(evil))
    elif form == "beside weights":
        torch.save({"state_dict": cnn().state_dict(), "callbacks": evil}, path)
    else:
        torch.save({"state_dict": evil}, path, _use_new_zipfile_serialization=form == "zip")
    message = refused(path, re.escape(str(path)), *CNN_FLAGS)
    assert "runs no code from a file" in message or "not a whole PyTorch checkpoint" in message
    assert not marker.exists()


def test_the_pickles_in_these_tests_would_run_code_if_unpickled(tmp_path: Path, marker: Path) -> None:
    torch.save(Runs(f"touch {marker}"), tmp_path / "net.pt")
    torch.load(tmp_path / "net.pt", weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("config", [{"architecture": "test_vit", "input_size": [3, 160, 160]}, {"hidden": 3}])
def test_a_folders_pickle_with_code_in_it_runs_nothing(
    config: dict[str, Any], tmp_path: Path, marker: Path, refused: Callable[..., str]
) -> None:
    folder = write_json(tmp_path / "net" / "config.json", config).parent
    torch.save(Runs(f"touch {marker}"), folder / "pytorch_model.bin")
    refused(folder, "", *([] if "architecture" in config else CNN_FLAGS))
    refused(folder / "pytorch_model.bin", "", *([] if "architecture" in config else CNN_FLAGS))
    assert not marker.exists()


@pytest.mark.parametrize("suffix", [".pt", ".pt2", ".pth", ".ts"])
def test_a_pickle_named_like_a_graph_runs_no_code(
    suffix: str, tmp_path: Path, marker: Path, refused: Callable[..., str]
) -> None:
    torch.save(Runs(f"touch {marker}"), tmp_path / f"net{suffix}")
    refused(tmp_path / f"net{suffix}", "", "--input-shape", "1,12,12")
    assert not marker.exists()


def test_only_the_weights_of_a_pickled_module_are_read(
    tmp_path: Path, marker: Path, refused: Callable[..., str]
) -> None:
    module = cnn()
    torch.save(module, tmp_path / "net.pt")
    target = load_target(tmp_path / "net.pt", arch="interpkit:cnn", arch_args=ARGUMENTS, input_shape=(1, 12, 12))
    images = torch.rand(2, 1, 12, 12)
    with target.frozen():
        assert torch.equal(target(images), module(images))
    module.callback = Runs(f"touch {marker}")
    torch.save(module, tmp_path / "net.pt")
    message = refused(tmp_path / "net.pt", "more than weights", *CNN_FLAGS)
    assert "system" in message and "weights_only=False" in message and not marker.exists()


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".ckpt", ".pt2", ".onnx", ".safetensors"])
@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 100, b"PK\x03\x04" + b"\x00" * 60, b"<html>404</html>", b"\x80\x02."],
    ids=["empty", "zeros", "zip", "html", "pickle"],
)
def test_a_file_of_an_unknown_format_is_refused(
    suffix: str, content: bytes, tmp_path: Path, refused: Callable[..., str]
) -> None:
    (tmp_path / f"net{suffix}").write_bytes(content)
    message = refused(tmp_path / f"net{suffix}", "", *CNN_FLAGS, "--trust")
    assert f"net{suffix}" in message


@pytest.mark.parametrize("part", [0.2, 0.5, 0.95])
def test_a_truncated_checkpoint_is_refused(part: float, tmp_path: Path, refused: Callable[..., str]) -> None:
    path = tmp_path / "net.pt"
    torch.save(cnn().state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    refused(path, "not a whole PyTorch checkpoint", *CNN_FLAGS)


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": 3},
        {},
        [],
        [[], []],
        {"model": {"model": {"model": {"model": {"model": {}}}}}},
        {"a": {"b": torch.zeros(1)}},
        torch.zeros(3),
        {1: torch.zeros(3)},
        "weights",
        None,
    ],
    ids=str,
)
def test_a_checkpoint_without_this_networks_weights_is_refused(
    content: Any, tmp_path: Path, refused: Callable[..., str]
) -> None:
    torch.save(content, tmp_path / "net.pt")
    refused(tmp_path / "net.pt", "no state dict|do not fit", *CNN_FLAGS)


def test_objects_besides_the_weights_may_have_attributes_named_like_dictionary_methods(tmp_path: Path) -> None:
    """An object becomes a dictionary with its attributes, which may hide the dictionary's methods."""
    hidden = argparse.Namespace(items=3, values=4, keys=5, get=6)
    torch.save({"options": hidden, "state_dict": cnn().state_dict()}, tmp_path / "net.pt")
    target = load_target(tmp_path / "net.pt", arch="interpkit:cnn", arch_args=ARGUMENTS, input_shape=(1, 12, 12))
    assert target.num_classes == 3


def test_complex_weights_of_a_network_of_real_ones_are_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    state = cnn().state_dict()
    torch.save(state | {"0.weight": state["0.weight"].to(torch.complex64)}, tmp_path / "complex.pt")
    refused(tmp_path / "complex.pt", "complex numbers", *CNN_FLAGS)


# ------------------------------------------------------------------------------------------------- safetensors


def with_header(path: Path, header: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16_000_000_000]}}, b"\0" * 16),
        ({"w": {"dtype": "F32", "shape": [4_000_000_000], "data_offsets": [0, 16]}}, b"\0" * 16),
        ({"w": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}}, b"\0" * 16),
        ({"w": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 16]}}, b"\0" * 16),
        ({"w": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}, b"\0" * 16),
        ({"w": {"dtype": "PY", "shape": [4], "data_offsets": [0, 16]}}, b"\0" * 16),
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
          "b": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"\0" * 16),
        ({"w": "os.system"}, b""),
        (b"[" * 100_000, b""),
        (b"", b""),
    ],
)  # fmt: skip
def test_a_wrong_safetensors_header_is_refused(
    header: Any, data: bytes, tmp_path: Path, refused: Callable[..., str]
) -> None:
    path = with_header(tmp_path / "net.safetensors", header, data)
    refused(path, "not a complete safetensors file|do not fit", *CNN_FLAGS)


@pytest.mark.parametrize("length", [10**9, 2**63, 2**64 - 1])
def test_a_safetensors_file_that_claims_a_huge_header_is_refused(
    length: int, tmp_path: Path, refused: Callable[..., str]
) -> None:
    refused(with_header(tmp_path / "net.safetensors", b"", length=length), "not a complete safetensors file")


# ------------------------------------------------------------------------------ names that a file may not give


def named(file: Path, arch: str, **facts: Any) -> Path:
    """Write good weights under metadata that name an architecture."""
    metadata = {"interpkit.schema": "1", "interpkit.architecture": arch, "interpkit.input_shape": "[1, 12, 12]"}
    metadata |= {f"interpkit.{name}": json.dumps(value) for name, value in facts.items()}
    file.write_bytes(safetensors.torch.save(cnn().state_dict(), metadata))
    return file


@pytest.mark.parametrize(
    "arch",
    ["os:system", "py:os:system", "py:{}:Net", "py:evil:Net", "{}:Net", "evil:Net", "py:", ":", "PY:{}:Net",
     "timm:hf-hub:evil/net", "timm:local-dir:{}", "timm:../evil", "transformers:../evil", "torchvision:__class__"],
)  # fmt: skip
def test_metadata_that_name_code_import_nothing(
    arch: str,
    tmp_path: Path,
    evil_code: Path,
    marker: Path,
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    refused(named(tmp_path / "net.safetensors", arch.format(evil_code)), "architecture")
    assert not marker.exists()


def test_metadata_cannot_grant_trust(tmp_path: Path, evil_code: Path, marker: Path) -> None:
    path = named(tmp_path / "net.safetensors", f"py:{evil_code}:Net", trust=True, path=str(evil_code))
    with pytest.raises(ModelError):
        load_target(path, trust=True)
    assert not marker.exists()
    path = named(tmp_path / "net.safetensors", "interpkit:cnn", trust=True, arch_args=ARGUMENTS)
    assert load_target(path).description.trust is False


def test_a_packed_graph_that_is_invalid_is_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    refused(named(tmp_path / "net.safetensors", "onnx:graph"), "ONNX graph")
    metadata = {"interpkit.schema": "1", "interpkit.architecture": "onnx:graph"}
    tensors = {"onnx": torch.frombuffer(bytearray(b"graph, or so"), dtype=torch.uint8)}
    (tmp_path / "net.safetensors").write_bytes(safetensors.torch.save(tensors, metadata))
    refused(tmp_path / "net.safetensors", "not a valid ONNX graph")


@pytest.mark.parametrize("name", ["pretrained", "checkpoint_path", "pretrained_cfg", "cache_dir"])
@pytest.mark.parametrize("form", ["config", "metadata"])
def test_timm_arguments_that_would_fetch_or_read_weights_are_refused(
    name: str, form: str, tmp_path: Path, marker: Path, refused: Callable[..., str]
) -> None:
    evil = tmp_path / "evil.pth"
    torch.save(Runs(f"touch {marker}"), evil)
    if form == "metadata":
        path = named(tmp_path / "net.safetensors", "timm:test_vit", arch_args={name: str(evil)})
    else:
        config = {"architecture": "test_vit", "model_args": {name: str(evil)}, "input_size": [3, 160, 160]}
        path = write_json(tmp_path / "net" / "config.json", config).parent
        safetensors.torch.save_file({"w": torch.zeros(1)}, path / "model.safetensors")
    refused(path, f"argument '{name}' is refused")
    assert not marker.exists()


@pytest.mark.parametrize("name", ["pretrained", "checkpoint_path", "pretrained_cfg"])
@pytest.mark.parametrize("form", ["config", "metadata"])
def test_nested_arguments_that_would_read_weights_are_refused(
    name: str,
    form: str,
    tmp_path: Path,
    marker: Path,
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """transformers' wrapper of timm forwards everything in model_args."""
    import timm.models._factory

    read: list[Any] = []  # what is raised there would become a refusal
    monkeypatch.setattr(timm.models._factory, "load_checkpoint", lambda *a, **k: read.append(a))
    evil = tmp_path / "evil.pth"
    torch.save(Runs(f"touch {marker}"), evil)
    arguments = {"architecture": "test_vit", "model_args": {name: str(evil)}, "num_labels": 3}
    arguments["input_size"] = [3, 160, 160]
    if form == "metadata":
        path = named(tmp_path / "net.safetensors", "transformers:timm_wrapper", arch_args=arguments)
    else:
        path = write_json(tmp_path / "net" / "config.json", arguments | {"model_type": "timm_wrapper"}).parent
        safetensors.torch.save_file({"w": torch.zeros(1)}, path / "model.safetensors")
    refused(path, "timm_wrapper" if form == "metadata" else f"{name}|timm_wrapper|input_shape|input shape|image size")
    assert read == []
    assert not marker.exists()


@pytest.mark.parametrize("name", ["hf-hub:evil/net", "local-dir:/tmp/evil", "hf_hub:evil/net"])
def test_a_nested_name_that_timm_would_look_up_is_refused(
    name: str, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm.models._factory

    looked_up: list[Any] = []

    def look_up(*arguments: Any, **_: Any) -> None:
        looked_up.append(arguments)
        raise OSError("looked up")

    for function in ("load_model_config_from_hf", "load_model_config_from_path"):
        monkeypatch.setattr(timm.models._factory, function, look_up, raising=False)  # an older timm has one alone
    path = named(tmp_path / "net.safetensors", "transformers:timm_wrapper", arch_args={"architecture": name})
    refused(path)
    assert looked_up == []


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation"])
def test_a_config_cannot_name_kernels_to_fetch_and_run(
    name: str, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers reads attn_implementation = "owner/repository" as code on the Hub."""
    fetched = []
    for place in ("hub_kernels.load_and_register_attn_kernel", "hub_kernels.get_kernel"):
        with suppress(ImportError):  # an older transformers has no such module, and fetches none
            monkeypatch.setattr(f"transformers.integrations.{place}", lambda *a, **k: fetched.append(a), raising=False)
    monkeypatch.setattr(
        "transformers.modeling_utils.load_and_register_attn_kernel", lambda *a, **k: fetched.append(a), raising=False
    )
    refused(vit_folder(tmp_path, **{name: "evil/kernel"}), name)
    assert fetched == []


@pytest.mark.parametrize(
    "name", ["../evil", "hf-hub:evil/net", "/etc/passwd", "{}", "local-dir:{}", "", "test_vit/../x"]
)
def test_a_config_that_names_a_path_or_a_repository_is_refused(
    name: str, tmp_path: Path, evil_code: Path, marker: Path, refused: Callable[..., str]
) -> None:
    config = {"architecture": name.format(evil_code), "num_classes": 3, "input_size": [3, 32, 32]}
    folder = write_json(tmp_path / "net" / "config.json", config).parent
    safetensors.torch.save_file({"w": torch.zeros(1)}, folder / "model.safetensors")
    refused(folder, "there is no architecture")
    assert not marker.exists()


# ------------------------------------------------------------------------------------------------- config.json


def vit_folder(tmp_path: Path, processor: Any = None, **changes: Any) -> Path:
    """Write a valid ViT folder with changed config entries; None removes one."""
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=8,
        num_labels=3,
    )
    folder = tmp_path / "vit"
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    words = json.loads((folder / "config.json").read_text("utf-8")) | changes
    write_json(folder / "config.json", {key: value for key, value in words.items() if value is not None})
    if processor is not None:
        write_json(folder / "preprocessor_config.json", processor)
    return folder


def timm_folder(tmp_path: Path, **changes: Any) -> Path:
    """Write a valid timm folder with changed config entries."""
    folder = tmp_path / "timm"
    config = {"architecture": "test_vit", "num_classes": 3, "input_size": [3, 160, 160], "mean": [0.5] * 3} | changes
    write_json(folder / "config.json", config)
    module = timm.create_model("test_vit", num_classes=3)
    safetensors.torch.save_file(module.state_dict(), folder / "model.safetensors")
    return folder


def test_the_folders_in_these_tests_are_valid_before_they_are_changed(tmp_path: Path) -> None:
    assert load_target(vit_folder(tmp_path)).num_classes == load_target(timm_folder(tmp_path)).num_classes == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"num_classes": 10**12},
        {"num_classes": 900_000},
        {"num_classes": -1},
        {"num_classes": 5},
        {"input_size": [3, 10**9, 10**9]},
        {"input_size": [10**9, 160, 160]},
        {"input_size": "3,160,160"},
        {"input_size": [3, -1, 160]},
        {"input_size": 160},
        {"input_size": [3, 100, 100]},
        {"input_size": [3, 8000, 1200]},
        {"mean": ["a", "b", "c"]},
        {"mean": [10**400] * 3},
        {"mean": {"r": 0.5}},
        {"std": [0, 0, 0]},
        {"model_args": {"embed_dim": 10**9}},
        {"model_args": {"embed_dim": 999_999, "num_heads": 1, "depth": 1}},
        {"model_args": {"depth": 10**9}},
        {"model_args": {"depth": 1e300}},
        {"model_args": {"img_size": 10**9}},
        {"model_args": {"num_heads": 0}},
        {"model_args": {"norm_layer": "os.system"}},
        {"model_args": {"unheard_of": 1}},
        {"model_args": [1]},
        {"model_args": "abc"},
        {"model_args": 7},
        {"model_args": {"a": {"b": {"c": {"d": {"e": 1}}}}}},
    ],
    ids=lambda changes: str(changes)[:50],
)
def test_an_absurd_timm_config_is_refused(changes: dict[str, Any], tmp_path: Path, refused: Callable[..., str]) -> None:
    refused(timm_folder(tmp_path, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 10**9},
        {"hidden_size": 999_998},
        {"hidden_size": "eight"},
        {"hidden_size": 0},
        {"hidden_size": -8},
        {"hidden_size": 7},
        {"hidden_size": [8]},
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 200},
        {"num_hidden_layers": -1},
        {"intermediate_size": 10**6},
        {"num_attention_heads": 0},
        {"image_size": 10**9},
        {"image_size": 1_600},
        {"image_size": 0},
        {"image_size": [16, 10**9]},
        {"image_size": ["a", "b"]},
        {"image_size": {"height": "a", "width": 16}},
        {"patch_size": 0},
        {"num_channels": 10**6},
        {"num_channels": "three"},
        {"hidden_act": "os.system"},
        {"id2label": {str(i): "x" for i in range(20_000)}},
        {"num_labels": 10**9, "id2label": None, "label2id": None},
        {"model_type": "../evil"},
        {"model_type": "bert"},
        {"model_type": "nothing_known"},
        {"architectures": ["BertForMaskedLM"]},
        {"architectures": 5},
        {"auto_map": {"AutoModelForImageClassification": "evil.Net"}},
        {"auto_map": None, "custom_pipelines": 3, "hidden_size": 10**7},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
        {"quantization_config": {"quant_method": "gptq"}},
        {"trust_remote_code": True},
    ],
    ids=lambda changes: str(changes)[:50],
)
def test_an_absurd_transformers_config_is_refused(
    changes: dict[str, Any], tmp_path: Path, refused: Callable[..., str]
) -> None:
    refused(vit_folder(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"auto_map": {"AutoModelForImageClassification": "evil.Net"}}, "auto_map"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"hidden_size": 10**9}, "hidden_size = 1000000000 is far too large"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000 is far too large"),
        ({"image_size": 10**9}, "1000000000"),
        ({"hidden_size": 999_998}, "asks for .* weights, and the file holds"),
    ],
    ids=str,
)
def test_the_message_for_a_refused_config_says_what_is_wrong(
    changes: dict[str, Any], words: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    refused(vit_folder(tmp_path, **changes), words)


@pytest.mark.parametrize(
    "labels",
    [
        {"²": "a", "1": "b", "2": "c"},
        {"-1": "a", "x": "b", "None": "c"},
        {"0": "a", "00": "b", "1": "c"},
        {"0": None, "1": {"a": 1}, "2": [1]},
        {"0": "a", "1": "b", "9" * 5000: "c"},
        {"__class__": "a", "1": "b", "2": "c"},
        ["a", "b", "c"],
        "abc",
        7,
        {},
    ],
    ids=lambda labels: str(labels)[:30],
)
def test_weird_labels_are_refused_or_corrected(labels: Any, tmp_path: Path) -> None:
    folder = vit_folder(tmp_path, id2label=labels, label2id=None)
    result = CliRunner().invoke(app, ["inspect", str(folder), "--json"])
    assert result.exit_code in (0, 3), result.output
    if result.exit_code == 0:
        facts = json.loads(result.stdout)["resolved"]
        names = facts["class_names"]["value"]
        assert len(names) == facts["num_classes"]["value"] and all(isinstance(name, str) for name in names)
    else:
        assert len(result.stderr) < 2500


@pytest.mark.parametrize(
    "processor",
    [
        {"rescale_factor": "a"},
        {"rescale_factor": 0},
        {"rescale_factor": -1},
        {"rescale_factor": 1e308},
        {"rescale_factor": 10**400},
        {"rescale_factor": None},
        {"image_mean": "half"},
        {"image_mean": [0.5] * 7},
        {"image_std": [0, 0, 0]},
        {"image_std": [1e-320] * 3},
        {"image_mean": {"a": 1}},
        [1, 2],
        "{",
        "[" * 100_000,
        " " * 17_000_000,
    ],
    ids=lambda processor: str(processor)[:30].strip(),
)
def test_a_weird_preprocessor_config_is_refused(processor: Any, tmp_path: Path, refused: Callable[..., str]) -> None:
    refused(vit_folder(tmp_path, processor))


@pytest.mark.parametrize(
    "size", [{"height": "a", "width": 3}, {"shortest_edge": 10**9}, [1, 2, 3], "x", {}, 10**9, [0, 0]]
)
def test_a_weird_size_in_a_preprocessor_config_is_refused(
    size: Any, tmp_path: Path, refused: Callable[..., str]
) -> None:
    refused(vit_folder(tmp_path, {"size": size}, image_size=None), "size|shape")


@pytest.mark.parametrize(
    "content",
    [
        "not JSON",
        "[]",
        "7",
        "null",
        '"text"',
        "",
        "{" * 100_000,
        '{"architecture": ' + "[" * 100_000,
        '{"model_type": "vit", "image_size": 16, "a": ' + '{"a": ' * 900 + "1" + "}" * 901,
        '{"architecture": 7}',
        '{"architecture": ["test_vit"]}',
        '{"model_type": {"a": 1}}',
        '{"architecture": "test_vit", "num_classes": ' + "9" * 5000 + "}",
    ],
    ids=lambda content: content[:30],
)
@pytest.mark.parametrize("named_by", ["folder", "weights"])
def test_an_invalid_config_is_refused(content: str, named_by: str, tmp_path: Path, refused: Callable[..., str]) -> None:
    folder = write_json(tmp_path / "net" / "config.json", content).parent
    safetensors.torch.save_file(cnn().state_dict(), folder / "model.safetensors")
    message = refused(folder if named_by == "folder" else folder / "model.safetensors")
    if not content.endswith("}"):
        assert re.search(r"config\.json (cannot be read as JSON|is not a JSON object)", message), message


def test_a_config_of_twenty_megabytes_is_refused_unread(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_json(tmp_path / "net" / "config.json", '{"architecture": "test_vit"}' + " " * 20_000_000)
    read = Path.read_text

    def small(self: Path, *arguments: Any, **named: Any) -> str:
        assert self != path, "it was read"
        return read(self, *arguments, **named)

    monkeypatch.setattr(Path, "read_text", small)
    refused(path.parent)


def test_a_config_that_is_a_link_is_read_if_it_leads_to_a_config(tmp_path: Path, refused: Callable[..., str]) -> None:
    """Files in a cache of the Hub are links."""
    real = timm_folder(tmp_path)
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "model.safetensors").symlink_to(real / "model.safetensors")
    (linked / "config.json").symlink_to(real / "config.json")
    assert load_target(linked).num_classes == 3
    for place in ("/dev/zero", linked / "config.json", linked / "nowhere", "/proc/self/mem", linked, "/etc/hostname"):
        (linked / "config.json").unlink()
        (linked / "config.json").symlink_to(place)
        refused(linked)


def test_weights_that_are_a_link_to_a_device_are_not_read(tmp_path: Path, refused: Callable[..., str]) -> None:
    folder = timm_folder(tmp_path)
    for name in ("model.safetensors", "pytorch_model.bin"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to("/dev/zero")
    refused(folder, "has no model.safetensors")


def test_an_index_of_weights_that_leads_elsewhere_is_not_followed(tmp_path: Path, refused: Callable[..., str]) -> None:
    folder = timm_folder(tmp_path)
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    for place in ("../elsewhere.safetensors", str(tmp_path / "elsewhere.safetensors"), "long" * 100):
        write_json(folder / "model.safetensors.index.json", {"weight_map": {"cls_token": place}})
        refused(folder, "split")


# -------------------------------------------------------------------------------------- a forward that fails


def test_a_model_that_fails_on_the_stated_shape_is_refused_with_the_shape(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    torch.save(torchvision.models.squeezenet1_1(num_classes=3).state_dict(), tmp_path / "net.pth")
    flags = ["--arch", "torchvision:squeezenet1_1", "--input-shape"]
    assert "--input-shape" in refused(
        tmp_path / "net.pth", r"fails on an input of shape \(1, 32, 32\)", *flags, "1,32,32"
    )
    refused(tmp_path / "net.pth", r"\(3, 2, 2\) \(in a batch of 6\)", *flags, "3,2,2")


@pytest.mark.parametrize(
    "body",
    [
        "raise RuntimeError('on purpose')",
        "raise KeyError('x')",
        "return None",
        "return 'logits'",
        "return x.new_zeros(0, 3)",
        "return x.new_zeros(len(x), 0)",
        "return x.new_full((len(x), 3), float('nan'))",
        "return {}",
        "return ()",
        "assert False",
        "return x.mean()",
    ],
)
def test_any_failure_in_the_users_forward_is_one_message(
    body: str, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "hostile_net", raising=False)
    code = f"from torch import nn\nclass Net(nn.Linear):\n    def forward(self, x):\n        {body}\n"
    (tmp_path / "hostile_net.py").write_text(code + "def net(): return Net(2, 2)\n", "utf-8")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "net.pt")
    spec = f"py:{tmp_path}/hostile_net.py:net"
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    refused(tmp_path / "net.pt", "", "--arch", spec, "--input-shape", "3,4,4")


# --------------------------------------------------------------------------------------------------------- ONNX


def write_graph(
    path: Path,
    nodes: list[Any],
    tensors: dict[str, Any] | None = None,
    inputs: dict[str, list[Any]] | None = None,
    domains: tuple[str, ...] = (),
) -> Path:
    """Write a graph from ``x`` (N, 4), or ``inputs``, to ``y``."""
    inputs = {"x": ["N", 4]} if inputs is None else inputs
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", "K"])],
        [t if isinstance(t, TensorProto) else numpy_helper.from_array(t, name) for name, t in (tensors or {}).items()],
    )
    opsets = [helper.make_opsetid("", 13), *(helper.make_opsetid(domain, 1) for domain in domains)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())
    return path


WEIGHT = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
HEAD = helper.make_node("MatMul", ["x", "w"], ["y"])


def test_the_graphs_in_these_tests_are_valid_before_they_are_changed(tmp_path: Path) -> None:
    target = load_target(write_graph(tmp_path / "net.onnx", [HEAD], {"w": WEIGHT}))
    assert target.input_shape == (4,) and target.num_classes == 3


def external(location: str) -> Any:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 3], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def test_an_onnx_operation_without_a_converter_is_named(tmp_path: Path, refused: Callable[..., str]) -> None:
    own = [helper.make_node("RunCode", ["x"], ["a"], domain="evil"), helper.make_node("MatMul", ["a", "w"], ["y"])]
    refused(write_graph(tmp_path / "own.onnx", own, {"w": WEIGHT}, domains=("evil",)), "RunCode")
    rare = [helper.make_node("Hardmax", ["x"], ["a"]), helper.make_node("MatMul", ["a", "w"], ["y"])]
    refused(write_graph(tmp_path / "rare.onnx", rare, {"w": WEIGHT}), "Hardmax")


@pytest.mark.parametrize("location", ["weights.bin", "/etc/passwd", "../../weights.bin"])
@pytest.mark.parametrize("place", ["initializer", "constant", "branch"])
def test_an_onnx_graph_with_weights_in_other_files_is_refused(
    location: str, place: str, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights.bin").write_bytes(WEIGHT.tobytes())
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "net.onnx"
    if place == "initializer":
        write_graph(path, [HEAD], {"w": external(location)})
    elif place == "constant":
        write_graph(path, [helper.make_node("Constant", [], ["w"], value=external(location)), HEAD])
    else:
        outputs = [helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3])]
        branch = helper.make_graph([], "branch", [], outputs, [external(location)])
        fork = helper.make_node("If", ["c"], ["v"], then_branch=branch, else_branch=branch)
        write_graph(path, [fork, helper.make_node("MatMul", ["x", "v"], ["y"])], {"c": np.array(True)})
    message = refused(path)
    if place != "branch":
        assert re.search("in other files|external|outside", message), message


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9, 0.99])
def test_a_truncated_onnx_graph_is_refused(part: float, tmp_path: Path, refused: Callable[..., str]) -> None:
    path = write_graph(tmp_path / "net.onnx", [HEAD], {"w": WEIGHT})
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    refused(path, "net.onnx")


def test_an_onnx_graph_without_exactly_one_input_is_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    both = [helper.make_node("Add", ["x", "z"], ["y"])]
    refused(write_graph(tmp_path / "two.onnx", both, inputs={"x": ["N", 4], "z": ["N", 4]}), "takes 2 inputs")
    refused(write_graph(tmp_path / "none.onnx", [helper.make_node("MatMul", ["w", "v"], ["y"])],
                        {"w": WEIGHT, "v": WEIGHT.T.copy()}, inputs={}), "takes 0 inputs")  # fmt: skip


@pytest.mark.parametrize(
    "shape",
    [["N", "C", "H", "W"], ["N", 10**9, 10**9], ["N", 3, 0, 4], ["N"], [], ["N", -1], [1, 2**40]],
    ids=str,
)
def test_an_onnx_graph_that_states_no_sensible_shape_is_refused(
    shape: list[Any], tmp_path: Path, refused: Callable[..., str]
) -> None:
    graph = write_graph(tmp_path / "net.onnx", [helper.make_node("Relu", ["x"], ["y"])], inputs={"x": shape})
    refused(graph, "shape|valid")


@pytest.mark.parametrize("attribute", ["kernel_shape", "pads", "strides", "dilations"])
def test_an_onnx_window_that_would_fill_the_memory_is_refused(
    attribute: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    kernel = np.ones((3, 1, 3, 3), np.float32)
    sizes = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [1, 1], "dilations": [1, 1]}
    sizes[attribute] = [2**31 - 1, *sizes[attribute][1:]]
    nodes = [helper.make_node("Conv", ["x", "k"], ["c"], **sizes), helper.make_node("GlobalMaxPool", ["c"], ["y"])]
    graph = write_graph(tmp_path / "net.onnx", nodes, {"k": kernel}, inputs={"x": ["N", 1, 8, 8]})
    assert attribute in refused(graph, "up to 1024 pixels")


@pytest.mark.parametrize("how", ["whole numbers", "rounding", "no way from the input"])
def test_an_onnx_graph_without_a_gradient_is_noticed(how: str, tmp_path: Path) -> None:
    steps = {
        "whole numbers": [
            helper.make_node("Cast", ["p"], ["i"], to=TensorProto.INT64),
            helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
        ],
        "rounding": [helper.make_node("Round", ["p"], ["y"])],
        "no way from the input": [
            helper.make_node("Shape", ["p"], ["s"]),
            helper.make_node("ConstantOfShape", ["s"], ["y"]),
        ],
    }
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), *steps[how]]
    assert load_target(write_graph(tmp_path / "net.onnx", nodes, {"w": 10 * WEIGHT})).no_gradient


def test_an_onnx_graph_with_constants_of_a_false_size_is_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    for dims in ([10**6, 10**6], [2**62, 3], [-4, 3], [5, 3]):
        tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=WEIGHT.tobytes())
        refused(write_graph(tmp_path / "net.onnx", [HEAD], {"w": tensor}))


def test_an_onnx_graph_with_undefined_references_is_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    refused(write_graph(tmp_path / "a.onnx", [helper.make_node("Relu", ["nothing"], ["y"])]), "valid")
    loop = [helper.make_node("Relu", ["b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    refused(write_graph(tmp_path / "b.onnx", [*loop, helper.make_node("Add", ["x", "b"], ["y"])]), "valid")
    refused(write_graph(tmp_path / "c.onnx", [helper.make_node("Relu", ["x"], ["z"])]))


def test_a_graph_that_differs_from_onnxruntime_is_refused(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_graph(tmp_path / "net.onnx", [HEAD], {"w": WEIGHT})
    other = onnx.load(write_graph(tmp_path / "other.onnx", [HEAD], {"w": WEIGHT + 0.1}))
    import onnx2torch

    wrong = onnx2torch.convert(other)
    monkeypatch.setattr(onnx2torch, "convert", lambda graph: wrong)
    refused(path, "other numbers than onnxruntime")


# ----------------------------------------------------------------------------------- no import, and little memory

WATCH = """
import json, resource, sys, warnings
from pathlib import Path

folder = Path(sys.argv[1])
sys.path.append(str(folder))
import timm, transformers, onnx2torch, onnxruntime
import torch, torchvision
import interpkit
from interpkit.plugins.discovery import installed

installed().registry.entries("loader")
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 1_500_000_000, resource.RLIM_INFINITY))
asked = []


class Watch:
    def find_spec(self, name, path=None, target=None):
        asked.append(name)
        return None


sys.meta_path.insert(0, Watch())
warnings.simplefilter("ignore")
refused, loaded, others = {}, [], {}
for path in sorted(folder.iterdir()):
    if path.suffix in (".py", ""):
        if not path.is_dir() or path.name.startswith("__"):
            continue
    try:
        interpkit.load_target(path)
        loaded.append(path.name)
    except interpkit.ModelError as error:
        refused[path.name] = str(error)
    except BaseException as error:
        others[path.name] = repr(error)
mine = [n for n, m in sys.modules.items() if str(folder) in str(getattr(m, "__file__", None) or "")]
print(json.dumps({"refused": refused, "loaded": loaded, "others": others, "mine": mine, "asked": asked}))
"""


def test_many_hostile_files_import_nothing_and_use_little_memory(tmp_path: Path, run_python: Process) -> None:
    heap = tmp_path / "heap"
    heap.mkdir()
    marker = tmp_path / "marker"
    code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\nNet = EvilConfig = EvilModel = print\n"
    for name in ("evil", "modeling_evil", "configuration_evil", "hubconf", "test_evil"):
        (heap / f"{name}.py").write_text(code, "utf-8")

    for number, arch in enumerate(
        ("py:evil:Net", f"py:{heap}/evil.py:Net", "evil:Net", "timm:evil", "transformers:evil")
    ):
        named(heap / f"named{number}.safetensors", arch)
    wrapper = {"architecture": "test_vit", "model_args": {"checkpoint_path": str(heap / "evil.pth")}}
    named(heap / "wrapper.safetensors", "transformers:timm_wrapper", arch_args=wrapper)
    torch.save(Runs(f"touch {marker}"), heap / "evil.pth")
    torch.save({"state_dict": Runs(f"touch {marker}")}, heap / "evil.ckpt")
    (heap / "evil.pt2").write_bytes((heap / "evil.pth").read_bytes())
    write_graph(heap / "evil.onnx", [helper.make_node("RunCode", ["x"], ["y"], domain="evil")], domains=("evil",))

    auto_map = {
        "AutoConfig": "configuration_evil.EvilConfig",
        "AutoModelForImageClassification": "modeling_evil.EvilModel",
    }
    configs = {
        "auto_map": {"model_type": "vit", "image_size": 16, "auto_map": auto_map},
        "own_type": {"model_type": "evil", "architectures": ["EvilForImageClassification"], "image_size": 16},
        "pipelines": {"model_type": "vit", "custom_pipelines": {"x": {"impl": "evil.Net"}}, "hidden_size": 10**9},
        "wide": {"model_type": "vit", "image_size": 16, "hidden_size": 999_996, "intermediate_size": 10**6},
        "deep": {"model_type": "vit", "image_size": 16, "hidden_size": 12, "num_hidden_layers": 300},
        "large": {"model_type": "vit", "image_size": 1600, "patch_size": 1, "hidden_size": 12_000},
        "timm_wide": {"architecture": "test_vit", "num_classes": 999_999, "input_size": [3, 160, 160]},
        "timm_deep": {"architecture": "test_vit", "input_size": [3, 160, 160], "model_args": {"depth": 300}},
        "timm_regnet": {"architecture": "regnety_320", "num_classes": 10**6, "input_size": [3, 32, 32]},
        "timm_path": {"architecture": f"local-dir:{heap}", "input_size": [3, 32, 32]},
        "mixin": {"arch": "py:evil:Net", "library": "evil"},
    }  # fmt: skip
    for name, config in configs.items():
        folder = write_json(heap / name / "config.json", config).parent
        safetensors.torch.save_file({"w": torch.zeros(1)}, folder / "model.safetensors")
        for file in ("modeling_evil", "configuration_evil", "evil"):
            (folder / f"{file}.py").write_text(code, "utf-8")
    before = sorted(tmp_path.rglob("*"))

    (tmp_path / "watch.py").write_text(WATCH, "utf-8")
    environment = {"HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1", "HF_HOME": str(tmp_path / "hf")}
    run = run_python(tmp_path / "watch.py", heap, cwd=heap, env=environment)
    assert run.returncode == 0, run.stderr[-2000:]
    told = json.loads(run.stdout.splitlines()[-1])
    assert told["others"] == {} and told["loaded"] == []
    assert len(told["refused"]) == len(configs) + 10
    assert "DefaultCPUAllocator" not in str(told["refused"]) and "allocate" not in str(told["refused"]).lower()
    assert told["mine"] == []
    assert [name for name in told["asked"] if "evil" in name or name == "hubconf"] == []
    assert not marker.exists()
    noted = {tmp_path / "hf", tmp_path / "hf/hub", tmp_path / "hf/hub/version.txt"}  # by older transformers, of itself
    assert [p for p in sorted(tmp_path.rglob("*")) if p.name != "watch.py" and p not in noted] == before


@pytest.mark.parametrize(
    ("arch", "arguments"),
    [
        ("torchvision:regnet_y_400mf", {"num_classes": 999_999}),
        ("torchvision:resnet18", {"width_per_group": 10**6, "groups": 1}),
        ("torchvision:vit_b_16", {"hidden_dim": 10**6, "num_classes": 10**6}),
        ("torchvision:densenet121", {"growth_rate": 10**6}),
        ("torchvision:densenet121", {"block_config": [10**6] * 4}),
        ("torchvision:densenet121", {"block_config": [10**9] * 4}),
        ("timm:regnety_320", {"num_classes": 999_999}),
        ("timm:test_vit", {"num_classes": 999_999}),
        ("timm:test_vit", {"embed_dim": 999_999, "num_heads": 1}),
        ("timm:test_resnet", {"layers": [10**6] * 4}),
        ("timm:test_resnet", {"channels": [10**6] * 4}),
        ("transformers:vit", {"hidden_size": 999_996, "num_labels": 3}),
        ("transformers:resnet", {"depths": [1000] * 100, "hidden_sizes": [10] * 100}),
    ],
    ids=lambda case: str(case)[:60],
)
def test_metadata_cannot_make_the_loader_allocate_more_than_the_file_holds(
    arch: str, arguments: dict[str, Any], tmp_path: Path, refused: Callable[..., str]
) -> None:
    refused(named(tmp_path / "net.safetensors", arch, arch_args=arguments), re.escape(arch))


def test_an_api_call_raises_the_error_that_the_command_line_shows(tmp_path: Path) -> None:
    torch.save(Runs("true"), tmp_path / "net.pt")
    with pytest.raises(ModelError, match="more than weights") as caught:
        interpkit.invert(tmp_path / "net.pt", ["vecmat"], target_options={"arch": "interpkit:cnn"})
    assert caught.value.exit_code == 3


# ------------------------------------------------------------------------------- found by torture.fuzz, or looked for


def test_names_in_an_onnx_graph_are_not_run(tmp_path: Path, marker: Path) -> None:
    """torch.fx writes the names of a converted graph's layers into code."""
    marker_opened = f'training"), open("{marker}", "w"), getattr(self, "training'
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name=marker_opened)
    target = load_target(write_graph(tmp_path / "net.onnx", [node], {"w": WEIGHT}))
    assert not marker.exists() and target.num_classes == 3
    assert not any(bad in layer for layer in target.layers() for bad in "\"'\\(\n")


@pytest.mark.parametrize(
    ("operator", "values", "shape"),
    [
        ("Pad", np.array([0, 0, 0, 10**9]), ["N", 4]),
        ("Expand", np.array([1, 10**9, 4]), ["N", 1, 4]),
        ("Expand", np.array([10**9, 4]), ["N", 4]),
        ("Expand", np.array([10**9, 4]), [1, 4]),
        ("Conv", np.ones((1000, 1, 1, 1), np.float32), [1, 1, 1500, 1500]),
    ],
)
def test_an_onnx_layer_far_too_large_for_the_image_is_refused(
    operator: str, values: Any, shape: list[Any], tmp_path: Path, refused: Callable[..., str]
) -> None:
    nodes = [helper.make_node(operator, ["x", "values"], ["z"]), helper.make_node("Relu", ["z"], ["y"])]
    path = write_graph(tmp_path / "net.onnx", nodes, {"values": values}, {"x": shape})
    refused(path, "computes .* numbers at once; up to 200,000,000 per image")


def test_an_onnx_graph_with_a_huge_fixed_batch_is_refused_without_running_it(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    refused(write_graph(tmp_path / "net.onnx", [HEAD], {"w": WEIGHT}, {"x": [10**9, 4]}), "1000000000 images at a time")


def test_a_function_in_an_onnx_graph_cannot_read_other_files(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("secret.bin").write_bytes(WEIGHT.tobytes())
    inside = [helper.make_node("Constant", [], ["w"], value=external("secret.bin")), HEAD]
    path = write_graph(tmp_path / "net.onnx", [helper.make_node("F", ["x"], ["y"], domain="own")], domains=("own",))
    graph = onnx.load(path)
    graph.functions.append(helper.make_function("own", "F", ["x"], ["y"], inside, [helper.make_opsetid("", 13)]))
    path.write_bytes(graph.SerializeToString())
    refused(path, "keeps weights in other files: 'secret.bin'")


def test_functions_of_an_onnx_graph_that_call_each_other_many_times_are_refused(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    path = write_graph(tmp_path / "net.onnx", [helper.make_node("F40", ["x"], ["y"], domain="own")], domains=("own",))
    graph, opsets = onnx.load(path), [helper.make_opsetid("", 13), helper.make_opsetid("own", 1)]
    graph.functions.append(
        helper.make_function("own", "F0", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])], opsets)
    )
    for depth in range(40):
        calls = [helper.make_node(f"F{depth}", [a], [b], domain="own") for a, b in (("x", "z"), ("z", "y"))]
        graph.functions.append(helper.make_function("own", f"F{depth + 1}", ["x"], ["y"], calls, opsets))
    path.write_bytes(graph.SerializeToString())
    refused(path, "has 1,099,511,627,776 operations once its functions are written out")


def test_an_onnx_operator_of_another_domain_is_not_mistaken_for_a_cast(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    nodes = [helper.make_node("Cast", ["x"], ["z"], domain="own"), helper.make_node("MatMul", ["z", "w"], ["y"])]
    refused(write_graph(tmp_path / "net.onnx", nodes, {"w": WEIGHT}, domains=("own",)), "cannot be converted")


def test_an_onnx_input_of_no_known_type_is_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    path = write_graph(tmp_path / "net.onnx", [HEAD], {"w": WEIGHT})
    graph = onnx.load(path)
    graph.graph.input[0].type.tensor_type.elem_type = 77
    path.write_bytes(graph.SerializeToString())
    refused(path, "does not take a tensor of numbers")


def test_an_onnx_output_that_is_named_twice_is_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    path = write_graph(tmp_path / "net.onnx", [HEAD, helper.make_node("Relu", ["y"], ["z"])], {"w": WEIGHT})
    graph = onnx.load(path)
    graph.graph.output.add().CopyFrom(graph.graph.output[0])
    path.write_bytes(graph.SerializeToString())
    refused(path, "")


def test_names_of_outputs_of_an_onnx_graph_are_not_run(tmp_path: Path, marker: Path) -> None:
    """Each of several outputs has a layer of its own, named after it."""
    name = f'x", None), open("{marker}", "w"), getattr(self, "training'
    path = write_graph(tmp_path / "net.onnx", [HEAD, helper.make_node("Relu", ["y"], [name])], {"w": WEIGHT})
    graph = onnx.load(path)
    graph.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", "K"]))
    onnx.save(graph, path)
    assert load_target(path).num_classes == 3
    assert not marker.exists()


def test_ordinary_names_in_an_onnx_graph_are_kept(tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="/layer1/conv-2/MatMul_3:0")
    target = load_target(write_graph(tmp_path / "net.onnx", [node], {"w": WEIGHT}))
    assert "layer1/conv-2/MatMul_3:0" in target.layers()


@pytest.mark.parametrize(
    ("shape", "words"),
    [([1, 3000, 3000], "fails on an input of shape"), ([3, 1800, 1800], "fails"), ([10**7], "fails")],
    ids=str,
)
def test_a_large_image_is_first_tried_on_the_meta_device(
    shape: list[int], words: str, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run: list[str] = []
    forward = nn.Conv2d.forward

    def noted(self: nn.Conv2d, images: torch.Tensor) -> torch.Tensor:
        run.append(images.device.type)
        return forward(self, images)

    monkeypatch.setattr(nn.Conv2d, "forward", noted)
    refused(named(tmp_path / "net.safetensors", "interpkit:cnn", arch_args=ARGUMENTS, input_shape=shape), words)
    assert set(run) == {"meta"}


def test_a_layer_far_too_large_for_the_image_is_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    arguments = {"input_shape": [1, 1000, 1000], "num_classes": 2, "widths": [300, 1, 1, 1, 1, 1, 1, 1], "hidden": 1}
    metadata = {"interpkit.schema": "1", "interpkit.architecture": "interpkit:cnn"}
    metadata |= {"interpkit.input_shape": "[1, 1000, 1000]", "interpkit.arch_args": json.dumps(arguments)}
    path = tmp_path / "net.safetensors"
    path.write_bytes(safetensors.torch.save(SmallCNN(**arguments).state_dict(), metadata))
    refused(path, "a layer outputs 300,000,000 numbers")


def test_a_large_image_that_the_network_accepts_is_accepted(tmp_path: Path) -> None:
    arguments = {"input_shape": [1, 400, 400], "num_classes": 2, "widths": [1, 1], "hidden": 1}
    path = interpkit.save_target(
        SmallCNN(**arguments).eval(),
        tmp_path / "net.safetensors",
        architecture="interpkit:cnn",
        arch_args=arguments,
        input_shape=(1, 400, 400),
    )
    assert load_target(path).input_shape == (1, 400, 400)


def test_a_config_cannot_make_the_users_code_allocate_more_than_the_file_holds(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(tmp_path))
    code = "from torch import nn\nclass Net(nn.Linear):\n    def __init__(self, width): super().__init__(width, 3)"
    (tmp_path / "own_net.py").write_text(code, "utf-8")
    folder = write_json(tmp_path / "net" / "config.json", {"width": 10**8}).parent
    safetensors.torch.save_file(nn.Linear(4, 3).state_dict(), folder / "model.safetensors")
    spec = f"py:{tmp_path}/own_net.py:Net"
    refused(folder, "asks for 300,000,003 weights, and the file holds 15", "--arch", spec, "--input-shape", "4")
    write_json(folder / "config.json", {"width": 4})
    assert load_target(folder, arch=spec, input_shape=(4,)).num_classes == 3


def test_a_checkpoint_that_is_a_decompression_bomb_is_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    state = {name: torch.zeros(1).expand(tensor.shape) for name, tensor in cnn().state_dict().items()}
    state["0.weight"] = torch.zeros(1).expand(30_000, 30_000)
    torch.save(state, tmp_path / "net.pt")
    refused(tmp_path / "net.pt", r"its tensors have 3,600,\d+,\d+ bytes together", *CNN_FLAGS)
