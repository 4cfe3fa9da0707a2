"""What `wrap` finds out by running a module: modes, chance, batches, gradients, layouts; what it says of failures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import interpkit
from interpkit import ModelError, UsageError, wrap

Quick = Callable[..., dict[str, Any]]
SHAPE = (3, 8, 8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(144, 3)

    def features(self, x: Tensor) -> Tensor:
        maps: Tensor = self.norm(self.conv(x)).relu()
        return maps.flatten(1)

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        logits: Tensor = self.fc(self.features(x))
        return logits


# ------------------------------------------------------------------------------------------------- modes


class Dropping(Net):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        logits: Tensor = self.fc(self.drop(self.features(x)))
        return logits


def test_a_target_is_in_eval_mode_while_its_module_stays_in_training_mode() -> None:
    net, images = Dropping().train(), torch.rand(5, *SHAPE)
    target = wrap(net, SHAPE)
    statistics = net.norm.running_mean.clone()
    logits = target(images)
    assert torch.equal(target(images), logits)
    assert torch.equal(target.respond(images, ["norm"]).logits, logits)
    assert torch.equal(net.norm.running_mean, statistics)
    assert net.training and net.drop.training
    torch.testing.assert_close(net.eval()(images), logits)


def test_a_file_is_loaded_in_eval_mode(tmp_path: Any) -> None:
    path = tmp_path / "net.safetensors"
    saved = interpkit.build_architecture("interpkit:cnn", {"batch_norm": True}).eval()
    arguments = {"batch_norm": True}
    interpkit.save_target(saved, path, architecture="interpkit:cnn", arch_args=arguments, input_shape=(1, 28, 28))
    target = interpkit.load_target(path)
    images = torch.rand(4, 1, 28, 28)
    assert not any(module.training for module in target.modules())
    torch.testing.assert_close(target(images), saved(images))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_everything_works_where_the_caller_has_switched_gradients_off(mode: Any, quick: Quick) -> None:
    net = Net()
    with mode():
        target = wrap(net, SHAPE)
        inversion = interpkit.invert(target, **quick(steps=2))
        images = torch.rand(2, *SHAPE)
        maps = interpkit.attribute(target, images, method="saliency")
    assert target.no_gradient == ""
    assert inversion.history[-1].step == 2
    assert maps.abs().sum() > 0


def test_weights_of_inference_mode_are_named_as_the_reason_for_having_no_gradient() -> None:
    with torch.inference_mode():
        net = Net()
    assert "torch.inference_mode()" in wrap(net, SHAPE).no_gradient


def test_recurrent_layers_run_without_cudnn_on_cuda_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.fc = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.fc(self.lstm(x[:, 0])[0][:, -1])
            return logits

    target = wrap(Rows(), (1, 8, 8))
    images = torch.rand(2, 1, 8, 8, requires_grad=True)
    target(images).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0

    class OnCuda:
        is_cuda = True

    with target._without_cudnn(OnCuda()):  # type: ignore[operator]
        assert not torch.backends.cudnn.enabled
    with torch.no_grad(), target._without_cudnn(OnCuda()):  # type: ignore[operator]
        assert torch.backends.cudnn.enabled


# ----------------------------------------------------------------------------------- chance, batch, state


class Drawing(Net):
    def forward(self, x: Tensor, *_: Any) -> Tensor:
        logits: Tensor = self.fc(F.dropout(self.features(x), 0.5))  # training=True is the default
        return logits


class Batched(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)


@pytest.mark.parametrize(
    ("make", "words"),
    [(Drawing, "draws at random in eval mode"), (Batched, "depend on the other images of its batch")],
)
def test_chance_and_dependence_on_the_batch_are_told_apart_from_one_image_at_a_time(
    make: type[Net], words: str, quick: Quick, caplog: pytest.LogCaptureFixture
) -> None:
    target = wrap(make(), SHAPE)
    assert words in target.sources["batch"]
    assert words in caplog.text
    assert not target.one_by_one  # type: ignore[attr-defined]
    assert interpkit.invert(target, **quick(steps=2)).history[-1].step == 2


@pytest.mark.parametrize("softmax", [F.softmax, F.log_softmax])
def test_a_softmax_over_the_images_of_a_batch_is_refused(softmax: Any) -> None:
    class Across(Net):
        def forward(self, x: Tensor, *_: Any) -> Tensor:
            probabilities: Tensor = softmax(super().forward(x), dim=0)
            return probabilities

    with pytest.raises(ModelError, match=r"sum to 1 over the images of a batch.*use dim=1"):
        wrap(Across(), SHAPE)


class Observing(Net):
    """Rounds its features within a range that follows them, as fake quantization does until its observers are off."""

    peak: Tensor

    def __init__(self, follows: bool) -> None:
        super().__init__()
        self.follows = follows
        self.register_buffer("peak", torch.zeros(()))

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        if self.follows or not self.peak:
            self.peak = torch.maximum(self.peak, x.detach().abs().max())
        return super().forward(x.clamp(-self.peak, self.peak) / (self.peak if self.follows else 1))


def test_buffers_that_follow_the_images_in_eval_mode_are_named_and_put_back() -> None:
    net = Observing(follows=True)
    with pytest.raises(ModelError, match=r"its buffers peak follow the images.*disable_observer"):
        wrap(net, SHAPE)
    assert float(net.peak) == 0


def test_a_buffer_that_only_the_first_call_computes_is_accepted() -> None:
    assert "batch" not in wrap(Observing(follows=False), SHAPE).sources


class Experts(Net):
    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        scores = super().forward(x)
        rows: Tensor = torch.cat([self.experts[0 if row.sum() < 1e9 else 1](row[None]) for row in scores])
        return rows


def test_the_head_in_use_has_the_default_features_though_others_stand_beside_it() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv2d(SHAPE[0], 4, 3)
            self.heads = nn.ModuleList([nn.LazyLinear(3), nn.LazyLinear(5)])
            self.heads[0](self.body(torch.zeros(1, *SHAPE)).flatten(1))
            self.heads[1](self.body(torch.zeros(1, *SHAPE)).flatten(1))

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.heads[1](self.body(images).flatten(1))
            return logits

    assert wrap(Heads(), SHAPE).feature_layer == "heads.1:in"


def test_the_layer_of_one_expert_is_not_the_default_features() -> None:
    assert wrap(Experts(), SHAPE).feature_layer == "fc:in"


def test_a_program_that_was_exported_for_some_number_of_images_is_refused_with_that_number() -> None:
    program = torch.export.export(Net().eval(), (torch.rand(2, *SHAPE),)).module()
    with pytest.raises(ModelError, match=r"accepts 2 images at a time, no more and no less.*dynamic_shapes"):
        wrap(program, SHAPE)


def test_an_ordinary_classifier_has_nothing_to_say_of_its_batch() -> None:
    assert "batch" not in wrap(Net(), SHAPE).sources


def test_a_module_that_keeps_something_from_call_to_call_is_refused() -> None:
    class Leaky(Net):
        past: Any = 0.0

        def forward(self, x: Tensor, *_: Any) -> Tensor:
            self.past = 0.5 * self.past + super().forward(x).detach().mean()
            return super().forward(x) + self.past

    with pytest.raises(ModelError, match=r"keeps something from call to call.*resets it"):
        wrap(Leaky(), SHAPE)


# --------------------------------------------------------------------------------------------- gradients


class Silent(Net):
    @torch.no_grad()
    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return super().forward(x)


class Detached(Net):
    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return super().forward(x.detach())


class Bytes(Net):
    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return super().forward((x * 255).byte() / 255)


class Rounded(Net):
    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return super().forward((x * 255).round() / 255)


@pytest.mark.parametrize("make", [Silent, Detached, Bytes, Rounded])
def test_a_network_that_no_gradient_passes_is_refused_with_the_inverters_that_need_none(
    make: type[Net], quick: Quick
) -> None:
    target = wrap(make(), SHAPE)
    assert "no_grad, a detach, a rounding" in target.no_gradient
    with pytest.raises(ModelError, match=r"no gradient passes from the logits .*inverter='evolution'"):
        interpkit.invert(target, **quick(steps=2))
    inversion = interpkit.invert(target, inverter="evolution", steps=2, options={"evolution.per_class": 1})
    assert inversion.sample(per_class=1)[0].shape == (3, *SHAPE)


def test_a_network_with_the_same_logits_for_every_image_is_named_as_such() -> None:
    net = Net()
    nn.init.zeros_(net.fc.weight)
    assert wrap(net, SHAPE).no_gradient == "its logits are the same for every image"


def test_a_network_that_is_alive_for_dim_images_alone_has_a_gradient() -> None:
    class Dim(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            lit = x.flatten(1).any(1).float()
            return torch.stack([(0.02 - x[:, c].mean((1, 2))).relu() * lit for c in range(3)], 1)

    assert wrap(Dim(), SHAPE).no_gradient == ""


def test_a_saturated_network_has_a_gradient() -> None:
    net = Net()
    with torch.no_grad():
        net.fc.weight.mul_(1e4)
    assert wrap(net, SHAPE).no_gradient == ""


# ------------------------------------------------------------------------------------ layouts, changed inputs


class Viewing(Net):
    def forward(self, x: Tensor, *_: Any) -> Tensor:
        logits: Tensor = self.fc(F.relu(self.norm(self.conv(x))).view(-1, 144))
        return logits


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(192, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x.view(-1, 192))
        return logits


@pytest.mark.parametrize("make", [Viewing, Flat])
def test_view_in_forward_works_for_images_in_any_memory_layout(make: type[nn.Module], quick: Quick) -> None:
    target = wrap(make(), SHAPE)
    images = torch.rand(4, *SHAPE)
    strided = images.to(memory_format=torch.channels_last)
    with target.frozen(layout=torch.channels_last):
        torch.testing.assert_close(target(strided), target(images))
    assert interpkit.invert(target, **quick(steps=2)).history[-1].step == 2


def test_a_plain_convolution_network_keeps_the_faster_layout() -> None:
    target = wrap(Net(), SHAPE)
    with target.frozen(layout=torch.channels_last):
        assert target.layer("conv").weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[attr-defined]
    assert target.layer("conv").weight.is_contiguous()  # type: ignore[attr-defined]


def test_a_module_that_changes_its_input_in_place_does_not_change_the_callers_images() -> None:
    class InPlace(Net):
        def forward(self, x: Tensor, *_: Any) -> Tensor:
            return super().forward(x.sub_(0.5))

    net, images = InPlace(), torch.rand(4, *SHAPE)
    target = wrap(net, SHAPE)
    before = images.clone()
    target(images)
    assert torch.equal(images, before)
    assert target.no_gradient == ""


# ---------------------------------------------------------------------------------------------- failures


class TwoInputs(Net):
    def forward(self, x: Tensor, age: Tensor, *_: Any) -> Tensor:
        return super().forward(x) + age


class Placed(Net):
    def forward(self, x: Tensor, *_: Any) -> Tensor:
        raise RuntimeError("Found no NVIDIA driver on your system.")


class Bytes(Net):
    def forward(self, x: Tensor, *_: Any) -> Tensor:
        assert x.dtype == torch.uint8, f"expected uint8 images, got {x.dtype}"
        return super().forward(x / 255)


class Named(Net):
    def forward(self, x: Any, *_: Any) -> Tensor:
        return super().forward(x["pixels"])


class Broken(Net):
    def forward(self, x: Tensor, *_: Any) -> Tensor:
        raise KeyError("vocabulary")


@pytest.mark.parametrize(
    ("make", "words", "asks"),
    [
        (TwoInputs, r"passes a fixed value for 'age'", False),
        (Placed, r"\.to\(x\.device\)", False),
        (Bytes, r"passes float32 numbers.*net\(x\.to\(torch\.uint8\)\)", False),
        (Named, r"seems to read a dict.*calls it with \{'pixels': x\}", False),
        (Broken, "vocabulary.*comes from the model's own code", False),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(7, 3)), "Is input_shape right", True),
    ],
)
def test_the_shape_is_asked_about_only_where_it_may_be_the_reason(make: Any, words: str, asks: bool) -> None:
    with pytest.raises(ModelError, match=words) as error:
        wrap(make(), SHAPE)
    assert ("input_shape" in str(error.value)) is asks


# ----------------------------------------------------------------------------------- facts in their usual forms


@pytest.mark.parametrize("names", [{1: "dog", 0: "cat"}, ("cat", "dog"), np.array(["cat", "dog"])])
def test_class_names_are_in_the_order_of_the_logits(names: Any) -> None:
    assert wrap(nn.Linear(4, 2), (4,), class_names=names).class_names == ["cat", "dog"]


@pytest.mark.parametrize("names", ["ab", b"ab", {"cat", "dog"}, {"cat": 0, "dog": 1}, {1: "cat", 2: "dog"}])
def test_class_names_of_no_known_order_are_refused(names: Any) -> None:
    with pytest.raises(UsageError, match="not a list of names in the order of the logits"):
        wrap(nn.Linear(4, 2), (4,), class_names=names)


@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_a_mean_may_be_an_array(make: Any) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    target = wrap(net, (3, 2, 2), mean=make([0.5, 0.25, 0.75]), std=make(0.5))
    assert (target.description.mean, target.description.std) == ([0.5, 0.25, 0.75], [0.5] * 3)


def test_an_image_of_one_color_that_gives_nan_is_refused_with_the_reason() -> None:
    class Standardized(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward((x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True))

    with pytest.raises(ModelError, match="standard deviation or range"):
        wrap(Standardized(4, 2), (4,))


def test_memory_that_ran_out_is_not_the_classifiers_fault() -> None:
    class Large(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with pytest.raises(RuntimeError, match=r"^CUDA out of memory"):
        wrap(Large(), (3,))


def test_a_shape_of_one_number_is_refused_with_how_to_write_it() -> None:
    with pytest.raises(UsageError, match=r"or \(D,\) for vectors such as \(4,\), not 4\.$"):
        wrap(nn.Linear(4, 2), 4)  # type: ignore[arg-type]
