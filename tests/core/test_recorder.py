"""The recorder: one record each ten steps, and the first value that is not finite is named with its step."""

from __future__ import annotations

import pytest
import torch

from interpkit import Recorder, RunError, StepRecord

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
    """Give one step of four images, ``right`` of which the target puts in the class asked for."""
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


def test_callbacks_are_told_of_every_step_and_every_record() -> None:
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


def test_a_record_survives_its_row() -> None:
    record = StepRecord(10, 30, 1.25, 2.5, {"kl": 0.5, "my-term": 1.5}, 0.75)
    assert StepRecord.from_row(record.to_row(), 30) == record
    assert list(record.to_row()) == ["step", "seconds", "loss", "kl", "my-term", "inversion_accuracy"]
