"""Hostile run folders, recipes, data and names are refused with one message; nothing runs or is written elsewhere."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner, Result

import interpkit
from interpkit import RunError, UsageError, load_data
from interpkit.api.invert import prepare
from interpkit.attribution.export import load_images
from interpkit.cli import app
from interpkit.cli.console import printable
from interpkit.cli.options import lines, pair
from interpkit.config.recipe import read_toml
from interpkit.io import strict_json
from interpkit.io.images import grid, save_images
from interpkit.io.safe_load import load_plain
from interpkit.runs.folder import Run
from interpkit.runtime.recorder import StepRecord

SHAPE = (1, 12, 12)


def cli(*words: Any) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def refuses(code: int, words: str, *arguments: Any) -> None:
    result = cli(*arguments)
    message = " ".join(result.stderr.split())
    assert result.exit_code == code, result.output
    assert words in message and "fault of interpkit" not in message and "Traceback" not in message, message


def change(path: Path, **changes: Any) -> Path:
    """Change entries of a JSON file; double underscores in a key separate the levels of nesting."""
    value = json.loads(path.read_text("utf-8"))
    for key, new in changes.items():
        *outer, last = key.split("__")
        place = value
        for name in outer:
            place = place[int(name) if name.isdecimal() else name]
        place[last] = new
    path.write_text(json.dumps(value), "utf-8")
    return path


# ---------------------------------------------------------------------------------------------- JSON, TOML


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 60 + "1" + "}" * 60, "nested too deeply"),
        ('{"a": NaN}', "NaN is not JSON"),
        ("1e999", "too large"),
        (str(2**64), "too large"),
        ("9" * 5000, "digits"),
        (r'"\ud800"', "surrogates not allowed"),
        ("{", "property name"),
    ],
    ids=lambda text: text[:20],
)
def test_json_with_unusable_values_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        strict_json.parse(text)


def test_other_json_is_read_unchanged() -> None:
    assert strict_json.parse(r'{"a": [1, -0.5, true, null, "\u00e9\ud83d\ude00"]}') == {
        "a": [1, -0.5, True, None, "é😀"]
    }
    assert strict_json.parse(str(2**63)) == 2**63


def test_pipes_and_huge_files_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="it is not a file"):
        strict_json.read_text(tmp_path / "pipe")
    (tmp_path / "large").write_text("12345")
    with pytest.raises(ValueError, match="larger than 4 bytes"):
        strict_json.read_text(tmp_path / "large", most=4)


@pytest.mark.parametrize(
    "name", ["manifest.json", "metrics.json", "history.jsonl", "recipe.toml", "samples.safetensors"]
)
def test_a_pipe_in_a_run_folder_does_not_block(name: str, run_copy: Path) -> None:
    (run_copy / name).unlink()
    os.mkfifo(run_copy / name)
    assert cli("report", run_copy).exit_code in (1, 2)
    assert cli("compare", run_copy, run_copy, "--html", run_copy.parent / "page.html").exit_code in (1, 2)


def test_an_unreadable_recipe_in_a_run_is_an_error_of_the_run_not_of_the_command(run_copy: Path) -> None:
    (run_copy / "recipe.toml").unlink()
    (run_copy / "recipe.toml").mkdir()
    assert cli("report", run_copy).exit_code == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
MANIFEST_KEYS = st.sampled_from(["model", "plugins", "presets", "status", "steps_done", "timings", "versions"])
METRICS_KEYS = st.sampled_from(["per_class", "evaluators", "left_out", "diversity", "reference", "count", "confidence"])


@given(st.dictionaries(MANIFEST_KEYS, JSON, max_size=2), st.dictionaries(METRICS_KEYS, JSON, max_size=3))
def test_any_content_of_manifest_and_metrics_is_shown_or_refused(
    finished_run: Path, tmp_path_factory: pytest.TempPathFactory, manifest: dict[str, Any], metrics: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    for name in ("recipe.toml", "samples.safetensors"):
        (folder / name).symlink_to(finished_run / name)
    for name, changes in (("manifest.json", manifest), ("metrics.json", metrics)):
        content = json.loads((finished_run / name).read_text("utf-8")) | changes
        (folder / name).write_text(json.dumps(content), "utf-8")
    result = cli("compare", folder, finished_run)
    assert result.exit_code in (0, 1), result.output
    assert "fault of interpkit" not in result.stderr


@pytest.mark.parametrize(
    "changes",
    [
        {"per_class__0__label": [0]},
        {"per_class__0__name": None},
        {"per_class__0__confidence": "high"},
        {"per_class__0__diversity": {"vendi_pooled": "much"}},
        {"per_class__0__reference": {"excess_vendi": []}},
        {"evaluators": [{"agreement": 0.1}]},
        {"evaluators": [{"name": "judge", "agreement": "all"}]},
        {"left_out": {"agreement": {}}},
        {"inversion_accuracy": [1]},
    ],
    ids=str,
)
def test_metrics_of_the_wrong_type_are_refused_with_their_place(changes: dict[str, Any], run_copy: Path) -> None:
    change(run_copy / "metrics.json", **changes)
    place = next(iter(changes)).replace("__", ".")
    with pytest.raises(RunError, match=rf"metrics\.json is not in interpkit's format \({place}"):
        Run.open(run_copy).metrics()


@pytest.mark.parametrize("interval", [[], [0.1], "ab", [None, 1], [0, 1, 2]], ids=str)
def test_an_invalid_interval_is_not_shown(interval: Any, run_copy: Path) -> None:
    change(run_copy / "metrics.json", inversion_accuracy_interval=interval)
    result = cli("compare", run_copy, run_copy)
    assert result.exit_code == 0, result.output


def test_metrics_without_figures_are_shown_as_not_measured(run_copy: Path, tiny_model: Path) -> None:
    (run_copy / "metrics.json").write_text('{"schema": 1}', "utf-8")
    result = cli("invert", tiny_model, "--out", run_copy, "--resume")
    assert result.exit_code == 0, result.output
    assert cli("evaluate", run_copy, "--metric", "diversity").exit_code == 0


@pytest.mark.parametrize("changes", [{"status": 7}, {"steps_done": "all"}, {"steps_done": -1}, {"model__sha256": 3}])
def test_a_manifest_with_values_of_the_wrong_type_is_refused(
    changes: dict[str, Any], run_copy: Path, tiny_model: Path
) -> None:
    change(run_copy / "manifest.json", **changes)
    refuses(1, "manifest.json", "invert", tiny_model, "--out", run_copy, "--resume")


def test_a_manifest_without_a_sha256_is_refused(run_copy: Path) -> None:
    change(run_copy / "manifest.json", model={"name": "a", "path": "/nowhere"})
    refuses(1, "which classifier", "sample", run_copy)


def test_a_manifest_that_names_a_whole_disk_is_not_hashed(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(run_copy / "manifest.json", model__path="/")

    def hashed(path: Path) -> str:
        raise AssertionError(path)

    monkeypatch.setattr("interpkit.runs.folder.sha256", hashed)
    refuses(3, "/ is in no format", "sample", run_copy)


@pytest.mark.parametrize("word", ["evil; rm -rf ~", "evil && true", "$(true)", "evil\nnext", "--index-url=x y"])
def test_commands_in_messages_cannot_be_injected_from_a_manifest(word: str, run_copy: Path) -> None:
    used = {"package": word, "version": "1.0", "used": {"loss": ["unheard-of"]}}
    change(run_copy / "manifest.json", plugins={"other": used})
    result = cli("sample", run_copy)
    assert result.exit_code == 1 and "pip install" not in result.output


def test_the_command_to_type_quotes_code_named_by_a_recipe(run_copy: Path, tiny_model: Path, tmp_path: Path) -> None:
    arch = "py:net.py:Net; touch marker"
    text = (run_copy / "recipe.toml").read_text("utf-8")
    (run_copy / "recipe.toml").write_text(text.replace('"interpkit:cnn"', f'"{arch}"'), "utf-8")
    refuses(3, f"--arch '{arch}'", "sample", run_copy)
    refuses(2, f"--arch '{arch}'", "invert", tiny_model, "--config", run_copy / "recipe.toml")


@pytest.mark.parametrize(
    "row",
    ["7", "[]", '"text"', '{"step": "1", "seconds": 0, "loss": 1, "inversion_accuracy": 1}',
     '{"step": true, "seconds": 0, "loss": 1, "inversion_accuracy": 1}',
     '{"step": 1, "seconds": 0, "loss": [1], "inversion_accuracy": 1}',
     '{"step": 1, "seconds": 0, "loss": 1, "inversion_accuracy": 1, "term": "x"}', "[" * 100_000],
    ids=lambda row: row[:60],
)  # fmt: skip
def test_a_history_line_that_is_not_a_record_is_refused(row: str, run_copy: Path) -> None:
    path = run_copy / "history.jsonl"
    path.write_text(f"{row}\n{path.read_text('utf-8')}", "utf-8")
    with pytest.raises(RunError, match=r"history\.jsonl, line 1: not a record"):
        interpkit.load_inversion(run_copy)


def test_a_record_is_read_as_it_was_written() -> None:
    record = StepRecord(3, 9, 0.5, 1.0, {"ce": 2.0}, 0.25)
    assert StepRecord.from_row(strict_json.parse(json.dumps(record.to_row())), 9) == record


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"seed = {'9' * 5000}", "is not TOML"),
        (f"[a{'.a' * 500}]\nb = 1", "nests tables more than 50 levels"),
        (f"a = {'[' * 100_000}", "is not TOML"),
        ("a = " + "{b = " * 200 + "1" + "}" * 200, "nests tables more than 50 levels"),
    ],
    ids=["digits", "dots", "brackets", "braces"],
)
def test_an_invalid_recipe_is_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(text, "utf-8")
    with pytest.raises(UsageError, match=words):
        read_toml(tmp_path / "recipe.toml")


@pytest.mark.parametrize("text", ["9" * 5000, "[" * 100_000, "1e9999", "\ud800"])
def test_an_invalid_toml_value_on_the_command_line_is_read_as_text(text: str) -> None:
    assert pair("--set", f"a.b={text}")[0] == "a.b"


@pytest.mark.parametrize("text", ["[" * 100_000, '["a"', r'["\ud800"]', f"[{'9' * 5000}]"], ids=lambda t: t[:10])
def test_class_names_that_are_not_a_list_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "names").write_text(text, "utf-8")
    with pytest.raises(UsageError, match="does not list class names"):
        lines(tmp_path / "names")


def test_no_memory_is_allocated_for_a_recipe_before_it_is_compared_with_the_weights(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run_copy / "recipe.toml"
    text = path.read_text("utf-8")
    assert "width = 8\n" in text
    path.write_text(text.replace("width = 8\n", "width = 8192\n", 1), "utf-8")
    made = []
    uniform = torch.nn.init.kaiming_uniform_

    def noted(tensor: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        made.append(tensor.device.type)
        return uniform(tensor, *arguments, **named)

    target = interpkit.load_target(Run.open(run_copy).manifest().model.path)
    monkeypatch.setattr("torch.nn.init.kaiming_uniform_", noted)
    with pytest.raises(RunError, match="does not fit the recipe beside it"):
        interpkit.load_inversion(run_copy, target=target)
    assert set(made) == {"meta"}


# -------------------------------------------------------------------------------------------- pickles


def saved(value: Any, path: Path, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


def test_ordinary_torch_files_are_read(tmp_path: Path) -> None:
    tied = torch.arange(6.0)
    value = {"a": tied, "b": tied, "c": [tied[2:], {"d": 1, "e": "text"}], "f": tied.expand(3, 6)}
    for new in (True, False):
        read = load_plain(saved(value, tmp_path / "net.pt", _use_new_zipfile_serialization=new))
        assert torch.equal(read["a"], tied) and torch.equal(read["c"][0], tied[2:]) and read["c"][1] == value["c"][1]


def repacked(path: Path, compression: int) -> Path:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_an_archive_that_unpacks_to_more_than_its_size_is_not_unpacked(tmp_path: Path) -> None:
    path = repacked(saved({"w": torch.zeros(1_000_000)}, tmp_path / "net.pt"), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    with pytest.raises(ValueError, match="unpacks to"):
        load_plain(path)
    assert load_plain(repacked(path, zipfile.ZIP_STORED))["w"].numel() == 1_000_000


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"w": torch.zeros(1).expand(10_000, 10_000)}, "tensors have 400,000,000 bytes"),
        ({"w": torch.zeros(10**6, 10**6, device="meta")}, "without values"),
        ({f"w{i}": torch.zeros(1).expand(1000, 1000) for i in range(3)}, "tensors have 12,000,000 bytes"),
    ],
    ids=["repeated", "meta", "many"],
)
def test_tensors_that_are_larger_than_the_file_are_refused(
    new: bool, tensors: dict[str, Any], words: str, tmp_path: Path
) -> None:
    path = saved(tensors, tmp_path / "net.pt", _use_new_zipfile_serialization=new)
    with pytest.raises(ValueError, match=words):
        load_plain(path)


def test_a_long_word_that_would_stall_torch_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02c" + b"(" * 500_000 + b"\nx\n.")
        archive.writestr("archive/version", "3\n")
    with pytest.raises(ValueError, match="a word of 500,000 characters"):
        load_plain(path)


def test_a_pickle_that_requests_gigabytes_gets_only_the_bytes_of_the_file(tmp_path: Path) -> None:
    whole = saved({"w": torch.zeros(2)}, tmp_path / "net.pt", _use_new_zipfile_serialization=False).read_bytes()
    text = struct.pack("<I", 1)
    at = whole.index(b"X" + text + b"w")
    (tmp_path / "net.pt").write_bytes(whole[: at + 1] + struct.pack("<I", 2**31 - 1) + whole[at + 5 :])
    with pytest.raises(ValueError, match="expected 2147483647 bytes"):
        load_plain(tmp_path / "net.pt")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"step": "1"}, "does not contain the state"),
        ({"step": -1}, "does not contain the state"),
        ({"step": True}, "does not contain the state"),
        ({"seconds": "long"}, "does not contain the state"),
        ({"seconds": float("nan")}, "does not contain the state"),
        ({"trained": 3}, "does not fit its recipe"),
        ({"optimizer": {"state": [], "param_groups": [3]}}, "does not fit its recipe"),
        ({"processes": [{"global_rng": torch.zeros(3)}]}, "does not fit its recipe"),
    ],
    ids=str,
)
def test_a_checkpoint_with_values_of_the_wrong_type_is_refused(
    changes: dict[str, Any], words: str, run_copy: Path, tiny_model: Path
) -> None:
    path = run_copy / "checkpoint"
    torch.save(torch.load(path, weights_only=True) | changes, path)
    refuses(1, words, "invert", tiny_model, "--out", run_copy, "--resume", "--steps", "13")


# ------------------------------------------------------------------------------------------------ data


def npz(path: Path, compression: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def npy(array: np.ndarray, shape: str | None = None, descr: str | None = None) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    content = buffer.getvalue()
    header = content[10:128].decode()
    if shape is not None:
        header = header.replace(f"'shape': {array.shape}", f"'shape': {shape}").rstrip()
    if descr is not None:
        header = header.replace(f"'descr': '{array.dtype.str}'", f"'descr': {descr}").rstrip()
    header = header.rstrip("\n").rstrip().ljust(117) + "\n"
    return content[:8] + struct.pack("<H", len(header)) + header.encode() + content[128:]


IMAGES, LABELS = np.zeros((2, 12, 12), np.uint8), np.array([0, 1])


def test_the_arrays_in_these_tests_are_valid_before_they_are_changed(tmp_path: Path) -> None:
    data = load_data(str(npz(tmp_path / "a.npz", images=npy(IMAGES), labels=npy(LABELS))), SHAPE)
    assert data.images.shape == (2, 1, 12, 12)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (npy(IMAGES, shape="(10000000000, 12, 12)"), npy(LABELS)),
        (npy(IMAGES, shape="(-2, -12, 12)"), npy(LABELS)),
        (npy(IMAGES, descr="'<f8'"), npy(LABELS)),
        (npy(IMAGES), npy(LABELS, shape="(1000000000000,)")),
        (npy(IMAGES, descr="'|O'"), npy(LABELS)),
        (npy(IMAGES, shape="(2, 12, __import__('evil'))"), npy(LABELS)),
        (npy(IMAGES, shape="(2, 12, 12"), npy(LABELS)),
        (npy(IMAGES)[:-5], npy(LABELS)),
        (b"", b""),
        (b"\x93NUMPY\x09\x00", npy(LABELS)),
    ],
    ids=["huge", "negative", "wider", "labels", "objects", "code", "open", "short", "empty", "version"],
)
def test_an_array_of_a_false_size_is_refused(images: bytes, labels: bytes, tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", images=images, labels=labels)
    with pytest.raises(UsageError, match=r"a\.npz") as caught:
        load_data(str(path), SHAPE)
    assert "allocate" not in str(caught.value)


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_array_that_cannot_be_unpacked_is_refused(compression: int, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 12, 12), np.uint8)
    path = npz(tmp_path / "a.npz", compression, images=npy(noise), labels=npy(np.zeros(20, np.int64)))
    content = bytearray(path.read_bytes())
    for at in range(60, 1000):
        content[at] ^= 0x55
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"cannot be read as \.npz|no whole"):
        load_data(str(path), SHAPE)


@pytest.mark.parametrize("name", ["images", "labels"])
def test_a_decompression_bomb_is_not_unpacked(name: str, tmp_path: Path) -> None:
    arrays = {"images": npy(IMAGES), "labels": npy(LABELS)}
    shape = (1_000_000, 12, 12) if name == "images" else (20_000_000,)
    arrays[name] = npy(np.zeros(shape, np.uint8 if name == "images" else np.int64))
    path = npz(tmp_path / "a.npz", zipfile.ZIP_DEFLATED, **arrays)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(UsageError, match="like a decompression bomb"):
        load_data(str(path), SHAPE)


def test_an_archive_member_with_a_path_as_its_name_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    members = {"images": npy(IMAGES), "labels": npy(LABELS), "../../evil": npy(LABELS), "/tmp/evil": npy(LABELS)}
    load_data(str(npz(tmp_path / "a.npz", **members)), SHAPE)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def picture(path: Path, size: tuple[int, int] = (12, 12), kind: str = "PNG") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size).save(path, kind)
    return path


def test_a_picture_of_too_many_pixels_is_not_decoded(
    tmp_path: Path, tiny_target: interpkit.Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = picture(tmp_path / "0" / "a.png", (5000, 5000))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("it was decoded"))
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 24_999_999)
    for read in (lambda: load_data(str(tmp_path), SHAPE), lambda: load_images(str(path), tiny_target)):
        with pytest.raises(
            UsageError,
            match=r"is not a readable image: .*25000000 pixels|has more than the 24,999,999 pixels that are read",
        ):
            read()


@pytest.mark.parametrize("content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 12 12\n%%EndComments\n", b"GIF89a"])
def test_a_picture_must_have_one_of_the_formats_of_its_extension(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow would pass PostScript to Ghostscript."""
    monkeypatch.setattr("subprocess.check_call", lambda *a, **k: pytest.fail("a program was started"))
    path = picture(tmp_path / "0" / "a.png")
    path.write_bytes(content)
    with pytest.raises(UsageError, match="is not a readable image"):
        load_data(str(tmp_path), SHAPE)


def test_a_table_that_names_a_picture_too_long_for_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text(f"image,label\n{'long' * 100}.png,0\n", "utf-8")
    with pytest.raises(UsageError, match="there is no file"):
        load_data(str(tmp_path / "data.csv"), (1, 12, 12))


def test_a_pipe_among_pictures_does_not_block(tmp_path: Path) -> None:
    picture(tmp_path / "0" / "a.png")
    os.mkfifo(tmp_path / "0" / "b.png")
    with pytest.raises(UsageError, match=r"there is no file .*b\.png"):
        load_data(str(tmp_path), SHAPE)


# ------------------------------------------------------------------------------------------------ maps, shards


@pytest.mark.parametrize(
    "maps",
    [
        torch.full((1, 1, 12, 12), float("nan")),
        torch.zeros(1, 1, 12, 12, dtype=torch.complex64),
        torch.zeros(1, 1, 12, 12, dtype=torch.bfloat16),
        torch.zeros(2, 1, 12, 12),
        torch.zeros(1, 0, 12, 12),
    ],
    ids=["nan", "complex", "bfloat16", "more", "none"],
)
def test_maps_that_cannot_be_drawn_are_refused_by_name(maps: torch.Tensor, run_copy: Path) -> None:
    (run_copy / "attributions").mkdir()
    tensors = {"maps": maps, "images": torch.zeros(1, 1, 12, 12)}
    safetensors.torch.save_file(tensors, run_copy / "attributions" / "mine.safetensors")
    refuses(1, "mine.safetensors is not a file of maps", "report", run_copy)


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": torch.zeros(300, dtype=torch.complex64)},
        {"labels": torch.zeros(300)},
        {"confidence": torch.zeros(300, dtype=torch.complex64)},
        {"images": torch.zeros(300, 1, 0, 0, dtype=torch.uint8)},
        {"images": torch.zeros(300, 5, dtype=torch.float16)},
        {"images": torch.zeros(300, 5, dtype=torch.float8_e4m3fn)},
    ],
    ids=lambda changes: str({name: tensor.dtype for name, tensor in changes.items()}),
)
def test_samples_that_cannot_be_compared_are_refused_by_name(
    changes: dict[str, Any], run_copy: Path, tmp_path: Path
) -> None:
    path = run_copy / "samples.safetensors"
    safetensors.torch.save_file(safetensors.torch.load_file(path) | changes, path)
    with pytest.raises(RunError, match="is not a file of samples"):
        interpkit.write_comparison({"one": run_copy, "other": run_copy}, tmp_path / "page.html")


@pytest.mark.parametrize(
    "per_class",
    [{}, [], {"9": [3, 3, 3]}, {"0": [3, 3]}, {"0": [3, 2, 1]}, {"0": [3, 3, 4]}, {"0": [1, 1, 1]}, {"-1": [3, 3, 3]},
     {"0": "abc"}, {"0": [3, 2**63, 1]}, {"0": [3, 3.5, 1]}],
    ids=str,
)  # fmt: skip
def test_a_shards_record_is_used_only_if_it_is_plausible(per_class: Any, finished_run: Path, tmp_path: Path) -> None:
    inversion = interpkit.load_inversion(finished_run)
    good = interpkit.write_shards(inversion, tmp_path / "out", count=5, shard_size=3)
    change(tmp_path / "out" / ".shards" / "000000.json", per_class=per_class)
    assert interpkit.write_shards(inversion, tmp_path / "out", count=5, shard_size=3) == good


# ------------------------------------------------------------------------------------------------ links


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Return a folder with a file in it, outside of the folder that the user names."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / ".profile").write_text("mine", "utf-8")
    return folder


def untouched(folder: Path) -> bool:
    return [path.name for path in folder.iterdir()] == [".profile"] and (folder / ".profile").read_text() == "mine"


def test_shards_are_not_written_or_removed_through_a_link(finished_run: Path, tmp_path: Path, elsewhere: Path) -> None:
    out = tmp_path / "out"
    inversion = interpkit.load_inversion(finished_run)
    interpkit.write_shards(inversion, out, count=3, shard_size=3)
    for path in (out / ".shards").iterdir():
        path.unlink()
    (out / ".shards").rmdir()
    (out / ".shards").symlink_to(elsewhere)
    with pytest.raises(RunError, match=r"is a link to .*elsewhere"):
        interpkit.write_shards(inversion, out, count=6, shard_size=3)
    assert untouched(elsewhere)


def test_maps_and_pictures_are_not_written_through_a_link(run_copy: Path, tmp_path: Path, elsewhere: Path) -> None:
    (run_copy / "attributions").symlink_to(elsewhere)
    refuses(1, "is a link to", "attribute", run_copy, "--no-checks")
    out = tmp_path / "out"
    out.mkdir()
    (out / "0").symlink_to(elsewhere)
    with pytest.raises(RunError, match="is a link to"):
        save_images(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), torch.tensor([0]), ["a"], out)
    assert untouched(elsewhere)


@pytest.mark.parametrize("name", [".lock", ".lock.json"])
def test_a_lock_that_is_a_link_does_not_truncate_a_file(name: str, run_copy: Path, elsewhere: Path) -> None:
    (run_copy / name).symlink_to(elsewhere / ".profile")
    cli("evaluate", run_copy, "--metric", "diversity")
    assert untouched(elsewhere)


def test_links_in_a_run_are_replaced_but_their_targets_are_kept(
    run_copy: Path, elsewhere: Path, tiny_model: Path
) -> None:
    original = (run_copy / "checkpoint").read_bytes()
    for name in ("history.jsonl", "manifest.json", "metrics.json", "samples.safetensors", "samples.png", "report.html",
                 "generator.safetensors", "recipe.toml", "checkpoint", "profile.json"):  # fmt: skip
        path, kept = run_copy / name, elsewhere.parent / f"kept-{name}"
        if path.exists():
            path.rename(kept)
        else:
            kept.write_bytes(b"")
        path.symlink_to(kept)
    before = {path: path.read_bytes() for path in elsewhere.parent.glob("kept-*")}
    result = cli("invert", tiny_model, "--out", run_copy, "--resume", "--steps", "24", "--profile")
    assert result.exit_code == 0, result.output
    assert {path: path.read_bytes() for path in before} == before
    assert (run_copy / "checkpoint").read_bytes() != original and not (run_copy / "checkpoint").is_symlink()


# ------------------------------------------------------------------------------------------------ names

NAMES = ("\x1b]0;owned\x07\x1b[2J", "[/]", "[red]x[/red]", ":smile:", "a\nb", "\u202etxt.exe", "$x^2$", "a" * 300, "")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cat\t1\nÉté 猫 😀", "cat\t1\nÉté 猫 😀"),
        ("\x1b[31m", r"\u001b[31m"),
        ("\x9b31m\x7f", r"\u009b31m\u007f"),
        ("a\rb", r"a\u000db"),
        ("\u202eevil", r"\u202eevil"),
        ("\ud800", r"\ud800"),
    ],
)
def test_control_characters_are_printed_as_escapes(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_class_names_may_have_any_characters_and_are_shown_unchanged(
    name: str, tmp_path: Path, tiny_module: Callable[..., Any], quick_flags: list[str]
) -> None:
    arch_args = {"input_shape": list(SHAPE), "num_classes": 3, "widths": [4], "hidden": 8}
    model = interpkit.save_target(
        tiny_module(),
        tmp_path / "net.safetensors",
        architecture="interpkit:cnn",
        arch_args=arch_args,
        input_shape=SHAPE,
        class_names=[name, "b", "c"],
    )
    inspected = cli("inspect", model)
    made = cli("invert", model, *quick_flags, "--out", tmp_path / "run")
    compared = cli("compare", tmp_path / "run", tmp_path / "run")
    measured = cli("evaluate", tmp_path / "run", "--metric", "diversity")
    as_json = cli("evaluate", tmp_path / "run", "--metric", "diversity", "--json")
    for result in (inspected, made, compared, measured, as_json):
        assert result.exit_code == 0, result.output
        assert not any(sign in result.output for sign in "\x1b\x07\u202e\x9b")
    assert json.loads(as_json.stdout)["per_class"][0]["name"] == name
    if name.startswith("["):
        assert name in inspected.stdout and name in made.stdout
    assert (tmp_path / "run" / "samples.png").exists()
    inversion = interpkit.load_inversion(tmp_path / "run")
    assert inversion._repr_html_() and inversion.figure(per_class=2)._repr_png_()  # type: ignore[attr-defined]


def test_a_name_with_line_breaks_is_drawn_on_one_line() -> None:
    images, labels = torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.tensor([0])
    assert grid(images, labels, ["a\n b\r\nc"]).size == grid(images, labels, ["a b c"]).size


def test_scripts_in_names_are_escaped_in_the_pages(
    tmp_path: Path, tiny_module: Callable[..., Any], quick: Callable[..., dict[str, Any]]
) -> None:
    script = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    target = interpkit.wrap(tiny_module(), SHAPE, class_names=[script, "b", "c"], name=script)
    run = interpkit.invert(target, out=tmp_path / "run", **quick(steps=2)) and tmp_path / "run"
    change(run / "manifest.json", presets=[script], device=script, versions={script: script}, created=script)
    change(run / "metrics.json", evaluators=[{"name": script, "agreement": 0.1}], left_out={script: script})
    interpkit.write_report(run, target=target)
    interpkit.write_comparison({script: run, "other": run}, tmp_path / "page.html")
    for page in (run / "report.html", tmp_path / "page.html"):
        text = page.read_text("utf-8")
        assert "<script>alert" not in text and "<img src=x" not in text
        assert "alert(1)" in text and "default-src &#39;none&#39;" in text


def test_a_strangers_recipe_can_name_only_registered_components(
    tmp_path: Path, tiny_target: interpkit.Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for text in (
        'presets = ["./evil.py"]',
        'presets = ["evil"]',
        '[generator]\nname = "evil"',
        '[losses."evil:Loss"]',
        '[inverter]\nname = "os:system"',
        'device = "evil"',
        '[target]\narch = "py:evil:Net"',
        "[target]\ntrust = true",
        f'[[plugin_files]]\npath = "{tmp_path}/evil.py"\nsha256 = ""',
    ):
        (tmp_path / "recipe.toml").write_text(text, "utf-8")
        with pytest.raises(interpkit.InterpkitError):
            prepare(tiny_target, config=tmp_path / "recipe.toml")
