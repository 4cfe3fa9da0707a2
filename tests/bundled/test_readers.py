"""What the loaders make of a checkpoint, a config.json and the user's words, part by part and without a network."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from interpkit_targets import checkpoints, folders, loaders
from torch import Tensor, nn

from interpkit import ModelError, Target, TargetOptions
from interpkit.plugins.architectures import without_prefix

ONE = torch.ones(1)
PATH = Path("folder/net.pt")
ARGUMENTS: dict[str, Any] = {"input_shape": [1, 12, 12], "num_classes": 3, "widths": [4], "hidden": 8}


def config(folder: Path, value: Any, name: str = "config.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(value), "utf-8")
    return folder


# ------------------------------------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize("key", checkpoints.WRAPPERS)
def test_a_state_dict_is_found_under_each_usual_key(key: str) -> None:
    assert checkpoints.unwrap({key: {"a": ONE}, "epoch": 3, "b": ONE + 1}, PATH) == {"a": ONE}


def test_the_first_of_the_usual_keys_wins_and_one_that_holds_no_state_dict_is_passed_over() -> None:
    content: dict[str, Any] = {key: {key: ONE} for key in reversed(checkpoints.WRAPPERS)}
    for key in checkpoints.WRAPPERS:
        assert list(checkpoints.unwrap(content, PATH)) == [key]
        content[key] = 5


def test_wrappings_may_be_four_deep_and_lists_of_one_count_as_one() -> None:
    state: Any = {"a": ONE}
    assert list(checkpoints.unwrap({"model": {"net": {"weights": {"state_dict": state}}}}, PATH)) == ["a"]
    assert list(checkpoints.unwrap([({"model": state},)], PATH)) == ["a"]
    with pytest.raises(ModelError, match=r"net.pt holds no state dict, but dict"):
        checkpoints.unwrap({"model": {"net": {"weights": {"state_dict": {"model": state}}}}}, PATH)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ({}, "dict"),
        ({"epoch": 1}, "dict"),
        ([], "list"),
        ([ONE, ONE], "list"),
        (ONE, "Tensor"),
        ("a", "str"),
        (3, "int"),
    ],
    ids=str,
)
def test_the_error_for_a_file_without_tensors_names_its_content(content: Any, kind: str) -> None:
    with pytest.raises(ModelError, match=f"holds no state dict, but {kind}. Save it by torch.save"):
        checkpoints.unwrap(content, PATH)


def test_of_a_state_dict_the_tensors_alone_are_taken_whatever_their_keys_are() -> None:
    assert checkpoints.unwrap({7: ONE, "epoch": 3, "b": ONE + 1}, PATH) == {"7": ONE, "b": ONE + 1}


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
def test_what_wrappers_put_before_every_name_is_taken_off(names: list[str], stripped: list[str]) -> None:
    tensors = {name: torch.tensor(float(number)) for number, name in enumerate(names)}
    found = checkpoints.strip(tensors)
    assert list(found) == stripped and list(found.values()) == list(tensors.values())


@pytest.mark.parametrize(
    ("names", "expected", "left"),
    [
        (["model.a", "model.b"], ["a", "b"], ["a", "b"]),
        (["net.a", "net.b"], ["a", "b"], ["a", "b"]),
        (["model.a", "b"], ["a", "b"], ["model.a", "b"]),
        (["model.a"], ["model.a"], ["model.a"]),
        (["model.a", "model.b"], ["model.x", "y"], ["model.a", "model.b"]),
        (["student.a", "student.b"], ["a", "c"], ["a", "b"]),
        (["0.a"], ["1.a"], ["0.a"]),
        ([], ["a"], []),
    ],
    ids=str,
)
def test_a_prefix_of_all_names_is_removed_unless_the_network_has_it(
    names: list[str], expected: list[str], left: list[str]
) -> None:
    tensors = {name: ONE + number for number, name in enumerate(names)}
    found = without_prefix(tensors, dict.fromkeys(expected, ONE))
    assert list(found) == left and list(found.values()) == list(tensors.values())
    assert found is not tensors


def test_a_checkpoint_is_read_from_disk_and_one_that_is_none_says_why(tmp_path: Path) -> None:
    torch.save({"state_dict": {"module.a": ONE}}, tmp_path / "net.pt")
    assert checkpoints.read_checkpoint(tmp_path / "net.pt") == {"a": ONE}
    (tmp_path / "net.pt").write_bytes((tmp_path / "net.pt").read_bytes()[:300])
    with pytest.raises(ModelError, match=r"net.pt is not a whole PyTorch checkpoint: \S") as torn:
        checkpoints.read_checkpoint(tmp_path / "net.pt")
    assert "\n" not in str(torn.value) and len(str(torn.value)) < 200 + 60 + len(str(tmp_path))
    torch.save(torch.nn.Linear(1, 1), tmp_path / "whole.pt")
    with pytest.raises(ModelError, match=r"holds more than weights.* GLOBAL torch.nn.*Save its weights alone") as code:
        checkpoints.read_checkpoint(tmp_path / "whole.pt")
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


def test_a_folders_weights_are_safetensors_where_there_are_both(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no model.safetensors or pytorch_model.bin\.$"):
        folders.read_weights(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ModelError, match=r"weights that are split into several files are not read"):
        folders.read_weights(tmp_path)
    torch.save({"module.a": ONE}, tmp_path / "pytorch_model.bin")
    assert folders.read_weights(tmp_path) == {"a": ONE}
    safetensors.torch.save_file({"b": ONE}, tmp_path / "model.safetensors")
    assert folders.read_weights(tmp_path) == {"b": ONE}


def test_what_a_config_says_is_checked_and_what_it_leaves_out_is_left_out() -> None:
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
def test_a_folder_is_known_by_what_its_config_has(content: Any, taken: list[str], tmp_path: Path) -> None:
    assert [name for name, kind in KINDS.items() if kind().accepts(tmp_path)] == []
    config(tmp_path, content)
    assert [name for name, kind in KINDS.items() if kind().accepts(tmp_path)] == taken


def test_a_mixins_folder_asks_for_the_class(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"names no architecture. Add --arch py:package.module:Class"):
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
def test_a_size_is_read_in_each_of_the_ways_that_configs_have(value: Any, size: list[int] | None) -> None:
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
def test_labels_are_named_by_numbers(labels: Any, good: bool) -> None:
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
        ({}, {"size": 30, "crop_size": 24, "do_center_crop": True}, {"input_shape": [3, 24, 24]}),
        ({}, {"size": 30, "crop_size": 24, "do_center_crop": False}, {"input_shape": [3, 30, 30]}),
        ({}, {"size": 30, "crop_size": 24}, {"input_shape": [3, 30, 30]}),
        ({}, {"size": 30, "do_center_crop": True}, {"input_shape": [3, 30, 30]}),
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
def test_the_preprocessing_is_what_the_two_configs_say(
    main: dict[str, Any], processor: dict[str, Any] | None, facts: dict[str, Any], tmp_path: Path
) -> None:
    if processor is not None:
        config(tmp_path, processor, "preprocessor_config.json")
    found = folders.TransformersFolderLoader()._preprocessing(tmp_path, main)
    assert {name: found[name] for name in facts} == facts
    assert set(found) == ({"input_shape"} if processor is None else {"input_shape", "input_range", "mean", "std"})


def test_a_processor_that_does_not_normalise_says_no_mean_and_a_factor_is_a_number(tmp_path: Path) -> None:
    loader = folders.TransformersFolderLoader()
    config(tmp_path, {"do_normalize": False, "image_mean": [0.5]}, "preprocessor_config.json")
    assert set(loader._preprocessing(tmp_path, {})) == {"input_shape", "input_range"}
    config(tmp_path, {"rescale_factor": "a" * 100}, "preprocessor_config.json")
    with pytest.raises(ModelError, match=r"preprocessor_config.json: rescale_factor is not a number, but a{60}\.$"):
        loader._preprocessing(tmp_path, {})


class Skeleton(nn.Linear):
    """What transformers builds before there are weights: two by one, with a bias."""

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


def test_a_few_weights_too_many_are_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "build_architecture", lambda *_, **__: Skeleton())
    monkeypatch.setattr(Skeleton, "told", NOTHING | {"unexpected_keys": ["pooler", "head"]}, raising=False)
    assert isinstance(folders.fill(PATH, "a", {}, {str(number): ONE for number in range(20)}), Skeleton)


# ---------------------------------------------------------------------------------------------------- loaders


@pytest.mark.parametrize(("name", "kind"), [("model.safetensors", "Safetensors"), ("pytorch_model.bin", "Checkpoint")])
def test_a_folders_weights_are_loaded_as_the_folder_with_all_that_the_user_says(
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


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".ckpt", ".bin", ".safetensors", ".onnx", ""])
def test_a_loader_takes_files_of_its_endings(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"net{suffix}"
    taken = [loaders.SafetensorsLoader(), loaders.CheckpointLoader()]
    assert [loader.accepts(path) for loader in taken] == [False, False]
    path.write_bytes(b"")
    by_checkpoint = suffix in (".pt", ".pth", ".th", ".ckpt", ".bin")
    assert [loader.accepts(path) for loader in taken] == [suffix == ".safetensors", by_checkpoint]


def weights() -> dict[str, Tensor]:
    from interpkit_targets.architectures import SmallCNN

    return SmallCNN(**ARGUMENTS).state_dict()


def assembled(written: dict[str, Any], said: dict[str, Any], **more: Any) -> Target:
    return loaders.assemble(PATH, weights(), TargetOptions(**written), TargetOptions(**said), **more)


def test_the_users_words_win_over_the_files_and_each_fact_knows_its_source() -> None:
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
    with pytest.raises(ModelError, match=words):
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
    with pytest.raises(ModelError, match=r"--arch py:.*mine.py:make cannot be built with {}"):
        assembled({}, {**named, "input_shape": [1, 12, 12]})
    with pytest.raises(ModelError, match=r"py:.*mine.py:make.*of another shape"):
        assembled({}, {**named, "input_shape": [1, 12, 12], "arch_args": {"hidden": 9}})


def test_no_memory_is_taken_for_an_architecture_that_the_weights_do_not_fit(
    modest: Callable[[], AbstractContextManager[None]],
) -> None:
    large = {"arch": "torchvision:squeezenet1_1", "arch_args": {"num_classes": 900_000}}
    with modest(), pytest.raises(ModelError, match="missing: "):
        assembled({**large, "input_shape": [3, 32, 32]}, {})
