"""The edges of a classifier with known edges, and the contracts of an inverter and a metric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interpkit_edges import EdgeInversion, Edges, Margin
from torch import nn

import interpkit
from interpkit import testing


@testing.parametrize_with_checks([Edges, Margin])
def test_it_satisfies_the_contract_of_its_kind(component: Any, check: testing.Check) -> None:
    """All checks of the conformance kit."""
    check(component)


@pytest.fixture
def target() -> interpkit.Target:
    """A classifier of two numbers: class 1 where the first is above 0.3, class 0 elsewhere, and never class 2."""
    net = nn.Linear(2, 3)
    net.load_state_dict(
        {"weight": torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]), "bias": torch.tensor([0, -0.3, -9])}
    )
    return interpkit.wrap(net, (2,), class_names=["low", "high", "never"])


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Twenty points on a line that crosses the edge."""
    first = np.linspace(0.05, 0.95, 20, dtype=np.float32)
    np.savez(tmp_path / "points.npz", images=np.stack([first, 1 - first], 1), labels=(first > 0.3).astype(np.int64))
    return str(tmp_path / "points.npz")


def invert(target: interpkit.Target, data: str, **settings: Any) -> EdgeInversion:
    """Return the edges after 20 steps."""
    options = {"edges.data": data} | settings.pop("options", {})
    inversion = interpkit.invert(target, ["edges"], options=options, device="cpu", **settings)
    assert isinstance(inversion, EdgeInversion)
    return inversion


def test_the_edge_is_where_the_predicted_class_changes(target: interpkit.Target, data: str) -> None:
    pairs = invert(target, data).pairs
    edge = torch.lerp(pairs["starts"][:, 0], pairs["ends"][:, 0], pairs["edges"])
    assert torch.allclose(edge, torch.full_like(edge, 0.3), atol=1e-5)


def test_samples_lie_on_the_side_of_their_class(target: interpkit.Target, data: str) -> None:
    images, labels = invert(target, data).sample(per_class=50)
    assert torch.equal(images[:, 0] > 0.3, labels == 1) and len(images.unique(dim=0)) == 100


def test_a_class_without_images_is_empty_and_has_a_reason(target: interpkit.Target, data: str) -> None:
    inversion = invert(target, data)
    assert inversion.empty == {2: "the target puts none of the 20 images of the data in it"}
    with pytest.raises(interpkit.UsageError, match=r"class 2 \(never\) is empty: the target puts none"):
        inversion.sample(labels=[2])


def test_a_loaded_run_draws_the_same_samples(target: interpkit.Target, data: str, tmp_path: Path) -> None:
    inversion = invert(target, data, out=tmp_path / "run")
    again = interpkit.load_inversion(tmp_path / "run", target=target)
    assert isinstance(again, EdgeInversion) and again.empty == inversion.empty
    assert torch.equal(again.sample(count=9)[0], inversion.sample(count=9)[0])
    assert (tmp_path / "run" / "edges.csv").read_text().startswith("label,edge,distance\n0,")


def test_data_must_be_named(target: interpkit.Target) -> None:
    with pytest.raises(interpkit.UsageError, match="option 'data' is not set"):
        interpkit.invert(target, ["edges"], device="cpu")


def test_the_margin_is_the_difference_of_the_two_largest_probabilities(target: interpkit.Target, data: str) -> None:
    metrics = interpkit.evaluate(invert(target, data), metrics=["margin"])
    assert 0 < metrics["margin"] < 1
    assert all(0 < row["margin"] < 1 for row in metrics["per_class"])


@pytest.mark.parametrize(("margin", "count"), [(0.05, 1), (0.5, 0)])
def test_samples_next_to_the_edge_are_warned_of(margin: float, count: int) -> None:
    assert len(Margin.warnings({"margin": margin})) == count and not Margin.warnings({})
