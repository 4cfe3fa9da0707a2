"""How the loaders read checkpoints, config.json and the user's options, part by part and without a network."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from interpkit_targets import checkpoints, folders, formats, loaders
from torch import Tensor, nn

import interpkit
from interpkit import ModelError, Target, TargetOptions
from interpkit.errors import in_shell

ONE = torch.ones(1)
PATH = Path("folder/net.pt")
ARGUMENTS: dict[str, Any] = {"input_shape": [1, 12, 12], "num_classes": 3, "widths": [4], "hidden": 8}


class Printed:
    """Prints when it is unpickled."""

    def __reduce__(self) -> Any:
        return print, ("a file ran code",)


def config(folder: Path, value: Any, name: str = "config.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(value), "utf-8")
    return folder


# ------------------------------------------------------------------------------------------------ checkpoints


def names_in(content: Any) -> list[str]:
    return [name for name, _ in checkpoints.named_tensors(content)]


def test_tensors_are_named_by_the_keys_that_lead_to_them() -> None:
    state = {"a": ONE, "b": {"c": ONE + 1}}
    assert names_in(state) == ["a", "b.c"]
    assert names_in({"epoch": 3, "model": state, "net": [state]}) == ["model.a", "model.b.c"]  # one mapping, once
    assert names_in([({"model": state},)]) == ["model.a", "model.b.c"]
    assert names_in({7: ONE, "epoch": 3, ("b",): ONE, 10**9: ONE}) == ["7"]
    assert names_in({"shadow": [ONE, ONE], "nets": [{"a": ONE}, {"b": ONE}]}) == ["nets.0.a", "nets.1.b"]


def test_the_search_ends_in_recursive_and_in_very_deep_mappings() -> None:
    around: dict[str, Any] = {"a": ONE}
    around["again"] = around
    assert names_in(around) == ["a"]
    deep: dict[str, Any] = {"a": ONE}
    for _ in range(100):
        deep = {"in": deep}
    assert names_in(deep) == []


def test_a_chosen_key_selects_tensors_and_a_wrong_key_is_refused_with_the_known_ones() -> None:
    tensors = {"teacher.a": ONE, "student.net.a": ONE + 1}
    assert checkpoints.chosen(tensors, None, PATH) == tensors
    assert checkpoints.chosen(tensors, "student.net", PATH) == {"a": ONE + 1}
    with pytest.raises(ModelError, match=r"no weights under 'pupil'. It has: teacher, student, student.net\.$"):
        checkpoints.chosen(tensors, "pupil", PATH)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ({}, "dict"),
        ({"epoch": 1}, r"dict with the keys \['epoch'\]"),
        ([], "list"),
        ([ONE, ONE], "list"),
        (ONE, "Tensor"),
        ("a", "str"),
        (3, "int"),
    ],
    ids=str,
)
def test_the_error_for_a_file_without_tensors_names_its_content(content: Any, kind: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(ModelError, match=f"holds no state dict, but {kind}. Save it by torch.save"):
        checkpoints.read_checkpoint(tmp_path / "net.pt")


@pytest.mark.parametrize(
    ("names", "stripped"),
    [
        (["module.a", "module.b"], ["a", "b"]),
        (["_orig_mod.a", "_orig_mod.b"], ["a", "b"]),
        (["module._orig_mod.module.a"], ["a"]),
        (["module.a", "b"], ["module.a", "b"]),
        (["model.a", "model.b"], ["model.a", "model.b"]),  # may be the network's own
        (["a.module.b"], ["a.module.b"]),
    ],
    ids=str,
)
def test_prefixes_of_wrappers_are_removed(names: list[str], stripped: list[str]) -> None:
    tensors = {name: torch.tensor(float(number)) for number, name in enumerate(names)}
    found = checkpoints.strip(tensors)
    assert list(found) == stripped and list(found.values()) == list(tensors.values())


def test_a_checkpoint_is_read_and_a_damaged_one_is_refused_with_the_reason(tmp_path: Path) -> None:
    torch.save({"state_dict": {"module.a": ONE}}, tmp_path / "net.pt")
    assert checkpoints.read_checkpoint(tmp_path / "net.pt") == {"state_dict.module.a": ONE}
    (tmp_path / "net.pt").write_bytes((tmp_path / "net.pt").read_bytes()[:300])
    with pytest.raises(ModelError, match=r"net.pt is not a whole PyTorch checkpoint: \S") as torn:
        checkpoints.read_checkpoint(tmp_path / "net.pt")
    assert "\n" not in str(torn.value) and len(str(torn.value)) < 200 + 60 + len(str(tmp_path))


def test_a_pickled_module_is_read_as_its_weights(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.BatchNorm2d(2), nn.ReLU()))
    torch.save({"model": nn.DataParallel(module)}, tmp_path / "whole.pt")
    read = checkpoints.read_checkpoint(tmp_path / "whole.pt")
    assert list(read) == [f"model.module.{name}" for name in module.state_dict()]
    assert all(torch.equal(read[f"model.module.{name}"], tensor) for name, tensor in module.state_dict().items())


def test_an_unreadable_file_is_refused_with_the_code_that_converts_it(tmp_path: Path) -> None:
    path = tmp_path / "net.pkl"
    state = {"a": ONE.numpy()}
    path.write_bytes(pickle.dumps(state))
    with pytest.raises(ModelError, match=r"a pickle of another kind.* save it as one: `import pickle.*`") as other:
        checkpoints.read_checkpoint(path)
    subprocess.run([sys.executable, "-c", str(other.value).split("`")[1]], check=True)  # by a user who trusts the file
    assert checkpoints.read_checkpoint(tmp_path / "net-weights.pth") == {"a": ONE}
    torch.save({"a": ONE, "printed": Printed()}, path)
    name = r"builtins\.print" if torch.__version__ < (2, 7) else "print"
    words = rf"holds more than weights \(it refers to {name}\).*weights_only=False"
    with pytest.raises(ModelError, match=words) as code:
        checkpoints.read_checkpoint(path)
    assert "\n" not in str(code.value)


# ---------------------------------------------------------------------------------------------------- folders


def test_a_json_object_of_a_sensible_size_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = config(tmp_path, {"ä": [1]}) / "config.json"
    assert folders.read_json(path) == {"ä": [1]}
    monkeypatch.setattr(folders, "MAX_CONFIG_BYTES", path.stat().st_size)
    assert folders.read_json(path) == {"ä": [1]}
    monkeypatch.setattr(folders, "MAX_CONFIG_BYTES", path.stat().st_size - 1)
    with pytest.raises(ModelError, match=r"is larger than .* bytes: no config is"):
        folders.read_json(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[1]", "is not a JSON object"),
        (b"{", "cannot be read as JSON"),
        (b"\xff{}", "cannot be read as JSON"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (None, "cannot be read as JSON: .*No such file"),
    ],
    ids=["list", "torn", "no text", "deep", "missing"],
)
def test_a_file_without_a_json_object_is_refused(content: bytes | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=words):
        folders.read_json(tmp_path / "config.json")


def test_safetensors_are_preferred_if_a_folder_has_both(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no model.safetensors or pytorch_model.bin\.$"):
        folders.read_weights(tmp_path)
    torch.save({"module.a": ONE}, tmp_path / "pytorch_model.bin")
    assert folders.read_weights(tmp_path) == {"a": ONE}
    safetensors.torch.save_file({"b": ONE}, tmp_path / "model.safetensors")
    assert folders.read_weights(tmp_path) == {"b": ONE}


@pytest.mark.parametrize("whole", ["model.safetensors", "pytorch_model.bin"])
def test_split_weights_are_read_from_the_files_in_their_index(whole: str, tmp_path: Path) -> None:
    parts = [{"a": ONE}, {"b": ONE + 1}]
    for number, part in enumerate(parts):
        save = torch.save if whole.endswith("bin") else safetensors.torch.save_file
        save(part, tmp_path / f"part{number}")
    index = f"{whole}.index.json"
    config(tmp_path, {"weight_map": {"a": "part0", "b": "part1"}}, index)
    assert folders.read_weights(tmp_path) == {"a": ONE, "b": ONE + 1}
    config(tmp_path, {"weight_map": {"a": "part0", "b": "part0"}}, index)
    with pytest.raises(ModelError, match=r"names tensors that its files do not hold: b\."):
        folders.read_weights(tmp_path)


@pytest.mark.parametrize("name", ["../part", "sub/part", "/etc/passwd", "absent", "", "."])
def test_an_index_that_names_a_file_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": ONE}, tmp_path / "part")
    folder = config(tmp_path / "folder", {"weight_map": {"a": name}}, "model.safetensors.index.json")
    (folder / "sub").mkdir()
    safetensors.torch.save_file({"a": ONE}, folder / "sub" / "part")
    with pytest.raises(ModelError, match=r"is not in the same folder"):
        folders.read_weights(folder)


@pytest.mark.parametrize("settings", [{}, {"architecture": "test_resnet"}, {"model_type": "vit"}, None], ids=str)
def test_an_adapter_is_refused_with_the_way_to_merge_it(settings: dict[str, str] | None, tmp_path: Path) -> None:
    folder = tmp_path / "adapter" if settings is None else config(tmp_path / "adapter", settings)
    folder.mkdir(exist_ok=True)
    tensors = {"base_model.model.a.lora_A.weight": ONE, "base_model.model.a.lora_B.weight": ONE + 1}
    safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors")
    for path in (folder, folder / "adapter_model.safetensors"):
        with pytest.raises(ModelError, match=r"is a PEFT adapter.*merge_and_unload.*adapter-merged"):
            interpkit.load_target(path, input_shape=(3, 8, 8))


def test_facts_of_a_config_are_checked_and_missing_ones_stay_unset() -> None:
    assert folders.as_options(Path("f"), arch="timm:a", mean=None, std=[0.5]).said() == {"arch": "timm:a", "std": [0.5]}
    with pytest.raises(ModelError, match=r"f/config.json: mean\S* = 'a': .*number"):
        folders.as_options(Path("f"), mean=["a"])


KINDS = {"timm": folders.TimmFolderLoader, "transformers": folders.TransformersFolderLoader}
KINDS["hub-mixin"] = folders.HubMixinFolderLoader


@pytest.mark.parametrize(
    ("content", "taken"),
    [
        ({"architecture": "resnet18"}, ["timm"]),
        ({"model_type": "vit"}, ["transformers"]),
        ({"architecture": "a", "model_type": "b"}, ["timm", "transformers"]),
        ({"architecture": 3}, []),
        ({"model_type": None}, []),
        ({"hidden": 5}, ["hub-mixin"]),
        ({}, ["hub-mixin"]),
        ([], ["hub-mixin"]),  # which refuses it, with why
    ],
    ids=str,
)
def test_a_folder_is_recognized_by_its_config(content: Any, taken: list[str], tmp_path: Path) -> None:
    assert [name for name, kind in KINDS.items() if kind().accepts(tmp_path)] == []
    config(tmp_path, content)
    assert [name for name, kind in KINDS.items() if kind().accepts(tmp_path)] == taken


def test_a_mixins_folder_needs_the_users_class(tmp_path: Path) -> None:
    with in_shell(), pytest.raises(ModelError, match=r"names no architecture. Add --arch py:package.module:Class"):
        folders.HubMixinFolderLoader().load(config(tmp_path, {}), TargetOptions())


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (224, [224, 224]),
        ([20, 24], [20, 24]),
        ([20], None),
        ([1, 2, 3], None),
        ({"height": 20, "width": 24}, [20, 24]),
        ({"shortest_edge": 32}, [32, 32]),
        ({"height": 20, "shortest_edge": 32}, [20, 32]),
        ({"width": 20, "shortest_edge": 32}, [32, 20]),
        ({"height": 20}, None),
        ({}, None),
        (None, None),
        ("224", None),
    ],
    ids=str,
)
def test_a_size_is_read_in_every_notation_of_configs(value: Any, size: list[int] | None) -> None:
    assert folders._size(value) == size


@pytest.mark.parametrize(
    ("labels", "good"),
    [
        ({"0": "a", "1": "b"}, True),
        ({0: "a"}, True),
        ({"999999999": "a"}, True),
        ({"1000000000": "a"}, False),
        ({"a": "b"}, False),
        ({"0": "a", "-1": "b"}, False),
        ({}, False),
        (["a"], False),
        (None, False),
    ],
    ids=str,
)
def test_unnamed_labels_are_named_by_their_numbers(labels: Any, good: bool) -> None:
    assert folders._is_labels(labels) is good


@pytest.mark.parametrize(
    ("main", "processor", "facts"),
    [
        ({"image_size": 20}, None, {"input_shape": [3, 20, 20]}),
        ({"image_size": [20, 24], "num_channels": 1}, None, {"input_shape": [1, 20, 24]}),
        ({}, None, {"input_shape": None}),
        ({"image_size": 20}, {"size": 30}, {"input_shape": [3, 20, 20]}),  # what the network itself takes
        ({}, {"size": 30}, {"input_shape": [3, 30, 30]}),
        ({}, {"size": 30, "do_resize": False}, {"input_shape": None}),
        ({}, {"size": 30, "crop_size": 24, "do_center_crop": True}, {"input_shape": [3, 24, 24], "crop_pct": 0.8}),
        ({}, {"size": 30, "crop_size": 24, "do_center_crop": False}, {"input_shape": [3, 30, 30], "crop_pct": 1.0}),
        ({}, {"size": 30, "crop_size": 24}, {"input_shape": [3, 30, 30], "crop_pct": 1.0}),
        ({}, {"size": 30, "do_center_crop": True}, {"input_shape": [3, 30, 30], "crop_pct": None}),
        ({}, {"size": {"shortest_edge": 30}, "crop_pct": 0.9}, {"crop_pct": 0.9}),
        ({}, {"x": 1}, {"input_range": [0.0, 1.0], "mean": None, "std": None}),
        ({}, {"rescale_factor": 1 / 127.5}, {"input_range": [0.0, 2.0]}),
        ({}, {"rescale_factor": 0.003}, {"input_range": [0.0, 0.765]}),
        ({}, {"rescale_factor": 1 / 3000}, {"input_range": [0.0, 0.085]}),
        ({}, {"rescale_factor": 1e-8}, {"input_range": [0.0, 2.55e-06]}),
        ({}, {"rescale_factor": 2, "do_rescale": False}, {"input_range": [0.0, 255.0]}),
        ({}, {"image_mean": [0.4], "image_std": [0.2]}, {"mean": [0.4], "std": [0.2]}),
    ],
    ids=str,
)
def test_the_preprocessing_follows_both_configs(
    main: dict[str, Any],
    processor: dict[str, Any] | None,
    facts: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if processor is not None:
        config(tmp_path, processor, "preprocessor_config.json")
    found = folders.TransformersFolderLoader()._preprocessing(tmp_path, main)
    doubtful = "image_size" in main and processor is not None
    assert ("for the latter, add input_shape=[3, 30, 30]" in caplog.text) == doubtful
    assert {name: found[name] for name in facts} == facts
    read = {"input_range", "mean", "std", "crop_pct"}
    assert set(found) == {"input_shape"} | (set() if processor is None else read)


@pytest.mark.parametrize(
    ("kind", "name", "settings"),
    [
        ("mobilevit", "MobileViTImageProcessor", {}),
        ("mobilevitv2", "MobileViTImageProcessor", {"do_flip_channel_order": False}),
        ("efficientnet", "EfficientNetImageProcessor", {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}),
        ("efficientnet", "EfficientNetImageProcessor", {"rescale_offset": True, "rescale_factor": 1 / 127.5}),
        ("efficientnet", "EfficientNetImageProcessor", {"include_top": False}),
        ("efficientnet", "EfficientNetImageProcessor", {"do_normalize": False}),
        ("vit", "ViTImageProcessor", {}),
    ],
)
def test_images_are_prepared_as_the_processor_prepares_them(
    kind: str, name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    no_change = {"do_resize": False, "do_center_crop": False}
    processor = getattr(transformers, name)(**no_change, **settings)
    processor.save_pretrained(tmp_path)
    facts = folders.TransformersFolderLoader()._preprocessing(tmp_path, {"model_type": kind, "image_size": 4})
    pixels = torch.randint(0, 256, (2, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    expected = processor(list(pixels), return_tensors="pt", input_data_format="channels_first")["pixel_values"]
    target = interpkit.wrap(nn.Flatten(), **{key: value for key, value in facts.items() if value is not None})
    torch.testing.assert_close(target(pixels / 255), expected.flatten(1).float(), atol=1e-5, rtol=1e-5)


def test_a_processor_without_normalization_has_no_mean_and_its_factor_must_be_a_number(tmp_path: Path) -> None:
    loader = folders.TransformersFolderLoader()
    config(tmp_path, {"do_normalize": False, "image_mean": [0.5]}, "preprocessor_config.json")
    assert set(loader._preprocessing(tmp_path, {})) == {"input_shape", "input_range", "crop_pct"}
    config(tmp_path, {"rescale_factor": "a" * 100}, "preprocessor_config.json")
    with pytest.raises(ModelError, match=r"preprocessor_config.json: rescale_factor is not a number, but a{60}\.$"):
        loader._preprocessing(tmp_path, {})


class Skeleton(nn.Linear):
    """A model as transformers builds it without weights: two by one, with a bias."""

    told: Any
    config = None

    def __init__(self) -> None:
        super().__init__(2, 1)

    @classmethod
    def from_pretrained(cls, *_: Any, **__: Any) -> Any:
        if isinstance(cls.told, Exception):
            raise cls.told
        return cls(), cls.told


NOTHING: dict[str, list[str]] = {"missing_keys": [], "mismatched_keys": [], "unexpected_keys": []}


@pytest.mark.parametrize(
    ("told", "held", "words"),
    [
        (RuntimeError("line one\nline two"), 3, r"do not fit its config.json: line one$"),
        (RuntimeError(), 3, r"do not fit its config.json: RuntimeError$"),
        (RuntimeError("a" * 400), 3, r"do not fit its config.json: a{300}$"),
        (NOTHING | {"missing_keys": list("abcdef")}, 3, r"do not fit its config.json: missing: a, b, c, d\.$"),
        (NOTHING | {"mismatched_keys": ["a"]}, 3, r"config.json: of another shape: a\.$"),
        (NOTHING | {"unexpected_keys": list("ab")}, 19, r"config.json: unexpected: a, b\.$"),
        (NOTHING | {"missing_keys": ["a"], "unexpected_keys": list("bc")}, 19, r"missing: a; unexpected: b, c\.$"),
        (NOTHING, 2, r"net.pt: its config.json asks for 3 weights, and the file holds 2\.$"),
    ],
    ids=["error", "wordless error", "long error", "missing", "shape", "unexpected", "both", "too few"],
)
def test_weights_that_do_not_fit_a_config_are_refused(
    told: Any, held: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "build_architecture", lambda *_, **__: Skeleton())
    monkeypatch.setattr(Skeleton, "told", told, raising=False)
    with pytest.raises(ModelError, match=words):
        folders.fill(PATH, "transformers:vit", {}, {str(number): ONE for number in range(held)})


def test_a_folder_whose_weights_do_not_fit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "build_architecture", lambda *_, **__: Skeleton())
    config(tmp_path, {"model_type": "vit", "image_size": 8})
    safetensors.torch.save_file({"a": ONE}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=f"^{tmp_path}: its config.json asks for 3 weights"):
        folders.TransformersFolderLoader().load(tmp_path, TargetOptions())


def test_a_few_surplus_weights_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "build_architecture", lambda *_, **__: Skeleton())
    monkeypatch.setattr(Skeleton, "told", NOTHING | {"unexpected_keys": ["pooler", "head"]}, raising=False)
    assert isinstance(folders.fill(PATH, "a", {}, {str(number): ONE for number in range(20)}), Skeleton)


# ---------------------------------------------------------------------------------------------------- loaders


@pytest.mark.parametrize(("name", "kind"), [("model.safetensors", "Safetensors"), ("pytorch_model.bin", "Checkpoint")])
def test_a_weights_file_loads_like_its_folder_with_the_users_options(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(loaders, "load_target", lambda *given, **options: asked.append((given, options)))
    config(tmp_path, {})
    save = safetensors.torch.save_file if "safetensors" in name else torch.save
    save({"a": ONE}, tmp_path / name)
    getattr(loaders, f"{kind}Loader")().load(tmp_path / name, TargetOptions(mean=[0.5], trust=True))
    assert asked == [((tmp_path,), {"mean": [0.5], "trust": True})]


@pytest.mark.parametrize(
    ("name", "arch", "belongs"),
    [
        ("model.safetensors", None, True),
        ("pytorch_model.bin", None, True),
        ("model-00002-of-00003.safetensors", None, True),
        ("other.safetensors", None, False),
        ("model.safetensors", "interpkit:cnn", False),
        ("model.safetensors", "py:mine:Net", True),
    ],
)
def test_weights_belong_to_their_folder_unless_the_user_names_an_architecture(
    name: str, arch: str | None, belongs: bool, tmp_path: Path
) -> None:
    options = TargetOptions(arch=arch)
    assert not loaders.belongs_to_folder(tmp_path / name, options)
    config(tmp_path, {})
    assert loaders.belongs_to_folder(tmp_path / name, options) is belongs


def written(kind: str, path: Path) -> Path:
    """Write a file of a kind that `formats.kind_of` recognizes."""
    if kind == "checkpoint":
        torch.save({"a": ONE}, path)
    elif kind == "older checkpoint":
        torch.save({"a": ONE}, path, _use_new_zipfile_serialization=False)
    elif kind == "safetensors":
        path.write_bytes(safetensors.torch.save({"a": ONE}))
    elif kind == "onnx":
        onnx = pytest.importorskip("onnx")
        graph = onnx.helper.make_graph([], "empty", [], [])
        path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    else:
        member = "constants.pkl" if kind == "torchscript" else "models/model.json"
        with zipfile.ZipFile(path, "w") as archive:
            for name in ("data.pkl", member):
                archive.writestr(f"archive/{name}", b"")
    return path


KINDS_OF_FILES = ["checkpoint", "older checkpoint", "safetensors", "onnx", "torchscript", "exported program"]


@pytest.mark.parametrize("kind", KINDS_OF_FILES)
@pytest.mark.parametrize("name", ["best", "best.pth.tar", "best.PTH", "best.pkl", "best.bin", "best.safetensors"])
def test_a_file_is_recognized_by_its_content_not_its_name(kind: str, name: str, tmp_path: Path) -> None:
    assert formats.kind_of(written(kind, tmp_path / name)) == kind.removeprefix("older ")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("net" + ending, kind) for ending, kind in formats.ENDINGS.items()),
        ("net.ONNX", "onnx"),
        ("net.pth.tar", "checkpoint"),
        ("net", None),
        ("net.txt", None),
    ],
)
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"<html>404</html>"], ids=["empty", "torn", "page"])
def test_the_extension_decides_if_the_content_does_not(
    name: str, kind: str | None, content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / name
    assert formats.kind_of(path) is None
    path.write_bytes(content)
    assert formats.kind_of(path) == kind


def weights() -> dict[str, Tensor]:
    from interpkit_targets.architectures import SmallCNN

    return SmallCNN(**ARGUMENTS).state_dict()


def assembled(written: dict[str, Any], said: dict[str, Any], **more: Any) -> Target:
    return loaders.assemble(PATH, weights(), TargetOptions(**written), TargetOptions(**said), **more)


def test_the_users_options_take_precedence_and_each_fact_has_its_source() -> None:
    written = {"arch": "interpkit:cnn", "arch_args": ARGUMENTS, "mean": [0.25], "std": [0.5]}
    target = assembled(written, {"input_shape": [1, 12, 12], "mean": [0.75]})
    assert target.name == "net" and target.num_classes == 3
    assert target.description.mean == [0.75] and target.description.std == [0.5]
    sources = {name: target.sources[name] for name in ("arch", "arch_args", "std", "mean", "input_shape")}
    assert sources == dict.fromkeys(("arch", "arch_args", "std"), "the file's metadata") | dict.fromkeys(
        ("mean", "input_shape"), "given"
    )
    assert target.description.arch == "interpkit:cnn" and target.description.arch_args == ARGUMENTS
    assert assembled(written | {"input_shape": [1, 12, 12]}, {}, source="a config").sources["mean"] == "a config"


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ({}, r"net.pt does not say which architecture it is. Add --arch FAMILY:NAME and --input-shape C,H,W \(and"),
        ({"input_shape": [1, 12, 12]}, r"which architecture it is. Add --arch FAMILY:NAME \(and --mean"),
        ({"arch": "interpkit:cnn"}, r"does not say its input shape. Add --input-shape C,H,W \(and --mean"),
    ],
    ids=["both", "architecture", "shape"],
)
def test_the_error_for_missing_facts_names_the_flags(written: dict[str, Any], words: str) -> None:
    with in_shell(), pytest.raises(ModelError, match=words):
        assembled(written, {})


def test_a_file_cannot_name_code_and_the_users_own_code_takes_the_configs_arguments(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from interpkit_targets.architectures import SmallCNN\n"
        "def make(hidden, widths=(4,)):\n"
        "    return SmallCNN(input_shape=[1, 12, 12], num_classes=3, widths=list(widths), hidden=hidden)\n"
    )
    named = {"arch": f"py:{tmp_path}/mine.py:make"}
    with pytest.raises(ModelError):  # the file says so, and the user does not
        assembled({**named, "input_shape": [1, 12, 12]}, {})
    target = assembled({}, {**named, "input_shape": [1, 12, 12]}, known={"hidden": 8})
    assert target.num_classes == 3 and target.description.arch_args == {"hidden": 8}
    both = assembled({}, {**named, "input_shape": [1, 12, 12], "arch_args": {"hidden": 8}}, known={"hidden": 9})
    assert both.description.arch_args == {"hidden": 8}
    with in_shell(), pytest.raises(ModelError, match=r"--arch py:.*mine.py:make cannot be built with {}"):
        assembled({}, {**named, "input_shape": [1, 12, 12]})
    with pytest.raises(ModelError, match=r"py:.*mine.py:make.*of another shape"):
        assembled({}, {**named, "input_shape": [1, 12, 12], "arch_args": {"hidden": 9}})


def test_no_memory_is_allocated_for_an_architecture_that_does_not_fit_the_weights(
    modest: Callable[[], AbstractContextManager[None]],
) -> None:
    large = {"arch": "torchvision:squeezenet1_1", "arch_args": {"num_classes": 900_000}}
    with modest(), pytest.raises(ModelError, match="missing: "):
        assembled({**large, "input_shape": [3, 32, 32]}, {})


def test_code_that_fails_is_named_with_its_line_and_arguments_are_explained_where_some_are_missing(
    tmp_path: Path,
) -> None:
    code = [
        "import torch",
        "def broken():",
        "    return {}['cfg']",
        "def sized(n):",
        "    return torch.nn.Linear(n, n)",
    ]
    code += ["def large():", "    raise MemoryError", "made = sized(2)"]
    (tmp_path / "mine.py").write_text("\n".join(code), "utf-8")
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "net.pt")

    def load(name: str, **arguments: Any) -> Target:
        arch = f"py:{tmp_path}/mine.py:{name}"
        return interpkit.load_target(tmp_path / "net.pt", arch=arch, arch_args=arguments, input_shape=(2,))

    with pytest.raises(ModelError, match=r"KeyError: 'cfg' \(.*mine\.py, line 3\)\.$"):
        load("broken")
    with pytest.raises(ModelError, match=r"missing 1 .* 'n'\. Arguments are given by arch_args=\{'NAME': 'VALUE'\}\.$"):
        load("sized")
    with pytest.raises(ModelError, match=r"unexpected keyword argument 'width'\.$"):
        load("sized", width=3)
    with pytest.raises(ModelError, match="has no class or function 'made'"):
        load("made")
    with pytest.raises(MemoryError):
        load("large")


def test_what_the_user_says_of_a_packed_file_is_used_or_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = {"input_shape": [1, 12, 12], "num_classes": 3, "widths": [4], "hidden": 8}
    net = interpkit.build_architecture("interpkit:cnn", sizes)
    named = {"architecture": "interpkit:cnn", "arch_args": sizes}
    path = interpkit.save_target(net, tmp_path / "net.safetensors", **named, input_shape=(1, 12, 12))
    interpkit.load_target(path, weights_key="ema")
    assert "net.safetensors holds one network: weights_key='ema' has no effect" in caplog.text
    with pytest.raises(ModelError) as caught:
        interpkit.load_target(path, arch="torchvision:resnet18")
    assert "do not fit torchvision:resnet18" in str(caught.value) and "unexpected keyword" not in str(caught.value)
