"""`Queries`: answers are counted, limited, and paid for once."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import Tensor

from interpkit import Queries, QueryOptions, Recorder, RunError, UsageError, wrap
from interpkit.interfaces.components import options_of

IMAGES = torch.rand(10, 2, generator=torch.Generator().manual_seed(0))


class State:
    """A state with nothing in it but the queries."""

    def __init__(self, queries: Queries) -> None:
        self.queries = queries
        self.step = 0

    def state_dict(self) -> dict[str, Any]:
        return self.queries.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.queries.load_state_dict(state_dict)


class Kept(Recorder):
    """A recorder that keeps what it is asked to save, as a run folder does."""

    saved: Any = None

    def save(self, step: int, state: dict[str, Any]) -> None:
        self.saved = state

    def kept(self) -> str:
        return " It is in the run folder." if self.saved else ""


class Service(torch.nn.Module):
    """Answers with its input, and fails at one request; remembers how many images it was asked about."""

    def __init__(self, fails_at: int = -1, answer: float = 0.0) -> None:
        super().__init__()
        self.requests, self.seen, self.fails_at, self.answer = 0, 0, fails_at, answer

    def forward(self, x: Tensor) -> Tensor:
        self.requests += 1
        if self.requests == self.fails_at:
            raise ConnectionError("the service is down")
        self.seen += len(x)
        return x + self.answer


def queries_of(service: torch.nn.Module, **options: Any) -> Queries:
    queries = Queries(wrap(service, input_shape=(2,), output="logits", num_classes=2), batch_size=4)
    queries.options = options_of("asker", QueryOptions(**options))
    return queries


def test_images_are_counted_and_no_gradient_is_kept() -> None:
    queries = queries_of(Service())
    answers = queries(IMAGES.clone().requires_grad_())
    assert torch.equal(answers, IMAGES) and not answers.requires_grad
    assert queries.asked == 10 and queries.left is None


def test_the_budget_is_never_exceeded() -> None:
    service = Service()
    queries = queries_of(service, budget=12)
    already = service.seen
    queries(IMAGES)
    with pytest.raises(UsageError, match=r"12 queries leaves 2, and 10 are needed.*new run.*'asker.budget': 20"):
        queries(IMAGES)
    assert (queries.asked, queries.left, service.seen - already) == (10, 2, 10)


def test_a_budget_too_small_for_all_images_costs_no_query() -> None:
    service = Service()
    queries, already = queries_of(service, budget=9), service.seen
    with pytest.raises(UsageError, match=r"9 queries leaves 9, and 10 are needed.*'asker.budget': 10\}") as failure:
        queries.collect(IMAGES, Kept(1), State(queries))
    assert service.seen == already and "resume" not in str(failure.value)


def test_it_waits_after_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, waits = queries_of(Service(), pause=1.5), []
    monkeypatch.setattr(time, "sleep", waits.append)
    queries(IMAGES)
    assert waits == [1.5, 1.5, 1.5]


def test_answers_that_were_paid_for_are_kept_when_the_classifier_fails() -> None:
    service = Service()
    queries = queries_of(service)
    service.fails_at = service.requests + 3
    recorder = Kept(1)
    with pytest.raises(RunError, match=r"failed at query 9: the service is down.*8 answers so far are kept"):
        queries.collect(IMAGES, recorder, State(queries))
    again, already = queries_of(service), service.seen
    again.load_state_dict(recorder.saved)
    assert torch.equal(again.collect(IMAGES, Recorder(1), State(again)), IMAGES)
    assert again.asked == 10 and service.seen - already <= 2 + 4  # and what wrapping it tries


def test_answers_are_kept_when_the_user_stops() -> None:
    queries, recorder = queries_of(Service()), Kept(1)
    recorder.stop_requested = True
    with pytest.raises(KeyboardInterrupt):
        queries.collect(IMAGES, recorder, State(queries))


def test_a_trial_queries_nothing() -> None:
    service, recorder = Service(), Recorder(1)
    queries, already = queries_of(service), service.seen
    recorder.trial = True
    assert queries.collect(IMAGES, recorder, State(queries)).shape == (len(IMAGES), 2)
    assert (queries.asked, service.seen) == (0, already)


def test_an_answer_that_is_not_a_number_is_refused() -> None:
    queries = queries_of(Service())
    queries.target.forward = lambda images: images + torch.nan  # type: ignore[method-assign]
    with pytest.raises(RunError, match="queries 1 to 4 with values that are not finite"):
        queries(IMAGES)


def test_a_state_of_another_classifier_is_refused() -> None:
    with pytest.raises(RunError, match="does not fit its recipe"):
        queries_of(Service()).load_state_dict({"asked": 3, "answers": torch.zeros(3, 7)})
