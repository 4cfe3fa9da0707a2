"""The recorder: one record every ten steps, and the first non-finite value is named with its step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from interpkit import Recorder, RunError, StepRecord
from interpkit.errors import DivergedError
from interpkit.runtime.mode_collapse import Collapse

NAN, INF = float("nan"), float("inf")


def feed(
    recorder: Recorder,
    step: int,
    *,
    image: float = 0.5,
    logit: float = 1.0,
    terms: dict[str, float] | None = None,
    loss: float | None = None,
    right: int = 2,
) -> None:
    """Record one step of four images, ``right`` of which the target assigns to the requested class."""
    values = {name: torch.tensor(value) for name, value in (terms or {"kl": 1.0, "ce": 2.0}).items()}
    images = torch.full((4, 1, 2, 2), 0.5)
    images[1, 0, 0, 1] = image
    logits = torch.tensor([[logit, 0.0]]).repeat(4, 1)
    labels = torch.tensor([0] * right + [1] * (4 - right))
    total = torch.tensor(float(step) if loss is None else loss)
    recorder.step(step, total, values, images, logits, labels)


def test_the_first_every_tenth_and_the_last_step_are_recorded() -> None:
    recorder = Recorder(34)
    for step in range(1, 35):
        feed(recorder, step)
    assert [record.step for record in recorder.history] == [1, 10, 20, 30, 34]
    assert {record.steps for record in recorder.history} == {34}


def test_a_record_holds_the_values_of_its_own_step() -> None:
    recorder = Recorder(10)
    for step in range(1, 11):
        feed(recorder, step, terms={"kl": step / 2, "ce": step / 4})
    last = recorder.history[-1]
    assert (last.loss, last.terms) == (10.0, {"kl": 5.0, "ce": 2.5})
    assert list(last.terms) == ["kl", "ce"]


def test_accuracy_is_averaged_over_the_steps_since_the_last_record() -> None:
    recorder = Recorder(12)
    rights = [4, 0, 1, 2, 3, 4, 0, 1, 2, 3, 1, 2]
    for step, right in enumerate(rights, 1):
        feed(recorder, step, right=right)
    expected = [4 / 4, sum(rights[1:10]) / 9 / 4, sum(rights[10:]) / 2 / 4]
    assert [record.inversion_accuracy for record in recorder.history] == pytest.approx(expected)


def test_callbacks_receive_every_step_and_every_record() -> None:
    steps: list[int] = []
    records: list[StepRecord] = []
    recorder = Recorder(11, on_step=steps.append, on_record=records.append)
    for step in range(1, 12):
        feed(recorder, step)
    assert steps == list(range(1, 12))
    assert records == recorder.history


def test_seconds_run_from_the_start_and_never_backwards() -> None:
    recorder = Recorder(20)
    assert recorder.seconds == 0.0
    recorder.start()
    for step in range(1, 21):
        feed(recorder, step)
    seconds = [record.seconds for record in recorder.history]
    assert seconds == sorted(seconds) and seconds[0] > 0


@pytest.mark.parametrize(
    ("fault", "culprit"),
    [
        ({"image": NAN, "logit": NAN, "loss": NAN}, "the generator's images"),
        ({"image": INF}, "the generator's images"),
        ({"image": -INF}, "the generator's images"),
        ({"logit": NAN, "loss": NAN}, "the target's logits"),
        ({"logit": INF}, "the target's logits"),
        ({"logit": -INF}, "the target's logits"),
        ({"terms": {"kl": 1.0, "ce": NAN}, "loss": NAN}, "the term 'ce'"),
        ({"terms": {"kl": -INF, "ce": NAN}, "loss": NAN}, "the term 'kl'"),
        ({"loss": INF}, "the loss"),
    ],
)
@pytest.mark.parametrize("step", [1, 4, 10, 13])
def test_the_first_value_that_is_not_finite_is_named_with_its_step(
    fault: dict[str, object], culprit: str, step: int
) -> None:
    recorder = Recorder(13)

    def run() -> None:
        for number in range(1, 14):
            feed(recorder, number, **(fault if number >= step else {}))

    with pytest.raises(RunError, match=rf"^{culprit} turned non-finite at step {step}\. Try"):
        run()
    assert all(record.step < step for record in recorder.history)


@pytest.mark.parametrize(
    ("image", "words"), [(-0.5, r"left \[0, 1\] by 0\.5 at step 1"), (1.7, r"left \[0, 1\] by 0\.7")]
)
def test_images_outside_the_unit_range_are_reported_on_either_side(image: float, words: str) -> None:
    with pytest.raises(RunError, match=words):
        feed(Recorder(1), 1, image=image)
    feed(Recorder(1), 1, image=-0.0005)  # rounding


def test_a_faulty_step_is_never_recorded_even_if_the_recorder_is_flushed_again() -> None:
    recorder = Recorder(20)
    feed(recorder, 1)
    feed(recorder, 2, loss=NAN)
    with pytest.raises(RunError):
        recorder.flush()
    recorder.flush()
    assert [record.step for record in recorder.history] == [1]


def test_a_step_between_records_is_recorded_when_the_run_is_stopped_there() -> None:
    recorder = Recorder(20)
    for step in range(1, 5):
        feed(recorder, step)
    recorder.flush()
    assert [record.step for record in recorder.history] == [1, 4]


def test_values_are_kept_without_their_graph() -> None:
    recorder = Recorder(5)
    weight = torch.ones((), requires_grad=True)
    logits = torch.rand(2, 2) * weight
    recorder.step(2, weight * 2, {"kl": weight * 1}, torch.rand(2, 1, 2, 2), logits, torch.tensor([0, 1]))
    assert all(not values.requires_grad for _, values in recorder._pending)


def test_half_precision_values_are_recorded_as_they_are() -> None:
    recorder = Recorder(1)
    half = torch.tensor(0.5, dtype=torch.bfloat16)
    recorder.step(1, half, {"kl": half}, torch.rand(2, 4), torch.rand(2, 2).bfloat16(), torch.tensor([0, 1]))
    assert recorder.history[0].loss == recorder.history[0].terms["kl"] == 0.5


def test_a_record_survives_conversion_to_a_row_and_back() -> None:
    record = StepRecord(10, 30, 1.25, 2.5, {"kl": 0.5, "my-term": 1.5}, 0.75)
    assert StepRecord.from_row(record.to_row(), 30) == record
    assert list(record.to_row()) == ["step", "seconds", "loss", "kl", "my-term", "inversion_accuracy"]


# -------------------------------------------------------------------------------------------- exploding


def losses(values: list[float], steps: int | None = None) -> Recorder:
    """Record steps with these losses, where the term ``kl`` equals the loss and ``ce`` is constant."""
    recorder = Recorder(steps or len(values))
    for step, value in enumerate(values, 1):
        feed(recorder, step, loss=value, terms={"kl": value, "ce": 2.0})
    return recorder


def test_a_loss_that_explodes_is_caught_at_its_step_and_the_term_that_grew_is_named() -> None:
    with pytest.raises(
        DivergedError, match=r"^the term 'kl' exploded at step 37, from about 5 to 6e\+03\. Try"
    ) as caught:
        losses([5.0] * 36 + [6000.0] * 4)
    assert (caught.value.step, caught.value.what) == (37, "the term 'kl' exploded at step 37, from about 5 to 6e+03")
    with pytest.raises(DivergedError, match="exploded at step 12, from about 5 to -6e"):
        losses([5.0] * 11 + [-6000.0] * 9)


@pytest.mark.parametrize(
    "values",
    [
        [5.0] * 36 + [4900.0] * 4,  # the limit is a thousand times the usual size
        [1e6] + [5.0] * 30 + [1e8] * 9,  # the first value was as high
        [1e-6] * 30 + [900.0] * 10,  # from nearly nothing
        [10.0 ** (step // 100) for step in range(400)],  # slowly, so the usual size grows with it
        [0.0] * 20 + [-3.0] * 20,
    ],
)
def test_a_loss_that_is_only_large_or_grows_slowly_does_not_explode(values: list[float]) -> None:
    assert losses(values).history[-1].loss == pytest.approx(values[-1])


def test_a_term_that_is_always_large_is_not_named_as_the_one_that_exploded() -> None:
    recorder = Recorder(20)
    for step in range(1, 20):
        after = step >= 15
        feed(recorder, step, loss=5e4 if after else 20.0, terms={"kl": 1e5 + after, "ce": 5e4 if after else 0.001})
    with pytest.raises(DivergedError, match="the term 'ce' exploded at step 15, from about 1 to 5e"):
        recorder.flush()


def test_the_usual_size_of_values_survives_a_checkpoint() -> None:
    """A recorder resumed from a checkpoint, and one of another process without a history, decide alike."""
    before = losses([5.0] * 33, steps=60)
    for recorder in (Recorder(60), Recorder(60)):
        recorder.take_up({**before.state(), "step": 33})
        assert recorder.next_step == 34
        feed(recorder, 34, loss=4900.0)
        feed(recorder, 35, loss=5100.0, terms={"kl": 5100.0, "ce": 2.0})
        with pytest.raises(DivergedError, match="'kl' exploded at step 35"):
            recorder.flush()


@pytest.mark.parametrize(
    "spoilt",
    [
        {"checked": [(1, [1.0])]},
        {"checked": [("one", [1.0] * 6)]},
        {"checked": 3},
        {"recent": [["a"] * 6]},
        {"recent": [[1.0] * 5]},
        {"names": [1, 2]},
        {"recorded": "now"},
        {"collapse": {}},
        {"collapse": {"told": {}, "seen": torch.zeros(4, 9)}},
        {"collapse": {"told": {1: "x"}, "seen": torch.zeros(4, 2)}},
    ],
)
def test_a_checkpoint_with_other_values_is_refused(spoilt: dict[str, Any]) -> None:
    state = {**losses([1.0] * 13, steps=20).state(), "step": 13, "collapse": Collapse(2).state()}
    recorder = Recorder(20, class_names=["a", "b"])
    recorder.history = losses([1.0] * 10, steps=20).history
    recorder.take_up(state)
    with pytest.raises(RunError, match="the checkpoint does not fit its recipe"):
        recorder.take_up(state | spoilt)


# ------------------------------------------------------------------------------------------- long runs


@pytest.mark.parametrize(("steps", "every"), [(100_000, 10), (100_001, 20), (1_000_000, 100), (3_333_333, 340)])
def test_a_long_run_is_recorded_more_rarely(steps: int, every: int) -> None:
    recorder = Recorder(steps)
    for step in range(1, 2 * every + 6):
        feed(recorder, step)
    assert [record.step for record in recorder.history] == [1, every, 2 * every]
    recorder.flush()
    assert recorder.history[-1].step == 2 * every + 5


def test_accuracy_of_a_long_run_is_averaged_over_all_steps_since_the_last_record() -> None:
    recorder = Recorder(1_000_000)
    for step in range(1, 101):
        feed(recorder, step, right=4 if step <= 51 else 0)
    assert [record.inversion_accuracy for record in recorder.history] == pytest.approx([1.0, 50 / 99])


def test_values_of_a_long_run_are_checked_as_often_as_ever() -> None:
    recorder = Recorder(1_000_000)
    for step in range(1, 40):
        feed(recorder, step, loss=NAN if step >= 33 else 1.0)
    with pytest.raises(DivergedError, match="non-finite at step 33"):
        feed(recorder, 40, loss=NAN)
