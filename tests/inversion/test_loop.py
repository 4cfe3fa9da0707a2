"""The loop: a seed determines the run, the target runs once on images and once on views, and an inversion succeeds."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import interpkit
from interpkit import GeneratedBatch, InversionBatch, InversionLoss, RunError, UsageError
from interpkit.api.invert import prepare
from interpkit.inversion.objective import Objective, falling, set_learning_rate
from interpkit.runtime import random
from interpkit.runtime.recorder import StepRecord

Add = Callable[..., None]
Quick = Callable[..., dict[str, Any]]
CPU = torch.device("cpu")
EXAMPLES = Path(__file__).parents[2] / "examples" / "models"
SMALL = {"upconv.width": 16, "upconv.min_width": 16, "optimizer.lr": 0.005}


# ------------------------------------------------------------------------------------------ acceptance


def test_a_short_inversion_of_the_shipped_classifier_reaches_90_percent_on_fresh_samples() -> None:
    inversion = interpkit.invert(
        EXAMPLES / "mnist.safetensors",
        ["vecmat"],
        steps=120,
        batch_size=64,
        seed=0,
        device="cpu",
        precision="fp32",
        options=SMALL,
    )
    images, labels = inversion.sample(per_class=30, seed=1)
    assert images.shape == (300, 1, 28, 28)
    assert images.min() >= 0 and images.max() <= 1
    with torch.no_grad(), inversion.target.frozen():
        accuracy = (inversion.target(images).argmax(1) == labels).float().mean().item()
    assert accuracy >= 0.9
    assert inversion.history[-1].loss < inversion.history[0].loss


# ----------------------------------------------------------------------------------------------- seeds


def test_a_run_depends_on_the_seed_and_is_reproducible(tiny_model: Path, quick: Quick) -> None:
    one, two = (interpkit.invert(tiny_model, **quick()) for _ in range(2))
    other = interpkit.invert(tiny_model, **quick(seed=4))
    assert torch.equal(one.sample(per_class=2)[0], two.sample(per_class=2)[0])
    assert [r.loss for r in one.history] == [r.loss for r in two.history]
    assert not torch.equal(one.sample(per_class=2, seed=0)[0], other.sample(per_class=2, seed=0)[0])


def test_a_run_depends_on_nothing_but_its_seed(tiny_model: Path, quick: Quick) -> None:
    one = interpkit.invert(tiny_model, **quick(steps=2))
    torch.manual_seed(1234)
    torch.rand(7)
    two = interpkit.invert(tiny_model, **quick(steps=2))
    assert torch.equal(one.sample(per_class=2)[0], two.sample(per_class=2)[0])


def test_the_seed_determines_the_generators_initial_weights(tiny_model: Path, quick: Quick) -> None:
    def first_weights(seed: int) -> Tensor:
        inversion = interpkit.invert(tiny_model, **quick(steps=1, seed=seed, options={"optimizer.lr": 1e-12}))
        assert isinstance(inversion, interpkit.GeneratorInversion)
        return next(p for p in inversion.generator.parameters() if p.dim() == 4)

    assert torch.allclose(first_weights(3), first_weights(3))
    assert not torch.allclose(first_weights(3), first_weights(4))


def test_the_callers_random_state_is_left_alone(tiny_target: interpkit.Target, quick: Quick) -> None:
    before = torch.get_rng_state()
    inversion = interpkit.invert(tiny_target, **quick(steps=2))
    assert torch.equal(torch.get_rng_state(), before)
    inversion.sample(per_class=1)
    assert torch.equal(torch.get_rng_state(), before)

    def fail(step: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interpkit.invert(tiny_target, on_step=fail, **quick(steps=2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("callback", ["on_step", "on_record"])
def test_a_callback_that_draws_does_not_change_the_run(tiny_model: Path, quick: Quick, callback: str) -> None:
    drawn: list[Tensor] = []

    def draw(_: int | StepRecord) -> None:
        drawn.append(torch.rand(1))

    alone = interpkit.invert(tiny_model, **quick(steps=3)).sample(per_class=2)[0]
    watched = interpkit.invert(tiny_model, **quick(steps=3), **{callback: draw}).sample(per_class=2)[0]
    assert drawn and torch.equal(watched, alone)
    assert len(set(torch.cat(drawn).tolist())) == len(drawn)  # and not the same each time


@pytest.fixture
def seeded_elsewhere(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the seeds that devices other than the CPU receive from here on."""
    seeds: list[int] = []
    for device, name in ((torch.cuda, "manual_seed"), (torch.cuda, "manual_seed_all"), (torch.mps, "manual_seed")):
        monkeypatch.setattr(device, name, seeds.append)
    return seeds


def test_a_seed_for_the_cpu_gives_torchs_numbers_and_reaches_no_other_device(seeded_elsewhere: list[int]) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    seeded_elsewhere.clear()
    before = torch.get_rng_state()
    with random.global_seed(7, CPU):
        assert torch.equal(torch.rand(3), expected)
    assert torch.equal(torch.get_rng_state(), before)
    assert seeded_elsewhere == []


def test_wrapping_and_inverting_on_the_cpu_seed_no_other_device(
    tiny_module: Callable[..., nn.Module], quick: Quick, seeded_elsewhere: list[int]
) -> None:
    module = tiny_module()
    seeded_elsewhere.clear()
    target = interpkit.wrap(module, (1, 12, 12))
    interpkit.invert(target, **quick(steps=2)).sample(per_class=1)
    assert seeded_elsewhere == []


def test_kept_streams_are_as_before_even_after_an_error() -> None:
    before = torch.get_rng_state()
    with suppress(ZeroDivisionError), random.kept_streams(CPU):
        torch.rand(3)
        raise ZeroDivisionError
    assert torch.equal(torch.get_rng_state(), before)


def test_the_stream_of_an_apple_gpu_is_seeded_and_put_back(
    monkeypatch: pytest.MonkeyPatch, seeded_elsewhere: list[int]
) -> None:
    state, back = torch.arange(3), list[Tensor]()
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: state)
    monkeypatch.setattr(torch.mps, "set_rng_state", back.append)
    with random.global_seed(7, torch.device("mps")):
        assert seeded_elsewhere == [7] and back == []
    assert back == [state]


# -------------------------------------------------------------------------------------------- objective


class CountingTarget(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.net = interpkit.wrap(nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), (1, 2, 2))

    def respond(self, images: Tensor, layers: list[str]) -> interpkit.Response:
        self.sizes.append(len(images))
        return self.net.respond(images, layers)


class Showing(InversionLoss):
    """Requests the images that it was created with as views, and keeps the response to them."""

    name = "showing"

    def __init__(self, target: interpkit.Target, shown: Tensor | None, layers: list[str]) -> None:
        super().__init__(target)
        self.shown, self.read, self.response = shown, layers, None

    def layers(self, target: interpkit.Target) -> list[str]:
        return self.read

    def views(self, batch: GeneratedBatch, rng: torch.Generator) -> Tensor | None:
        return self.shown

    def forward(self, batch: InversionBatch) -> Tensor:
        assert batch.views is self.shown
        self.response = batch.view_response
        return batch.images.mean()


def evaluate(
    target: CountingTarget, images: Tensor, views: dict[str, Tensor | None], layers: list[str]
) -> tuple[interpkit.Response, dict[str, interpkit.Response]]:
    """Return the response to images, and each term's response to the views that it requested."""
    losses = {name: (1.0, Showing(target.net, shown, layers)) for name, shown in views.items()}
    condition = interpkit.Condition(torch.zeros(len(images), dtype=torch.int64), torch.eye(3), torch.eye(3))
    objective = Objective(target, losses, torch.autocast("cpu", enabled=False))  # type: ignore[arg-type]
    assert objective.layers == sorted(layers)
    batch = GeneratedBatch(target.net, condition, images.new_zeros(len(images), 0), images, 0.0)
    value = objective(batch, torch.Generator())
    assert value.terms.keys() == views.keys()
    responses = {name: loss.response for name, (_, loss) in losses.items() if loss.response is not None}
    return value.response, responses


def test_the_target_runs_once_on_all_views_and_each_term_gets_its_own_slice() -> None:
    target = CountingTarget()
    images, a, c = torch.rand(4, 1, 2, 2), torch.rand(3, 1, 2, 2), torch.rand(8, 1, 2, 2)
    response, views = evaluate(target, images, {"a": a, "b": None, "c": c}, ["1"])
    assert target.sizes == [4, 11]
    assert set(views) == {"a", "c"}
    for part, shown in ((response, images), (views["a"], a), (views["c"], c)):
        alone = target.net.respond(shown, ["1"])
        assert torch.allclose(part.logits, alone.logits, atol=1e-6)
        assert part.features.keys() == {"1", "3:in"}
        for layer, features in alone.features.items():
            assert torch.allclose(part.features[layer], features, atol=1e-6)


def test_a_term_that_alone_requests_views_gets_the_whole_response() -> None:
    target = CountingTarget()
    a = torch.rand(3, 1, 2, 2)
    _, views = evaluate(target, torch.rand(4, 1, 2, 2), {"b": None, "a": a}, ["1"])
    assert target.sizes == [4, 3]
    assert torch.equal(views["a"].logits, target.net.respond(a).logits)
    assert [len(features) for features in views["a"].features.values()] == [3, 3]


def test_the_gradient_of_a_response_reaches_only_its_own_images() -> None:
    target = CountingTarget()
    shown = {name: torch.rand(2, 1, 2, 2, requires_grad=True) for name in ("images", "a", "c")}
    response, views = evaluate(target, shown["images"], {"a": shown["a"], "c": shown["c"]}, [])
    for name, part in {"images": response, **views}.items():
        gradients = torch.autograd.grad(part.logits.sum(), list(shown.values()), retain_graph=True, allow_unused=True)
        moved = {
            other for other, gradient in zip(shown, gradients, strict=True) if gradient is not None and gradient.any()
        }
        assert moved == {name}


def test_without_views_the_target_runs_on_the_images_alone() -> None:
    target = CountingTarget()
    response, views = evaluate(target, torch.rand(4, 1, 2, 2), {"a": None}, [])
    assert (target.sizes, views, len(response.logits)) == ([4], {}, 4)


class Viewer(InversionLoss):
    """Requests two views, one darker and one lighter, and records the batches that it receives."""

    name = "viewer"
    seen: list[InversionBatch] = []  # noqa: RUF012, emptied by the test

    def layers(self, target: interpkit.Target) -> list[str]:
        return ["0"]

    def views(self, batch: GeneratedBatch, rng: torch.Generator) -> Tensor:
        return torch.cat([batch.images * 0.5, batch.images * 0.5 + 0.5])

    def forward(self, batch: InversionBatch) -> Tensor:
        self.seen.append(batch)
        assert batch.view_response is not None
        return batch.view_response.logits.square().mean()


def test_each_step_runs_the_target_once_on_the_images_and_once_on_the_requested_views(
    add_plugin: Add, tiny_target: interpkit.Target, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_plugin(Viewer)
    Viewer.seen.clear()
    sizes: list[int] = []
    respond = tiny_target.respond

    def counting(images: Tensor, layers: Any = ()) -> interpkit.Response:
        sizes.append(len(images))
        return respond(images, layers)

    monkeypatch.setattr(tiny_target, "respond", counting)
    interpkit.invert(tiny_target, **quick(steps=3, losses={"viewer": 0.5}))
    assert sizes == [8, 16] * 3
    assert [batch.progress for batch in Viewer.seen] == pytest.approx([0, 1 / 3, 2 / 3])
    for batch in Viewer.seen:
        assert batch.views is not None and batch.view_response is not None
        assert batch.images.shape == (8, 1, 12, 12) and len(batch.views) == len(batch.view_response.logits) == 16
        assert "0" in batch.response.features and batch.target is tiny_target
        assert batch.condition.distribution.argmax(1).equal(batch.condition.labels)


# ------------------------------------------------------------------------------------- rate and weights


def test_the_rate_is_constant_at_first_and_falls_linearly_to_zero_over_the_last_part() -> None:
    assert [falling(p, 0.5) for p in (0.0, 0.25, 0.5, 0.75, 1.0)] == [1, 1, 1, 0.5, 0]
    assert [falling(p, 0.2) for p in (0.0, 0.8, 0.9, 0.95)] == pytest.approx([1, 1, 0.5, 0.25])
    assert [falling(p, 1.0) for p in (0.0, 0.3)] == pytest.approx([1, 0.7])
    assert [falling(p, 0.0) for p in (0.0, 0.5, 1.0)] == [1, 1, 1]


def test_the_rate_of_an_optimizer_is_the_recipes_times_a_factor() -> None:
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)]}, {"params": [torch.zeros(2)]}], lr=7.0)
    recipe = interpkit.Recipe(optimizer={"lr": 0.4, "decay": 0.5})
    for progress, scale, wanted in ((0.0, 1.0, 0.4), (0.75, 1.0, 0.2), (0.75, 0.3, 0.06)):
        set_learning_rate(optimizer, recipe, progress, scale)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([wanted, wanted])


class Learner(InversionLoss):
    """A term with its own parameter, which training moves to 2."""

    name = "learner"
    made: list[Learner] = []  # noqa: RUF012, emptied by the test

    def __init__(self, target: interpkit.Target, options: Any = None) -> None:
        super().__init__(target, options)
        self.value = nn.Parameter(torch.zeros(()))
        self.made.append(self)

    def forward(self, batch: InversionBatch) -> Tensor:
        return (self.value - 2).square()


def test_a_terms_own_parameters_are_trained_too(add_plugin: Add, tiny_target: interpkit.Target, quick: Quick) -> None:
    add_plugin(Learner)
    Learner.made.clear()
    options = {"optimizer.lr": 0.1, "optimizer.decay": 0.0}
    inversion = interpkit.invert(tiny_target, **quick(steps=30, losses={"learner": 1.0}, options=options))
    assert inversion.history[0].terms["learner"] == 4.0
    assert Learner.made[-1].value.item() == pytest.approx(2.0, abs=0.8)
    assert inversion.history[-1].terms["learner"] < 1.0


def test_the_loss_is_the_weighted_sum_of_the_terms(tiny_target: interpkit.Target, quick: Quick) -> None:
    weights = {"kl": 0.5, "ce": 2.0, "cosine": 3.0}
    for record in interpkit.invert(tiny_target, **quick(losses=weights)).history:
        assert record.loss == pytest.approx(
            sum(weights[name] * value for name, value in record.terms.items()), rel=1e-5
        )


@pytest.mark.parametrize("conditioner", ["vecmat", "label"])
def test_only_the_requested_classes_are_trained(
    add_plugin: Add, tiny_target: interpkit.Target, quick: Quick, conditioner: str
) -> None:
    add_plugin(Viewer)
    Viewer.seen.clear()
    settings = quick(steps=6, labels=[2, 0], losses={"viewer": 1.0}, conditioner=conditioner)
    inversion = interpkit.invert(tiny_target, **settings)
    assert {label for batch in Viewer.seen for label in batch.condition.labels.tolist()} == {0, 2}
    assert inversion.classes == [2, 0]
    assert inversion.sample(per_class=1)[1].tolist() == [2, 0]


@pytest.mark.parametrize(("labels", "classes"), [(None, {0, 1, 2}), ([2, 0], {0, 2})])
def test_a_batch_has_as_many_classes_as_asked_for(
    add_plugin: Add, tiny_target: interpkit.Target, quick: Quick, labels: list[int] | None, classes: set[int]
) -> None:
    add_plugin(Viewer)
    Viewer.seen.clear()
    interpkit.invert(tiny_target, **quick(steps=20, labels=labels, losses={"viewer": 1.0}, classes_per_batch=1))
    batches = [set(batch.condition.labels.tolist()) for batch in Viewer.seen]
    assert {len(batch) for batch in batches} == {1} and set.union(*batches) == classes


def test_the_terms_see_moved_images_and_the_gradient_is_that_of_the_generators(
    add_plugin: Add, tiny_target: interpkit.Target, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_plugin(Viewer)
    Viewer.seen.clear()
    made: list[Tensor] = []
    monkeypatch.setattr(
        "interpkit.inversion.loop.shift_and_flip", lambda images, *_: made.append(images) or images.flip(3)
    )
    interpkit.invert(tiny_target, **quick(steps=1, losses={"viewer": 1.0}, options={"inverter.flip": True}))
    assert torch.equal(Viewer.seen[0].images, made[0].flip(3)) and made[0].requires_grad


class Exploding(InversionLoss):
    name = "exploding"

    def forward(self, batch: InversionBatch) -> Tensor:
        return batch.images.mean() * (float("inf") if batch.progress > 0.5 else 1.0)


def test_a_term_that_turns_infinite_stops_the_run_by_name(
    add_plugin: Add, tiny_target: interpkit.Target, quick: Quick
) -> None:
    add_plugin(Exploding)
    with pytest.raises(RunError, match="the term 'exploding' turned non-finite at step 8"):
        interpkit.invert(tiny_target, **quick(losses={"exploding": 1.0}))


def test_an_unknown_layer_of_a_term_stops_the_run_and_lists_the_known_layers(
    tiny_target: interpkit.Target, quick: Quick
) -> None:
    with pytest.raises(UsageError, match="no layer 'nowhere'"):
        interpkit.invert(tiny_target, **quick(steps=1, options={"cosine.layers": ["nowhere"]}))


def test_a_run_is_stopped_between_steps_on_request(tiny_target: interpkit.Target, quick: Quick) -> None:
    settings = quick(steps=50)
    job = prepare(tiny_target, settings.pop("plugins"), **settings)
    inversion = job.run(on_step=lambda step: job.request_stop() if step == 5 else None)
    assert inversion.steps_done == 5


def test_a_run_that_is_stopped_before_it_begins_runs_one_step(tiny_target: interpkit.Target, quick: Quick) -> None:
    settings = quick(steps=50)
    job = prepare(tiny_target, settings.pop("plugins"), **settings)
    job.request_stop()
    assert job.run().steps_done == 1


def test_bf16_and_fp32_are_obeyed_and_both_train(tiny_target: interpkit.Target, quick: Quick) -> None:
    for precision in ("bf16", "fp32"):
        inversion = interpkit.invert(tiny_target, **quick(steps=2, precision=precision))
        assert inversion.recipe.precision == precision
        assert inversion.sample(per_class=1)[0].dtype == torch.float32
