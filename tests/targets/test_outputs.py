"""The logits among several outputs are found by evidence, or asked for; features are never taken for classes."""

from __future__ import annotations

import dataclasses
from collections import namedtuple
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import interpkit
from interpkit import ModelError, wrap
from interpkit.targets.outputs import named_tensors, rows

Pair = namedtuple("Pair", ["features", "scores"])


@dataclasses.dataclass
class Result:
    embedding: Tensor
    prediction: Tensor


class Net(nn.Module):
    """Eight features h of 12 numbers x, and z = Wh of three classes; returns what a function makes of them."""

    def __init__(self, make: Callable[[Any, Tensor, Tensor], Any], gradient: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.fc, self.other = nn.Linear(12, 8), nn.Linear(8, 3), nn.Linear(8, 5)
        self.make, self.gradient = make, gradient

    def logits(self, x: Tensor) -> Tensor:
        z: Tensor = self.fc(self.body(x.flatten(1)).relu())
        return z

    def forward(self, x: Tensor) -> Any:
        with torch.set_grad_enabled(self.gradient and torch.is_grad_enabled()):
            h = self.body(x.flatten(1)).relu()
            return self.make(self, h, self.fc(h))


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda net, h, z: (h, z), "1"),
        (lambda net, h, z: [z, h], "0"),
        (lambda net, h, z: (None, z), "1"),
        (lambda net, h, z: ((h, {"z": z}), "text"), "0.1.z"),
        (lambda net, h, z: {"embedding": h, "cls_logits": z}, "cls_logits"),
        (lambda net, h, z: Pair(h, z), "scores"),
        (lambda net, h, z: Result(h, z), "prediction"),
        (lambda net, h, z: SimpleNamespace(hidden=h, out=z, maps=h[:, :, None, None].expand(-1, -1, 2, 2)), "out"),
        (lambda net, h, z: (z, h.sum()), "0"),
        (lambda net, h, z: (z, z.softmax(1)), "0"),
        (lambda net, h, z: (z.argmax(1), z), "1"),
        (lambda net, h, z: {"above": z > 0, "z": z}, "z"),
        (lambda net, h, z: {"aux_logits": net.other(h), "out": z}, "out"),
        (lambda net, h, z: {"logits": z, "age": net.other(h)}, "logits"),
        (lambda net, h, z: ({"logits": z}, net.other(h)), "0.logits"),
    ],
)
def test_the_logits_are_found_and_the_choice_is_recorded(make: Any, name: str, gradient: bool) -> None:
    net, images = Net(make, gradient), torch.rand(5, 3, 2, 2)
    target = wrap(net, (3, 2, 2))
    torch.testing.assert_close(target(images), net.logits(images))
    assert target.description.output_name == name
    assert "found" in target.sources["output_name"]


def test_features_give_way_to_the_probabilities_computed_from_them() -> None:
    net, images = Net(lambda net, h, z: {"embedding": h, "out": z.softmax(1)}), torch.rand(5, 3, 2, 2)
    target = wrap(net, (3, 2, 2))
    assert (target.description.output_name, target.description.output) == ("out", "probs")
    torch.testing.assert_close(target(images).softmax(1), net.logits(images).softmax(1))


def test_what_was_taken_is_said_with_what_else_there_was(caplog: pytest.LogCaptureFixture) -> None:
    wrap(Net(lambda net, h, z: (h, z)), (3, 2, 2))
    (message,) = [record.getMessage() for record in caplog.records if record.name == "interpkit"]
    assert "'1' is taken as the logits" in message
    assert "0 (6, 8), 1 (6, 3)" in message


def two_heads(net: Any, h: Tensor, z: Tensor) -> Any:
    return {"kind": z, "age": net.other(h), "hidden": h}


@pytest.mark.parametrize("gradient", [True, False])
def test_of_several_heads_one_is_asked_for(gradient: bool) -> None:
    with pytest.raises(ModelError, match=r"kind \(6, 3\), age \(6, 5\).*output_name.*output_index"):
        wrap(Net(two_heads, gradient), (3, 2, 2))


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda net, h, z: {"domain_logits": net.other(h), "class": z},
        lambda net, h, z: {"domain_logits": net.other(h), "class_probs": z.softmax(1)},
        lambda net, h, z: {"domain": {"logits": net.other(h)}, "class": z},
    ],
)
def test_a_name_that_fits_one_of_two_heads_decides_nothing(make: Any, gradient: bool) -> None:
    with pytest.raises(ModelError, match=r"might be the logits.*output_name"):
        wrap(Net(make, gradient), (3, 2, 2))
    assert wrap(Net(make, gradient), (3, 2, 2), num_classes=3).num_classes == 3  # the width does


def test_a_name_decides_against_features_that_nothing_is_computed_from() -> None:
    net, images = Net(lambda net, h, z: {"projection": net.other(h), "cls_logits": z}), torch.rand(5, 3, 2, 2)
    target = wrap(net, (3, 2, 2))
    assert target.description.output_name == "cls_logits"
    torch.testing.assert_close(target(images), net.logits(images))


@pytest.mark.parametrize("number", [lambda z: z.softmax(1).amax(1), lambda z: z.logsumexp(1, keepdim=True)])
def test_one_number_computed_from_the_scores_is_not_taken_for_a_binary_classifier(
    number: Callable[[Tensor], Tensor],
) -> None:
    with pytest.raises(ModelError, match=r"any of '0', '1' might be the logits"):
        wrap(Net(lambda net, h, z: (z, number(z))), (3, 2, 2))


@pytest.mark.parametrize(
    "facts", [{"output_name": "age"}, {"output_index": 1}, {"num_classes": 5}, {"class_names": list("abcde")}]
)
def test_a_head_is_chosen_by_name_position_or_width(facts: dict[str, Any]) -> None:
    net = Net(two_heads)
    target = wrap(net, (3, 2, 2), **facts)
    assert (target.num_classes, target.description.output_name) == (5, "age")
    images = torch.rand(4, 3, 2, 2)
    torch.testing.assert_close(target(images), net.other(net.body(images.flatten(1)).relu()))


def test_a_name_and_a_position_of_different_outputs_are_refused() -> None:
    with pytest.raises(ModelError, match=r"output_name='age' and output_index=0 name different outputs"):
        wrap(Net(two_heads, True), (3, 2, 2), output_name="age", output_index=0)
    assert wrap(Net(two_heads, True), (3, 2, 2), output_name="age", output_index=1).num_classes == 5


@pytest.mark.parametrize("facts", [{"output_name": "sex"}, {"output_index": 3}])
def test_an_output_that_is_not_there_is_refused_with_those_that_are(facts: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"asks for, but kind \(6, 3\)"):
        wrap(Net(two_heads), (3, 2, 2), **facts)


def test_the_chosen_output_is_that_of_a_resumed_run() -> None:
    target = wrap(Net(two_heads), (3, 2, 2), output_name="age")
    facts = {"output_name": target.description.output_name, "output_index": target.description.output_index}
    assert wrap(Net(two_heads), (3, 2, 2), **facts).num_classes == 5


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda net, h, z: torch.stack([z] * 4), "The first axis seems to be time"),
        (lambda net, h, z: torch.stack([z] * 4, 1), "several things per image"),
        (lambda net, h, z: z[:, :, None, None].expand(-1, -1, 2, 2), "predict each pixel"),
        (lambda net, h, z: {"loss": None}, "does not contain a tensor of logits"),
        (lambda net, h, z: z.argmax(1), "int64: decisions, not scores"),
        (lambda net, h, z: z[..., None, None, None].expand(-1, -1, 2, 2, 2), "one row of scores per image"),
        (lambda net, h, z: z > 0, "bool: decisions, not scores"),
        (lambda net, h, z: z.softmax(1).topk(2), "the largest scores of `topk`"),
        (lambda net, h, z: z.max(1), "the largest scores of `topk`"),
    ],
)
def test_other_shapes_are_refused_with_a_wrapper_and_not_with_the_shape(make: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words) as error:
        wrap(Net(make), (3, 2, 2))
    assert "input_shape" not in str(error.value)
    assert "Wrap" in str(error.value)


def test_a_binary_classifier_that_squeezes_a_single_image_to_a_number_gives_the_same_answer() -> None:
    images = torch.rand(3, 3, 2, 2)
    target = wrap(Net(lambda net, h, z: z[:, :1].squeeze()), (3, 2, 2))
    assert target.num_classes == 2
    one_by_one = torch.cat([target.respond(image[None]).logits for image in images])
    torch.testing.assert_close(one_by_one, target.respond(images).logits)


def test_names_of_nested_tensors_are_their_keys_fields_and_positions() -> None:
    one = torch.zeros(1)
    assert named_tensors(one) == {"": one}
    assert list(named_tensors({"a": [one, (one, None)], 3: Result(one, one)})) == [
        "a.0", "a.1.0", "3.embedding", "3.prediction",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "count", "expected"),
    [
        ((4,), 4, (4, 1)),
        ((4,), 1, (1, 4)),
        ((1,), 1, (1, 1)),
        ((4, 3), 4, (4, 3)),
        ((1, 4, 3), 4, (4, 3)),
        ((4, 3, 1, 1), 4, (4, 3)),
        ((4, 3, 2), 4, None),
        ((3, 4), 4, None),
        ((4, 0), 4, None),
        ((), 1, None),
    ],
)
def test_sides_of_length_one_are_dropped(shape: tuple[int, ...], count: int, expected: tuple[int, ...] | None) -> None:
    found = rows(torch.zeros(shape), count)
    assert (None if found is None else tuple(found.shape)) == expected


def test_a_several_output_classifier_is_inverted(quick: Callable[..., dict[str, Any]]) -> None:
    inversion = interpkit.invert(wrap(Net(lambda net, h, z: (h, z)), (3, 2, 2)), **quick(steps=2))
    assert inversion.sample(per_class=1)[1].tolist() == [0, 1, 2]
