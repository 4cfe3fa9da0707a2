"""The Captum plugin, against values worked by hand and Captum itself, and on targets that are hard to explain."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import captum.attr
import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import interpkit
from interpkit import Explainer, Target, UsageError, attribute, wrap
from interpkit.plugins.discovery import installed

MNIST = Path(__file__).parents[2] / "examples" / "models" / "mnist.safetensors"
QUICK: dict[str, dict[str, Any]] = {
    "integrated-gradients": {"steps": 4},
    "gradient-shap": {"samples": 5},
    "smoothgrad": {"samples": 5},
    "kernel-shap": {"samples": 20, "cells": 3},
}
METHODS = (
    "integrated-gradients",
    "saliency",
    "input-x-gradient",
    "grad-cam",
    "guided-grad-cam",
    "occlusion",
    "gradient-shap",
    "smoothgrad",
    "kernel-shap",
    "region-ablation",
)
every_method = pytest.mark.parametrize("method", METHODS)


def quick(target: Target, images: Tensor, labels: Tensor, method: str, **settings: Any) -> Tensor:
    return attribute(target, images, labels, method=method, options=QUICK.get(method), device="cpu", **settings)


class Net(nn.Module):
    """A small network with options for awkward layers."""

    def __init__(self, inplace: bool = False, reuse: bool = False, adds_in_place: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=inplace)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4, 3)
        self.reuse, self.adds_in_place = reuse, adds_in_place

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        for _ in range(2 if self.reuse else 1):
            x = self.relu(self.second(x))
        if self.adds_in_place:
            x += 1.0
        return self.head(self.pool(x).flatten(1))


@pytest.fixture
def images() -> Tensor:
    return torch.rand(5, 1, 12, 12)


@pytest.fixture
def labels() -> Tensor:
    return torch.tensor([0, 1, 2, 1, 0])


# ------------------------------------------------------------------------------------- worked by hand


@pytest.mark.parametrize("shape", [(3, 4, 4), (6,)])
def test_a_linear_target_is_explained_by_its_weights(
    linear_target: Callable[..., Target], shape: tuple[int, ...]
) -> None:
    target = linear_target(shape)
    weights = target.module[1].weight[0].detach().view(shape)
    x, one, other = torch.rand(3, *shape), torch.rand(1, *shape), torch.rand(1, *shape)
    zero = torch.tensor([0, 0, 0])

    def maps(method: str, **settings: Any) -> Tensor:
        return attribute(target, x, zero, method=method, device="cpu", **settings)

    near = {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(maps("integrated-gradients", baseline=one), weights * (x - one), **near)
    both = weights * (x - (one + other) / 2)
    torch.testing.assert_close(maps("integrated-gradients", baseline=torch.cat([one, other])), both, **near)
    torch.testing.assert_close(maps("gradient-shap", baseline=one), weights * (x - one), **near)
    torch.testing.assert_close(maps("input-x-gradient"), weights * x, **near)
    torch.testing.assert_close(maps("saliency"), weights.abs().expand_as(x), **near)
    torch.testing.assert_close(maps("saliency", options={"signed": True}), weights.expand_as(x), **near)
    torch.testing.assert_close(maps("smoothgrad"), weights.abs().expand_as(x), **near)
    # The logits are (w.x, -w.x), so "0 rather than 1" has twice the evidence.
    difference = maps("integrated-gradients", baseline=one, target_class=(0, 1))
    torch.testing.assert_close(difference, 2 * weights * (x - one), **near)
    options = {"window": 1, "stride": 1}
    occluded = (weights * (x - one)).sum(0 if len(shape) == 1 else 1, keepdim=True)  # all channels of a pixel at once
    occluded = weights * (x - one) if len(shape) == 1 else occluded.expand_as(x)
    torch.testing.assert_close(maps("occlusion", baseline=one, options=options), occluded, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 10), (2, 3, 4, 5)], ids=["signal", "volume"])
def test_a_window_of_a_signal_or_volume_stays_within_its_channel(shape: tuple[int, ...]) -> None:
    linear = nn.Linear(torch.Size(shape).numel(), 2, bias=False)
    weights = torch.zeros(shape)
    weights[1] = 1.0  # the first channel does not count
    linear.weight.data = torch.stack([weights.flatten(), 0 * weights.flatten()])
    target, x = wrap(nn.Sequential(nn.Flatten(), linear), shape), 0.5 + 0.5 * torch.rand(3, *shape)
    options = {"window": 3, "stride": 1}
    maps = attribute(target, x.flatten(1), [0] * 3, method="occlusion", options=options, device="cpu")
    first, second = maps.view(3, *shape).unbind(1)
    assert maps.shape == (3, weights.numel()) and not first.any() and (second > 0).all()
    alone = attribute(target, x.flatten(1), [0] * 3, method="occlusion", device="cpu")  # each value by itself
    torch.testing.assert_close(alone, (weights * x).flatten(1), rtol=1e-3, atol=1e-5)


def test_grad_cam_equals_captums_on_convolutions(images: Tensor, labels: Tensor) -> None:
    net = Net()
    target = wrap(net, (1, 12, 12))
    layer = captum.attr.LayerGradCam(target, net.second)
    theirs = layer.attribute(images, target=labels, relu_attributions=True).detach()
    theirs = F.interpolate(theirs, (12, 12), mode="bilinear", align_corners=False)
    assert theirs.any()
    torch.testing.assert_close(quick(target, images, labels, "grad-cam", layer="second"), theirs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        guided = captum.attr.GuidedBackprop(target).attribute(images.clone().requires_grad_(), target=labels)
    found = quick(target, images, labels, "guided-grad-cam", layer="second")
    torch.testing.assert_close(found, theirs * guided.detach())


def test_grad_cam_gives_every_channel_the_same_map() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    maps = quick(wrap(net, (3, 8, 8)), torch.rand(2, 3, 8, 8), torch.tensor([0, 1]), "grad-cam")
    assert maps.shape == (2, 3, 8, 8) and maps.any() and torch.equal(maps[:, 0], maps[:, 2])


# -------------------------------------------------------------------------------------------- regions


@pytest.mark.parametrize(("method", "options"), [("kernel-shap", {"samples": 60}), ("region-ablation", {})])
def test_regions_of_a_linear_target_add_up_their_pixels(
    method: str, options: dict[str, Any], linear_target: Callable[..., Target], tmp_path: Path
) -> None:
    target, x, base = linear_target((3, 4, 4)), torch.rand(2, 3, 4, 4), torch.rand(1, 3, 4, 4)
    shares = target.module[1].weight[0].detach().view(3, 4, 4) * (x - base)

    def maps(**more: Any) -> Tensor:
        return attribute(target, x, [0, 0], method=method, baseline=base, options=options | more, device="cpu")

    by_cell = F.avg_pool2d(shares, 2).mean(1, keepdim=True)
    by_cell = F.interpolate(by_cell, scale_factor=2).expand_as(x)
    torch.testing.assert_close(maps(cells=2), by_cell, rtol=1e-3, atol=1e-4)
    drawn = np.zeros((4, 4, 3), np.uint8)
    drawn[1:3, :, 0] = 200  # a red stripe on black
    PIL.Image.fromarray(drawn).save(tmp_path / "regions.png")
    stripe = torch.from_numpy(drawn[:, :, 0] > 0)
    by_color = torch.where(
        stripe, shares[:, :, stripe].mean((1, 2))[:, None, None], shares[:, :, ~stripe].mean((1, 2))[:, None, None]
    )
    found = maps(regions=str(tmp_path / "regions.png"))
    torch.testing.assert_close(found, by_color[:, None].expand_as(x), rtol=1e-3, atol=1e-4)


def test_kernel_shap_equals_exact_shapley_values_where_features_interact() -> None:
    class Products(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            score = x[:, 0] * x[:, 1] + 2 * x[:, 2] + x[:, 0] * x[:, 1] * x[:, 2]
            return torch.stack([score, -score], 1)

    target = wrap(Products(), (3,))
    found = attribute(target, torch.ones(1, 3), [0], method="kernel-shap", options={"samples": 2000}, device="cpu")
    by_hand = torch.tensor([[1 / 2 + 1 / 3, 1 / 2 + 1 / 3, 2 + 1 / 3]])
    torch.testing.assert_close(found, by_hand, rtol=0.05, atol=0.02)
    torch.testing.assert_close(found.sum(), torch.tensor(4.0), rtol=1e-3, atol=1e-3)  # complete, whatever was drawn


def test_regions_that_do_not_fit_are_refused(linear_target: Callable[..., Target], tmp_path: Path) -> None:
    def refuses(
        message: str, method: str = "kernel-shap", shape: tuple[int, ...] = (1, 40, 40), **options: Any
    ) -> None:
        with pytest.raises(UsageError, match=message):
            attribute(linear_target(shape), torch.rand(1, *shape), [0], method=method, options=options, device="cpu")

    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    PIL.Image.fromarray(noise).save(tmp_path / "noise.png")
    PIL.Image.fromarray(noise[:8]).save(tmp_path / "small.png")
    (tmp_path / "text.png").write_text("no picture")
    refuses("cannot be read as a picture", regions=str(tmp_path / "text.png"))
    refuses("cannot be read as a picture", method="region-ablation", regions=str(tmp_path / "missing.png"))
    refuses(r"small.png have 8 x 40 pixels, but the target's images 40 x 40", regions=str(tmp_path / "small.png"))
    refuses("more than 1000. Use fewer: draw each in one flat color", regions=str(tmp_path / "noise.png"))
    refuses("needs more samples than regions: there are 49 regions and 40 samples", samples=40)
    refuses("needs at least two regions", cells=1)
    refuses("the option 'regions' is for images", shape=(6,), regions=str(tmp_path / "small.png"))


# --------------------------------------------------------------------------------------------- layers


def test_the_layer_chosen_in_a_vision_transformer_still_uses_its_patches() -> None:
    vit = torchvision.models.VisionTransformer(
        image_size=16, patch_size=4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=8, num_classes=3
    )
    nn.init.normal_(vit.heads.head.weight)  # initialized with zeros
    target = wrap(vit, (3, 16, 16))
    images, labels = torch.rand(2, 3, 16, 16), torch.tensor([0, 1])
    signed = {"signed": True}
    found = attribute(target, images, labels, method="grad-cam", options=signed, device="cpu")
    assert found.shape == (2, 3, 16, 16) and found.flatten(1).std(1).min() > 0
    # After the last attention only the class token is used, so the patches have no effect.
    dead = attribute(target, images, labels, method="grad-cam", options=signed, layer="encoder.ln", device="cpu")
    assert not dead.any()


def test_patches_keep_their_positions() -> None:
    class Patches(nn.Module):
        """Tokens are the patches' means, after a class token; the score is the mean of the patch tokens."""

        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Identity()
            self.head = nn.Linear(1, 2, bias=False)
            self.head.weight.data = torch.tensor([[1.0], [-1.0]])

        def forward(self, x: Tensor) -> Tensor:
            means = F.avg_pool2d(x, 4).flatten(2).transpose(1, 2)
            tokens = self.tokens(torch.cat([torch.zeros_like(means[:, :1]), means], 1))
            return self.head(tokens[:, 1:].mean(1))

    image = torch.zeros(1, 1, 8, 12)
    image[:, :, :4, 8:] = 1
    target = wrap(Patches(), (1, 8, 12))
    cam = attribute(target, image, [0], method="grad-cam", device="cpu")[0, 0]
    assert cam[0, 11] > 0 and cam[0, 11] == cam.max() and not cam[6:, :6].any()


class Arranged(nn.Module):
    """Sixteen patches of 4 x 4, each of 5 channels, in some arrangement; the score is their mean by channel."""

    def __init__(self, arrange: Callable[[Tensor], Tensor], restore: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(1, 10, 4, 4, bias=False)
        self.arranged, self.head = nn.Identity(), nn.Linear(10, 3)
        self.arrange, self.restore = arrange, restore

    def forward(self, x: Tensor) -> Tensor:
        arranged = self.arranged(self.arrange(self.patches(x)))
        return self.head(self.restore(arranged).mean((2, 3)))


def extended(tokens: Tensor) -> Tensor:
    """Prepend two tokens that do not depend on the image to others, (B, N, D)."""
    return torch.cat([torch.ones_like(tokens[:, :2]), tokens], 1)


def unfolded(tokens: Tensor) -> Tensor:
    """Return the patches of (B, N, D) tokens as (B, D, 4, 4)."""
    return tokens[:, -16:].transpose(1, 2).unflatten(2, (4, 4))


ARRANGEMENTS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "(h, w, C)": (lambda x: x.permute(0, 2, 3, 1), lambda x: x.permute(0, 3, 1, 2)),
    "(C, w, h)": (lambda x: x.transpose(2, 3), lambda x: x.transpose(2, 3)),
    "(2 + 4 x 4 tokens, C)": (lambda x: extended(x.flatten(2).transpose(1, 2)), unfolded),
    "(C, 4 x 4 tokens)": (lambda x: x.flatten(2), lambda x: x.unflatten(2, (4, 4))),
    "(2 + 4 x 4 tokens, B, C)": (
        lambda x: extended(x.flatten(2).transpose(1, 2)).transpose(0, 1),
        lambda x: unfolded(x.transpose(0, 1)),
    ),
    "(C, 4 x 4 tokens, C)": (  # heads, tokens, features
        lambda x: x.unflatten(1, (2, 5)).flatten(3).transpose(2, 3),
        lambda x: x.transpose(2, 3).flatten(1, 2).unflatten(2, (4, 4)),
    ),
}


@pytest.mark.parametrize("axes", ARRANGEMENTS)
def test_the_axes_of_a_grid_are_found_in_any_order(axes: str) -> None:
    plain = wrap(Arranged(lambda x: x, lambda x: x), (1, 16, 16))
    target = wrap(Arranged(*ARRANGEMENTS[axes]), (1, 16, 16))
    images, labels = torch.rand(5, 1, 16, 16), torch.tensor([0, 1, 2, 1, 0])
    explainer = Explainer(target, "grad-cam", layer="arranged", options={"signed": True}, device="cpu")
    usual = Explainer(plain, "grad-cam", layer="patches", options={"signed": True}, device="cpu")
    torch.testing.assert_close(explainer.maps(images, labels), usual.maps(images, labels))
    assert explainer.notes[0].endswith(f"as {axes}.")


def test_a_layer_without_the_axes_of_the_image_is_skipped_with_a_note() -> None:
    def windows(x: Tensor) -> Tensor:
        return x.unflatten(2, (2, 2)).unflatten(4, (2, 2)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)

    def whole(x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, 2, 2)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)

    target = wrap(Arranged(windows, whole), (1, 16, 16))
    images, labels = torch.rand(2, 1, 16, 16), torch.tensor([0, 1])
    explainer = Explainer(target, "grad-cam", device="cpu")
    explainer.maps(images, labels)
    assert explainer.notes == [
        "Grad-CAM reads the layer 'patches', (10, 4, 4), as (C, h, w).",
        "Grad-CAM leaves out later layers, none of whose axes run along the image's: 'arranged' (10, 2, 2).",
    ]
    with pytest.raises(UsageError, match=r"'arranged' outputs \(10, 2, 2\) for an image, which is not a grid"):
        quick(target, images, labels, "grad-cam", layer="arranged")


def test_a_layer_that_is_only_probably_right_is_used_with_a_note() -> None:
    mixed = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    target = wrap(Arranged(lambda x: (x.flatten(2) @ mixed).unflatten(2, (4, 4)), lambda x: x), (1, 16, 16))
    explainer = Explainer(target, "grad-cam", layer="arranged", device="cpu")
    explainer.maps(torch.rand(1, 1, 16, 16), torch.tensor([0]))
    assert "as (C, h, w); no change of the image's halves confirms that." in explainer.notes[0]


def test_a_layer_that_runs_twice_is_skipped_and_others_work(images: Tensor, labels: Tensor) -> None:
    target = wrap(Net(reuse=True), (1, 12, 12))
    with pytest.raises(UsageError, match=r"'second'.*runs 2 times.*reused.*--layer"):
        quick(target, images, labels, "grad-cam", layer="second")
    assert quick(target, images, labels, "grad-cam").shape == images.shape  # chooses `first`


def test_an_unknown_layer_is_refused_with_similar_names(images: Tensor, labels: Tensor) -> None:
    target = wrap(Net(), (1, 12, 12))
    with pytest.raises(UsageError, match=r"no layer 'secnd'.*Did you mean 'second'"):
        quick(target, images, labels, "grad-cam", layer="secnd")
    with pytest.raises(UsageError, match=r"'head' outputs .*not a grid"):
        quick(target, images, labels, "grad-cam", layer="head")


def test_in_place_activations_work_with_every_method_and_stay_in_place(
    images: Tensor, labels: Tensor, module_state: Callable[[nn.Module], dict[str, Any]]
) -> None:
    plain, inplace = Net(), Net(inplace=True)
    inplace.load_state_dict(plain.state_dict())
    before = module_state(inplace)
    for method in METHODS:
        found = quick(wrap(inplace, (1, 12, 12)), images, labels, method)
        torch.testing.assert_close(found, quick(wrap(plain, (1, 12, 12)), images, labels, method))
    assert inplace.relu.inplace and module_state(inplace) == before


def test_an_output_changed_in_place_is_reported_and_grad_cam_continues(
    images: Tensor, labels: Tensor, module_state: Callable[[nn.Module], dict[str, Any]]
) -> None:
    net = Net(inplace=True, adds_in_place=True)
    target, before = wrap(net, (1, 12, 12)), module_state(net)
    for method in ("guided-grad-cam", "integrated-gradients"):
        with pytest.raises(UsageError, match=r"does not support Net: .*in place.*without gradients"):
            quick(target, images, labels, method)
    assert module_state(net) == before and net.relu.inplace
    assert quick(target, images, labels, "grad-cam").any()
    assert quick(target, images, labels, "occlusion").any()


def test_a_score_without_a_gradient_is_reported_and_occlusion_continues(images: Tensor, labels: Tensor) -> None:
    class Rounded(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward((x * 255).round().detach() / 255)

    target = wrap(Rounded(), (1, 12, 12))
    for method in ("saliency", "integrated-gradients", "gradient-shap"):
        with pytest.raises(UsageError, match=r"no.* reach the image"):
            quick(target, images, labels, method)
    assert quick(target, images, labels, "occlusion").any()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_torchscript_has_gradients_but_no_layers(images: Tensor, labels: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.trace(Net().eval(), torch.rand(2, 1, 12, 12))
        target = wrap(scripted, (1, 12, 12))
        assert quick(target, images, labels, "integrated-gradients").any()
        for method in ("grad-cam", "guided-grad-cam"):
            with pytest.raises(UsageError, match=r"do not accept hooks.*TorchScript"):
                quick(target, images, labels, method)


def test_a_classifier_of_single_images_is_explained_one_image_at_a_time() -> None:
    class Single(Net):
        def forward(self, x: Tensor) -> Tensor:
            assert len(x) == 1
            return super().forward(x)

    target = wrap(Single(), (1, 12, 12))
    images, labels = torch.rand(3, 1, 12, 12), torch.tensor([0, 1, 2])
    assert quick(target, images, labels, "integrated-gradients").any()
    with pytest.raises(UsageError, match="--rows 1"):
        quick(target, images, labels, "grad-cam")
    with pytest.raises(UsageError, match=r"runs 2 times.*--rows 1"):
        quick(target, images, labels, "grad-cam", layer="second")
    assert quick(target, images, labels, "grad-cam", rows=1).any()


def test_grad_cam_prefers_the_grid_before_it_is_averaged_along_one_axis() -> None:
    class Rows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(2, keepdim=True)

    layers = {"conv": nn.Conv2d(1, 4, 3, padding=1), "rows": Rows(), "pool": nn.AdaptiveAvgPool2d(1)}
    net = nn.Sequential()
    for name, layer in (layers | {"flat": nn.Flatten(), "head": nn.Linear(4, 2)}).items():
        net.add_module(name, layer)
    explainer = Explainer(wrap(net, (1, 16, 16)), "grad-cam", options={"signed": True}, device="cpu")
    maps = explainer.maps(torch.rand(2, 1, 16, 16), torch.tensor([0, 1]))
    assert explainer.notes == ["Grad-CAM reads the layer 'conv', (4, 16, 16), as (C, h, w)."]
    assert maps.std(2).min() > 0  # no stripes


def test_vectors_have_no_grad_cam(linear_target: Callable[..., Target]) -> None:
    with pytest.raises(UsageError, match="vectors of 6 features"):
        quick(linear_target((6,)), torch.rand(2, 6), torch.tensor([0, 1]), "grad-cam")


def test_guiding_nothing_is_noted(tiny_target: Target, images: Tensor, labels: Tensor) -> None:
    explainer = Explainer(tiny_target, "guided-grad-cam", device="cpu")
    explainer.maps(images, labels)
    explainer.maps(images, labels)
    assert len(explainer.notes) == 2  # each once
    assert "reads the layer '4', (4, 6, 6)" in explainer.notes[0]  # the pooling, behind which all is flat
    assert "not have an nn.ReLU" in explainer.notes[1]


# ---------------------------------------------------------------------------------- for every method


def test_all_methods_are_registered() -> None:
    assert set(METHODS) == {entry.name for entry in installed().registry.entries("attribution", "captum")}


@every_method
def test_methods_do_not_change_the_module(
    method: str,
    tiny_target: Target,
    images: Tensor,
    labels: Tensor,
    module_state: Callable[[nn.Module], dict[str, Any]],
) -> None:
    before, shown = module_state(tiny_target), images.clone()
    numbers, noise = np.random.get_state()[1].tolist(), torch.get_rng_state()
    maps = quick(tiny_target, images, labels, method)
    assert maps.shape == images.shape and maps.dtype == torch.float32 and maps.any() and not maps.requires_grad
    assert module_state(tiny_target) == before
    assert torch.equal(images, shown) and not images.requires_grad
    assert np.random.get_state()[1].tolist() == numbers and torch.equal(torch.get_rng_state(), noise)


@every_method
def test_equal_seeds_repeat_the_maps(method: str, tiny_target: Target, images: Tensor, labels: Tensor) -> None:
    one, again, other = (quick(tiny_target, images, labels, method, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert torch.equal(one, other) == (method not in ("gradient-shap", "smoothgrad", "kernel-shap"))


@every_method
def test_batches_have_at_most_the_allowed_rows(method: str, images: Tensor, labels: Tensor) -> None:
    seen = []
    net = Net()
    target = wrap(net, (1, 12, 12))
    net.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    quick(target, images, labels, method, rows=2)
    assert max(seen) == 2


@every_method
def test_neither_rows_nor_the_other_images_change_a_map(
    method: str, tiny_target: Target, images: Tensor, labels: Tensor
) -> None:
    maps = quick(tiny_target, images, labels, method)
    torch.testing.assert_close(quick(tiny_target, images, labels, method, rows=2), maps, rtol=1e-3, atol=1e-5)
    others = torch.cat([1 - images[:2], images[2:3]])
    torch.testing.assert_close(quick(tiny_target, others, labels[:3], method)[2], maps[2], rtol=1e-3, atol=1e-5)


# ------------------------------------------------------------------------------------ the shipped model


@pytest.fixture(scope="module")
def believed() -> tuple[Target, Tensor, Tensor]:
    """Return the shipped MNIST classifier and ten smooth images that it classifies as each class."""
    target = interpkit.load_target(MNIST)
    labels = torch.arange(10).repeat_interleave(10)
    rng = torch.Generator().manual_seed(0)
    coarse = torch.randn(100, 1, 10, 10, generator=rng).requires_grad_()
    optimizer = torch.optim.Adam([coarse], lr=0.3)

    def draw() -> Tensor:
        return F.interpolate(coarse, (28, 28), mode="bilinear", align_corners=False).sigmoid()

    with target.frozen("cpu"):
        for _ in range(15):
            images = draw()
            optimizer.zero_grad()
            (F.cross_entropy(target(images), labels) + images.mean()).backward()
            optimizer.step()
        images = draw().detach()
        assert (target(images).argmax(1) == labels).double().mean() > 0.9
    return target, images, labels


def test_integrated_gradients_are_complete(believed: tuple[Target, Tensor, Tensor]) -> None:
    target, images, labels = believed
    explainer = Explainer(target, "integrated-gradients", options={"steps": 20}, device="cpu")
    missing = explainer.maps(images, labels).flatten(1).sum(1) - explainer.differences(images, labels)
    with torch.no_grad(), target.frozen("cpu"):  # what is to be explained, once more by hand
        logits = target(images).gather(1, labels[:, None])[:, 0] - target(torch.zeros(1, 1, 28, 28))[0, labels]
    torch.testing.assert_close(explainer.differences(images, labels), logits)
    assert missing.abs().sum() < 0.05 * logits.abs().sum()


def test_class_evidence_beats_random_pixels(believed: tuple[Target, Tensor, Tensor]) -> None:
    from interpkit import class_evidence
    from interpkit.attribution import faithfulness

    target, images, labels = believed
    explainer = Explainer(target, "input-x-gradient", device="cpu")
    learned, held_out = torch.arange(100) % 10 < 8, torch.arange(100) % 10 >= 8
    evidence = class_evidence(explainer.maps(images[learned], labels[learned]), labels[learned])
    asked = images[held_out], labels[held_out]
    by_class = faithfulness.deletion(explainer, *asked, evidence.mean[labels[held_out]])
    by_chance = faithfulness.deletion(explainer, *asked, torch.rand(20, 1, 28, 28))
    assert by_class.mean() < 0.8 * by_chance.mean(), (by_class.mean(), by_chance.mean())


def test_the_example_runs(run_python: Callable[..., Any], tmp_path: Path) -> None:
    result = run_python(MNIST.parents[1] / "captum_attribution.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "works with the module but not with the target: none" in result.stdout
    assert len(re.findall(r" ok +ok$", result.stdout, re.M)) >= 15
