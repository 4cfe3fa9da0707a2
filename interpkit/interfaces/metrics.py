"""The interface of a metric, and the study that it measures: samples, reference data and evaluators."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import pydantic
import torch
from torch import Tensor

from interpkit.errors import InterpkitError
from interpkit.interfaces.components import Component, Options
from interpkit.interfaces.sections import Section
from interpkit.interfaces.targets import Target, tell_nan
from interpkit.runtime.at_once import in_batches

if TYPE_CHECKING:
    from interpkit.interfaces.inversions import Inversion
    from interpkit.interfaces.samples import Samples
    from interpkit.io.datasets import LabelledImages

Which = Literal["samples", "reference", "training", "canaries"]
T = TypeVar("T")

RESERVED = (
    *("schema", "per_class", "doubts", "empty", "left_out", "measured_on", "label", "name", "count"),
    *("inversion_accuracy", "inversion_accuracy_interval", "confidence", "kl"),
)
"""The entries of metrics.json, and of its rows of classes, that a metric cannot have."""
STUDY_IMAGES = "study.images"
"""What `Study.versions` calls the images that are made from the samples."""


class TooFew(InterpkitError):  # noqa: N818  # reads well in code: raise TooFew("...")
    """There are too few images for a metric, which is then left out. The message says how many it requires."""


@dataclass(frozen=True)
class Judgment:
    """A classifier's output for N images, on the CPU.

    Attributes:
        logits: (N, n) float32.
        features: (N, F) float32, the flattened input of its last linear layer (`Response.penultimate`).
    """

    logits: Tensor
    features: Tensor


class Study:
    """The input of a metric: the samples of an inversion, and all data and classifiers to compare them with.

    Args:
        target: the classifier that was inverted.
        samples: the images, the requested labels and the target's predictions.
        reference: held-out real images as `LabelledImages`; None if there are none.
        training: images that the target was trained on, likewise.
        canaries: images that the target may remember, likewise.
        outliers: images that the target should refuse, (M, *input_shape) in [0, 1]; None if there are none.
        evaluators: independent classifiers for the same classes, by name. One that does not have all of them has a
            logit of -inf for the others, which `Target.lacks` names.
        seed: random seed of `rng`.
        device: the device that the classifiers run on.
        most: the number of images that they run on at a time; as many as fit into memory if omitted.
        inversion: loads the inversion that the samples were drawn from.

    Attributes:
        rng: a source of randomness on the CPU.
        left_out: metrics, or parts of them, that were not measured, by name, each with the reason.
    """

    def __init__(
        self,
        target: Target,
        samples: Samples,
        reference: LabelledImages | None = None,
        training: LabelledImages | None = None,
        evaluators: Mapping[str, Target] | None = None,
        *,
        canaries: LabelledImages | None = None,
        outliers: Tensor | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        most: int | None = None,
        inversion: Callable[[], Inversion] | None = None,
    ) -> None:
        self.target = target
        self.samples = samples
        self.reference = reference
        self.training = training
        self.canaries = canaries
        self.outliers = outliers
        self.evaluators = dict(evaluators or {})
        self.device = torch.device(device)
        self.left_out: dict[str, str] = {}
        self._seed = seed
        self._most = most
        self._load = inversion
        self.rng = torch.Generator().manual_seed(seed)
        self._judgments: dict[tuple[int, Which], Judgment] = {}

    @cached_property
    def inversion(self) -> Inversion | None:
        """The inversion, for a metric that draws more samples; None where a study has only the samples themselves."""
        return None if self._load is None else self._load()

    @cached_property
    def images(self) -> Tensor:
        """The samples' images, (N, *input_shape) float32 in [0, 1]."""
        from interpkit.interfaces.samples import to_unit

        return to_unit(self.samples.images, self.target)

    @property
    def judges(self) -> dict[str, Target]:
        """The evaluators by name; the target itself if there are none."""
        return self.evaluators or {self.target.name: self.target}

    @property
    def classes(self) -> list[int]:
        """The classes that were sampled, in order."""
        return sorted(set(self.samples.labels.tolist()))

    def labels(self, which: Which) -> Tensor:
        """Return the labels (N,): requested labels of ``samples``, true labels of the others."""
        return self.samples.labels if which == "samples" else self._data(which).labels

    def unit_images(self, which: Which) -> Tensor:
        """Return images (N, *input_shape) float32 in [0, 1], where 0 and 1 are the ends of the target's input range."""
        from interpkit.interfaces.samples import to_unit

        return self.images if which == "samples" else to_unit(self._data(which).images, self.target)

    def rows(self, which: Which, label: int, most: int | None = None) -> Tensor:
        """Return the indices (int64) of the images of a class; only the first ``most`` if specified."""
        return (self.labels(which) == label).nonzero()[:most, 0]

    def response(self, judge: Target, which: Which) -> Judgment:
        """Return a classifier's output for all images of a kind; computed once."""
        key = (id(judge), which)
        if key not in self._judgments:
            self._judgments[key] = self.look(judge, self.unit_images(which))
        return self._judgments[key]

    @torch.no_grad()
    def look(self, judge: Target, images: Tensor, batch_size: int | None = None) -> Judgment:
        """Return a frozen classifier's output for images in [0, 1]; vectors are converted to its own input range.

        Args:
            judge: the classifier.
            images: (N, *input_shape).
            batch_size: the most images that it runs on at a time; those of `in_batches` if omitted.
        """
        if images.dim() == 2:
            units = self.target.low + (self.target.high - self.target.low) * images
            images = (units - judge.low) / (judge.high - judge.low)

        def answer(rows: slice) -> tuple[Tensor, Tensor]:
            response = judge.respond(images[rows].to(self.device))
            return response.logits.cpu(), response.penultimate.cpu()

        with judge.frozen(self.device):
            parts = in_batches(judge, images, answer, most=batch_size or self._most)
        logits, features = (torch.cat(part) for part in zip(*parts, strict=True))
        tell_nan(judge.name, logits)
        return Judgment(logits, features)

    def in_batches(self, classifier: Target, images: Tensor, run: Callable[[slice], T]) -> list[T]:
        """Call a function on slices of the images, as many at a time as fit into memory, and return its results.

        Args:
            classifier: runs on the images in ``run``, frozen and on the study's device.
            images: (N, *input_shape) in [0, 1].
            run: computes the results of some rows.
        """
        return in_batches(classifier, images, run, most=self._most)

    def leave_out(self, name: str, reason: str) -> None:
        """Record why a metric, or a part of one (``METRIC.PART``), is not measured, and how many images it requires."""
        self.left_out[name] = reason

    def restart(self) -> None:
        """Reset `rng` to its seed, so that a metric's figures do not depend on those measured before it."""
        self.rng.manual_seed(self._seed)

    def versions(self) -> dict[str, int]:
        """Return how often each tensor that all metrics read was changed in place, by what it is of."""
        data = {"samples": self.samples, "reference": self.reference, "training": self.training}
        parts = [(name, part) for name, part in (data | {"canaries": self.canaries}).items() if part is not None]
        tensors = {f"the images of the {name}": part.images for name, part in parts}
        tensors |= {f"the labels of the {name}": part.labels for name, part in parts}
        tensors |= {} if self.outliers is None else {"the outliers": self.outliers}
        tensors |= {STUDY_IMAGES: self.images}
        return {name: 0 if tensor.is_inference() else tensor._version for name, tensor in tensors.items()}

    def forget(self) -> None:
        """Make `images` and all answers of classifiers again where a metric next asks for them."""
        self.__dict__.pop("images", None)
        self._judgments.clear()

    def _data(self, which: Which) -> LabelledImages:
        data = {"reference": self.reference, "training": self.training, "canaries": self.canaries}[which]
        assert data is not None, f"a metric that reads {which} images must list them in `needs`"
        return data


class Metric(Component, ABC):
    """Measures samples: one or more numbers for metrics.json.

    Args:
        options: an instance of the class's ``Options``; defaults if omitted.
    """

    options: Options
    needs: ClassVar[tuple[str, ...]] = ()
    """The data that the metric requires, from ``reference``, ``training``, ``canaries``, ``ood`` (`Study.outliers`) and
    ``evaluator``."""
    key: ClassVar[str] = ""
    """The metric's entry in metrics.json; its name if empty."""
    every_run: ClassVar[bool] = False
    """Whether the metric is measured at the end of every inversion; it must then be fast and have no `needs`."""
    on_request: ClassVar[bool] = False
    """Whether the metric takes so long that it is measured only if it is named."""
    describe: ClassVar[Mapping[str, str]] = {}
    """The meaning of each figure, one sentence each, keyed by a regular expression for the whole dotted name of the
    figure in metrics.json (``evaluators\\..*\\.agreement``). The report shows it; a figure without a description
    gets the first line of the metric's docstring."""
    columns: ClassVar[Mapping[str, str]] = {}
    """The columns that the metric adds to the table of classes: by title, a regular expression for the dotted name of
    a figure in a class's row. ``{}`` in the title stands for what the expression's first group matches."""
    schema: ClassVar[type[pydantic.BaseModel] | None] = None
    """The schema of its entry in metrics.json, overall and per class, for validation on reading; any JSON if None."""

    def __init__(self, options: Options | None = None) -> None:
        self.options = self.Options() if options is None else options

    @classmethod
    def warnings(cls, metrics: Mapping[str, Any]) -> list[str]:
        """Return what a reader of metrics.json should not miss, one or two sentences each; empty if all is well.

        Args:
            metrics: the content of metrics.json, without what was not measured.
        """
        return []

    @classmethod
    def summary(cls, metrics: Mapping[str, Any]) -> str:
        """Return a sentence for the first paragraph of the report, or an empty string.

        Args:
            metrics: the content of metrics.json.
        """
        return ""

    @classmethod
    def sections(cls, metrics: Mapping[str, Any]) -> Sequence[Section]:
        """Return sections of text and tables for the report, which otherwise lists each figure by itself.

        Args:
            metrics: the content of metrics.json.
        """
        return ()

    @classmethod
    def doubts(cls, row: Mapping[str, Any]) -> Mapping[str, float]:
        """Return what speaks against the samples of one class; the classes are listed by it, the worst first.

        Args:
            row: the class's row of metrics.json.

        Returns:
            Shares in [0, 1], 0 for samples that are as they should be, by what they are shares of: ``{"near copies of
            one another": 0.9}``.
        """
        return {}

    @abstractmethod
    def measure(self, study: Study) -> Mapping[str, Any]:
        """Return a fragment of metrics.json: finite JSON values.

        Its keys replace those of metrics.json, except ``per_class``: a mapping from a label to a fragment, merged into
        the class's row of the list ``per_class``. Those of every run, such as ``confidence``, are
        refused. A share ``NAME`` may come with its interval ``NAME_interval``.

        It must not change a tensor of the study in place, as other metrics read it too.

        Raises:
            TooFew: there are too few images for a meaningful result; to leave out only a part of the metric, call
                `Study.leave_out` instead.
        """
