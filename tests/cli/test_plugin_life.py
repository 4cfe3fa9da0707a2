"""Life with many plugins: what is listed and shown, left out, traced, told apart, brought as one file, and missed."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from interpkit_vecmat.upconv import UpConvGenerator
from typer.testing import CliRunner, Result

import interpkit
from interpkit import PluginError, UsageError
from interpkit.cli import app
from interpkit.config.recipe import read_toml
from interpkit.plugins.discovery import Plugins
from interpkit.plugins.loading import loader_of
from interpkit.runs.folder import Run

Process = Callable[..., Any]
Install = Callable[..., Path]

LOSS = """
import interpkit
from interpkit import InversionLoss, Preset, hookimpl
from pydantic import Field

class Dark(InversionLoss):
    '''Mean brightness, raised to a power.'''
    name = "dark"
    class Options(interpkit.Options):
        power: float = Field(1.0, gt=0, le=8, description="the exponent")
        side: str | None = Field(None, description="of the picture")
    def forward(self, batch):
        print("forward")
        return batch.images.mean() ** self.options.power

@hookimpl
def register(registry):
    print("register")
    registry.add(Dark)
    registry.add(Preset(PRESET, {"losses": {"dark": {"weight": 0.5, "power": 2.0}}}, "Dark pictures."))
"""


def cli(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "250"})


def fails(code: int, words: str, *arguments: str | Path) -> None:
    result = cli(*arguments)
    message = " ".join(result.stderr.split())
    assert result.exit_code == code, result.output
    assert re.search(words, message), message
    assert result.stdout == "" and "Traceback" not in message and message.count("error:") == 1


@pytest.fixture
def install(tmp_path: Path) -> Install:
    """Return an installer, as pip leaves a package: ``install("package", plugin=SOURCE)``; returns the folder."""
    site = tmp_path / "site"

    def put(package: str, version: str = "1.0", **plugins: str) -> Path:
        info = site / f"{package}-{version}.dist-info"
        info.mkdir(parents=True)
        points = "".join(f"{name} = {package}_{name}\n" for name in plugins)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[interpkit]\n{points}")
        for name, source in plugins.items():
            (site / f"{package}_{name}.py").write_text(dedent(source).replace("PRESET", repr(name)))
        return site

    return put


@pytest.fixture
def plugin_file(tmp_path: Path, plugins: Plugins) -> Path:
    """Return a plugin of one file, with a loss ``dark`` and a preset ``night``."""
    path = tmp_path / "night.py"
    path.write_text(LOSS.replace("PRESET", "'night'"))
    return path


# -------------------------------------------------------------------------------------- in real processes


def test_faulty_packages_are_listed_each_with_its_fault_and_stdout_is_clean(
    install: Install, run_python: Process
) -> None:
    install("raising", raising="x = 1\nraise OSError('half installed')")
    install("leaving", leaving="import sys\nprint('goodbye')\nsys.exit(5)")
    install("hooky", hooky="import interpkit\n@interpkit.hookimpl\ndef inversion_stp(record):\n    pass\n")
    install("future", version="3.1", future="INTERPKIT_INTERFACE = 9\n")
    install("twice", twice=LOSS + "    registry.add(Dark)\n")
    install("one", shared=LOSS)
    site = install("two", shared=LOSS)
    run = run_python("-m", "interpkit", "plugins", "list", "--json", env={"PYTHONPATH": str(site)})
    assert run.returncode == 0, run.stderr
    rows = {row["name"]: row for row in json.loads(run.stdout)}
    assert all(list(row) == ["name", "version", "provides", "status", "error"] for row in rows.values())
    expected = {
        "raising": rf"^OSError: half installed \({site}/raising_raising\.py, line 2\)$",
        "leaving": r"^SystemExit: 5 \(.*leaving_leaving\.py, line 3\)$",
        "hooky": r"no hook 'inversion_stp' \(.*hooky_hooky\.py, line 2\)\. Did you mean 'inversion_step'",
        "future": "made for version 9 of the plugin interface .*has version 1. Upgrade interpkit",
        "twice": r"the loss 'dark' is registered twice\. \(.*twice_twice\.py, line",
    }
    for name, words in expected.items():
        assert rows[name]["status"] == "broken" and rows[name]["provides"] == {}
        assert re.search(words, rows[name]["error"]), rows[name]["error"]
        assert f"plugin {name!r} is broken and is left out" in run.stderr
    for name in ("one:shared", "two:shared"):
        assert (rows[name]["status"], rows[name]["provides"]["loss"]) == ("ok", ["dark"])
    assert "2 packages have a plugin named 'shared'" in run.stderr and "one:shared, two:shared" in run.stderr
    assert rows["vecmat"]["status"] == "ok" and "goodbye" in run.stderr


def test_a_run_of_a_plugin_that_is_gone_names_its_package_and_version(
    install: Install, run_python: Process, tmp_path: Path, tiny_model: Path, quick_flags: list[str]
) -> None:
    install("one", shared=LOSS)
    site = install("two", version="2.5", shared=LOSS)
    env = {"PYTHONPATH": str(site)}
    run = tmp_path / "run"
    invert = ["-m", "interpkit", "invert", tiny_model, *quick_flags, "--steps", "2", "--json"]
    both = run_python(*invert, "--loss", "dark", "--out", run, env=env)
    assert both.returncode == 2 and "several plugins have a loss 'dark': say one:dark or two:dark" in both.stderr
    done = run_python(*invert, "--plugin", "two:shared", "--set", "two:dark.power=3", "--out", run, env=env)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["metrics"]["count"] == 300 and "forward" in done.stderr
    terms = json.loads((run / "history.jsonl").read_text().splitlines()[0])
    assert "two:dark" in terms and "dark" not in terms  # the preset says "dark", and means its own
    assert read_toml(run / "recipe.toml")["losses"]["two:dark"] == {"weight": 0.5, "power": 3}
    used = json.loads((run / "manifest.json").read_text())["plugins"]["two:shared"]
    assert used == {"package": "two", "version": "2.5", "status": "ok", "used": {"loss": ["two:dark"]}}

    left_out = cli("sample", run, "--json")
    assert left_out.exit_code == 4
    words = "needs the loss 'two:dark' of the plugin 'two:shared', which is not installed: pip install two==2.5"
    assert words in " ".join(left_out.stderr.split())
    for command in (["evaluate", run], ["attribute", run], ["report", run], ["invert", tiny_model, "--out", run]):
        flags = ["--resume", "--steps", "4"] if command[0] == "invert" else []
        fails(4, "pip install two==2.5", *command, *flags)


def test_the_variables_choose_and_trace(install: Install, run_python: Process, tiny_model: Path) -> None:
    site = install("one", watcher="import interpkit\n@interpkit.hookimpl\ndef register(registry):\n    return 41 + 1\n")
    chosen = {"PYTHONPATH": str(site), "INTERPKIT_LOAD_PLUGINS": "watcher", "INTERPKIT_TRACE_PLUGINS": "1"}
    run = run_python("-m", "interpkit", "plugins", "list", "--json", env=chosen)
    status = {row["name"]: row["status"] for row in json.loads(run.stdout)}
    assert (status.pop("watcher"), status.pop("generator")) == ("ok", "ok")  # the default inverter is always there
    assert set(status.values()) == {"disabled"} and "vecmat" in status
    assert "plugin watcher: register(registry=<interpkit.plugins.registry." in run.stderr
    assert "plugin watcher: register returned [42]" in run.stderr


HANGING = """
import interpkit.plugins.discovery
interpkit.plugins.discovery.SLOW_IMPORT_SECONDS = 0.05
from interpkit.cli import main
main()
"""


def test_a_plugin_that_hangs_is_named_on_the_command_line(install: Install, run_python: Process) -> None:
    site = install("one", slow="import time\ntime.sleep(0.5)\n")
    env = {"PYTHONPATH": str(site), "INTERPKIT_LOAD_PLUGINS": "slow"}
    run = run_python("-c", HANGING, "plugins", "list", "--json", env=env)
    assert run.returncode == 0 and {"slow", "vecmat"} <= {row["name"] for row in json.loads(run.stdout)}
    assert "warning: still loading the plugin 'slow' (one_slow) after 0.05 s" in run.stderr
    assert "--no-plugin slow" in run.stderr


# --------------------------------------------------------------------------------------- left out


@pytest.mark.parametrize("flag", [["--no-plugin", "robust"], ["--no-plugin=robust"]], ids=["two words", "one"])
@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_no_plugin_may_stand_anywhere_and_lasts_for_one_command(flag: list[str], first: bool) -> None:
    words = ["plugins", "list", "--json"]
    result = cli(*flag, *words) if first else cli(*words, *flag, "--no-plugin", "tensorboard")
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    disabled = {"robust"} if first else {"robust", "tensorboard"}
    assert {name for name, row in rows.items() if row["status"] == "disabled"} == disabled
    assert (rows["robust"]["provides"], rows["robust"]["error"]) == ({}, None)
    after = {row["name"]: row["status"] for row in json.loads(cli(*words).stdout)}
    assert after["robust"] == "ok"
    assert "disabled by --no-plugin robust" in cli("plugins", "list", *flag).stdout


def test_a_component_of_a_disabled_plugin_names_the_plugin_in_the_error(tiny_model: Path, finished_run: Path) -> None:
    out = "--no-plugin"
    fails(
        4,
        "plugin 'vecmat' is disabled by --no-plugin vecmat",
        "invert",
        tiny_model,
        "--plugin",
        "vecmat",
        out,
        "vecmat",
    )
    fails(4, "plugin 'vecmat' is disabled by --no-plugin vecmat", "sample", finished_run, out, "vecmat")
    fails(4, "plugin 'vecmat' is disabled", "plugins", "show", "vecmat", out, "vecmat")
    fails(3, "reads: none.*Disabled: targets, by --no-plugin targets", "inspect", tiny_model, out, "targets")
    fails(4, "no plugin 'vecmt' to leave out. Did you mean 'vecmat'", "plugins", "list", out, "vecmt")


def test_a_loss_of_a_plugin_left_out_is_unknown_and_the_plugin_is_named(tiny_model: Path) -> None:
    flags = ["invert", tiny_model, "--plugin", "vecmat", "--loss", "ghosts", "--no-plugin", "robust", "--dry-run"]
    fails(2, "there is no loss 'ghosts'.*Disabled: robust, by --no-plugin robust", *flags)


# -------------------------------------------------------------------------------------------- shown


def test_show_of_a_plugin_tells_its_package_version_source_and_hooks() -> None:
    result = cli("plugins", "show", "tensorboard")
    for words in (
        f"from the package network-inversion {interpkit.__version__}",
        "hooks:    inversion_finished, inversion_started, inversion_step",
        "source:   interpkit_tensorboard",
    ):
        assert words in result.stdout, result.stdout


def test_show_of_a_file_as_json_has_its_options_with_types_defaults_limits_and_help(plugin_file: Path) -> None:
    result = cli("plugins", "show", plugin_file, "--json")
    shown = json.loads(result.stdout)
    loss, preset = shown.pop("components")
    assert shown == {
        "name": "night",
        "version": "",
        "package": "",
        "source": str(plugin_file),
        "provides": {"loss": ["dark"], "preset": ["night"]},
        "hooks": ["register"],
    }
    assert preset["recipe"] == {"losses": {"dark": {"weight": 0.5, "power": 2.0}}}
    assert (loss["help"], loss["plugin"]) == ("Mean brightness, raised to a power.", "night")
    assert loss["source"] == f"{plugin_file}:6"
    power, side = loss["options"]
    assert power == {
        "name": "power",
        "type": "float",
        "required": False,
        "default": 1.0,
        "limits": "> 0, <= 8",
        "help": "the exponent",
    }
    assert (side["type"], side["default"], side["limits"]) == ("str | None", None, "")
    printed = cli("plugins", "show", plugin_file).stdout
    assert "dark.power" in printed and "> 0, <= 8" in printed and f"source: {plugin_file}:6" in printed


def test_every_bundled_component_can_be_shown_as_json(plugins: Plugins) -> None:
    for name in plugins.found:
        shown = json.loads(cli("plugins", "show", name, "--json").stdout)
        assert sum(map(len, shown["provides"].values())) == len([c for c in shown["components"] if c["plugin"] == name])


# ------------------------------------------------------------------------------ plugins of one file


def test_a_file_is_loaded_applied_and_recorded_and_typed_again_for_the_run(
    plugin_file: Path, plugins: Plugins, tmp_path: Path, tiny_model: Path, quick_flags: list[str], caplog: Any
) -> None:
    run = tmp_path / "run"
    flags = [*quick_flags, "--set", "dark.power=3", "--steps", "2"]
    result = cli("invert", tiny_model, *flags, "--plugin", plugin_file, "--out", run, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["run"] == str(run)  # though the plugin prints
    record = {"path": str(plugin_file), "sha256": plugins.found["night"].sha256}
    recipe = read_toml(run / "recipe.toml")
    assert recipe["plugin_files"] == [record] and recipe["losses"]["dark"] == {"weight": 0.5, "power": 3.0}
    manifest = Run.open(run).manifest().to_dict()
    assert manifest["presets"] == ["vecmat", "night"]
    assert manifest["plugins"]["night"] == {
        "package": "",
        "version": "",
        "status": "ok",
        "file": str(plugin_file),
        "sha256": record["sha256"],
        "used": {"loss": ["dark"]},
    }
    plugins._forget("night")  # as in a new process
    del plugins.found["night"]

    again = f"records the plugin file {plugin_file}, which is code; .*Type it again: --plugin {plugin_file}"
    for command in ("sample", "evaluate", "attribute", "report"):
        fails(2, again, command, run)
    fails(2, again, "invert", tiny_model, "--config", run / "recipe.toml")
    fails(2, again, "invert", tiny_model, "--out", run, "--resume", "--steps", "4")
    with pytest.raises(UsageError, match="Type it again"):
        interpkit.load_inversion(run)
    assert "night" not in plugins.found

    sampled = cli("sample", run, "--plugin", plugin_file, "--json")
    assert sampled.exit_code == 0 and json.loads(sampled.stdout)["metrics"]["count"] == 30
    config = ["invert", tiny_model, "--config", run / "recipe.toml", "--plugin", plugin_file, "--dry-run", "--json"]
    repeated = json.loads(cli(*config).stdout)
    assert repeated["losses"]["dark"]["power"] == 3.0  # the file's preset is not applied over its own run
    longer = cli("invert", tiny_model, "--out", run, "--resume", "--plugin", plugin_file, "--steps", "4")
    assert longer.exit_code == 0, longer.output
    assert Run.open(run).manifest().steps_done == 4

    plugin_file.write_text(plugin_file.read_text() + "\n# another line\n")
    assert cli("sample", run, "--plugin", plugin_file, "--count", "1").exit_code == 0
    assert caplog.text.count("its sha256 differs") == 1


def test_a_file_that_has_changed_since_its_run_is_taken_with_a_warning(
    plugin_file: Path, plugins: Plugins, tmp_path: Path, tiny_target: interpkit.Target, quick: Any, caplog: Any
) -> None:
    run = interpkit.invert(tiny_target, **quick(plugins=["vecmat", plugin_file], steps=1)).save(tmp_path / "run")
    plugin_file.write_text(plugin_file.read_text() + "\n# another line\n")
    moved = Path(shutil.move(plugin_file, tmp_path / "site-of-its-own.py")).rename(plugin_file)
    with caplog.at_level(logging.WARNING, "interpkit"):
        interpkit.load_inversion(run, target=tiny_target, plugins=[moved])
    assert f"night.py is not what it was when {run} was made (its sha256 differs)" in caplog.text


def test_a_file_with_no_preset_is_only_registered(plugins: Plugins, tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "bare.py"
    path.write_text(LOSS.rpartition("    registry.add(Preset")[0])
    flags = ["invert", tiny_model, "--plugin", "vecmat", "--plugin", path, "--dry-run", "--json"]
    assert "dark" not in json.loads(cli(*flags).stdout)["losses"]
    assert json.loads(cli(*flags, "--loss", "dark=3").stdout)["losses"]["dark"] == {"weight": 3.0, "power": 1.0}
    words = r"names no conditioner, no generator, no loss: add --conditioner"
    fails(2, words, "invert", tiny_model, "--plugin", path, "--out", tmp_path / "run", "--dry-run")


def test_an_edited_file_is_loaded_again(plugin_file: Path, plugins: Plugins) -> None:
    first = plugins.add_file(plugin_file)
    assert plugins.add_file(plugin_file) is first
    plugin_file.write_text(plugin_file.read_text().replace('name = "dark"', 'name = "dusk"'))  # as long as it was
    assert plugins.add_file(plugin_file).provides["loss"] == ["dusk"]
    assert not plugins.registry.has("loss", "dark")
    assert not list(plugin_file.parent.rglob("*.pyc"))


def test_a_file_that_cannot_be_a_plugin_ends_with_4_and_the_reason(
    plugin_file: Path, tmp_path: Path, tiny_model: Path, finished_run: Path
) -> None:
    invert = ["invert", tiny_model, "--plugin", "vecmat", "--dry-run", "--plugin"]
    fails(4, r"there is no plugin file .*nigt\.py\. Did you mean 'night\.py'", *invert, tmp_path / "nigt.py")
    broken = tmp_path / "broken.py"
    broken.write_text("x = 1\nx.y\n")
    words = r"plugin 'broken' \(.*broken\.py\) is broken: AttributeError: .* \(.*broken\.py, line 2\)"
    fails(4, words, *invert, broken)
    taken = tmp_path / "losses.py"
    taken.write_text("")
    fails(4, "would be named 'losses', as an installed plugin is: rename the file", *invert, taken)
    (tmp_path / "other").mkdir()
    twin = Path(shutil.copy(plugin_file, tmp_path / "other" / "night.py"))
    fails(2, "told apart by their names", *invert, plugin_file, "--plugin", twin)
    fails(2, "--plugin requires a plugin file FILE.py here", "sample", finished_run, "--plugin", "vecmat")


@pytest.mark.parametrize(
    "text", ['presets = ["{}"]', 'plugin_files = [{{path = "{}", sha256 = "0"}}]', "plugin_files = 3"]
)
def test_a_recipe_cannot_have_a_file_loaded(plugin_file: Path, plugins: Plugins, tiny_model: Path, text: str) -> None:
    config = plugin_file.with_name("recipe.toml")
    config.write_text(text.format(plugin_file))
    words = "plugin_files is a list of tables" if text.endswith("3") else f"--plugin {plugin_file}"
    fails(2, words, "invert", tiny_model, "--config", config)
    assert "night" not in plugins.found


# -------------------------------------------------------------------------------------------- faults


def test_a_command_of_two_packages_is_refused_and_both_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("one", "two"):
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[interpkit.commands]\ngreet = {package}_commands:app\n")
    monkeypatch.syspath_prepend(tmp_path)
    words = r"several packages have a command 'greet': one \(one_commands:app\), two .* Uninstall all but one of them\."
    fails(4, words, "greet")


def test_a_plugin_that_fails_outside_the_loop_ends_with_4_and_is_named(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> Any:
        raise ZeroDivisionError("no file today")

    monkeypatch.setattr("interpkit_targets.loaders.read_target_file", fail)
    words = r"loader 'safetensors' of the plugin 'targets' failed: ZeroDivisionError: .* \(.*loaders\.py, line \d+\)\."
    fails(4, words, "inspect", tiny_model)


class FaultyLoader(interpkit.Loader):
    """Takes what ends in .odd, and makes nothing of it; fails on whatever else it is shown."""

    name = "faulty"
    help = "x.odd"

    def accepts(self, path: Path) -> bool:
        if path.suffix != ".odd":
            raise ValueError("how odd")
        return True

    def load(self, path: Path, options: Any) -> Any:
        return None


def test_a_loader_that_fails_is_named_and_takes_no_other_with_it(
    plugins: Plugins, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    register = interpkit.hookimpl(lambda registry: registry.add(FaultyLoader))
    plugins.add("a-first", lambda: type("Module", (), {"register": staticmethod(register)}))
    assert interpkit.load_target(tiny_model).num_classes == 3
    assert "the loader 'faulty' of the plugin 'a-first' failed: ValueError: how odd (" in caplog.text
    (tmp_path / "x.odd").touch()
    with pytest.raises(PluginError, match=r"'faulty' of the plugin 'a-first' .*load returns a Target, not NoneType"):
        interpkit.load_target(tmp_path / "x.odd")


def test_loaders_of_plugin_files_are_asked_first_and_the_bundled_ones_last(plugins: Plugins, tiny_model: Path) -> None:
    class Greedy(FaultyLoader):
        name = "greedy"

        def accepts(self, path: Path) -> bool:
            return True

    register = interpkit.hookimpl(lambda registry: registry.add(Greedy))
    for owner, package in (("of-a-package", "other"), ("of-a-file", "")):
        plugins.add(owner, lambda: type("Module", (), {"register": staticmethod(register)}), package=package)
    for owner in ("of-a-file", "of-a-package", "targets"):
        entry = loader_of(tiny_model)
        assert entry is not None and entry.owner == owner
        plugins.registry.remove(owner)


def test_a_run_means_by_a_name_what_it_meant_when_it_was_made(add_plugin: Any, run_copy: Path) -> None:
    add_plugin(type("Twin", (UpConvGenerator,), {}))
    with pytest.raises(UsageError, match=r"say vecmat:upconv or mine:upconv, or leave a plugin out by leaving_out"):
        interpkit.plugins.discovery.installed().component("generator", "upconv")
    for command in (["sample", run_copy, "--count", "1"], ["evaluate", run_copy, "--metric", "diversity"]):
        result = cli(*command)
        assert result.exit_code == 0, result.output


def test_a_metric_that_cannot_be_built_leaves_the_run_whole(
    add_plugin: Any, tiny_target: interpkit.Target, quick: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Faulty(interpkit.Metric):
        """Fails."""

        name = "faulty"
        every_run = True

        def __init__(self, options: Any = None) -> None:
            raise RuntimeError("no ruler")

        def measure(self, study: Any) -> Any:
            return {}

    add_plugin(Faulty)
    run = interpkit.invert(tiny_target, out=tmp_path / "run", **quick(steps=1))
    assert Run.open(tmp_path / "run").manifest().status == "finished" and run.steps_done == 1
    assert "the metric 'faulty' of the plugin 'mine' failed and is skipped: RuntimeError: no ruler" in caplog.text


def test_hook_calls_are_traced_with_arguments_and_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Watcher:
        @interpkit.hookimpl
        def inversion_step(self, record: Any) -> str:
            return "seen"

        @interpkit.hookimpl
        def inversion_finished(self, inversion: Any) -> None:
            raise ValueError("too late")

    monkeypatch.setenv("INTERPKIT_TRACE_PLUGINS", "1")
    plugins = Plugins([])
    plugins.add("watcher", Watcher)
    plugins.call("inversion_step", record={"step": 1, "text": "x" * 500})
    plugins.call("inversion_finished", inversion=None)
    out, err = capsys.readouterr()
    assert out == ""
    assert "plugin watcher: inversion_step(record={'step': 1, 'text': 'xxx" in err and "x" * 100 not in err
    assert "plugin watcher: inversion_step returned ['seen']" in err
    assert "plugin watcher: inversion_finished(inversion=None)" in err
    assert "plugin watcher: inversion_finished raised ValueError('too late')" in err


def test_a_manifest_with_a_torn_record_of_plugins_is_refused(run_copy: Path) -> None:
    manifest = json.loads((run_copy / "manifest.json").read_text())
    for plugins in ([], {"vecmat": 3}, {"vecmat": {"used": {"loss": "ce"}}}, {"vecmat": {"package": 1, "used": {}}}):
        (run_copy / "manifest.json").write_text(json.dumps(manifest | {"plugins": plugins}))
        fails(1, "does not state which plugins the run was made with", "sample", run_copy)
    older = {"vecmat": {"version": "0.1.0", "status": "ok"}}
    (run_copy / "manifest.json").write_text(json.dumps(manifest | {"plugins": older}))
    assert cli("sample", run_copy, "--count", "1").exit_code == 0


def test_a_file_is_found_broken_before_anything_else_is_lost(plugins: Plugins, tmp_path: Path) -> None:
    before = dict(plugins.found)
    (tmp_path / "bad.py").write_text(
        "import interpkit\n@interpkit.hookimpl\ndef register(registry):\n    registry.add(1)\n"
    )
    with pytest.raises(PluginError, match=r"plugin 'bad' .* is broken: PluginError: 1 is not of a kind"):
        plugins.add_file(tmp_path / "bad.py")
    assert {name: plugins.found[name] for name in before} == before
    assert all(plugin.status == "ok" for plugin in before.values())
