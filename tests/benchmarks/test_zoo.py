"""Ten networks of torchvision and timm are wrapped, inverted, explained and packed; `benchmarks.zoo` tries all."""

from __future__ import annotations

import pytest

from benchmarks import zoo

SAMPLE = [
    "torchvision:squeezenet1_1", "torchvision:mobilenet_v3_small", "torchvision:shufflenet_v2_x0_5",
    "torchvision:mnasnet0_5", "torchvision:resnet18", "timm:test_vit", "timm:test_convnext", "timm:test_byobnet",
    "timm:test_mambaout", "timm:test_vit_relpos",
]  # fmt: skip


@pytest.mark.parametrize("name", SAMPLE)
def test_everything_works_with_it(name: str) -> None:
    results = zoo.check(name)
    assert results == dict.fromkeys(zoo.STAGES, "ok")


def test_each_name_is_of_a_family_and_there_are_enough() -> None:
    names = zoo.names()
    assert len(names) == len(set(names))
    assert sum(name.startswith("torchvision:") for name in names) >= 80
    assert sum(name.startswith("timm:") for name in names) >= 60
    assert set(SAMPLE) <= set(names)
