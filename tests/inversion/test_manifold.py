"""`nearest_along`: the results are samples of the generator, of the class asked for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import interpkit
from interpkit import nearest_along


@pytest.fixture(scope="module")
def inversion() -> interpkit.GeneratorInversion:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with torch.no_grad():
        net[1].weight.mul_(8)
    target = interpkit.wrap(net, input_shape=(1, 8, 8))
    small = {"upconv.width": 8, "upconv.min_width": 4, "upconv.latent": 8, "upconv.hidden": 8}
    made = interpkit.invert(target, ["vecmat"], steps=60, batch_size=16, options=small, device="cpu", precision="fp32")
    assert isinstance(made, interpkit.GeneratorInversion)
    return made


def test_the_images_have_the_class_with_the_confidence(inversion: interpkit.GeneratorInversion) -> None:
    given = torch.rand(6, 1, 8, 8)
    result = nearest_along(inversion, given, confidence=0.5, steps=20, device="cpu")
    assert result.found.any() and not result.normals.any()
    with torch.no_grad():
        sure = inversion.target(result.images[result.found]).softmax(1)
    assert sure.gather(1, result.answers[result.found, None]).min() > 0.499
    away = (result.images - given).flatten(1).norm(dim=1)
    assert torch.allclose(result.distances[result.found], away[result.found], rtol=1e-4)


def test_steps_along_the_latents_come_nearer(inversion: interpkit.GeneratorInversion) -> None:
    given = torch.rand(4, 1, 8, 8)
    few, many = (nearest_along(inversion, given, to=2, confidence=0.4, steps=n, device="cpu") for n in (1, 40))
    both = few.found & many.found
    assert both.any() and (many.distances[both] <= few.distances[both]).all()


def test_a_result_does_not_depend_on_the_classes_of_other_rows(inversion: interpkit.GeneratorInversion) -> None:
    given, settings = torch.rand(2, 1, 8, 8), {"confidence": 0.4, "steps": 3, "device": "cpu"}
    one = nearest_along(inversion, given[1:], to=2, **settings)
    both = nearest_along(inversion, given, to=[0, 2], **settings)
    assert one.found.all() and torch.allclose(one.images[0], both.images[1], atol=1e-5)


def test_an_image_in_the_class_already_and_a_class_out_of_reach_have_reasons(
    inversion: interpkit.GeneratorInversion,
) -> None:
    given, _ = inversion.sample(per_class=1)
    result = nearest_along(inversion, given[1:2], to=int(inversion.target(given[1:2]).argmax()), steps=2, device="cpu")
    assert "already" in result.reasons[0] and not result.found.any()
    unsure = nearest_along(inversion, given[:1], to=2, confidence=1 - 1e-9, steps=2, device="cpu")
    assert unsure.reasons == {0: "no sample has the class '2' with a probability of 1"}
    with pytest.raises(interpkit.UsageError, match="confidence is a probability"):
        nearest_along(inversion, given, confidence=1.5)


def test_the_inversion_returns_to_its_device_and_a_search_needs_a_start(
    inversion: interpkit.GeneratorInversion, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[torch.device] = []
    monkeypatch.setattr(inversion, "to", places.append)
    nearest_along(inversion, torch.rand(1, 1, 8, 8), starts=1, steps=1, device="cpu")
    assert places == [torch.device("cpu"), inversion.device]
    with pytest.raises(interpkit.UsageError, match="at least 1 start"):
        nearest_along(inversion, torch.rand(1, 1, 8, 8), starts=0)
