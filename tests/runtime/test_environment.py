"""What determines a run's numbers besides its recipe is recorded, and interpkit warns if it has changed."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

import interpkit
from interpkit.api.invert import prepare
from interpkit.runs.folder import Run
from interpkit.runtime import environment

CPU = torch.device("cpu")
Quick = Callable[..., dict[str, Any]]


def changed(recorded: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return environment.changed(recorded, environment.facts(CPU))


def rewrite(run: Path, **changes: Any) -> None:
    path = run / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ------------------------------------------------------------------------------------------- recorded


def test_the_manifest_records_what_determines_the_numbers(finished_run: Path) -> None:
    facts = Run.open(finished_run).manifest().to_dict()
    assert (facts["threads"], facts["processes"], facts["device"]) == (1, 1, "cpu")
    assert facts["interop_threads"] == torch.get_num_interop_threads()
    assert facts["versions"]["numpy"] == version("numpy") and facts["versions"]["python"].count(".") == 2
    assert facts["machine"]["vectors"] == torch.backends.cpu.get_cpu_capability()
    assert facts["machine"]["cpu"] and facts["machine"]["cores"] == os.cpu_count()
    assert facts["flags"]["deterministic_algorithms"] is False
    assert "cudnn_benchmark" not in facts["flags"] and facts["machine"]["gpu"] is None
    assert set(facts["plugins"]["vecmat"]["used"]) == {"conditioner", "generator"}


def test_the_libraries_that_torch_was_built_with_have_their_versions() -> None:
    built, facts = torch.__config__.show(), environment.facts(CPU)["versions"]
    for name, words in (("mkl", "Math Kernel Library Version "), ("onednn", "MKL-DNN v")):
        assert (name in facts) is (words in built)
        assert name not in facts or words + facts[name] in built


def test_only_relevant_environment_variables_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(environment.ENVIRONMENT):
            monkeypatch.delenv(name)
    assert environment.facts(CPU)["environment"] == {}
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert environment.facts(CPU)["environment"] == {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "MKL_CBWR": "COMPATIBLE"}


def test_the_recorded_threads_are_those_of_the_environment(run_python: Callable[..., Any]) -> None:
    code = (
        "import json, torch; from interpkit.runtime.environment import facts;"
        " print(json.dumps(facts(torch.device('cpu'))))"
    )
    result: subprocess.CompletedProcess[str] = run_python("-c", code, env={"OMP_NUM_THREADS": "2"})
    facts = json.loads(result.stdout)
    assert (facts["threads"], facts["environment"]["OMP_NUM_THREADS"]) == (2, "2")


def test_how_float32_is_multiplied_is_recorded(run_python: Callable[..., Any]) -> None:
    code = """
import torch; from interpkit.runtime.environment import facts
for precision in ("highest", "medium"):
    torch.set_float32_matmul_precision(precision)
    print(facts(torch.device("cpu"))["flags"]["matmul_precision"])
"""  # in a separate process, because the default cannot be restored
    exact, rough = run_python("-c", code).stdout.split()
    assert exact in ("highest", "ieee") and rough not in (exact, "None")


def test_a_gpu_is_recorded_with_its_libraries_and_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A Card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 92400)
    facts = environment.facts(torch.device("cuda"))
    assert (facts["machine"]["gpu"], facts["machine"]["compute_capability"]) == ("A Card", "9.0")
    assert facts["versions"]["cudnn"] == "92400" and "cuda" in facts["versions"]
    assert (facts["flags"]["cudnn_deterministic"], facts["flags"]["cudnn_benchmark"]) == (False, False)
    assert facts["flags"]["cudnn_precision"] == "tf32"


# ------------------------------------------------------------------------------------------- compared


def test_an_unchanged_environment_has_no_changes() -> None:
    assert changed(json.loads(json.dumps(environment.facts(CPU)))) == {}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"threads": 63}, {"threads": (63, 1)}),
        ({"processes": 4}, {"processes": (4, 1)}),
        ({"interpkit": "0.0.1"}, {"interpkit": ("0.0.1", interpkit.__version__)}),
        ({"versions": {"torch": "1.0", "pluggy": "0.1", "cudnn": "9"}}, {"torch": ("1.0", version("torch"))}),
        ({"machine": {"gpu": "A Card", "cores": 99, "system": "x"}}, {"gpu": ("A Card", None)}),
        ({"flags": {"deterministic_algorithms": True}}, {"deterministic_algorithms": (True, False)}),
        ({"environment": {"MKL_CBWR": "AVX2", "OMP_NUM_THREADS": "63"}}, {"$MKL_CBWR": ("AVX2", None)}),
        ({"interop_threads": 99}, {}),
    ],
)
def test_changed_facts_that_determine_the_numbers_are_returned(
    change: dict[str, Any], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {})
    here = environment.facts(CPU)
    recorded = {**here, **change}
    recorded |= {name: {**here[name], **table} for name, table in change.items() if isinstance(table, dict)}
    assert environment.changed(recorded, here) == expected


def test_a_newly_set_environment_variable_counts_as_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MKL_CBWR", raising=False)
    recorded = environment.facts(CPU)
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    assert changed(recorded) == {"$MKL_CBWR": (None, "AVX2")}
    del recorded["environment"]  # as in an old manifest that does not record it
    assert changed(recorded) == {}


def test_facts_missing_in_a_manifest_are_not_changes() -> None:
    assert changed({}) == {}


# ------------------------------------------------------------------------------------------- resumed


def test_a_run_resumed_on_another_machine_warns_and_records_both(
    run_copy: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorded = Run.open(run_copy).manifest().to_dict()
    plugins = {name: plugin | {"version": "0.0.1"} for name, plugin in recorded["plugins"].items()}
    rewrite(run_copy, threads=63, plugins=plugins)
    interpkit.invert(tiny_model, out=run_copy, resume=True, steps=14)
    (line,) = [
        record.getMessage() for record in caplog.records if "computed under other conditions" in record.getMessage()
    ]
    assert "threads 63 -> 1" in line and "\n" not in line
    assert "plugin vecmat '0.0.1' ->" in line and "plugin captum" not in line  # only of plugins that are used
    facts = Run.open(run_copy).manifest().to_dict()
    assert (facts["threads"], facts["status"], facts["steps_done"]) == (1, "finished", 14)
    assert facts["plugins"] == recorded["plugins"]
    (move,) = facts["moves"]
    assert (move["after_step"], move["was"]["threads"], move["was"]["plugin vecmat"]) == (12, 63, "0.0.1")


def test_each_move_of_a_run_is_kept(run_copy: Path, tiny_model: Path) -> None:
    for number, steps in enumerate((13, 14), 2):
        rewrite(run_copy, threads=number * 10)
        interpkit.invert(tiny_model, out=run_copy, resume=True, steps=steps)
    moves = Run.open(run_copy).manifest().moves
    assert [(move["after_step"], move["was"]) for move in moves] == [(12, {"threads": 20}), (13, {"threads": 30})]


def test_a_run_resumed_on_the_same_machine_does_not_warn(
    run_copy: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    interpkit.invert(tiny_model, out=run_copy, resume=True, steps=13)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "moves" not in Run.open(run_copy).manifest().to_dict()


def test_a_rerun_on_another_machine_warns_but_one_from_a_plain_file_does_not(
    run_copy: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rewrite(run_copy, versions={"torch": "1.0\x1b[2J"})
    prepare(tiny_model, config=run_copy / "recipe.toml")
    (line,) = [record.getMessage() for record in caplog.records]
    assert re.search(r"so the numbers may differ: torch '1\.0\\x1b\[2J' -> ", line)
    caplog.clear()
    (run_copy / "manifest.json").write_text('{"name": "of something else"}')
    prepare(tiny_model, config=run_copy / "recipe.toml")
    (run_copy / "manifest.json").unlink()
    prepare(tiny_model, config=run_copy / "recipe.toml")
    assert not caplog.records
