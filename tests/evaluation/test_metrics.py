"""Evaluation in the core: the figures of every run, the study, updating metrics.json, and refusals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

import interpkit
from interpkit import (
    Draw,
    ImageInversion,
    LabelledImages,
    Metric,
    ModelError,
    PluginError,
    Recipe,
    RunError,
    Samples,
    Study,
    Target,
    TooFew,
    UsageError,
    wrap,
)
from interpkit.evaluation import scoring
from interpkit.evaluation.metrics import every_run, measured
from interpkit.evaluation.scoring import accuracy, draw_samples, judge, measure, read_samples
from interpkit.evaluation.statistics import still_rising, wilson
from interpkit.evaluation.warnings import warnings
from interpkit.interfaces.samples import to_unit
from interpkit.plugins.registry import Registry
from interpkit.runtime.recorder import StepRecord

SHAPE = (1, 12, 12)
CPU = torch.device("cpu")


def samples_of(labels: list[int], images: Tensor | None = None, **changes: Any) -> Samples:
    """Return samples that the target classifies as asked, with full confidence."""
    n = len(labels)
    given: dict[str, Any] = {
        "images": torch.zeros(n, *SHAPE, dtype=torch.uint8) if images is None else images,
        "labels": torch.tensor(labels),
        "predicted": torch.tensor(labels),
        "confidence": torch.ones(n),
        "divergence": None,
        "generator": torch.zeros(n, dtype=torch.int64),
        "probabilities": None,
    }
    return Samples(**given | changes)


@pytest.fixture
def reference() -> tuple[Tensor, Tensor]:
    """Return 20 random images of each of three classes."""
    return torch.rand(60, *SHAPE, generator=torch.Generator().manual_seed(1)), torch.arange(60) % 3


class Says(Metric):
    """Returns the value of its option."""

    name = "says"

    class Options(interpkit.Options):
        """A number."""

        value: int = 1

    options: Options

    def measure(self, study: Study) -> Mapping[str, Any]:
        return {"says": {"value": self.options.value}, "per_class": {1: {"says": self.options.value}}}


# ------------------------------------------------------------------------------------- every run's own


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (8, 10), (10, 10), (1, 1000), (813, 1000)])
def test_intervals_are_wilson_score_intervals(hits: int, count: int) -> None:
    theirs = binomtest(hits, count).proportion_ci(method="wilson")
    assert wilson(hits, count) == pytest.approx([theirs.low, theirs.high], abs=1e-12)


def test_the_ends_of_an_interval_are_exact() -> None:
    assert wilson(0, 500)[0] == 0.0 and wilson(500, 500)[1] == 1.0


def test_accuracy_confidence_and_kl_are_measured_overall_and_per_class() -> None:
    samples = samples_of(
        [0, 0, 2, 2],
        predicted=torch.tensor([0, 1, 2, 2]),
        confidence=torch.tensor([0.5, 0.25, 1.0, 0.25]),
        divergence=torch.tensor([0.0, 2.0, 1.0, 3.0]),
    )
    metrics = measure(samples, ["a", "b", "c"])
    assert metrics == {
        "schema": 1,
        "inversion_accuracy": 0.75,
        "inversion_accuracy_interval": wilson(3, 4),
        "confidence": 0.5,
        "count": 4,
        "kl": 1.5,
        "per_class": [
            {
                "label": 0,
                "name": "a",
                "inversion_accuracy": 0.5,
                "inversion_accuracy_interval": wilson(1, 2),
                "confidence": 0.375,
                "count": 2,
                "kl": 1.0,
            },
            {
                "label": 2,
                "name": "c",
                "inversion_accuracy": 1.0,
                "inversion_accuracy_interval": wilson(2, 2),
                "confidence": 0.625,
                "count": 2,
                "kl": 2.0,
            },
        ],
    }
    assert "kl" not in measure(samples_of([0, 1]), ["a", "b"])


def test_the_divergence_is_kl_between_the_condition_and_the_softmax_of_the_stored_image() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    net[1].weight.data = torch.tensor([[0.0], [math.log(3)]])
    net[1].bias.data.zero_()
    target = wrap(net, (1, 1, 1))  # predicts (1, 3^x) / (1 + 3^x) for the brightness x
    images = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.501]).view(5, 1, 1, 1)
    wanted = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    labels = torch.tensor([0, 1, 1, 0, 0])
    inversion = ImageInversion(target, Recipe(), [], images, labels)
    samples = judge(inversion, Draw(images, labels, wanted, torch.arange(5)))
    assert samples.divergence is not None
    assert samples.divergence.tolist() == [
        pytest.approx(0.1438410, abs=1e-6),  # 0.5 ln 2 + 0.5 ln(2 / 3)
        pytest.approx(0, abs=1e-6),
        pytest.approx(0.6931472, abs=1e-6),  # ln 2
        pytest.approx(1.3862944, abs=1e-6),  # ln 4
        pytest.approx(math.log(1 + 3 ** (128 / 255)), abs=1e-6),  # in 8 bits 0.501 is 128 of 255
    ]
    assert samples.generator.tolist() == [0, 1, 2, 3, 4]
    assert samples.confidence.tolist() == pytest.approx([0.25, 0.75, 0.5, 0.25, 1 / (1 + 3 ** (128 / 255))])
    one_hot = draw_samples(inversion, per_class=2)
    assert one_hot.divergence is not None
    torch.testing.assert_close(one_hot.divergence, -one_hot.confidence.log())
    assert measure(samples, ["a", "b"])["kl"] == pytest.approx(samples.divergence.mean().item())


def test_stored_samples_are_read_with_their_original_scores(finished_run: Path, tiny_target: Target) -> None:
    read = read_samples(finished_run / "samples.safetensors", tiny_target, CPU)
    stored = safetensors.torch.load_file(finished_run / "samples.safetensors")
    assert torch.equal(read.images, stored["images"]) and torch.equal(read.labels, stored["labels"])
    torch.testing.assert_close(read.confidence, stored["confidence"])
    torch.testing.assert_close(read.probabilities, stored["probabilities"])
    assert torch.equal(read.predicted, stored["probabilities"].argmax(1))
    assert read.divergence is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": torch.tensor([0, 3])}, "labels 0 to 3.*has 3 classes"),
        ({"labels": torch.tensor([-1, 0])}, "labels -1 to 0"),
        ({"labels": torch.tensor([0])}, "not a file of samples"),
        ({"labels": torch.tensor(0)}, "not a file of samples"),
        ({"labels": torch.tensor([0.0, 1.0])}, "not a file of samples"),
        ({"images": torch.zeros(2, 1, 8, 8, dtype=torch.uint8)}, r"samples of shape \(1, 8, 8\).*takes \(1, 12, 12\)"),
        ({"images": torch.zeros(2, *SHAPE)}, "not a file of samples: images torch.float32"),
        ({"images": None}, "holds generator, labels"),
    ],
)
def test_a_file_of_other_samples_is_refused(
    tmp_path: Path, tiny_target: Target, change: dict[str, Tensor | None], words: str
) -> None:
    tensors = {
        "images": torch.zeros(2, *SHAPE, dtype=torch.uint8),
        "labels": torch.tensor([0, 1]),
        "generator": torch.tensor([0, 0]),
    } | change
    path = tmp_path / "samples.safetensors"
    safetensors.torch.save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    with pytest.raises(RunError, match=words):
        read_samples(path, tiny_target, CPU)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(RunError, match="not a complete safetensors file"):
        read_samples(path, tiny_target, CPU)


class Patchy(nn.Module):
    """Returns NaN for inputs whose first number is above 0.9, and its inputs otherwise."""

    def forward(self, x: Tensor) -> Tensor:
        return x.masked_fill(x[:, :1] > 0.9, torch.nan)


def test_images_whose_logits_are_nan_count_as_wrong_and_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    target = wrap(Patchy(), (2,), name="patchy")
    images, labels = torch.tensor([[0.5, 0.0], [1.0, 0.0], [1.0, 0.5], [0.0, 0.5]]), torch.tensor([0, 0, 1, 1])
    caplog.clear()
    assert accuracy(target, LabelledImages(images[[0, 3]], labels[[0, 3]])) == 1 and not caplog.messages
    assert accuracy(target, LabelledImages(images, labels)) == 0.5
    warning = "patchy returns NaN for 2 of 4 images, which counts as none of its classes"
    assert caplog.messages == [warning]
    Study(target, samples_of([0, 0, 1, 1], images)).response(target, "samples")
    assert caplog.messages == [warning] * 2


# ------------------------------------------------------------------------------------------- the study


def test_a_study_runs_each_evaluator_once_and_does_not_change_it(
    tiny_module: Callable[..., nn.Module], reference: tuple[Tensor, Tensor], module_state: Callable[..., Any]
) -> None:
    module = tiny_module(1)
    target, judge = wrap(tiny_module(0), SHAPE), wrap(module, SHAPE)
    calls: list[int] = []
    module.register_forward_hook(lambda _, given, __: calls.append(len(given[0])))
    images = torch.randint(0, 256, (300, *SHAPE), dtype=torch.uint8)
    study = Study(target, samples_of([0, 1, 2] * 100, images), LabelledImages(*reference), evaluators={"judge": judge})
    judge.train()
    before = module_state(judge)
    said = study.response(judge, "samples")
    assert said is study.response(judge, "samples")
    assert sum(calls) == 1 + 300 and max(calls) < 300  # its memory is observed with one image, once
    assert said is not study.response(judge, "reference")
    assert sum(calls) == 1 + 360
    with judge.frozen(), torch.no_grad():
        whole = judge.respond(images / 255)
    torch.testing.assert_close(said.logits, whole.logits)
    torch.testing.assert_close(said.features, whole.penultimate)
    assert not said.features.requires_grad
    assert module_state(judge) == before
    assert list(study.judges) == ["judge"]
    assert list(Study(target, study.samples).judges) == [target.name]


def test_vectors_are_converted_into_each_evaluators_own_range() -> None:
    linear = nn.Linear(2, 2)
    target = wrap(linear, (2,), input_range=[(0.0, 10.0), (-1.0, 1.0)])
    judge = wrap(linear, (2,), input_range=[(0.0, 1.0), (0.0, 4.0)])
    vectors = torch.tensor([[5.0, 0.5], [10.0, -1.0]])
    study = Study(target, samples_of([0, 1], vectors), LabelledImages(vectors, torch.tensor([0, 1])))
    torch.testing.assert_close(study.images, torch.tensor([[0.5, 0.75], [1.0, 0.0]]))
    torch.testing.assert_close(study.unit_images("reference"), study.images)
    for which in ("samples", "reference"):  # both take the same numbers, in their own units
        torch.testing.assert_close(study.response(target, which).logits, linear(vectors).detach())
        torch.testing.assert_close(study.response(judge, which).logits, linear(vectors).detach())


def test_a_study_returns_the_rows_of_a_class(tiny_target: Target) -> None:
    study = Study(tiny_target, samples_of([2, 0, 2, 2]))
    assert study.classes == [0, 2]
    assert study.rows("samples", 2).tolist() == [0, 2, 3]
    assert study.rows("samples", 2, 2).tolist() == [0, 2]
    assert to_unit(torch.tensor([[[[255, 51]]]], dtype=torch.uint8), tiny_target).tolist() == [
        [[[1.0, pytest.approx(0.2)]]]
    ]


# --------------------------------------------------------------------------------------------- merging


class Draws(Metric):
    name = "draws"

    def measure(self, study: Study) -> Mapping[str, Any]:
        return {"draws": torch.rand(2, generator=study.rng).tolist()}


class Short(Metric):
    name = "short"

    def measure(self, study: Study) -> Mapping[str, Any]:
        raise TooFew("it takes 7 samples.")


class Broken(Metric):
    name = "broken"

    def measure(self, study: Study) -> Mapping[str, Any]:
        raise ValueError("oh dear")


class Infinite(Metric):
    name = "infinite"

    def measure(self, study: Study) -> Mapping[str, Any]:
        return {"infinite": math.nan}


class Unbuilt(Says):
    name = "unbuilt"

    def __init__(self, options: Any = None) -> None:
        raise ValueError("oh dear")


def giving(fragment: Any) -> Metric:
    """Return a metric named ``gives`` that returns ``fragment``."""
    return type("Gives", (Metric,), {"name": "gives", "measure": lambda self, study: fragment})()


def test_new_figures_replace_those_in_metrics_json(tiny_target: Target) -> None:
    old = {
        "kl": 0.5,
        "count": 9,
        "other": {"x": 1},
        "says": {"value": 9, "gone": 1},
        "per_class": [{"label": 1, "kl": 0.25, "says": 9}, {"label": 2, "kl": 0.75}],
        "left_out": {"says": "then", "says.part": "then", "other": "still"},
    }
    found = measured(Study(tiny_target, samples_of([1, 0])), [Says(Says.Options(value=3))], old)
    assert (found["kl"], found["count"], found["other"]) == (0.5, 2, {"x": 1})
    assert found["says"] == {"value": 3}
    assert [(row["label"], row.get("kl"), row.get("says")) for row in found["per_class"]] == [
        (0, None, None),
        (1, 0.25, 3),
    ]
    assert found["left_out"] == {"other": "still"}


class Judges(Says):
    name = "judges"
    needs = ("reference",)


class Remembers(Says):
    name = "remembers"
    needs = ("reference", "training")


@pytest.mark.parametrize(
    ("sources", "stale"),
    [
        ({"reference": "a.npz"}, set()),
        ({"reference": "b.npz"}, {"judges", "remembers"}),
        ({"reference": "a.npz", "training": "d.npz"}, {"remembers"}),
        ({"training": "c.npz", "training.sha256": "changed"}, {"remembers"}),
        ({"reference": "a.npz", "reference.sha256": "not known before"}, set()),
    ],
)
def test_figures_on_other_data_than_the_present_are_dropped(
    tiny_target: Target, add_plugin: Callable[..., None], sources: dict[str, str], stale: set[str]
) -> None:
    add_plugin(Says, Judges, Remembers)
    old = {
        "says": 1,
        "judges": 1,
        "remembers": 1,
        "per_class": [{"label": 1, "remembers": 1}],
        "measured_on": {"reference": "a.npz", "training": "c.npz", "training.sha256": "as before"},
    }
    found = measured(Study(tiny_target, samples_of([1, 0])), [Draws()], old, sources)
    assert {"says", "judges", "remembers"} - found.keys() == stale == found.get("left_out", {}).keys()
    assert any("remembers" in row for row in found["per_class"]) is ("remembers" not in stale)


def test_what_was_measured_before_stays_recorded(run_copy: Path, tmp_path: Path, reference: Any) -> None:
    images, labels = reference
    for name in ("a", "b"):
        np.savez(tmp_path / f"{name}.npz", images=images[:, 0].numpy(), labels=labels.numpy())
    one, two = str(tmp_path / "a.npz"), str(tmp_path / "b.npz")
    settings = {"reference.k": 3, "robustness.samples": 20, "robustness.steps": 2}
    interpkit.evaluate(run_copy, reference=one, options=settings)
    again = interpkit.evaluate(run_copy, metrics=["robustness"], options={"robustness.samples": 21})
    assert again["measured_on"] == {
        "reference": one,
        "reference.sha256": LabelledImages(images, labels).sha256()[:16],
        "options": {"reference.k": 3, "robustness.samples": 21},
    }
    other = interpkit.evaluate(run_copy, reference=two, metrics=["calibration"])
    assert other["measured_on"]["reference"] == two and "reference" not in other
    assert "other data" in other["left_out"]["reference"] and other["robustness"]["count"] == 21


def test_figures_on_data_that_changed_under_the_same_name_are_dropped(run_copy: Path, reference: Any) -> None:
    images, labels = reference
    assert "reference" in interpkit.evaluate(run_copy, reference=reference, metrics=["reference"])
    assert "reference" in interpkit.evaluate(run_copy, reference=reference, metrics=["calibration"])
    other = interpkit.evaluate(run_copy, reference=(1 - images, labels), metrics=["calibration"])
    assert "reference" not in other and "other data" in other["left_out"]["reference"]


def test_a_metric_that_fails_is_listed_with_the_reason_and_others_are_measured(
    tiny_target: Target, caplog: pytest.LogCaptureFixture
) -> None:
    old = {"short": 0.7, "per_class": []}
    found = measured(Study(tiny_target, samples_of([0, 1])), [Short(), Broken(), Infinite(), Says()], old)
    assert found["left_out"]["short"] == "it takes 7 samples."
    assert "oh dear" in found["left_out"]["broken"] and "ValueError" in found["left_out"]["broken"]
    assert found["left_out"]["infinite"].startswith("it failed")
    assert found["says"] == {"value": 1}
    assert not {"short", "broken", "infinite"} & set(found)
    assert [word in caplog.text for word in ("short", "broken", "infinite")] == [False, True, True]


@pytest.mark.parametrize(
    ("fragment", "words"),
    [
        ([1, 2], "TypeError"),
        ({"gives": 1, "schema": 2}, "it returns schema, which every run already has"),
        ({"gives": 1, "per_class": {7: {"gives": 1}}}, "KeyError: 7"),
        ({"gives": 1, "per_class": [0.5, 0.5]}, "AttributeError"),
        ({"gives": 1, "per_class": {0: 0.5}}, "TypeError"),
        ({"gives": 1, "per_class": {0: {"confidence": 0.1}}}, "it returns confidence, which every run already has"),
        ({"gives": 1, "per_class": {0: {"label": 7, "name": "x"}}}, "it returns label, name, which every run"),
        ({"gives": 1, "doubts": {}}, "it returns doubts, which every run already has"),
    ],
    ids=["no mapping", "another's entry", "no class", "no labels", "no fragment", "column", "labels", "doubts"],
)
def test_a_metric_with_an_invalid_result_is_left_out(tiny_target: Target, fragment: Any, words: str) -> None:
    found = measured(Study(tiny_target, samples_of([0, 1])), [giving(fragment), Says()])
    assert words in found["left_out"]["gives"] and "gives" not in found
    assert (found["schema"], found["says"], len(found["per_class"])) == (1, {"value": 1}, 2)


def test_metrics_of_one_name_are_left_out_unless_one_of_them_is_chosen(
    run_copy: Path, add_plugin: Callable[..., None]
) -> None:
    for plugin in ("one", "two"):
        own = {"name": "shade", "measure": lambda self, _: {"shade": self.options.value}}
        add_plugin(type("Shade", (Says,), own), plugin=plugin)
    for chosen in ([], ["one:shade", "two:shade"]):
        found = interpkit.evaluate(run_copy, metrics=chosen)
        wanted = "several metrics have the entry 'shade': choose one by metrics=['one:shade'] or metrics=['two:shade']"
        assert found["left_out"]["shade"] == wanted and "shade" not in found
    found = interpkit.evaluate(run_copy, metrics=["two:shade"], options={"two:shade.value": 2})
    assert found["shade"] == 2 and "left_out" not in found


@pytest.mark.parametrize("attributes", [{"name": "doubts"}, {"name": "mine", "key": "empty"}])
def test_a_metric_cannot_have_an_entry_that_is_interpkits_own(attributes: dict[str, str]) -> None:
    with pytest.raises(PluginError, match=r"a metric cannot have the entry '(doubts|empty)'"):
        Registry().add(type("Made", (Says,), attributes), "mine")


class Changes(Metric):
    """Changes in place what ``what`` names."""

    name = "changes"
    what = "images"

    def measure(self, study: Study) -> Mapping[str, Any]:
        {"images": study.images, "reference": study.unit_images("reference")}[self.what].mul_(0.5)
        raise TooFew("it says nothing of it")


class Level(Metric):
    """Returns the mean of all images."""

    name = "level"

    def measure(self, study: Study) -> Mapping[str, Any]:
        return {"level": study.images.mean().item()}


def test_a_metric_that_changes_images_in_place_is_left_out_and_spoils_no_other(tiny_target: Target) -> None:
    images = torch.full((2, *SHAPE), 255, dtype=torch.uint8)
    data = LabelledImages(torch.ones(2, *SHAPE), torch.tensor([0, 1]))
    found = measured(Study(tiny_target, samples_of([0, 1], images), data), [Changes(), Level()])
    assert found["level"] == 1.0 and "changed study.images in place" in found["left_out"]["changes"]
    changes = type("Other", (Changes,), {"what": "reference"})
    found = measured(Study(tiny_target, samples_of([0, 1], images), data), [changes(), Level()])
    assert "level" not in found  # as the reference itself is another now
    assert "changed the images of the reference in place" in found["left_out"]["level"]


def test_a_metric_that_cannot_be_created_does_not_stop_others(
    run_copy: Path, add_plugin: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    add_plugin(Unbuilt, Says)
    found = interpkit.evaluate(run_copy, metrics=["unbuilt", "says"])
    assert found["says"] == {"value": 1}
    assert "the metric 'unbuilt' of the plugin 'mine' failed and is skipped: ValueError: oh dear (" in caplog.text


def test_random_numbers_of_a_metric_do_not_depend_on_others(tiny_target: Target) -> None:
    samples = samples_of([0, 1])
    alone = measured(Study(tiny_target, samples, seed=4), [Draws()])
    after = measured(Study(tiny_target, samples, seed=4), [Draws(), Says(), Draws()])
    other = measured(Study(tiny_target, samples, seed=5), [Draws()])
    assert alone["draws"] == after["draws"] != other["draws"]


def test_a_run_ends_with_the_quick_metrics_of_every_plugin(
    tiny_target: Target, add_plugin: Callable[..., None]
) -> None:
    calls: list[str] = []

    class Quick(Metric):
        name = "quick"
        every_run = True

        def measure(self, study: Study) -> Mapping[str, Any]:
            calls.append(self.name)
            return {}

    class Slow(Quick):
        name = "slow"
        every_run = False

    add_plugin(Quick, Slow)
    every_run(tiny_target, samples_of([0] * 20), seed=0, device=CPU)
    assert calls == ["quick"]


# ------------------------------------------------------------------------------------------- evaluate


def test_a_run_is_evaluated_and_its_metrics_json_written(
    run_copy: Path, tmp_path: Path, make_model: Callable[..., Path], reference: tuple[Tensor, Tensor]
) -> None:
    before = json.loads((run_copy / "metrics.json").read_text())
    found = interpkit.evaluate(
        run_copy,
        evaluators=[make_model(tmp_path / "judge.safetensors", seed=5)],
        reference=reference,
        training=LabelledImages(1 - reference[0], reference[1]),
        options={"robustness.samples": 20, "robustness.steps": 2},
    )
    assert found == json.loads((run_copy / "metrics.json").read_text())
    assert {"diversity", "evaluators", "reference", "memorisation", "robustness"} <= set(found)
    assert found["evaluators"][0]["name"] == "judge"
    assert found["robustness"]["count"] == 20
    for key in ("kl", "confidence", "inversion_accuracy", "count"):
        assert found[key] == pytest.approx(before[key])
    assert [row["kl"] for row in found["per_class"]] == [row["kl"] for row in before["per_class"]]
    assert all("agreement" in row["evaluators"][0] for row in found["per_class"])


def test_an_inversion_in_memory_is_evaluated_like_its_run(
    finished_run: Path, run_copy: Path, tiny_target: Target
) -> None:
    inversion = interpkit.load_inversion(finished_run)
    ours = interpkit.evaluate(inversion, metrics=["diversity"])
    theirs = interpkit.evaluate(run_copy, metrics=["diversity"], target=tiny_target)
    assert ours["diversity"] == pytest.approx(theirs["diversity"])
    assert "kl" in ours and "robustness" not in ours


def test_only_named_metrics_are_measured_with_their_options(run_copy: Path, add_plugin: Callable[..., None]) -> None:
    add_plugin(Says)
    found = interpkit.evaluate(run_copy, metrics=["says"], options={"says.value": 5})
    assert found["says"] == {"value": 5} and "robustness" not in found
    with pytest.raises(UsageError, match=r"no metric 'say' is measured here. Did you mean 'says'"):
        interpkit.evaluate(run_copy, metrics=["says"], options={"say.value": 5})
    with pytest.raises(UsageError, match=r"has no option 'valu'.*Did you mean 'value'"):
        interpkit.evaluate(run_copy, metrics=["says"], options={"says.valu": 5})
    with pytest.raises(UsageError, match=r"options are named METRIC.OPTION, not 'value'"):
        interpkit.evaluate(run_copy, metrics=["says"], options={"value": 5})
    with pytest.raises(UsageError, match=r"there is no metric 'sayz'.*Did you mean 'says'"):
        interpkit.evaluate(run_copy, metrics=["sayz"])


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("reference", "needs reference: add reference=DATA"),
        ("agreement", r"needs evaluator: add evaluators=\[MODEL\]"),
        ("memorisation", "training=DATA and reference=DATA"),
    ],
)
def test_a_metric_with_unmet_needs_says_what_to_add(run_copy: Path, metric: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        interpkit.evaluate(run_copy, metrics=[metric])


def test_training_images_need_reference_images(run_copy: Path, reference: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(UsageError, match="held-out ones: add reference=DATA"):
        interpkit.evaluate(run_copy, training=reference)


def test_training_images_are_of_the_train_split_and_not_those_of_the_reference(run_copy: Path, tmp_path: Path) -> None:
    images, labels = torch.rand(2, 30, *SHAPE).numpy(), np.arange(30) % 3
    both = tmp_path / "both.npz"
    np.savez(both, x_train=images[0], y_train=labels, x_test=images[1], y_test=labels)
    found = interpkit.evaluate(run_copy, training=both, reference=both, metrics=["memorisation"])
    assert found["measured_on"]["training.sha256"] != found["measured_on"]["reference.sha256"]
    with pytest.raises(UsageError, match="30 of the 30 different images of the reference data are among the training"):
        interpkit.evaluate(run_copy, training=f"{both}:test", reference=both)


def test_the_most_probable_classes_are_in_the_order_of_the_logits_also_where_probabilities_are_equal() -> None:
    net = nn.Linear(4, 8)
    net.weight.data.zero_()
    net.bias.data = torch.tensor([-200.0, -190, -150, -300, 100, -120, -110, -400])
    for output in ("logits", "sigmoid_logits"):
        target = interpkit.wrap(net, input_shape=(4,), output=output)
        rows = scoring.top_classes(target, torch.rand(1, 4), 4)[0]
        assert [row["label"] for row in rows] == [4, 6, 5, 2]
        assert [row["probability"] for row in rows] == [1, 0, 0, 0]


def test_evaluators_of_other_classes_or_images_are_refused(
    run_copy: Path, tmp_path: Path, tiny_model: Path, make_model: Callable[..., Path], tiny_module: Any
) -> None:
    numbered = wrap(tiny_module(1), SHAPE, name="numbered", class_names=["0", "1", "2"])
    assert interpkit.evaluate(run_copy, evaluators=[numbered], metrics=["agreement"])[
        "evaluators"
    ]  # names are not known
    unnamed = wrap(nn.Sequential(nn.Flatten(), nn.Linear(144, 4)), SHAPE, name="unnamed")
    with pytest.raises(UsageError, match=r"unnamed has 4 classes, .*; tiny has 3, .*pack the evaluator with"):
        interpkit.evaluate(run_copy, evaluators=[unnamed])
    for shape, words in (((3, 12, 12), "not converted"), ((144,), "Pack it for images")):
        other = wrap(nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 3)), shape, name="other")
        with pytest.raises(UsageError, match=rf"other takes inputs of .*takes \(1, 12, 12\).*{words}"):
            interpkit.evaluate(run_copy, evaluators=[other])
    small = wrap(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), (1, 8, 8), name="small")
    with pytest.raises(UsageError, match="evaluators small and small are identical"):
        interpkit.evaluate(run_copy, evaluators=[small, small])
    with pytest.raises(UsageError, match="the target itself"):
        interpkit.evaluate(run_copy, evaluators=[tiny_model])
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(tiny_model.read_bytes())
    with pytest.raises(UsageError, match="copy is the target itself"):
        interpkit.evaluate(run_copy, evaluators=[copy])
    one, same = (make_model(tmp_path / f"{name}.safetensors", seed=4) for name in ("one", "same"))
    with pytest.raises(UsageError, match="evaluators one and same are identical"):
        interpkit.evaluate(run_copy, evaluators=[one, same])
    strange = wrap(tiny_module(1), SHAPE, name="strange", class_names=["cat", "dog", "cow"])
    with pytest.raises(UsageError, match="cat, dog, cow"):
        interpkit.evaluate(run_copy, evaluators=[strange])
    with pytest.raises(ModelError, match="there is no file"):
        interpkit.evaluate(run_copy, evaluators=[tmp_path / "none.safetensors"])


class Columns(nn.Module):
    """A classifier without weights: its logits are three pixels."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, self.first : self.first + 3]


def test_classifiers_without_weights_are_distinguished_by_their_outputs(run_copy: Path) -> None:
    names = [f"class {label}" for label in range(3)]
    one, other, same = (wrap(Columns(first), SHAPE, name="columns", class_names=names) for first in (0, 3, 0))
    found = interpkit.evaluate(run_copy, evaluators=[one, other], metrics=["agreement"])
    assert len(found["evaluators"]) == 2
    with pytest.raises(UsageError, match="are identical"):
        interpkit.evaluate(run_copy, evaluators=[one, same], metrics=["agreement"])


def test_two_evaluators_of_the_same_name_are_numbered(run_copy: Path, tiny_module: Callable[..., nn.Module]) -> None:
    judges = [wrap(tiny_module(seed), SHAPE, name="judge") for seed in (1, 2)]
    found = interpkit.evaluate(run_copy, evaluators=judges, metrics=["agreement"])
    assert [row["name"] for row in found["evaluators"]] == ["judge", "judge-2"]


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]), r"takes images of \(1, 12, 12\)"),
        (torch.zeros(2, 3, 12, 12), torch.tensor([0, 1]), r"\(2, 3, 12, 12\) images"),
        (torch.zeros(2, *SHAPE), torch.tensor([0, 3]), "the label 3; the classifier's are 0 to 2"),
        (torch.zeros(2, *SHAPE), torch.tensor([0]), "each with a label"),
        (torch.zeros(0, *SHAPE), torch.tensor([]), "each with a label"),
        (torch.full((2, *SHAPE), 200.0), torch.tensor([0, 1]), "from 200 to 200: pass uint8"),
        (torch.full((2, *SHAPE), -0.5), torch.tensor([0, 1]), "from -0.5 to -0.5"),
        (torch.full((2, *SHAPE), torch.nan), torch.tensor([0, 1]), "from nan to nan"),
    ],
)
def test_reference_images_that_do_not_fit_are_refused(
    run_copy: Path, images: Tensor, labels: Tensor, words: str
) -> None:
    before = (run_copy / "metrics.json").read_bytes()
    with pytest.raises(UsageError, match=words):
        interpkit.evaluate(run_copy, reference=(images, labels))
    assert (run_copy / "metrics.json").read_bytes() == before


def test_8_bit_reference_images_are_equivalent_to_floats(run_copy: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (60, 12, 12), dtype=np.uint8), np.arange(60) % 3
    np.savez(tmp_path / "data.npz", x_test=images, y_test=labels)
    by_file = interpkit.evaluate(run_copy, reference=tmp_path / "data.npz", metrics=["reference"])
    bytes_ = torch.from_numpy(images)[:, None]
    by_hand = interpkit.evaluate(run_copy, reference=(bytes_, torch.from_numpy(labels)), metrics=["reference"])
    assert by_file["reference"] == by_hand["reference"]


# ------------------------------------------------------------------------------------------- warnings


def row(name: str, **figures: Any) -> dict[str, Any]:
    return {"name": name, **figures}


def test_good_metrics_cause_no_warnings() -> None:
    varied = row("a", diversity={"vendi_pooled": 2.0, "duplicates": 0.1}, reference={"excess_vendi": 0.8})
    judge = {"name": "judge", "agreement": 0.9}
    assert warnings({"inversion_accuracy": 1.0, "per_class": [varied], "evaluators": [judge]}) == []
    assert warnings({}) == []


@pytest.mark.parametrize(
    "figures", [{"vendi_pooled": 1.1, "duplicates": 0.0}, {"vendi_pooled": 2.0, "duplicates": 0.9}]
)
def test_a_class_of_identical_pictures_is_named(figures: dict[str, float]) -> None:
    varied = row("cat", diversity={"vendi_pooled": 2.0, "duplicates": 0.0})
    (told,) = warnings({"per_class": [varied, row("dog", diversity=figures), row("cow")]})
    assert "1 of 2 classes" in told and "(dog)" in told


def test_the_warning_prefers_variety_relative_to_real_images() -> None:
    one = {"diversity": {"vendi_pooled": 1.1}, "reference": {"excess_vendi": 0.5}}
    assert warnings({"per_class": [row("a", **one)]}) == []
    two = {"diversity": {"vendi_pooled": 3.0}, "reference": {"excess_vendi": 0.1}}
    (told,) = warnings({"per_class": [row("a", **one), row("b", **two)]})
    assert "1 of 2" in told and "(b)" in told and "0.30" in told


def test_low_agreement_causes_a_warning_that_is_stronger_if_the_target_is_confident() -> None:
    judge = {"name": "judge", "agreement": 0.3, "reference_accuracy": 0.97}
    (unsure,) = warnings({"inversion_accuracy": 0.4, "evaluators": [judge]})
    (fooled,) = warnings({"inversion_accuracy": 0.98, "evaluators": [judge]})
    assert "judge agrees on only 30%" in unsure and "97%" in unsure and "fooled" not in unsure
    assert "98%" in fooled and "fooled" in fooled


# ----------------------------------------------------------------------------------- more steps needed


def history_of(accuracies: list[float]) -> list[StepRecord]:
    steps = 10 * len(accuracies)
    return [StepRecord(10 * n, steps, 1.0, 1.0, {}, accuracy) for n, accuracy in enumerate(accuracies, 1)]


def test_an_accuracy_that_still_rises_is_detected() -> None:
    before, last = still_rising(history_of([n / 40 for n in range(30)]), batch_size=128) or (0, 0)
    assert before == pytest.approx(20.5 / 40) and last == pytest.approx(26.5 / 40)


@pytest.mark.parametrize(
    "accuracies",
    [
        [],
        [0.1],
        [0.1, 0.5],
        [min(1.0, n / 20) for n in range(30)],
        [0.9 + n / 300 for n in range(30)],
        [min(0.7, n / 15) for n in range(30)],
        [0.7 - n / 100 for n in range(30)],
        [min(0.7, n / 15) + n / 2000 for n in range(30)],
    ],
    ids=["none", "one", "short", "perfect", "good", "level", "falling", "creeping"],
)
def test_a_converged_good_or_very_short_training_is_not_reported_as_rising(accuracies: list[float]) -> None:
    assert still_rising(history_of(accuracies), batch_size=128) is None


def test_random_fluctuation_is_not_reported_as_rising() -> None:
    rng = np.random.default_rng(0)
    for batch_size in (8, 128):
        runs = [history_of(list(rng.binomial(10 * batch_size, 0.6, 30) / (10 * batch_size))) for _ in range(1000)]
        assert sum(still_rising(run, batch_size) is not None for run in runs) <= 5


def test_a_single_name_is_not_taken_for_a_list_of_letters(run_copy: Path) -> None:
    with pytest.raises(UsageError, match=r"metrics is a list of names: metrics=\['diversity'\]"):
        interpkit.evaluate(run_copy, metrics="diversity")
