"""Whether independent classifiers agree on the samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pydantic
from torch import Tensor

from interpkit import Metric, Study, Target, wilson
from interpkit_metrics.classes import span

LOW_AGREEMENT = 0.5
HIGH_ACCURACY = 0.9
"""Below the first an evaluator is warned of; from the second on the target is called fooled."""


class Evaluator(pydantic.BaseModel):
    """One evaluator's entry in metrics.json."""

    name: str
    agreement: pydantic.FiniteFloat | None = None
    reference_accuracy: pydantic.FiniteFloat | None = None


class Evaluators(pydantic.BaseModel):
    """The entry of metrics.json."""

    evaluators: list[Evaluator]


class Agreement(Metric):
    r"""Share of samples that an evaluator, never seen in training, assigns to the requested class (`Target.accepts`).

    .. math:: \frac{1}{N} \sum_i [\arg\max_c e_c(x_i) = y_i], \qquad e \text{ the evaluator's logits}

    In [0, 1], for each evaluator, in all and per class, with its 95 % interval (Wilson 1927). With reference images,
    ``reference_accuracy`` is the same share of the real images of those classes, and ``relative`` is
    agreement / reference_accuracy: what is left of the evaluator's skill on the samples, about 1 for real images.
    The source of the doubt that it answers: Suhail & Sethi report the target's own accuracy alone.

    Example:
        >>> import torch
        >>> from interpkit import ImageInversion, Recipe, evaluate, wrap
        >>> target = wrap(torch.nn.Identity(), input_shape=(2,))  # its logits are its inputs
        >>> other = wrap(torch.nn.Softmax(dim=1), input_shape=(2,), name="other")
        >>> images = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.8, 0.2], [0.6, 0.4]])
        >>> inversion = ImageInversion(target, Recipe(), [], images, labels=torch.tensor([0, 1, 0, 1]))
        >>> evaluate(inversion, evaluators=[other])["evaluators"][0]["agreement"]  # it disagrees on the last one
        0.75
    """

    name = "agreement"
    key = "evaluators"
    needs = ("evaluator",)
    describe = {
        r"evaluators\..*\.agreement": "Share of samples that this independent classifier assigns to the class.",
        r"evaluators\..*\.reference_accuracy": "Its accuracy on real images: the most that its agreement can reach.",
        r"evaluators\..*\.relative": "Its agreement as a share of its accuracy on real images.",
    }
    columns = {"agrees: {}": r"evaluators\.(.*)\.agreement"}
    schema = Evaluators

    @classmethod
    def warnings(cls, metrics: Mapping[str, Any]) -> list[str]:
        """Return a warning for each evaluator that rarely agrees."""
        texts = []
        accuracy = metrics.get("inversion_accuracy", 0.0)
        for row in metrics.get("evaluators", ()):
            agreement, real = row.get("agreement"), row.get("reference_accuracy")
            if agreement is None or agreement >= LOW_AGREEMENT:
                continue
            known = "" if real is None else f" (its accuracy on the reference images is {real:.0%})"
            text = f"The evaluator {row['name']} agrees on only {agreement:.0%} of the samples{known}"
            if accuracy >= HIGH_ACCURACY:
                text += (
                    f", while the target assigns {accuracy:.0%} to the class asked for: the target is fooled, so do "
                    f"not read the images as what the class looks like"
                )
            texts.append(f"{text}.")
        return texts

    @classmethod
    def summary(cls, metrics: Mapping[str, Any]) -> str:
        """Return on how many samples evaluators agree, or that none has evaluated them."""
        shares = [row["agreement"] for row in metrics.get("evaluators", ()) if row.get("agreement") is not None]
        if not shares:
            return "No independent classifier has evaluated them yet."
        subject = "An independent classifier agrees" if len(shares) == 1 else "Independent classifiers agree"
        return f"{subject} on {span(shares)}."

    def measure(self, study: Study) -> dict[str, Any]:
        """Return ``evaluators``, a list, in all and per class."""
        judged = {name: self._right(study, judge, "samples") for name, judge in study.evaluators.items()}
        evaluators = []
        for name, right in judged.items():
            row = {"name": name, **_share(right)}
            if study.reference is not None:
                real = self._right(study, study.evaluators[name], "reference")
                real = real[_of_classes(study.reference.labels, study.classes)]
                if len(real):
                    accuracy = real.double().mean().item()
                    row |= {"reference_accuracy": accuracy}
                    row |= {"relative": row["agreement"] / accuracy} if accuracy else {}
            evaluators.append(row)
        per_class = {
            label: {
                "evaluators": [
                    {"name": name, **_share(right[study.rows("samples", label)])} for name, right in judged.items()
                ]
            }
            for label in study.classes
        }
        return {"evaluators": evaluators, "per_class": per_class}

    def _right(self, study: Study, judge: Target, which: Any) -> Tensor:
        return judge.accepts(study.response(judge, which).logits, study.labels(which))


def _of_classes(labels: Tensor, classes: list[int]) -> Tensor:
    return (labels[:, None] == labels.new_tensor(classes)).any(1)


def _share(right: Tensor) -> dict[str, Any]:
    hits, count = int(right.sum()), len(right)
    return {"agreement": hits / count, "agreement_interval": wilson(hits, count)}
