"""Plugins: a fault in one is reported by name and harms no other; an outside package is used as a bundled one is."""

from __future__ import annotations

import importlib
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, PackageNotFoundError, PathDistribution
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

import interpkit
from interpkit import PluginError, UsageError, hookimpl
from interpkit.errors import DISTRIBUTION, upgrade
from interpkit.interfaces.components import INTERFACE_VERSION
from interpkit.plugins.discovery import Plugins, installed, leaving_out

Quick = Callable[..., dict[str, Any]]
Find = Callable[..., Plugins]
Same = Callable[..., list[EntryPoint]]

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


@pytest.fixture
def same(tmp_path: Path, find: Find) -> Same:
    """Return a maker of the entry points of two packages, A_b and c, that have a plugin ``same`` with a loss."""

    def make(source: str = REGISTER_GOOD + "    registry.add(Preset('same', {}, __name__))\n") -> list[EntryPoint]:
        find(one=source, two=source)
        points = []
        for package, module in (("A_b", "ikt_test_one"), ("c", "ikt_test_two")):
            info = tmp_path / f"{package}-1.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
            (info / "entry_points.txt").write_text(f"[interpkit]\nsame = {module}\n")
            points += PathDistribution(info).entry_points
        return points

    return make


# ------------------------------------------------------------------------------------------- isolation

BROKEN = {
    "raises on import": ("raise ImportError('no such library')", "ImportError: no such library"),
    "exits on import": ("raise SystemExit(3)", "SystemExit: 3"),
    "is not Python": ("def (", "SyntaxError"),
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
    "misspells an argument": (
        "@hookimpl\ndef register(registery):\n    pass\n",
        "Argument(s) {'registery'} are declared in the hookimpl but can not be found in the hookspec",
    ),
    "does not mark a hook": (
        REGISTER_GOOD + "def inversion_step(record):\n    pass\n",
        "is not marked as a hook, so it is never called: write @interpkit.hookimpl above it",
    ),
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
        "not of a kind that interpkit knows",
    ),
}


@pytest.mark.parametrize(("source", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_plugin_is_reported_by_name_and_harms_no_other(
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


def test_an_unknown_preset_is_reported_with_the_nearest(find: Find) -> None:
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


def test_two_packages_with_a_plugin_of_one_name_are_both_used_under_their_own(
    same: Same, caplog: pytest.LogCaptureFixture
) -> None:
    plugins = Plugins(same())
    assert {name: p.package for name, p in plugins.found.items()} == {"a-b:same": "a-b", "c:same": "c"}
    assert "2 packages have a plugin named 'same'" in caplog.text and "a-b:same, c:same" in caplog.text
    with pytest.raises(UsageError, match="several plugins have a loss 'good': say a-b:good or c:good"):
        plugins.component("loss", "good")
    with pytest.raises(UsageError, match="several plugins have a preset 'same': say a-b:same or c:same"):
        plugins.preset("same")
    assert plugins.component("loss", "a-b:good").__module__ == "ikt_test_one"
    assert plugins.component("loss", "c:same:good").__module__ == "ikt_test_two"
    assert plugins.preset("c:same").help == "ikt_test_two"


def test_of_two_plugins_of_one_name_the_other_may_be_left_out(same: Same) -> None:
    plugins = Plugins(same(), leave_out=["a-b:same"])
    assert {name: p.status for name, p in plugins.found.items()} == {"a-b:same": "disabled", "same": "ok"}
    assert plugins.component("loss", "good").__module__ == "ikt_test_two"


def test_one_package_with_two_plugins_of_one_name_has_the_first(
    same: Same, find: Find, caplog: pytest.LogCaptureFixture
) -> None:
    point = same()[0]
    plugins = Plugins([point, point])
    assert [p.status for p in plugins.found.values()] == ["ok"]
    assert "a-b has two plugins named 'same'" in caplog.text


# ------------------------------------------------------------------------------------- left out on purpose


def test_a_plugin_left_out_is_not_imported_and_says_by_what(find: Find) -> None:
    find(one=REGISTER_GOOD, two="raise RuntimeError('imported')")
    points = [EntryPoint(name, f"ikt_test_{name}", "interpkit") for name in ("one", "two")]
    plugins = Plugins(points, leave_out=["two"])
    two = plugins.found["two"]
    assert (two.status, two.error, two.left_out, two.provides) == ("disabled", None, "leaving_out(['two'])", {})
    assert plugins.found["one"].status == "ok"
    for ask in (lambda: plugins.preset("two"), lambda: plugins.component("loss", "two:good")):
        with pytest.raises(PluginError, match=r"the plugin 'two' is disabled by leaving_out\(\['two'\]\)"):
            ask()
    with pytest.raises(UsageError, match=r"there is no loss 'fine'.*Disabled: two, by leaving_out\(\['two'\]\)"):
        plugins.component("loss", "fine")
    with pytest.raises(PluginError, match=r"no plugin 'tow' to leave out\. Did you mean 'two'"):
        Plugins(points, leave_out=["tow"])


def test_only_the_plugins_that_are_named_are_loaded(find: Find, caplog: pytest.LogCaptureFixture) -> None:
    find(one=REGISTER_GOOD, two=REGISTER_GOOD)
    points = [EntryPoint(name, f"ikt_test_{name}", "interpkit") for name in ("one", "two")]
    plugins = Plugins(points, only=["two", "tree"])
    assert {name: p.status for name, p in plugins.found.items()} == {"one": "disabled", "two": "ok"}
    assert plugins.found["one"].left_out == "INTERPKIT_LOAD_PLUGINS=two,tree"
    assert "INTERPKIT_LOAD_PLUGINS names 'tree', which is not an installed plugin" in caplog.text
    none = Plugins(points, only=[])
    assert [p.status for p in none.found.values()] == ["disabled", "disabled"]
    assert none.registry.names("loss") == []


@pytest.mark.parametrize(("chosen", "ok"), [("vecmat , losses", {"vecmat", "losses"}), ("", set())])
def test_the_variable_says_which_are_loaded(monkeypatch: pytest.MonkeyPatch, chosen: str, ok: set[str]) -> None:
    monkeypatch.setenv("INTERPKIT_LOAD_PLUGINS", chosen)
    with leaving_out([]):
        default = {"generator"}  # the plugin of the default inverter, which a recipe names where the user names none
        assert {p.name for p in installed().found.values() if p.status == "ok"} == ok | default
        with leaving_out(["robust"]):
            assert installed().found["robust"].left_out == "leaving_out(['robust'])"
        assert installed().found["robust"].left_out == f"INTERPKIT_LOAD_PLUGINS={chosen.replace(' ', '')}"


def test_another_distribution_that_owns_the_same_package_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def distribution(name: str) -> object:
        if name not in there:
            raise PackageNotFoundError(name)
        return object()

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    for there in ({"network-inversion"}, {"interpkit"}, {"network-inversion", "interpkit"}):
        caplog.clear()
        Plugins(only=[])
        told = [message for message in caplog.messages if "pip uninstall interpkit network-inversion" in message]
        assert len(told) == (len(there) == 2)


def test_a_run_made_under_the_earlier_name_of_the_distribution_means_the_bundled_plugins() -> None:
    entry = installed().registry.entry("loss", "ce")
    assert entry.package == DISTRIBUTION
    assert installed().registry.entry("loss", "interpkit:ce") is entry
    assert installed().registry.entry("loss", "network-inversion:ce") is entry


# -------------------------------------------------------------------------------- the interface's version


def test_a_module_of_two_entry_points_is_one_plugin_and_the_other_says_which(find: Find) -> None:
    find(one=REGISTER_GOOD)
    points = [EntryPoint(name, "ikt_test_one", "interpkit") for name in ("first", "second")]
    found = Plugins(points).found
    assert found["first"].status == "ok"
    words = "PluginError: its entry point names what that of the plugin 'first' names too: remove one of the two"
    assert found["second"].error == words


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("2", "made for version 2 .* this interpkit has version 1. Upgrade interpkit: " + re.escape(upgrade())),
        ("0", r"made for version 0 .* this interpkit has version 1. Upgrade the plugin: pip install --upgrade a-b"),
        ("'1'", "INTERPKIT_INTERFACE is '1', and must be an integer: write INTERPKIT_INTERFACE = 1"),
    ],
)
def test_a_plugin_for_another_interface_is_broken_and_says_what_to_upgrade(
    same: Same, version: str, words: str
) -> None:
    source = f"INTERPKIT_INTERFACE = {version}\n" + REGISTER_GOOD
    plugin = Plugins(same(source)[:1]).found["same"]
    assert plugin.status == "broken" and plugin.error is not None
    assert re.search(words, plugin.error), plugin.error


def test_a_plugin_for_this_interface_is_loaded_and_so_are_the_bundled_ones(same: Same) -> None:
    assert Plugins(same("INTERPKIT_INTERFACE = 1\n" + REGISTER_GOOD)[:1]).found["same"].status == "ok"
    for plugin in Plugins().found.values():
        if plugin.package == DISTRIBUTION:
            assert sys.modules[plugin.module].INTERPKIT_INTERFACE == INTERFACE_VERSION


# ------------------------------------------------------------------------------- what loading may not do


def test_what_a_plugin_prints_as_it_is_loaded_goes_to_stderr(find: Find, capsys: pytest.CaptureFixture[str]) -> None:
    find(loud="print('imported')\n@hookimpl\ndef register(registry):\n    print('registered')\n")
    assert capsys.readouterr() == ("", "imported\nregistered\n")


@pytest.mark.parametrize("place", ["import time\ntime.sleep(0.2)\n", "slow"])
def test_a_plugin_that_hangs_as_it_is_loaded_is_named(
    find: Find, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr("interpkit.plugins.discovery.SLOW_IMPORT_SECONDS", 0.01)
    if place == "slow":
        place = "import time\n@hookimpl\ndef register(registry):\n    time.sleep(0.2)\n"
    assert find(slow=place).found["slow"].status == "ok"
    words = r"still loading the plugin 'slow' \(ikt_test_slow\) after 0.01 s: .*leaving_out\(\['slow'\]\)"
    assert re.search(words, caplog.text), caplog.text


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("import json\njson.loads('{')\n", 2),
        ("@hookimpl\ndef register(registry):\n    registry.add(dict)\n", 3),
        ("@hookimpl\ndef inversion_stepp(record):\n    pass\n", 1),
        ("@hookimpl\ndef inversion_step(recrd):\n    pass\n", 1),
        ("def inversion_step(record):\n    pass\n", 1),
        ("x = 1\ndef (\n", 2),
    ],
    ids=["import", "register", "misspelt hook", "misspelt argument", "unmarked hook", "syntax"],
)
def test_an_error_names_the_file_and_line_of_the_plugins_own_code(find: Find, source: str, line: int) -> None:
    error = find(mine=source).found["mine"].error
    assert error is not None
    line += len(PRELUDE.splitlines())
    assert f"/ikt_test_mine.py, line {line})" in error


def test_a_component_name_of_two_plugins_needs_its_plugin(find: Find) -> None:
    plugins = find(one=REGISTER_GOOD, two=REGISTER_GOOD)
    with pytest.raises(UsageError, match="several plugins have a loss 'good': say one:good or two:good"):
        plugins.component("loss", "good")
    one, two = (plugins.component("loss", f"{owner}:good") for owner in ("one", "two"))
    assert (one.__module__, two.__module__) == ("ikt_test_one", "ikt_test_two")
    assert plugins.registry.names("loss") == ["good"]


def test_a_preset_means_what_its_own_package_has_where_another_comes_to_have_the_name(find: Find) -> None:
    plugins = find(stranger=REGISTER_GOOD, terms=REGISTER_GOOD)

    class Method:
        @hookimpl
        def register(self, registry: Any) -> None:
            registry.add(interpkit.Preset("method", {"losses": {"good": {"weight": 2.0}}}, "A method."))

    plugins.add("method", Method, package="ikt_test_terms")
    assert plugins.preset("method").layer == {"losses": {"terms:good": {"weight": 2.0}}}
    plugins.add("alone", Method)
    assert plugins.preset("alone:method").layer == {"losses": {"good": {"weight": 2.0}}}  # nothing is guessed


def test_a_hook_may_take_fewer_arguments_and_some_of_its_own_with_defaults(find: Find) -> None:
    hooks = (
        "@hookimpl\ndef inversion_started(recipe, mine=3):\n    pass\n@hookimpl\ndef inversion_finished():\n    pass\n"
    )
    assert find(mine=hooks).found["mine"].hooks == ["inversion_finished", "inversion_started"]


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
def test_a_lifecycle_hook_that_raises_is_named_once_and_the_inversion_continues(
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


def test_a_lifecycle_hook_that_exits_ends_no_run(plugins: Plugins, tiny_target: interpkit.Target, quick: Quick) -> None:
    class Leaving:
        @hookimpl
        def inversion_step(self, record: Any) -> None:
            sys.exit(3)

    plugins.add("leaving", Leaving)
    assert interpkit.invert(tiny_target, **quick()).steps_done == 12
    assert plugins.found["leaving"].error == "inversion_step: SystemExit: 3"


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
    used = {"conditioner": ["onehot"]}
    assert manifest["plugins"]["outside"] == {"package": "outside", "version": "2.5", "status": "ok", "used": used}
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
