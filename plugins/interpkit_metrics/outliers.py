"""How sure the target is of real images, and of images that it should refuse."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

import interpkit
from interpkit import Metric, Section, Study, Target, TooFew, percent

LEAST = 20
MEANING = (
    "Each score says how familiar an image is to the classifier; {} outliers are compared with real images of its "
    "classes. AUROC is the probability that a real image has the higher score: 1 is best, 0.5 is chance. AUPR is the "
    "average precision of finding the outliers, and depends on how many there are. The figures do not say which "
    "threshold to use, and hold for these outliers alone: images closer to the training data are harder to tell."
)

CALIBRATED = (
    "On {count:,} real images, the classifier gives its answer a probability of {confidence} on average, and is "
    "right on {accuracy}. The table groups the images by that probability, and should show the same share of "
    "right answers; the mean difference (the expected calibration error) is {ece:.3f}. The figures hold for images "
    "like these alone, and do not say how sure the classifier is of other things."
)


class Calibration(Metric):
    r"""Whether the target is right as often as it is sure of it, on real images.

    - ``ece``, in [0, 1]: the expected calibration error :math:`\sum_b \frac{|B_b|}{N} |acc(B_b) - conf(B_b)|` over
      bins of equal width of the largest probability (Guo et al. 2017, "On Calibration of Modern Neural Networks").
    - ``accuracy`` and ``confidence``: the target's accuracy and the mean of its largest probability; it is
      overconfident where the second is larger.
    - ``nll``: the mean negative log-likelihood of the true class, in nats.
    - ``bins``: of each bin with images, from the least probable on: their number, confidence and accuracy.

    For classes that exclude each other. The figures say nothing about images unlike the reference; see `Outliers`.

    Example:
        >>> import torch
        >>> from interpkit import evaluate, invert, wrap
        >>> target = wrap(torch.nn.Linear(4, 2), input_shape=(4,))
        >>> inversion = invert(target, ["pixels"], steps=2, losses={"tv": 0})
        >>> known = torch.rand(40, 4), torch.arange(40) % 2
        >>> found = evaluate(inversion, reference=known, metrics=["calibration"])["calibration"]
        >>> 0 <= found["ece"] <= 1, found["count"]
        (True, 40)
    """

    name = "calibration"
    needs = ("reference",)
    describe = {
        r"calibration\.ece": "How far the largest probability is from the accuracy, on average over bins; 0 is best.",
        r"calibration\.nll": "Mean negative log-likelihood of the true class on real images, in nats.",
        r"calibration\.confidence": "Mean of the target's largest probability on real images.",
        r"calibration\.accuracy": "The target's accuracy on real images.",
    }

    class Options(interpkit.Options):
        """The bins."""

        bins: int = Field(15, ge=1, le=1000, description="bins of the largest probability, of equal width")

    options: Options

    def measure(self, study: Study) -> dict[str, Any]:
        """Return ``calibration``."""
        logits, labels = study.response(study.target, "reference").logits, study.labels("reference")
        if study.target.multi_label:
            raise TooFew("calibration is measured of classes that exclude each other, and these do not.")
        if len(labels) < LEAST:
            raise TooFew(f"calibration requires at least {LEAST} images in the reference, which has {len(labels)}.")
        confidence, predicted = study.target.probabilities(logits.double()).max(1)
        right = (predicted == labels).double()
        bins = (confidence * self.options.bins).ceil().long().clamp(1, self.options.bins) - 1
        filled, place = bins.unique(return_inverse=True)
        sums = torch.zeros(len(filled), 3, dtype=torch.float64)
        sums.index_add_(0, place, torch.stack([torch.ones_like(right), confidence, right], 1))
        return {
            "calibration": {
                "ece": (sums[:, 1] - sums[:, 2]).abs().sum().item() / len(labels),
                "accuracy": right.mean().item(),
                "confidence": confidence.mean().item(),
                "nll": study.target.cross_entropy(logits.double(), labels).mean().item(),
                "count": len(labels),
                "bins": [[int(count), sure / count, hits / count] for count, sure, hits in sums.tolist()],
            }
        }

    @classmethod
    def sections(cls, metrics: Mapping[str, Any]) -> Sequence[Section]:
        """Return a table of the bins, and what it means and does not."""
        own = metrics.get("calibration") or {}
        if not own.get("bins"):
            return ()
        rows = [(count, round(sure, 3), round(right, 3)) for count, sure, right in own["bins"]]
        columns = ("images", "mean probability of the answer", "share of right answers")
        text = CALIBRATED.format(
            **{**own, "confidence": percent(own["confidence"]), "accuracy": percent(own["accuracy"])}
        )
        return (Section("Calibration", text, columns, rows),)


def uncertainty(p: Tensor) -> Tensor:
    r"""Return the uncertainty estimate of Suhail & Sethi (arXiv:2505.23448) of probabilities (B, n), in [0, 1].

    .. math:: U(p) = 1 - \frac{\sum_i (p_i - 1/n)^2}{\sum_i (\delta_{ik} - 1/n)^2}
              = 1 - \frac{\sum_i (p_i - 1/n)^2}{1 - 1/n}

    1 for equal probabilities, and 0 if one class has all.
    """
    n = p.shape[1]
    return 1 - (p - 1 / n).square().sum(1) / (1 - 1 / n)


def _certainty(target: Target, logits: Tensor) -> Tensor:
    certain = 1 - uncertainty(target.probabilities(logits))
    return certain if target.garbage is None else torch.where(logits.argmax(1) == target.garbage, -certain, certain)


def _of_classes(target: Target, values: Tensor) -> Tensor:
    """Return the columns of all classes but the garbage class."""
    return values[:, [k for k in range(target.num_classes) if k != target.garbage]]


SCORES: dict[str, Callable[[Target, Tensor], Tensor]] = {
    "probability": lambda target, logits: _of_classes(target, target.probabilities(logits)).amax(1),
    "energy": lambda target, logits: _of_classes(target, logits).logsumexp(1),
    "certainty": _certainty,
}
"""By name, how familiar an image is to the target; the higher, the more."""


class Outliers(Metric):
    r"""Whether the target's answers tell real images of its classes from others, which it should refuse.

    Each score of familiarity s is computed for the reference and for the outliers (``--ood``):

    - ``probability``: the largest probability (Hendrycks & Gimpel 2017);
    - ``energy``: :math:`\log \sum_k e^{z_k}` of the logits z, minus the energy of Liu et al. 2020. It is left out for
      a target that outputs probabilities or their logarithms, for which the sum is 1 whatever the image;
    - ``certainty``: 1 - `uncertainty`. It is left out for classes that do not exclude each other;
    - ``garbage``: 1 - the probability of the class named "garbage", where there is one (`Target.garbage`). The first
      two are then of the other classes, and ``certainty`` is negative where garbage is the most probable class.

    For each, ``auroc`` is the probability that a random reference image has a higher score than a random outlier (ties
    count half), ``aupr`` the average precision of finding the outliers, ``fpr_at_95`` the share of outliers accepted at
    the score that 95 % of the reference reaches, and ``rejected`` is 1 - ``fpr_at_95``. With a class "garbage",
    ``into_garbage`` is the share of outliers whose most probable class it is, and ``reference_into_garbage`` that of
    the reference. All lie in [0, 1]; an ``auroc`` of 1/2 is chance. They hold for these outliers only: others, nearer
    to the training data, are harder to find.

    Example:
        >>> import torch
        >>> from interpkit import evaluate, invert, wrap
        >>> target = wrap(torch.nn.Identity(), input_shape=(2,))  # its logits are its inputs
        >>> inversion = invert(target, ["pixels"], steps=2, losses={"tv": 0})
        >>> sure, unsure = torch.tensor([[0.0, 1.0]]).repeat(20, 1), torch.tensor([[0.5, 0.5]]).repeat(20, 1)
        >>> known = sure, torch.ones(20, dtype=torch.int64)
        >>> evaluate(inversion, reference=known, ood=unsure, metrics=["ood"])["ood"]["probability"]["auroc"]
        1.0
    """

    name = "ood"
    needs = ("reference", "ood")
    describe = {
        r"ood\.count": "Number of outliers. The figures hold for these alone: others may be harder to tell.",
        r"ood\..*\.auroc": "Probability that a real image is more familiar to the target than an outlier.",
        r"ood\..*\.aupr": "Average precision of finding the outliers by this score.",
        r"ood\..*\.fpr_at_95": "Share of outliers that are accepted where 95 % of the real images are.",
        r"ood\..*\.rejected": "Share of outliers that are refused where 95 % of the real images are accepted.",
        r"ood\.into_garbage": "Share of outliers that the target puts into its garbage class.",
        r"ood\.reference_into_garbage": "Share of real images that the target puts into its garbage class.",
    }

    def measure(self, study: Study) -> dict[str, Any]:
        """Return ``ood``."""
        target, outliers = study.target, study.outliers
        assert outliers is not None  # as `needs` says
        real = study.response(target, "reference").logits.double()
        strange = study.look(target, outliers).logits.double()
        if min(len(real), len(strange)) < LEAST:
            raise TooFew(
                f"it requires at least {LEAST} images on both sides; there are {len(real)} and {len(strange)}."
            )
        broken = [int((~logits.isfinite()).any(1).sum()) for logits in (real, strange)]
        if any(broken):
            raise TooFew(f"the logits of {broken[0]} real images and {broken[1]} outliers are not finite.")
        scores = dict(SCORES)
        if target.description.output in ("probs", "log_probs", "neg_log_probs"):
            del scores["energy"]
            study.leave_out("ood.energy", "it requires logits, and the classifier returns probabilities.")
        if target.multi_label:
            del scores["certainty"]
            study.leave_out("ood.certainty", "it requires classes that exclude each other, and these do not.")
        found: dict[str, Any] = {"count": len(strange)}
        if (column := target.garbage) is not None:
            scores["garbage"] = lambda target, logits: 1 - target.probabilities(logits)[:, column]
            found["into_garbage"] = (strange.argmax(1) == column).double().mean().item()
            found["reference_into_garbage"] = (real.argmax(1) == column).double().mean().item()
        found |= {name: separation(score(target, real), score(target, strange)) for name, score in scores.items()}
        return {"ood": found}

    @classmethod
    def sections(cls, metrics: Mapping[str, Any]) -> Sequence[Section]:
        """Return a table of the scores, and what its figures mean and do not."""
        own = metrics.get("ood") or {}
        parts = {name: part for name, part in own.items() if isinstance(part, Mapping)}
        if not parts:
            return ()
        rows = [
            (name, *(round(part[figure], 3) for figure in ("auroc", "aupr", "fpr_at_95", "rejected")))
            for name, part in parts.items()
        ]
        garbage = ""
        if "into_garbage" in own:
            garbage = (
                f" Without any threshold, {percent(own['into_garbage'])} of the outliers and "
                f"{percent(own['reference_into_garbage'])} of the real images are put into the class garbage."
            )
        columns = ("score", "AUROC", "AUPR", "accepted where 95 % of the real images are", "refused")
        text = MEANING.format(own["count"]) + garbage
        return (Section("Images that it should refuse", text, columns, rows),)

    @classmethod
    def summary(cls, metrics: Mapping[str, Any]) -> str:
        """Say how well the best score tells the outliers from real images."""
        parts = [(name, part) for name, part in (metrics.get("ood") or {}).items() if isinstance(part, Mapping)]
        if not parts:
            return ""
        name, best = max(parts, key=lambda part: part[1]["auroc"])
        return (
            f"By its best score ({name}), the classifier tells the outliers from real images with an AUROC of "
            f"{best['auroc']:.3f}, and refuses {percent(best['rejected'])} of them where it accepts 95 % of the real "
            f"ones. These are the figures for these outliers alone; others may be harder to tell."
        )

    @classmethod
    def warnings(cls, metrics: Mapping[str, Any]) -> list[str]:
        """Return a warning if no score tells the outliers from real images."""
        found = [part["auroc"] for part in (metrics.get("ood") or {}).values() if isinstance(part, Mapping)]
        if not found or max(found) > 0.6:
            return []
        return [f"The target hardly tells the outliers from real images: the best AUROC is {max(found):.2f}."]


def separation(familiar: Tensor, strange: Tensor) -> dict[str, float]:
    """Return ``auroc``, ``aupr``, ``fpr_at_95`` and ``rejected`` of scores (N,) and (M,); see `Outliers`."""
    both = torch.cat([familiar, strange])
    _, place, counts = both.unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1) / 2)[place].double()  # ties share their mean rank
    n, m = len(familiar), len(strange)
    auroc = (ranks[:n].sum().item() - n * (n + 1) / 2) / (n * m)
    # The least familiar first; all images of one score are found at once.
    found = torch.zeros(len(counts), dtype=torch.float64).index_add(0, place[n:], torch.ones(m, dtype=torch.float64))
    precision = found.cumsum(0) / counts.cumsum(0)
    threshold = familiar.sort(descending=True).values[max(0, -(-95 * n // 100) - 1)]
    accepted = (strange >= threshold).double().mean().item()
    aupr = (precision * found).sum().item() / m
    return {"auroc": auroc, "aupr": aupr, "fpr_at_95": accepted, "rejected": 1 - accepted}
