"""The bundled metrics, each against a reference implementation, a double loop or a case worked by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import interpkit_metrics
import numpy as np
import pytest
import torch
from interpkit_metrics.agreement import Agreement, blurred
from interpkit_metrics.canaries import Canaries
from interpkit_metrics.classes import span
from interpkit_metrics.diversity import Diversity
from interpkit_metrics.memorisation import Memorisation
from interpkit_metrics.outliers import Calibration, Outliers
from interpkit_metrics.reference import Reference, manifold, matched_ssim
from interpkit_metrics.similarity import directions, distances, kernel_distance, pooled, vendi
from interpkit_metrics.student import Student
from interpkit_robust.metric import KeptLabels
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image.kid import poly_mmd

from interpkit import LabelledImages, Samples, Study, Target, TooFew, wilson, wrap
from interpkit.evaluation.flatten import flattened
from interpkit.evaluation.warnings import class_columns

Rng = Callable[[int], torch.Generator]
SHAPE = (1, 12, 12)


def first_features(shape: tuple[int, ...] = SHAPE, name: str = "first") -> Target:
    """Return a classifier whose penultimate features are the image itself and whose logits are its first numbers."""
    size = math.prod(shape)
    net = nn.Sequential(nn.Flatten(), nn.Linear(size, 3, bias=False))
    net[1].weight.data = torch.eye(3, size)
    return wrap(net, shape, name=name)


def study_of(
    images: Tensor,
    labels: Tensor,
    reference: tuple[Tensor, Tensor] | None = None,
    training: tuple[Tensor, Tensor] | None = None,
    target: Target | None = None,
    **more: Any,
) -> Study:
    """Return a study of float images without rounding them."""
    n = len(labels)
    samples = Samples(images, labels, labels, torch.ones(n), None, torch.zeros_like(labels), None)
    target = first_features(tuple(images.shape[1:])) if target is None else target
    real = [None if data is None else LabelledImages(*data) for data in (reference, training)]
    return Study(target, samples, *real, **more)


def random_images(count: int, rng: torch.Generator, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.rand(count, *shape, generator=rng)


def test_the_plugin_registers_all_its_metrics() -> None:
    added: list[Any] = []
    interpkit_metrics.register(SimpleNamespace(add=added.append))  # type: ignore[arg-type]
    assert added == [Diversity, Agreement, Reference, Memorisation, Student, Canaries, Calibration, Outliers]


# ---------------------------------------------------------------------------------------- the measures


@pytest.mark.parametrize(("n", "d"), [(6, 9), (9, 6), (40, 3)])
def test_the_vendi_score_matches_its_definition(n: int, d: int, rng: Rng) -> None:
    units = torch.nn.functional.normalize(torch.randn(n, d, generator=rng(0), dtype=torch.float64), dim=1)
    spectrum = np.linalg.eigvalsh((units @ units.T).numpy() / n)
    spectrum = spectrum[spectrum > 1e-12]
    assert vendi(units) == pytest.approx(np.exp(-(spectrum * np.log(spectrum)).sum()))


def test_the_vendi_score_counts_distinct_vectors() -> None:
    assert vendi(torch.eye(7, dtype=torch.float64)) == pytest.approx(7)
    assert vendi(torch.ones(7, 1, dtype=torch.float64)) == pytest.approx(1)
    assert vendi(torch.eye(2, dtype=torch.float64).repeat(4, 1)) == pytest.approx(2)
    c = 0.6  # two vectors of cosine c: the eigenvalues of K / 2 are (1 + c) / 2 and (1 - c) / 2
    pair = torch.tensor([[1.0, 0.0], [c, math.sqrt(1 - c * c)]], dtype=torch.float64)
    assert vendi(pair) == pytest.approx(math.exp(-0.8 * math.log(0.8) - 0.2 * math.log(0.2)))


def test_a_zero_vector_is_similar_only_to_zero_vectors() -> None:
    units = directions(torch.tensor([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0], [-4.0, 3.0]]))
    expected = torch.eye(4, dtype=torch.float64)
    expected[0, 1] = expected[1, 0] = 1
    torch.testing.assert_close(units @ units.T, expected)


def test_pooling_averages_squares_no_larger_than_the_image() -> None:
    images = torch.arange(64.0).view(1, 1, 8, 8)
    assert pooled(images, 4)[0, 0, 0, 1] == images[0, 0, :4, 4:].mean()
    assert pooled(images[:, :, :3], 4).shape == (1, 1, 1, 2)
    assert torch.equal(pooled(images.flatten(1), 4), images.flatten(1))


def test_the_kernel_distance_equals_torchmetrics(rng: Rng) -> None:
    x, y = torch.randn(30, 5, generator=rng(1)), torch.randn(30, 5, generator=rng(2)) + 0.5
    assert kernel_distance(x, y) == pytest.approx(poly_mmd(y.double(), x.double()).item())


def test_the_kernel_distance_does_not_depend_on_the_chunk_size(rng: Rng, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = (torch.randn(count, 5, generator=rng(0)) for count in (23, 17))
    at_once = kernel_distance(x, y)
    monkeypatch.setattr("interpkit_metrics.similarity.ROWS_AT_ONCE", 4)
    assert kernel_distance(x, y) == pytest.approx(at_once, rel=1e-12)


def test_the_kernel_distance_of_sets_of_unequal_size_equals_the_three_sums(rng: Rng) -> None:
    x, y = torch.randn(4, 3, generator=rng(1)).double(), torch.randn(6, 3, generator=rng(2)).double()

    def k(a: Tensor, b: Tensor) -> float:
        return float((a @ b / 3 + 1) ** 3)

    by_hand = sum(k(a, b) for a, b in itertools.permutations(x, 2)) / 12
    by_hand += sum(k(a, b) for a, b in itertools.permutations(y, 2)) / 30
    by_hand -= 2 * sum(k(a, b) for a in x for b in y) / 24
    assert kernel_distance(x, y) == pytest.approx(by_hand)


@pytest.mark.parametrize("shift", [0.0, 0.7, 50.0])
def test_precision_recall_density_and_coverage_match_their_definitions(shift: float, rng: Rng) -> None:
    k, x, r = 5, torch.randn(12, 4, generator=rng(3)) + shift, torch.randn(17, 4, generator=rng(4))

    def reach(points: np.ndarray) -> list[float]:
        return [sorted(np.linalg.norm(points - p, axis=1))[k] for p in points]  # the nearest is itself

    fake, real = x.double().numpy(), r.double().numpy()
    reach_real, reach_fake = reach(real), reach(fake)
    within_real = [[np.linalg.norm(f - t) <= d for t, d in zip(real, reach_real, strict=True)] for f in fake]
    within_fake = [[np.linalg.norm(f - t) <= d for f, d in zip(fake, reach_fake, strict=True)] for t in real]
    assert manifold(x, r, k) == pytest.approx(
        {
            "precision": np.mean([any(row) for row in within_real]),
            "recall": np.mean([any(row) for row in within_fake]),
            "density": sum(map(sum, within_real)) / (k * len(fake)),
            "coverage": np.mean([any(column) for column in zip(*within_real, strict=True)]),
        }
    )


def test_a_collapsed_generator_has_precision_but_neither_recall_nor_coverage(rng: Rng) -> None:
    real = torch.randn(60, 4, generator=rng(5))
    found = manifold(real[:1].repeat(20, 1), real, 5)
    assert found["precision"] == 1 and found["recall"] < 0.1 and found["coverage"] < 0.3


def test_matching_maximizes_the_sum_of_ssim(rng: Rng) -> None:
    real = random_images(4, rng(6))
    samples = 0.5 * real[[2, 0, 3, 1]] + 0.5 * random_images(4, rng(7))

    def ssim(a: Tensor, b: Tensor) -> float:
        return float(structural_similarity_index_measure(a[None], b[None], data_range=1.0))

    orders = itertools.permutations(range(4))
    best = max(([ssim(samples[i], real[j]) for i, j in enumerate(order)] for order in orders), key=sum)
    assert matched_ssim(samples, real).tolist() == pytest.approx(best, abs=1e-5)
    torch.testing.assert_close(matched_ssim(real.flip(0), real), torch.ones(4, dtype=torch.float64))


def test_a_single_picture_can_be_matched(rng: Rng) -> None:
    picture = random_images(1, rng(6))
    assert matched_ssim(picture, picture).tolist() == pytest.approx([1.0])


def test_a_pair_exactly_as_similar_as_the_limit_counts(rng: Rng, monkeypatch: pytest.MonkeyPatch) -> None:
    similar = torch.tensor([0.4, 0.39, 0.41, -1.0], dtype=torch.float64)
    monkeypatch.setattr("interpkit_metrics.reference.matched_ssim", lambda samples, real: similar)
    images, labels = random_images(20, rng(0)), torch.zeros(20, dtype=torch.int64)
    found = Reference().measure(study_of(images, labels, (images, labels)))["reference"]["ssim"]
    assert found == {"mean": pytest.approx(0.05), "at_least_0.4": 0.5}


def test_ssim_does_not_depend_on_the_batch_size(rng: Rng, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, real = random_images(3, rng(8)), random_images(5, rng(9))
    at_once = matched_ssim(samples, real)
    monkeypatch.setattr("interpkit_metrics.reference.PAIRS_AT_ONCE", 2 * samples[0].numel())
    torch.testing.assert_close(matched_ssim(samples, real), at_once)
    monkeypatch.setattr("interpkit_metrics.reference.PAIRS_AT_ONCE", 1)  # a batch of one comes back as a scalar
    torch.testing.assert_close(matched_ssim(samples, real), at_once)


# ------------------------------------------------------------------------------------------- diversity


def test_cosines_and_duplicates_equal_a_double_loop(rng: Rng) -> None:
    images = random_images(24, rng(0)) ** 8
    images[5] = images[3] * 0.5  # in the same class, and the same direction: a pair of duplicates
    labels = torch.arange(24) % 2
    found = Diversity(Diversity.Options(pool=1)).measure(study_of(images, labels))
    flat = images.flatten(1).double()

    def cosine(i: int, j: int) -> float:
        return float(flat[i] @ flat[j] / flat[i].norm() / flat[j].norm())

    pairs = list(itertools.permutations(range(24), 2))
    within = [[cosine(i, j) for i, j in pairs if labels[i] == labels[j] == c] for c in (0, 1)]
    between = [cosine(i, j) for i, j in pairs if labels[i] != labels[j]]
    assert found["diversity"]["cosine_within"] == pytest.approx(np.mean([np.mean(values) for values in within]))
    assert found["diversity"]["cosine_between"] == pytest.approx(np.mean(between))
    assert found["diversity"]["duplicates"] == pytest.approx(1 / 12)
    assert found["per_class"][0]["diversity"]["duplicates"] == 0
    assert found["per_class"][1]["diversity"]["duplicates"] == pytest.approx(2 / 12)
    for key in ("vendi_pixels", "vendi_pooled", "vendi_features"):  # here features are pixels, and a pool is a pixel
        assert found["per_class"][0]["diversity"][key] == pytest.approx(vendi(directions(images[labels == 0])))


def test_noise_adds_variety_to_pixels_but_not_to_pooled_pictures(rng: Rng) -> None:
    images = 0.5 + 0.5 * torch.randn(20, 1, 48, 48, generator=rng(1))
    found = Diversity().measure(study_of(images, torch.zeros(20, dtype=torch.int64)))["diversity"]
    assert found["vendi_pixels"] > 5 * found["vendi_pooled"]
    assert "cosine_between" not in found


def test_diversity_is_measured_for_vectors_too(rng: Rng) -> None:
    found = Diversity().measure(study_of(torch.eye(12), torch.zeros(12, dtype=torch.int64)))["diversity"]
    assert found["vendi_pixels"] == found["vendi_features"] == pytest.approx(12)
    assert "vendi_pooled" not in found


def test_options_for_images_are_noted_where_there_are_vectors(rng: Rng) -> None:
    metric = Diversity(Diversity.Options(duplicate=0.5))
    study = study_of(torch.eye(12), torch.zeros(12, dtype=torch.int64))
    metric.measure(study)
    assert study.left_out == {"diversity.duplicate": "it is for images, and these are vectors."}


@pytest.mark.parametrize(("shares", "shown"), [([0.995], ">99%"), ([0.001, 1], "<1% to 100%"), ([0.5, 0.5], "50%")])
def test_only_all_and_none_are_shown_as_all_and_none(shares: list[float], shown: str) -> None:
    assert span(shares) == shown


def test_rows_of_a_table_are_not_near_copies_because_they_point_the_same_way(rng: Rng) -> None:
    rows, labels = 0.9 + 0.1 * torch.rand(12, 4, generator=rng(0)), torch.zeros(12, dtype=torch.int64)
    cosines = directions(rows) @ directions(rows).T
    found = Diversity().measure(study_of(rows, labels))
    assert cosines.min() > 0.99 and found["diversity"]["duplicates"] == 0
    per_class = [{"label": label, "name": "a", **row} for label, row in found["per_class"].items()]
    assert Diversity.warnings({**found, "per_class": per_class}) == []
    copies = rows[:1] + 0.005 * torch.rand(12, 4, generator=rng(1))
    assert Diversity().measure(study_of(copies, labels))["diversity"]["duplicates"] == 1


def test_classes_of_little_variety_are_warned_of_by_name() -> None:
    figures = [{"vendi_pooled": 1.0}, {"vendi_pooled": 9.0, "duplicates": 0.9}, {"vendi_pooled": 9.0}, {}]
    rows = [{"name": name, "diversity": row} for name, row in zip("abcd", figures, strict=True)]
    assert Diversity.warnings({"per_class": rows}) == [
        "Low variety: the samples of 2 of 3 classes are nearly identical (a, b)."
    ]


def test_classes_of_few_samples_are_left_out_by_name(rng: Rng) -> None:
    study = study_of(random_images(13, rng(2)), torch.tensor([0] * 10 + [2] * 3))
    found = Diversity().measure(study)
    assert list(found["per_class"]) == [0]
    assert "takes 10 images of a class" in study.left_out["diversity.per_class"]
    assert "2 (2: 3 samples)" in study.left_out["diversity.per_class"]
    with pytest.raises(TooFew, match=r"takes 10 images of a class.*with the most, 1 \(1\), has 9 samples"):
        Diversity().measure(study_of(random_images(12, rng(3)), torch.tensor([0] * 3 + [1] * 9)))


# ------------------------------------------------------------------------------------------- agreement


def test_agreement_is_counted_for_each_evaluator_and_class() -> None:
    images = torch.zeros(6, *SHAPE)
    for row, largest in enumerate([0, 0, 1, 1, 1, 2]):
        images[row].view(-1)[largest] = 1  # what `first_features` answers
    asked = torch.tensor([0, 0, 0, 1, 1, 1])
    negated = first_features(name="negated")
    weight = dict(negated.named_parameters())
    next(iter(weight.values())).data.neg_()
    real = images[[0, 2, 2, 5]], torch.tensor([0, 1, 0, 2])  # the last is of a class that was not sampled
    study = study_of(images, asked, real, evaluators={"first": first_features(), "negated": negated})
    found = Agreement().measure(study)
    first, other = found["evaluators"]
    assert (first["name"], first["agreement"]) == ("first", pytest.approx(4 / 6))
    assert first["agreement_interval"] == wilson(4, 6)
    assert first["reference_accuracy"] == pytest.approx(2 / 3)
    assert first["relative"] == pytest.approx(1.0)
    # Negated, it answers the first class that is not the largest: 1 for 0, and 0 for the others.
    assert (other["name"], other["agreement"]) == ("negated", pytest.approx(1 / 6))
    assert other["reference_accuracy"] == pytest.approx(1 / 3)
    by_class = [row["evaluators"][0]["agreement"] for row in found["per_class"].values()]
    assert by_class == pytest.approx([2 / 3, 2 / 3])
    assert (
        "reference_accuracy"
        not in Agreement().measure(study_of(images, asked, evaluators={"first": first_features()}))["evaluators"][0]
    )


def test_samples_that_an_evaluator_rules_out_count_against_the_agreement() -> None:
    class RulesOut(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return (200 * images.flatten(1)[:, :3]).softmax(1).log()  # -inf for all but the largest

    images = torch.zeros(4, *SHAPE)
    images.view(4, -1)[:, 1] = 1
    judge = wrap(RulesOut(), SHAPE, output="logits")
    study = study_of(images, torch.tensor([0, 0, 1, 1]), evaluators={"judge": judge})
    (row,) = Agreement().measure(study)["evaluators"]
    assert (row["agreement"], row["agreement_interval"]) == (0.5, wilson(2, 4))


class Edges(nn.Module):
    """Sees only the finest detail: class 1 if neighboring pixels differ, else class 0."""

    def forward(self, images: Tensor) -> Tensor:
        detail = (images[..., 1:] - images[..., :-1]).abs().mean((1, 2, 3))
        return torch.stack([torch.full_like(detail, 0.5), detail], 1)


class Mean(nn.Module):
    """Sees only the mean color: class 1 of bright images."""

    def forward(self, images: Tensor) -> Tensor:
        bright = images.mean((1, 2, 3))
        return torch.stack([torch.full_like(bright, 0.3), bright], 1)


def test_a_blur_takes_all_agreement_about_fine_detail_and_none_about_the_mean_color() -> None:
    checks = (torch.arange(224)[:, None] + torch.arange(224)) % 2
    images = checks.float().expand(4, 1, -1, -1)
    judges = {"edges": wrap(Edges(), (1, 224, 224), name="edges"), "mean": wrap(Mean(), (1, 224, 224), name="mean")}
    target = wrap(Mean(), (1, 224, 224))
    labels = torch.ones(4, dtype=torch.int64)
    study = study_of(images, labels, (images, labels), target=target, evaluators=judges)
    edges, mean = Agreement().measure(study)["evaluators"]
    assert (edges["agreement"], edges["blurred_agreement"], edges["blurred_reference_accuracy"]) == (1, 0, 0)
    assert (mean["agreement"], mean["blurred_agreement"], mean["blurred_reference_accuracy"]) == (1, 1, 1)
    assert edges["blurred_agreement_interval"] == wilson(0, 4) and edges["blur_sigma"] == 1
    assert (edges["family"], edges["same_family"]) == ("edges", False) and mean["same_family"]


def test_the_blur_is_a_gaussian_that_grows_with_the_image() -> None:
    dot = torch.zeros(1, 2, 64, 96)
    dot[0, 1, 30, 40] = 1
    spread = blurred(dot, 2.0)
    across, down = torch.arange(96) - 40, torch.arange(64) - 30
    assert spread[0, 0].sum() == 0 and spread.sum() == pytest.approx(1)
    assert spread[0, 1, 30, 42] / spread[0, 1, 30, 40] == pytest.approx(math.exp(-0.5))
    assert (spread[0, 1] * across**2).sum().sqrt() == pytest.approx(2, abs=0.05)
    assert (spread[0, 1] * down[:, None] ** 2).sum().sqrt() == pytest.approx(2, abs=0.05)
    assert torch.allclose(blurred(torch.full((1, 3, 64, 64), 0.3), 1.0), torch.tensor(0.3))
    for side, sigma in ((64, 64 / 224), (448, 2.0)):
        target, images = wrap(Mean(), (1, side, side)), torch.ones(1, 1, side, side)
        study = study_of(images, torch.tensor([1]), target=target, evaluators={"edges": wrap(Edges(), (1, side, side))})
        assert Agreement().measure(study)["evaluators"][0]["blur_sigma"] == pytest.approx(sigma)


def test_small_images_are_not_blurred_and_a_blur_can_be_set_or_left_out() -> None:
    for side, options in ((63, {}), (63, {"blur": 2.0}), (64, {"blur": 0.0})):
        target, images = wrap(Mean(), (1, side, side)), torch.ones(1, 1, side, side)
        study = study_of(images, torch.tensor([1]), target=target, evaluators={"edges": wrap(Edges(), (1, side, side))})
        (row,) = Agreement(Agreement.Options(**options)).measure(study)["evaluators"]
        assert "blurred_agreement" not in row and "blur_sigma" not in row
        assert ("agreement.blur" in study.left_out) == (options == {"blur": 2.0})


def test_what_a_blur_costs_is_warned_of_unless_real_images_lose_as_much() -> None:
    row = {"name": "a", "agreement": 0.8, "blurred_agreement": 0.2}
    (text,) = Agreement.warnings({"evaluators": [row]})
    assert text.startswith("The evaluator a agrees on 80% of the samples, but on only 20% after a slight blur")
    real = {"reference_accuracy": 0.9, "blurred_reference_accuracy": 0.3}
    assert Agreement.warnings({"evaluators": [row | real]}) == []
    assert Agreement.warnings({"evaluators": [row | {"blurred_agreement": 0.5}]}) == []


def test_an_evaluator_that_rarely_agrees_is_warned_of() -> None:
    rows = [{"name": "a", "agreement": 0.9}, {"name": "b", "agreement": 0.2, "reference_accuracy": 0.95}]
    known = "The evaluator b agrees on only 20% of the samples (its accuracy on the reference images is 95%)"
    assert Agreement.warnings({"inversion_accuracy": 0.5, "evaluators": rows}) == [f"{known}."]
    (text,) = Agreement.warnings({"inversion_accuracy": 0.99, "evaluators": rows[::-1]})
    assert text.startswith(f"{known}, while the target assigns 99% to the class asked for: the target is fooled")


def test_what_speaks_against_a_class_is_the_share_that_is_missing() -> None:
    (share,) = Reference.doubts({"reference": {"excess_vendi": 0.3}}).values()
    assert share == pytest.approx(0.7)
    assert list(Reference.doubts({"reference": {"excess_vendi": 1.4}}).values()) == [0.0]
    evaluator = {"agreement": 0.9, "blurred_agreement": 0.6}
    shares = Agreement.doubts({"evaluators": [evaluator, {"agreement": 0.5}]})
    assert list(shares.values()) == pytest.approx([0.3, 0.15])
    assert Reference.doubts({}) == Agreement.doubts({}) == {}


def test_the_summary_names_each_evaluator_with_its_family_and_says_which_are_relatives() -> None:
    rows = [
        {"name": "a", "agreement": 0.8, "blurred_agreement": 0.5, "family": "resnet", "same_family": True},
        {"name": "b", "agreement": 0.6, "blurred_agreement": 0.5, "family": ""},
    ]
    assert Agreement.summary({"evaluators": rows}) == (
        "Independent classifiers agree on 60% to 80%, and after a slight blur on 50%. They are a (resnet), b (of "
        "unknown architecture). The architecture of a is of the target's own family, which makes the agreement a "
        "weaker proof."
    )
    assert Agreement.summary({"evaluators": [{"name": "a", "agreement": 0.5}]}) == (
        "An independent classifier agrees on 50%."  # by an older release
    )


# ------------------------------------------------------------------------------------------- reference


def test_real_images_score_as_well_as_other_real_images(rng: Rng) -> None:
    images, labels = random_images(60, rng(0)), torch.arange(60) % 2
    found = Reference().measure(study_of(images, labels, (images.flip(0), labels.flip(0))))["reference"]
    (features,) = found["features"].values()
    assert features["precision"] == features["recall"] == features["coverage"] == 1
    assert found["excess_vendi"] == pytest.approx(1)
    assert found["ssim"] == {"mean": pytest.approx(1), "at_least_0.4": 1}


def test_copies_of_one_picture_have_no_excess_variety(rng: Rng) -> None:
    real, labels = random_images(40, rng(1)), torch.arange(40) % 2
    found = Reference().measure(study_of(real[:1].repeat(40, 1, 1, 1), labels, (real, labels)))["reference"]
    assert found["excess_vendi"] == pytest.approx(0, abs=1e-9)


def test_the_excess_vendi_ratio_by_hand(rng: Rng) -> None:
    real = torch.eye(16).repeat(2, 1).view(32, 1, 4, 4)[:20]  # of the first 20, four come twice
    images = torch.eye(16)[:4].repeat(5, 1).view(20, 1, 4, 4)  # four pictures: a Vendi score of 4
    labels = torch.zeros(20, dtype=torch.int64)
    study = study_of(images, labels, (real, labels))
    found = Reference(Reference.Options(pool=1)).measure(study)["reference"]
    shares = [2 / 20] * 4 + [1 / 20] * 12
    v_real = math.exp(-sum(share * math.log(share) for share in shares))
    assert found["excess_vendi"] == pytest.approx(3 / (v_real - 1))
    assert "ssim" not in found and "at least 11 x 11 pixels" in study.left_out["reference.ssim"]
    assert "kid" not in found["features"][study.target.name]
    assert "50 samples and 50 real images in all; here are 20 and 20" in study.left_out["reference.kid"]


def test_all_figures_except_kid_are_computed_within_the_class(rng: Rng) -> None:
    generator = rng(2)
    real = torch.cat([random_images(30, generator) * 0.2, 0.8 + random_images(30, generator) * 0.2])
    labels = torch.arange(60) // 30
    right = Reference().measure(study_of(real, labels, (real, labels)))["reference"]["features"]["first"]
    swapped = Reference().measure(study_of(real, 1 - labels, (real, labels)))["reference"]["features"]["first"]
    assert right["coverage"] == 1 and swapped["coverage"] == 0 and swapped["precision"] == 0
    assert swapped["kid"] == pytest.approx(right["kid"])


def test_no_more_images_are_compared_than_the_options_say(rng: Rng) -> None:
    images, real = random_images(60, rng(3)), random_images(90, rng(4))
    ours, theirs = torch.zeros(60, dtype=torch.int64), torch.zeros(90, dtype=torch.int64)
    options = Reference.Options(samples=50, references=70, matched=12)
    some = Reference(options).measure(study_of(images, ours, (real, theirs)))["reference"]
    cut = Reference(options).measure(study_of(images[:50], ours[:50], (real[:70], theirs[:70])))["reference"]
    for key in ("features", "excess_vendi", "ssim"):
        assert some[key] == cut[key]
    v, v_real = (vendi(directions(pooled(x[:12], 4))) for x in (images, real))
    assert some["excess_vendi"] == pytest.approx((v - 1) / (v_real - 1))


def test_features_come_from_the_evaluators_if_there_are_any(rng: Rng) -> None:
    images, labels = random_images(20, rng(5)), torch.zeros(20, dtype=torch.int64)
    judges = {"a": first_features(name="a"), "b": first_features(name="b")}
    found = Reference().measure(study_of(images, labels, (images, labels), evaluators=judges))
    assert list(found["reference"]["features"]) == ["a", "b"]
    assert list(found["per_class"][0]["reference"]["features"]) == ["a", "b"]


def test_evaluators_whose_names_end_alike_have_a_column_each(rng: Rng) -> None:
    images, labels = random_images(20, rng(5)), torch.zeros(20, dtype=torch.int64)
    names = ("resnet18.a1_in1k", "vit_tiny.a1_in1k")
    judges = {name: first_features(name=name) for name in names}
    rows = Reference().measure(study_of(images, labels, (images, labels), evaluators=judges))["per_class"]
    columns = class_columns([flattened(row) for row in rows.values()])
    assert {title: name for title, name in columns.items() if title.startswith("cov.")} == {
        f"cov.: {name}": f"reference.features.{name}.coverage" for name in names
    }


def test_classes_without_real_images_are_left_out_by_name(rng: Rng) -> None:
    images = random_images(30, rng(6))
    study = study_of(images, torch.arange(30) // 15, (images[:20], torch.zeros(20, dtype=torch.int64)))
    assert list(Reference().measure(study)["per_class"]) == [0]
    assert "1 (1: 15 samples, 0 reference)" in study.left_out["reference.per_class"]
    with pytest.raises(TooFew, match="has 15 samples, 9 reference"):
        Reference().measure(study_of(images[:15], torch.zeros(15).long(), (images[:9], torch.zeros(9).long())))
    with pytest.raises(TooFew, match="takes 21 images of a class"):  # more than k of both
        Reference(Reference.Options(k=20)).measure(
            study_of(images[:20], torch.zeros(20).long(), (images[:20], torch.zeros(20).long()))
        )


def test_identical_real_images_have_no_variety_to_compare_with(rng: Rng) -> None:
    images, labels = random_images(20, rng(7)), torch.zeros(20, dtype=torch.int64)
    study = study_of(images, labels, (images[:1].repeat(20, 1, 1, 1), labels))
    assert "excess_vendi" not in Reference().measure(study)["reference"]
    assert "those of 0 are all the same picture" in study.left_out["reference.excess_vendi"]


# ---------------------------------------------------------------------------------------- memorisation


def three_sets(rng: Rng, copied: int, count: int = 60) -> Study:
    """Return samples: the first ``copied`` are almost training images, the others almost held-out ones."""
    training, held_out = random_images(count, rng(0)), random_images(count, rng(1))
    samples = torch.cat([training[:copied], held_out[copied:]]) + 0.01
    labels = torch.arange(count) % 2
    return study_of(samples, labels, (held_out, labels), (training, labels))


class Undefined(nn.Module):
    """A classifier whose features are NaN where the first pixel is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(144, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        logits: Tensor = self.fc(x.masked_fill(x[:, :1] == 1, torch.nan))
        return logits


@pytest.mark.parametrize("copied", [60, 0, 15])
def test_copies_of_training_images_are_nearer_to_training(copied: int, rng: Rng) -> None:
    found = Memorisation().measure(three_sets(rng, copied))["memorisation"]
    for figures in (found["pixels"], *found["features"].values()):
        assert figures["nearer_to_training"] == pytest.approx(copied / 60)
        assert figures["nearer_to_training_interval"] == pytest.approx(wilson(copied, 60))
        assert {60: figures["gap"] > 0.5, 0: figures["gap"] < -0.5, 15: figures["gap"] < 0}[copied]


def test_equal_vectors_are_exactly_zero_apart(rng: Rng) -> None:
    rows = random_images(60, rng(0), (144,))
    assert (distances(rows, rows.clone()).diagonal() == 0).all()


def test_vectors_are_compared_as_they_are(rng: Rng) -> None:
    rows, labels = random_images(60, rng(0), (12,)), torch.arange(60) % 2
    others = (random_images(60, rng(1), (12,)), labels)
    study = study_of(rows, labels, others, (rows, labels))
    found = Memorisation(Memorisation.Options(pool=2)).measure(study)["memorisation"]
    assert found["pixels"]["nearer_to_training"] == 1
    assert study.left_out["memorisation.pool"] == "it is for images, and these are vectors."


def test_a_hundred_copies_of_a_sample_are_one_trial(rng: Rng) -> None:
    study = three_sets(rng, 60)
    one = study.images[:1].repeat(100, 1, 1, 1)
    labels = torch.zeros(100, dtype=torch.int64)
    real = [(data.images, data.labels) for data in (study.reference, study.training) if data is not None]
    found = Memorisation().measure(study_of(one, labels, *real))["memorisation"]["pixels"]
    assert found["nearer_to_training"] == 1
    assert found["nearer_to_training_interval"] == pytest.approx(wilson(1, 1))


def test_the_gap_is_worked_by_hand_and_ties_count_half() -> None:
    training, held_out = torch.zeros(10, 2), torch.zeros(10, 2)
    training[:, 0], held_out[:, 0] = 0.25, 0.5
    labels = torch.zeros(10, dtype=torch.int64)
    found = Memorisation().measure(study_of(torch.zeros(10, 2), labels, (held_out, labels), (training, labels)))
    assert found["memorisation"]["pixels"]["gap"] == pytest.approx(0.5)
    same = Memorisation().measure(study_of(torch.zeros(10, 2), labels, (training, labels), (training, labels)))
    assert same["memorisation"]["pixels"]["nearer_to_training"] == 0.5
    assert same["memorisation"]["pixels"]["gap"] == 0


def test_a_larger_training_set_does_not_bias_the_gap(rng: Rng) -> None:
    samples, held_out, training = (random_images(n, rng(i)) for i, n in enumerate((60, 20, 2000)))
    labels = [torch.zeros(len(images), dtype=torch.int64) for images in (samples, held_out, training)]
    sets = (samples, labels[0], (held_out, labels[1]), (training, labels[2]))
    found = Memorisation().measure(study_of(*sets))["memorisation"]["pixels"]
    assert 0.2 < found["nearer_to_training"] < 0.8  # of 2,000 against 20 it would be nearly all
    low, high = found["nearer_to_training_interval"]
    assert low < 0.5 < high
    again = Memorisation().measure(study_of(*sets, seed=0))["memorisation"]["pixels"]
    assert again == found


def test_features_that_are_not_finite_are_left_out_with_their_number(rng: Rng) -> None:
    sets = three_sets(rng, 60)
    for images in (sets.images, sets.reference.images):  # type: ignore[union-attr]
        images[:2, 0, 0, 0] = 1.0
    judge = wrap(Undefined(), SHAPE, name="undefined")
    real = [(data.images, data.labels) for data in (sets.reference, sets.training) if data is not None]
    evaluators = {"sound": first_features(), "undefined": judge}
    study = study_of(sets.images, sets.samples.labels, *real, evaluators=evaluators)
    found = Memorisation().measure(study)["memorisation"]
    assert list(found["features"]) == ["sound"] and found["pixels"]["nearer_to_training"] > 0.9
    assert study.left_out == {"memorisation.features.undefined": "the features of 4 images are not finite."}


def test_memorization_needs_ten_images_of_each_set(rng: Rng) -> None:
    images, labels = random_images(20, rng(0)), torch.zeros(20, dtype=torch.int64)
    with pytest.raises(TooFew, match="20 samples, 9 training, 20 reference"):
        Memorisation().measure(study_of(images, labels, (images, labels), (images[:9], labels[:9])))


# -------------------------------------------------------------------------------------------- canaries


def canary_study(
    rng: Rng, samples: Tensor, canaries: Tensor, *, decoys: int = 40, labels: Tensor | None = None, **more: Any
) -> Study:
    """Return a study with canaries of the class 0, or of ``labels``, and random decoys of the classes 0 and 1."""
    held_out = random_images(2 * decoys, rng(7))
    labels = torch.zeros(len(canaries), dtype=torch.int64) if labels is None else labels
    return study_of(
        samples,
        torch.zeros(len(samples), dtype=torch.int64),
        (held_out, torch.arange(2 * decoys) % 2),
        canaries=LabelledImages(canaries, labels),
        **more,
    )


def test_a_canary_that_a_sample_equals_ranks_first(rng: Rng) -> None:
    canary = random_images(1, rng(0))
    found = Canaries().measure(canary_study(rng, torch.cat([canary, random_images(20, rng(1))]), canary))["canaries"]
    assert found["by_canary"] == [{"name": "0 (0)", "rank": 1.0, "decoys": 40}]
    assert (found["mean_rank"], found["chance"], found["within_10"], found["count"]) == (1.0, 21.0, 1.0, 1)
    assert found["p_value"] == pytest.approx(1 / 41, abs=0.01)  # of 41 images one is the nearest


def test_ranks_are_counted_by_hand() -> None:
    """One sample at 0: the decoys lie at 0.1, ..., 1.0, the canaries at 0.35, 0.5 and 5, behind 3, 4 1/2 and all."""
    decoys = torch.linspace(0.1, 1.0, 10)[:, None] * torch.tensor([1.0, 0.0])
    canaries = torch.stack([torch.tensor([0.0, 0.35]), decoys[4].flip(0), torch.tensor([0.0, 5.0])])
    zeros = torch.zeros(10, dtype=torch.int64)
    study = study_of(torch.zeros(1, 2), zeros[:1], (decoys, zeros), canaries=LabelledImages(canaries, zeros[:3]))
    found = Canaries().measure(study)["canaries"]
    assert [row["rank"] for row in found["by_canary"]] == [4.0, 5.5, 11.0]
    assert found["mean_rank"] == pytest.approx(20.5 / 3) and found["chance"] == 6.0
    assert found["within_10"] == pytest.approx(2 / 3)


def test_canaries_that_nothing_gives_away_have_uniform_ranks(rng: Rng) -> None:
    study = canary_study(rng, random_images(30, rng(1)), random_images(300, rng(0)), decoys=99)
    found = Canaries().measure(study)["canaries"]
    shares = torch.tensor([row["rank"] / 100 for row in found["by_canary"]]).histc(5, 0, 1) / 300
    assert shares.sub(0.2).abs().max() < 0.08
    assert abs(found["mean_rank"] - found["chance"]) < 8 and found["p_value"] > 0.01
    assert Canaries.warnings({"canaries": found}) == []


def test_canaries_that_are_given_away_are_warned_of_and_less_likely_the_more_there_are(rng: Rng) -> None:
    canaries = random_images(5, rng(0))
    found = Canaries().measure(canary_study(rng, canaries + 0.01, canaries))["canaries"]
    assert found["mean_rank"] == 3.0 - 2.0 and found["p_value"] == 1e-4
    (warning,) = Canaries.warnings({"canaries": found})
    assert "mean rank is 1, where chance gives 21 (p = 0.0001)" in warning


def test_a_decoy_that_equals_a_canary_does_not_count(rng: Rng) -> None:
    study = canary_study(rng, random_images(20, rng(1)), random_images(1, rng(0)))
    assert study.reference is not None
    copied = canary_study(rng, study.images, study.reference.images[:1])
    assert Canaries().measure(copied)["canaries"]["decoys"] == 39


def test_decoys_are_at_most_those_asked_for(rng: Rng) -> None:
    study = canary_study(rng, random_images(20, rng(1)), random_images(2, rng(0)))
    few, many = (Canaries(Canaries.Options(decoys=decoys)) for decoys in (10, 50))
    assert few.measure(study)["canaries"]["decoys"] == 10 and study.left_out == {}
    assert many.measure(study)["canaries"]["decoys"] == 40
    assert study.left_out["canaries.decoys"].startswith("50 were asked for, and the reference has only 40 other")


def test_canaries_that_cannot_be_remembered_or_ranked_are_left_out(rng: Rng) -> None:
    canaries, samples = random_images(4, rng(0)), random_images(20, rng(1))
    training = (canaries[:3], torch.tensor([0, 0, 1]))
    study = canary_study(rng, samples, canaries, labels=torch.tensor([0, 0, 1, 0]), training=training)
    found = Canaries().measure(study)["canaries"]
    assert [row["name"] for row in found["by_canary"]] == ["0 (0)", "1 (0)"]
    assert study.left_out["canaries.by_canary"] == (
        "1 of 4 canaries are of classes that have no samples: number 2; 1 of 4 canaries are not among the training "
        "images, so the classifier cannot remember them: number 3."
    )
    strange = canary_study(rng, samples, canaries[3:], training=training)
    with pytest.raises(TooFew, match="1 of 1 canaries are not among the training images"):
        Canaries().measure(strange)
    with pytest.raises(TooFew, match="fewer than 10 other images"):
        Canaries().measure(canary_study(rng, samples, canaries, decoys=9))


# ------------------------------------------------------------------------------------------ robustness


def on_the_line(distances: Tensor) -> tuple[Study, nn.Module]:
    """Return samples at given L2 distances from the boundary of a linear classifier of two classes."""
    direction = torch.nn.functional.normalize(torch.randn(48, generator=torch.Generator().manual_seed(3)), dim=0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    net[1].weight.data = torch.stack([direction, -direction])
    net[1].bias.data = torch.stack([-(direction * 0.5).sum(), (direction * 0.5).sum()])
    images = (0.5 + distances[:, None] * direction).view(-1, 3, 4, 4)
    assert images.min() >= 0.2 and images.max() <= 0.8  # so that the cut to [0, 1] touches nothing
    labels = torch.zeros(len(distances), dtype=torch.int64)
    return study_of(images, labels, target=wrap(net, (3, 4, 4))), net


def test_samples_of_a_linear_classifier_survive_exactly_beyond_the_radius() -> None:
    study, _ = on_the_line(torch.tensor([-0.1, 0.05, 0.15, 0.25, 0.35]))
    found = KeptLabels(KeptLabels.Options(radius=[0.1, 0.2, 0.3], sigma=[1e-6])).measure(study)["robustness"]
    assert found["clean"] == pytest.approx(0.8)
    assert [found["pgd"][radius]["kept"] for radius in ("0.1", "0.2", "0.3")] == pytest.approx([0.6, 0.4, 0.2])
    assert found["pgd"]["0.1"]["kept_interval"] == wilson(3, 5)
    assert found["noise"]["1e-06"]["kept"] == pytest.approx(0.8)
    assert found["count"] == 5


def test_noise_flips_the_share_that_the_normal_distribution_predicts() -> None:
    study, _ = on_the_line(torch.full((400,), 0.05))
    found = KeptLabels(KeptLabels.Options(sigma=[0.05], radius=[0.01])).measure(study)["robustness"]
    low, high = found["noise"]["0.05"]["kept_interval"]
    assert low < 0.8413 < high  # the noise along the direction is normal: P(z > -1)


def test_labels_kept_depend_neither_on_the_batch_nor_on_the_other_sizes() -> None:
    study, _ = on_the_line(torch.full((90,), 0.1))
    few = study_of(study.images, study.samples.labels, target=study.target, most=7)
    several = KeptLabels.Options(sigma=[0.1, 0.2], radius=[0.07], steps=1)
    one = KeptLabels(several).measure(study)["robustness"]
    assert 0 < one["noise"]["0.2"]["kept"] < 1 and one == KeptLabels(several).measure(few)["robustness"]
    alone = KeptLabels(KeptLabels.Options(sigma=[0.2], radius=[0.07])).measure(few)["robustness"]
    assert alone["noise"]["0.2"] == one["noise"]["0.2"]


def test_a_limited_number_of_samples_is_tried_spread_over_all(
    module_state: Callable[[nn.Module], dict[str, Any]],
) -> None:
    study, net = on_the_line(torch.tensor([-0.1] * 6 + [0.1] * 6))
    before = module_state(net)
    found = KeptLabels(KeptLabels.Options(samples=4, sigma=[0.01], radius=[0.01])).measure(study)["robustness"]
    assert (found["count"], found["clean"]) == (4, 0.5)
    assert module_state(net) == before


def test_a_sample_of_the_samples_has_all_classes_also_where_they_take_turns() -> None:
    labels = torch.arange(12) % 2
    images = torch.zeros(12, 2)
    images[:, 0] = labels == 0  # the target recognizes the samples of class 0 alone, all others are of class 2
    study = study_of(images, labels, target=wrap(nn.Linear(2, 3), input_shape=(2,)))
    weight, bias = study.target.parameters()
    weight.data, bias.data = torch.tensor([[9.0, 0], [0, 0], [0, 0]]), torch.tensor([0.0, 0, 1])
    found = KeptLabels(KeptLabels.Options(samples=6, sigma=[0.01], radius=[0.01], steps=1)).measure(study)
    assert found["robustness"]["clean"] == 0.5


def test_a_sample_lost_in_a_ball_is_lost_in_a_larger_ball() -> None:
    study, net = on_the_line(torch.tensor([0.05, 0.05, 0.25]))
    attacked: list[float] = []
    net.register_forward_hook(lambda _, given, __: attacked.append(len(given[0])))
    found = KeptLabels(KeptLabels.Options(radius=[3.0, 0.1, 0.3, 1.5], sigma=[0.1])).measure(study)["robustness"]
    assert list(found["pgd"]) == ["0.1", "0.3", "1.5", "3"]
    assert [figures["kept"] for figures in found["pgd"].values()] == pytest.approx([1 / 3, 0, 0, 0])
    assert attacked[-1] == 1  # nor is it attacked again


@pytest.mark.parametrize("factor", [0.02, 50.0, 5000.0])  # by 5000, the slope of the cross-entropy is 0
def test_labels_kept_do_not_depend_on_a_factor_of_all_logits(factor: float) -> None:
    class Sure(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return factor * x

    images = torch.tensor([[0.8, 0.2], [0.2, 0.8]])  # 0.42 from the boundary
    study = study_of(images, torch.tensor([0, 1]), target=wrap(Sure(), input_shape=(2,)))
    found = KeptLabels(KeptLabels.Options(radius=[0.25, 0.75], sigma=[0.01])).measure(study)["robustness"]["pgd"]
    assert {radius: figures["kept"] for radius, figures in found.items()} == {"0.25": 1.0, "0.75": 0.0}


def test_without_a_gradient_only_noise_is_tried() -> None:
    class Silent(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach()

    target = wrap(Silent(2, 2), input_shape=(2,))
    study = study_of(torch.rand(12, 2), torch.arange(12) % 2, target=target)
    found = KeptLabels(KeptLabels.Options(radius=[0.1], sigma=[0.01])).measure(study)["robustness"]
    assert target.no_gradient and found["pgd"] == {} and list(found["noise"]) == ["0.01"]
    assert study.left_out == {"robustness.pgd": f"it requires a gradient: {target.no_gradient}."}


def test_equal_studies_have_equal_figures() -> None:
    study, _ = on_the_line(torch.linspace(-0.1, 0.3, 50))
    assert KeptLabels().measure(study) == KeptLabels().measure(study)
