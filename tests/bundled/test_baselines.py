"""The baselines reach the class, follow their options, resume, and name missing packages."""

from __future__ import annotations

import itertools
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from interpkit_baselines.evolution import Landscape, _import_cma
from interpkit_baselines.free_images import FreeImages
from torch import Tensor, nn

import interpkit
from interpkit import Inversion, InversionBatch, InversionLoss, Recipe, RunError, Target, UsageError
from interpkit.api.invert import prepare

Add = Callable[..., None]
Rng = Callable[[int], torch.Generator]
EXAMPLES = Path(__file__).parents[2] / "examples" / "models"
ON_CPU: dict[str, Any] = {"device": "cpu", "precision": "fp32"}


def invert(target: Target | Path, inverter: str, options: dict[str, Any] | None = None, **settings: Any) -> Inversion:
    """Invert with one of the methods; its options are passed without its name."""
    named = {f"{inverter}.{name}" if "." not in name else name: value for name, value in (options or {}).items()}
    return interpkit.invert(target, inverter=inverter, options=named, **ON_CPU | settings)


def accuracy(inversion: Inversion) -> float:
    images, labels = inversion.sample()
    with torch.no_grad(), inversion.target.frozen():
        return (inversion.target(images).argmax(1) == labels).float().mean().item()


class Watch(InversionLoss):
    """Records the batches that it receives; its value is constant."""

    name = "watch"
    seen: ClassVar[list[InversionBatch]] = []

    def forward(self, batch: InversionBatch) -> Tensor:
        self.seen.append(batch)
        return batch.images.sum() * 0


@pytest.fixture
def watch(add_plugin: Add) -> list[InversionBatch]:
    """Install the loss ``watch``; return the list of the batches that it receives."""
    add_plugin(Watch)
    Watch.seen = []
    return Watch.seen


# ------------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize(
    ("inverter", "model", "steps"),
    [("pixels", "mnist", 40), ("deepinversion", "mnist_bn", 50), ("evolution", "mnist", 25)],
)
def test_every_baseline_reaches_the_classes_of_a_shipped_classifier(inverter: str, model: str, steps: int) -> None:
    inversion = invert(EXAMPLES / f"{model}.safetensors", inverter, {"per_class": 1}, steps=steps, labels=[1, 4, 8])
    images, labels = inversion.sample()
    assert images.shape == (3, 1, 28, 28) and labels.tolist() == [1, 4, 8]
    assert images.min() >= 0 and images.max() <= 1
    assert accuracy(inversion) == 1.0
    assert inversion.history[-1].loss < inversion.history[0].loss


QUICK = {"pixels": {"per_class": 3}, "evolution": {"per_class": 3, "grid": 4}}


@pytest.mark.parametrize("inverter", QUICK)
def test_equal_seeds_repeat_the_images_and_other_seeds_change_them(tiny_model: Path, inverter: str) -> None:
    one, two, other = (
        invert(tiny_model, inverter, QUICK[inverter], steps=4, seed=seed).sample()[0] for seed in (1, 1, 2)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert len(one.flatten(1).unique(dim=0)) == 9


@pytest.mark.parametrize("inverter", QUICK)
def test_the_callers_random_state_does_not_change(tiny_model: Path, inverter: str) -> None:
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
    invert(tiny_model, inverter, QUICK[inverter], steps=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == before_numpy  # type: ignore[index]


@pytest.mark.parametrize("inverter", QUICK)
def test_only_the_classes_asked_for_are_inverted(tiny_model: Path, inverter: str) -> None:
    labels = invert(tiny_model, inverter, QUICK[inverter], steps=1, labels=[2, 0]).sample()[1]
    assert labels.tolist() == [2, 2, 2, 0, 0, 0]


@pytest.mark.parametrize("inverter", QUICK)
def test_a_resumed_run_equals_an_uninterrupted_one(tiny_model: Path, tmp_path: Path, inverter: str) -> None:
    options = {f"{inverter}.{name}": value for name, value in QUICK[inverter].items()}
    settings: dict[str, Any] = {"inverter": inverter, "options": options, "steps": 12, "batch_size": 5, **ON_CPU}
    straight = interpkit.invert(tiny_model, **settings)
    job = prepare(tiny_model, **settings)
    stopped = job.run(out=tmp_path, on_step=lambda step: job.request_stop() if step == 7 else None)
    assert stopped.steps_done == 7
    assert not torch.equal(stopped.sample()[0], straight.sample()[0])
    assert len(interpkit.load_inversion(tmp_path).sample()[0]) == 9  # what there is, is there
    resumed = interpkit.invert(tiny_model, out=tmp_path, resume=True)
    assert torch.equal(resumed.sample()[0], straight.sample()[0])
    assert [record.step for record in resumed.history] == [record.step for record in straight.history] == [1, 10, 12]
    assert resumed.history[-1].terms == straight.history[-1].terms
    assert interpkit.invert(tiny_model, out=tmp_path, resume=True, steps=15).steps_done == 15


@pytest.mark.parametrize("inverter", QUICK)
def test_a_checkpoint_of_another_run_is_refused(tiny_model: Path, tmp_path: Path, inverter: str) -> None:
    for folder, per_class in (("one", 2), ("two", 3)):
        invert(tiny_model, inverter, {"per_class": per_class}, steps=2, out=tmp_path / folder)
    (tmp_path / "one" / "checkpoint").write_bytes((tmp_path / "two" / "checkpoint").read_bytes())
    with pytest.raises(RunError, match=r"checkpoint does not fit its recipe.*force"):
        interpkit.invert(tiny_model, out=tmp_path / "one", resume=True, steps=3)


@pytest.mark.parametrize(("inverter", "losses"), [("pixels", {"tv": 0.0}), ("evolution", {})])
def test_vectors_are_inverted_too(inverter: str, losses: dict[str, float]) -> None:
    net = nn.Linear(4, 3, bias=False)
    net.weight.data = torch.tensor([[8.0, -8.0, 0.0, 0.0], [-8.0, 8.0, 0.0, 0.0], [-8.0, -8.0, 8.0, 0.0]])
    inversion = invert(interpkit.wrap(net, (4,)), inverter, {"per_class": 2}, steps=40, losses=losses)
    assert accuracy(inversion) == 1.0


class Fussy(nn.Module):
    """A classifier of three classes that divides by zero unless all pixels are equal."""

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        return flat[:, :3] / (flat == flat[:, :1]).all(1, keepdim=True)


@pytest.mark.parametrize("inverter", QUICK)
def test_a_target_with_nonsense_logits_is_refused(inverter: str) -> None:
    target = interpkit.wrap(Fussy(), (1, 4, 4))
    with pytest.raises(RunError, match="the target's logits turned non-finite at step 1"):
        invert(target, inverter, {"per_class": 1}, steps=2)


# ---------------------------------------------------------------------------------------------- pixels


def test_pixels_of_a_linear_target_follow_the_sign_of_its_weights(linear_target: Callable[..., Target]) -> None:
    target = linear_target((1, 4, 4), size=3.0)
    options = {"per_class": 1, "jitter": 0.0, "spread": 0.0, "optimizer.lr": 0.5}
    images, _ = invert(target, "pixels", options, steps=5, losses={"tv": 0.0}).sample()
    weights = next(target.parameters())[0].view(1, 4, 4)
    assert torch.equal(images[0] > 0.5, weights > 0)
    assert torch.equal(images[1] > 0.5, weights < 0)


def test_the_history_has_exactly_the_terms_of_the_objective(tiny_model: Path) -> None:
    history = invert(tiny_model, "pixels", {"per_class": 1}, steps=2, losses={"l2": 0.5}).history
    assert history[-1].terms.keys() == {"ce", "tv", "l2"}
    terms = history[-1].terms
    assert history[-1].loss == pytest.approx(terms["ce"] + terms["tv"] + 0.5 * terms["l2"])


def test_the_pixels_inverter_without_a_loss_is_refused(tiny_model: Path) -> None:
    with pytest.raises(UsageError, match=r"names no loss: add losses=\{NAME: 1.0\}"):
        invert(tiny_model, "pixels", losses={"ce": 0.0, "tv": 0.0})


def test_the_target_runs_on_at_most_one_batch_and_the_batches_are_even(
    watch: list[InversionBatch], tiny_model: Path
) -> None:
    invert(tiny_model, "pixels", {"per_class": 3}, steps=2, batch_size=4, losses={"watch": 1.0})
    assert [batch.condition.labels.tolist() for batch in watch] == 2 * [[0, 1, 2], [0, 1, 2], [0, 1, 2]]
    one_hot = watch[0].condition.distribution
    assert torch.equal(one_hot, torch.eye(3)) and torch.equal(watch[0].condition.vector, one_hot)
    assert [batch.progress for batch in watch] == [0.0] * 3 + [0.5] * 3


def test_pixels_in_micro_batches_are_the_same_and_fewer_images_pass_at_once(
    tiny_module: Callable[..., nn.Module],
) -> None:
    module, sizes = tiny_module(), list[int]()
    target = interpkit.wrap(module, (1, 12, 12))
    module.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    whole, _ = invert(target, "pixels", {"per_class": 3}, steps=3).sample()
    assert max(sizes) == 9
    sizes.clear()
    parts, _ = invert(target, "pixels", {"per_class": 3}, steps=3, micro_batch=4).sample()
    assert len(sizes) >= 9 and max(sizes) <= 4
    assert torch.allclose(parts, whole, atol=1e-4)


STILL = {"per_class": 2, "optimizer.lr": 1e-12}


def test_jitter_shifts_images_within_its_limit(watch: list[InversionBatch], tiny_model: Path) -> None:
    images = invert(tiny_model, "pixels", STILL | {"jitter": 0.17}, steps=30, losses={"watch": 1.0}).sample()[0]
    images = images[torch.tensor([0, 2, 4, 1, 3, 5])]  # the classes taking turns, as in the batch
    shifts = set()
    for batch in watch:
        moved = [
            (i, j) for i in range(-2, 3) for j in range(-2, 3) if torch.equal(batch.images, images.roll((i, j), (2, 3)))
        ]
        assert len(moved) == 1
        shifts.update(moved)
    assert {i for i, _ in shifts} == {j for _, j in shifts} == {-2, -1, 0, 1, 2}


@pytest.mark.parametrize("flip", [False, True])
def test_images_are_flipped_at_random_if_enabled(watch: list[InversionBatch], tiny_model: Path, flip: bool) -> None:
    options = STILL | {"jitter": 0.0, "flip": flip}
    images = invert(tiny_model, "deepinversion", options, steps=12, losses={"watch": 1.0, "batchnorm": 0.0}).sample()[0]
    images = images[torch.tensor([0, 2, 4, 1, 3, 5])]
    mirrored = [torch.equal(batch.images, images.flip(3)) for batch in watch]
    assert all(m or torch.equal(batch.images, images) for m, batch in zip(mirrored, watch, strict=True))
    assert any(mirrored) is flip and not all(mirrored)


def test_blur_is_applied_every_n_steps(watch: list[InversionBatch], tiny_model: Path) -> None:
    options = STILL | {"jitter": 0.0, "blur": 1.0, "blur_every": 3}
    invert(tiny_model, "pixels", options, steps=7, losses={"watch": 1.0})
    changed = [not torch.equal(a.images, b.images) for a, b in itertools.pairwise(watch)]
    assert changed == [False, False, True, False, False, True]


def roughness(images: Tensor) -> float:
    return float(images.diff(dim=3).square().mean() / images.var())


def test_a_fourier_field_has_the_requested_spread_and_a_one_over_f_spectrum(rng: Rng) -> None:
    fourier = FreeImages(40, (2, 15, 24), "fourier", 0.5, rng(0))
    field = fourier().detach().logit()
    assert field.shape == (40, 2, 15, 24)
    assert field.std().item() == pytest.approx(0.5, rel=0.1)
    power = torch.fft.rfft2(field, norm="ortho").abs().square().mean((0, 1))
    # Frequencies (0, k / 24) for k = 2 and 8: amplitudes as 1 / 2 to 1 / 8, so powers as 16 to 1.
    assert (power[0, 2] / power[0, 8]).item() == pytest.approx(16, rel=0.5)
    white = FreeImages(40, (2, 15, 24), "pixel", 0.5, rng(0))().detach().logit()
    assert white.std().item() == pytest.approx(0.5, rel=0.05)
    assert roughness(field) < 0.5 * roughness(white)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 14)])
def test_blur_is_gaussian_in_both_parametrizations(rng: Rng, shape: tuple[int, ...]) -> None:
    pixel = FreeImages(1, shape, "pixel", 1.0, rng(0))
    fourier = FreeImages(1, shape, "fourier", 1.0, rng(0))
    field = torch.randn(1, *shape)
    pixel.theta.data = field.clone()
    fourier.theta.data = torch.view_as_real(torch.fft.rfft2(field, norm="ortho") / fourier.scale)
    assert torch.allclose(fourier(), field.sigmoid(), atol=1e-5)
    for images in (pixel, fourier):
        images.blur(1.2)

    # By hand: a convolution with exp(-d^2 / 2 sigma^2), d around the torus, over its sum.
    def kernel(side: int) -> Tensor:
        steps = torch.arange(side)
        d = torch.minimum(steps, side - steps).float()
        weights = sum(torch.exp(-((d + side * turn) ** 2) / (2 * 1.2**2)) for turn in (-2, -1, 0, 1, 2))
        assert isinstance(weights, Tensor)
        return weights / weights.sum()

    down, across = (kernel(side) for side in shape[1:])
    matrices = [torch.stack([k.roll(i) for i in range(len(k))]) for k in (down, across)]
    blurred = (matrices[0] @ field @ matrices[1]).sigmoid()
    assert torch.allclose(pixel(), blurred, atol=2e-3)
    assert torch.allclose(fourier(), pixel(), atol=1e-5)


def test_fourier_and_total_variation_are_refused_for_vectors() -> None:
    target = interpkit.wrap(nn.Linear(4, 2), (4,))
    with pytest.raises(UsageError, match=r"'fourier' is for images.*Use pixel"):
        invert(target, "pixels", {"parametrisation": "fourier"}, losses={"tv": 0.0})
    with pytest.raises(UsageError, match="'tv' needs images"):
        invert(target, "pixels")


def test_jitter_and_blur_do_not_change_vectors(watch: list[InversionBatch]) -> None:
    target = interpkit.wrap(nn.Linear(4, 2), (4,))
    options = STILL | {"jitter": 1.0, "flip": True, "blur": 2.0, "blur_every": 1}
    images = invert(target, "pixels", options, steps=5, losses={"tv": 0.0, "watch": 1.0}).sample()[0]
    assert all(torch.equal(batch.images, images[torch.tensor([0, 2, 1, 3])]) for batch in watch)


# --------------------------------------------------------------------------------------- deepinversion


def test_deepinversion_needs_batch_norm(tiny_model: Path) -> None:
    with pytest.raises(UsageError, match=r"'batchnorm' needs batch norm.*--loss batchnorm=0"):
        invert(tiny_model, "deepinversion")


def test_deepinversion_matches_the_running_statistics_of_batch_norm() -> None:
    norm, linear = nn.BatchNorm2d(2), nn.Linear(128, 2)
    norm.running_mean, norm.running_var = torch.tensor([0.8, 0.3]), torch.tensor([0.01, 0.04])
    target = interpkit.wrap(nn.Sequential(norm, nn.Flatten(), linear), (2, 8, 8))
    losses = {"tv": 0.0, "l2": 0.0, "batchnorm": 10.0}
    inversion = invert(target, "deepinversion", {"per_class": 4}, steps=150, losses=losses)
    variance, mean = torch.var_mean(inversion.sample()[0], (0, 2, 3))
    assert mean.tolist() == pytest.approx([0.8, 0.3], abs=0.02)
    assert variance.tolist() == pytest.approx([0.01, 0.04], rel=0.1)
    assert accuracy(inversion) == 1.0


# ------------------------------------------------------------------------------------------- evolution


class Blind(nn.Module):
    """A classifier without a gradient that predicts which third of the image is brightest."""

    def forward(self, images: Tensor) -> Tensor:
        thirds = images.detach().unflatten(3, (3, -1)).mean((1, 2, 4))
        return (20 * thirds).round()


def test_evolution_needs_no_gradient() -> None:
    inversion = invert(interpkit.wrap(Blind(), (1, 6, 6)), "evolution", {"per_class": 2, "grid": 3}, steps=30)
    assert accuracy(inversion) == 1.0
    thirds = inversion.sample()[0].unflatten(3, (3, -1)).mean((1, 2, 4))
    assert thirds.argmax(1).tolist() == [0, 0, 1, 1, 2, 2]


def test_repulsion_keeps_the_images_of_a_class_apart() -> None:
    def cosine(repulsion: float) -> float:
        options = {"per_class": 3, "grid": 3, "repulsion": repulsion}
        images = invert(interpkit.wrap(Blind(), (1, 6, 6)), "evolution", options, steps=25).sample()[0]
        fields = F.normalize(images.clamp(1e-6, 1 - 1e-6).logit().flatten(1), dim=1).view(3, 3, -1)
        return float(((fields @ fields.mT).sum() - 9) / 18)

    assert cosine(2.0) < cosine(0.0) - 0.2


def test_fitness_is_cross_entropy_plus_the_cosine_to_other_images_of_the_class() -> None:
    net = nn.Linear(2, 2, bias=False)
    net.weight.data = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    landscape = Landscape(
        interpkit.wrap(net, (2,)), Recipe(device="cpu", batch_size=2), torch.tensor([0, 1, 0]), grid=7
    )
    middles = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 2.0]], dtype=torch.float64)
    points = torch.zeros(3, 2, 2, dtype=torch.float64)
    points[:, 1] = torch.tensor([1.0, 1.0])
    surprise, nearness, logits = landscape.judge(points, middles)
    assert logits.shape == (6, 2)
    # sigmoid(0) = 1/2: logits (1, 0), so -log Q(0) = log(1 + 1/e) and -log Q(1) = log(1 + e).
    assert surprise[:, 0].tolist() == pytest.approx([0.3132617, 1.3132617, 0.3132617])
    # The first and third are of one class: (1, 1) against (0, 2) and (3, 0); the second is alone; (0, 0) has no way.
    assert nearness[:, 1].tolist() == pytest.approx([0.5**0.5, 0.0, 0.5**0.5])
    assert nearness[:, 0].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("shape", "grid", "field"),
    [((3, 28, 28), 7, (3, 7, 7)), ((1, 5, 40), 7, (1, 5, 7)), ((1, 2, 3), 64, (1, 2, 3)), ((9,), 4, (9,))],
)
def test_a_coarse_field_is_upsampled_to_the_image_size(
    shape: tuple[int, ...], grid: int, field: tuple[int, ...]
) -> None:
    module = nn.Sequential(nn.Flatten(), nn.LazyLinear(2))
    module(torch.zeros(1, *shape))
    landscape = Landscape(interpkit.wrap(module, shape), Recipe(device="cpu"), torch.tensor([0, 1]), grid)
    assert landscape.field == field
    images = landscape.images(torch.full((2, torch.Size(field).numel()), 3.0))
    assert torch.allclose(images, torch.full((2, *shape), 0.9525741))  # sigmoid(3)


def test_the_size_of_a_generation_can_be_set(tiny_model: Path, tmp_path: Path) -> None:
    invert(tiny_model, "evolution", {"per_class": 1, "population": 5}, steps=2, out=tmp_path)
    assert torch.load(tmp_path / "checkpoint", weights_only=True)["told"].shape == (2, 3, 5)


def test_evolution_without_its_library_says_what_to_install(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cma", None)
    with pytest.raises(UsageError, match=re.escape(interpkit.install_extra("evolution"))):
        invert(tiny_model, "evolution")


def test_importing_evolutions_library_leaves_the_filters_of_warnings_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "cma"]:
        monkeypatch.delitem(sys.modules, name)
    before = list(warnings.filters)
    assert _import_cma() is sys.modules["cma"]
    assert warnings.filters == before
