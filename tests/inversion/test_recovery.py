"""A run that diverges or runs out of memory recovers once: by fp32, a lower rate, or smaller micro-batches."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import interpkit
from interpkit import InversionBatch, InversionLoss, RunError
from interpkit.api.invert import prepare
from interpkit.inversion import recovery
from interpkit.inversion.loop import GeneratorInverter
from interpkit.inversion.objective import Objective
from interpkit.inversion.recovery import RecoverableTraining
from interpkit.runs.folder import Run
from interpkit.runtime import devices
from interpkit.runtime.devices import choose_precision, is_out_of_memory
from interpkit.runtime.distributed import World

Add = Callable[..., None]
Quick = Callable[..., dict[str, Any]]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cpu_with_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the same arithmetic everywhere: bf16, which torch emulates if the processor does not have it."""
    monkeypatch.setattr(devices, "_multiplies_bf16", lambda device: True)


@pytest.fixture(autouse=True)
def a_state_is_kept_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "KEEP_EVERY", 10)


class Narrow(InversionLoss):
    """Overflows in bf16, after 80 % of the run: only in bf16 are the features rounded to 8 bits."""

    name = "narrow"
    calls: list[bool] = []  # noqa: RUF012, emptied by the tests

    def forward(self, batch: InversionBatch) -> Tensor:
        features = batch.response.penultimate
        rounded = bool((features == features.bfloat16().float()).all())
        self.calls.append(rounded)
        return features.mean() * (float("inf") if rounded and batch.progress > 0.8 else 1.0)


def weights(inversion: interpkit.Inversion) -> dict[str, Tensor]:
    assert isinstance(inversion, interpkit.GeneratorInversion)
    return inversion.generator.state_dict()


# --------------------------------------------------------------------------------------------- precision


def test_auto_precision_returns_to_the_last_good_state_and_continues_in_fp32(
    add_plugin: Add, tiny_target: interpkit.Target, quick: Quick, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add_plugin(Narrow)
    Narrow.calls.clear()
    settings = quick(steps=30, losses={"narrow": 1.0}, precision="auto")
    inversion = interpkit.invert(tiny_target, out=tmp_path / "run", **settings)
    # Step 26 is past 80 %, which the check at step 30 detects, and the run continues after step 10: the state kept at
    # step 20 is not known to be good before step 30.
    assert Narrow.calls[:26] == [True] * 26  # and then NaN, which is not a rounded number
    assert Narrow.calls[26:] == [False] * (4 + 20)
    assert inversion.recipe.fall_back and inversion.steps_done == 30
    assert [record.step for record in inversion.history] == [1, 10, 20, 30]
    lines = (tmp_path / "run/history.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 10, 20, 30]
    assert caplog.messages == [
        "in bf16 the term 'narrow' turned non-finite at step 26 (plugin 'mine'): "
        "the run returns to step 10 and continues in fp32"
    ]
    manifest = Run.open(tmp_path / "run").manifest().to_dict()
    assert manifest["precision"] == "fp32"
    assert manifest["fell_back"]["after_step"] == 10
    assert "'narrow' turned non-finite" in manifest["fell_back"]["reason"]


@pytest.mark.parametrize("stop", [5, 10, 13, 20, 23, 28])
def test_a_resumed_run_falls_back_to_fp32_where_an_uninterrupted_one_does(
    add_plugin: Add,
    tiny_target: interpkit.Target,
    quick: Quick,
    tmp_path: Path,
    same_tensors: Callable[..., bool],
    stop: int,
) -> None:
    add_plugin(Narrow)
    settings = quick(steps=30, losses={"narrow": 1.0}, precision="auto", checkpoint_every=1)
    whole = interpkit.invert(tiny_target, **settings)
    plugins = settings.pop("plugins")
    job = prepare(tiny_target, plugins, **settings)
    job.run(out=tmp_path / "run", on_step=lambda step: job.request_stop() if step == stop else None)
    Narrow.calls.clear()
    resumed = interpkit.invert(tiny_target, plugins, out=tmp_path / "run", resume=True, **settings)
    assert same_tensors(weights(whole), weights(resumed))
    assert all(Narrow.calls[: 26 - stop]) and not any(Narrow.calls[26 - stop :])
    assert Run.open(tmp_path / "run").manifest().precision == "fp32"


def test_requested_bf16_stops_with_advice(add_plugin: Add, tiny_target: interpkit.Target, quick: Quick) -> None:
    add_plugin(Narrow)
    with pytest.raises(RunError, match=r"turned non-finite at step 26 .*diverged at 0.3 times the rate"):
        interpkit.invert(tiny_target, **quick(steps=30, losses={"narrow": 1.0}, precision="bf16"))


class Hopeless(InversionLoss):
    name = "hopeless"

    def forward(self, batch: InversionBatch) -> Tensor:
        return batch.images.mean() * (float("inf") if batch.progress > 0.5 else 1.0)


def test_a_run_that_turns_non_finite_in_fp32_too_stops(
    add_plugin: Add, tiny_target: interpkit.Target, quick: Quick, caplog: pytest.LogCaptureFixture
) -> None:
    add_plugin(Hopeless)
    with pytest.raises(RunError, match=r"the term 'hopeless' turned non-finite at step 12 .*'optimizer\.lr': 0\.0002"):
        interpkit.invert(tiny_target, **quick(steps=20, losses={"hopeless": 1.0}, precision="auto"))
    assert [message.rpartition(" and ")[2] for message in caplog.messages] == [
        "continues in fp32",
        "continues at 0.3 times the rate",
    ]


class BadGradient(InversionLoss):
    """Is always finite, but its gradient is not at step 10 in bf16, so the state at that step is useless."""

    name = "bad_gradient"

    def forward(self, batch: InversionBatch) -> Tensor:
        features = batch.response.penultimate
        rounded = bool((features == features.bfloat16().float()).all())
        spread = (features - features.detach()).sum()
        return spread.abs().sqrt() if rounded and 0.29 < batch.progress < 0.31 else spread * 0


def test_a_run_does_not_return_to_a_state_with_non_finite_weights(
    add_plugin: Add, tiny_target: interpkit.Target, quick: Quick, caplog: pytest.LogCaptureFixture
) -> None:
    add_plugin(BadGradient)
    inversion = interpkit.invert(tiny_target, **quick(steps=30, losses={"bad_gradient": 1.0}, precision="auto"))
    assert inversion.steps_done == 30
    assert "the run returns to step 0" in caplog.messages[0]


# -------------------------------------------------------------------------------------------------- rate


class Steep(InversionLoss):
    """Diverges: from 80 % of the run on, its weights jump, while the rate is that of the recipe."""

    name = "steep"
    infinite = True
    last: float | None = None

    def __init__(self, target: interpkit.Target, options: Any = None) -> None:
        super().__init__(target, options)
        self.place = torch.nn.Parameter(torch.zeros(()))
        Steep.last = None

    def forward(self, batch: InversionBatch) -> Tensor:
        """Adam's steps have the size of the rate, so the position reveals the rate."""
        now = self.place.item()
        pace = 0.0 if Steep.last is None else abs(now - Steep.last)
        Steep.last = now
        leap = (float("inf") if self.infinite else 1e6) if batch.progress > 0.8 and pace > 1e-3 else 0.0
        return self.place + leap


RATE = {"optimizer.lr": 2e-3, "optimizer.decay": 0.0}


@pytest.mark.parametrize(
    ("infinite", "reason"),
    [
        (True, "turned non-finite at step 26 (plugin 'mine')"),
        (False, "exploded at step 26 (plugin 'mine'), from about 1 to 1e+06"),
    ],
)
def test_a_run_that_diverges_returns_and_continues_at_a_lower_rate(
    add_plugin: Add,
    tiny_target: interpkit.Target,
    quick: Quick,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    infinite: bool,
    reason: str,
) -> None:
    add_plugin(Steep)
    monkeypatch.setattr(Steep, "infinite", infinite)
    settings = quick(steps=30, losses={"steep": 1.0}, options=RATE)
    inversion = interpkit.invert(tiny_target, out=tmp_path / "run", **settings)
    assert caplog.messages == [
        f"the term 'steep' {reason}: the run returns to step 10 and continues at 0.3 times the rate"
    ]
    assert [record.step for record in inversion.history] == [1, 10, 20, 30]
    places = [record.terms["steep"] for record in inversion.history]
    assert places[1] - places[0] == pytest.approx(-9 * 2e-3, rel=0.05)
    assert places[2] - places[1] == pytest.approx(-2e-3 - 9 * 0.6e-3, rel=0.05)  # step 10 itself used the old rate
    manifest = Run.open(tmp_path / "run").manifest().to_dict()
    assert manifest["lowered_rate"] == {"factor": 0.3, "after_step": 10, "reason": f"the term 'steep' {reason}"}
    assert "fell_back" not in manifest


@pytest.mark.parametrize("stop", [5, 13, 20, 24, 28])
def test_a_resumed_run_lowers_the_rate_where_an_uninterrupted_one_does(
    add_plugin: Add,
    tiny_target: interpkit.Target,
    quick: Quick,
    tmp_path: Path,
    same_tensors: Callable[..., bool],
    stop: int,
) -> None:
    """The run reaches step 28 only after it has returned to step 10, so a stop there is at the lower rate."""
    add_plugin(Steep)
    settings = quick(steps=30, losses={"steep": 1.0}, options=RATE, checkpoint_every=1000)
    whole = interpkit.invert(tiny_target, **settings)
    plugins = settings.pop("plugins")
    job = prepare(tiny_target, plugins, **settings)
    before = Steep.last
    job.run(out=tmp_path / "run", on_step=lambda step: job.request_stop() if step == stop else None)
    resumed = interpkit.invert(tiny_target, plugins, out=tmp_path / "run", resume=True, **settings)
    assert before is not None
    assert same_tensors(weights(whole), weights(resumed))
    lowered = Run.open(tmp_path / "run").manifest().lowered_rate
    assert lowered is not None and lowered["after_step"] == 10


def test_a_failure_at_the_first_step_is_not_retried(
    tiny_target: interpkit.Target, quick: Quick, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RunError, match=r"the loss turned non-finite at step 1\. Try a lower rate"):
        interpkit.invert(tiny_target, **quick(losses={"ce": 1e39}))
    assert not caplog.messages


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_advised_rate_is_lower_and_the_precision_another(
    tiny_target: interpkit.Target, quick: Quick, precision: str
) -> None:
    options = quick(losses={"ce": 1e39}, precision=precision, options={"optimizer.lr": 0.0001})
    with pytest.raises(RunError, match=r"step 1\. Try a lower rate \(options=\{'optimizer\.lr': 3e-05\}\)") as failure:
        interpkit.invert(tiny_target, **options)
    assert ("precision" in str(failure.value)) == (precision == "bf16")


def test_a_kept_state_survives_a_rollback(
    tiny_target: interpkit.Target, quick: Quick, add_plugin: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run returns to the state twice, from bf16 and then from fp32: the first return must not change it."""
    add_plugin(Hopeless)
    kept: list[dict[str, Any]] = []
    roll_back = RecoverableTraining.roll_back

    def note(self: RecoverableTraining, error: Any) -> None:
        kept.append(copy.deepcopy(self._good) or {})
        roll_back(self, error)

    monkeypatch.setattr(RecoverableTraining, "roll_back", note)
    with pytest.raises(RunError):
        interpkit.invert(tiny_target, **quick(steps=60, losses={"hopeless": 1.0}, precision="auto"))
    first, second, third = kept
    assert first["step"] == second["step"] == 20 and not third  # nothing is kept once all remedies were tried
    assert first["optimizer"]["state"]
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_a_recipe_records_an_automatic_precision_and_a_requested_one_is_final(
    tiny_target: interpkit.Target, quick: Quick, tmp_path: Path
) -> None:
    def resolved(**settings: Any) -> interpkit.Recipe:
        return prepare(tiny_target, **settings).recipe

    auto = resolved(**quick(precision="auto"))
    assert (auto.precision, auto.fall_back) == ("bf16", True)
    file = tmp_path / "recipe.toml"
    file.write_text(auto.to_toml(), "utf-8")
    again = resolved(config=file)
    assert (again.precision, again.fall_back) == ("bf16", True)
    typed = resolved(config=file, precision="bf16")
    assert (typed.precision, typed.fall_back) == ("bf16", False)
    assert not resolved(config=file, precision="fp32").fall_back


def test_bf16_without_hardware_support_warns_that_it_is_emulated(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tiny_target: interpkit.Target, quick: Quick
) -> None:
    monkeypatch.setattr(devices, "_multiplies_bf16", lambda device: False)
    assert choose_precision("auto", CPU) == "fp32"
    assert not caplog.messages
    assert interpkit.invert(tiny_target, **quick(steps=2, precision="bf16")).steps_done == 2
    assert caplog.messages == ["this cpu has no bf16 arithmetic, so precision='bf16' is emulated: fp32 is faster"]


# ------------------------------------------------------------------------------------------------ memory


class Hungry(InversionLoss):
    """Runs out of memory, the first ``times`` times after step 3."""

    name = "hungry"
    error: Exception = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    times = 1
    drawn: list[Tensor] = []  # noqa: RUF012, emptied by the tests

    def forward(self, batch: InversionBatch) -> Tensor:
        self.drawn.append(batch.latent)
        if batch.progress >= 0.25 and type(self).times > 0:
            type(self).times -= 1
            raise self.error
        return batch.images.mean() * 0


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=str)
def test_the_same_step_is_repeated_with_half_as_many_images_at_a_time(
    add_plugin: Add,
    tiny_target: interpkit.Target,
    quick: Quick,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    add_plugin(Hungry)
    monkeypatch.setattr(Hungry, "error", error)
    monkeypatch.setattr(Hungry, "times", 1)
    Hungry.drawn.clear()
    inversion = interpkit.invert(tiny_target, out=tmp_path / "run", **quick(losses={"hungry": 1.0}))
    assert inversion.steps_done == 12
    assert caplog.messages == ["out of memory at step 4: the run continues with micro_batch=4"]
    assert Run.open(tmp_path / "run").manifest().micro_batch == 4
    assert len(Hungry.drawn) == 13
    assert torch.equal(Hungry.drawn[3], Hungry.drawn[4])  # once before and once after
    assert not torch.equal(Hungry.drawn[4], Hungry.drawn[5])


def test_running_out_of_memory_again_names_the_settings_to_change_and_the_checkpoint(
    add_plugin: Add, tiny_target: interpkit.Target, quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_plugin(Hungry)
    monkeypatch.setattr(Hungry, "times", 2)
    settings = quick(losses={"hungry": 1.0}, batch_size=16, checkpoint_every=2)
    with pytest.raises(RunError) as caught:
        interpkit.invert(tiny_target, out=tmp_path / "run", **settings)
    assert str(caught.value) == (
        "out of memory at step 4, with 8 images at a time: "
        "set micro_batch=4, batch_size=8, or a narrower generator (options={'generator.width': 4}). "
        f"The last good checkpoint, of step 2, is in {tmp_path / 'run'}."
    )


def test_two_images_at_a_time_cannot_be_halved(
    add_plugin: Add, tiny_target: interpkit.Target, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_plugin(Hungry)
    monkeypatch.setattr(Hungry, "times", 1)
    with pytest.raises(RunError, match="with 2 images at a time: set batch_size=4, or a narrower"):
        interpkit.invert(tiny_target, **quick(losses={"hungry": 1.0}, micro_batch=2))


def test_a_resumed_run_keeps_the_smaller_micro_batches(
    add_plugin: Add,
    tiny_target: interpkit.Target,
    quick: Quick,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    same_tensors: Callable[..., bool],
) -> None:
    add_plugin(Hungry)
    settings = quick(losses={"hungry": 1.0})
    plugins = settings.pop("plugins")
    monkeypatch.setattr(Hungry, "times", 1)
    whole = interpkit.invert(tiny_target, plugins, **settings)
    monkeypatch.setattr(Hungry, "times", 1)
    job = prepare(tiny_target, plugins, **settings)
    job.run(out=tmp_path / "run", on_step=lambda step: job.request_stop() if step == 6 else None)
    resumed = interpkit.invert(tiny_target, plugins, out=tmp_path / "run", resume=True, **settings)
    assert same_tensors(weights(whole), weights(resumed))
    untroubled = interpkit.invert(tiny_target, plugins, **settings)
    assert not same_tensors(weights(whole), weights(untroubled))  # batch norms see fewer images


def test_one_of_several_processes_does_not_recover_alone(tiny_target: interpkit.Target) -> None:
    net, rng = torch.nn.ModuleDict({"generator": torch.nn.Linear(1, 1)}), torch.Generator()
    objective = Objective(tiny_target, {}, torch.autocast("cpu", enabled=False))
    recipe = interpkit.Recipe(device="cpu", precision="fp32", steps=3)
    one_of_two = RecoverableTraining(
        net, torch.optim.Adam(net.parameters()), rng, objective, recipe, interpkit.Recorder(3)
    )
    one_of_two.world = World(0, 2)

    def loop() -> None:
        for _ in one_of_two.steps():
            raise MemoryError

    with pytest.raises(RunError, match="out of memory at step 1, with 64 images at a time"):
        one_of_two.drive(loop)


class Full(interpkit.Recorder):
    """Runs out of memory once a step is recorded."""

    def step(self, step: int, *values: Any) -> None:
        super().step(step, *values)
        raise MemoryError


def test_a_step_that_changed_the_weights_is_not_repeated(tiny_target: interpkit.Target) -> None:
    from interpkit.testing import inverters

    recorder = Full(4)
    with pytest.raises(MemoryError):
        inverters.run(GeneratorInverter, tiny_target, recorder)
    assert recorder.next_step == 2


@pytest.mark.parametrize("error", [RuntimeError("shapes do not fit"), ValueError("out of memory"), KeyError("x")])
def test_other_errors_do_not_count_as_out_of_memory(error: Exception) -> None:
    assert not is_out_of_memory(error)
