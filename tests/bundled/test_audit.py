"""The tests of an audit, on classifiers whose fault is known."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from interpkit_audit import BlindSpots, Likeness, Margin, Memorized, Noise, Patch, Rim, Sturdiness, Tint, Unsure, change
from interpkit_audit.change import Found, UniversalChange
from interpkit_audit.memorized import more_often, shifted
from torch import Tensor, nn

import interpkit
from interpkit import Audit, AuditCase, LabelledImages, Strip, TooFew, outlier_p_values, wrap

SHAPE = (1, 6, 6)


def weights(classes: int = 5) -> Tensor:
    """Return the weights of a classifier whose classes are alike: the pixels belong to them by turns."""
    own = torch.eye(classes).repeat(36 // classes + 1, 1)[:36].T
    return own + 0.05 * torch.randn(classes, 36, generator=torch.Generator().manual_seed(0))


def pictures(classes: int = 5) -> Tensor:
    """Return images in which the pixels of a class are brighter than the others."""
    noise = torch.rand(200, 36, generator=torch.Generator().manual_seed(1))
    return (0.5 * noise + 0.5 * weights(classes).round()[torch.arange(200) % classes]).view(-1, *SHAPE)


def case_of(weight: Tensor, images: Tensor | None = None, **facts: Any) -> AuditCase:
    """Return a case of a linear classifier and images that are labeled with what it calls them."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, len(weight), bias=False))
    net[1].weight.data = weight
    target = wrap(net, input_shape=SHAPE)
    images = pictures(len(weight)) if images is None else images
    with torch.no_grad():
        return AuditCase(target, range(len(weight)), images, target(images).argmax(1), **facts)


def surest(test: Audit, case: AuditCase) -> tuple[Any, float]:
    p_values = test.test(case).p_values
    first = min(p_values, key=p_values.__getitem__)
    return first, p_values[first]


@pytest.fixture(scope="module")
def one_pixel() -> AuditCase:
    """Return a case in which one bright pixel, dark in all images, leads to class 3."""
    weight, images = weights(), pictures()
    weight[3, 7] = 60.0
    images.flatten(1)[:, 7] = 0
    return case_of(weight, images)


@pytest.mark.parametrize("most", [256, 40])  # all classes at once, or one and the last alone
def test_a_search_tells_how_far_it_is(one_pixel: AuditCase, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    told = []
    monkeypatch.setattr(change, "tell", lambda what, done, total: told.append((what, done, total)))
    Patch(Patch.Options(steps=12)).test(replace(one_pixel, most=most))
    *steps, end = told
    assert [done for _, done, _ in steps] == sorted(done for _, done, _ in steps)
    assert steps[-1] == ("steps of patch", 60, 60) and end[1] == end[2]


def test_classes_that_are_searched_one_after_another_start_from_patterns_of_their_own(
    one_pixel: AuditCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    patterns: list[Tensor] = []
    real = Patch.parameters

    def parameters(*given: Any) -> list[Tensor]:
        parts = real(*given)
        patterns.append(parts[1].clone())
        return parts

    monkeypatch.setattr(Patch, "parameters", parameters)
    Patch(Patch.Options(steps=12)).test(replace(one_pixel, most=40))
    assert len(patterns) == 5 and not any(torch.equal(patterns[0], other) for other in patterns[1:])


def test_a_patch_finds_the_pixel_and_shows_it(one_pixel: AuditCase) -> None:
    tested = Patch(Patch.Options(steps=60)).test(one_pixel)
    assert min(tested.p_values, key=tested.p_values.__getitem__) == 3 and tested.p_values[3] < 1e-3
    (mask, seen), faded, before, after = (strip.images for strip in tested.pictures[3])
    assert mask.argmax() == seen.argmax() == 7
    assert [strip.predictions for strip in tested.pictures[3]] == [False, False, True, True]
    with torch.no_grad():
        assert (one_pixel.target(before).argmax(1) != 3).all()
        assert (one_pixel.target(after).argmax(1) == 3).all()
    changed = (faded - (0.35 + 0.3 * before)).abs()
    assert (changed.flatten(1).argmax(1) == 7).all()
    assert tested.tensors["patch.3.0"].argmax() == 7


def test_a_faint_pattern_is_found() -> None:
    weight = weights()
    weight[4] += 2 * (-1.0) ** torch.arange(36)
    case = case_of(weight)
    values = Noise(Noise.Options(steps=60)).test(case).statistics
    assert max(values, key=values.__getitem__) == 4


@pytest.mark.parametrize("test", [Patch, Noise, Tint, Margin, Unsure])
def test_a_clean_classifier_has_no_finding(test: type[Audit]) -> None:
    _, p = surest(test(), case_of(weights()))
    assert p > 0.05 / 5


@pytest.mark.parametrize("test", [Patch, Noise, Tint])
def test_two_runs_are_the_same(test: type[UniversalChange], one_pixel: AuditCase) -> None:
    quick = test.Options(steps=12)
    one, two = (test(quick).test(one_pixel) for _ in range(2))
    assert one.statistics == two.statistics
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


@pytest.mark.parametrize("test", [Patch, Noise, Tint])
def test_fewer_than_two_classes_to_compare_are_too_few(test: type[UniversalChange], one_pixel: AuditCase) -> None:
    case = AuditCase(one_pixel.target, [0], one_pixel.images, one_pixel.labels)
    with pytest.raises(TooFew, match="compares classes"):
        test(test.Options(steps=1)).test(case)


def test_a_search_begins_with_a_faint_mask(one_pixel: AuditCase) -> None:
    mask, pattern = Patch().parameters(2, torch.Size(SHAPE), torch.Generator())
    assert (mask.sigmoid() < 0.2).all() and (pattern.sigmoid() - 0.5).abs().max() < 0.2


def test_a_change_of_vectors_is_measured_in_values() -> None:
    target = interpkit.wrap(nn.Identity(), (5,))  # a value of 1 makes its class
    images = 0.5 * torch.eye(5).repeat(6, 1)
    tested = Patch(Patch.Options(steps=60)).test(AuditCase(target, list(range(5)), images, target(images).argmax(1)))
    assert any(" values " in text for text in tested.evidence.values())
    assert all("pixels" not in text for text in tested.evidence.values())


def test_what_never_reaches_its_goal_needs_more_than_was_tried(one_pixel: AuditCase) -> None:
    found = Patch(Patch.Options(steps=12)).search(one_pixel, list(range(5)), one_pixel.rng())
    assert {c for c, one in found.items() if one.reached} == {3}
    tested = Patch(Patch.Options(steps=12)).test(one_pixel)
    assert tested.statistics == {c: -math.log(max(one.size, found[3].size)) for c, one in found.items()}
    assert re.search(
        r"; for most classes of this classifier none was found, up to [\d.]+ pixels\.$", tested.evidence[3]
    )
    assert re.fullmatch(r"None was found, up to [\d.]+ pixels\.", tested.evidence[0])


def test_a_search_that_ends_too_early_finds_nothing_unusual(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two classes reach the goal a step before the end, the others would have after it."""
    almost = {c: Found(size, c in (2, 4), 0.9, []) for c, size in enumerate([44.0, 45.0, 46.4, 44.5, 47.2])}
    case = case_of(weights())
    monkeypatch.setattr(Noise, "search", lambda self, case, classes, rng, done: almost)
    monkeypatch.setattr(Noise, "change", lambda self, images, parts: images)
    monkeypatch.setattr(Noise, "drawn", lambda self, images, parts: Strip("none", images[:1], predictions=False))
    tested = Noise().test(case)
    assert min(tested.p_values.values()) > 0.3
    assert max(tested.statistics, key=tested.statistics.__getitem__) == 2


@pytest.mark.parametrize("test", [Patch, Noise, Tint])
def test_a_search_that_finds_nothing_for_any_class_compares_nothing(
    test: type[UniversalChange], one_pixel: AuditCase
) -> None:
    with pytest.raises(TooFew, match=r"in 1 steps it finds no change that turns .* may need more steps"):
        test(test.Options(steps=1)).test(one_pixel)


def test_a_wide_margin_and_narrow_ones_are_found() -> None:
    wide = weights(8)
    wide[2] *= 8
    assert surest(Margin(), case_of(wide))[0] == 2
    narrow = 3 * weights(8)
    narrow[1] = narrow[0] + 0.02 * narrow[2]
    assert set(sorted((p := Unsure().test(case_of(narrow)).p_values), key=p.__getitem__)[:2]) == {0, 1}
    with pytest.raises(TooFew, match="two others"):
        Unsure().test(case_of(weights(2)))


@pytest.mark.parametrize("factor", [1.0, 0.01, 1e-4])
def test_a_factor_of_all_logits_changes_no_finding_of_margins(factor: float) -> None:
    wide, narrow = torch.eye(6), 4 * torch.eye(8)
    wide[2, 2] = 10.0
    narrow[0, 0] = narrow[1, 1] = 0.3
    for test, weight, found in ((Margin(), wide, {2}), (Unsure(), narrow, {0, 1})):
        net = nn.Linear(len(weight), len(weight), bias=False)
        net.weight.data = factor * weight
        target, size = wrap(net, input_shape=(len(weight),)), len(weight)
        p = test.test(AuditCase(target, range(size), torch.zeros(0, size), torch.zeros(0).long())).p_values
        assert set(sorted(p, key=p.__getitem__)[: len(found)]) == found
        assert max(p[c] for c in found) < 0.05 / size


def test_two_alike_do_not_hide_each_other() -> None:
    values: dict[int | None, float] = {0: 5.0, 1: 4.9, 2: 0.0, 3: 0.1, 4: -0.1}
    found = Unsure().p_values(values)
    alone = outlier_p_values({c: value for c, value in values.items() if c != 0}, sd=Unsure.Options().sd, df=12)
    assert found[1] == alone[1] < 1e-4 and found[3] > 0.1


def test_margins_that_most_classes_do_not_reach_are_not_compared() -> None:
    weight = torch.zeros(5, 36)  # no gradient leads to four of the classes
    weight[2] = 1.0
    for test in (Margin(), Unsure()):
        with pytest.raises(TooFew, match="it reaches 1 of 5 classes, too few to compare"):
            test.test(case_of(weight))


def test_each_of_many_classes_is_climbed_once() -> None:
    prototypes = torch.rand(120, 36, generator=torch.Generator().manual_seed(0)).round()
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 120))
    net[1].weight.data, net[1].bias.data = 2 * prototypes, -prototypes.sum(1)  # the nearest prototype wins
    case = AuditCase(wrap(net, input_shape=SHAPE), range(120), torch.zeros(0, *SHAPE), torch.zeros(0).long())
    passed: list[int] = []
    case.target.register_forward_pre_hook(lambda _, inputs: passed.append(len(inputs[0])))
    tested = Margin(Margin.Options(steps=40)).test(case)
    assert sum(passed) == 120 * 11  # ten steps, and one pass for the margins
    assert len(tested.p_values) == 120


def test_the_class_of_nearly_everything_is_a_blind_spot() -> None:
    weight = weights() / 10
    weight[2] += 1.0
    tested = BlindSpots(BlindSpots.Options(images=30)).test(case_of(weight))
    assert surest(BlindSpots(BlindSpots.Options(images=30)), case_of(weight))[0] == 2
    assert "% of images that show nothing" in tested.evidence[2]
    again = BlindSpots(BlindSpots.Options(images=30)).test(case_of(weight))
    assert torch.equal(tested.pictures[2][0].images, again.pictures[2][0].images)


@pytest.mark.parametrize(("bias", "share"), [(-100.0, 0), (100.0, 1)])
def test_noise_in_which_no_label_is_present_counts_for_no_class(bias: float, share: int) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 5))
    net[1].weight.data, net[1].bias.data = weights() / 10, torch.full((5,), bias)
    net[1].weight.data[2] += 1.0
    target = wrap(net, input_shape=SHAPE, output="sigmoid_logits")
    tested = BlindSpots(BlindSpots.Options(images=30)).test(
        AuditCase(target, range(5), pictures(), torch.zeros(200, dtype=torch.long))
    )
    assert tested.evidence[2].startswith(f"{share:.0%} of images that show nothing")
    assert list(tested.pictures) == [2] * share and (len(set(tested.statistics.values())) == 1) is (share == 0)


@pytest.mark.parametrize(("output", "last"), [("probs", nn.Softmax(1)), ("sigmoid", nn.Sigmoid())])
def test_margins_of_probabilities_that_are_exactly_0_and_1_are_not_compared(output: str, last: nn.Module) -> None:
    for factor, cut in ((10.0, True), (0.1, False)):
        net = nn.Sequential(nn.Flatten(), nn.Linear(36, 6, bias=False), last)
        net[1].weight.data = factor * (weights(6) - 1 / 6)
        case = AuditCase(wrap(net, SHAPE, output=output), range(6), torch.zeros(0, *SHAPE), torch.zeros(0).long())
        if not cut:
            assert len(Margin(Margin.Options(steps=40)).test(case).p_values) == 6
            continue
        for test in (Margin(), Unsure()):
            with pytest.raises(TooFew, match="exactly 0 and 1 where it is surest: audit it without its last softmax"):
                test.test(case)


def alike(classes: int = 6, side: int = 14) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weights of classes that are alike, and ten images and labels of each."""
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(classes, 1, side, side, generator=rng)
    labels = torch.arange(10 * classes) % classes
    noise = torch.rand(len(labels), 1, side, side, generator=rng)
    return weight, (0.6 * noise + 0.4 * (weight[labels] > 0)).clamp(0, 1), labels


def case_of_samples(weight: Tensor, images: Tensor, labels: Tensor, **facts: Any) -> AuditCase:
    net = nn.Sequential(nn.Flatten(), nn.Linear(weight[0].numel(), len(weight), bias=False))
    net[1].weight.data = weight.flatten(1).clone()
    return AuditCase(wrap(net, input_shape=tuple(weight.shape[1:])), range(len(weight)), images, labels, **facts)


@pytest.mark.parametrize("test", [Likeness, Sturdiness, Rim])
def test_samples_of_classes_that_are_alike_have_no_finding(test: type[Audit]) -> None:
    weight, images, labels = alike()
    _, p = surest(test(), case_of_samples(weight, images, labels))
    assert p > 0.05 / 6


@pytest.mark.parametrize("change", [0.0, 2.0])
def test_samples_more_and_less_alike_than_others_are_found(change: float) -> None:
    weight, images, labels = alike()
    own = labels == 2
    images[own] = images[own].mean(0) + change * (images[own] - images[own].mean(0))
    found, p = surest(Likeness(), case_of_samples(weight, images, labels))
    assert (found, p < 0.01) == (2, True)


def test_the_variance_by_hand() -> None:
    """Of 0, 0 and 3 it is 3: in each square of 4 x 4, whose mean counts."""
    images = torch.zeros(9, 1, 4, 8)
    images[2:9:3] = 3.0
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    tested = Likeness().test(case_of_samples(torch.zeros(3, 1, 4, 8), images, labels))
    assert list(tested.statistics.values()) == pytest.approx([math.log(3)] * 3)
    assert tested.evidence[0] == "The variance between its samples is 3, where 3 is usual in this classifier."


def test_a_class_that_keeps_its_margin_under_noise_is_found_and_one_that_loses_it_is_not() -> None:
    """A class is asked for by one pixel, and class 4 by sixteen, whose sum noise can hardly change."""
    weight, labels = torch.zeros(6, 1, 14, 14), torch.arange(60) % 6
    weight[range(6), 0, 0, range(6)] = 1.0
    plain, sturdy = weight.clone(), weight.clone()
    sturdy[4, 0, 5:9, :4] = 1.0
    assert surest(Sturdiness(), case_of_samples(sturdy, sturdy[labels], labels))[0] == 4
    faint = plain[labels].clone()
    faint[labels == 4] *= 0.1
    tested = Sturdiness().test(case_of_samples(plain, faint, labels))
    assert min(tested.statistics, key=tested.statistics.__getitem__) == 4 and tested.p_values[4] > 0.9
    assert "Noise multiplies the lead of its samples over the next class" in tested.evidence[4]


def test_only_samples_in_which_their_label_leads_are_compared_for_sturdiness() -> None:
    """A label is one pixel; of a multi-label classifier, another one may lead."""
    weight, labels = torch.zeros(6, 1, 14, 14), torch.arange(60) % 6
    weight[range(6), 0, 0, range(6)] = 1.0
    images = weight[labels].clone()

    def statistics() -> dict[Any, float]:
        case = case_of_samples(weight, images, labels)
        target = wrap(case.target.get_submodule("module"), case.target.input_shape, output="sigmoid_logits")
        return dict(Sturdiness().test(replace(case, target=target)).statistics)

    plain = statistics()
    own = (labels == 4).nonzero()[:, 0]
    images[own[3:], 0, 0, 5] = 2.0
    some = statistics()
    assert 0 < some.pop(4) < 1.5 and some == {c: value for c, value in plain.items() if c != 4}
    images[own, 0, 0, 5] = 2.0
    assert statistics() == some
    images[labels < 4, 0, 0, 5] = 2.0
    with pytest.raises(TooFew, match="classes that lead in 3 samples or more, and there are 1"):
        statistics()


def test_the_share_of_the_rim_by_hand() -> None:
    """All evidence of class 1 is in a corner; the other classes have one pixel of it at the rim and one inside."""
    weight = torch.zeros(6, 1, 14, 14)
    for c in (0, 2, 3, 4, 5):
        weight[c, 0, 0, c] = weight[c, 0, 7, c + 3] = 1.0
    weight[1, 0, 13, 13] = weight[1, 0, 12, 12] = 1.0
    labels = torch.arange(18) % 6
    images = (weight[labels] > 0).float()
    tested = Rim().test(case_of_samples(weight, images, labels))
    assert tested.evidence[0].startswith("The outer seventh of the image holds a share of its evidence of 5")
    assert min(tested.p_values, key=tested.p_values.__getitem__) == 1


def test_what_the_samples_tests_cannot_compare_is_said() -> None:
    weight, images, labels = alike(3, 6)
    with pytest.raises(TooFew, match="the images are real"):
        Likeness().test(case_of_samples(weight, images, labels, real=True))
    with pytest.raises(TooFew, match="there are 1"):
        Sturdiness().test(case_of_samples(weight, images[labels == 0], labels[labels == 0]))
    with pytest.raises(TooFew, match="pictures of 7 pixels or more"):
        Rim().test(case_of_samples(weight, images, labels))


def test_an_image_is_fragile_if_the_shifts_change_its_answer() -> None:
    weight = torch.full((2, 36), 0.01)
    weight[0] = 0
    weight[0, 14] = 1.0
    known, plain = torch.zeros(30, *SHAPE), torch.zeros(30, *SHAPE)
    known[:, :, 2, 2] = 1.0  # pixel 14 alone
    plain[:, :, 1:4, 1:4] = 1.0  # and its neighbors
    labels = torch.zeros(30, dtype=torch.long)
    # The same images in the reference: nothing is more fragile in training.
    for reference, low in ((plain, True), (known, False)):
        case = case_of(
            weight, plain, reference=LabelledImages(reference, labels), training=LabelledImages(known, labels)
        )
        tested = Memorized(Memorized.Options(shift=1)).test(case)
        assert (tested.p_values[0] < 1e-6) is low
        assert 1 not in tested.p_values  # it has no images
        (strip,) = tested.pictures[0]
        assert torch.equal(strip.images, known[:1])


def test_fishers_exact_test_by_hand() -> None:
    # Of 4 images 2 are fragile; both of the 2 drawn are, in one of the 6 ways to draw them.
    assert more_often(2, 2, 2, 4) == pytest.approx(1 / 6)
    assert more_often(1, 2, 2, 4) == pytest.approx(5 / 6)
    assert more_often(0, 2, 2, 4) == pytest.approx(1.0)


def test_shifted_images_repeat_their_edge() -> None:
    image = torch.arange(9.0).view(1, 1, 3, 3)
    down = shifted(image, 1)[0]
    assert any(
        torch.equal(one[0, 0], torch.tensor([[0.0, 1, 2], [0, 1, 2], [3, 4, 5]])) for one in [down, *shifted(image, 1)]
    )


def test_an_outlier_among_equals_by_hand() -> None:
    # The others have no variance: t = 1 / (sd sqrt(12 / 14) sqrt(1 + 1 / 3)) with 14 degrees of freedom.
    p = outlier_p_values({"a": 0.0, "b": 0.0, "c": 0.0, "d": 1.0}, sd=0.3, df=12)
    t = 1 / (0.3 * math.sqrt(12 / 14 * 4 / 3))
    assert 1e-3 < p["d"] < 1e-2 and t == pytest.approx(3.118, abs=1e-3)
    assert p["a"] == p["b"] == p["c"] > 0.5


def test_the_samples_of_the_preset_suffice(one_pixel: AuditCase) -> None:
    report = interpkit.audit(one_pixel.target, tests=["patch"], options={"patch.steps": 60}, per_class=6, device="cpu")
    assert [finding["class"] for finding in report.findings] == [3]
    assert report.record["images"]["images"] == "samples made for the audit"
