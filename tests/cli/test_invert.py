"""The command line: results alone on stdout, one readable message for each fault, the exit codes of the contract."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner, Result

import interpkit
from interpkit import ModelError
from interpkit.cli import app
from interpkit.plugins.discovery import Plugins

MakeModel = Callable[..., Path]
SHIPPED = Path(__file__).parents[2] / "examples" / "models" / "mnist_bn.safetensors"
Process = Callable[..., "subprocess.CompletedProcess[str]"]


def cli(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def fails(code: int, words: str, *arguments: str | Path) -> Result:
    """Run the command line; it must end with the code and one readable message that has the words."""
    result = cli(*arguments)
    message = " ".join(result.stderr.split())
    assert result.exit_code == code, f"{result.exit_code}: {result.output}"
    assert result.stdout == ""
    assert re.search(words, message), message
    assert message.count("error:") == 1
    assert "Traceback" not in message and "fault of interpkit" not in message
    assert len(message) < 1000
    return result


# --------------------------------------------------------------------------------------- without torch

CHECK = """
import sys
from interpkit.cli import main
sys.argv[0] = "interpkit"
try:
    main()
except SystemExit as end:
    print("code", end.code, file=sys.stderr)
heavy = {"torch", "torch._dynamo", "torchvision", "scipy.optimize", "sympy", "matplotlib", "captum", "torchmetrics"}
print("heavy", sorted(heavy & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "env", "words"),
    [
        (["--help"], {}, "invert"),
        (["invert", "--help"], {}, "--checkpoint-every"),
        (["plugins", "--help"], {}, "show"),
        (["--version"], {}, interpkit.__version__),
        ([], {"_INTERPKIT_COMPLETE": "complete_bash", "COMP_WORDS": "interpkit inv", "COMP_CWORD": "1"}, "invert"),
        (
            [],
            {"_INTERPKIT_COMPLETE": "complete_bash", "COMP_WORDS": "interpkit invert --re", "COMP_CWORD": "2"},
            "--resume",
        ),
    ],
    ids=["help", "invert --help", "plugins --help", "version", "completion", "completion of an option"],
)
def test_help_and_completion_do_not_import_torch(
    run_python: Process, arguments: list[str], env: dict[str, str], words: str
) -> None:
    run = run_python("-c", CHECK, *arguments, env={"TERM": "dumb", "COLUMNS": "200", **env})
    assert words in run.stdout
    assert "code 0" in run.stderr
    assert "heavy []" in run.stderr


@pytest.mark.parametrize("words", [["plugins", "list"], ["inspect", str(SHIPPED)]], ids=["plugins list", "inspect"])
def test_commands_that_only_describe_import_nothing_heavy_but_torch(run_python: Process, words: list[str]) -> None:
    run = run_python("-c", CHECK, *words)
    assert "code 0" in run.stderr
    sympy = "'sympy', " if torch.__version__ < (2, 7) else ""  # torch 2.6 imports it sooner
    assert f"heavy [{sympy}'torch']" in run.stderr


def test_importing_the_package_does_not_import_torch(run_python: Process) -> None:
    code = "import sys, interpkit; interpkit.UsageError; dir(interpkit); print('torch' in sys.modules)"
    assert run_python("-c", code).stdout == "False\n"


def test_without_arguments_the_help_is_shown() -> None:
    result = cli()
    assert result.exit_code == 2
    assert "invert" in result.output and "Traceback" not in result.output


def test_flags_without_a_value_show_no_type_in_the_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    for arguments in (["--help"], ["invert", "--help"], ["plugins", "--help"], ["plugins", "list", "--help"]):
        text = cli(*arguments).stdout
        assert re.search(r"--help +Show this message", text)
        assert "bool" not in text.lower()
    assert re.search(r"--resume +Resume the run", cli("invert", "--help").stdout)


# ----------------------------------------------------------------------------------------------- invert


def recipe(*arguments: str | Path) -> dict[str, Any]:
    """Return the recipe that a command resolves."""
    result = cli("invert", *arguments, "--dry-run", "--json")
    assert result.exit_code == 0, result.stderr
    resolved: dict[str, Any] = json.loads(result.stdout)
    return resolved


PRESETS = """
from interpkit import Preset, hookimpl

@hookimpl
def register(registry):
    registry.add(Preset("%s", {"steps": 7}, "Seven steps."))
"""


def test_preset_and_plugin_apply_the_same_presets(tiny_model: Path) -> None:
    by_preset = recipe(tiny_model, "--preset", "vecmat", "--preset", "robust")
    assert by_preset == recipe(tiny_model, "--plugin", "vecmat", "--plugin", "robust")
    assert by_preset["losses"] != recipe(tiny_model, "--preset", "vecmat")["losses"]


def test_the_preset_of_a_plugin_file_is_applied_over_those_named_by_preset(
    tiny_model: Path, tmp_path: Path, plugins: Plugins
) -> None:
    file = tmp_path / "seven.py"
    file.write_text(PRESETS % "seven")
    assert recipe(tiny_model, "--plugin", file, "--preset", "vecmat")["steps"] == 7


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--preset", "vecmatt"], 4, "there is no plugin or preset 'vecmatt'. Did you mean 'vecmat'"),
        (["--preset", "losses"], 4, "the plugin 'losses' has no preset, so --preset losses has nothing to apply"),
        (["--preset", "mine.py"], 2, "--preset mine.py names a file, not a preset. Load it: --plugin mine.py"),
        (["--preset", "vecmat", "--plugin", "robust"], 2, "two ways, which leaves their order open: vecmat, robust"),
    ],
    ids=["misspelt", "a plugin without a preset", "a file", "with a name by --plugin"],
)
def test_preset_accepts_names_of_presets_only(tiny_model: Path, arguments: list[str], code: int, words: str) -> None:
    result = cli("invert", tiny_model, *arguments)
    assert result.exit_code == code
    assert words in " ".join(result.stderr.split())


def test_invert_ends_with_the_paths_of_grid_and_report_on_stdout_and_reports_on_stderr(
    tmp_path: Path, tiny_model: Path, quick_flags: list[str], run_python: Process
) -> None:
    out = tmp_path / "run"
    run = run_python("-m", "interpkit", "invert", tiny_model, *quick_flags, "--out", out)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-2:] == [str(out / "samples.png"), str(out / "report.html")]
    assert "class 2" in run.stdout and "inversion accuracy" in run.stdout
    assert not re.search(r"step \d+/12", run.stdout)
    assert "step 1/12" in run.stderr and "step 12/12" in run.stderr
    assert "\x1b" not in run.stdout + run.stderr


def test_invert_json_is_alone_on_stdout(tmp_path: Path, tiny_model: Path, quick_flags: list[str]) -> None:
    result = cli("invert", tiny_model, *quick_flags, "--out", tmp_path / "run", "--json")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert told["run"] == str(tmp_path / "run")
    assert told["files"]["samples.png"] == str(tmp_path / "run" / "samples.png")
    assert all(Path(path).exists() for path in told["files"].values())
    assert told["metrics"] == json.loads((tmp_path / "run" / "metrics.json").read_text())


def test_a_run_says_how_many_images_a_step_moves_if_that_is_known(
    tmp_path: Path, tiny_model: Path, quick_flags: list[str]
) -> None:
    assert "12 steps of 8 on cpu" in cli("invert", tiny_model, *quick_flags, "--out", tmp_path / "a").stderr
    flags = ["--inverter", "pixels", "--steps", "2", "--device", "cpu", "--set", "pixels.per_class=2"]
    assert "2 steps of 6 on cpu" in cli("invert", tiny_model, *flags, "--out", tmp_path / "b").stderr
    np.savez(tmp_path / "known.npz", images=np.zeros((3, 12, 12), np.uint8), labels=np.zeros(3, np.int64))
    flags = ["--inverter", "boundary", "--set", f"boundary.data={tmp_path / 'known.npz'}", "--device", "cpu"]
    assert "steps on cpu in" in cli("invert", tiny_model, *flags, "--out", tmp_path / "c").stderr


def test_several_generators_are_asked_for_by_their_number(
    tmp_path: Path, tiny_model: Path, quick_flags: list[str]
) -> None:
    flags = [*quick_flags, "--steps", "1", "--out", str(tmp_path / "run")]
    fails(2, "5 generators share a batch of 8; .*--batch-size 10", "invert", tiny_model, *flags, "--generators", "5")
    fails(2, "generators = 0 is not valid", "invert", tiny_model, *flags, "--generators", "0")
    assert not (tmp_path / "run").exists()
    assert cli("invert", tiny_model, *flags, "--generators", "2").exit_code == 0
    samples = safetensors.torch.load_file(tmp_path / "run" / "samples.safetensors")
    assert samples["generator"].tolist() == [0, 1] * 150
    assert cli("sample", tmp_path / "run", "--per-class", "3", "--out", tmp_path / "few.safetensors").exit_code == 0
    few = safetensors.torch.load_file(tmp_path / "few.safetensors")
    assert (few["labels"].tolist(), few["generator"].tolist()) == ([0] * 3 + [1] * 3 + [2] * 3, [0, 1, 0] * 3)


def test_a_dry_run_prints_the_resolved_recipe_and_writes_nothing(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tomllib

    monkeypatch.chdir(tmp_path)
    result = cli("invert", tiny_model, "--plugin", "vecmat", "--steps", "7", "--dry-run", "--out", "run")
    assert result.exit_code == 0
    recipe = tomllib.loads(result.stdout)
    assert (recipe["steps"], recipe["conditioner"]["name"], recipe["generator"]["dropout"]) == (7, "vecmat", 0.2)
    assert recipe["precision"] in ("fp32", "bf16")
    as_json = cli("invert", tiny_model, "--plugin", "vecmat", "--steps", "7", "--dry-run", "--json")
    assert json.loads(as_json.stdout) == recipe
    assert list(tmp_path.iterdir()) == []


def test_the_default_folder_is_named_after_model_and_preset_and_counts_on(
    tmp_path: Path, tiny_model: Path, quick_flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        result = cli("invert", tiny_model, *quick_flags, "--steps", "1")
        assert result.stdout.splitlines()[-1] == f"runs/tiny-vecmat-{number}/report.html"
        assert Path(f"runs/tiny-vecmat-{number}/manifest.json").exists()


def test_a_dry_runs_output_is_a_config_and_flags_win_over_it(
    tmp_path: Path, tiny_model: Path, quick_flags: list[str]
) -> None:
    config = tmp_path / "recipe.toml"
    config.write_text(cli("invert", tiny_model, *quick_flags, "--dry-run").stdout)
    again = cli("invert", tiny_model, "--config", config, "--dry-run")
    assert again.stdout == config.read_text()
    flags = ["--loss", "tv=0.5", "--loss", "cosine=0", "--seed", "9", "--labels", "2,0", "--set", "upconv.dropout=0.5"]
    changed = json.loads(cli("invert", tiny_model, "--config", config, *flags, "--dry-run", "--json").stdout)
    assert (changed["losses"]["tv"]["weight"], changed["losses"]["cosine"]["weight"]) == (0.5, 0)
    assert (changed["seed"], changed["labels"], changed["generator"]["dropout"]) == (9, [2, 0], 0.5)
    assert changed["generator"]["width"] == 8


def test_flags_say_what_a_file_does_not(tmp_path: Path, tiny_module: Callable[..., nn.Module]) -> None:
    plain = tmp_path / "plain.safetensors"
    safetensors.torch.save_file(dict(tiny_module().state_dict()), plain)
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\n\ncow\n")
    arguments = ["--arch-arg", "input_shape=1,12,12", "--arch-arg", "num_classes=3", "--arch-arg", "widths=[4]"]
    flags = ["--arch", "interpkit:cnn", *arguments, "--arch-arg", "hidden=8", "--input-shape", "1,12,12"]
    flags += ["--mean", "0.1", "--std", "0.2", "--input-range=-1,1", "--class-names", str(names)]
    result = cli("inspect", plain, *flags, "--json")
    assert result.exit_code == 0, result.output
    resolved = json.loads(result.stdout)["resolved"]
    assert resolved["class_names"] == {"value": ["cat", "dog", "cow"], "source": "given"}
    assert resolved["input_range"]["value"] == [-1.0, 1.0]
    assert (resolved["mean"]["value"], resolved["std"]["value"]) == ([0.1], [0.2])


# ----------------------------------------------------------------------------------------- wrong usage

USAGE = [
    (["--set", "upconv.width=8"], r"name a preset by --preset NAME \(there are: .*vecmat\).*--config"),
    (["--plugin", "vecmat", "--batch-size", "1"], "batch_size = 1"),
    (["--plugin", "vecmat", "--steps", "0"], "steps = 0"),
    (["--plugin", "vecmat", "--seed", "-1"], "seed = -1"),
    (["--plugin", "vecmat", "--checkpoint-every", "0"], "checkpoint_every = 0"),
    (["--plugin", "vecmat", "--loss", "kl=-1"], r"losses\.kl\.weight = -1"),
    (["--plugin", "vecmat", "--loss", "kl=nan"], r"losses\.kl\.weight = nan"),
    (["--plugin", "vecmat", "--loss", "kl=much"], "--loss takes NAME or NAME=WEIGHT, not 'kl=much'"),
    (["--plugin", "vecmat", "--loss", "cosin"], "no loss 'cosin'.*Did you mean 'cosine'"),
    (["--plugin", "vecmat", "--conditioner", "vecmatt"], "Did you mean 'vecmat'"),
    (["--plugin", "vecmat", "--set", "vecmat.temprature=1"], "no option 'temprature'. Did you mean 'temperature'"),
    (["--plugin", "vecmat", "--set", "vecmat.temperature=cold"], "temperature = 'cold'"),
    (["--plugin", "vecmat", "--set", "label.dim=3"], "this recipe has no component 'label'"),
    (["--plugin", "vecmat", "--set", "vecmat.temperature"], "--set takes NAME=VALUE"),
    (["--plugin", "vecmat", "--set", "width=8"], "options are named COMPONENT.OPTION"),
    (["--plugin", "vecmat", "--labels", "0,3"], "--labels .*0 to 2"),
    (["--plugin", "vecmat", "--labels", "0,0"], "name each label once"),
    (["--plugin", "vecmat", "--labels", "one"], "no class called 'one'. Its names are class 0, class 1"),
    (["--plugin", "vecmat", "--labels", "0,,1"], "--labels takes comma-separated classes, not '0,,1'"),
    (["--plugin", "vecmat", "--labels", "0-7"], "--labels .*0 to 2"),
    (["--plugin", "vecmat", "--labels", "0,2-1"], "a range begins with its smaller number: 1-2"),
    (["--plugin", "vecmat", "--labels", "0-1-2"], "no class called '0-1-2'"),
    (["--plugin", "vecmat", "--mean", "0.5;0.5"], "--mean takes comma-separated numbers"),
    (["--plugin", "vecmat", "--std", "0"], "std must be above 0"),
    (["--plugin", "vecmat", "--input-range", "1,0"], "LO < HI"),
    (["--plugin", "vecmat", "--input-range", "1"], "--input-range takes LO,HI"),
    (["--plugin", "vecmat", "--device", "gpu"], "--device gpu"),
    (["--plugin", "vecmat", "--feature-layer", "nowhere"], "no layer 'nowhere'"),
    (["--plugin", "vecmat", "--resume"], "--resume .*--out DIR"),
    (["--config", "missing.toml"], r"cannot read the recipe missing\.toml"),
    (["--plugin", "vecmat", "--class-names", "missing.txt"], r"there is no file missing\.txt"),
]


@pytest.mark.parametrize(("flags", "words"), USAGE, ids=[" ".join(flags[-2:]) for flags, _ in USAGE])
def test_wrong_usage_ends_with_2_and_says_what_to_type(tiny_model: Path, flags: list[str], words: str) -> None:
    fails(2, words, "invert", tiny_model, *flags, "--dry-run")


@pytest.mark.parametrize(
    "arguments",
    [["invert"], ["invert", "MODEL", "--stepz", "3"], ["invert", "MODEL", "--steps", "many"], ["inverse"], ["sample"]],
)
def test_what_the_parser_does_not_know_ends_with_2(tiny_model: Path, arguments: list[str]) -> None:
    result = cli(*[str(tiny_model) if argument == "MODEL" else argument for argument in arguments])
    assert result.exit_code == 2
    assert result.stdout == "" and "Traceback" not in result.stderr and "Usage" in result.stderr


def test_a_recipe_file_with_a_wrong_word_ends_with_2(tmp_path: Path, tiny_model: Path) -> None:
    config = tmp_path / "recipe.toml"
    config.write_text('presets = ["vecmat"]\nstepps = 3')
    fails(2, "no option 'stepps'. Did you mean 'steps'", "invert", tiny_model, "--config", config)


@pytest.mark.parametrize(
    ("name", "words"), [("vecmatt", "Did you mean 'vecmat'"), ("losses", "the plugin 'losses' has no preset")]
)
def test_an_unknown_plugin_ends_with_4(tiny_model: Path, name: str, words: str) -> None:
    fails(4, words, "invert", tiny_model, "--plugin", name)


def test_a_broken_plugin_that_is_asked_for_ends_with_4(plugins: Plugins, tiny_model: Path) -> None:
    def load() -> object:
        raise ImportError("no such library")

    plugins.add("mine", load, source="mine_module")
    fails(
        4,
        r"plugin 'mine' \(mine_module\) is broken: ImportError: no such library",
        "invert",
        tiny_model,
        "--plugin",
        "mine",
    )


# ------------------------------------------------------------------------------------- refused classifiers


@pytest.fixture
def spoilt(tmp_path: Path, tiny_model: Path) -> Callable[..., Path]:
    """Return a maker of a classifier's file with its metadata or tensors changed."""

    def make(metadata: dict[str, str] | None = None, **tensors: torch.Tensor | None) -> Path:
        with safetensors.safe_open(tiny_model, "pt") as file:
            written = {**file.metadata(), **{f"interpkit.{key}": value for key, value in (metadata or {}).items()}}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        weights = {name: t for name, t in {**weights, **tensors}.items() if t is not None}
        safetensors.torch.save_file(weights, tmp_path / "spoilt.safetensors", written)
        return tmp_path / "spoilt.safetensors"

    return make


@pytest.mark.parametrize("command", [["inspect"], ["invert", "--plugin", "vecmat"]])
def test_a_missing_file_ends_with_3_and_the_nearest_name(tiny_model: Path, command: list[str]) -> None:
    path = tiny_model.with_name("tinny.safetensors")
    fails(3, r"there is no file .*tinny\.safetensors\. Did you mean 'tiny\.safetensors'", *command, path)


@pytest.mark.parametrize(
    ("name", "cut", "words"),
    [
        ("model.txt", 500, "in no format that interpkit reads. It reads: .*safetensors"),
        ("model.onnx", 500, "not a valid ONNX graph"),
        ("model.safetensors", 0, "not a complete safetensors file"),
        ("model.safetensors", 500, "not a complete safetensors file"),
        ("model.safetensors", -1, "not a complete safetensors file"),
    ],
)
def test_a_file_that_is_not_a_whole_safetensors_file_ends_with_3(
    tmp_path: Path, tiny_model: Path, name: str, cut: int | None, words: str
) -> None:
    (tmp_path / name).write_bytes(tiny_model.read_bytes()[:cut])
    fails(3, words, "invert", tmp_path / name, "--plugin", "vecmat")


def test_text_under_the_name_of_a_model_ends_with_3(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("I am a text, and much longer than eight bytes.")
    fails(3, "not a complete safetensors file", "inspect", tmp_path / "model.safetensors")


def test_a_file_without_metadata_ends_with_3_and_names_the_flags(
    tmp_path: Path, tiny_module: Callable[..., nn.Module]
) -> None:
    safetensors.torch.save_file(dict(tiny_module().state_dict()), tmp_path / "plain.safetensors")
    words = "does not say which architecture it is. Add --arch FAMILY:NAME and --input-shape C,H,W"
    fails(3, words, "invert", tmp_path / "plain.safetensors", "--plugin", "vecmat")


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"architecture": "interpkit:cnnn"}, "no architecture 'interpkit:cnnn'. Did you mean 'cnn'"),
        ({"architecture": "os:system"}, "'os:system' is not a registered one. Registered: bnn:"),
        ({"architecture": "resnet18"}, "not a registered one"),
        ({"architecture": "torchvision:resnet18", "arch_args": '{"weights": "DEFAULT"}'}, "'weights' is refused"),
        ({"arch_args": '{"input_shape": [1, 12, 12], "num_classes": 3, "widths": [5], "hidden": 8}'}, "do not fit"),
        ({"arch_args": '{"depth": 3}'}, "cannot be built"),
        ({"arch_args": '{"hidden": 60000, "widths": [60000, 60000]}'}, "cannot be built"),
        ({"arch_args": '{"hidden": 60000, "widths": [8000, 8000]}'}, "do not fit"),
        ({"arch_args": "{"}, "arch_args is not JSON"),
        ({"input_shape": "[3, 12, 12]"}, "fails on an input of shape"),
        ({"input_shape": '"wide"'}, "input_shape"),
        ({"schema": "2"}, "schema '2'; this interpkit reads 1"),
        ({"num_classes": "4"}, "returns 3 logits, but 4 classes"),
    ],
)
def test_metadata_that_does_not_hold_ends_with_3(
    spoilt: Callable[..., Path], metadata: dict[str, str], words: str
) -> None:
    fails(3, words, "invert", spoilt(metadata), "--plugin", "vecmat", "--dry-run")


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"0.weight": None}, r"missing: 0\.weight"),
        ({"extra": torch.zeros(2)}, "unexpected: extra"),
        (
            {"0.weight": torch.zeros(5, 1, 3, 3)},
            r"of another shape: 0\.weight \(\[5, 1, 3, 3\], expected \[4, 1, 3, 3\]\)",
        ),
        ({"0.weight": torch.full((4, 1, 3, 3), float("nan"))}, "NaN or infinite logits"),
    ],
)
def test_tensors_that_do_not_fit_or_are_not_finite_end_with_3(
    spoilt: Callable[..., Path], tensors: dict[str, Any], words: str
) -> None:
    fails(3, words, "invert", spoilt(**tensors), "--plugin", "vecmat")


def test_another_number_of_classes_than_the_models_ends_with_3(tiny_model: Path) -> None:
    words = "returns 3 logits, but 5 classes are specified. Use --num-classes 3"
    fails(3, words, "invert", tiny_model, "--plugin", "vecmat", "--num-classes", "5")


def test_a_target_whose_logits_turn_infinite_ends_with_1_and_names_step_and_culprit(
    tmp_path: Path, tiny_module: Callable[..., nn.Module], quick_flags: list[str]
) -> None:
    """The classifier overflows on any image but a gray one, which ``wrap`` tries."""
    module = tiny_module()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.mul_(1e30 if name.endswith("weight") else 0)
    interpkit.save_target(
        module,
        tmp_path / "overflow.safetensors",
        architecture="interpkit:cnn",
        arch_args={"input_shape": [1, 12, 12], "num_classes": 3, "widths": [4], "hidden": 8},
        input_shape=(1, 12, 12),
        mean=0.5,
    )
    out = tmp_path / "run"
    words = "error: the target's logits turned non-finite at step 1. Try"
    fails(1, words, "invert", tmp_path / "overflow.safetensors", *quick_flags, "--out", out)
    assert json.loads((out / "manifest.json").read_text())["status"] == "failed"


def test_debug_shows_a_traceback(tmp_path: Path, run_python: Process) -> None:
    arguments = ["invert", str(tmp_path / "none.safetensors"), "--plugin", "vecmat"]
    for place in ([*arguments, "--debug"], ["--debug", *arguments]):
        result = cli(*place)
        assert result.exit_code != 0 and isinstance(result.exception, ModelError)
    run = run_python("-m", "interpkit", *arguments, "--debug")
    assert run.returncode != 0 and "Traceback" in run.stderr and "there is no file" in run.stderr


def test_a_fault_of_a_plugin_is_one_message_with_the_way_to_the_traceback(
    add_plugin: Callable[..., None], tmp_path: Path, tiny_model: Path, quick_flags: list[str]
) -> None:
    class Faulty(interpkit.InversionLoss):
        name = "faulty"

        def forward(self, batch: interpkit.InversionBatch) -> torch.Tensor:
            raise ZeroDivisionError("in the plugin")

    add_plugin(Faulty)
    result = cli("invert", tiny_model, *quick_flags, "--loss", "faulty", "--out", tmp_path / "run")
    assert result.exit_code == 4
    assert "loss 'faulty' of the plugin 'mine' failed: ZeroDivisionError: in the plugin" in result.stderr
    assert "--debug" in result.stderr
    assert "Traceback" not in result.stderr and result.stdout == ""


# --------------------------------------------------------------------------------- folders and resuming


def test_a_folder_that_holds_another_run_ends_with_1(run_copy: Path, tiny_model: Path, quick_flags: list[str]) -> None:
    words = "holds another run: resume it with --resume, replace it with --force"
    fails(1, words, "invert", tiny_model, *quick_flags, "--out", run_copy)
    forced = cli("invert", tiny_model, *quick_flags, "--steps", "2", "--out", run_copy, "--force")
    assert forced.exit_code == 0
    assert json.loads((run_copy / "manifest.json").read_text())["steps_done"] == 2


def test_resuming_a_finished_run_does_nothing_and_ends_with_0(run_copy: Path, tiny_model: Path) -> None:
    before = {path.name: path.read_bytes() for path in run_copy.iterdir()}
    result = cli("invert", tiny_model, "--out", run_copy, "--resume")
    assert result.exit_code == 0
    assert "nothing to do" in result.stderr
    assert result.stdout.splitlines()[-1] == str(run_copy / "report.html")
    assert {path.name: path.read_bytes() for path in run_copy.iterdir()} == before


def test_only_code_of_the_users_is_known_by_the_hash_of_the_classifier(
    run_copy: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from interpkit.api.invert import prepare

    def refuse(path: Path) -> str:
        raise AssertionError(f"{path} was hashed")

    monkeypatch.setattr("interpkit.plugins.loading.digest", refuse)
    prepare(tiny_model, resume_from=run_copy)


def test_resuming_with_more_steps_extends(run_copy: Path, tiny_model: Path) -> None:
    result = cli("invert", tiny_model, "--out", run_copy, "--resume", "--steps", "15", "--json")
    assert result.exit_code == 0, result.output
    json.loads(result.stdout)
    assert json.loads((run_copy / "manifest.json").read_text())["steps_done"] == 15


def test_resuming_with_another_seed_ends_with_1_by_name(run_copy: Path, tiny_model: Path) -> None:
    flags = ["--out", run_copy, "--resume", "--steps", "15", "--seed", "4"]
    fails(1, r"another recipe: seed \(3 there\)", "invert", tiny_model, *flags)


def interrupted(arguments: list[str], cwd: Path) -> tuple[int, str, str]:
    """Run a real process, send it SIGINT after the first step, and return its code, stdout and stderr."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "interpkit", *arguments]
    with subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        seen = ""
        while "step 1/" not in seen:
            line = process.stderr.readline()
            assert line, f"it ended before the first step: {seen}"
            seen += line
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, seen + err


def test_ctrl_c_saves_what_there_is_and_resume_finishes(
    tmp_path: Path, tiny_model: Path, quick_flags: list[str], run_python: Process
) -> None:
    out = tmp_path / "run"
    flags = [*quick_flags, "--steps", "600", "--out", str(out)]
    code, stdout, stderr = interrupted(["invert", str(tiny_model), *flags], tmp_path)
    assert code == 130, stderr
    assert stdout == "" and "Traceback" not in stderr
    step = int(re.search(r"interrupted after step (\d+)", stderr)[1])  # type: ignore[index]
    assert 1 <= step < 600
    assert f"interpkit invert {tiny_model} --out {out} --resume" in stderr
    assert torch.load(out / "checkpoint", weights_only=True)["step"] == step
    assert (out / "samples.png").exists() and (out / "samples.safetensors").exists()
    assert json.loads((out / "manifest.json").read_text())["status"] == "interrupted"

    typed = stderr[stderr.index("interpkit invert ") :].splitlines()[0].split()[1:]
    run = run_python("-m", "interpkit", *typed, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["status"], manifest["steps_done"], manifest["resumed_from"]) == ("finished", 600, step)
    steps = [json.loads(line)["step"] for line in (out / "history.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == 600


def test_ctrl_c_while_samples_are_measured_keeps_the_training(
    tmp_path: Path, tiny_model: Path, quick_flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ["invert", tiny_model, *quick_flags, "--out", tmp_path / "run"]
    with monkeypatch.context() as patch:
        patch.setattr("interpkit.api.finish.every_run", lambda *_, **__: signal.raise_signal(signal.SIGINT))
        result = cli(*run)
    assert result.exit_code == 130 and result.stdout == ""
    assert "300/300 samples" in result.stderr
    assert f"--out {tmp_path / 'run'} --resume" in result.stderr and "Traceback" not in result.stderr
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert (manifest["status"], manifest["steps_done"]) == ("interrupted", 12)
    generator = (tmp_path / "run" / "generator.safetensors").read_bytes()
    assert interpkit.load_inversion(tmp_path / "run").steps_done == 12

    assert cli(*run, "--resume").exit_code == 0
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "finished"
    assert (tmp_path / "run" / "generator.safetensors").read_bytes() == generator


def test_a_run_that_ends_too_early_names_more_steps(
    tmp_path: Path,
    tiny_model: Path,
    quick_flags: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("interpkit.api.finish.still_rising", lambda history, batch_size: (0.505, 0.651))
    result = cli("invert", tiny_model, *quick_flags, "--out", tmp_path / "run")
    assert result.exit_code == 0
    words = "the inversion accuracy was still rising when the training ended, from 50 % to 65 %: try --steps 24"
    assert words in caplog.messages


# ----------------------------------------------------------------------------------------------- sample


def test_sample_writes_a_safetensors_file_and_a_grid(finished_run: Path, tmp_path: Path) -> None:
    out, png = tmp_path / "few.safetensors", tmp_path / "few.png"
    result = cli("sample", finished_run, "--per-class", "2", "--labels", "2,0", "--out", out, "--png", png)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [str(out), str(png)]
    samples = safetensors.torch.load_file(out)
    assert samples["labels"].tolist() == [2, 2, 0, 0]
    assert samples["images"].shape == (4, 1, 12, 12) and samples["images"].dtype == torch.uint8
    with Image.open(png) as grid:
        assert grid.format == "PNG" and grid.size[1] == 2 * 50 + 2


def test_sample_writes_a_folder_of_pictures_a_class(finished_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "pictures"
    result = cli("sample", finished_run, "--count", "7", "--out", out, "--json")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert (told["out"], told["png"], told["metrics"]["count"]) == (str(out), None, 7)
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png")) == [
        *("0/00000.png", "0/00003.png", "0/00006.png"),
        *("1/00001.png", "1/00004.png"),
        *("2/00002.png", "2/00005.png"),
    ]
    assert json.loads((out / "classes.json").read_text()) == {str(i): f"class {i}" for i in range(3)}
    images = interpkit.load_inversion(finished_run).sample(count=7)[0]
    with Image.open(out / "1" / "00004.png") as picture:
        pixels = torch.tensor(list(picture.tobytes())).view(12, 12)
    assert torch.equal(pixels, (images[4, 0] * 255).round().long())


def test_sample_by_default_counts_on_in_the_run_folder(run_copy: Path) -> None:
    for number in (1, 2):
        result = cli("sample", run_copy)
        assert result.stdout.splitlines() == [str(run_copy / f"samples-{number}.safetensors")]
    one, two = (safetensors.torch.load_file(run_copy / f"samples-{number}.safetensors") for number in (1, 2))
    assert torch.equal(one["images"], two["images"]) and len(one["images"]) == 30
    other = cli("sample", run_copy, "--seed", "8", "--out", run_copy / "other.safetensors")
    assert other.exit_code == 0
    assert not torch.equal(safetensors.torch.load_file(run_copy / "other.safetensors")["images"], one["images"])


@pytest.mark.parametrize(
    ("code", "flags", "words"),
    [
        (2, ["--per-class", "1", "--count", "1"], "exclude each other"),
        (2, ["--labels", "3"], r"there is no class 3; .* are 0 to 2"),
        (2, ["--labels", "x"], "no class called .x."),
        (2, ["--out", "samples.jpg"], r"name a \.safetensors file or a folder"),
        (3, ["--model", "none.safetensors"], "there is no file"),
    ],
)
def test_sample_refuses_what_it_cannot_do(finished_run: Path, code: int, flags: list[str], words: str) -> None:
    fails(code, words, "sample", finished_run, *flags)


def test_sample_of_a_folder_that_is_not_a_run_ends_with_1(tmp_path: Path) -> None:
    fails(1, "is not a run folder", "sample", tmp_path)


def test_sample_of_a_run_whose_model_changed_ends_with_3_and_takes_the_right_one(
    tmp_path: Path, make_model: MakeModel, tiny_model: Path, quick_flags: list[str]
) -> None:
    model = Path(shutil.copy(tiny_model, tmp_path / "mine.safetensors"))
    assert cli("invert", model, *quick_flags, "--steps", "1", "--out", tmp_path / "run").exit_code == 0
    make_model(model, seed=1)
    fails(3, "is not what it was.*--model PATH", "sample", tmp_path / "run")
    assert cli("sample", tmp_path / "run", "--model", tiny_model).exit_code == 0


def test_a_place_that_cannot_be_written_is_named_and_ends_with_1(finished_run: Path, tmp_path: Path) -> None:
    fails(1, "No such file or directory", "sample", finished_run, "--out", tmp_path / "none" / "x.safetensors")


class Vectors(interpkit.Generator):
    """Makes vectors."""

    name = "vectors"
    latent_dim = 4

    def __init__(self, spec: Any, input_shape: tuple[int, ...], options: Any = None) -> None:
        super().__init__(spec, input_shape, options)
        self.net = nn.Linear(4 + spec.vector_dim, input_shape[0])

    def forward(self, latent: torch.Tensor, condition: interpkit.Condition) -> torch.Tensor:
        return self.net(torch.cat([latent, condition.vector], 1)).sigmoid()


class Perceptrons(interpkit.Architectures):
    """One network of vectors."""

    name = "perceptrons"

    def names(self) -> list[str]:
        return ["one"]

    def build(self, name: str, arguments: Any) -> nn.Module:
        return nn.Linear(5, 3)


def test_a_run_of_vectors_ends_with_its_samples_file_and_has_no_pictures_to_give(
    add_plugin: Callable[..., None], tmp_path: Path
) -> None:
    add_plugin(Vectors, Perceptrons)
    model, run = tmp_path / "vectors.safetensors", tmp_path / "run"
    interpkit.save_target(nn.Linear(5, 3), model, architecture="perceptrons:one", input_shape=(5,))
    flags = ["--plugin", "vecmat", "--generator", "vectors", "--conditioner", "label", "--batch-size", "4"]
    result = cli("invert", model, *flags, "--steps", "2", "--out", run)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-2:] == [str(run / "samples.safetensors"), str(run / "report.html")]
    assert cli("sample", run, "--out", tmp_path / "few.safetensors").exit_code == 0
    fails(2, "vectors", "sample", run, "--out", tmp_path / "pictures")
    fails(2, "vectors", "sample", run, "--out", tmp_path / "two.safetensors", "--png", tmp_path / "few.png")


# ---------------------------------------------------------------------------------- inspect and plugins


def test_inspect_shows_facts_their_sources_and_the_layers(tiny_model: Path) -> None:
    result = CliRunner().invoke(app, ["inspect", str(tiny_model)], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for word in ("interpkit:cnn", "the file's metadata", "class 1", "Conv2d", "default (its input)", "4 x 12 x 12"):
        assert word in result.stdout


def test_inspect_json_says_the_same(tiny_model: Path) -> None:
    told = json.loads(cli("inspect", tiny_model, "--json").stdout)
    assert told["name"] == "tiny"
    assert told["resolved"]["mean"] == {"value": [0.25], "source": "the file's metadata"}
    assert told["resolved"]["class_names"]["source"] == "the file's metadata"
    assert told["resolved"]["arch"]["value"] == "interpkit:cnn"
    assert told["layers"][0] == {"name": "0", "type": "Conv2d", "output": [4, 12, 12], "parameters": 40}
    assert told["layers"][-1]["output"] == [3]


def test_plugins_list_json_has_the_schema_of_the_contract(plugins: Plugins) -> None:
    def load() -> object:
        raise ImportError("no such library")

    plugins.add("mine", load, "1.2")
    result = cli("plugins", "list", "--json")
    assert result.exit_code == 0
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert all(set(row) == {"name", "version", "provides", "status", "error"} for row in rows.values())
    assert rows["vecmat"]["status"] == "ok" and rows["vecmat"]["error"] is None
    assert rows["vecmat"]["provides"]["generator"] == ["upconv", "warp", "pyramid", "dense"]
    assert rows["mine"] == {
        "name": "mine",
        "version": "1.2",
        "provides": {},
        "status": "broken",
        "error": "ImportError: no such library",
    }


def test_plugins_list_is_a_table_with_every_plugin() -> None:
    result = cli("plugins", "list")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in ("vecmat", "losses", "robust", "targets", "ok"))


def test_plugins_show_lists_options_with_default_and_help() -> None:
    result = CliRunner().invoke(app, ["plugins", "show", "vecmat"], env={"COLUMNS": "250"})
    assert result.exit_code == 0
    for word in ("vecmat.temperature", "vecmat.max_side", "16", "upconv.dropout", "[losses.cosine]", "The paper's"):
        assert word in result.stdout
    one = cli("plugins", "show", "robust:robust")
    assert one.exit_code == 0 and "robust.epsilon" in one.stdout


def test_plugins_show_of_an_unknown_name_ends_with_4_and_the_nearest() -> None:
    fails(4, "no plugin or component 'vecmt'. Did you mean 'vecmat'", "plugins", "show", "vecmt")
