"""A component that fails or violates its interface contract is reported with its name, plugin, step and code line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from interpkit_vecmat.conditioners import VectorMatrixConditioner
from interpkit_vecmat.upconv import UpConvGenerator
from torch import Tensor

import interpkit
from interpkit import Condition, ConditionSpec, InversionLoss, PluginError, RunError, UsageError
from interpkit.plugins.discovery import Plugins
from interpkit.runs.folder import Run

Quick = Callable[..., dict[str, Any]]
Add = Callable[..., None]


class FaultyLoss(InversionLoss):
    """A loss whose value is computed by its fault."""

    name = "faulty"
    fault: Callable[[Any], Any]

    def forward(self, batch: Any) -> Any:
        return type(self).fault(batch)


def failing_at(step: int) -> Callable[[Any], Tensor]:
    """Return a fault that raises an error at a step."""
    calls = iter(range(1, 1000))

    def fault(batch: Any) -> Tensor:
        if next(calls) == step:
            raise ValueError("not this batch")
        return batch.images.mean()

    return fault


def faulty(fault: Callable[[Any], Any]) -> type[InversionLoss]:
    return type("Faulty", (FaultyLoss,), {"fault": staticmethod(fault), "__module__": __name__})


LOSSES = {
    "raises": (failing_at(2), r"at step 2, .* failed: ValueError: not this batch \(.*test_contracts\.py, line \d+\)"),
    "exits": (lambda batch: exit(3), r"at step 1, .* failed: SystemExit: 3"),
    "no tensor": (lambda batch: 0.5, "forward's value is a tensor, not float"),
    "none": (lambda batch: None, "forward's value is a tensor, not NoneType"),
    "a value each": (lambda batch: batch.images.mean((1, 2, 3)), r"has the shape \(\), not \(8,\)"),
    "not quite a scalar": (lambda batch: batch.images.mean()[None], r"has the shape \(\), not \(1,\)"),
    "another device": (lambda batch: batch.images.mean().to("meta"), "is on the device cpu, not meta"),
    "whole numbers": (lambda batch: (batch.images > 0).sum(), r"is floating point, not torch\.int64"),
}


@pytest.mark.parametrize(("fault", "words"), LOSSES.values(), ids=LOSSES.keys())
def test_a_loss_that_violates_its_contract_stops_the_run_by_name(
    add_plugin: Add, tiny_target: interpkit.Target, quick: Quick, fault: Callable[[Any], Any], words: str
) -> None:
    add_plugin(faulty(fault))
    with pytest.raises(PluginError, match=words) as caught:
        interpkit.invert(tiny_target, **quick(losses={"faulty": 1.0}))
    assert "at step" in str(caught.value) and "the loss 'faulty' of the plugin 'mine'" in str(caught.value)
    assert caught.value.exit_code == 4


def test_a_loss_that_turns_nan_names_its_plugin_and_the_step(
    add_plugin: Add, tiny_target: interpkit.Target, quick: Quick
) -> None:
    add_plugin(faulty(lambda batch: batch.images.mean() * (float("nan") if batch.progress >= 0.5 else 1.0)))
    with pytest.raises(RunError, match=r"the term 'faulty' turned non-finite at step 7 \(plugin 'mine'\)"):
        interpkit.invert(tiny_target, **quick(losses={"faulty": 1.0}, steps=12))


def test_a_non_finite_gradient_is_not_blamed_on_the_generator_alone(
    add_plugin: Add, tiny_target: interpkit.Target, quick: Quick
) -> None:
    add_plugin(faulty(lambda batch: (batch.images - batch.images.detach()).square().sum().sqrt()))
    words = r"images turned non-finite at step 2 \(plugin 'vecmat', or the gradient of a loss of 'losses', 'mine'\)"
    with pytest.raises(RunError, match=words):
        interpkit.invert(tiny_target, **quick(losses={"faulty": 1.0}))


def test_a_non_finite_value_is_reported_instead_of_the_failure_it_causes(
    add_plugin: Add, tiny_target: interpkit.Target, quick: Quick
) -> None:
    calls = iter(range(1, 1000))

    def fault(batch: Any) -> Tensor:
        if next(calls) == 4:
            return batch.images.mean() * float("nan")
        assert batch.images.isfinite().all(), "cannot decompose"
        return batch.images.mean()

    add_plugin(faulty(fault))
    with pytest.raises(RunError, match=r"the term 'faulty' turned non-finite at step 4 \(plugin 'mine'\)"):
        interpkit.invert(tiny_target, **quick(losses={"faulty": 1.0}))


def test_a_run_that_a_plugin_stopped_keeps_its_checkpoint_and_can_be_resumed(
    add_plugin: Add, tiny_model: Path, quick: Quick, tmp_path: Path
) -> None:
    add_plugin(faulty(failing_at(9)))
    settings = quick(losses={"faulty": 1.0}, checkpoint_every=4)
    run = tmp_path / "run"
    with pytest.raises(PluginError) as caught:
        interpkit.invert(tiny_model, out=run, **settings)
    assert "at step 9, the loss 'faulty' of the plugin 'mine' failed" in str(caught.value)
    assert f"The last good checkpoint, of step 8, is in {run}." in str(caught.value)
    assert Run.open(run).manifest().status == "failed"
    inversion = interpkit.invert(tiny_model, out=run, resume=True, **settings)  # the fault's ninth call is over
    assert (inversion.steps_done, Run.open(run).manifest().resumed_from) == (12, 8)


LOSS_METHODS: dict[str, tuple[dict[str, Any], str]] = {
    "__init__ raises": (
        {"__init__": lambda self, target, options=None: [][1]},
        r"the loss 'faulty' of the plugin 'mine' failed: IndexError: .*test_contracts\.py, line \d+\)",
    ),
    "__init__ takes other arguments": ({"__init__": lambda self: None}, "the loss 'faulty' .* failed: TypeError"),
    "layers is a string": ({"layers": lambda self, target: "fc"}, "layers.* returns a list of names, not 'fc'"),
    "views are of another shape": (
        {"views": lambda self, batch, rng: batch.images[:, :, 1:]},
        r"views's images has the shape \(8, 1, 12, 12\), not \(8, 1, 11, 12\)",
    ),
    "views are a list": ({"views": lambda self, batch, rng: [batch.images]}, "is a tensor, not list"),
    "views raises": ({"views": lambda self, batch, rng: 1 / 0}, "at step 1, .* failed: ZeroDivisionError"),
    "forward takes other arguments": ({"forward": lambda self: None}, "at step 1, .* failed: TypeError"),
}


@pytest.mark.parametrize(("methods", "words"), LOSS_METHODS.values(), ids=LOSS_METHODS.keys())
def test_a_loss_whose_other_methods_violate_the_contract_stops_the_run_by_name(
    add_plugin: Add, tiny_target: interpkit.Target, quick: Quick, methods: dict[str, Any], words: str
) -> None:
    add_plugin(type("Faulty", (faulty(lambda batch: batch.images.mean()),), methods | {"__module__": __name__}))
    with pytest.raises(PluginError, match=words) as caught:
        interpkit.invert(tiny_target, **quick(losses={"faulty": 1.0}))
    assert "the loss 'faulty' of the plugin 'mine'" in str(caught.value)


def test_a_usage_error_of_a_component_keeps_its_message(
    add_plugin: Add, tiny_target: interpkit.Target, quick: Quick
) -> None:
    def refuse(self: Any, target: Any, options: Any = None) -> None:
        raise UsageError("this loss is for vectors")

    add_plugin(type("Faulty", (FaultyLoss,), {"__init__": refuse}))
    with pytest.raises(UsageError, match=r"^this loss is for vectors$"):
        interpkit.invert(tiny_target, **quick(losses={"faulty": 1.0}))


GENERATORS: dict[str, tuple[Callable[[Tensor], Any], type[Exception], str]] = {
    "another shape": (lambda x: x[..., 1:], PluginError, r"has the shape \(8, 1, 12, 12\), not \(8, 1, 12, 11\)"),
    "fewer images": (lambda x: x[1:], PluginError, r"has the shape \(8, 1, 12, 12\), not \(7, 1, 12, 12\)"),
    "another device": (lambda x: x.to("meta"), PluginError, "is on the device cpu, not meta"),
    "bytes": (lambda x: (255 * x).byte(), PluginError, r"is floating point, not torch\.uint8"),
    "a pair": (lambda x: (x, x), PluginError, "is a tensor, not tuple"),
    "out of range": (lambda x: 3 * x + 1, RunError, r"images left \[0, 1\] by .* at step 1 \(plugin 'mine'\)"),
    "not finite": (lambda x: x / 0, RunError, r"images turned non-finite at step 1 \(plugin 'mine'\)"),
}


@pytest.mark.parametrize(("fault", "error", "words"), GENERATORS.values(), ids=GENERATORS.keys())
@pytest.mark.parametrize("generators", [1, 2])
def test_a_generator_that_violates_its_contract_stops_the_run_by_name(
    add_plugin: Add,
    tiny_target: interpkit.Target,
    quick: Quick,
    fault: Callable[[Tensor], Any],
    error: type[Exception],
    words: str,
    generators: int,
) -> None:
    class FaultyGenerator(UpConvGenerator):
        name = "faulty"

        def forward(self, latent: Tensor, condition: Condition) -> Tensor:
            return fault(super().forward(latent, condition))

    add_plugin(FaultyGenerator)
    settings = quick(generator="faulty", generators=generators)
    settings["options"] = {name.replace("upconv", "faulty"): value for name, value in settings["options"].items()}
    with pytest.raises(error, match=words if generators == 1 else None) as caught:
        interpkit.invert(tiny_target, **settings)
    assert "plugin 'mine'" in str(caught.value)


def test_a_generator_without_latent_dim_is_reported_before_the_first_step(
    add_plugin: Add, tiny_target: interpkit.Target, quick: Quick
) -> None:
    class Forgetful(UpConvGenerator):
        name = "faulty"

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            del self.latent_dim

    add_plugin(Forgetful)
    with pytest.raises(PluginError, match=r"generator 'faulty' of the plugin 'mine' violates its.*latent_dim"):
        interpkit.invert(tiny_target, **quick(generator="faulty", options=None) | {"options": {}})


CONDITIONERS: dict[str, tuple[Callable[[Condition], Any], str]] = {
    "labels of floats": (lambda c: replace(c, labels=c.labels.float()), r"Condition\.labels is int64"),
    "fewer labels": (lambda c: replace(c, labels=c.labels[1:]), r"Condition\.labels has the shape \(8,\), not \(7,\)"),
    "another distribution": (
        lambda c: replace(c, distribution=c.distribution[:, 1:]),
        r"Condition\.distribution has the shape \(8, 3\), not \(8, 2\)",
    ),
    "a vector of another length": (
        lambda c: replace(c, vector=c.vector[:, 1:]),
        r"Condition\.vector has the shape \(8, 3\), not \(8, 2\)",
    ),
    "another device": (lambda c: replace(c, vector=c.vector.to("meta")), "is on the device cpu, not meta"),
    "labels of no class": (lambda c: replace(c, labels=c.labels + 3), r"labels are classes, 0 to 2, not [345]\."),
    "a distribution of NaN": (
        lambda c: replace(c, distribution=c.distribution * float("nan")),
        r"Condition\.distribution is finite, not NaN",
    ),
    "a distribution of sum 3": (
        lambda c: replace(c, distribution=3 * c.distribution),
        r"the rows of Condition\.distribution are probabilities, which sum to 1, not .* sums from 3 to 3",
    ),
    "an infinite vector": (lambda c: replace(c, vector=c.vector / 0), r"Condition\.vector is finite, not NaN or inf"),
    "labels alone": (lambda c: c.labels, "sample returns a Condition, not Tensor"),
    "raises": (lambda c: c.nothing, "failed: AttributeError"),
}


@pytest.mark.parametrize(("fault", "words"), CONDITIONERS.values(), ids=CONDITIONERS.keys())
def test_a_conditioner_that_violates_its_contract_stops_the_run_by_name(
    add_plugin: Add, tiny_target: interpkit.Target, quick: Quick, fault: Callable[[Condition], Any], words: str
) -> None:
    class FaultyConditioner(VectorMatrixConditioner):
        name = "faulty"

        def sample(self, *arguments: Any, **options: Any) -> Condition:
            return fault(super().sample(*arguments, **options))

    add_plugin(FaultyConditioner)
    with pytest.raises(PluginError, match=words) as caught:
        interpkit.invert(tiny_target, **quick(conditioner="faulty"))
    assert "at step 1, the conditioner 'faulty' of the plugin 'mine'" in str(caught.value)


def test_condition_values_are_checked_in_the_first_step_and_shapes_in_every_step(
    add_plugin: Add, tiny_target: interpkit.Target, quick: Quick
) -> None:
    class Fading(VectorMatrixConditioner):
        name = "faulty"
        fault = "distribution"

        def sample(self, *arguments: Any, **options: Any) -> Condition:
            drawn = super().sample(*arguments, **options)
            if self.progress < 0.1:  # in steps 1 and 2 of 12
                return drawn
            if self.fault == "shape":
                return replace(drawn, vector=drawn.vector[1:])
            return replace(drawn, distribution=drawn.distribution * float("nan"))

    add_plugin(Fading)
    with pytest.raises(interpkit.RunError, match="the term 'kl' turned non-finite at step 3"):
        interpkit.invert(tiny_target, **quick(conditioner="faulty"))
    Fading.fault = "shape"
    with pytest.raises(PluginError, match=r"at step 3, the conditioner 'faulty'.*has the shape \(8, 3\), not \(7, 3\)"):
        interpkit.invert(tiny_target, **quick(conditioner="faulty"))


def test_a_conditioner_without_a_spec_is_reported_before_the_first_step(
    add_plugin: Add, tiny_target: interpkit.Target, quick: Quick
) -> None:
    class Vague(VectorMatrixConditioner):
        name = "faulty"

        @property
        def spec(self) -> ConditionSpec:
            return 3  # type: ignore[return-value]

    add_plugin(Vague)
    with pytest.raises(
        PluginError, match=r"conditioner 'faulty' of the plugin 'mine' .*: spec is a ConditionSpec, not"
    ):
        interpkit.invert(tiny_target, **quick(conditioner="faulty"))


def test_a_generator_that_fails_while_the_run_is_written_is_named_and_the_weights_are_kept(
    add_plugin: Add, tiny_model: Path, quick: Quick, tmp_path: Path
) -> None:
    class FailsLater(UpConvGenerator):
        name = "faulty"

        def forward(self, latent: Tensor, condition: Condition) -> Tensor:
            if not self.training:
                raise RuntimeError("only trains")
            return super().forward(latent, condition)

    add_plugin(FailsLater)
    settings = quick(generator="faulty") | {"options": {}}
    with pytest.raises(PluginError, match=r"after the last step, the generator 'faulty' .*only trains.*of step 12"):
        interpkit.invert(tiny_model, out=tmp_path / "run", **settings)
    run = Run.open(tmp_path / "run")
    assert run.manifest().status == "failed"
    assert (run / "generator.safetensors").exists() and len(run.history(run.recipe())) == 3


def test_an_inverter_that_raises_is_named_by_the_place_of_its_code(
    plugins: Plugins, tiny_target: interpkit.Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> Any:
        raise RuntimeError("no gradient today")

    monkeypatch.setattr("interpkit_baselines.pixels.derive_seed", fail)
    words = r"at step 1, the plugin 'baselines' failed: RuntimeError: no gradient today \(.*pixels\.py, line \d+\)"
    with pytest.raises(PluginError, match=words):
        interpkit.invert(tiny_target, ["pixels"], steps=2, device="cpu")


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        (
            lambda x: x[:, :, 1:],
            PluginError,
            r"'faulty' violates its interface contract.*\(N, 1, 12, 12\).*not \(3, 1, 11, 12\) and \(3,",
        ),
        (lambda x: x[1:], PluginError, r"labels \(N,\), not \(2, 1, 12, 12\) and \(3,\)"),
        (lambda x: x / 0, RunError, r"^the images turned non-finite at step 1 \(plugin 'mine'\)"),
    ],
    ids=["another shape", "fewer images", "not finite"],
)
def test_an_inverter_that_returns_wrong_images_is_named(
    add_plugin: Add,
    tiny_target: interpkit.Target,
    fault: Callable[[Tensor], Tensor],
    error: type[Exception],
    words: str,
) -> None:
    class Faulty(interpkit.Inverter):
        name = "faulty"

        def invert(self, target: Any, recipe: Any, parts: Any, recorder: Any) -> Any:
            images, labels = fault(torch.rand(3, *target.input_shape)), torch.arange(3)
            if len(images) == 3 and images.shape[1:] == target.input_shape:
                recorder.step(1, torch.tensor(1.0), {}, images, torch.zeros(3, 3), labels)
            return interpkit.ImageInversion(target, recipe, recorder.history, images, labels)

    add_plugin(Faulty)
    with pytest.raises(error, match=words):
        interpkit.invert(tiny_target, inverter="faulty", steps=1, device="cpu")


def test_an_inverter_that_returns_nothing_is_named(add_plugin: Add, tiny_target: interpkit.Target) -> None:
    class Faulty(interpkit.Inverter):
        name = "faulty"

        def invert(self, target: Any, recipe: Any, parts: Any, recorder: Any) -> Any:
            return None

    add_plugin(Faulty)
    with pytest.raises(
        interpkit.PluginError, match=r"'faulty' of the plugin .* invert returns an Inversion, not NoneT"
    ):
        interpkit.invert(tiny_target, inverter="faulty", steps=1, device="cpu")


def test_running_out_of_memory_is_not_blamed_on_a_plugin(
    add_plugin: Add, tiny_target: interpkit.Target, quick: Quick
) -> None:
    def fault(batch: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    add_plugin(faulty(fault))
    with pytest.raises(interpkit.RunError, match="out of memory at step 1"):
        interpkit.invert(tiny_target, **quick(losses={"faulty": 1.0}))


def test_an_exception_in_a_user_callback_passes_unchanged(tiny_target: interpkit.Target, quick: Quick) -> None:
    def stop(step: int) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        interpkit.invert(tiny_target, on_step=stop, **quick())
