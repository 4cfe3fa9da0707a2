"""Metrics of Quantus on attribution maps: its about 35 tests of faithfulness, robustness, complexity and so on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from interpkit.attribution.explainer import Explainer
from interpkit.errors import UsageError, did_you_mean, first_line, install_extra, listed
from interpkit.interfaces.attributions import Contrast
from interpkit.runtime.random import derive_seed, global_seed


def quantus_metrics(names: Sequence[Any], num_classes: int) -> dict[str, Any]:
    """Return metrics of Quantus by name: instances as they are, and names such as ``Sparseness`` with defaults.

    The number of classes is set where a metric has such a setting.

    Raises:
        UsageError: Quantus is not installed, or does not have such a metric.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import quantus
            from quantus.metrics.base import Metric
    except ImportError as error:
        raise UsageError(f"these metrics require the package quantus: {install_extra('quantus')}.") from error
    known: dict[str, Any] = {
        name: found for name, found in vars(quantus).items() if isinstance(found, type) and issubclass(found, Metric)
    }
    metrics = {}
    for name in names:
        if not isinstance(name, str):
            metrics[type(name).__name__] = name
        elif name in known:
            classes = {"num_classes": num_classes} if "num_classes" in signature(known[name]).parameters else {}
            metrics[name] = known[name](disable_warnings=True, **classes)
        else:
            raise UsageError(
                f"Quantus has no metric {name!r}.{did_you_mean(name, known)} It has {listed(sorted(known), 50)}."
            )
    return metrics


def quantus_scores(
    explainer: Explainer, images: Tensor, classes: Tensor, maps: Tensor, metrics: Sequence[Any]
) -> dict[str, Any]:
    """Return what metrics of Quantus return for maps, such as one value per image.

    Metrics that explain changed images or networks do so by the explainer. NumPy's and torch's generators are seeded
    for each metric, with the explainer's seed, and restored.

    Args:
        explainer: whose maps they are; metrics call the scores that it explains.
        images: (N, *input_shape) in [0, 1].
        classes: (N,) int64, the classes explained.
        maps: (N, *input_shape).
        metrics: names, for Quantus's defaults, or instances: ``quantus.FaithfulnessCorrelation(nr_runs=50)``.

    Raises:
        UsageError: Quantus is not installed, does not have a metric, or a metric fails, for example because it
            compares maps with segmentations.
    """

    def explain(model: nn.Module, inputs: Any, targets: Any, **_: Any) -> Any:
        other = explainer.on(model.target if isinstance(model, Contrast) else model)  # type: ignore[arg-type]
        return other.maps(torch.as_tensor(inputs).float(), torch.as_tensor(targets).long()).numpy()

    given = {"x_batch": images.numpy(), "y_batch": classes.numpy(), "explain_func": explain, "channel_first": True}
    found = {}
    with explainer.target.frozen(explainer.device):
        for name, metric in quantus_metrics(metrics, explainer.target.num_classes).items():
            try:
                with _seeded(explainer):
                    a_batch = maps.numpy().copy()  # Quantus normalizes maps in place
                    found[name] = metric(
                        explainer.score_module(), a_batch=a_batch, device=str(explainer.device), **given
                    )
            except Exception as error:  # raised by Quantus
                reason = first_line(error) or type(error).__name__
                raise UsageError(f"{name} of Quantus fails on maps of {explainer.method.name}: {reason}") from error
    return found


def quantus_means(scores: dict[str, Any]) -> dict[str, float | None]:
    """Return the mean of each metric's scores; None where they are not finite numbers, such as curves by layer."""
    means: dict[str, float | None] = {}
    for name, values in scores.items():
        try:
            mean = float(np.mean(np.asarray(values, dtype=float)))
        except (TypeError, ValueError):
            mean = float("nan")
        means[name] = mean if np.isfinite(mean) else None
    return means


@contextmanager
def _seeded(explainer: Explainer) -> Iterator[None]:
    state, seed = np.random.get_state(), derive_seed(explainer.seed, "quantus")
    np.random.seed(seed % 2**32)
    try:
        with global_seed(seed, explainer.device), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        np.random.set_state(state)
