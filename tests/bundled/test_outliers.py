"""Calibration and outlier detection: hand-worked figures, scikit-learn's, and what is left out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from interpkit_metrics.outliers import Calibration, Outliers, separation, uncertainty
from torch import Tensor, nn

import interpkit
from interpkit import LabelledImages, Study, Target, TooFew, wrap

sklearn_metrics = pytest.importorskip("sklearn.metrics")


def study(target: Target, images: Tensor, labels: Tensor, outliers: Tensor | None = None) -> Study:
    inversion = interpkit.invert(target, ["pixels"], steps=1, per_class=1, losses={"tv": 0})
    from interpkit.evaluation.scoring import draw_samples

    samples = draw_samples(inversion, per_class=1)
    return Study(target, samples, LabelledImages(images, labels), outliers=outliers)


@pytest.fixture
def logits_as_inputs() -> Target:
    """A target whose logits are ten times its inputs in [0, 1], minus five."""
    return wrap(nn.Identity(), input_shape=(3,), input_range=(-5.0, 5.0))


# ------------------------------------------------------------------------------------ calibration


def test_calibration_is_the_mean_gap_between_confidence_and_accuracy(logits_as_inputs: Target) -> None:
    sure, unsure = torch.tensor([5.0, -5.0, -5.0]), torch.tensor([0.0, 0.0, -5.0])
    images = torch.stack([sure] * 20 + [unsure] * 20)
    labels = torch.tensor([0] * 15 + [1] * 5 + [0] * 20)  # of the sure ones, a quarter is wrong
    found = Calibration().measure(study(logits_as_inputs, images, labels))["calibration"]
    p, q = (row.double().softmax(0)[0].item() for row in (sure, unsure))
    assert found["ece"] == pytest.approx((abs(p - 0.75) + abs(q - 1)) / 2, abs=1e-6)
    assert (found["accuracy"], found["confidence"]) == pytest.approx(((0.75 + 1) / 2, (p + q) / 2), abs=1e-6)
    wrong = -sure.double().log_softmax(0)[1].item()
    assert found["nll"] == pytest.approx((-15 * math.log(p) + 5 * wrong - 20 * math.log(q)) / 40, rel=1e-6)
    assert found["bins"] == [[20, pytest.approx(q), 1.0], [20, pytest.approx(p), 0.75]]
    (section,) = Calibration.sections({"calibration": found})
    assert section.rows == [(20, round(q, 3), 1.0), (20, round(p, 3), 0.75)]
    assert "On 40 real images" in section.text and "images like these alone" in section.text
    assert Calibration.sections({}) == ()


def test_a_perfectly_calibrated_target_has_no_error(logits_as_inputs: Target) -> None:
    images = torch.full((40, 3), -5.0)
    images[:, 0], images[:, 1] = math.log(3) - 3, -3.0  # 3 to 1
    labels = torch.tensor([0] * 30 + [1] * 10)
    assert Calibration().measure(study(logits_as_inputs, images, labels))["calibration"]["ece"] < 0.08


def test_calibration_of_few_images_and_of_independent_labels_is_left_out(logits_as_inputs: Target) -> None:
    with pytest.raises(TooFew, match="at least 20 images in the reference, which has 4"):
        Calibration().measure(study(logits_as_inputs, torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)))
    labels = wrap(nn.Identity(), input_shape=(3,), output="sigmoid_logits")
    with pytest.raises(TooFew, match="classes that exclude each other"):
        Calibration().measure(study(labels, torch.zeros(30, 3), torch.zeros(30, dtype=torch.int64)))


# ------------------------------------------------------------------------------------ outliers


@given(data=st.data())
def test_separation_equals_that_of_scikit_learn(data: st.DataObject) -> None:
    numbers = st.lists(st.integers(0, 6), min_size=1, max_size=30)
    familiar, strange = (torch.tensor(data.draw(numbers), dtype=torch.float64) for _ in range(2))
    found = separation(familiar, strange)
    truth = np.r_[np.zeros(len(familiar)), np.ones(len(strange))]
    scores = -torch.cat([familiar, strange]).numpy()
    assert found["auroc"] == pytest.approx(sklearn_metrics.roc_auc_score(truth, scores))
    assert found["aupr"] == pytest.approx(sklearn_metrics.average_precision_score(truth, scores))
    assert found["rejected"] == pytest.approx(1 - found["fpr_at_95"])


def test_the_threshold_accepts_95_percent_of_the_reference() -> None:
    familiar, strange = torch.arange(100.0), torch.tensor([4.0, 5.0, 200.0, -1.0])
    assert separation(familiar, strange)["fpr_at_95"] == 0.5  # 5 and 200 are at 5, the threshold, or above


def test_uncertainty_is_1_for_equal_probabilities_and_0_for_a_single_class() -> None:
    p = torch.tensor([[0.25] * 4, [0.0, 1.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]], dtype=torch.float64)
    assert uncertainty(p).tolist() == pytest.approx([1.0, 0.0, 1 - (2 * 0.0625 + 2 * 0.0625) / 0.75])


def test_outliers_with_flat_answers_are_told_apart_and_sure_ones_are_not(logits_as_inputs: Target) -> None:
    real = torch.tensor([[5.0, -5.0, -5.0]]).repeat(30, 1) + 0.01 * torch.arange(30)[:, None] * torch.tensor([-1, 0, 0])
    labels = torch.zeros(30, dtype=torch.int64)
    flat, same = torch.full((25, 3), 0.5), logits_as_inputs.to_unit(real)
    apart = Outliers().measure(study(logits_as_inputs, real, labels, flat))["ood"]
    assert apart["count"] == 25
    assert [apart[score]["auroc"] for score in ("probability", "energy", "certainty")] == [1.0, 1.0, 1.0]
    alike = Outliers().measure(study(logits_as_inputs, real, labels, same))
    assert alike["ood"]["probability"]["auroc"] == pytest.approx(0.5)
    assert Outliers.warnings(alike) and not Outliers.warnings({"ood": apart})


def test_a_garbage_class_is_a_score_of_its_own() -> None:
    target = wrap(nn.Identity(), input_shape=(3,), input_range=(-5.0, 5.0), class_names=["a", "b", "Garbage"])
    real = torch.tensor([[5.0, -5.0, -5.0]]).repeat(20, 1)
    strange = target.to_unit(torch.tensor([[-5.0, -5.0, 5.0], [5.0, -5.0, -5.0]]).repeat(10, 1))
    found = Outliers().measure(study(target, real, torch.zeros(20, dtype=torch.int64), strange))["ood"]
    assert (found["into_garbage"], found["reference_into_garbage"]) == (0.5, 0.0)
    scores = ("garbage", "probability", "energy", "certainty")
    assert [found[score]["auroc"] for score in scores] == [0.75] * 4  # half of them are like the reference


@pytest.mark.parametrize(
    ("module", "output", "left"),
    [
        (nn.Softmax(1), "probs", "energy"),
        (nn.LogSoftmax(1), "log_probs", "energy"),
        (nn.Identity(), "sigmoid_logits", "certainty"),
    ],
)
def test_a_score_that_says_nothing_about_the_output_is_left_out(module: nn.Module, output: Any, left: str) -> None:
    target = wrap(module, input_shape=(3,), output=output)
    images = torch.rand(40, 3, generator=torch.Generator().manual_seed(0))
    some = study(target, images, torch.zeros(40).long(), images.flip(0))
    assert {"probability", "energy", "certainty"} - Outliers().measure(some)["ood"].keys() == {left}
    assert some.left_out.keys() == {f"ood.{left}"}


def test_the_report_has_a_table_of_the_scores() -> None:
    figures = {"auroc": 0.91234, "aupr": 0.8, "fpr_at_95": 0.25, "rejected": 0.75}
    own = {"count": 40, "energy": figures, "into_garbage": 0.5, "reference_into_garbage": 0.01}
    (section,) = Outliers.sections({"ood": own})
    assert section.rows == [("energy", 0.912, 0.8, 0.25, 0.75)]
    assert "40 outliers" in section.text and "hold for these outliers alone" in section.text
    assert "50.0% of the outliers and 1.0% of the real images" in section.text
    assert Outliers.sections({}) == ()


def test_few_outliers_are_left_out(logits_as_inputs: Target) -> None:
    with pytest.raises(TooFew, match="at least 20 images on both sides; there are 30 and 3"):
        Outliers().measure(study(logits_as_inputs, torch.zeros(30, 3), torch.zeros(30).long(), torch.zeros(3, 3)))


def test_logits_that_are_not_finite_leave_the_outliers_out_with_their_number() -> None:
    class Patchy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.masked_fill(x[:, :1] > 0.9, torch.nan)

    target = wrap(Patchy(), input_shape=(3,))
    real, strange = torch.full((30, 3), 0.5), torch.full((25, 3), 0.2)
    real[:1], strange[:4] = 1.0, 1.0
    with pytest.raises(TooFew, match="the logits of 1 real images and 4 outliers are not finite"):
        Outliers().measure(study(target, real, torch.zeros(30).long(), strange))
    inversion = interpkit.invert(target, ["pixels"], steps=1, per_class=1, losses={"tv": 0})
    known = real, torch.zeros(30).long()
    metrics = interpkit.evaluate(inversion, reference=known, ood=strange, metrics=["ood"])
    assert "ood" not in metrics and "4 outliers are not finite" in metrics["left_out"]["ood"]


def test_evaluate_resizes_outliers_of_another_size(run_copy: Path, tmp_path: Path) -> None:
    run = run_copy
    target = interpkit.load_inversion(run).target
    rng, shape = np.random.default_rng(0), target.input_shape
    np.savez(tmp_path / "real.npz", images=rng.random((30, *shape), "float32"), labels=np.arange(30) % 3)
    np.savez(tmp_path / "strange.npz", images=rng.integers(0, 255, (24, 40, 40, 3), "uint8"))
    found = interpkit.evaluate(run, reference=tmp_path / "real.npz", ood=tmp_path / "strange.npz")
    assert found["ood"]["count"] == 24 and found["measured_on"]["ood"].endswith("strange.npz")
    assert found["calibration"]["count"] == 30
    assert "These are the figures for these outliers alone" in Outliers.summary(found)
    with pytest.raises(interpkit.UsageError, match=r"30 of the 30 .* outliers are among the reference data"):
        interpkit.evaluate(run, reference=tmp_path / "real.npz", ood=tmp_path / "real.npz")
    real, strange = (tmp_path / f"{name}.npz" for name in ("real", "more"))
    np.savez(strange, images=rng.random((30, *shape), "float32"), labels=np.arange(30) % 3)
    with pytest.raises(interpkit.UsageError, match="among the training data"):
        interpkit.evaluate(run, reference=real, training=strange, ood=strange)
    with pytest.raises(interpkit.UsageError, match="outliers are compared with held-out ones: add reference="):
        interpkit.evaluate(run, ood=torch.zeros(30, *shape))


def test_outliers_in_memory_are_converted_and_checked_like_the_reference(
    run_copy: Path, logits_as_inputs: Target
) -> None:
    rng = torch.Generator().manual_seed(0)
    real, strange = (torch.randint(0, 256, (30, 1, 12, 12), dtype=torch.uint8, generator=rng) for _ in range(2))
    known = real, torch.arange(30) % 3
    by_bytes, by_floats = (
        interpkit.evaluate(run_copy, reference=known, ood=images, metrics=["ood"])["ood"]
        for images in (strange, strange / 255)
    )
    assert by_bytes == by_floats
    with pytest.raises(interpkit.UsageError, match=r"ood has images from 0 to 255: pass uint8, or float in \[0, 1\]"):
        interpkit.evaluate(run_copy, reference=known, ood=strange.float(), metrics=["ood"])
    inversion = interpkit.invert(logits_as_inputs, ["pixels"], steps=1, per_class=1, losses={"tv": 0})
    sure, unsure = torch.tensor([[2.0, -5.0, -5.0]]).repeat(20, 1), torch.tensor([[1.0, 0.0, 0.0]]).repeat(20, 1)
    found = interpkit.evaluate(inversion, reference=(sure, torch.zeros(20)), ood=unsure, metrics=["ood"])["ood"]
    assert found["probability"]["auroc"] == 1.0  # read in [0, 1] instead of -5 to 5, their logits would be 5, -5, -5
