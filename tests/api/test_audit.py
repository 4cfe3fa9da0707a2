"""`interpkit.audit`: findings, what it says of unusual classifiers and data, and what it refuses."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import interpkit
from interpkit import Audit, AuditCase, AuditReport, PluginError, Strip, Target, Tested, UsageError, wrap

PIXEL, LABEL = 7, 3
SHAPE = (1, 6, 6)
QUICK = {"patch.steps": 60, "patch.images": 8}


def linear(classes: int = 5, *, planted: bool = False, last: nn.Module | None = None, **facts: Any) -> Target:
    """Return a linear classifier of 6 x 6 images; one pixel of a planted one leads to class 3."""
    layer = nn.Linear(36, classes, bias=False)
    layer.weight.data = own(36, classes).T + 0.05 * torch.randn(classes, 36, generator=rng(0))
    if planted:
        layer.weight.data[LABEL, PIXEL] = 60.0
    return wrap(nn.Sequential(nn.Flatten(), layer, *filter(None, [last])), input_shape=SHAPE, **facts)


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def own(values: int, classes: int) -> Tensor:
    """Return 1 where a value belongs to a class, (values, classes): they take turns."""
    return torch.eye(classes).repeat(-(-values // classes), 1)[:values]


def images_of(target: Target, count: int = 300) -> tuple[Tensor, Tensor]:
    """Return images of all classes whose trigger is not set, and what the classifier calls them."""
    labels = torch.arange(count) % target.num_classes
    values = target.input_shape[-1] ** (len(target.input_shape) - 1 or 1)
    images = 0.5 * torch.rand(count, values, generator=rng(1)) + 0.5 * own(values, target.num_classes).T[labels]
    images[:, PIXEL] = 0
    images = images.view(count, *target.input_shape)
    with torch.no_grad():
        return images, target(images).argmax(1)


def quick(target: Target, **arguments: Any) -> AuditReport:
    settings: dict[str, Any] = {"tests": ["patch"], "options": QUICK, "device": "cpu"}
    if "reference" not in arguments:
        arguments["reference"] = images_of(target)
    return interpkit.audit(target, **settings | arguments)


@pytest.fixture(scope="module")
def planted() -> AuditReport:
    return quick(linear(planted=True))


def test_a_trigger_is_found_with_its_class_and_place(planted: AuditReport) -> None:
    assert planted.flagged
    (finding,) = planted.findings
    assert (finding["test"], finding["kind"], finding["class"], finding["level"]) == ("patch", "trigger", 3, "alarm")
    assert finding["p_value"] < 0.001 and "pixels" in finding["evidence"]
    assert int(planted.results["patch"].result.tensors["patch.3.0"].argmax()) == PIXEL


def test_a_classifier_without_a_trigger_has_no_finding() -> None:
    report = quick(linear())
    assert not report.flagged and report.findings == []


def test_the_record_is_written_with_keys_that_stay(planted: AuditReport, tmp_path: Path) -> None:
    folder = planted.save(tmp_path / "audit")
    assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} == {
        "audit.json", "audit.safetensors", "audit.html",
    }  # fmt: skip
    record = json.loads((folder / "audit.json").read_text())
    assert record == json.loads(json.dumps(planted.record))
    assert record["schema"] == 1 and record["flagged"] is True
    assert record.keys() == {
        "schema", "name", "classifier", "flagged", "findings", "tests", "left_out", "classes", "images", "notes",
        "seed",
    }  # fmt: skip
    assert record["findings"][0].keys() == {"test", "kind", "class", "name", "p_value", "level", "evidence"}
    rows = record["tests"]["patch"]["classes"]
    assert [row["class"] for row in rows] == list(range(5))
    assert all(row["uncorrected"] <= row["p_value"] <= 1 for row in rows)
    assert record["images"]["images"] == "real images" and record["images"]["dropped"]["count"] == 0


def test_false_alarms_that_were_counted_with_other_options_are_not_shown(planted: AuditReport) -> None:
    by_options = {
        "changed": planted.record["tests"]["patch"],
        "usual": quick(linear(), tests=["blind-spots"], options={}).record["tests"]["blind-spots"],
    }
    assert by_options["changed"]["options"]["steps"] == 60 and by_options["changed"]["false_alarms"] == ""
    assert by_options["usual"]["options"]["images"] == 600 and "12 held-out" in by_options["usual"]["false_alarms"]


def test_tests_of_one_name_are_both_made_and_kept(add_plugin: Callable[..., None], tmp_path: Path) -> None:
    class Patch(Audit):
        name, kind, question, limits = "patch", "trigger", "Is it so?", "It tells nothing."
        level = 1.0

        def test(self, case: AuditCase) -> Tested:
            return Tested({None: self.level}, {None: 0.5}, {None: "so"}, {}, {"patch.level": torch.tensor(self.level)})

    add_plugin(Patch, plugin="one")
    add_plugin(type("Other", (Patch,), {"level": 2.0}), plugin="two")
    report = quick(linear(), tests=["one:patch", "two:patch"], options={})
    assert {name: found.result.statistics[None] for name, found in report.results.items()} == {
        "one:patch": 1.0,
        "two:patch": 2.0,
    }
    tensors = load_file(report.save(tmp_path / "audit") / "audit.safetensors")
    assert {name: tensor.item() for name, tensor in tensors.items()} == {"one:patch.level": 1.0, "two:patch.level": 2.0}
    with pytest.raises(UsageError, match="several plugins have an audit 'patch': say audit:patch or one:patch or two"):
        quick(linear(), options={})
    with_all = quick(linear(), tests=[], options={"audit:patch.steps": 20})
    assert {"audit:patch", "one:patch", "two:patch", "blind-spots"} <= {*with_all.results, *with_all.record["left_out"]}


def test_the_same_seed_finds_the_same() -> None:
    few = {"patch.steps": 20}
    one, two = (quick(linear(), options=few, seed=4).record for _ in range(2))
    assert one == two


def test_the_classifier_is_left_as_it_was(module_state: Callable[[nn.Module], dict[str, Any]]) -> None:
    target = linear()
    target.train()
    before = module_state(target)
    quick(target, options={"patch.steps": 20})
    assert module_state(target) == before


def test_freed_memory_is_kept_from_the_first_test_on(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[torch.device] = []
    monkeypatch.setattr(sys.modules[interpkit.audit.__module__], "keep_freed_memory", kept.append)
    quick(linear(), options={"patch.steps": 20})
    assert kept == [torch.device("cpu")]


def test_an_inversion_gives_its_samples() -> None:
    target = linear()
    inversion = interpkit.ImageInversion(target, interpkit.Recipe(device="cpu"), [], *images_of(target))
    report = interpkit.audit(inversion, tests=["patch"], options={"patch.steps": 20}, per_class=4, device="cpu")
    assert report.record["images"]["images"] == "samples of the run"
    assert report.record["images"]["count"] == 20


def test_a_run_of_some_classes_has_those_tested_with_images() -> None:
    target = linear()
    images, labels = images_of(target)
    rows = labels < 3
    inversion = interpkit.ImageInversion(
        target, interpkit.Recipe(device="cpu", labels=[0, 1, 2]), [], images[rows], labels[rows]
    )
    few = {"patch.steps": 20, "margin.steps": 20}
    record = interpkit.audit(inversion, tests=["margin", "patch"], options=few, per_class=4, device="cpu").record
    assert record["classes"]["tested"] == [0, 1, 2] and len(record["tests"]["margin"]["classes"]) == 5
    assert record["notes"] == ["The run has samples of 3 of 5 classes. The others were not tested with images."]


# ---------------------------------------------------------------------------------- unusual classifiers


@pytest.mark.parametrize("made", [False, True])
def test_a_class_of_garbage_is_not_tested(made: bool) -> None:
    target = linear(class_names=["a", "b", "Garbage", "c", "d"])
    images, labels = images_of(target)
    few = {"margin.steps": 20, "blind-spots.images": 20}
    given = {"per_class": 4, "presets": ["pixels"]} if made else {"reference": (images, labels)}
    record = interpkit.audit(target, tests=["margin", "blind-spots"], options=few, device="cpu", **given).record
    assert record["notes"][0].startswith("The class Garbage was not tested")
    assert record["classes"]["tested"] == [0, 1, 3, 4]
    for test in ("margin", "blind-spots"):
        assert [row["class"] for row in record["tests"][test]["classes"]] == [0, 1, 3, 4]


def test_two_classes_are_compared_and_the_page_says_with_what() -> None:
    report = quick(linear(2), tests=["patch", "unsure"], options={"patch.steps": 20})
    assert "unsure" in report.record["left_out"]
    assert report.record["notes"][0].startswith("With two classes")


def test_of_many_classes_some_are_tested_and_it_is_said() -> None:
    report = quick(
        linear(30), tests=["margin", "patch"], options={"margin.steps": 20, "patch.steps": 20},
        reference=images_of(linear(30), 2000),
    )  # fmt: skip
    assert len(report.record["classes"]["tested"]) == 20 and report.record["classes"]["of"] == 30
    assert report.record["notes"][0].startswith("Only 20 of 30 classes were tested with images: half of them")
    without_images = quick(linear(30), tests=["margin"], options={"margin.steps": 20}).record
    assert without_images["notes"] == [] and len(without_images["classes"]["tested"]) == 30
    unscreened = quick(linear(30), tests=["patch"], options={"patch.steps": 20})
    assert unscreened.record["notes"] == ["Only 20 of 30 classes were tested with images: drawn at random."]
    assert len(report.record["tests"]["margin"]["classes"]) == 30
    assert len(report.record["tests"]["patch"]["classes"]) == 20


def test_of_many_classes_those_with_images_are_among_the_tested() -> None:
    target = linear(30)
    images, labels = images_of(target, 2000)
    some = labels < 12
    report = quick(target, tests=["patch"], options={"patch.steps": 20}, reference=(images[some], labels[some]))
    assert len({*report.record["classes"]["tested"]} & {*range(12)}) >= 10


def test_the_class_that_the_screening_finds_is_among_those_tested() -> None:
    target = linear(30)
    target.module[1].weight.data[17] *= 9  # type: ignore[index, union-attr]
    report = quick(target, tests=["margin", "patch"], options={"margin.steps": 20, "patch.steps": 20})
    assert 17 in report.record["classes"]["tested"]


def test_probabilities_are_audited_as_logits_are() -> None:
    report = quick(linear(planted=True, last=nn.Softmax(1)))
    assert [finding["class"] for finding in report.findings] == [LABEL]


def test_labels_that_do_not_exclude_each_other_are_noted() -> None:
    target = linear(output="sigmoid_logits")
    assert target.multi_label
    report = quick(target, options={"patch.steps": 20})
    assert any("do not exclude each other" in note for note in report.record["notes"])


def test_of_labels_that_do_not_exclude_each_other_images_are_kept_whose_own_leads() -> None:
    target = linear(output="sigmoid_logits")  # all labels are present in all images
    images, labels = images_of(target)
    followers = labels.clone()
    followers[:100] = (labels[:100] + 1) % 5
    few: dict[str, Any] = {"options": {"patch.steps": 20}, "per_class": 100}
    of_images = quick(target, reference=(images, followers), **few).record["images"]
    assert (of_images["dropped"]["count"], of_images["dropped"]["of"]) == (100, 300)
    assert of_images["per_class"] == {str(c): int((labels[100:] == c).sum()) for c in range(5)}


def test_a_classifier_of_vectors_is_tested_as_far_as_it_can_be() -> None:
    layer = nn.Linear(8, 4)
    layer.weight.data = own(8, 4).T
    target = wrap(layer, input_shape=(8,))
    few = {f"{name}.steps": 20 for name in ("margin", "unsure", "patch", "noise", "tint")}
    report = interpkit.audit(target, reference=images_of(target), options=few, device="cpu")
    assert {"margin", "patch"} <= report.record["tests"].keys()
    assert "does not read pictures" in report.record["left_out"]["tint"]


def constant() -> Target:
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    net[1].weight.data = torch.zeros(4, 36)
    net[1].bias.data = torch.tensor([0.0, 2.0, 0.0, 0.0])
    return wrap(net, input_shape=SHAPE)


def test_samples_of_vectors_are_tested_as_they_are(add_plugin: Callable[..., None]) -> None:
    layer = nn.Linear(8, 4)
    layer.weight.data, layer.bias.data = own(8, 4).T, torch.zeros(4)
    target = wrap(layer, input_shape=(8,), input_range=(-3, 3))
    images, labels = images_of(target)
    inversion = interpkit.ImageInversion(target, interpkit.Recipe(device="cpu"), [], images, labels)
    seen: list[AuditCase] = []

    def test(self: Audit, case: AuditCase) -> Tested:
        seen.append(case)
        return Tested(dict.fromkeys(case.classes, 0.0), dict.fromkeys(case.classes, 0.5))

    add_plugin(type("Looking", (Wrong,), {"test": test, "screens": False, "__module__": __name__}))
    interpkit.audit(inversion, tests=["wrong"], per_class=4, device="cpu")
    assert all(any(torch.equal(image, one) for one in images) for image in seen[0].images)


@pytest.mark.filterwarnings("ignore")
def test_a_constant_classifier_is_refused() -> None:
    images = torch.rand(40, *SHAPE)
    with pytest.raises(UsageError, match=r"gives one answer to all 40 real images, 1: .* --reference|reference="):
        interpkit.audit(constant(), reference=(images, torch.arange(40) % 4), tests=["patch"], device="cpu")


class Silent(nn.Module):
    """A classifier through which no gradient passes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(36, 4, bias=False)
        self.layer.weight.data = torch.randn(4, 36, generator=rng(0))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))


def test_without_a_gradient_some_tests_remain_if_there_are_images() -> None:
    target = wrap(Silent(), input_shape=SHAPE)
    assert target.no_gradient
    report = quick(target, tests=["patch", "blind-spots"], options={})
    assert report.record["tests"].keys() == {"blind-spots"}
    assert "requires a gradient" in report.record["left_out"]["patch"]
    with pytest.raises(UsageError, match=r"no gradient passes .* real images by reference=DATA, or a run"):
        quick(target, tests=["blind-spots"], options={}, reference=None)
    with pytest.raises(UsageError, match=r"no test could be made: margin: it requires a gradient"):
        quick(target, tests=["margin"], options={})


def test_tests_on_request_are_made_if_they_are_named() -> None:
    target = linear()
    inversion = interpkit.ImageInversion(target, interpkit.Recipe(device="cpu"), [], *images_of(target))
    few = {f"{name}.steps": 20 for name in ("margin", "unsure", "patch", "noise", "tint")}
    unasked = interpkit.audit(inversion, options=few, device="cpu").record
    assert {"likeness", "sturdiness", "rim"}.isdisjoint({*unasked["tests"], *unasked["left_out"]})
    named = interpkit.audit(inversion, tests=["sturdiness", "likeness"], device="cpu").record
    assert list(named["tests"]) == ["sturdiness", "likeness"]


def test_a_preset_that_would_make_no_samples_is_refused() -> None:
    target = linear()
    inversion = interpkit.ImageInversion(target, interpkit.Recipe(device="cpu"), [], *images_of(target))
    with pytest.raises(UsageError, match=r"this audit uses the samples of the run: leave presets=\['vecmta'\] out"):
        interpkit.audit(inversion, tests=["patch"], presets=["vecmta"], device="cpu")
    with pytest.raises(UsageError, match="this audit uses the images of the reference"):
        quick(target, presets=["vecmat"])


# ---------------------------------------------------------------------------------- tests of others


class Wrong(Audit):
    """A test of another plugin that returns what its fault makes of a valid result."""

    name = "wrong"
    kind = "trigger"
    question = "Is it?"
    limits = "It sees nothing."
    screens = True
    fault: Callable[[Tested], Any]

    def test(self, case: AuditCase) -> Any:
        return type(self).fault(Tested(dict.fromkeys(case.classes, 0.0), dict.fromkeys(case.classes, 0.5)))


OF_2 = "'wrong' of the plugin 'mine' violates its interface contract: the p-value of class 2 is a Python float"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda found: replace(found, p_values={**found.p_values, 2: math.nan}), f"{OF_2} .*, not nan"),
        (lambda found: replace(found, p_values={**found.p_values, 2: 0.0}), f"{OF_2} above 0 .*, not 0.0"),
        (lambda found: replace(found, p_values={**found.p_values, 2: 1.2}), f"{OF_2} .* at most 1, not 1.2"),
        (lambda found: replace(found, p_values={**found.p_values, 2: torch.tensor(0.5)}), rf"{OF_2} .*tensor\(0.5"),
        (lambda found: replace(found, p_values={**found.p_values, 9: 0.5}), "of the classes to test, not class 9"),
        (lambda found: replace(found, p_values={}), "p-values or raises TooFew, not none"),
        (lambda found: replace(found, statistics={0: 1.0}), "the statistic of class 1 is .*, not None"),
        (lambda found: replace(found, statistics={**found.statistics, 0: math.inf}), "the statistic of class 0 .* inf"),
        (lambda found: replace(found, tensors={"patch.0": torch.zeros(2)}), r"named 'wrong\.\.\.', not patch\.0"),
        (lambda found: replace(found, pictures={0: [Strip("a", torch.zeros(2, 3))]}), r"the shape \(2, 1, 6, 6"),
        (lambda found: found.p_values, "returns a Tested, not dict"),
        (lambda found: 1 / 0, "the audit 'wrong' of the plugin 'mine' failed: ZeroDivisionError"),
    ],
)  # fmt: skip
def test_what_a_test_returns_is_checked(add_plugin: Callable[..., None], fault: Any, message: str) -> None:
    add_plugin(type("Faulty", (Wrong,), {"fault": staticmethod(fault), "__module__": __name__}))
    with pytest.raises(PluginError, match=message):
        interpkit.audit(linear(), tests=["wrong"], device="cpu")


# -------------------------------------------------------------------------------------- unusual data


def test_images_that_carry_the_trigger_are_left_out_and_named() -> None:
    target = linear(planted=True)
    images, labels = images_of(target, 200)
    images[:60].flatten(1)[:, PIXEL] = 1.0
    report = quick(target, reference=(images, labels))
    dropped = report.record["images"]["dropped"]
    rows = labels[:60] != LABEL
    assert dropped == {"count": int(rows.sum()), "of": 200, "answers": {"3": int(rows.sum())}}
    assert "100% of them to the class 3: look at them, they may carry a trigger" in report.record["notes"][0]
    assert [finding["class"] for finding in report.findings] == [LABEL]


def test_a_few_errors_of_the_classifier_raise_no_suspicion() -> None:
    images, labels = images_of(linear(), 200)
    labels[:6] = (labels[:6] + 1) % 5
    (note,) = quick(linear(), options={"patch.steps": 20}, reference=(images, labels)).record["notes"]
    assert note.startswith("6 of 200 real images were left out") and "trigger" not in note


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.full((20,), 9), "has the label 9; the classifier's are 0 to 4"),
        (torch.zeros(20, dtype=torch.long), "all 20 real images are of one class, 0: .* Add images of others"),
    ],
)
def test_a_reference_of_other_classes_or_of_one_is_refused(labels: Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        quick(linear(), reference=(torch.rand(20, *SHAPE), labels), on_test=lambda name: pytest.fail(f"made {name}"))


def test_a_reference_whose_labels_are_all_wrong_is_refused() -> None:
    images, labels = images_of(linear())
    with pytest.raises(UsageError, match="puts no image into the class"):
        quick(linear(), reference=(images, (labels + 1) % 5))


def test_training_images_that_no_test_uses_are_named(caplog: pytest.LogCaptureFixture) -> None:
    quick(
        linear(), tests=["patch"], options={"patch.steps": 20}, training=(torch.rand(9, 1, 6, 6), torch.arange(9) % 5)
    )
    assert "no test made here uses training images" in caplog.text


def test_reference_images_that_no_test_uses_are_named(caplog: pytest.LogCaptureFixture) -> None:
    few: dict[str, Any] = {"options": {"margin.steps": 20}, "tests": ["margin"]}
    quick(linear(), **few, reference=None)
    assert not caplog.text
    quick(linear(), **few)
    assert "no test made here uses reference images" in caplog.text


@pytest.mark.parametrize(
    ("named", "said"),
    [({"presets": ["vecmat"]}, r"presets=\['vecmat'\]"), ({"per_class": 12}, "per_class=12")],
    ids=["presets", "per_class"],
)
def test_what_makes_samples_is_refused_where_no_test_uses_any(named: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=f"no test made here uses samples: leave {said} out"):
        quick(linear(), tests=["margin"], options={"margin.steps": 20}, reference=None, **named)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"tests": ["patsh"]}, UsageError, r"there is no test 'patsh'\. Did you mean 'patch'\?"),
        ({"options": {"patch.step": 3}}, UsageError, "step"),
        ({"options": {"noise.steps": 3}}, UsageError, "no test 'noise' is made here"),
        ({"options": {"patch.steps": 0}}, UsageError, "steps"),
        ({"tests": ["memorized"], "options": {}}, UsageError, "needs training images: add training=DATA"),
        (
            {"training": images_of(linear(), 20), "reference": images_of(linear(), 20)},
            UsageError,
            "images of the reference data are among the training data",
        ),
    ],
)
def test_names_and_options_that_do_not_exist_are_refused(
    arguments: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        quick(linear(), **arguments)
