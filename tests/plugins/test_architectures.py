"""Architectures are built once, without memory where that is possible, and filled with the weights of a file."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interpkit import Architectures, ModelError, fill_architecture
from interpkit.plugins.discovery import installed


class Plain(nn.Module):
    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x.flatten(1)))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.other.weight = self.one.weight


class NotPersistent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.register_buffer("positions", torch.arange(4.0), persistent=False)


class InAList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.scales = [torch.ones(1)]


class Referring(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.weight = weakref.ref(self.head.weight)


class Computing(nn.Module):
    """Cannot be built without memory: a shape depends on the values of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(int(torch.tensor([4.0]).item()), 3)


KINDS: dict[str, Callable[..., nn.Module]] = {
    kind.__name__: kind for kind in (Plain, Tied, NotPersistent, InAList, Referring, Computing)
}


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Register the networks above, and return the devices that they are built on."""
    devices: list[str] = []

    class Nets(Architectures):
        name = "nets"

        def names(self) -> Sequence[str]:
            return list(KINDS)

        def build(self, name: str, arguments: Mapping[str, Any]) -> nn.Module:
            devices.append(torch.empty(0).device.type)
            return KINDS[name](**arguments)

    registry = installed().registry
    get = registry.get
    monkeypatch.setattr(registry, "get", lambda kind, name: Nets() if name == "nets" else get(kind, name))
    return devices


@pytest.mark.parametrize(
    ("name", "devices"),
    [
        ("Plain", ["meta"]),
        ("Tied", ["meta"]),
        ("NotPersistent", ["meta", "cpu"]),
        ("InAList", ["meta", "cpu"]),
        ("Referring", ["meta", "cpu"]),
        ("Computing", ["meta", "cpu"]),
    ],
)
def test_a_network_is_built_with_memory_only_where_weights_cannot_fill_it(
    name: str, devices: list[str], builds: list[str]
) -> None:
    state = {key: torch.rand_like(tensor.float()) for key, tensor in KINDS[name]().state_dict().items()}
    if name == "Tied":
        state["other.weight"] = state["one.weight"]
    module, arguments = fill_architecture(f"nets:{name}", {}, state)
    assert builds == devices and arguments == {} and module.training
    assert all(torch.equal(tensor, state[key].to(tensor.dtype)) for key, tensor in module.state_dict().items())
    parts = [*module.parameters(), *module.buffers(), *getattr(module, "scales", [])]
    assert not any(tensor.is_meta for tensor in parts) and all(p.requires_grad for p in module.parameters())
    if isinstance(module, Tied):
        assert module.one.weight is module.other.weight
    if isinstance(module, NotPersistent):
        assert module.get_buffer("positions").tolist() == [0, 1, 2, 3]


def test_a_head_of_another_width_and_a_shared_prefix_are_fitted_without_memory(builds: list[str]) -> None:
    state = {f"model.{key}": tensor for key, tensor in Plain(7).state_dict().items()}
    module, arguments = fill_architecture("nets:Plain", {}, state)
    assert arguments == {"num_classes": 7} and builds == ["meta", "meta"]
    assert torch.equal(module.get_parameter("head.weight"), state["model.head.weight"])


def test_weights_that_do_not_fit_are_refused_before_memory_is_taken(builds: list[str]) -> None:
    state = Plain().state_dict() | {"norm.weight": torch.rand(5)}
    with pytest.raises(ModelError, match=r"norm.weight \(\[5\], expected \[4\]\)"):
        fill_architecture("nets:Plain", {}, state)
    assert set(builds) == {"meta"}


def test_code_of_the_users_is_built_once() -> None:
    built = []

    def build(arguments: Mapping[str, Any]) -> nn.Module:
        built.append(Plain(**arguments))
        return built[-1]

    module, _ = fill_architecture("py:net:Plain", {}, Plain().state_dict(), build)
    assert len(built) == 1 and module is built[0]


def test_layers_that_read_their_version_are_loaded_as_of_today() -> None:
    from torchvision import models

    net = models.mnasnet0_5(num_classes=3)
    state = dict(net.state_dict())  # as safetensors has it, without versions
    module, _ = fill_architecture("torchvision:mnasnet0_5", {}, state)
    assert torch.equal(module.get_parameter("classifier.1.weight"), state["classifier.1.weight"])
