"""Plugins: a fault in one is told with its name and harms no other; an outside package is used as a bundled one is."""

from __future__ import annotations

import importlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

import interpkit
from interpkit import PluginError, UsageError, hookimpl
from interpkit.plugins import Plugins

Quick = Callable[..., dict[str, Any]]
Find = Callable[..., Plugins]

PRELUDE = """
import interpkit
from interpkit import Condition, Conditioner, ConditionSpec, InversionLoss, Preset, hookimpl

class Good(InversionLoss):
    name = "good"
    def forward(self, batch):
        return batch.images.mean()
"""
REGISTER_GOOD = """
@hookimpl
def register(registry):
    registry.add(Good)
"""


@pytest.fixture
def find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Find]:
    """Return a maker: ``find(a=SOURCE, b=SOURCE)`` writes modules and finds them as plugins named a and b."""
    monkeypatch.syspath_prepend(tmp_path)
    written: list[str] = []

    def make(**sources: str) -> Plugins:
        points = []
        for name, source in sources.items():
            module = f"ikt_test_{name}"
            (tmp_path / f"{module}.py").write_text(PRELUDE + dedent(source))
            written.append(module)
            points.append(EntryPoint(name, module, "interpkit"))
        importlib.invalidate_caches()
        return Plugins(points)

    yield make
    for module in written:
        sys.modules.pop(module, None)


# ------------------------------------------------------------------------------------------- isolation

BROKEN = {
    "raises on import": ("raise ImportError('no such library')", "ImportError: no such library"),
    "exits on import": ("raise SystemExit(3)", "SystemExit: 3"),
    "is no Python": ("def (", "SyntaxError"),
    "raises in register": (
        """
        @hookimpl
        def register(registry):
            registry.add(Good)
            raise RuntimeError("not today")
        """,
        "RuntimeError: not today",
    ),
    "misspells a hook": (
        REGISTER_GOOD + "@hookimpl\ndef inversion_finnished(inversion):\n    pass\n",
        "inversion_finnished",
    ),
    "misspells an argument": ("@hookimpl\ndef register(registery):\n    pass\n", "registery"),
    "registers an abstract class": (
        """
        class Half(Conditioner):
            name = "half"
            def sample(self, batch_size, *, labels=None, rng=None):
                raise NotImplementedError

        @hookimpl
        def register(registry):
            registry.add(Good)
            registry.add(Half)
        """,
        "conditioner Half does not define: spec",
    ),
    "registers a name twice": (
        """
        @hookimpl
        def register(registry):
            registry.add(Good)
            registry.add(Good)
        """,
        "the loss 'good' is registered twice",
    ),
    "has no name": (
        """
        class Nameless(InversionLoss):
            def forward(self, batch):
                return batch.images.mean()

        @hookimpl
        def register(registry):
            registry.add(Good)
            registry.add(Nameless)
        """,
        "loss Nameless needs a name such as 'my-name'",
    ),
    "has a name that nobody can type": (
        """
        class Shouting(Good):
            name = "My Loss"

        @hookimpl
        def register(registry):
            registry.add(Shouting)
        """,
        "needs a name such as 'my-name', not 'My Loss'",
    ),
    "takes a name of the history": (
        """
        class Step(Good):
            name = "step"

        @hookimpl
        def register(registry):
            registry.add(Step)
        """,
        "step",
    ),
    "registers something of no kind": (
        """
        @hookimpl
        def register(registry):
            registry.add(Good)
            registry.add(dict)
        """,
        "of no kind that interpkit knows",
    ),
}


@pytest.mark.parametrize(("source", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_plugin_is_told_by_name_and_harms_no_other(
    find: Find, caplog: pytest.LogCaptureFixture, source: str, words: str
) -> None:
    plugins = find(after=REGISTER_GOOD, broken=source, zebra=REGISTER_GOOD)
    broken = plugins.found["broken"]
    assert broken.status == "broken"
    assert broken.error is not None and words in broken.error
    assert broken.provides == {}
    assert list(plugins.registry.entries(owner="broken")) == []
    for name in ("after", "zebra"):
        assert (plugins.found[name].status, plugins.found[name].provides) == ("ok", {"loss": ["good"]})
    assert "plugin 'broken' is broken and is left out" in caplog.text
    plugins.call("inversion_finished", inversion=None)  # the others still work


def test_what_a_broken_plugin_is_asked_for_by_name_is_its_fault(find: Find) -> None:
    plugins = find(mine="raise ImportError('no such library')")
    for ask in (lambda: plugins.preset("mine"), lambda: plugins.component("loss", "mine:good")):
        with pytest.raises(PluginError, match=r"plugin 'mine' \(ikt_test_mine\) is broken: ImportError") as caught:
            ask()
        assert caught.value.exit_code == 4


def test_an_unknown_preset_is_told_with_the_nearest(find: Find) -> None:
    plugins = find(mine="@hookimpl\ndef register(registry):\n    registry.add(Preset('vector-art', {}, 'x'))\n")
    with pytest.raises(PluginError, match=r"no plugin or preset 'vectorart'\. Did you mean 'vector-art'") as caught:
        plugins.preset("vectorart")
    assert caught.value.exit_code == 4
    assert plugins.preset("vector-art").layer == {}
    assert plugins.preset("mine:vector-art").layer == {}


def test_a_plugin_without_a_preset_says_so(find: Find) -> None:
    with pytest.raises(PluginError, match="the plugin 'mine' has no preset"):
        find(mine=REGISTER_GOOD).preset("mine")


def test_a_plugin_without_hooks_is_harmless(find: Find) -> None:
    assert find(mine="x = 1").found["mine"].status == "ok"


def test_of_two_packages_with_one_name_the_first_is_used_and_the_other_told(
    find: Find, caplog: pytest.LogCaptureFixture
) -> None:
    find(one=REGISTER_GOOD, two=REGISTER_GOOD)
    plugins = Plugins([EntryPoint("same", f"ikt_test_{name}", "interpkit") for name in ("one", "two")])
    assert plugins.found["same"].source == "ikt_test_one"
    assert "two packages have a plugin named 'same': ikt_test_one is used, ikt_test_two is not" in caplog.text


def test_a_name_that_two_plugins_use_is_told_apart_by_its_owner(find: Find) -> None:
    plugins = find(one=REGISTER_GOOD, two=REGISTER_GOOD)
    with pytest.raises(UsageError, match="several plugins have a loss 'good': say one:good or two:good"):
        plugins.component("loss", "good")
    one, two = (plugins.component("loss", f"{owner}:good") for owner in ("one", "two"))
    assert (one.__module__, two.__module__) == ("ikt_test_one", "ikt_test_two")
    assert plugins.registry.names("loss") == ["good"]


def test_the_bundled_plugins_all_work() -> None:
    plugins = Plugins()
    assert {p.name: p.error for p in plugins.found.values() if p.error} == {}
    assert {"vecmat", "losses", "robust", "targets"} <= plugins.found.keys()
    assert "vecmat" in plugins.found["vecmat"].provides["conditioner"]


# -------------------------------------------------------------------------------------- lifecycle hooks


class Watcher:
    """A plugin that notes which hook is called with what."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    @hookimpl
    def inversion_started(self, target: Any, recipe: Any) -> None:
        self.calls.append(("started", (target, recipe.steps)))

    @hookimpl
    def inversion_step(self, record: Any) -> None:
        self.calls.append(("step", record.step))

    @hookimpl
    def inversion_finished(self, inversion: Any) -> None:
        self.calls.append(("finished", inversion))


def test_lifecycle_hooks_are_called_in_order_with_the_run(
    plugins: Plugins, tiny_target: interpkit.Target, quick: Quick
) -> None:
    watcher = Watcher()
    plugins.add("watcher", lambda: watcher)
    inversion = interpkit.invert(tiny_target, **quick())
    assert watcher.calls == [
        ("started", (tiny_target, 12)),
        ("step", 1),
        ("step", 10),
        ("step", 12),
        ("finished", inversion),
    ]


@pytest.mark.parametrize("hook", ["inversion_started", "inversion_step", "inversion_finished"])
def test_a_lifecycle_hook_that_raises_is_named_once_and_the_inversion_goes_on(
    plugins: Plugins, tiny_target: interpkit.Target, quick: Quick, hook: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Faulty(Watcher):
        @hookimpl
        def inversion_started(self, target: Any, recipe: Any) -> None:
            self.fail("inversion_started")

        @hookimpl
        def inversion_step(self, record: Any) -> None:
            self.fail("inversion_step")

        @hookimpl
        def inversion_finished(self, inversion: Any) -> None:
            self.fail("inversion_finished")

        def fail(self, name: str) -> None:
            self.calls.append((name, None))
            if name == hook:
                raise RuntimeError("in the hook")

    faulty, watcher = Faulty(), Watcher()
    plugins.add("faulty", lambda: faulty)
    plugins.add("watcher", lambda: watcher)
    with caplog.at_level(logging.WARNING, "interpkit"):
        inversion = interpkit.invert(tiny_target, **quick())
    assert inversion.steps_done == 12
    assert plugins.found["faulty"].error == f"{hook}: RuntimeError: in the hook"
    assert faulty.calls[-1] == (hook, None) and faulty.calls.count((hook, None)) == 1
    assert caplog.text.count(f"plugin 'faulty' failed in {hook}") == 1
    assert len(watcher.calls) == 5 and plugins.found["watcher"].status == "ok"


# ---------------------------------------------------------------------------------- an outside package

OUTSIDE = '''
"""A conditioner that shows the generator the one-hot label and nothing else."""

import torch
import torch.nn.functional as F
from pydantic import Field

import interpkit
from interpkit import Condition, Conditioner, ConditionSpec, hookimpl


class OneHot(Conditioner):
    """The one-hot label, times a strength."""

    name = "onehot"

    class Options(interpkit.Options):
        strength: float = Field(1.0, gt=0, description="the length of the vector")

    @property
    def spec(self):
        return ConditionSpec(self.num_classes)

    def sample(self, batch_size, *, labels=None, rng=None):
        if labels is None:
            labels = torch.randint(self.num_classes, (batch_size,), device=self.device, generator=rng)
        p = F.one_hot(labels, self.num_classes).float()
        return Condition(labels, p, self.options.strength * p)


register = hookimpl(lambda registry: registry.add(OneHot), specname="register")
'''


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Return a folder in which a package with one conditioner is installed, as pip leaves it."""
    folder = tmp_path / "site"
    (folder / "outside-2.5.dist-info").mkdir(parents=True)
    (folder / "outside_conditioner.py").write_text(OUTSIDE.lstrip())
    (folder / "outside-2.5.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 2.5\n")
    (folder / "outside-2.5.dist-info" / "entry_points.txt").write_text("[interpkit]\noutside = outside_conditioner\n")
    return folder


def test_an_outside_conditioner_of_thirty_lines_is_found_and_used(
    outside: Path, tmp_path: Path, tiny_model: Path, quick_flags: list[str], run_python: Callable[..., Any]
) -> None:
    assert len([line for line in OUTSIDE.splitlines() if line.strip()]) <= 30
    env = {"PYTHONPATH": str(outside)}
    flags = [*quick_flags, "--conditioner", "onehot", "--set", "onehot.strength=2", "--steps", "2", "--json"]
    run = run_python("-m", "interpkit", "invert", tiny_model, *flags, "--out", tmp_path / "run", env=env)
    assert (run.returncode, run.stderr.count("Traceback")) == (0, 0), run.stderr
    recipe = (tmp_path / "run" / "recipe.toml").read_text()
    assert 'name = "onehot"\nstrength = 2' in recipe
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["plugins"]["outside"] == {"version": "2.5", "status": "ok"}
    assert json.loads(run.stdout)["metrics"]["count"] == 300

    listing = run_python("-m", "interpkit", "plugins", "list", "--json", env=env)
    row = next(row for row in json.loads(listing.stdout) if row["name"] == "outside")
    provides = {"conditioner": ["onehot"]}
    assert row == {"name": "outside", "version": "2.5", "provides": provides, "status": "ok", "error": None}


def test_a_broken_outside_package_hinders_no_run_and_is_listed(
    outside: Path, tmp_path: Path, tiny_model: Path, run_python: Callable[..., Any]
) -> None:
    (outside / "outside_conditioner.py").write_text("raise OSError('half installed')")
    env = {"PYTHONPATH": str(outside)}
    flags = ["--plugin", "vecmat", "--dry-run", "--json"]
    run = run_python("-m", "interpkit", "invert", tiny_model, *flags, env=env, cwd=tmp_path)
    assert run.returncode == 0
    assert json.loads(run.stdout)["conditioner"]["name"] == "vecmat"
    assert "plugin 'outside' is broken and is left out: OSError: half installed" in run.stderr
    assert "Traceback" not in run.stderr
    run = run_python("-m", "interpkit", "invert", tiny_model, "--plugin", "outside", env=env, cwd=tmp_path)
    assert run.returncode == 4
    assert "half installed" in run.stderr
