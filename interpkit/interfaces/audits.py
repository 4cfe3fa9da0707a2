"""The interface of an audit's test, which looks for one kind of fault in a classifier, class by class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from interpkit.interfaces.components import Component, Options
from interpkit.interfaces.sections import Strip
from interpkit.interfaces.targets import Target
from interpkit.io.datasets import LabelledImages


@dataclass(frozen=True, eq=False)  # a key of what a plugin keeps for a case
class AuditCase:
    """What a test examines.

    Attributes:
        target: the classifier, frozen and on `device`.
        classes: the classes to test; all of them, or those that the tests with `Audit.screens` found most unusual, and
            others drawn at random to compare with.
        images: (N, *input_shape) in [0, 1] on `device`, images that the classifier assigns to the class in ``labels``:
            samples of an inversion, or real images. Empty while a test screens.
        labels: (N,) int64 on `device`.
        real: whether the images are real.
        reference: held-out real images; None if there are none.
        training: images that the classifier was trained on; None if there are none.
        seed: random seed.
        device: where the classifier is.
        most: the number of images that it runs on at a time.
    """

    target: Target
    classes: Sequence[int]
    images: Tensor
    labels: Tensor
    real: bool = False
    reference: LabelledImages | None = None
    training: LabelledImages | None = None
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    most: int = 256

    def rng(self) -> torch.Generator:
        """Return a new source of randomness on the CPU, the same for each test."""
        return torch.Generator().manual_seed(self.seed)


@dataclass(frozen=True)
class Tested:
    """What a test found. A key is a class, or None for the classifier as a whole.

    Attributes:
        statistics: the figure of each class that was tested.
        p_values: the probability of a figure at least as unusual in a clean classifier, in (0, 1]. `interpkit.audit`
            corrects them for the number of tests and classes.
        evidence: what was found, one sentence each, for a reader who knows nothing of the test.
        pictures: what shows it.
        tensors: what to keep in ``audit.safetensors``, by names that begin with the test's own and a dot.
    """

    __test__: ClassVar = False  # pytest collects classes whose names start with Test

    statistics: Mapping[int | None, float]
    p_values: Mapping[int | None, float]
    evidence: Mapping[int | None, str] = field(default_factory=dict)
    pictures: Mapping[int | None, Sequence[Strip]] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


class Audit(Component, ABC):
    """Looks for one kind of fault in a classifier.

    Args:
        options: an instance of the class's ``Options``; defaults if omitted.
    """

    options: Options
    kind: ClassVar[str]
    """The fault that a finding points to, in a word or two: ``trigger``."""
    question: ClassVar[str]
    """What the test asks, as a sentence of the report."""
    limits: ClassVar[str]
    """What the test cannot see, as a sentence of the report."""
    false_alarms: ClassVar[str] = ""
    """The rate of findings that was measured on clean classifiers, and on which; empty if it was not measured."""
    needs: ClassVar[tuple[str, ...]] = ()
    """The data that the test requires, from ``reference`` and ``training``."""
    needs_gradient: ClassVar[bool] = True
    """Whether it requires the gradient with respect to the images."""
    on_request: ClassVar[bool] = False
    """Whether it is made only if it is named: each test made lowers the power of all others, which share one error."""
    screens: ClassVar[bool] = False
    """Whether it needs no images and is fast enough for all classes, so that it can choose those that the other tests
    examine if there are many."""

    def __init__(self, options: Options | None = None) -> None:
        self.options: Any = self.Options() if options is None else options

    @abstractmethod
    def test(self, case: AuditCase) -> Tested:
        """Test each class of ``case.classes``, or fewer.

        Torch's global generators are seeded, and gradients are enabled. Two calls with the same case return the same.

        Raises:
            TooFew: there are too few classes or images; the test is then listed as not made, with this reason.
        """
