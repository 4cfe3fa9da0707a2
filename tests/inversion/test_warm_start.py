"""The start of a generator if the target has no gradient at gray images."""

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import interpkit
from interpkit.inversion.warm_start import warm_start
from interpkit.plugins.discovery import installed


class DeadAbove(nn.Module):
    """Logits whose gradient is zero where the image's mean is above a level."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level, self.fc = level, nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        alive = (x.mean((1, 2, 3)) <= self.level).float()[:, None]
        logits: Tensor = self.fc(x.flatten(1)) * alive
        return logits


@pytest.mark.parametrize("name", ["upconv", "dense"])
@pytest.mark.parametrize(("level", "starts_at"), [(0.6, None), (0.3, 0.25), (0.01, 0.005)])
def test_a_generator_starts_at_the_first_brightness_with_a_gradient(
    name: str, level: float, starts_at: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    target = interpkit.wrap(DeadAbove(level), (1, 8, 8), layout="nchw")
    registry = installed().registry
    conditioner = registry.get("conditioner", "vecmat")(3, (1, 8, 8))
    generator = registry.get("generator", name)(conditioner.spec, (1, 8, 8)).eval()
    before = {key: tensor.clone() for key, tensor in generator.state_dict().items()}
    with target.frozen(), caplog.at_level(logging.WARNING, "interpkit"):
        warm_start(target, generator)
    changed = [key for key, tensor in generator.state_dict().items() if not torch.equal(tensor, before[key])]
    if starts_at is None:
        assert not changed and not caplog.records
        return
    assert len(changed) == 1 and changed[0].endswith("bias")
    assert f"brightness {starts_at}" in caplog.text
    with torch.no_grad():
        images = generator(torch.randn(8, generator.latent_dim), conditioner.sample(8))
    assert images.mean().item() == pytest.approx(starts_at, rel=0.35)


def test_a_target_without_any_gradient_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    target = interpkit.wrap(DeadAbove(-1.0), (1, 8, 8), layout="nchw")
    conditioner = installed().registry.get("conditioner", "vector")(3, (1, 8, 8))
    generator = installed().registry.get("generator", "dense")(conditioner.spec, (1, 8, 8))
    with target.frozen(), caplog.at_level(logging.WARNING, "interpkit"):
        warm_start(target, generator)
    assert "no gradient at any plain image" in caplog.text


@pytest.mark.parametrize(
    "output",
    [
        lambda z: z.softmax(1),
        lambda z: z.log_softmax(1),
        lambda z: -z.log_softmax(1),
        lambda z: z.sigmoid(),
        lambda z: z[:, :1],
        lambda z: z[:, :1].sigmoid(),
    ],
    ids=["probs", "log_probs", "neg_log_probs", "sigmoids", "one logit", "one probability"],
)
def test_a_start_at_gray_is_kept_whatever_the_target_outputs(
    output: Callable[[Tensor], Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    class Outputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            return output(self.fc(x.flatten(1)))

    torch.manual_seed(0)
    target = interpkit.wrap(Outputs(), (1, 8, 8))
    conditioner = installed().registry.get("conditioner", "vector")(target.num_classes, (1, 8, 8))
    generator = installed().registry.get("generator", "dense")(conditioner.spec, (1, 8, 8))
    caplog.clear()
    with target.frozen(), caplog.at_level(logging.WARNING, "interpkit"):
        warm_start(target, generator)
    assert not caplog.records


def test_a_dead_target_of_log_probabilities_is_found_to_be_dead(caplog: pytest.LogCaptureFixture) -> None:
    target = interpkit.wrap(nn.Sequential(DeadAbove(0.3), nn.LogSoftmax(1)), (1, 8, 8), layout="nchw")
    conditioner = installed().registry.get("conditioner", "vector")(3, (1, 8, 8))
    generator = installed().registry.get("generator", "dense")(conditioner.spec, (1, 8, 8))
    with target.frozen(), caplog.at_level(logging.WARNING, "interpkit"):
        warm_start(target, generator)
    assert "brightness 0.25" in caplog.text
