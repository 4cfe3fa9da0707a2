"""A network's weights are found in a checkpoint by their names, whatever stands before, beside and within these."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from interpkit import ModelError, fill_architecture
from interpkit.plugins.state_dicts import match


class Net(nn.Module):
    def __init__(self, num_classes: int = 3, in_chans: int = 2) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(in_chans, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, num_classes)
        self.register_buffer("index", torch.arange(4))
        self.register_buffer("mask", torch.ones(2), persistent=False)


State = dict[str, Tensor]


def state(seed: int = 0, **arguments: int) -> State:
    torch.manual_seed(seed)
    return {name: t + seed if t.is_floating_point() else t for name, t in Net(**arguments).state_dict().items()}


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> State:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def without(word: str, tensors: Mapping[str, Tensor]) -> State:
    return {name: tensor for name, tensor in tensors.items() if word not in name}


def assert_whole(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    found = match(Net(), tensors)
    assert found.fits and found.tensors.keys() == expected.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "model._orig_mod.",
        "model.module.",
        "state_dict.network.",
        "backbone.",
        "a.b.c.d.",
        "timm_model.",
        "module.module.",
    ],
)
def test_the_network_is_found_under_any_prefix(prefix: str) -> None:
    assert_whole(prefixed(prefix, state()), state())
    assert match(Net(), prefixed(prefix, state())).prefix == prefix


@pytest.mark.parametrize("part", ["module.", "_orig_mod.", "_checkpoint_wrapped_module._fsdp_wrapped_module."])
def test_parts_that_wrappers_put_into_the_middle_of_names_are_passed_over(part: str) -> None:
    assert_whole({name.replace("features.", f"features.{part}"): tensor for name, tensor in state().items()}, state())


def test_a_wrapper_as_the_network_finds_the_weights_of_what_it_wraps() -> None:
    wrapper = nn.ModuleDict({"net": Net()})
    found = match(wrapper, prefixed("model.", state()))
    assert found.fits and found.tensors.keys() == wrapper.state_dict().keys()
    assert match(nn.DataParallel(Net()), state()).fits


def test_what_stands_beside_the_network_is_named() -> None:
    beside = {"optimizer.state.0.exp_avg": torch.ones(2, 2), "state_dict.loss_fn.weight": torch.ones(3)}
    found = match(Net(), prefixed("state_dict.model.", state()) | beside)
    assert found.fits and found.beside == ["optimizer", "state_dict.loss_fn"] and found.layers == []
    found = match(Net(), prefixed("state_dict.backbone.", state()) | {"state_dict.fc.weight": torch.ones(2, 2)})
    assert found.fits and found.layers == ["state_dict.fc"]


@pytest.mark.parametrize(
    ("extra", "fits"),
    [
        ({"total_ops": torch.zeros(1), "features.total_params": torch.zeros(1)}, True),
        ({"features.relative_position_index": torch.arange(3), "attn_mask": torch.ones(2, 2)}, True),
        ({"steps": torch.tensor(3)}, True),  # no weight is a whole number
        ({"mask": torch.ones(2)}, True),  # of a buffer that the network computes
        ({"loss_fn.weight": torch.ones(3), "train_metric.total": torch.ones(1)}, True),
        ({"head2.weight": torch.ones(3)}, False),
        ({"features.2.weight": torch.ones(4)}, False),
        ({"2.weight": torch.ones(4)}, False),
        ({"features.loss.weight": torch.ones(4)}, False),
        ({"features.module.0.weight": torch.ones(4, 2, 3, 3)}, False),  # beside features.0.weight
    ],
    ids=lambda extra: ", ".join(extra) if isinstance(extra, dict) else "",
)
def test_what_no_layer_needs_is_left_out_and_weights_of_another_layer_are_not(extra: State, fits: bool) -> None:
    found = match(Net(), state() | extra)
    assert found.fits is fits and found.tensors.keys() == state().keys()
    assert sorted(found.ignored if fits else found.unexpected) == sorted(extra)


def test_buffers_that_are_computed_may_be_missing_and_statistics_may_not() -> None:
    found = match(Net(), without("num_batches_tracked", without("index", state())))
    assert found.fits and sorted(found.filled) == ["features.1.num_batches_tracked", "index"]
    for name in ("running_mean", "running_var", "head.bias", "features.0.weight"):
        found = match(Net(), without(name, state()))
        assert not found.fits and [name in missing for missing in found.missing] == [True]


def test_a_buffer_that_the_file_lacks_keeps_the_value_that_the_network_computes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    notes: list[str] = []
    lacking = without("index", state())
    module, _ = fill_architecture("py:net:Net", {}, lacking, lambda arguments: Net(**arguments), notes=notes)
    assert module.get_buffer("index").tolist() == [0, 1, 2, 3]
    assert notes == ["computed, as the file lacks index"]
    assert "the file lacks index; py:net:Net computes them when it is built" in caplog.text


def test_a_layer_whose_width_is_not_known_yet_takes_that_of_the_file() -> None:
    def build(arguments: Mapping[str, Any]) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(3))

    weights = nn.Linear(4, 3).state_dict()
    module, _ = fill_architecture("py:net:build", {}, prefixed("1.", weights), build)
    assert torch.equal(module.get_parameter("1.weight"), weights["weight"])


def test_weights_that_a_network_shares_between_layers_may_be_stored_once() -> None:
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    net[1].weight = net[0].weight
    found = match(net, {"1.weight": torch.ones(2, 2)})
    assert found.fits and torch.equal(found.tensors["0.weight"], torch.ones(2, 2))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("layer1.norm.1.weight", "layer1.norm1.weight"),
        ("block.mlp.linear_2.bias", "block.mlp.3.bias"),
        ("a.weight_g", "a.parametrizations.weight.original0"),
        ("norm.gamma", "norm.weight"),
    ],
)
def test_older_spellings_are_understood_where_the_network_has_the_new_name(old: str, new: str) -> None:
    net = nn.Module()
    *path, last = new.split(".")
    inner = net
    for part in path:
        inner.add_module(part, nn.Module())
        inner = inner.get_submodule(part)
    inner.register_parameter(last, nn.Parameter(torch.zeros(1)))
    found = match(net, {old: torch.ones(1)})
    assert found.fits and found.renamed == {old: new} and list(found.tensors) == [new]
    assert not match(nn.Linear(1, 1, bias=False), {old: torch.ones(1)}).renamed


def test_several_networks_that_fit_are_refused_by_their_keys() -> None:
    both = prefixed("student.", state(0)) | prefixed("teacher.", state(1))
    with pytest.raises(ModelError, match=r"several networks that fit: student, teacher\. .* weights_key='student'"):
        match(Net(), both)
    with pytest.raises(ModelError, match=r"several networks that fit: the top level, momentum\. .*key='momentum'"):
        match(Net(), state(0) | prefixed("momentum.", state(1)))
    assert match(Net(), prefixed("student.", state(0)) | prefixed("teacher.", state(0))).fits  # they are equal
    narrow = without("head.bias", state(1))
    assert match(Net(), prefixed("student.", state(0)) | prefixed("teacher.", narrow)).prefix == "student."


@pytest.mark.parametrize(
    "averaged", ["ema", "model_ema", "ema_model.module", "state_dict_ema", "swa", "averaged_model"]
)
def test_averaged_weights_win_and_the_others_are_named(averaged: str, caplog: pytest.LogCaptureFixture) -> None:
    both = prefixed("net.", state(0)) | prefixed(f"{averaged}.", state(1))
    module, _ = fill_architecture("py:net:Net", {}, both, lambda arguments: Net(**arguments))
    assert torch.equal(module.get_parameter("head.weight"), state(1)["head.weight"])
    assert f"the averaged one is used: {averaged}. For another: weights_key='net'." in caplog.text


@pytest.mark.parametrize(("theirs", "ours"), [("fc.1", "fc"), ("fc", "fc.1"), ("head", "head.fc"), ("fc.0", "fc.1")])
def test_a_head_at_another_depth_is_used_with_a_warning(
    theirs: str, ours: str, caplog: pytest.LogCaptureFixture
) -> None:
    def build(arguments: Mapping[str, Any]) -> nn.Module:
        first, _, second = ours.partition(".")
        head: nn.Module = nn.Linear(4, **{"out_features": 3} | dict(arguments))
        inside = nn.ModuleDict({second: head}) if second else head
        return nn.ModuleDict({"stem": nn.Linear(2, 4), first: inside})

    stem = prefixed("stem.", nn.Linear(2, 4).state_dict())
    tensors = stem | prefixed(f"{theirs}.", nn.Linear(4, 3).state_dict())
    module, _ = fill_architecture("py:net:build", {}, tensors, build)
    assert torch.equal(module.get_parameter(f"{ours}.weight"), tensors[f"{theirs}.weight"])
    warned = f"the file's layer {theirs} is used as {ours} of py:net:build" in caplog.text
    assert warned is ("head" not in ours)  # there is no place for another layer beside it
    other = stem | prefixed(f"{theirs}.", nn.Linear(5, 3).state_dict())
    assert not match(build({}), other).fits
    deep = tensors | prefixed(f"{ours.partition('.')[0]}.7.", nn.Linear(4, 3).state_dict())
    with pytest.raises(ModelError, match=r"unexpected: .*write a function that builds"):
        fill_architecture("py:net:build", {}, deep, build)


@pytest.mark.parametrize("head", ["num_classes", "n_classes", "num_labels"])
@pytest.mark.parametrize("stem", ["in_chans", "in_channels"])
def test_the_widths_of_head_and_first_layer_are_read_from_the_weights(head: str, stem: str) -> None:
    def build(arguments: Mapping[str, Any]) -> nn.Module:
        assert arguments.keys() <= {head, stem}
        return Net(arguments.get(head, 3), arguments.get(stem, 2))

    def refusing(arguments: Mapping[str, Any]) -> nn.Module:
        if not arguments.keys() <= {head, stem}:
            raise TypeError("unexpected argument")
        return build(arguments)

    _, arguments = fill_architecture("py:net:Net", {}, state(num_classes=7, in_chans=1), refusing)
    assert arguments == {head: 7, stem: 1}
    _, arguments = fill_architecture("py:net:Net", {}, state(num_classes=7), refusing)
    assert arguments == {head: 7}
    with pytest.raises(ModelError, match=r"features.0.weight \(\[4, 1, 3, 3\], expected \[4, 2, 3, 3\]\)"):
        fill_architecture("py:net:Net", {stem: 2}, state(in_chans=1), refusing)


def test_heads_for_the_training_alone_may_be_missing() -> None:
    def build(arguments: Mapping[str, Any]) -> nn.Module:
        assert arguments.keys() <= {"aux_logits", "num_classes"}
        net = Net(arguments.get("num_classes", 3))
        if arguments.get("aux_logits", True):
            net.add_module("AuxLogits", nn.Linear(4, 3))
        return net

    module, arguments = fill_architecture("py:net:build", {}, state(num_classes=7), build)
    assert arguments == {"aux_logits": False, "num_classes": 7} and not hasattr(module, "AuxLogits")
    aux = prefixed("AuxLogits.", nn.Linear(4, 3).state_dict())
    assert fill_architecture("py:net:build", {}, state() | aux, build)[1] == {}
    assert fill_architecture("py:net:build", {"aux_logits": False}, state() | aux, build)[1] == {"aux_logits": False}


def test_the_same_network_twice_is_one_and_another_one_inside_it_is_not_part_of_it() -> None:
    twice = prefixed("model.", state()) | prefixed("hyper_parameters.net.", state())
    found = match(Net(), twice)
    assert found.fits and found.others == []
    inside = prefixed("net.", state(0)) | prefixed("net.ema.", state(1))
    found = match(Net(), inside)
    assert found.fits and found.prefix == "net.ema." and found.others == ["net."]
    stranger = prefixed("ema.", state(1) | {"head2.weight": torch.ones(2, 2)})
    assert match(Net(), state(0) | stranger).unexpected == ["head2.weight"]


def only_plain(arguments: Mapping[str, Any]) -> nn.Module:
    if arguments:
        raise TypeError("it takes none")
    return Net()


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (state(in_chans=1), "first layer takes 1 channels, and py:net:Net has no argument for that: write a function"),
        (state() | {"fc2.weight": torch.ones(2, 2)}, "unexpected: fc2.weight. If they do not belong to the classifier"),
        (
            state() | {"head.weight": torch.ones(3, 4, dtype=torch.int8)},
            "whole numbers instead of weights: head.weight. It is quantized",
        ),
        (without("running_mean", state()), "missing: features.1.running_mean."),
        ({"a": torch.ones(1)}, "missing: features.0.weight"),
        ({}, "missing: features.0.weight"),
    ],
    ids=["stem", "stranger", "quantized", "statistics", "nothing in common", "nothing"],
)
def test_weights_that_do_not_fit_are_refused_with_what_to_do(tensors: State, words: str) -> None:
    build: Callable[[Mapping[str, Any]], nn.Module] = only_plain
    with pytest.raises(ModelError, match=re.escape(words)):
        fill_architecture("py:net:Net", {}, tensors, build)


class OneLayer(nn.Module):
    """A layer that may be pruned or normalized, and may keep words in its state dict."""

    def __init__(self, change: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3, dtype=dtype)
        if change is not None:
            change(self.fc)


class WithWords(OneLayer):
    def get_extra_state(self) -> Any:
        return {"classes": ["cat", "dog", "owl"]}

    def set_extra_state(self, state: Any) -> None:
        assert state == self.get_extra_state()


def filled(network: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    return fill_architecture("py:mine", {}, tensors, lambda _: network)[0].eval()


@pytest.mark.parametrize(
    ("theirs", "mine"),
    [
        (lambda: OneLayer(lambda fc: prune.l1_unstructured(fc, "weight", 0.5)), OneLayer),
        (
            lambda: OneLayer(nn.utils.spectral_norm),
            lambda: OneLayer(nn.utils.parametrizations.spectral_norm),
        ),
    ],
)
def test_masks_of_pruning_and_older_spectral_norms_are_understood(theirs: Any, mine: Any) -> None:
    torch.manual_seed(0)
    trained, x = theirs().eval(), torch.rand(2, 4)
    torch.testing.assert_close(filled(mine(), trained.state_dict()).fc(x), trained.fc(x))  # type: ignore[operator]


def test_sparse_and_complex_weights_are_read_as_the_network_has_them() -> None:
    torch.manual_seed(0)
    dense = OneLayer().state_dict()
    read = filled(OneLayer(), {name: t.to_sparse() for name, t in dense.items()}).state_dict()
    torch.testing.assert_close(read, dense)
    complex_ = OneLayer(dtype=torch.complex64).state_dict()
    torch.testing.assert_close(filled(OneLayer(dtype=torch.complex64), complex_).state_dict(), complex_)
    with pytest.raises(ModelError, match="complex numbers, and its own are not"):
        filled(OneLayer(), complex_)


def test_extra_state_that_is_not_a_tensor_is_left_to_the_code_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    trained = WithWords().fc.state_dict()
    read = filled(WithWords(), {f"fc.{name}": tensor for name, tensor in trained.items()}).fc
    torch.testing.assert_close(read.state_dict(), trained)  # type: ignore[operator, union-attr]
    assert "get_extra_state of the network itself" in caplog.text
    with pytest.raises(ModelError, match=r"missing: fc\.bias"):
        filled(WithWords(), {"fc.weight": trained["weight"]})
