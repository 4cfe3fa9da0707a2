"""`concepts`: a dictionary finds what a layer computes, also planted, and refuses what cannot be learned from."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from typer.testing import CliRunner, Result

import interpkit
from interpkit import Concepts, Dictionary, UsageError, concepts, load_concepts
from interpkit.api import concepts as api
from interpkit.attribution.concepts import effect, grid, positions
from interpkit.attribution.dictionaries import Factors, TopK
from interpkit.cli import app


@pytest.fixture(scope="module")
def quarters() -> interpkit.Target:
    """A classifier whose three features are the brightness of three quarters of the image, and its logits those."""
    first, last = nn.Linear(64, 3, bias=False), nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        first.weight.zero_()
        for k in range(3):
            first.weight[k].view(8, 8)[4 * (k // 2) :, 4 * (k % 2) :][:4, :4] = 1 / 4
        last.weight.copy_(torch.eye(3))
    return interpkit.wrap(nn.Sequential(nn.Flatten(), first, last), input_shape=(1, 8, 8), output="logits")


def bright(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return images with one bright quarter each, and which."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=rng)
    images = torch.zeros(count, 1, 8, 8)
    for image, k in zip(images, labels.tolist(), strict=True):
        shade = 0.2 + 0.8 * torch.rand((), generator=rng)
        image[0, 4 * (k // 2) :, 4 * (k % 2) :][:4, :4] = shade * (0.95 + 0.05 * torch.rand(4, 4, generator=rng))
    return images, labels


@pytest.fixture(scope="module")
def found(quarters: interpkit.Target) -> Concepts:
    images = bright(300)[0]
    return concepts(quarters, images, reference=bright(90, 1), latents=6, active=1, steps=600, device="cpu")


def test_each_planted_feature_is_a_concept_of_its_class(found: Concepts) -> None:
    for figures in (found.record["samples"], found.record["reference"]):
        assert figures["variance_explained"] > 0.9 and figures["label_kept"] > 0.95
    rows = [row for row in found.record["concepts"] if row["selectivity"] > 0.95 and row["fires"] > 0.1]
    assert {row["class"]["label"] for row in rows} == {0, 1, 2}
    assert all(row["effect"]["label"] == row["class"]["label"] and row["effect"]["logit"] < 0 for row in rows)
    assert found.record["only_samples"] == found.record["only_reference"] == []


def test_a_concept_is_where_its_feature_is(found: Concepts) -> None:
    row = next(row for row in found.record["concepts"] if row["selectivity"] > 0.95 and row["class"]["label"] == 0)
    images, labels = bright(30, 2)
    own = images[labels == 0]
    maps = found.where(own, row["concept"], device="cpu")
    assert maps.shape == own.shape
    inside = maps[:, :, :4, :4].abs().sum() / maps.abs().sum()
    assert inside > 0.99
    attributed = interpkit.attribute(found.detector, own, [row["concept"]] * len(own), device="cpu")
    torch.testing.assert_close(attributed, maps)  # the detector is a target like any other


def test_concepts_on_one_kind_of_images_only_are_said(quarters: interpkit.Target) -> None:
    images, labels = bright(300)
    real, real_labels = bright(300, 3)
    few = labels < 2
    seen = concepts(
        quarters,
        images[few],
        reference=(real[real_labels > 0], real_labels[real_labels > 0]),
        learn_from="both",
        latents=6,
        active=1,
        steps=600,
        device="cpu",
    )
    rows = {row["concept"]: row["class"]["label"] for row in seen.record["concepts"]}
    assert {rows[number] for number in seen.record["only_samples"]} == {0}
    assert seen.record["only_reference"] and not set(seen.record["only_reference"]) & set(seen.record["only_samples"])


class Axes(Dictionary):
    """Each feature is a concept."""

    def evidence(self, features: Tensor) -> Tensor:
        return features

    def decode(self, codes: Tensor) -> Tensor:
        return codes


def test_taking_a_concept_out_changes_the_logits_by_its_part(quarters: interpkit.Target) -> None:
    seen = concepts(quarters, bright(50)[0], dictionary=lambda rows: Axes(), device="cpu")
    assert seen.record["samples"]["variance_explained"] == pytest.approx(1)
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, :4, :4] = 0.5
    image[0, 0, :4, 4:] = 1
    with quarters.frozen():
        torch.testing.assert_close(
            effect(seen.detector, 0, image, seen.target(image), "cpu"), torch.tensor([-2.0, 0.0, 0.0])
        )
    with pytest.raises(UsageError, match="returned a list"):
        concepts(quarters, bright(50)[0], dictionary=lambda rows: [], device="cpu")  # type: ignore[arg-type, return-value]


def test_a_softmax_at_the_end_changes_neither_the_class_of_a_concept_nor_that_of_its_effect(
    quarters: interpkit.Target,
) -> None:
    net = nn.Sequential(*quarters.module, nn.Softmax(1))  # type: ignore[arg-type, misc]
    sure = interpkit.wrap(net, input_shape=(1, 8, 8), output="probs")
    rows = [
        concepts(target, bright(90)[0], layer="1", dictionary=lambda rows: Axes(), device="cpu").record["concepts"]
        for target in (quarters, sure)
    ]
    for plain, relative in zip(*(sorted(some, key=lambda row: row["concept"]) for some in rows), strict=True):
        assert relative["class"]["label"] == relative["effect"]["label"] == plain["effect"]["label"] == plain["concept"]
        assert relative["effect"]["logit"] < 0


def test_each_label_of_several_counts_as_kept_or_lost(quarters: interpkit.Target) -> None:
    class Faint(Axes):
        """Each feature is a concept, and what it decodes is a hundredth of it."""

        def decode(self, codes: Tensor) -> Tensor:
            return codes / 100

    first, last = copy.deepcopy(quarters.module[1]), nn.Linear(3, 3)  # type: ignore[index]
    last.weight.data, last.bias.data = torch.eye(3), torch.full((3,), -0.5)
    target = interpkit.wrap(nn.Sequential(nn.Flatten(), first, last), (1, 8, 8), output="sigmoid_logits")
    images = (bright(30)[0] + torch.tensor([1.0, 0.0]).repeat(15)[:, None, None, None] * bright(30, 1)[0]).clamp(0, 1)
    present = (target(images) > 0).double().mean().item()
    assert 0.3 < present < 0.6
    for dictionary, kept in ((Axes(), 1.0), (Faint(), 1 - present)):  # no label is left in what is faint
        made = concepts(target, images, layer="1", dictionary=lambda rows, found=dictionary: found, device="cpu")
        assert made.record["samples"]["label_kept"] == pytest.approx(kept)


def test_there_may_be_fewer_concepts_than_classes(quarters: interpkit.Target) -> None:
    record = concepts(quarters, bright(60)[0], latents=2, active=1, steps=100, device="cpu").record
    assert 1 <= len(record["concepts"]) <= 2 and {row["class"]["label"] for row in record["concepts"]} <= {0, 1, 2}


def test_pursuit_finds_the_few_concepts_that_features_are_made_of() -> None:
    rng = torch.Generator().manual_seed(0)
    dictionary = TopK(6, 12, 2)
    with torch.no_grad():
        dictionary.atoms.copy_(nn.functional.normalize(torch.randn(12, 6, generator=rng), dim=1))
    codes = torch.zeros(12, 12).scatter(1, torch.arange(12)[:, None], 2.0)  # one concept each, and the encoder is zero
    found = dictionary.encode(dictionary.decode(codes))
    torch.testing.assert_close(found, codes, atol=1e-4, rtol=0)
    features = torch.randn(50, 6, generator=rng)
    found = dictionary.encode(features)
    assert (found >= 0).all() and (found > 0).sum(1).max() <= 2
    assert (dictionary.decode(found) - features).norm() < 0.8 * features.norm()


def test_a_factorization_starts_from_codes_and_atoms_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tensor] = []
    real = torch.rand
    monkeypatch.setattr(torch, "rand", lambda *args, **more: made.append(real(*args, **more)) or made[-1].clone())
    Factors.fit(torch.ones(8, 6), torch.ones(8, 3), 6, 6, steps=1, seed=0)
    assert [one.shape for one in made] == [(8, 6), (6, 6)] and not torch.equal(made[0][:6], made[1])


def test_a_layer_with_a_grid_says_where_by_its_codes() -> None:
    conv = nn.Conv2d(1, 2, 1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
    net = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))
    target = interpkit.wrap(net, input_shape=(1, 8, 8))
    images = bright(80)[0]
    seen = concepts(target, images, layer="1", dictionary="nmf", latents=1, steps=100, device="cpu")
    assert seen.record["samples"]["variance_explained"] > 0.99
    torch.testing.assert_close(seen.where(images[:5], 0, device="cpu") > 0, images[:5] > 0)


class Shaped(nn.Module):
    """Layers by name that do not run: only their kinds count."""

    def __init__(self, inputs: tuple[int, ...], layers: dict[str, nn.Module]) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleDict(layers), nn.Linear(torch.Size(inputs).numel(), 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


IMAGES, SIGNALS = (3, 16, 64), (100,)


@pytest.mark.parametrize(
    ("inputs", "layers", "shape", "places", "channels", "size"),
    [
        (IMAGES, {"x": nn.Identity()}, (24, 4, 16), 64, 24, (4, 16)),
        (IMAGES, {"x": nn.Identity()}, (4, 16, 24), 64, 24, (4, 16)),  # as in Swin transformers
        (IMAGES, {"x": nn.Conv2d(3, 8, 1)}, (8, 14, 62), 868, 8, (14, 62)),  # without padding
        (IMAGES, {"x": nn.Conv2d(3, 8, 1)}, (8, 32, 4), 128, 8, (32, 4)),  # the channels look like rows
        (IMAGES, {"x": nn.Identity()}, (65, 24), 65, 24, (4, 16)),  # with a token of the class
        (IMAGES, {"x": nn.Identity()}, (64, 24), 64, 24, (4, 16)),
        (IMAGES, {"x": nn.Identity()}, (63, 24), 63, 24, None),
        (IMAGES, {"x": nn.Identity()}, (24,), 1, 24, None),
        (IMAGES, {"x": nn.LayerNorm(64)}, (70, 64), 70, 64, None),  # the channels look like a grid
        (IMAGES, {"x": nn.LSTM(2, 64)}, (70, 64), 70, 64, None),
        (SIGNALS, {"x": nn.Conv1d(1, 8, 1)}, (8, 50), 50, 8, None),
        (SIGNALS, {"w": nn.Conv1d(1, 8, 1), "x": nn.ReLU(), "y": nn.Linear(2, 2)}, (8, 50), 50, 8, None),
        (SIGNALS, {"w": nn.Conv1d(1, 8, 1), "x": nn.Sequential(nn.LayerNorm(8))}, (50, 8), 50, 8, None),
    ],
)
def test_places_and_channels_of_features_are_told_apart(
    inputs: tuple[int, ...],
    layers: dict[str, nn.Module],
    shape: tuple[int, ...],
    places: int,
    channels: int,
    size: tuple[int, int] | None,
) -> None:
    target = interpkit.wrap(Shaped(inputs, layers), input_shape=inputs)
    assert positions(target, "layers.x", torch.zeros(2, *shape)).shape == (2, places, channels)
    assert grid(target, "layers.x", shape) == size


class Last(nn.Module):
    """Grids (B, C, H, W) as (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


def test_a_grid_with_channels_last_is_taken_apart_and_put_together_again() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.AvgPool2d(2), Last(), nn.Flatten(), nn.Linear(48, 3))
    target, images = interpkit.wrap(net, input_shape=(1, 8, 8)), bright(40)[0]
    seen = concepts(target, images, layer="3", dictionary=lambda rows: Axes(), device="cpu")
    assert seen.record["latents"] == 3 and seen.record["samples"]["label_kept"] == 1
    first = concepts(target, images, layer="2", dictionary=lambda rows: Axes(), device="cpu")
    torch.testing.assert_close(seen.where(images[:5], 1, device="cpu"), first.where(images[:5], 1, device="cpu"))


def test_a_layer_that_runs_twice_is_refused_and_not_recommended() -> None:
    shared = nn.ReLU()
    net = nn.Sequential(nn.Conv2d(1, 2, 3), shared, nn.AvgPool2d(2), shared, nn.AvgPool2d(3), nn.Flatten())
    target, images = interpkit.wrap(net.append(nn.Linear(2, 3)), input_shape=(1, 8, 8)), bright(40)[0]
    with pytest.raises(UsageError, match=r"the layer '1' of .* runs 2 times for an image.* runs once: 0, 2, 4, 5, 6\."):
        concepts(target, images, layer="1", latents=4, steps=5, device="cpu")
    with pytest.raises(UsageError, match=r"such as layer='2' \(2 x 3 x 3\)"):
        concepts(target, images, device="cpu")


def test_no_more_concepts_are_active_than_there_are(quarters: interpkit.Target) -> None:
    seen = concepts(quarters, bright(30, 0)[0], latents=2, active=8, steps=5, device="cpu")
    assert seen.record["active"] == 2


def test_a_count_draws_some_of_the_images_that_are_given(quarters: interpkit.Target) -> None:
    images, few = bright(60)[0], {"latents": 4, "steps": 5, "device": "cpu"}
    some = concepts(quarters, images, count=20, **few).record
    assert (some["settings"]["images"], some["samples"]["images"]) == (20, 20)
    assert concepts(quarters, images, count=20, **few).record == some
    drawn = [api._samples(quarters, images, "1", 20, seed, "cpu") for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    for count in (None, 90):
        assert concepts(quarters, images, count=count, **few).record["settings"]["images"] == 60
    with pytest.raises(UsageError, match="at least 1 step, 1 active concept and 1 image, not 5, 8 and 0"):
        concepts(quarters, images, count=0, **few)


def test_the_steps_of_a_factorization_are_its_updates(
    quarters: interpkit.Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []

    def tell(what: str, done: int, total: int, detail: str = "") -> None:
        told.extend([(done, total)] if what == "updates of the dictionary" else [])

    monkeypatch.setattr("interpkit.attribution.dictionaries.progress.tell", tell)
    settings: dict[str, Any] = {"dictionary": "nmf", "latents": 4, "device": "cpu"}
    record = concepts(quarters, bright(30)[0], steps=3, **settings).record
    assert told == [(1, 3), (2, 3), (3, 3)] and record["settings"]["steps"] == 3
    told.clear()
    record = concepts(quarters, bright(30)[0], **settings).record
    assert len(told) == record["settings"]["steps"] == 200


def test_concepts_are_stored_with_their_names_and_read_back(found: Concepts, tmp_path: Path) -> None:
    number = found.record["concepts"][0]["concept"]
    found.record["names"] = {str(number): "a bright corner"}
    place = found.save(tmp_path / "here")
    found.record["names"] = {}
    found.save(place)  # the same concepts keep their names
    again = load_concepts(place, target=found.target)
    assert again.detector.class_names[number] == "a bright corner"
    images = bright(5, 4)[0]
    torch.testing.assert_close(again.detector(images), found.detector(images))
    assert "a bright corner" in (place / "report.html").read_text("utf-8")
    (place / "concepts.json").write_text("[")
    with pytest.raises(interpkit.RunError, match="cannot be read"):
        load_concepts(place, target=found.target)


def test_names_are_not_given_to_concepts_of_another_classifier(
    quarters: interpkit.Target, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "interpkit")
    other = copy.deepcopy(quarters.module)
    with torch.no_grad():
        other[1].weight.copy_(other[1].weight[[1, 2, 0]])
    few = {"latents": 4, "steps": 20, "out": tmp_path / "here", "device": "cpu"}
    first = concepts(quarters, bright(60)[0], **few)
    named = first.record["concepts"][0]["concept"]
    assert concepts(quarters, bright(60)[0], names={named: "corner"}, **few).record["names"] == {str(named): "corner"}
    assert concepts(quarters, bright(60)[0], **few).record["names"] == {str(named): "corner"} and not caplog.text
    assert concepts(interpkit.wrap(other, input_shape=(1, 8, 8)), bright(60)[0], **few).record["names"] == {}
    assert f"are those of other concepts and are not kept: {named}=corner" in caplog.text


def test_a_reference_of_vectors_is_in_the_units_of_the_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    for layer in net:
        layer.weight.data = torch.eye(3)
    target = interpkit.wrap(net, input_shape=(3,), input_range=(-3, 3))
    vectors = torch.rand(60, 3, generator=torch.Generator().manual_seed(1)) * 6 - 3
    read: list[tuple[Tensor, str]] = []
    real = api.found_by.read

    def reading(target: interpkit.Target, layer: str, images: Tensor, device: str) -> tuple[Tensor, Tensor]:
        read.append((images, device))
        return real(target, layer, images, device)

    monkeypatch.setattr(api.found_by, "read", reading)
    concepts(target, torch.rand(60, 3), reference=(vectors, vectors.argmax(1)), latents=3, steps=5, device="cpu")
    assert all(device == "cpu" for _, device in read)
    torch.testing.assert_close(read[1][0], (vectors + 3) / 6)


@pytest.mark.parametrize(
    ("before", "after", "match"),
    [
        ('"selectivity":', '"selective":', r"cannot be read: concepts\.0\.selectivity: field required"),
        ('"learn_from": "samples"', '"learn_from": "dreams"', "cannot be read: learn_from: input should be"),
        ('"samples": [', '"samples": [], "_": [', r"cannot be read: concepts\.0\.samples: list should have at least 1"),
        ('"schema": 1', '"schema": 2', "cannot be read: schema: input should be 1"),
        ('"latents": ', '"latents": 1', r"does not fit concepts\.json beside it, or is of another classifier"),
    ],
)
def test_changed_concepts_are_refused(found: Concepts, before: str, after: str, match: str, tmp_path: Path) -> None:
    text = (found.save(tmp_path) / "concepts.json").read_text("utf-8")
    assert before in text
    (tmp_path / "concepts.json").write_text(text.replace(before, after), "utf-8")
    with pytest.raises(interpkit.RunError, match=match):
        load_concepts(tmp_path, target=found.target)


def test_tensors_of_other_concepts_are_refused(found: Concepts, tmp_path: Path) -> None:
    path = found.save(tmp_path) / "concepts.safetensors"
    tensors = safetensors.torch.load(path.read_bytes())  # not mapped: the file is written below
    for changed in ({"pictures": tensors["pictures"][..., 1:].contiguous()}, {"maps": torch.zeros(3)}):
        safetensors.torch.save_file({**tensors, **changed}, path)
        with pytest.raises(interpkit.RunError, match="does not fit the dictionary or the classifier: its pictures are"):
            load_concepts(tmp_path, target=found.target)
    safetensors.torch.save_file({"pictures": tensors["pictures"]}, path)
    with pytest.raises(interpkit.RunError, match=r"concepts\.json beside it are of different calls"):
        load_concepts(tmp_path, target=found.target)


def test_figures_and_tensors_of_two_calls_are_refused_and_lend_no_names(
    quarters: interpkit.Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    few: dict[str, Any] = {"latents": 4, "steps": 20, "out": tmp_path / "here", "device": "cpu"}
    number = concepts(quarters, bright(60)[0], **few).record["concepts"][0]["concept"]
    concepts(quarters, bright(60)[0], names={number: "corner"}, **few)
    with monkeypatch.context() as killed:
        killed.setattr(api, "write_atomically", lambda *_: [][0])  # between the tensors and the figures
        with pytest.raises(IndexError):
            concepts(quarters, bright(60, 7)[0], **few)
    with pytest.raises(interpkit.RunError, match="are of different calls, of which one was interrupted"):
        load_concepts(tmp_path / "here", target=quarters)
    assert concepts(quarters, bright(60, 7)[0], **few).record["names"] == {}
    assert f"are not kept: {number}=corner" in caplog.text


def test_folders_of_older_versions_are_read(found: Concepts, tmp_path: Path) -> None:
    place = found.save(tmp_path)
    record = json.loads((place / "concepts.json").read_text("utf-8"))
    for added in ("classifier", "weights", "source"):
        del record[added]
    (place / "concepts.json").write_text(json.dumps(record), "utf-8")
    assert torch.equal(load_concepts(place, target=found.target).pictures, found.pictures)


def test_the_page_names_the_images_that_stand_in_for_samples(found: Concepts, tmp_path: Path) -> None:
    found.record["source"] = "mine.npz"
    text = (found.save(tmp_path) / "report.html").read_text("utf-8")
    assert '<th scope="row">mine.npz</th>' in text and "learned from images" in text
    assert "samples" not in text.split("<main")[1].split("</main>")[0]


def test_what_cannot_be_learned_from_is_refused(quarters: interpkit.Target) -> None:
    images, labels = bright(60)
    with pytest.raises(UsageError, match=r"256 concepts cannot be learned from 60 samples: .* latents=15"):
        concepts(quarters, images, device="cpu")
    grid = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AvgPool2d(6), nn.Flatten(), nn.Linear(2, 3))
    with pytest.raises(UsageError, match=r"every place counts as a sample, such as layer='0' \(2 x 6 x 6\)"):
        concepts(interpkit.wrap(grid, input_shape=(1, 8, 8)), images, device="cpu")
    with pytest.raises(UsageError, match="cannot be learned from one image: name or draw more"):
        concepts(quarters, images[:1], device="cpu")
    with pytest.raises(UsageError, match="the same for all samples"):
        concepts(quarters, torch.ones(20, 1, 8, 8), latents=4, device="cpu")
    same = torch.full((20, 1, 8, 8), 0.3), torch.zeros(20, dtype=torch.int64)
    with pytest.raises(UsageError, match="the same for all reference images"):
        concepts(quarters, images, reference=same, latents=4, steps=5, device="cpu")
    with pytest.raises(UsageError, match="not better than chance: they are of other classes"):
        concepts(quarters, images, reference=(images, (labels + 1) % 3), latents=4, device="cpu")
    with pytest.raises(UsageError, match="60 different images of the reference data are among the images to learn"):
        concepts(quarters, images, reference=(images, labels), latents=4, device="cpu")
    with pytest.raises(UsageError, match="has no layer 'nine'"):
        concepts(quarters, images, layer="nine", device="cpu")
    with pytest.raises(UsageError, match="there is no dictionary 'overcomplete'"):
        concepts(quarters, images, dictionary="overcomplete", device="cpu")
    with pytest.raises(UsageError, match="there is no reference to learn from"):
        concepts(quarters, images, learn_from="both", device="cpu")
    with pytest.raises(UsageError, match="a classifier alone has no samples"):
        concepts(quarters, device="cpu")
    with pytest.raises(UsageError, match="is off in every image"):
        concepts(quarters, images, dictionary=lambda rows: _Off(), names={1: "nothing"}, device="cpu")


class _Off(Dictionary):
    """Concept 0 is always on, concept 1 never."""

    def evidence(self, features: Tensor) -> Tensor:
        return torch.stack([features.sum(1), -torch.ones(len(features))], 1)

    def decode(self, codes: Tensor) -> Tensor:
        return codes[:, :1].expand(-1, 3) / 3


def test_a_layer_without_features_is_refused_with_the_shapes_of_all() -> None:
    net = nn.Sequential(nn.Unflatten(1, (1, 1, 2, 2)), nn.Flatten(), nn.Linear(4, 3))
    target = interpkit.wrap(net, input_shape=(4,))
    with pytest.raises(UsageError, match=r"cannot be used as features of images.*2 \(3,\)"):
        concepts(target, torch.rand(30, 4), layer="0", latents=4, device="cpu")


def cli(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["concepts", *map(str, arguments)])


def test_the_command_writes_into_the_run_and_prints_figures(tmp_path: Path, tiny_model: Path) -> None:
    run = tmp_path / "run"
    interpkit.invert(tiny_model, ["vecmat"], steps=2, batch_size=16, out=run, device="cpu")
    few = ["--latents", "8", "--count", "40", "--steps", "20", "--device", "cpu"]
    result = cli(run, *few, "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert set(record["samples"]) >= {"variance_explained", "label_kept"} and record["samples"]["images"] == 40
    written = {path.name for path in (run / api.FOLDER).iterdir()}
    assert written == {"concepts.json", "concepts.safetensors", "report.html"}
    number = record["concepts"][0]["concept"]
    result = cli(run, *few, "--name", f"{number}=edge")
    assert result.exit_code == 0 and "edge" in result.stdout, result.output
    assert load_concepts(run).record["names"] == {str(number): "edge"}
    for wrong, said in (["--name", "edge"], "N=TEXT"), (["--learn-from", "noise"], "samples, reference or both"):
        refused = cli(run, *few, *wrong)
        assert refused.exit_code == 2 and said in refused.stderr
    assert cli(tiny_model, *few).exit_code == 2


def test_a_classifier_learns_from_images_of_the_user(tmp_path: Path, tiny_model: Path) -> None:
    np.savez(tmp_path / "own.npz", images=np.random.default_rng(0).random((40, 1, 12, 12), "float32"), labels=[0] * 40)
    out = tmp_path / "out"
    result = cli(
        tiny_model,
        *("--images", tmp_path / "own.npz", "--latents", "8", "--steps", "20", "--out", out, "--device", "cpu"),
    )
    assert result.exit_code == 0, result.output
    assert (out / "report.html").is_file()
