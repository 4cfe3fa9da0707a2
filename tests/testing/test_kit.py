"""The kit itself: what it says, waivers, cases of pytest, fixtures, the second device, two processes, the shell."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner, Result

import interpkit
from interpkit import InversionLoss, Loader, UsageError, testing
from interpkit.cli import app
from interpkit.testing import parts, toy_models
from interpkit.testing.checks import Broken
from interpkit.testing.second_device import SECOND, OtherDeviceError, second_device
from interpkit.testing.two_processes import SCRIPT, Importable, in_both

pytest_plugins = ["pytester"]


class Brightness(InversionLoss):
    """Mean brightness."""

    name = "brightness"

    def forward(self, batch: Any) -> Tensor:
        return batch.images.mean()


class Sum(InversionLoss):
    """It grows with the batch, and keeps numpy busy."""

    name = "sum"

    def forward(self, batch: Any) -> Tensor:
        return batch.images.sum() + 0 * np.random.rand()


class Excused(Sum):
    """The same, with an excuse of its own."""

    name = "excused"
    waivers: ClassVar = {"batch-mean": "it counts on purpose"}


class Outspoken(Brightness):
    """It cannot be built."""

    name = "outspoken"

    def __init__(self, target: Any, options: Any = None) -> None:
        raise ZeroDivisionError("at least it says so")


class Leaving(Brightness):
    """It ends the process."""

    name = "leaving"

    def forward(self, batch: Any) -> Tensor:
        raise SystemExit(3)


# ---------------------------------------------------------------------------------------- what it says


def test_a_component_that_exits_the_process_only_fails_its_checks() -> None:
    scalar = next(check for check in testing.checks_of(Leaving) if check.name == "scalar")
    with pytest.raises(testing.CheckFailed, match=r"seen: .*SystemExit: 3 \(.*test_kit\.py, line \d+\)"):
        scalar(Leaving)


def test_a_failure_lists_each_failed_check_with_its_finding_and_remedy() -> None:
    with pytest.raises(testing.CheckFailed) as caught:
        testing.check_loss(Sum)
    message = str(caught.value)
    assert message.startswith("the loss 'sum' violates the contract of its interface:")
    assert "batch-mean: its size does not grow with the batch" in message
    assert re.search(r"seen: \d+\.?\d* for 8 random images, \d+\.?\d* for 64", message)
    assert "mend: take the mean over the batch, not the sum." in message
    assert isinstance(caught.value, AssertionError)
    assert [outcome.check.name for outcome in caught.value.broken] == ["batch-mean"]


def test_one_check_can_be_called_by_itself() -> None:
    checks = {check.name: check for check in testing.checks_of(Sum)}
    checks["scalar"](Sum)
    with pytest.raises(testing.CheckFailed, match="batch-mean"):
        checks["batch-mean"](Sum)


def test_a_component_that_cannot_be_built_fails_once_and_is_not_checked_further() -> None:
    found = list(testing.outcomes(Outspoken))
    assert (found[0].check.name, found[0].status) == ("builds", "broken")
    assert re.search(r"ZeroDivisionError: at least it says so \(.*test_kit\.py, line \d+\)", found[0].detail)
    assert {outcome.status for outcome in found[1:]} == {"unchecked"}
    with pytest.raises(testing.CheckFailed, match="violates the contract"):
        testing.check_loss(Outspoken)


def test_every_check_says_what_is_promised_and_how_to_mend_it() -> None:
    for kind in (*testing.checks.COMPONENTS, "loader", "target"):
        checks = testing.checks.checks_of_kind(kind)
        assert len({check.name for check in checks}) == len(checks)
        for check in checks:
            assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", check.name)
            assert len(check.promise) > 20 and len(check.remedy) > 20
            assert not check.promise.endswith(".") and not check.remedy.endswith(".")


def test_checks_leave_every_global_generator_as_it_was() -> None:
    def states() -> list[Any]:
        return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]

    before = states()
    list(testing.outcomes(Sum))
    assert states() == before


@pytest.mark.parametrize(
    "thing",
    [dict, interpkit.Preset("x", {}, "x"), Brightness(toy_models.tiny_target())],
    ids=["dict", "preset", "instance"],
)
def test_an_object_without_checks_is_refused(thing: Any) -> None:
    with pytest.raises(UsageError, match="cannot be checked: pass a class of conditioner, generator, loss"):
        testing.checks_of(thing)


def test_a_component_of_another_kind_names_its_check_function() -> None:
    with pytest.raises(UsageError, match=r"'brightness' is a loss, not a metric: call check_loss\."):
        testing.check_metric(Brightness)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------- waivers


def test_a_waiver_leaves_a_check_out_and_keeps_its_reason() -> None:
    testing.check_loss(Sum, waive={"batch-mean": "it counts"})
    found = {outcome.check.name: outcome for outcome in testing.outcomes(Sum, {"batch-mean": "it counts"})}
    assert (found["batch-mean"].status, found["batch-mean"].detail) == ("waived", "it counts")


def test_a_component_may_bring_waivers() -> None:
    testing.check_loss(Excused)
    waived = [outcome for outcome in testing.outcomes(Excused) if outcome.status == "waived"]
    assert [(w.check.name, w.detail) for w in waived] == [("batch-mean", "it counts on purpose")]


@pytest.mark.parametrize(
    ("waive", "words"),
    [
        ({"batch-maen": "why"}, "no check 'batch-maen' of a loss to waive. Did you mean 'batch-mean'"),
        ({"batch-mean": " "}, "the waiver of 'batch-mean' needs a reason"),
    ],
)
def test_a_waiver_of_nothing_or_for_no_reason_is_refused(waive: dict[str, str], words: str) -> None:
    for call in (
        lambda: testing.check_loss(Sum, waive=waive),
        lambda: testing.parametrize_with_checks([Sum], waive=waive),
    ):
        with pytest.raises(UsageError, match=re.escape(words)):
            call()


# ---------------------------------------------------------------------------------------------- pytest

SUITE = """
from interpkit import InversionLoss, Metric, testing

class Sum(InversionLoss):
    '''It grows with the batch.'''
    name = "sum"
    def forward(self, batch):
        return batch.images.sum()

class Count(Metric):
    '''Samples.'''
    name = "how-many"
    def measure(self, study):
        return {"how-many": len(study.images)}

@testing.parametrize_with_checks([Sum, Count], waive=WAIVE)
def test_satisfies_its_contract(component, check):
    check(component)
"""


def test_cases_are_named_after_component_and_check_and_waived_ones_are_skipped(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(SUITE.replace("WAIVE", "{'device': 'we have one device'}"))
    losses, metrics = (len(testing.checks.checks_of_kind(kind)) for kind in ("loss", "metric"))
    result = pytester.runpytest_inprocess("-rs", "-v", "-p", "no:cacheprovider")
    outcomes = result.parseoutcomes()
    assert outcomes == {"passed": losses + metrics - 3, "skipped": 2, "failed": 1}
    result.stdout.fnmatch_lines(["*SKIPPED*we have one device*"])
    result.stdout.fnmatch_lines(["*::test_satisfies_its_contract?sum-batch-mean? FAILED*"])
    result.stdout.fnmatch_lines(["*mend: take the mean over the batch, not the sum.*"])


@pytest.mark.parametrize("waive", ["{'no-such-check': 'x'}", "{'device': ''}"])
def test_a_wrong_waiver_ends_the_collection(pytester: pytest.Pytester, waive: str) -> None:
    pytester.makepyfile(SUITE.replace("WAIVE", waive))
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*UsageError*"])


def test_fixtures_come_with_interpkit_and_are_each_tests_own(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        import torch

        seen = []

        @pytest.mark.parametrize("turn", [1, 2])
        def test_target(tiny_target, turn):
            assert tiny_target.input_shape == (1, 12, 12) and tiny_target.num_classes == 3
            assert all(weight.abs().max().item() < 1e6 for weight in tiny_target.parameters())
            for weight in tiny_target.parameters():
                weight.data += 1e9

        def test_target_is_trained(tiny_target):
            from interpkit.testing.toy_models import Pictures
            images, labels = Pictures((1, 12, 12), 3).draw(300, 1000)
            assert (tiny_target(images).argmax(1) == labels).float().mean() > 0.95

        def test_inversion(tiny_inversion, tmp_path):
            images, labels = tiny_inversion.sample(4)
            assert images.shape == (12, 1, 12, 12) and tiny_inversion.steps_done == 30
            tiny_inversion.save(tmp_path / "run")
            assert (tmp_path / "run" / "samples.safetensors").exists()
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    assert result.parseoutcomes() == {"passed": 4}


def test_the_pytest_plugin_imports_no_torch(run_python: Callable[..., Any]) -> None:
    code = "import interpkit.testing.fixtures, sys; print(sorted({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"
    run = run_python("-c", code)
    assert (run.returncode, run.stdout.strip()) == (0, "[]"), run.stderr


# --------------------------------------------------------------------------------------- second device


def test_on_the_second_device_values_and_gradients_are_those_of_the_cpu() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 4))
    images, labels = torch.rand(5, 1, 8, 8), torch.tensor([0, 1, 2, 3, 0])
    here = nn.functional.cross_entropy(net(images), labels)
    wanted = torch.autograd.grad(here, list(net.parameters()))
    net[1].reset_running_stats()
    with second_device() as device:
        net.to(device)
        assert {p.device for p in net.parameters()} == {SECOND}
        there = nn.functional.cross_entropy(net(images.to(device)), labels.to(device))
        there.backward()
        assert there.device == SECOND
        assert there.item() == pytest.approx(here.item())
        for parameter, slope in zip(net.parameters(), wanted, strict=True):
            assert parameter.grad is not None
            assert torch.allclose(parameter.grad.cpu(), slope, atol=1e-6)


def test_what_is_made_on_the_second_device_stays_there() -> None:
    rng = torch.Generator().manual_seed(3)
    wanted = torch.randn(2, 3, generator=torch.Generator().manual_seed(3)).tolist()
    with second_device() as device:
        x = torch.randn(2, 3, device=device, generator=rng)
        assert x.tolist() == wanted
        for tensor in (x.new_zeros(2), torch.zeros_like(x), torch.tensor([1.0], device=device), x.new_tensor([1, 2])):
            assert tensor.device == SECOND
        for tensor in (torch.zeros(2), torch.ones(2, device="cpu"), x.cpu()):
            assert tensor.device == toy_models.CPU
        x[0].zero_()  # a view
        assert x.tolist()[0] == [0, 0, 0]
        assert bool((x == x).all()) and (x > 0).nonzero().device == SECOND


def test_tensors_of_two_devices_do_not_meet() -> None:
    with second_device() as device:
        x = torch.ones(3, 3, device=device)
        for mix in (
            lambda: x + torch.ones(3),
            lambda: x @ torch.ones(3, 3),
            lambda: torch.cat([x, torch.ones(1, 3)]),
            lambda: torch.ones(3, 3)[x > 0],
            lambda: torch.stack([x.sum(), torch.tensor(1.0)]),
        ):
            with pytest.raises(OtherDeviceError, match="tensors of two devices"):
                mix()
        with pytest.raises(TypeError, match="no numpy array"):
            x.numpy()
        # as on CUDA: a number, and indices, may be on the CPU
        assert (x * torch.tensor(2.0)).tolist() == [[2.0] * 3] * 3
        assert x[torch.tensor([0, 2])].shape == (2, 3)


# --------------------------------------------------------------------------------------- two processes


class Unruly(toy_models.PlainConditioner):
    """It talks, and fails in one process while the other waits for it."""

    name = "unruly"

    def sample(self, *arguments: Any, **named: Any) -> Any:
        print("printed text is not a result")  # noqa: T201
        if torch.distributed.is_initialized() and torch.distributed.get_rank() == 1:
            raise KeyError("not here")
        return super().sample(*arguments, **named)


def test_a_process_that_fails_alone_is_reported_and_both_processes_are_replaced() -> None:
    first = in_both(os.getpid)
    assert len({*first, os.getpid()}) == 3
    assert in_both(os.getpid) == first
    with pytest.raises(Broken, match="in one of two processes: KeyError: 'not here'"):
        in_both(parts.step_in_process, Importable.of(Unruly))
    again = in_both(os.getpid)
    assert not set(again) & set(first)


def test_a_process_that_was_killed_is_reported_and_both_are_replaced() -> None:
    first = in_both(os.getpid)
    os.kill(first[0], signal.SIGKILL)
    with pytest.raises(Broken, match="in one of two processes: the process ended"):
        in_both(os.getpid)
    assert not set(in_both(os.getpid)) & set(first)


def test_a_class_inside_a_function_cannot_be_checked_in_two_processes() -> None:
    class Hidden(Brightness):
        """It cannot be imported."""

        name = "hidden"

    found = {o.check.name: o.detail for o in testing.outcomes(Hidden) if o.status == "broken"}
    assert set(found) == {"picklable", "two-processes"}
    assert "defined inside a function" in found["two-processes"]


INK = """
from shade import dark
import interpkit
from interpkit import testing

class Ink(interpkit.InversionLoss):
    def forward(self, batch):
        return dark(batch.images.sum())

testing.check_loss(Ink)  # which fails: it is a sum, and has no name
"""


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Path]:
    """Return a script that checks its own class as it runs, and imports a module beside it."""
    (tmp_path / "shade.py").write_text("def dark(value):\n    return -value\n")
    (tmp_path / "ink.py").write_text(INK)
    yield tmp_path / "ink.py"
    for name in (SCRIPT, "interpkit_file_ink", "shade"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("module", [SCRIPT, "interpkit_file_ink"])
def test_a_class_of_a_script_or_a_plugin_file_is_imported_without_its_checks(script: Path, module: str) -> None:
    assert issubclass(Importable(module, "Ink", str(script)).load(), InversionLoss)
    assert str(script.parent) not in sys.path
    with pytest.raises(testing.CheckFailed):  # elsewhere checks run
        testing.check_loss(Sum)


def test_a_class_of_the_main_script_is_imported_from_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__file__", __file__, raising=False)  # workers of xdist have none
    made = Importable.of(type("Made", (Brightness,), {"__module__": "__main__"}))
    assert made.module == SCRIPT and made.file == __file__


def test_a_class_of_a_notebook_cannot_be_checked_in_two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    with pytest.raises(Broken, match=r"Made is in no file, .* move it into a file of Python"):
        Importable.of(type("Made", (Brightness,), {"__module__": "__main__"}))


# ------------------------------------------------------------------------------------------- the shell


def cli(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["plugins", "check", *arguments])


@pytest.fixture
def mine(add_plugin: Callable[..., None]) -> None:
    """Have a plugin named mine: a loss that is right, one that is not, one with an excuse, and a preset."""
    add_plugin(Brightness, Sum, Excused, interpkit.Preset("mine", {}, "nothing"))


@pytest.mark.usefixtures("mine")
def test_plugins_check_prints_a_line_a_component_and_what_is_broken() -> None:
    result = cli("mine")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    count = len(testing.checks_of(Sum))
    assert lines[:3] == [
        f"loss brightness: {count} kept",
        f"loss sum: {count - 1} kept, 1 broken",
        "  broken batch-mean: its size does not grow with the batch, so that a weight means the same for any batch "
        "size.",
    ]
    assert lines[3].startswith("    seen: ")
    assert lines[4] == "    mend: take the mean over the batch, not the sum."
    assert lines[5:] == [
        f"loss excused: {count - 1} kept, 1 waived",
        "  waived batch-mean: it counts on purpose",
    ]


@pytest.mark.usefixtures("mine")
def test_plugins_check_takes_a_component_waivers_and_json() -> None:
    result = cli("sum", "--waive", "batch-mean=it counts", "--json")
    assert result.exit_code == 0
    (row,) = json.loads(result.stdout)
    assert (row["plugin"], row["kind"], row["name"]) == ("mine", "loss", "sum")
    assert row["waived"] == {"batch-mean": "it counts"}
    assert row["broken"] == row["unchecked"] == []
    assert len(row["kept"]) == len(testing.checks_of(Sum)) - 1
    result = cli("mine:sum", "--json")
    assert result.exit_code == 1
    (broken,) = json.loads(result.stdout)[0]["broken"]
    assert broken.keys() == {"check", "promise", "seen", "remedy"}
    assert broken["check"] == "batch-mean"


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["no-such"], 4, "there is no plugin or component 'no-such'"),
        (["brightnes"], 4, "Did you mean 'brightness'"),
        (["sum", "--waive", "batch-mean"], 2, "a waiver needs its reason: --waive CHECK=REASON"),
        (["sum", "--waive", "batch-mean= "], 2, "a waiver needs its reason"),
        (["sum", "--waive", "batch-maen=x"], 2, "there is no check 'batch-maen'. Did you mean 'batch-mean'"),
    ],
)
def test_plugins_check_tells_what_is_wrong_with_a_call(arguments: list[str], code: int, words: str) -> None:
    result = cli(*arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert words in " ".join(result.stderr.split())


def test_a_plugin_without_components_has_nothing_to_check(add_plugin: Callable[..., None]) -> None:
    add_plugin(interpkit.Preset("mine", {}, "nothing"))
    result = cli("mine")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "mine provides nothing that is checked" in result.stderr


def test_a_loader_without_an_example_says_so(add_plugin: Callable[..., None]) -> None:
    class Shy(Loader):
        """It shows nothing."""

        name = "shy"
        help = ".shy"

        def accepts(self, path: Path) -> bool:
            return False

        def load(self, path: Path, options: Any) -> Any:
            raise NotImplementedError

    add_plugin(Shy)
    result = cli("shy", "--json")
    assert result.exit_code == 1
    broken = {row["check"]: row["seen"] for row in json.loads(result.stdout)[0]["broken"]}
    assert set(broken) == {"accepts", "loads", "target-kept", "user-wins", "refuses-torn"}
    assert set(broken.values()) == {"it has no `example`, so there is no file to try it on"}


# ------------------------------------------------------------------------------------ the value of a loss


class Views(InversionLoss):
    """Confidence of the requested class on the negatives of the images, and how soft the conditions are."""

    name = "views"

    def views(self, batch: Any, rng: torch.Generator) -> Tensor:
        return 1 - batch.images + 0 * torch.rand(1, generator=rng)

    def forward(self, batch: Any) -> Tensor:
        logits = batch.view_response.logits.gather(1, batch.condition.labels[:, None])
        return logits.mean() + 10 * batch.condition.distribution.amax(1).mean()


def test_evaluate_loss_runs_the_target_on_the_images_and_on_the_views() -> None:
    linear = nn.Linear(2, 2, bias=False)
    linear.weight.data = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    target = interpkit.wrap(linear, input_shape=(2,))
    images = torch.tensor([[0.25, 0.5]], requires_grad=True)
    loss = Views(target)
    value = testing.evaluate_loss(loss, target, images, labels=[1])
    assert value.item() == 11.0  # 2 * (1 - 0.5), and a one-hot condition
    value.backward()
    assert images.grad.tolist() == [[0.0, -2.0]]
    assert linear.weight.grad is None and linear.weight.requires_grad
    soft = torch.tensor([[0.25, 0.75]])
    assert testing.evaluate_loss(loss, target, images, torch.tensor([1]), distribution=soft).item() == 8.5
