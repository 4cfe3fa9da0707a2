"""The inverter `landscape`: its descent, what its training costs, and what a run folder gives back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from interpkit_landscape import LandscapeInversion
from interpkit_landscape.descent import Descent, Theta
from torch import Tensor, nn

import interpkit
from interpkit.api.invert import prepare
from interpkit.errors import RunError

SMALL: dict[str, Any] = {"steps": 6, "batch_size": 8, "device": "cpu"}


def invert(target: Any, **settings: Any) -> LandscapeInversion:
    inversion = interpkit.invert(target, ["landscape"], **{**SMALL, **settings})
    assert isinstance(inversion, LandscapeInversion)
    return inversion


def objective_of(inversion: interpkit.Inversion) -> float:
    """Return the mean cross-entropy and total variation of samples."""
    images, labels = inversion.sample(per_class=10)
    with torch.no_grad():
        surprise = inversion.target.cross_entropy(inversion.target(images), labels).mean()
    return float(surprise + sum(images.diff(dim=dim).abs().mean() for dim in (2, 3)))


def test_an_untrained_theta_is_the_sigmoid(rng: Callable[[int], torch.Generator]) -> None:
    for shape in ((3, 6, 5), (7,)):
        theta, z = Theta(shape, num_classes=4, width=2), torch.randn(2, *shape, generator=rng(0))
        assert torch.equal(theta(z, torch.tensor([0, 3])), z.sigmoid())


def test_after_a_change_of_its_weights_theta_tells_classes_apart_but_not_places() -> None:
    theta = Theta((1, 9, 9), num_classes=2, width=4)
    with torch.no_grad():
        theta.last.weight.normal_()  # type: ignore[operator, union-attr]
        flat = torch.zeros(2, 1, 9, 9)
        flat[:, :, 4:] = 1.0  # not constant, which a norm would make zero
        images = theta(flat, torch.tensor([0, 1]))
    assert (images[0] - images[1]).abs().max() > 1e-3
    assert torch.allclose(images, images[..., :1].expand_as(images), atol=1e-6)  # no column differs from another


def test_a_step_has_one_length_and_follows_the_slope(
    linear_target: Callable[..., interpkit.Target], rng: Callable[[int], torch.Generator]
) -> None:
    from interpkit_losses import CrossEntropy

    target = linear_target()
    theta = Theta(target.input_shape, 2, width=2)
    losses = {"ce": (1.0, CrossEntropy(target))}
    descent = Descent(target, losses, theta, steps=2, rate=0.3, autocast=torch.autocast("cpu", enabled=False))
    z, labels = torch.randn(3, *target.input_shape, generator=rng(1)), torch.tensor([0, 1, 0])
    with target.frozen("cpu"):
        points, values = descent.path(z, labels, 0.0, rng(2))
    assert len(points) == 3 and len(values) == 2 and torch.equal(points[0], z)
    steps = torch.stack(points).diff(dim=0)
    assert torch.allclose(steps.flatten(2).square().mean(2).sqrt(), torch.full((2, 3), 0.3))
    # log-odds 2 w.x: the slope of class 0 is along -w x' with x' = x (1 - x)
    x = z.sigmoid()
    weights = target.module[1].weight[0].view(target.input_shape)  # type: ignore[index, union-attr]
    sign = torch.tensor([1.0, -1.0, 1.0]).view(3, 1, 1, 1)
    along = torch.cosine_similarity((sign * weights * x * (1 - x)).flatten(1), steps[0].flatten(1))
    assert torch.allclose(along, torch.ones(3), atol=1e-5)


def test_five_steps_through_theta_beat_fifty_of_pixels(linear_target: Callable[..., interpkit.Target]) -> None:
    target = linear_target((1, 8, 8), size=1.0)
    learned = invert(target, steps=20, batch_size=16)
    pixels = interpkit.invert(target, ["pixels"], steps=50, device="cpu", options={"pixels.per_class": 10})
    assert objective_of(learned) < objective_of(pixels)
    images, labels = learned.sample(per_class=20)
    with torch.no_grad():
        assert target.accepts(target(images), labels).all()
    first, last = learned.history[0], learned.history[-1]
    assert last.loss < first.loss and last.terms["after descent"] < first.terms["after descent"]


def test_the_gradients_of_the_training_are_counted_and_compared(tiny_target: interpkit.Target) -> None:
    seen: list[int] = []
    hook = tiny_target.module.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))  # type: ignore[union-attr]
    inversion = invert(tiny_target, options={"landscape.descent": 4, "landscape.updates": 3})
    hook.remove()
    assert inversion.trained_gradients == 6 * 8 * (4 + 3) == sum(seen)
    assert inversion.paid_from(50) == 8 and 7 * 46 < 336 <= 8 * 46
    assert inversion.paid_from(4) is None


def test_any_number_of_images_is_drawn_and_they_differ(tiny_model: Path) -> None:
    inversion = invert(tiny_model)
    few, _ = inversion.sample(per_class=2)
    more, labels = inversion.sample(per_class=50)
    assert inversion.images_per_class is None and len(more.flatten(1).unique(dim=0)) == len(labels) == 150
    assert torch.equal(few[:2], more[:2])
    assert not torch.equal(few, inversion.sample(per_class=2, seed=1)[0])
    for mode in (torch.no_grad, torch.inference_mode):  # a caller may have turned gradients off
        with mode():
            assert torch.equal(inversion.sample(per_class=2)[0], few)


def test_a_stored_run_draws_the_same_images_and_reports_the_cost(tiny_model: Path, tmp_path: Path) -> None:
    inversion = invert(tiny_model, out=tmp_path, labels=[2, 0])
    again = interpkit.load_inversion(tmp_path)
    assert isinstance(again, LandscapeInversion) and again.classes == [2, 0]
    assert torch.equal(again.sample(per_class=30)[0], inversion.sample(per_class=30)[0])
    assert again.trained_gradients == inversion.trained_gradients and again.fingerprint() == inversion.fingerprint()
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "Descent in Z" in page and "The training of theta took 480 gradients" in page


def test_terms_with_parameters_are_stored_with_theta(
    tiny_model: Path, tmp_path: Path, add_plugin: Callable[..., None]
) -> None:
    class Level(interpkit.InversionLoss):
        """Compares the mean brightness with a number that is learned."""

        name = "level"

        def __init__(self, target: interpkit.Target, options: Any = None) -> None:
            super().__init__(target, options)
            self.level = nn.Parameter(torch.zeros(()))

        def forward(self, batch: interpkit.InversionBatch) -> Tensor:
            return (batch.images.mean() - self.level).square()

    add_plugin(Level)
    inversion = invert(tiny_model, out=tmp_path, losses={"level": 1.0})
    again = interpkit.load_inversion(tmp_path)
    assert isinstance(again, LandscapeInversion)
    assert again.descent.trained["terms"]["level"].level > 0  # type: ignore[index]
    assert torch.equal(again.sample(per_class=2)[0], inversion.sample(per_class=2)[0])


def test_a_resumed_training_equals_an_uninterrupted_one(tiny_model: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {**SMALL, "options": {"landscape.buffer": 60}, "steps": 8}
    straight = interpkit.invert(tiny_model, ["landscape"], **settings)
    job = prepare(tiny_model, ["landscape"], **settings)
    stopped = job.run(out=tmp_path, on_step=lambda step: job.request_stop() if step == 3 else None)
    assert stopped.steps_done == 3
    resumed = interpkit.invert(tiny_model, out=tmp_path, resume=True)
    assert resumed.files() == straight.files() and stopped.files() != straight.files()
    assert [record.loss for record in resumed.history][-1] == straight.history[-1].loss


def test_vectors_are_inverted_without_total_variation() -> None:
    inversion = invert(interpkit.wrap(nn.Linear(5, 3), input_shape=(5,)), steps=20)
    assert sorted(inversion.history[-1].terms) == ["after descent", "ce"]
    assert interpkit.evaluate(inversion)["inversion_accuracy"] > 0.8


def test_files_of_another_run_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    for folder, options in (("one", {}), ("two", {"landscape.width": 4, "landscape.buffer": 2000})):
        invert(tiny_model, out=tmp_path / folder, steps=3, options=options)
        job = prepare(tiny_model, ["landscape"], **{**SMALL, "steps": 3, "options": options})
        job.run(out=tmp_path / f"{folder}-stopped", on_step=lambda step, job=job: job.request_stop())
    other = interpkit.load_inversion(tmp_path / "two")
    own = interpkit.load_inversion(tmp_path / "one")
    assert isinstance(own, LandscapeInversion) and isinstance(other, LandscapeInversion)
    with pytest.raises(RunError, match=r"theta\.safetensors does not fit the recipe beside it"):
        own.restore(dict(other.descent.trained.state_dict()))
    (tmp_path / "one-stopped" / "checkpoint").write_bytes((tmp_path / "two-stopped" / "checkpoint").read_bytes())
    with pytest.raises(RunError, match="checkpoint does not fit its recipe"):
        interpkit.invert(tiny_model, out=tmp_path / "one-stopped", resume=True)
