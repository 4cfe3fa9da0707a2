"""The adapter to Quantus: equal to Quantus called by hand, on the same maps, scores and draws."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch

from interpkit import Explainer, Target, UsageError
from interpkit.attribution.quantus import quantus_means, quantus_scores
from interpkit.runtime.random import derive_seed

METRICS = ("Sparseness", "Complexity", "FaithfulnessCorrelation", "MaxSensitivity", "RandomLogit", "MPRT")
pytestmark = pytest.mark.filterwarnings("ignore")  # of Quantus, and of what it imports


@pytest.fixture
def explained(tiny_target: Target) -> tuple[Explainer, torch.Tensor, torch.Tensor, torch.Tensor]:
    explainer = Explainer(tiny_target, "saliency", device="cpu")
    images, classes = torch.rand(3, 1, 12, 12), torch.tensor([0, 1, 2])
    return explainer, images, classes, explainer.maps(images, classes)


@pytest.mark.parametrize("name", METRICS)
def test_scores_equal_those_of_quantus_called_by_hand(name: str, explained: tuple[Any, ...]) -> None:
    import quantus

    explainer, images, classes, maps = explained
    settings = {"FaithfulnessCorrelation": {"nr_runs": 5, "subset_size": 20}, "RandomLogit": {"num_classes": 3}}
    metric = getattr(quantus, name)(disable_warnings=True, **settings.get(name, {}))
    drawn, kept = np.random.get_state()[1].tolist(), maps.clone()
    found = quantus_scores(explainer, images, classes, maps, [metric])[name]
    assert np.random.get_state()[1].tolist() == drawn and torch.equal(maps, kept)

    def saliency(model: torch.nn.Module, inputs: Any, targets: Any, **_: Any) -> Any:
        shown = torch.as_tensor(inputs).float().requires_grad_()
        score = model(shown).gather(1, torch.as_tensor(targets).long()[:, None]).sum()
        return torch.autograd.grad(score, shown)[0].abs().numpy()

    seed = derive_seed(explainer.seed, "quantus")
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    with explainer.target.frozen("cpu"):
        by_hand = metric(
            explainer.target, images.numpy(), classes.numpy(), kept.numpy(), explain_func=saliency, device="cpu"
        )
    assert str(found) == str(by_hand) or np.allclose(found, by_hand, rtol=1e-4)
    assert set(quantus_means({name: found})) == {name}


def test_names_have_the_number_of_classes_of_the_target(explained: tuple[Any, ...]) -> None:
    assert len(quantus_scores(*explained, ["RandomLogit"])["RandomLogit"]) == 3


def test_metrics_that_cannot_run_are_refused(explained: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"Quantus has no metric 'Sparsness'.*Did you mean 'Sparseness'"):
        quantus_scores(*explained, ["Sparsness"])
    with pytest.raises(UsageError, match="PointingGame of Quantus fails on maps of saliency: "):
        quantus_scores(*explained, ["PointingGame"])  # it compares maps with segmentations
    monkeypatch.setitem(sys.modules, "quantus", None)
    with pytest.raises(UsageError, match=r"require the package quantus.*\[quantus\]"):
        quantus_scores(*explained, ["Sparseness"])


def test_means_are_of_finite_numbers() -> None:
    values = {"numbers": [1, 2.0], "curves": [[1, 2], [3, 6]], "layers": {"a": [1]}, "none": [float("nan")]}
    assert quantus_means(values) == {"numbers": 1.5, "curves": 3.0, "layers": None, "none": None}
