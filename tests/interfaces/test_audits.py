"""The interface of an audit's test: what a case holds, and what a test gets if nothing is set."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from pydantic import Field

import interpkit
from interpkit import Audit, AuditCase, Options, Target, Tested


class Size(Audit):
    """The number of images of each class, which says nothing of faults."""

    name = "size"
    kind = "none"
    question = "How many images are there?"
    limits = "It sees nothing else."

    class Options(Options):
        """A prior."""

        sd: float = Field(2.0, gt=0, description="standard deviation")

    def test(self, case: AuditCase) -> Tested:
        counts = {c: float((case.labels == c).sum()) for c in case.classes}
        return Tested(counts, interpkit.outlier_p_values(counts, sd=self.options.sd, df=9.0))


@pytest.fixture
def case(tiny_target: Target) -> AuditCase:
    return AuditCase(tiny_target, range(3), torch.rand(6, 1, 12, 12), torch.tensor([0, 0, 0, 0, 1, 2]))


def test_a_case_gives_each_test_the_same_random_numbers(case: AuditCase) -> None:
    first, again = (torch.rand(5, generator=case.rng()) for _ in range(2))
    other = torch.rand(5, generator=dataclasses.replace(case, seed=1).rng())
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_case_has_no_real_images_and_is_on_the_cpu_unless_specified(case: AuditCase) -> None:
    assert (case.real, case.reference, case.training, case.seed) == (False, None, None, 0)
    assert case.device == torch.device("cpu")
    with pytest.raises(dataclasses.FrozenInstanceError):
        case.seed = 3  # type: ignore[misc]


def test_a_test_has_its_default_options_or_those_that_it_is_built_with(case: AuditCase) -> None:
    wide = Size(Size.Options(sd=20.0))
    assert Size().options.sd == 2.0 and wide.options.sd == 20.0
    usual, doubtful = Size().test(case), wide.test(case)
    assert usual.statistics == doubtful.statistics == {0: 4.0, 1: 1.0, 2: 1.0}
    assert usual.p_values[0] < doubtful.p_values[0] < 0.5


def test_a_test_needs_a_gradient_and_images_and_no_data_unless_it_says_otherwise() -> None:
    assert (Size.needs, Size.needs_gradient, Size.screens, Size.false_alarms) == ((), True, False, "")


def test_a_test_without_the_method_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Audit()  # type: ignore[abstract]


def test_pytest_does_not_collect_what_a_test_found() -> None:
    found = Tested({None: 1.0}, {None: 0.5})
    assert (found.evidence, found.pictures, found.tensors) == ({}, {}, {})
    assert Tested.__test__ is False
