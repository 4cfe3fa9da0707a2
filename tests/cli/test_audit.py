"""``interpkit audit``: what it prints, writes and exits with, for a test that finds what its option states."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

import interpkit
from interpkit import Audit, AuditCase, Strip, Tested
from interpkit.cli import app


class Sure(Audit):
    """A finding of any p-value in class 1."""

    name = "sure"
    kind = "trigger"
    question = "Is it sure?"
    limits = "It sees nothing."
    needs_gradient = False
    screens = True

    class Options(interpkit.Options):
        p: float = 1.0

    options: Options

    def test(self, case: AuditCase) -> Tested:
        p_values = {c: self.options.p if c == 1 else 1.0 for c in case.classes}
        pictures = {1: [Strip("seen", torch.rand(2, *case.target.input_shape, generator=case.rng()))]}
        return Tested(dict.fromkeys(p_values, 0.0), p_values, {1: "It is."}, pictures, {"sure.1": torch.zeros(2)})


@pytest.fixture(autouse=True)
def _sure(add_plugin: Callable[..., None]) -> None:
    add_plugin(Sure)


def cli(source: Path, p: float, *arguments: str | Path) -> Result:
    words = ["audit", source, "--device", "cpu", "--test", "sure", "--set", f"sure.p={p}", *arguments]
    return CliRunner().invoke(app, list(map(str, words)))


def test_a_finding_is_printed_and_a_page_written(tiny_model: Path, tmp_path: Path) -> None:
    result = cli(tiny_model, 1e-4, "--out", tmp_path / "found")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(tmp_path / "found" / "audit.html")
    assert "alarm: class 1: trigger (p = 0.0003). It is." in " ".join(result.stderr.split())
    assert "Almost certainly not clean" in (tmp_path / "found" / "audit.html").read_text()


def test_no_finding_does_not_certify_anything(tiny_model: Path, tmp_path: Path) -> None:
    result = cli(tiny_model, 0.5, "--out", tmp_path / "found")
    assert result.exit_code == 0
    assert "nothing found, which does not mean that nothing is there" in " ".join(result.stderr.split())


def test_json_has_the_keys_that_stay(tiny_model: Path, tmp_path: Path) -> None:
    result = cli(tiny_model, 1e-4, "--out", tmp_path / "found", "--json")
    told = json.loads(result.stdout)
    assert told == json.loads((tmp_path / "found" / "audit.json").read_text())
    assert (told["schema"], told["flagged"]) == (1, True)
    (finding,) = told["findings"]
    assert {"test", "kind", "class", "p_value", "evidence"} <= finding.keys()
    assert finding["class"] == 1 and finding["p_value"] == pytest.approx(3e-4)


@pytest.mark.parametrize(
    ("p", "level", "code"),
    [(1e-4, "alarm", 5), (1e-4, "warning", 5), (1e-2, "alarm", 0), (1e-2, "warning", 5), (0.5, "warning", 0)],
)
def test_the_exit_code_is_that_of_the_level(tiny_model: Path, tmp_path: Path, p: float, level: str, code: int) -> None:
    assert cli(tiny_model, p, "--out", tmp_path / "found", "--fail-on", level).exit_code == code


def test_a_level_that_does_not_exist_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    result = cli(tiny_model, 0.5, "--out", tmp_path / "found", "--fail-on", "error")
    assert result.exit_code == 2 and "--fail-on takes warning or alarm" in " ".join(result.stderr.split())
    assert not (tmp_path / "found").exists()


def test_the_audit_of_a_run_lies_in_the_run_and_the_next_replaces_it(run_copy: Path) -> None:
    page = run_copy / "audit" / "audit.html"
    assert cli(run_copy, 1e-4).stdout.strip() == str(page)
    assert "Almost certainly" in page.read_text()
    assert cli(run_copy, 0.5).exit_code == 0
    assert "Nothing was found" in page.read_text()
    assert json.loads((page.parent / "audit.json").read_text())["flagged"] is False


def test_the_audit_of_a_file_lies_in_a_folder_of_its_name(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli(tiny_model, 0.5).stdout.strip() == str(Path("audits", tiny_model.stem, "audit.html"))


def test_what_cannot_be_read_is_one_message(tiny_model: Path, tmp_path: Path) -> None:
    result = cli(tmp_path / "missing.safetensors", 0.5)
    assert result.exit_code == 3 and result.stderr.startswith("error: ") and "Traceback" not in result.output
    result = cli(tiny_model, 0.5, "--reference", tmp_path / "missing.npz")
    assert result.exit_code == 2 and "missing.npz" in result.stderr
