"""`wrap`: the user's module does not change, the preprocessing is right, and faults are named."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import interpkit
from interpkit import ModelError, UsageError, wrap

State = Callable[[nn.Module], dict[str, Any]]
Quick = Callable[..., dict[str, Any]]


class Net(nn.Module):
    """A typical user's classifier of 12 x 12 images: batch norm, dropout, named layers, a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        self.dropout = nn.Dropout(0.5)
        self.fc1 = nn.Linear(100, 8)
        self.fc2 = nn.Linear(8, 3)
        self.register_buffer("anything", torch.arange(3.0))

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.features(x).flatten(1))
        hidden = self.fc1(x)
        return self.fc2(F.relu_(hidden))


def user_module() -> Net:
    net = Net()
    net.train()
    net.features[1].eval()
    net.fc1.requires_grad_(False)
    net.fc2.register_forward_hook(lambda module, inputs, output: None)
    net.features.register_forward_pre_hook(lambda module, inputs: None)
    return net


def plain(net: nn.Module, shape: tuple[int, ...] = (1, 12, 12), **options: Any) -> interpkit.Target:
    return wrap(net, shape, **options)


# ------------------------------------------------------------------------------ the module is left as found


def test_wrap_and_respond_leave_the_module_as_they_found_it(module_state: State) -> None:
    net = user_module()
    before, rng = module_state(net), torch.get_rng_state()
    target = plain(net)
    assert module_state(net) == before
    assert torch.equal(torch.get_rng_state(), rng)
    with target.frozen():
        target.respond(torch.rand(4, 1, 12, 12), ["features.0", "fc1:in"])
    assert module_state(net) == before


def test_a_whole_inversion_leaves_the_module_as_it_found_it(module_state: State, quick: Quick) -> None:
    net = user_module()
    before = module_state(net)
    inversion = interpkit.invert(plain(net), **quick(steps=3))
    inversion.sample(per_class=1)
    assert module_state(net) == before


def test_an_inversion_that_fails_leaves_the_module_as_it_found_it(module_state: State, quick: Quick) -> None:
    def stop(step: int) -> None:
        raise ValueError("stopped by the test")

    net = user_module()
    before = module_state(net)
    with pytest.raises(ValueError, match="stopped by the test"):
        interpkit.invert(plain(net), on_step=stop, **quick(steps=3))
    assert module_state(net) == before


def test_an_exception_in_the_modules_forward_leaves_no_hook_behind(module_state: State) -> None:
    net = user_module()
    target = plain(net)
    before = module_state(net)
    with pytest.raises(RuntimeError):
        target.respond(torch.rand(2, 3, 12, 12), ["features.0", "fc1"])
    assert module_state(net) == before
    with pytest.raises(UsageError, match="no layer"):
        target.respond(torch.rand(2, 1, 12, 12), ["features.0", "nowhere"])
    assert module_state(net) == before


def test_a_module_that_fails_while_it_is_wrapped_is_left_as_found(module_state: State) -> None:
    net = user_module()
    before = module_state(net)
    with pytest.raises(ModelError, match="fails on an input of shape"):
        wrap(net, (3, 12, 12))
    assert module_state(net) == before


def test_a_module_that_draws_random_numbers_does_not_disturb_the_callers_generator() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x + 0.01 * torch.randn_like(x))

    net = Noisy()
    rng = torch.get_rng_state()
    plain(net, (4,))
    assert torch.equal(torch.get_rng_state(), rng)


def test_buffers_that_the_forward_pass_changes_are_restored_by_frozen() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1)
            return self.fc(x)

    net = Counting()
    target = plain(net, (4,))
    assert net.calls.item() == 0
    with target.frozen():
        target.respond(torch.rand(2, 4))
    assert net.calls.item() == 0


def test_a_buffer_that_the_forward_pass_replaces_is_the_same_one_afterwards() -> None:
    class Replacing(nn.Module):
        seen: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.seen = self.seen + 1
            return self.fc(x)

    net = Replacing()
    own = net.seen
    target = plain(net, (4,))
    assert net.seen is own and own.item() == 0
    with target.frozen():
        target.respond(torch.rand(2, 4))
        assert net.seen is not own
    assert net.seen is own and own.item() == 0


def test_a_buffer_that_is_built_for_a_batch_stays_built() -> None:
    class Cached(nn.Module):
        mask: Tensor | None
        longest = 0

        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)
            self.register_buffer("mask", None)

        def forward(self, x: Tensor) -> Tensor:
            if len(x) > self.longest:
                self.longest, self.mask = len(x), torch.ones(len(x), 1)
            assert self.mask is not None
            return self.fc(x) * self.mask[: len(x)]

    target = plain(Cached(), (4,))
    for count in (2, 40, 3):
        with target.frozen():
            assert target.respond(torch.rand(count, 4)).logits.shape == (count, 3)


def test_while_it_learns_a_module_is_in_training_mode_but_for_the_parts_frozen_by_the_user() -> None:
    net = user_module()
    modes = [part.training for part in net.modules()]
    target = plain(net)
    with suppress(ZeroDivisionError), target.learning():  # type: ignore[attr-defined]
        assert [name for name, part in net.named_modules() if not part.training] == ["features.1"]
        raise ZeroDivisionError
    assert [part.training for part in net.modules()] == modes
    net.eval()
    with target.learning():  # type: ignore[attr-defined]
        assert all(part.training for part in net.modules())
    assert not any(part.training for part in net.modules())


# ---------------------------------------------------------------------------------------- preprocessing


def test_preprocessing_is_lo_plus_range_times_image_minus_mean_over_std() -> None:
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return self.fc(x.mean((2, 3)))

    target = wrap(Spy(), (2, 1, 1), mean=[10.0, 100.0], std=[5.0, 20.0], input_range=(-1.0, 255.0))
    target(torch.tensor([0.0, 0.25]).view(1, 2, 1, 1))
    # channel 0: (-1 + 256 * 0 - 10) / 5 = -2.2; channel 1: (-1 + 256 * 0.25 - 100) / 20 = -1.85
    assert seen[-1].flatten().tolist() == pytest.approx([-2.2, -1.85])


def test_without_preprocessing_the_module_sees_the_images_themselves() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 3))
    images = torch.rand(5, 1, 3, 3)
    assert torch.equal(plain(net, (1, 3, 3))(images), net(images))


def test_one_mean_and_std_stand_for_all_channels() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    images = torch.rand(2, 3, 2, 2)
    target = wrap(net, (3, 2, 2), mean=0.5, std=[0.25])
    assert torch.allclose(target(images), net((images - 0.5) / 0.25), atol=1e-6)
    assert target.description.mean == [0.5, 0.5, 0.5]


def test_the_target_has_the_gradient_of_module_and_preprocessing() -> None:
    net = nn.Linear(2, 2)
    target = wrap(net, (2,), std=[0.5, 2.0])
    images = torch.rand(1, 2, requires_grad=True)
    (slope,) = torch.autograd.grad(target(images)[0, 0], images)
    assert torch.allclose(slope[0], net.weight[0] / torch.tensor([0.5, 2.0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_give_single_precision_logits_and_features(dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)
    target = plain(net, (1, 3, 3), mean=0.1, std=0.3)
    response = target.respond(torch.rand(2, 1, 3, 3), ["1"])
    assert response.logits.dtype == response.penultimate.dtype == response.features["1"].dtype == torch.float32
    assert {p.dtype for p in net.parameters()} == {dtype}


def test_a_double_precision_module_can_be_inverted(quick: Quick) -> None:
    target = plain(nn.Sequential(nn.Flatten(), nn.Linear(144, 3)).double())
    inversion = interpkit.invert(target, **quick(steps=2))
    assert inversion.sample(per_class=1)[0].dtype == torch.float32
    assert target.module[1].weight.dtype == torch.float64


# --------------------------------------------------------------------------------------------- features


def test_default_features_are_the_input_of_the_last_linear_layer_of_a_cnn() -> None:
    net = Net().eval()
    target = plain(net)
    images = torch.rand(3, 1, 12, 12)
    assert target.feature_layer == "fc2:in"
    assert torch.equal(target.respond(images).penultimate, net.fc1(net.features(images).flatten(1)).relu())


@pytest.mark.parametrize(
    ("net", "shape", "layer", "width"),
    [
        (nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), (4,), "2:in", 6),
        (nn.Linear(4, 3), (4,), ":in", 4),
        (
            nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Conv2d(5, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            (1, 6, 6),
            "2:in",
            5 * 4 * 4,
        ),
    ],
    ids=["MLP", "a single linear layer", "no linear layer"],
)
def test_default_features_are_found_in_any_classifier(
    net: nn.Module, shape: tuple[int, ...], layer: str, width: int
) -> None:
    target = plain(net, shape)
    assert target.feature_layer == layer
    assert target.respond(torch.rand(2, *shape)).penultimate.shape == (2, width)


def test_the_last_linear_layer_is_the_last_to_run_not_the_last_defined() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(5, 3)
            self.body = nn.Linear(4, 5)
            self.unused = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x))

    assert plain(Backwards(), (4,)).feature_layer == "head:in"


def test_a_name_means_the_output_of_a_layer_and_name_in_its_input() -> None:
    net = Net().eval()
    target = plain(net)
    images = torch.rand(2, 1, 12, 12)
    features = target.respond(images, ["fc1", "fc1:in", "features.0:in"]).features
    flat = net.features(images).flatten(1)
    assert torch.equal(features["fc1:in"], flat)
    assert torch.equal(features["fc1"], net.fc1(flat))
    assert torch.equal(features["features.0:in"], images)
    assert set(features) == {"fc1", "fc1:in", "features.0:in", "fc2:in"}


def test_an_in_place_relu_after_a_layer_does_not_change_what_was_recorded() -> None:
    net = Net().eval()
    target = plain(net)
    images = torch.rand(4, 1, 12, 12)
    features = target.respond(images, ["features.1", "features.2:in", "fc1"]).features
    expected = net.features[1](net.features[0](images))
    assert expected.min() < 0
    assert torch.equal(features["features.1"], expected)
    assert torch.equal(features["features.2:in"], expected)
    assert features["fc1"].min() < 0  # F.relu_ follows


def test_features_and_logits_carry_the_gradient_of_the_images() -> None:
    target = plain(Net())
    images = torch.rand(2, 1, 12, 12, requires_grad=True)
    with target.frozen():
        response = target.respond(images, ["features.1"])
        for tensor in (response.logits, response.penultimate, response.features["features.1"]):
            (slope,) = torch.autograd.grad(tensor.square().sum(), images, retain_graph=True)
            assert slope.abs().sum() > 0


def test_an_unknown_layer_is_named_with_the_nearest_and_the_known_ones() -> None:
    target = plain(Net())
    with pytest.raises(UsageError, match=r"no layer 'features\.9'.*Did you mean 'features\.\d'.*fc1"):
        target.respond(torch.rand(2, 1, 12, 12), ["features.9"])
    with pytest.raises(UsageError, match="Did you mean 'fc1'"):
        plain(Net(), feature_layer="fc11:in")


def test_a_layer_that_does_not_run_is_named() -> None:
    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    with pytest.raises(UsageError, match="'unused' does not run"):
        plain(Lazy(), (4,)).respond(torch.rand(2, 4), ["unused"])


def test_a_named_feature_layer_is_the_default_features() -> None:
    target = plain(Net(), feature_layer="features.3")
    assert target.respond(torch.rand(2, 1, 12, 12)).penultimate.shape == (2, 100)


def test_a_target_describes_itself() -> None:
    target = plain(Net(), class_names=["a", "b", "c"], num_classes=3, name="mine", mean=0.5)
    assert (target.name, target.num_classes, target.class_names) == ("mine", 3, ["a", "b", "c"])
    facts = target.description
    assert (facts.input_shape, facts.num_classes, facts.mean, facts.std) == ((1, 12, 12), 3, [0.5], [1.0])
    assert (target.sources["mean"], target.sources["std"]) == ("given", "default")
    assert target.origin is None


# ----------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("shape", "options", "error", "words"),
    [
        (
            (12, 12),
            {},
            ModelError,
            r"fails on an input of shape \(12, 12\) \(in a batch.*\. Is input_shape right",
        ),
        ((1, 2, 3, 4, 5), {}, UsageError, "input_shape is C,H,W"),
        ((), {}, UsageError, "input_shape is C,H,W"),
        ((1, 0, 12), {}, UsageError, "input_shape is C,H,W"),
        ((1, 9, 9), {}, ModelError, r"fails on an input of shape \(1, 9, 9\).*input_shape"),
        ((1, 12, 12), {"std": 0.0}, UsageError, "^wrap: std must be above 0"),
        ((1, 12, 12), {"std": -1.0}, UsageError, "std must be above 0"),
        ((1, 12, 12), {"std": float("nan")}, UsageError, "std"),
        ((1, 12, 12), {"mean": float("inf")}, UsageError, "mean"),
        ((1, 12, 12), {"mean": [0.5, 0.5]}, UsageError, "mean takes 1 value for 1 channel, not 2"),
        ((1, 12, 12), {"input_range": (1.0, 1.0)}, UsageError, "LO < HI"),
        ((1, 12, 12), {"num_classes": 4}, ModelError, "returns 3 logits, but 4 classes.*num_classes=3"),
        ((1, 12, 12), {"class_names": ["a", "b"]}, UsageError, "has 3 classes, but 2 names"),
    ],
)
def test_a_wrong_argument_is_refused_with_what_was_found(
    shape: tuple[int, ...], options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        wrap(Net(), shape, **options)


def test_weights_that_are_not_finite_are_refused() -> None:
    net = Net()
    with torch.no_grad():
        net.fc2.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="NaN or infinite logits"):
        plain(net)


class NoLogits(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :0]


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (nn.Conv2d(1, 3, 1), r"returns \(6, 3, 12, 12\) for 6 images"),
        (nn.Sequential(nn.Flatten(0), nn.Linear(288, 3)), r"fails on an input of shape \(1, 12, 12\)"),
        (NoLogits(), r"it returns \(6, 0\) for 6 images; logits have the shape \(6, n\)"),
    ],
)
def test_a_module_that_does_not_return_logits_is_refused(net: nn.Module, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        plain(net)


class Gives(nn.Module):
    """Returns the result of a function of the logits of three classes."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.fc, self.make = nn.Linear(144, 3), make

    def forward(self, x: Tensor) -> Any:
        return self.make(self.fc(x.flatten(1)))


@pytest.mark.parametrize(
    "make",
    [
        lambda z: {"loss": None, "logits": z},
        lambda z: (z, z.exp()),
        lambda z: [z],
        lambda z: SimpleNamespace(logits=z, hidden=None),
        lambda z: z[:, :, None, None],
        lambda z: z.half(),
    ],
)
def test_logits_are_found_in_a_modules_output(make: Callable[[Tensor], Any]) -> None:
    net, images = Gives(make), torch.rand(5, 1, 12, 12)
    logits = wrap(net, (1, 12, 12))(images)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, net.fc(images.flatten(1)), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(("name", "make"), [("probs", torch.softmax), ("log_probs", torch.log_softmax)])
def test_probabilities_and_their_logarithms_are_detected_by_their_sums_and_become_logits(name: str, make: Any) -> None:
    net, images = Gives(lambda z: make(z, 1)), torch.rand(5, 1, 12, 12)
    target = wrap(net, (1, 12, 12))
    assert target.description.output == name
    assert "found" in target.sources["output"]
    torch.testing.assert_close(target(images).softmax(1), net.fc(images.flatten(1)).softmax(1))
    assert wrap(net, (1, 12, 12), output="logits").description.output == "logits"


@pytest.mark.parametrize("make", [lambda z: z[:, :1], lambda z: z[:, 0], lambda z: z[:, :1].sigmoid()])
def test_one_output_stands_for_two_classes(make: Callable[[Tensor], Tensor]) -> None:
    net, images = Gives(make), torch.rand(5, 1, 12, 12)
    target = wrap(net, (1, 12, 12))
    yes = net.fc(images.flatten(1))[:, 0].sigmoid()
    assert target.num_classes == 2
    torch.testing.assert_close(target(images).softmax(1), torch.stack([1 - yes, yes], 1))


def test_an_output_without_a_tensor_is_refused() -> None:
    with pytest.raises(ModelError, match="does not contain a tensor of logits"):
        wrap(Gives(lambda z: {"logits": "three"}), (1, 12, 12))


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "flat"])
@pytest.mark.parametrize("typed", [True, False])
def test_the_layout_is_as_specified_or_detected_by_trying(layout: Any, typed: bool) -> None:
    class Takes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3 * 4 * 6, 3)

        def forward(self, x: Tensor) -> Tensor:
            shape = {"nchw": (3, 4, 6), "nhwc": (4, 6, 3), "flat": (72,)}[layout]
            if x.shape[1:] != shape:
                raise ValueError(f"{tuple(x.shape)}")
            logits: Tensor = self.fc((x.permute(0, 3, 1, 2) if layout == "nhwc" else x).flatten(1))
            return logits

    net, images = Takes(), torch.rand(5, 3, 4, 6)
    target = wrap(net, (3, 4, 6), layout=layout if typed else None)
    assert target.description.layout == layout
    torch.testing.assert_close(target(images), net.fc(images.flatten(1)))


def test_bgr_reverses_the_channels() -> None:
    net, images = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.rand(5, 3, 2, 2)
    torch.testing.assert_close(wrap(net, (3, 2, 2), channel_order="bgr")(images), net(images.flip(1)))
    with pytest.raises(UsageError, match="3 channels"):
        wrap(net, (1, 2, 6), channel_order="bgr")


def test_mean_and_std_are_in_the_classifiers_own_channel_order() -> None:
    net, images = nn.Sequential(nn.Flatten(), nn.Linear(3, 3)), torch.rand(5, 3, 1, 1)
    mean = [0.1, 0.2, 0.3]
    target = wrap(net, (3, 1, 1), mean=mean, channel_order="bgr")
    torch.testing.assert_close(target(images), net(images.flip(1) - torch.tensor(mean)[:, None, None]))


@pytest.mark.parametrize("fails", [True, False])
def test_a_classifier_of_one_image_at_a_time_is_looped_with_features_and_gradient(fails: bool) -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            if fails:
                x = x.reshape(1, 4)
            logits: Tensor = self.b(self.a(x.flatten(1)[:1].expand(len(x), -1)))
            return logits

    net, images = One(), torch.rand(5, 1, 2, 2, requires_grad=True)
    target = wrap(net, (1, 2, 2))
    response = target.respond(images)
    torch.testing.assert_close(response.logits, net.b(net.a(images.flatten(1))))
    torch.testing.assert_close(response.penultimate, net.a(images.flatten(1)))
    assert "one image at a time" in target.sources["batch"]
    response.logits.sum().backward()
    assert images.grad is not None and (images.grad.flatten(1).abs().amax(1) > 0).all()


def test_features_of_a_vector_each_have_their_own_range() -> None:
    net, vectors = nn.Linear(2, 3), torch.rand(5, 2)
    target = wrap(net, (2,), input_range=[(0.0, 10.0), (-5.0, 5.0)])
    torch.testing.assert_close(target(vectors), net(torch.stack([vectors[:, 0] * 10, vectors[:, 1] * 10 - 5], 1)))
    with pytest.raises(UsageError, match="one for each of D features"):
        wrap(net, (2,), input_range=[(0.0, 1.0)] * 3)


def test_a_module_without_a_layer_to_watch_has_its_logits_as_features() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Softplus())
    target = plain(net, (3, 1, 1))
    images = torch.rand(2, 3, 1, 1)
    assert target.feature_layer == "output"
    torch.testing.assert_close(target.respond(images).penultimate, target(images))
    assert plain(net, (3, 1, 1), feature_layer="0").respond(images).penultimate.shape == (2, 3)


def test_vectors_are_converted_on_whatever_device_they_are() -> None:
    target = interpkit.wrap(nn.Linear(2, 2), (2,), input_range=[(4, 8), (0, 2)])
    elsewhere = torch.zeros(3, 2, device="meta")
    assert target.to_unit(elsewhere).device == target.from_unit(elsewhere).device == elsewhere.device


class Alone(nn.Module):
    """A network of one image without a batch axis, with a layer that runs twice and a layer called output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.output, self.act = nn.Linear(4, 4), nn.Linear(4, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x.flatten()))
        return self.output(self.act(x - 0.1))


def test_features_of_one_image_at_a_time_are_those_of_the_last_use_in_the_order_of_the_images() -> None:
    net = Alone()
    target, images = interpkit.wrap(net, (4,), num_classes=2), torch.rand(3, 4)
    found = target.respond(images, ["act", "output", "output:in"]).features
    hidden = (net.first(images).relu() - 0.1).relu()
    torch.testing.assert_close(found["act"], hidden)
    torch.testing.assert_close(found["output:in"], hidden)
    torch.testing.assert_close(found["output"], net.output(hidden))  # the layer, not the logits (-z/2, z/2)


def test_class_names_may_be_bytes() -> None:
    assert interpkit.wrap(nn.Linear(4, 2), (4,), class_names=[b"cat", b"dog"]).class_names == ["cat", "dog"]
