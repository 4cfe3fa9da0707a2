"""`Target.frozen`, indexing of conditions and responses, and the defaults of the base classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pydantic
import pytest
import torch
from torch import Tensor, nn

import interpkit
from interpkit import Condition, Conditioner, ConditionSpec, Response

State = Callable[[nn.Module], dict[str, Any]]


def mixed_module() -> nn.Sequential:
    """Return a network with mixed modes and requires_grad, with batch norm, dropout and a user hook."""
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.5), nn.Flatten(), nn.Linear(64, 3)
    )
    net.train()
    net[1].eval()
    net[0].weight.requires_grad_(False)
    net[5].register_forward_hook(lambda module, inputs, output: None)
    return net


def test_frozen_sets_eval_mode_without_gradients_and_restores_both(module_state: State) -> None:
    net = mixed_module()
    target = interpkit.wrap(net, (1, 6, 6))
    before = module_state(net)
    with target.frozen():
        assert not any(part.training for part in target.modules())
        assert not any(p.requires_grad for p in target.parameters())
    assert module_state(net) == before
    assert [part.training for part in net] == [True, False, True, True, True, True]


def test_frozen_restores_the_target_after_an_exception(module_state: State) -> None:
    net = mixed_module()
    target = interpkit.wrap(net, (1, 6, 6))
    before = module_state(net)
    with pytest.raises(KeyError, match="inside"), target.frozen("cpu"):
        raise KeyError("inside")
    assert module_state(net) == before


def test_frozen_within_frozen_restores_the_outermost_state(module_state: State) -> None:
    net = mixed_module()
    target = interpkit.wrap(net, (1, 6, 6))
    before = module_state(net)
    with target.frozen():
        with target.frozen():
            pass
        assert not any(part.training for part in target.modules())
        assert not any(p.requires_grad for p in target.parameters())
    assert module_state(net) == before


def test_a_condition_without_maps_returns_maps_with_zero_channels() -> None:
    condition = Condition(torch.tensor([1, 0]), torch.eye(2), torch.eye(2))
    assert condition.maps(5, 7).shape == (2, 0, 5, 7)


@pytest.mark.parametrize("rows", [[2, 0], [1, 1, 1], [], [True, False, True]], ids=str)
def test_indexing_a_condition_selects_rows_of_all_its_parts(rows: list[Any]) -> None:
    labels, distribution, vector = torch.tensor([2, 0, 1]), torch.rand(3, 3), torch.rand(3, 4)
    whole = torch.rand(3, 2, 5, 7)
    chosen = torch.tensor(rows, dtype=torch.bool if True in rows else torch.int64)
    some = Condition(labels, distribution, vector, lambda height, width: whole[:, :, :height, :width])[chosen]
    kept = [row for row, keep in enumerate(rows) if keep] if True in rows else rows
    assert some.labels.tolist() == [labels.tolist()[row] for row in kept]
    assert some.distribution.tolist() == [distribution.tolist()[row] for row in kept]
    assert some.vector.tolist() == [vector.tolist()[row] for row in kept]
    for size in ((5, 7), (2, 3)):
        assert some.maps(*size).shape == (len(kept), 2, *size)
        assert some.maps(*size).tolist() == [whole[row, :, : size[0], : size[1]].tolist() for row in kept]


def test_indexing_a_condition_without_maps_returns_one_without_maps() -> None:
    some = Condition(torch.tensor([1, 0, 1]), torch.eye(3), torch.eye(3))[torch.tensor([2, 0])]
    assert some.draw_maps is None and some.maps(4, 5).shape == (2, 0, 4, 5)


def test_indexing_a_condition_twice_refers_to_the_first_selection() -> None:
    whole = torch.arange(4.0).view(4, 1, 1, 1)
    condition = Condition(torch.arange(4), torch.eye(4), torch.eye(4), lambda height, width: whole)
    some = condition[torch.tensor([3, 1, 0])][torch.tensor([1, 2])]
    assert some.labels.tolist() == [1, 0] and some.maps(1, 1).flatten().tolist() == [1, 0]


def test_a_slice_of_a_response_slices_logits_and_every_feature() -> None:
    logits, a, b = torch.arange(8.0).view(4, 2), torch.arange(4.0).view(4, 1), torch.arange(24.0).view(4, 2, 3)
    part = Response(logits, {"a": a, "b": b}, "b")[1:3]
    assert torch.equal(part.logits, logits[1:3])
    assert torch.equal(part.features["a"], a[1:3])
    assert torch.equal(part.features["b"], b[1:3])
    assert part.penultimate.shape == (2, 6)


class Minimal(Conditioner):
    name = "minimal"

    class Options(interpkit.Options):
        strength: float = pydantic.Field(1.0, ge=0)

    @property
    def spec(self) -> ConditionSpec:
        return ConditionSpec(0)

    def sample(self, batch_size: int, *, labels: Tensor | None = None, rng: torch.Generator | None = None) -> Condition:
        raise NotImplementedError


def test_a_component_without_options_uses_its_defaults() -> None:
    assert Minimal(3, (4,)).options == Minimal.Options(strength=1.0)


def test_a_conditioner_follows_the_device_it_is_moved_to_and_adds_nothing_to_the_state() -> None:
    conditioner = Minimal(3, (4,))
    assert conditioner.device.type == "cpu"
    assert conditioner.state_dict() == {}
    assert conditioner.to("meta").device.type == "meta"


@pytest.mark.parametrize("bad", [{"strenght": 1.0}, {"strength": -1}, {"strength": float("nan")}])
def test_options_refuse_unknown_names_and_values_out_of_range_or_not_finite(bad: dict[str, float]) -> None:
    with pytest.raises(pydantic.ValidationError):
        Minimal.Options(**bad)


def test_an_incomplete_component_cannot_be_built() -> None:
    class Half(Conditioner):
        name = "half"

    with pytest.raises(TypeError, match="sample"):
        Half(3, (4,))
