"""Whether independent classifiers agree on the samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import pydantic
import torch
from pydantic import Field
from torch import Tensor

import interpkit
from interpkit import Metric, Study, Target, percent, wilson
from interpkit_metrics.classes import span

LOW_AGREEMENT = 0.5
HIGH_ACCURACY = 0.9
"""Below the first an evaluator is warned of; from the second on the target is called fooled."""
BLURRED_FROM = 64
"""Pixels of the shorter side from which a blur takes away only what is fine."""
BLUR_SIDE = 224
"""The shorter side, in pixels, of the images that the option ``blur`` is for; for others it is scaled."""
LOST = 0.5
"""A blur that takes more than this share of an agreement is warned of, unless it takes as much of real images'."""
AT_ONCE = 64


class Evaluator(pydantic.BaseModel):
    """One evaluator's entry in metrics.json."""

    name: str
    agreement: pydantic.FiniteFloat | None = None
    reference_accuracy: pydantic.FiniteFloat | None = None
    blurred_agreement: pydantic.FiniteFloat | None = None
    blurred_reference_accuracy: pydantic.FiniteFloat | None = None
    family: str = ""
    same_family: bool = False


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

    A sister network may agree with fine noise. ``blurred_agreement`` is therefore the agreement after a Gaussian blur
    of ``blur_sigma`` pixels, which a person hardly sees: the option ``blur``, times the shorter side / 224. It is
    measured from 64 pixels on; in smaller images such a blur reaches no neighboring pixel, or takes away the object.
    ``same_family`` says that the evaluator's architecture is of the target's own family (`Target.family`), which makes
    its agreement a weaker proof. Samples of classes that an evaluator does not have are left out.

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
        r"evaluators\..*\.reference_accuracy": "Its accuracy on real images, to compare its agreement with.",
        r"evaluators\..*\.relative": "Its agreement as a share of its accuracy on real images.",
        r"evaluators\..*\.blurred_agreement": "Its agreement after a slight blur, which takes away fine noise.",
        r"evaluators\..*\.blurred_reference_accuracy": "Its accuracy on real images after the same blur.",
        r"evaluators\..*\.blur_sigma": "Standard deviation of that blur, in pixels.",
    }
    columns = {
        "agrees: {}": r"evaluators\.(.*)\.agreement",
        "blurred: {}": r"evaluators\.(.*)\.blurred_agreement",
    }
    schema = Evaluators

    class Options(interpkit.Options):
        """The blur."""

        blur: float = Field(
            1.0,
            ge=0,
            le=20,
            description="standard deviation in pixels at 224 x 224, scaled for other sizes; 0: none",
        )

    options: Options

    @classmethod
    def warnings(cls, metrics: Mapping[str, Any]) -> list[str]:
        """Return a warning for each evaluator that rarely agrees."""
        texts = []
        accuracy = metrics.get("inversion_accuracy", 0.0)
        for row in metrics.get("evaluators", ()):
            agreement, real = row.get("agreement"), row.get("reference_accuracy")
            if agreement is None:
                continue
            blurred, kept = row.get("blurred_agreement", agreement), row.get("blurred_reference_accuracy", real)
            usual = 1.0 if not real or kept is None else min(1.0, kept / real)
            if blurred < LOST * usual * agreement:
                texts.append(
                    f"The evaluator {row['name']} agrees on {percent(agreement, 0)} of the samples, but on only "
                    f"{percent(blurred, 0)} after a slight blur: what it agrees with is mostly fine noise."
                )
            if agreement >= LOW_AGREEMENT:
                continue
            known = "" if real is None else f" (its accuracy on the reference images is {percent(real, 0)})"
            text = f"The evaluator {row['name']} agrees on only {percent(agreement, 0)} of the samples{known}"
            if accuracy >= HIGH_ACCURACY:
                text += (
                    f", while the target assigns {percent(accuracy, 0)} to the class asked for: the target is fooled, "
                    f"so do not read the images as what the class looks like"
                )
            texts.append(f"{text}.")
        return texts

    @classmethod
    def summary(cls, metrics: Mapping[str, Any]) -> str:
        """Return on how many samples evaluators agree, or that none has evaluated them."""
        rows = [row for row in metrics.get("evaluators", ()) if row.get("agreement") is not None]
        if not rows:
            return "No independent classifier has evaluated them yet."
        subject = "An independent classifier agrees" if len(rows) == 1 else "Independent classifiers agree"
        text = f"{subject} on {span([row['agreement'] for row in rows])}"
        blurred = [row["blurred_agreement"] for row in rows if "blurred_agreement" in row]
        text += f", and after a slight blur on {span(blurred)}." if blurred else "."
        if any("family" in row for row in rows):
            named = [f"{row['name']} ({row.get('family') or 'of unknown architecture'})" for row in rows]
            text += f" {'It is' if len(rows) == 1 else 'They are'} {', '.join(named)}."
        kin = [row["name"] for row in rows if row.get("same_family")]
        if kin:
            text += (
                f" The architecture of {' and '.join(kin)} is of the target's own family, which makes the agreement a "
                f"weaker proof."
            )
        return text

    @classmethod
    def doubts(cls, row: Mapping[str, Any]) -> dict[str, float]:
        """Return the shares that evaluators do not agree on, and that they no longer agree on after a blur."""
        rows = [row for row in row.get("evaluators") or () if row.get("agreement") is not None]
        if not rows:
            return {}
        lost = [row["agreement"] - row.get("blurred_agreement", row["agreement"]) for row in rows]
        return {
            "not what evaluators see in them": 1 - sum(row["agreement"] for row in rows) / len(rows),
            "lost to a slight blur": max(0.0, sum(lost) / len(rows)),
        }

    def measure(self, study: Study) -> dict[str, Any]:
        """Return ``evaluators``, a list, in all and per class."""
        sigma = self._sigma(study)
        evaluators: list[dict[str, Any]] = []
        per_class: dict[int, dict[str, Any]] = {label: {"evaluators": []} for label in study.classes}
        for name, judge in study.evaluators.items():
            right, known = self._right(study, judge, "samples")
            figures = {"agreement": right}
            if sigma:
                figures["blurred_agreement"], _ = self._right(study, judge, "samples", sigma)
            row = {"name": name, **_shares(figures, known)}
            if study.reference is not None:
                row |= self._on_real_images(study, judge, row.get("agreement"), sigma)
            row |= {"blur_sigma": sigma} if sigma else {}
            row |= {"family": judge.family, "same_family": judge.family == study.target.family != ""}
            evaluators.append(row)
            for label in study.classes:
                own = (study.labels("samples") == label) & known
                per_class[label]["evaluators"].append({"name": name, **_shares(figures, own)})
        return {"evaluators": evaluators, "per_class": per_class}

    def _sigma(self, study: Study) -> float:
        """Return the standard deviation of the blur in pixels; 0 for none."""
        shape = study.target.input_shape
        if len(shape) == 3 and min(shape[1:]) >= BLURRED_FROM:
            return self.options.blur * min(shape[1:]) / BLUR_SIDE
        if "blur" in self.options.model_fields_set:
            study.leave_out(f"{self.name}.blur", f"it takes images of at least {BLURRED_FROM} x {BLURRED_FROM} pixels.")
        return 0.0

    def _on_real_images(self, study: Study, judge: Target, agreement: float | None, sigma: float) -> dict[str, float]:
        real, known = self._right(study, judge, "reference")
        known &= torch.isin(study.labels("reference"), torch.tensor(study.classes))
        if not known.any():
            return {}
        accuracy = real[known].double().mean().item()
        found = {"reference_accuracy": accuracy}
        if accuracy and agreement is not None:
            found["relative"] = agreement / accuracy
        if sigma:
            blurred, _ = self._right(study, judge, "reference", sigma)
            found["blurred_reference_accuracy"] = blurred[known].double().mean().item()
        return found

    def _right(
        self, study: Study, judge: Target, which: Literal["samples", "reference"], sigma: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Return whether the evaluator assigns each image, blurred, to its class, and whether it has that class."""
        labels = study.labels(which)
        if sigma:
            parts = study.unit_images(which).split(AT_ONCE)
            logits = torch.cat([study.look(judge, blurred(part, sigma)).logits for part in parts])
        else:
            logits = study.response(judge, which).logits
        return judge.accepts(logits, labels), ~torch.isin(labels, torch.tensor([*judge.lacks], dtype=torch.int64))


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Return images (N, C, H, W) under a Gaussian of standard deviation ``sigma`` pixels, mirrored at the border."""
    reach = min(math.ceil(3 * sigma), *(side - 1 for side in images.shape[2:]))
    kernel = torch.exp(-((torch.arange(-reach, reach + 1) / sigma) ** 2) / 2)
    kernel /= kernel.sum()
    flat = torch.nn.functional.pad(images.flatten(0, 1)[:, None], [reach] * 4, mode="reflect")
    for shape in ((1, 1, -1, 1), (1, 1, 1, -1)):
        flat = torch.nn.functional.conv2d(flat, kernel.view(shape))
    return flat.view(images.shape)


def _shares(figures: Mapping[str, Tensor], rows: Tensor) -> dict[str, Any]:
    """Return the share of the rows where each figure is true, with its interval; nothing of no rows."""
    count, found = int(rows.sum()), dict[str, Any]()
    for key, values in figures.items() if count else ():
        hits = int(values[rows].sum())
        found |= {key: hits / count, f"{key}_interval": wilson(hits, count)}
    return found
