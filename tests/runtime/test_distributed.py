"""A batch shared by two processes equals that of one process: the same terms, gradients and statistics."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import interpkit
from interpkit.errors import UsageError
from interpkit.runtime import micro_batch, torchrun
from interpkit.runtime.distributed import World
from interpkit.runtime.micro_batch import in_micro_batches

TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SCRIPT = Path(__file__).with_name("shared_by_two.py")


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the results of shared_by_two.py in two processes and in one."""
    folder = tmp_path_factory.mktemp("shared")
    results = {}
    for name, start in (("one", [sys.executable]), ("two", TWO)):
        result = subprocess.run([*start, str(SCRIPT), str(folder / f"{name}.pt")], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        results[name] = torch.load(folder / f"{name}.pt", weights_only=True)
    return results


def assert_close(one: Any, two: Any, tolerance: float) -> None:
    assert type(one) is type(two)
    if isinstance(one, Tensor):
        torch.testing.assert_close(two, one, rtol=tolerance, atol=tolerance)
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_close(one[key], two[key], tolerance)
    else:
        assert one == pytest.approx(two, rel=tolerance)


@pytest.mark.parametrize(
    "what",
    [
        "rows",
        "uneven rows",
        "batch norm",
        "batch norm of vectors",
        "batch norm in volumes",
        "cosine gradient",
        "flags",
        "from first",
    ],
)
def test_two_processes_compute_the_same_as_one(by_two: dict[str, Any], what: str) -> None:
    assert_close(by_two["one"][what], by_two["two"][what], 1e-5)


def test_batch_norm_of_two_processes_in_bf16_is_off_by_its_rounding(by_two: dict[str, Any]) -> None:
    one, two = (by_two[number]["batch norm in bf16"] for number in ("one", "two"))
    assert_close(one["state"], two["state"], 1e-5)
    assert_close(one["out"], two["out"], 2e-2)
    for name, gradient in one["gradients"].items():
        assert (two["gradients"][name] - gradient).norm() <= 1e-2 * gradient.norm() + 1e-4, name


def test_the_threads_of_the_group_end_with_it(by_two: dict[str, Any]) -> None:
    assert by_two["two"]["threads left"] == []


def test_two_processes_write_the_shards_of_one(by_two: dict[str, Any]) -> None:
    assert len(by_two["one"]["shards"]) == 6
    assert by_two["one"]["shards"] == by_two["two"]["shards"]


@pytest.mark.parametrize("run", ["plain", "robust", "two generators", "four generators"])
def test_a_run_of_two_processes_equals_a_run_of_one(by_two: dict[str, Any], run: str) -> None:
    one, two = by_two["one"]["runs"][run], by_two["two"]["runs"][run]
    assert len(one["losses"]) == len(two["losses"]) == 2  # the first step and the last
    assert one["losses"] == pytest.approx(two["losses"], rel=1e-4)
    assert one["losses"][0] != pytest.approx(one["losses"][-1], rel=1e-2)  # something was learned
    # Adam divides by a gradient's size, which amplifies the rounding of tiny gradients: hence not every weight.
    for name, value in one["weights"].items():
        off = (value - two["weights"][name]).abs() > 1e-3
        assert off.float().mean() < 0.02, name


def test_a_run_of_two_processes_resumes_where_it_was_stopped(by_two: dict[str, Any]) -> None:
    runs = by_two["two"]["resumed"]
    assert_close(runs["whole"], runs["in two parts"], 0.0)


def test_two_processes_return_to_a_good_state_together_when_their_run_diverges(by_two: dict[str, Any]) -> None:
    reason = "the term 'steep' exploded at step 26 (plugin 'mine'), from about 1 to 1e+06"
    for name in ("one", "two"):
        runs = by_two[name]["diverging"]
        assert runs["lowered_rate"] == [{"factor": 0.3, "after_step": 10, "reason": reason}] * 2
        assert_close(runs["whole"], runs["in two parts"], 0.0)


def test_a_process_that_ends_is_named_by_the_others(tmp_path: Path) -> None:
    command = [*TWO, str(SCRIPT), str(tmp_path / "message"), "lose"]
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0
    message = (tmp_path / "message").read_text("utf-8")
    assert message.startswith("process 1 of 2 ended")
    assert "resume=True" in message


# ------------------------------------------------------------------------------------------ alone


def test_a_single_process_shares_nothing() -> None:
    world, rows, buffer = World.current(), torch.arange(6.0), torch.ones(2)
    assert (world.rank, world.size) == (0, 1)
    assert world.rows(5, torch.device("cpu")).tolist() == [0, 1, 2, 3, 4]
    assert world.all_gather(6, rows)[0] is rows
    assert world.any_rank(True, False) == [True, False]
    assert world.broadcast("x") == "x"
    assert world.all_gather_object(3) == [3]
    world.broadcast_tensor(buffer, 0)
    assert buffer.tolist() == [1, 1]
    assert (torchrun.RANK, torchrun.WORLD_SIZE, torchrun.RESTARTED) == (0, 1, False)


@pytest.mark.parametrize(
    ("size", "batch", "generators", "words"),
    [
        (2, 8, 3, "generators=2"),
        (4, 8, 6, "generators=4"),
        (3, 8, 1, "batch_size=9"),
        (4, 2, 1, "batch_size=4"),
    ],
)
def test_a_batch_that_cannot_be_shared_is_reported_with_sizes_that_can(
    size: int, batch: int, generators: int, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        World(0, size).check(batch, generators)


@pytest.mark.parametrize(("size", "generators"), [(1, 5), (2, 1), (2, 4), (4, 2), (3, 3)])
def test_multiples_can_be_shared(size: int, generators: int) -> None:
    shares = [World(rank, size) for rank in range(size)]
    for share in shares:
        share.check(12, generators)
    rows = [share.rows(12, torch.device("cpu")).tolist() for share in shares]
    assert {len(part) for part in rows} == {12 // size}  # and no row is held twice
    assert sorted(row for part in rows for row in part) == list(range(12))


@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_the_processes_rows_are_all_rows(count: int) -> None:
    parts = [World(rank, 3).rows(count, torch.device("cpu")) for rank in range(3)]
    assert len({len(part) for part in parts}) == 1
    assert torch.stack(parts, 1).flatten()[:count].tolist() == list(range(count))


# ----------------------------------------------------------------------------------------- pieces


class Layers(nn.Sequential):
    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(3, 5), nn.Dropout(0.5), nn.ReLU(), nn.Linear(5, 2))


def test_micro_batches_have_the_gradients_of_the_whole_batch() -> None:
    x = torch.randn(7, 3)
    gradients = []
    for size in (None, 3):
        network = Layers()
        network[1].p = 0.0
        out = torch.cat(in_micro_batches(lambda rows, net=network: net(x[rows]), torch.arange(7), size, network))
        out.square().mean().backward()
        gradients.append([p.grad for p in network.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_micro_batch_is_computed_twice_with_the_same_dropout() -> None:
    network, x, seen = Layers(), torch.randn(6, 3), []

    def make(rows: Tensor) -> Tensor:
        out: Tensor = network(x[rows])
        seen.append(out.detach())
        return out

    torch.cat(in_micro_batches(make, torch.arange(6), 2, network)).sum().backward()
    assert len(seen) == 6
    first, again = seen[:3], seen[:2:-1]  # the backward pass starts with the last piece
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_micro_batch_enters_the_running_statistics_once() -> None:
    x = torch.randn(8, 3)
    norms = []
    for size in (None, 8, 4):
        norm = nn.BatchNorm1d(3)
        if size == 4:
            torch.cat(in_micro_batches(lambda rows, n=norm: n(x[rows]), torch.arange(8), size, norm)).sum().backward()
        else:
            for rows in torch.arange(8).split(4):
                norm(x[rows])
        norms.append(norm.state_dict())
    for state in norms[1:]:
        torch.testing.assert_close(norms[0], state)


def test_where_torch_keeps_no_random_state_a_piece_draws_as_the_first_time(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"at": 0}  # as torch.mps has one
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: torch.tensor(state["at"]))
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda to: state.update(at=int(to)))
    drawn, states = [], dict[int, torch.Tensor]()
    for number in (0, 1, 1, 0):
        with micro_batch._on_mps(states, number):
            drawn.append(state["at"])
            state["at"] += 1
    assert drawn == [0, 1, 1, 0] and state["at"] == 2


def test_a_run_in_micro_batches_has_the_terms_of_a_run_at_once(tiny_target: interpkit.Target) -> None:
    """Without batch norm in the generator, because a batch norm sees one piece at a time."""
    runs = [
        interpkit.invert(
            tiny_target, ["vecmat"], steps=3, batch_size=8, generator="warp", micro_batch=size, precision="fp32",
            losses={"robust": 0.5}, options={"sampling.dropout": False, "warp.dropout": 0.0},
        )
        for size in (None, 8, 3)
    ]  # fmt: skip
    first = [run.history[0].loss for run in runs]
    assert first[1] == pytest.approx(first[0], rel=1e-5)
    assert first[2] == pytest.approx(first[0], rel=0.2)


def test_an_inverter_that_cannot_share_its_batches_is_refused(
    tiny_target: interpkit.Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(World, "current", lambda: World(0, 2))
    with pytest.raises(UsageError, match=r"'pixels' runs in one process, and there are 2: start it without torchrun"):
        interpkit.invert(tiny_target, ["pixels"], steps=1)
