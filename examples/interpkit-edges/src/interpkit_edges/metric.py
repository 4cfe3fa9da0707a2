"""A metric of how far the samples are from the edge of their class, in probability."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from interpkit import Metric, Study

CLOSE = 0.1
"""A smaller mean margin is warned of."""


class Margin(Metric):
    r"""The mean margin of the samples, overall and per class.

    .. math:: m(x) = q_{(1)} - q_{(2)}, \qquad 0 \le m \le 1,

    the difference between the target's two largest probabilities, which is 0 on the edge between two classes.
    """

    name = "margin"
    every_run = True
    describe: ClassVar[Mapping[str, str]] = {
        "margin": "How much more probable the first class is than the second; 0 is the edge between two classes."
    }
    columns: ClassVar[Mapping[str, str]] = {"margin": "margin"}

    @classmethod
    def warnings(cls, metrics: Mapping[str, Any]) -> list[str]:
        """Warn of samples that lie next to the edge."""
        margin = metrics.get("margin", 1.0)
        return (
            []
            if margin >= CLOSE
            else [f"The samples lie next to the edge of their class: a mean margin of {margin:.2f}."]
        )

    def measure(self, study: Study) -> Mapping[str, Any]:
        """Return the mean margin of all samples, and of each class."""
        if study.target.multi_label:
            study.leave_out(self.name, "labels that do not exclude each other have no second-best class.")
            return {}
        largest = study.response(study.target, "samples").logits.softmax(1).topk(2).values
        margins: Tensor = largest[:, 0] - largest[:, 1]
        per_class = {label: {"margin": margins[study.rows("samples", label)].mean().item()} for label in study.classes}
        return {"margin": margins.mean().item(), "per_class": per_class}
