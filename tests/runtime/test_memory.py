"""How much memory there is, and how much a backward pass needs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from interpkit.runtime import memory

CPU = torch.device("cpu")


def test_what_is_kept_grows_with_the_images_and_excludes_the_weights() -> None:
    network = nn.Sequential(nn.Linear(8, 100), nn.Tanh(), nn.Linear(100, 4))
    found = []
    for images in (1, 3):
        with memory.counting_kept(network) as kept:
            network(torch.zeros(images, 8))
        found.append(kept.bytes)
    assert found == [4 * (8 + 100), 3 * 4 * (8 + 100)]
    kept.restart()
    assert kept.bytes == 0


def test_gradients_are_as_without_counting() -> None:
    layer, x = nn.Linear(4, 4), torch.randn(2, 4)
    layer(x).sigmoid().sum().backward()
    assert layer.weight.grad is not None
    plain = layer.weight.grad.clone()
    layer.zero_grad()
    with memory.counting_kept(layer):
        layer(x).sigmoid().sum().backward()
    assert torch.equal(layer.weight.grad, plain)


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "GROUP", tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    machine = memory.free(CPU)
    (tmp_path / "memory.max").write_text("5000\n")
    assert memory.free(CPU) == 4000 and machine != 4000
    assert memory.allowed(CPU) == 2000


def test_what_torch_keeps_for_its_next_tensors_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"mem_get_info": (100, 1000), "memory_reserved": 700, "memory_allocated": 300}
    for name, value in found.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert memory.free(torch.device("cuda")) == 100 + 700 - 300


def test_a_cpu_is_shared_with_other_programs_however_much_memory_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free", lambda device: 1 << 40)
    assert memory.allowed(CPU) == memory.MOST_ON_CPU
    monkeypatch.setattr(memory, "free", lambda device: None)
    assert memory.allowed(CPU) is None


def test_the_peak_of_this_process_is_known_here() -> None:
    peak = memory.peak(CPU)
    assert peak is None or peak > 1 << 20
