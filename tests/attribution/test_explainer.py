"""`attribute`, what it refuses, and what is made of maps: class evidence, agreement, and whether to believe them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image
from torch import Tensor, nn

import interpkit
from interpkit import (
    Attribution,
    AttributionContext,
    Explainer,
    PluginError,
    Target,
    UsageError,
    attribute,
    class_evidence,
    evidence_agreement,
    wrap,
)
from interpkit.attribution import export, faithfulness
from interpkit.attribution.evidence import rank_correlation
from interpkit.attribution.explainer import choose_classes
from interpkit.attribution.export import explain, load_images
from interpkit.io.images import colour_scale, save_panel, smoothed, to_heat, to_overlay


class Weights(Attribution):
    """The maps are what ``make`` says; a test's own method."""

    name = "made"
    complete = True
    make: Callable[[Tensor], Tensor] = staticmethod(torch.zeros_like)

    def attribute(self, target: Target, images: Tensor, classes: Tensor, context: AttributionContext) -> Tensor:
        return type(self).make(images)


@pytest.fixture
def made(add_plugin: Callable[..., None]) -> Callable[..., None]:
    """Register a method "made" whose maps are made by a function of the images, and other methods beside it."""

    def register(make: Callable[[Tensor], Tensor], *others: type[Attribution]) -> None:
        add_plugin(type("Made", (Weights,), {"make": staticmethod(make), "__module__": __name__}), *others)

    return register


@pytest.fixture
def linear() -> Target:
    """Return a target of 1 x 2 x 2 images whose logits are (1 a + 2 b + 3 c + 4 d, 0)."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    net[1].weight.data = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
    return wrap(net, (1, 2, 2), mean=[0.25], std=[1.0])


# ------------------------------------------------------------------------------------------ attribute


def test_the_class_to_explain(linear: Target) -> None:
    images = torch.full((2, 1, 2, 2), 0.5)
    plain = {"method": "integrated-gradients", "device": "cpu"}
    weights = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    asked = attribute(linear, images, [0, 1], **plain)
    torch.testing.assert_close(asked, torch.stack([weights, 0 * weights]) * 0.5)
    predicted = attribute(linear, images, [0, 1], target_class="predicted", **plain)
    torch.testing.assert_close(predicted, weights.expand(2, 1, 2, 2) * 0.5)  # both are put in class 0
    torch.testing.assert_close(attribute(linear, images, **plain), predicted)
    for said in (1, "1"):
        assert not attribute(linear, images, [0, 0], target_class=said, **plain).any()
    for pair in ((1, 0), "1-0"):
        torch.testing.assert_close(attribute(linear, images, [0, 0], target_class=pair, **plain), -predicted)


def test_baselines(linear: Target) -> None:
    image = torch.full((1, 1, 2, 2), 0.75)
    weights = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    mean = attribute(linear, image, [0], baseline="mean", device="cpu")
    torch.testing.assert_close(mean, weights * (0.75 - 0.25))
    assert not attribute(linear, image, [0], baseline=image, device="cpu").any()
    unknown = wrap(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (1, 2, 2))
    with pytest.raises(UsageError, match="mean color of Sequential is not known"):
        attribute(unknown, image, [0], baseline="mean", device="cpu")


def test_a_baseline_stays_as_it_was_when_the_images_change_later(linear: Target) -> None:
    image = torch.full((1, 1, 2, 2), 0.75)
    explainer = Explainer(linear, baseline=image, device="cpu")
    image.zero_()
    assert torch.equal(explainer.baselines, torch.full((1, 1, 2, 2), 0.75))


def test_the_mean_colour_is_in_the_images_channel_order_and_range() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    target = wrap(net, (3, 2, 2), mean=[-1.0, 0.0, 0.5], std=[1.0, 1.0, 1.0], input_range=(-1, 1), channel_order="bgr")
    assert Explainer(target, baseline="mean", device="cpu").baselines[0, :, 0, 0].tolist() == [0.75, 0.5, 0.0]


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (r"no attribution 'salency'.*Did you mean 'saliency'", {"method": "salency"}),
        (r"no option 'step'.*Did you mean 'steps'", {"options": {"step": 3}}),
        (r"no layer '1x' .*Layers: 0, 1", {"layer": "1x"}),
        (r"no class 2; Sequential's are 0 to 1", {"target_class": 2}),
        (r"no class 7", {"labels": [7]}),
        (r"two as in 3-5; not '1-1'", {"target_class": "1-1"}),
        (r"two as in 3-5; not 'most': .*no class called 'most'", {"target_class": "most"}),
        (r"black, mean, or a tensor.*'white'", {"baseline": "white"}),
        (r"takes images of \(1, 2, 2\); these are \(3, 1, 4, 4\)", {"images": torch.rand(3, 1, 4, 4)}),
        (r"these are \(0, 1, 2, 2\)", {"images": torch.rand(0, 1, 2, 2)}),
        (r"from 0 to 255", {"images": torch.tensor([0.0, 1.0, 2.0, 255.0]).view(1, 1, 2, 2)}),
        (r"not finite", {"images": torch.full((1, 1, 2, 2), torch.nan)}),
        (r"1 images but labels of shape \(2,\)", {"labels": [0, 1]}),
        (r"rows = 0", {"rows": 0}),
    ],
)
def test_what_is_refused(linear: Target, words: str, settings: dict[str, Any]) -> None:
    given = {"images": torch.rand(1, 1, 2, 2), "labels": [0], "device": "cpu"} | settings
    with pytest.raises(UsageError, match=words):
        attribute(linear, given.pop("images"), given.pop("labels"), **given)


@pytest.mark.parametrize(("asked", "numbers"), [("T-shirt", (1, None)), ("t-shirt-cat", (1, 0)), (("cat", 1), (0, 1))])
def test_classes_to_explain_may_be_named(asked: str | tuple[str | int, str | int], numbers: tuple[int, Any]) -> None:
    target = wrap(nn.Identity(), (2,), class_names=["cat", "T-shirt"])
    classes, against = choose_classes(target, torch.rand(3, 2), None, asked)
    assert (classes.tolist(), against) == ([numbers[0]] * 3, numbers[1])


def test_a_method_that_gives_other_shapes_or_fails_is_named(linear: Target, made: Callable[..., None]) -> None:
    def fail(images: Tensor) -> Tensor:
        raise ValueError("no maps today")

    faults: dict[str, Callable[[Tensor], Any]] = {
        r"maps has the shape \(1, 1, 2, 2\), not \(1, 1, 1, 2\)": lambda images: images[:, :, :1],
        "maps is a tensor, not NoneType": lambda images: None,
        "maps is on the device cpu, not meta": lambda images: images.to("meta"),
        r"failed: ValueError: no maps today \(.*test_explainer\.py, line \d+\)": fail,
    }
    faulty = iter(faults.values())
    made(lambda images: next(faulty)(images))
    for words in faults:
        with pytest.raises(PluginError, match=f"the attribution 'made' of the plugin 'mine' .*{words}"):
            attribute(linear, torch.rand(1, 1, 2, 2), [0], method="made", device="cpu")


def test_what_a_classifier_raises_is_not_a_fault_of_the_method(made: Callable[..., None]) -> None:
    class Shy(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Tensor) -> Tensor:
            return x.flatten(1)

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Tensor:
            raise RuntimeError("I have no derivative")

    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Shy.apply(x)

    target = interpkit.wrap(Module(), (1, 2, 2))
    with pytest.raises(UsageError, match="saliency does not support Module: I have no derivative"):
        attribute(target, torch.rand(1, 1, 2, 2), [0], method="saliency", device="cpu")


def test_a_method_that_fails_takes_no_other_with_it(linear: Target, made: Callable[..., None], tmp_path: Path) -> None:
    class Unbuilt(Attribution):
        name = "unbuilt"

        def __init__(self, options: Any = None) -> None:
            raise ValueError("not even begun")

        def attribute(self, *arguments: Any) -> Tensor:
            raise AssertionError

    made(lambda images: images / 0, Unbuilt)
    images = torch.rand(2, 1, 2, 2), torch.tensor([0, 1])
    how: dict[str, Any] = {"images": images, "checks": False, "device": "cpu"}
    summary = explain(linear, tmp_path, methods=["made", "unbuilt", "saliency"], **how)
    assert list(summary["methods"]) == ["saliency"]
    assert "not finite" in summary["left_out"]["made"]
    assert "'unbuilt' of the plugin 'mine' failed: ValueError: not even begun" in summary["left_out"]["unbuilt"]
    with pytest.raises(PluginError, match="not even begun"):
        explain(linear, tmp_path, methods=["unbuilt"], **how)


def test_too_little_memory_says_how_many_rows_there_were(linear: Target, made: Callable[..., None]) -> None:
    def fail(images: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("no more")

    made(fail)
    with pytest.raises(interpkit.RunError, match=r"made ran out of memory\. Lower rows, now 7"):
        attribute(linear, torch.rand(1, 1, 2, 2), [0], method="made", rows=7, device="cpu")


def test_images_of_8_bits_are_those_in_the_unit_range(linear: Target, made: Callable[..., None]) -> None:
    made(lambda images: images)
    images = torch.tensor([0, 51, 102, 255], dtype=torch.uint8).view(1, 1, 2, 2)
    maps = attribute(linear, images, [0], method="made", device="cpu")
    torch.testing.assert_close(maps.flatten(), torch.tensor([0.0, 0.2, 0.4, 1.0]))


def test_images_to_explain_are_named_or_are_a_runs(linear: Target, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name the images to explain by images=FILE, or a run"):
        explain(linear, tmp_path, device="cpu")


def test_maps_that_are_not_finite_are_not_passed_on(linear: Target, made: Callable[..., None]) -> None:
    made(lambda images: images / 0)
    with pytest.raises(interpkit.RunError, match=r"'made' of the plugin 'mine' returned maps of Seq.* not finite"):
        attribute(linear, torch.rand(1, 1, 2, 2), [0], method="made", device="cpu")


# --------------------------------------------------------------------------------- maps of a class


def test_maps_that_are_zero_all_over_are_said_with_the_reason_if_it_is_known(caplog: pytest.LogCaptureFixture) -> None:
    class Steps(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).round()

    weight = torch.tensor([[9.0, -9.0, 9.0, -9.0], [0.0, 0.0, 0.0, 0.0]])
    nets = nn.Linear(4, 2), Steps(4, 2)
    for net in nets:
        net.weight.data = weight.clone()
    plain, stepped = (wrap(net, (4,)) for net in nets)
    for target, label, reason in ((plain, 1, "no pixel counts"), (stepped, 0, stepped.no_gradient)):
        caplog.clear()
        assert not attribute(target, torch.rand(2, 4), [label] * 2, method="saliency", device="cpu").any()
        assert caplog.messages == [f"the maps of saliency are zero all over: {reason}"] and reason


def test_a_baseline_of_a_class_is_of_samples_in_which_the_label_is_present() -> None:
    net = nn.Linear(2, 2)
    net.weight.data, net.bias.data = torch.eye(2), torch.tensor([-0.5, -0.5])
    target = wrap(net, (2,), output="sigmoid_logits")
    images = torch.tensor([[0.9, 0.8], [0.9, 0.1], [0.1, 0.7]])  # the second label leads in the last alone
    kept = export._baseline(target, "class:1", (images, None), "cpu")
    assert isinstance(kept, Tensor) and torch.equal(kept, images[[0, 2]])


def test_the_labels_of_data_are_not_those_of_units(tiny_target: Target, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 12, 12), np.uint8)
    np.savez(tmp_path / "data.npz", images=pixels, labels=np.arange(4) % 3)
    units = interpkit.units(tiny_target, [f"{tiny_target.feature_layer}:0,1"])
    (images, labels), (same, own) = (load_images(str(tmp_path / "data.npz"), one) for one in (units, tiny_target))
    assert labels is None and own is not None and torch.equal(images, same)


def test_class_evidence_by_hand() -> None:
    maps = torch.tensor([1.0, 5.0, 7.0, 3.0]).view(4, 1, 1, 1)
    evidence = class_evidence(maps, torch.tensor([2, 0, 2, 2]))
    assert evidence.labels.tolist() == [0, 2] and evidence.count.tolist() == [1, 3]
    assert evidence.mean.flatten().tolist() == pytest.approx([5, 11 / 3])
    assert evidence.spread.flatten().tolist() == pytest.approx([0, torch.tensor([1.0, 7, 3]).std().item()])


def test_agreement_by_hand() -> None:
    one = class_evidence(torch.tensor([[1.0, 2, 3], [1, 0, 0], [0, 0, 0]]), torch.tensor([0, 1, 2]))
    other = class_evidence(torch.tensor([[2.0, 4, 9], [0, 1, 0], [1, 2, 3]]), torch.tensor([0, 1, 2]))
    found = evidence_agreement(one, other)
    assert found[0]["cosine"] == pytest.approx(37 / (14 * 101) ** 0.5) and found[0][
        "rank_correlation"
    ] == pytest.approx(1)
    assert found[1] == {"cosine": 0.0, "rank_correlation": pytest.approx(-0.5)}
    assert found[2] == {"cosine": None, "rank_correlation": None}  # a map of zeros is like none
    assert list(evidence_agreement(one, class_evidence(torch.ones(1, 3), torch.tensor([1])))) == [1]


def test_the_agreement_of_faint_maps_does_not_depend_on_their_scale() -> None:
    maps, labels = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([0])
    whole = class_evidence(maps, labels)
    for scale in (1e-11, 1e-30):
        faint = class_evidence(maps * scale, labels)
        for pair in ((whole, faint), (faint, whole), (faint, faint)):
            assert evidence_agreement(*pair)[0]["cosine"] == pytest.approx(1)


def test_rank_correlation_is_spearmans_with_ties() -> None:
    one, other = torch.randint(0, 5, (3, 20)).float(), torch.randint(0, 5, (3, 20)).float()
    expected = [scipy.stats.spearmanr(a, b).statistic for a, b in zip(one, other, strict=True)]
    assert rank_correlation(one, other).tolist() == pytest.approx(expected)
    assert rank_correlation(torch.zeros(1, 4), torch.rand(1, 4)).isnan().all()


# -------------------------------------------------------------------------------------- faithfulness


@pytest.fixture
def asked() -> tuple[Tensor, Tensor]:
    return torch.rand(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64)


def test_completeness_finds_a_liar(linear: Target, made: Callable[..., None], asked: tuple[Tensor, Tensor]) -> None:
    made(torch.zeros_like)
    liar, honest = Explainer(linear, "made", device="cpu"), Explainer(linear, device="cpu")
    assert faithfulness.completeness(liar, *asked, liar.maps(*asked))["relative_error"] == pytest.approx(1)
    figures = faithfulness.completeness(honest, *asked, honest.maps(*asked))
    assert figures["relative_error"] < 1e-5 and figures["worst"] < 1e-4


def test_infidelity_is_nothing_for_the_truth_and_one_for_zeros(linear: Target, asked: tuple[Tensor, Tensor]) -> None:
    for method, options in (("integrated-gradients", {}), ("saliency", {"signed": True})):
        explainer = Explainer(linear, method, options=options, device="cpu")
        maps = explainer.maps(*asked)
        assert faithfulness.infidelity(explainer, *asked, maps) < 1e-6
        assert faithfulness.infidelity(explainer, *asked, torch.zeros_like(maps)) == pytest.approx(1)
        assert faithfulness.infidelity(explainer, *asked, maps.flip(2)) > 0.05


def test_sensitivity_of_a_constant_gradient_is_nothing(linear: Target, asked: tuple[Tensor, Tensor]) -> None:
    assert faithfulness.sensitivity(Explainer(linear, "saliency", device="cpu"), *asked) < 1e-6
    assert faithfulness.sensitivity(Explainer(linear, "input-x-gradient", device="cpu"), *asked) > 1e-3


def test_what_a_method_draws_does_not_count_as_sensitivity(tiny_target: Target) -> None:
    images, classes = torch.rand(3, *tiny_target.input_shape), torch.zeros(3, dtype=torch.int64)
    explainer = Explainer(tiny_target, "smoothgrad", options={"samples": 2}, device="cpu")
    assert faithfulness.sensitivity(explainer, images, classes, radius=1e-7) < 1e-3


def test_the_checks_do_not_depend_on_the_rows_of_a_pass(tiny_target: Target) -> None:
    images, classes = torch.rand(3, *tiny_target.input_shape), torch.zeros(3, dtype=torch.int64)
    few, many = (Explainer(tiny_target, "input-x-gradient", rows=rows, device="cpu") for rows in (2, 64))
    maps = many.maps(images, classes)
    one, other = (faithfulness.infidelity(explainer, images, classes, maps) for explainer in (few, many))
    assert 0 < one < 1 and one == pytest.approx(other, rel=1e-4)
    one, other = (faithfulness.sensitivity(explainer, images, classes) for explainer in (few, many))
    assert one == pytest.approx(other, rel=1e-4)


def test_the_deletion_curve_by_hand(linear: Target) -> None:
    images = torch.ones(1, 1, 2, 2)
    explainer = Explainer(linear, device="cpu")
    classes = torch.tensor([0])

    def area(*logits: float) -> float:
        curve = torch.tensor(logits)  # the mean, 0.25, is taken off every pixel: 2.5 in all
        return torch.trapezoid((curve - 2.5).sigmoid(), dx=0.25).item()

    best = torch.tensor([1.0, 2, 3, 4]).view(1, 1, 2, 2)
    assert faithfulness.deletion(explainer, images, classes, best, steps=4).tolist() == pytest.approx(
        [area(10, 6, 3, 1, 0)]
    )
    assert faithfulness.deletion(explainer, images, classes, -best, steps=4).tolist() == pytest.approx(
        [area(10, 9, 7, 4, 0)]
    )


def test_deletion_compares_maps_on_the_images_whose_class_has_evidence(tiny_target: Target, tmp_path: Path) -> None:
    images, labels = torch.rand(6, 1, 12, 12), torch.tensor([0, 0, 1, 1, 2, 2])

    def deletion(shown: Tensor) -> dict[str, float]:
        given = {"images": (images[shown], labels[shown]), "inverted": (images[labels == 1], labels[labels == 1])}
        summary = explain(tiny_target, tmp_path, methods=["saliency"], checks=False, device="cpu", **given)
        figures: dict[str, float] = summary["methods"]["saliency"]["deletion"]
        return figures

    of_all, of_one = deletion(labels >= 0), deletion(labels == 1)
    assert (of_all["maps"], of_all["class_evidence"]) == pytest.approx((of_one["maps"], of_one["class_evidence"]))
    assert set(deletion(labels == 0)) == {"maps", "random"}


def test_randomised_weights_tell_an_explanation_from_an_edge_detector(
    tiny_target: Target, module_state: Callable[[nn.Module], dict[str, Any]], made: Callable[..., None]
) -> None:
    made(lambda images: images - 0.5)  # it has not even seen the classifier
    before = module_state(tiny_target)
    images, classes = torch.rand(4, 1, 12, 12), torch.tensor([0, 1, 2, 0])
    honest, blind = Explainer(tiny_target, "saliency", device="cpu"), Explainer(tiny_target, "made", device="cpu")
    maps = honest.maps(images, classes)
    stages = faithfulness.weight_randomisation(honest, images, classes, maps)
    assert stages[-1]["randomised"] == stages[-1]["layers"] == 4 and stages[-1]["rank_correlation"] < 0.6
    stages = faithfulness.weight_randomisation(blind, images, classes, blind.maps(images, classes))
    assert [row["rank_correlation"] for row in stages] == pytest.approx([1.0] * 4)
    assert module_state(tiny_target) == before
    assert torch.equal(honest.maps(images, classes), maps)


def test_a_classifier_that_cannot_be_randomised_is_reported_and_the_other_checks_go_on(tmp_path: Path) -> None:
    class Lonely(nn.Flatten):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("there is but one")

    images = torch.rand(4, 1, 1, 2), torch.tensor([0, 1, 0, 1])
    for module, words in ((Lonely(), "Lonely cannot be copied, .*there is but one"), (nn.Flatten(), "has no weights")):
        explainer = Explainer(wrap(module, (1, 1, 2)), "saliency", device="cpu")
        with pytest.raises(UsageError, match=words):
            faithfulness.weight_randomisation(explainer, *images, explainer.maps(*images))
    summary = explain(wrap(Lonely(), (1, 1, 2)), tmp_path, methods=["saliency"], images=images, device="cpu")
    figures = summary["methods"]["saliency"]
    assert "randomisation" not in figures and figures["sensitivity"] is not None
    assert any("there is but one" in note for note in figures["notes"])


# ------------------------------------------------------------------------------------------ pictures


def test_one_colour_scale_serves_a_panel(tmp_path: Path) -> None:
    maps = torch.zeros(2, 3, 10, 10)
    maps[0, :, 0, 0], maps[1, 0, 5, 5] = 1.0, -1.5
    scale = colour_scale(maps)
    assert 0 < scale <= 3
    reddest, blue = (to_heat(m, 3.0) for m in maps)
    assert reddest.getpixel((0, 0)) == (178, 24, 43) and reddest.getpixel((1, 1)) == (255, 255, 255)
    half = tuple(round(255 + 0.5 * (c - 255)) for c in (33, 102, 172))
    assert all(abs(a - b) <= 1 for a, b in zip(blue.getpixel((5, 5)), half, strict=True))
    over = to_overlay(torch.full((1, 10, 10), 100, dtype=torch.uint8), maps[0], 3.0)
    assert over.getpixel((1, 1)) == (162, 162, 162)  # the image, lightened, where nothing speaks
    assert over.getpixel((0, 0)) == tuple(round(162 + 0.8 * (c - 162)) for c in (178, 24, 43))
    save_panel([("a", [reddest, blue]), ("b", [blue])], "words", tmp_path / "panel.png")
    with Image.open(tmp_path / "panel.png") as picture:
        assert picture.width > 2 * 48 and picture.height > 2 * 48


def test_maps_of_large_images_are_drawn_as_averages_and_their_sum_stays() -> None:
    small = torch.randn(1, 1, 63, 80)
    assert smoothed(small)[0] is small and smoothed(small)[1] == 1
    for side, square in ((64, 3), (224, 5), (448, 11)):
        dot = torch.zeros(1, 1, side, side)
        dot[..., side // 2, side // 2] = 1
        drawn, averaged = smoothed(dot)
        assert averaged == square and drawn.sum() == pytest.approx(1)
        assert drawn.max() == drawn[0, 0, side // 2, side // 2] == pytest.approx(1 / square**2)


@pytest.fixture
def captions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return the captions of the panels that are drawn from now on, by their files' names."""
    written: dict[str, str] = {}
    monkeypatch.setattr(export, "save_panel", lambda _, caption, path: written.update({path.name: caption}))
    return written


@pytest.mark.parametrize(
    ("asked", "explained"),
    [("asked", "the class"), ("owl", "owl"), (("owl", "cat"), "owl over cat"), ("predicted", "the class explained")],
    ids=str,
)
def test_the_captions_of_panels_name_the_class_that_the_maps_explain(
    captions: dict[str, str], asked: Any, explained: str, tmp_path: Path
) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 4, bias=False))
    net[1].weight.data = torch.eye(4) - 0.5
    target = wrap(net, (1, 2, 2), class_names=["cat", "dog", "owl", "cow"])
    images = (0.1 + 0.9 * torch.eye(4))[[3, 2, 2]].view(3, 1, 2, 2), torch.tensor([0, 0, 1])
    meanings = {
        "integrated-gradients": f"red speaks for {explained}, blue against",
        "saliency": f"the redder, the more it counts for {explained}",
    }
    explain(target, tmp_path, images=images, methods=[*meanings], target_class=asked, checks=False, device="cpu")
    for method, meaning in meanings.items():
        assert captions[f"{method}.png"].startswith(f"image, map, both: {meaning}; full color = ")
        assert f"mean map (of {explained}), spread" in captions[f"{method}-classes.png"]


def test_a_panel_of_many_classes_says_how_many_it_draws(captions: dict[str, str], tmp_path: Path) -> None:
    target = wrap(nn.Sequential(nn.Flatten(), nn.Linear(4, 60)), (1, 2, 2))
    images = torch.rand(60, 1, 2, 2), torch.arange(60)
    explain(target, tmp_path, images=images, methods=["saliency"], checks=False, device="cpu")
    assert captions["saliency.png"].endswith("; the first 50 of 60 classes")


def test_the_notes_of_a_summary_are_of_the_explained_images_and_not_of_the_checks(
    linear: Target, add_plugin: Callable[..., None], tmp_path: Path
) -> None:
    class Noting(Weights):
        """Say how bright the images are; the checks make them brighter or darker."""

        name = "noting"

        def attribute(self, target: Target, images: Tensor, classes: Tensor, context: AttributionContext) -> Tensor:
            context.note(f"noting: a mean of {images.mean():.4f}")
            return images

    add_plugin(Noting)
    images = torch.full((2, 1, 2, 2), 0.5), torch.tensor([0, 1])
    figures = explain(linear, tmp_path, images=images, methods=["noting"], device="cpu")["methods"]["noting"]
    assert figures["sensitivity"] > 0 and figures["randomisation"]
    assert figures["notes"] == ["noting: a mean of 0.5000"]


def test_maps_of_zeros_are_drawn_and_noted(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    nn.init.zeros_(net[1].weight)
    target = wrap(net, (1, 4, 4))
    images = (torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 0, 1]))
    summary = explain(target, tmp_path, images=images, inverted=images, methods=["all"], device="cpu")
    figures = summary["methods"]["integrated-gradients"]
    assert figures["completeness"] == {"relative_error": 0.0, "worst": 0.0}
    assert any("zero all over" in note for note in figures["notes"])
    assert figures["agreement"][0]["cosine"] is None
    assert set(summary["left_out"]) == {"grad-cam", "guided-grad-cam", "attention-rollout"}  # no grid, no attention
    with Image.open(tmp_path / "integrated-gradients.png") as picture:
        colors = {picture.convert("RGB").getpixel((picture.width - 10, 20))}
    assert colors == {(255, 255, 255)}


def test_methods_that_share_a_name_with_the_default_one_leave_it_the_default(
    linear: Target, add_plugin: Callable[..., None], tmp_path: Path
) -> None:
    add_plugin(type("Mine", (Weights,), {"name": "integrated-gradients"}))
    images = (torch.rand(2, 1, 2, 2), torch.tensor([0, 1]))
    assert attribute(linear, images[0]).any()
    summary = explain(linear, tmp_path, images=images, methods=["all"], device="cpu", checks=False)
    for name in ("captum", "mine"):
        assert f"{name}:integrated-gradients" in summary["methods"]
        assert (tmp_path / f"{name}-integrated-gradients.safetensors").is_file()


def test_a_method_that_changes_baselines_and_classes_in_place_changes_its_own_alone(
    linear: Target, add_plugin: Callable[..., None]
) -> None:
    class Eats(Attribution):
        name = "eats"

        def attribute(self, target: Target, images: Tensor, classes: Tensor, context: AttributionContext) -> Tensor:
            maps = images - context.baselines.mean(0) + classes.view(-1, 1, 1, 1)
            context.baselines.add_(0.5)
            classes.add_(1)
            return maps

    add_plugin(Eats)
    images, classes = torch.rand(1, 1, 2, 2).repeat(4, 1, 1, 1), torch.zeros(4, dtype=torch.int64)
    explainer = Explainer(linear, "eats", rows=2, device="cpu")
    maps = explainer.maps(images, classes)
    assert torch.equal(maps[:2], maps[2:]) and not explainer.baselines.any() and not classes.any()
