"""`interpkit.harden`: a garbage class filled by the classifier's own inversions."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import interpkit
from interpkit import Hardened, ModelError, RunError, Target, UsageError, harden, load_target, wrap
from interpkit.api import harden as api
from interpkit.errors import in_shell

SHAPE, CLASSES = (1, 12, 12), 3
Data = tuple[Tensor, Tensor]


def stripes(count: int, seed: int) -> Data:
    """Return images with a bright row in a place of its class's own, among faint noise."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    images = 0.2 * torch.rand(count, *SHAPE, generator=rng)
    for image, label in zip(images, labels, strict=True):
        image[:, 3 * int(label) + 1 : 3 * int(label) + 3] += 0.7
    return images, labels


@pytest.fixture(scope="module")
def data() -> Data:
    return stripes(60, 0)


@pytest.fixture
def short(quick: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """Return the settings of a short hardening."""
    inversion = {key: value for key, value in quick().items() if key not in ("steps", "seed")}
    return {"rounds": 2, "steps": 3, "samples": 14, **inversion, "stop_at": 1.0}


def never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "_verdict", lambda done, stop_at: "")


def test_the_classifier_gets_one_more_class_and_keeps_its_weights_until_it_is_trained(tiny_target: Target) -> None:
    pupil, arguments = api._with_garbage(tiny_target, 0)
    assert pupil.class_names == ["class 0", "class 1", "class 2", "garbage"]
    assert (pupil.garbage, tiny_target.garbage, arguments["num_classes"]) == (3, None, 4)
    assert pupil.description.mean == [0.25]
    images = torch.rand(5, *SHAPE)
    assert torch.allclose(pupil(images)[:, :3], tiny_target(images), atol=1e-6)
    other, _ = api._with_garbage(tiny_target, 1)
    assert not torch.equal(pupil(images)[:, 3], other(images)[:, 3])
    again, same = api._with_garbage(pupil.to("cpu"), 0) if pupil.description.arch else (None, None)
    assert again is None and same is None  # it is in memory, and its file names the architecture


def test_a_hardened_classifier_is_a_file_like_any_other(
    tiny_model: Path, data: Data, tmp_path: Path, short: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    never_ends(monkeypatch)
    out = tmp_path / "hard.safetensors"
    found = harden(tiny_model, data, out=out, reference=stripes(20, 1), **short)
    assert isinstance(found, Hardened)
    assert found.ended == "all rounds are done"
    assert [row.keys() for row in found.rounds] == [{"found", "accepted", "refused"}] * 2
    assert found.reference.keys() == {"accuracy", "accuracy_before", "refused"}
    again = load_target(out)
    images = torch.rand(3, *SHAPE)
    assert torch.allclose(again(images), found.target(images), atol=1e-6)
    assert (again.num_classes, again.class_names[again.garbage or 0]) == (4, "garbage")
    assert not list(tmp_path.glob("*.rounds"))
    further = harden(out, data, **{**short, "rounds": 0})  # it has the class already
    assert further.target.num_classes == 4


def test_the_users_classifier_is_not_changed(
    tiny_target: Target, data: Data, short: dict[str, Any], module_state: Callable[[nn.Module], dict[str, Any]]
) -> None:
    before = module_state(tiny_target.module)  # type: ignore[arg-type]
    harden(tiny_target, data, **{**short, "rounds": 1})
    assert module_state(tiny_target.module) == before  # type: ignore[arg-type]


def test_it_learns_to_refuse_noise_and_to_tell_the_classes_apart(tiny_target: Target, data: Data) -> None:
    found = harden(tiny_target, data, rounds=0, epochs=60, rate=0.01, samples=30, augment=False)
    images, labels = stripes(30, 5)
    with torch.no_grad():
        assert (found.target(images).argmax(1) == labels).double().mean() > 0.9
        noise = torch.rand(30, *SHAPE)
        assert (found.target(noise).argmax(1) == found.target.garbage).double().mean() > 0.9


def assert_damage_is_refused(path: Path, resume: Callable[[], Hardened]) -> None:
    """Assert that a file to resume from which fits but is not as it was written is refused."""
    whole = path.read_bytes()
    with safetensors.safe_open(path, framework="pt") as opened:
        metadata, tensors = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    weight = next(name for name in tensors if name.startswith("weights."))
    for entries, changed, match in (
        ({"rounds": "[{}]"}, {}, "its rounds are"),
        ({"rounds": "["}, {}, "its rounds are"),
        ({}, {"garbage": tensors["garbage"].float()}, "its garbage is torch.float32"),
        ({}, {"garbage": tensors["garbage"][..., 1:].contiguous()}, "its garbage is torch.uint8"),
        ({}, {weight: tensors[weight][1:].contiguous()}, "of another shape"),
    ):
        safetensors.torch.save_file({**tensors, **changed}, path, {**metadata, **entries})
        with pytest.raises(RunError, match=rf"hard\.rounds is damaged: .*{match}"):
            resume()
    path.write_bytes(whole)


def test_an_interrupted_hardening_is_resumed_as_if_nothing_had_happened(
    tiny_model: Path, data: Data, tmp_path: Path, short: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    never_ends(monkeypatch)
    whole = harden(tiny_model, data, **short)
    out, real, begun = tmp_path / "hard.safetensors", api.invert, []

    def killed(*args: Any, **settings: Any) -> Any:
        begun.append(1)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return real(*args, **settings)

    monkeypatch.setattr(api, "invert", killed)
    with pytest.raises(KeyboardInterrupt):
        harden(tiny_model, data, out=out, **short)
    assert load_target(out).num_classes == 4  # the first round is not lost
    with pytest.raises(RunError, match=r"hard\.rounds was begun with other settings"):
        harden(tiny_model, data, out=out, resume=True, **{**short, "samples": 15})
    with pytest.raises(RunError, match="begun with other data"):
        harden(tiny_model, stripes(60, 9), out=out, resume=True, **short)
    assert_damage_is_refused(
        out.with_suffix(".rounds"), lambda: harden(tiny_model, data, out=out, resume=True, **short)
    )
    resumed = harden(tiny_model, data, out=out, resume=True, **short)
    assert resumed.rounds == whole.rounds
    images = torch.rand(3, *SHAPE)
    assert torch.equal(resumed.target(images), whole.target(images))
    with pytest.raises(RunError, match="there is nothing to resume"):
        harden(tiny_model, data, out=out, resume=True, **short)
    with pytest.raises(UsageError, match="only a hardening that writes a file"):
        harden(tiny_model, data, resume=True, **short)


@pytest.mark.parametrize(
    ("done", "verdict"),
    [
        ([], ""),
        ([{"found": 0.9, "accepted": 0.1}], ""),
        ([{"found": 0.9, "accepted": 0.6}], api.LIKE_DATA),
        ([{"found": 0.04, "accepted": 0.6}], api.NOTHING),
        ([{"found": 0.04, "accepted": 0.0}, {"found": 0.5, "accepted": 0.0}], ""),
    ],
)
def test_the_rounds_end_when_samples_look_like_data_or_none_are_found(
    done: list[dict[str, float]], verdict: str
) -> None:
    assert api._verdict(done, 0.5) == verdict


def test_images_made_one_by_one_serve_too_and_vectors(data: Data) -> None:
    sizes = {"input_shape": list(SHAPE), "num_classes": 3, "widths": [2], "hidden": 4}
    net = interpkit.build_architecture("interpkit:cnn", sizes)
    interpkit.save_target(net, "net.safetensors", architecture="interpkit:cnn", arch_args=sizes, input_shape=SHAPE)
    found = harden("net.safetensors", data, ["pixels"], rounds=1, steps=2, samples=20, per_class=3)
    assert len(found.rounds) == 1


@pytest.mark.parametrize("classes", [3, 7])
def test_each_class_can_be_among_the_samples_that_are_not_learned(
    classes: int, tiny_model: Path, short: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"input_shape": list(SHAPE), "num_classes": classes, "widths": [2], "hidden": 4}
    net = interpkit.build_architecture("interpkit:cnn", sizes)
    interpkit.save_target(net, "net.safetensors", architecture="interpkit:cnn", arch_args=sizes, input_shape=SHAPE)
    drawn: list[Tensor] = []
    asked: list[Tensor] = []
    answers, stored = api._answers, api._stored

    def answered(target: Target, images: Tensor, device: torch.device) -> Tensor:
        asked.append(images)
        return answers(target, images, device)

    monkeypatch.setattr(api, "_answers", answered)
    monkeypatch.setattr(api, "_stored", lambda images: drawn.append(images) or stored(images))
    labels = torch.arange(40) % classes
    harden("net.safetensors", (torch.rand(40, *SHAPE), labels), **{**short, "rounds": 1, "samples": 60})
    all_of_them, fresh = asked[0], asked[1]  # the classes take turns in the first
    places = [next(i for i, one in enumerate(all_of_them) if torch.equal(one, image)) for image in fresh]
    assert len(fresh) == len(all_of_them) // 7 and len({place % classes for place in places}) > 1
    assert len(drawn[-1]) == len(all_of_them) - len(fresh)


def test_a_handful_of_samples_is_enough(data: Data, tiny_model: Path) -> None:
    found = harden(tiny_model, data, ["pixels"], rounds=1, steps=2, samples=20, per_class=1)
    assert 0 <= found.rounds[0]["accepted"] <= 1


def test_vectors_are_not_turned_and_moved() -> None:
    with pytest.raises(UsageError, match="only images can be turned and moved"):
        harden(wrap(nn.Linear(4, 3), (4,)), (torch.rand(30, 4), torch.arange(30) % 3), ["vecmat"], augment=True)


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_training_split_is_the_default(tiny_model: Path, short: dict[str, Any]) -> None:
    (x, y), (x_test, y_test) = stripes(30, 0), stripes(30, 1)
    as_bytes = [(part[:, 0] * 255).to(torch.uint8).numpy() for part in (x, x_test)]
    np.savez("data.npz", x_train=as_bytes[0], y_train=y, x_test=as_bytes[1], y_test=y_test)
    assert harden(tiny_model, "data.npz", reference="data.npz", **{**short, "rounds": 0}).reference
    with pytest.raises(UsageError, match=r"30 of the 30 different images of the reference data are among the training"):
        harden(tiny_model, "data.npz", reference="data.npz:train", **short)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((torch.rand(30, 1, 8, 8), torch.arange(30) % 3), r"has \(30, 1, 8, 8\) images"),
        ((torch.rand(30, *SHAPE), torch.arange(30) % 5), "has the label 3"),
        ((torch.rand(30, *SHAPE), torch.arange(30) % 2), "no images of 'class 2', which the classifier would forget"),
    ],
)
def test_data_that_do_not_fit_are_refused(tiny_model: Path, given: Data, words: str, short: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=words):
        harden(tiny_model, given, **short)


def test_what_to_invert_with_is_checked_before_the_training(
    tiny_model: Path, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "_retrain", lambda *_: pytest.fail("it was trained"))
    with pytest.raises(UsageError, match="name a preset by presets="):
        harden(tiny_model, data)
    with pytest.raises(UsageError, match="at least 1 step"):
        harden(tiny_model, data, steps=0)
    for rate in (-1.0, 0.0, math.nan, math.inf):
        with pytest.raises(UsageError, match=r"a learning rate is above 0 and finite, e\.g\. rate=0\.001"):
            harden(tiny_model, data, ["vecmat"], rate=rate)


def test_to_harden_by_inversions_of_some_classes_alone_is_refused(
    tiny_model: Path, data: Data, short: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "_retrain", lambda *_: pytest.fail("it was trained"))
    with pytest.raises(UsageError, match=r"hardening inverts all classes: leave labels=\[0, 1\] out"):
        harden(tiny_model, data, **short, labels=[0, 1])


def test_a_classifier_that_cannot_be_retrained_is_refused(tiny_target: Target, data: Data) -> None:
    pytest.importorskip("onnx")
    in_memory = wrap(nn.Sequential(nn.Flatten(), nn.Linear(144, 3)), SHAPE)
    graph = load_target(interpkit.pack_target(in_memory, "graph.safetensors"))
    for target, kind in ((in_memory, "has no name"), (graph, "is a graph")):
        words = rf"cannot be retrained: .* its own {kind}\. .*save_target\(\.\.\., architecture='FAMILY:NAME'\)"
        with in_shell(), pytest.raises(ModelError, match=words):
            harden(target, data)
    labels = wrap(nn.Sequential(nn.Flatten(), nn.Linear(144, 3)), SHAPE, output="sigmoid_logits")
    with pytest.raises(ModelError, match="do not exclude each other"):
        harden(labels, data)


def test_an_inversion_leaves_the_garbage_class_out_unless_it_is_named(
    quick: Callable[..., dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    target = wrap(nn.Sequential(nn.Flatten(), nn.Linear(144, 3)), SHAPE, class_names=["a", "Garbage", "b"])
    assert interpkit.invert(target, **quick(steps=1)).classes == [0, 2]
    assert "the class 'Garbage' stands for no class and is left out" in caplog.text
    assert interpkit.invert(target, **quick(steps=1, labels=["garbage"])).classes == [1]
