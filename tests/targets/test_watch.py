"""`watch` observes the inputs and outputs of layers, and leaves no hooks behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from interpkit.targets.watch import first_of, watch


def test_outputs_and_inputs_are_noted_in_the_order_of_the_pass() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(inplace=True), nn.Linear(3, 1))
    x = torch.rand(4, 2)
    passed: list[tuple[str, Any]] = []
    layers = {"0": net[0], "1:in": net[1], "2": net[2]}
    with watch(layers, lambda name, value: passed.append((name, value))):
        y = net(x)
    assert [name for name, _ in passed] == ["0", "1:in", "2"]
    values = dict(passed)
    assert isinstance(values["1:in"], tuple) and values["1:in"][0] is values["0"] and values["2"] is y
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())


def test_keyword_inputs_are_noted() -> None:
    attention = nn.MultiheadAttention(4, 1)
    x = torch.rand(2, 1, 4)
    passed = []
    with watch({"a:in": attention}, lambda name, value: passed.append(value)):
        attention(query=x, key=x, value=x)
    assert passed[0][0] is x


def test_hooks_are_removed_after_an_exception() -> None:
    net = nn.Linear(2, 2)
    with pytest.raises(RuntimeError), watch({"net": net, "net:in": net}, lambda name, value: None):
        net(torch.rand(3))
    assert not net._forward_hooks and not net._forward_pre_hooks


@pytest.mark.parametrize(("value", "first"), [(3, 3), ([3, 4], 3), (([3],), 3), ([], []), (([],), [])], ids=str)
def test_the_first_of_nested_sequences_is_returned(value: Any, first: Any) -> None:
    assert first_of(value) == first
