"""`interpkit audit`: what it corrects, writes and prints, and what it refuses; with tests of which all is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner, Result

import interpkit
from interpkit import Audit, AuditReport, Strip, Tested, TooFew, UsageError
from interpkit.cli import app


class Known(Audit):
    """It finds what it is made to find, and needs no images."""

    name = "known"
    kind = "made-up fault"
    question = "Is there anything?"
    limits = "It does not look."
    screens = True
    needs_gradient = False
    p_values: ClassVar[Any] = {0: 0.5, 1: 1e-6, 2: 0.02}

    def test(self, case: Any) -> Tested:
        pictures = {c: [Strip("gray", torch.full((2, *case.target.input_shape), 0.5))] for c in case.classes}
        evidence = {c: f"Evidence against <{c}>." for c in self.p_values}
        kept = {f"{self.name}.0": torch.ones(2)}
        return Tested(dict.fromkeys(self.p_values, 1.0), self.p_values, evidence, pictures, kept)


class Whole(Known):
    """It finds something in the classifier as a whole."""

    name = "whole"
    p_values: ClassVar[Any] = {None: 0.012}


class Clean(Known):
    """It finds nothing."""

    name = "clean"
    p_values: ClassVar[Any] = {0: 1.0, 1: 0.4, 2: 0.3}


class Lacking(Known):
    """It has too few of everything."""

    name = "lacking"

    def test(self, case: Any) -> Tested:
        raise TooFew("it takes 1,000 classes.")


class Looking(Known):
    """It takes images."""

    name = "looking"
    screens = False
    needs = ("reference",)


@pytest.fixture(autouse=True)
def _mine(add_plugin: Callable[..., None]) -> None:
    add_plugin(Known, Whole, Clean, Lacking, Looking)


def cli(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["audit", *map(str, arguments)])


def test_findings_are_corrected_over_all_tests_and_classes_and_sorted(tiny_target: interpkit.Target) -> None:
    report = interpkit.audit(tiny_target, tests=["known", "whole"])
    assert isinstance(report, AuditReport) and report.flagged
    found = [(f["test"], f["class"], f["p_value"], f["level"]) for f in report.findings]
    # Holm's: 4 * 1e-6, 3 * 0.012, 2 * 0.02
    assert [row[:2] for row in found] == [("known", 1), ("whole", None), ("known", 2)]
    assert [row[2] for row in found] == pytest.approx([4e-6, 0.036, 0.04])
    assert [row[3] for row in found] == ["alarm", "warning", "warning"]
    assert report.findings[0]["name"] == tiny_target.class_names[1] and report.findings[1]["name"] is None
    rows = report.record["tests"]["known"]["classes"]
    assert [row["uncorrected"] for row in rows] == [0.5, 1e-6, 0.02]


def test_the_files_have_the_documented_keys(tiny_target: interpkit.Target, tmp_path: Path) -> None:
    report = interpkit.audit(tiny_target, tests=["known", "lacking"], out=tmp_path / "audit", seed=3)
    record = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert record == report.record
    assert set(record) >= {"schema", "flagged", "findings", "tests", "left_out", "classes", "images", "seed"}
    assert (record["schema"], record["flagged"], record["seed"]) == (1, True, 3)
    assert set(record["findings"][0]) == {"test", "kind", "class", "name", "p_value", "level", "evidence"}
    assert record["left_out"] == {"lacking": "it takes 1,000 classes."}
    assert record["classes"] == {"tested": [0, 1, 2], "of": 3, "names": list(tiny_target.class_names)}
    page = (tmp_path / "audit" / "audit.html").read_text()
    assert "Evidence against &lt;1&gt;." in page and "data:image/" in page
    assert "lacking was left out: it takes 1,000 classes." in page and "It does not look." in page
    kept = load_file(tmp_path / "audit" / "audit.safetensors")
    assert torch.equal(kept["known.0"], torch.ones(2))


def test_a_classifier_without_a_finding_is_not_flagged(tiny_target: interpkit.Target, tmp_path: Path) -> None:
    report = interpkit.audit(tiny_target, tests=["clean"], out=tmp_path / "audit")
    assert not report.flagged and report.findings == []
    assert "This does not mean that the classifier is clean" in (tmp_path / "audit" / "audit.html").read_text()


@pytest.mark.parametrize(
    ("test", "level", "code"),
    [("known", "alarm", 5), ("whole", "alarm", 0), ("whole", "warning", 5), ("clean", "warning", 0)],
)
def test_fail_on_sets_the_exit_code(tiny_model: Path, tmp_path: Path, test: str, level: str, code: int) -> None:
    result = cli(tiny_model, "--test", test, "--fail-on", level, "--json", "--out", tmp_path / "audit")
    assert result.exit_code == code, result.stderr
    assert json.loads(result.stdout)["tests"].keys() == {test}


def test_the_command_prints_findings_and_the_page(tiny_model: Path, tmp_path: Path) -> None:
    result = cli(tiny_model, "--test", "known", "--test", "whole", "--out", tmp_path / "audit")
    assert (result.exit_code, result.stdout.strip()) == (0, str(tmp_path / "audit" / "audit.html"))
    said = " ".join(result.stderr.split())
    assert "class 1: made-up fault (p = 4e-06). Evidence against <1>." in said
    assert "warning: the whole classifier: made-up fault" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--test", "no-such"], "no-such"),
        (["--test", "looking"], "the test 'looking' needs reference images"),
        (["--test", "lacking"], "no test could be made: lacking: it takes 1,000 classes"),
        (["--test", "known", "--fail-on", "error"], "--fail-on takes warning or alarm, not 'error'"),
        (["--test", "known", "--set", "clean.sd=1"], "no test 'clean' is made here"),
        (["--test", "known", "--set", "known.sd=1"], "sd"),
    ],
)
def test_a_wrong_call_is_refused(tiny_model: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    result = cli(tiny_model, *arguments, "--out", tmp_path / "audit")
    assert result.exit_code in (2, 4) and result.stdout == ""
    assert words in " ".join(result.stderr.split()) and "Traceback" not in result.stderr
    assert not (tmp_path / "audit").exists()


def test_a_classifier_with_one_answer_is_refused() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    nn.init.zeros_(module[1].weight)
    module[1].bias.data = torch.tensor([0.0, 1.0, 0.0])
    images, labels = torch.rand(9, 1, 6, 6), torch.arange(9) % 3
    with pytest.raises(UsageError, match="gives one answer to all 9 real images"):
        interpkit.audit(interpkit.wrap(module, (1, 6, 6)), reference=(images, labels), tests=["looking"])
