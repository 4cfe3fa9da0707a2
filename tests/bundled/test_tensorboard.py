"""The events that the TensorBoard plugin writes, read back by TensorBoard itself."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import interpkit_tensorboard
import pytest
import torch
from torch import nn

import interpkit
from interpkit.plugins.discovery import installed


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Check that a test leaves no open writer."""
    yield
    assert interpkit_tensorboard.writers == []


def target(channels: int = 1) -> interpkit.Target:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(channels * 64, 3))
    return interpkit.wrap(net, input_shape=(channels, 8, 8), name="tiny")


def run(model: interpkit.Target) -> interpkit.Inversion:
    return interpkit.invert(model, ["vecmat"], steps=20, batch_size=8, options={"generator.width": 8})


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("channels", [1, 3])
def test_a_run_writes_its_history_recipe_and_samples(
    channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setenv(interpkit_tensorboard.PLACE, str(tmp_path))
    inversion = run(target(channels))
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("tiny-")
    written = events(folder)
    assert set(written.Tags()["scalars"]) == {"loss", "inversion_accuracy", "terms/kl", "terms/ce", "terms/cosine"}
    losses = {event.step: event.value for event in written.Scalars("loss")}
    assert losses == pytest.approx({record.step: record.loss for record in inversion.history})
    (grid,) = written.Images("samples")
    assert (grid.width, grid.height, grid.step) == (8 * 8, 3 * 8, 20)
    assert "recipe/text_summary" in written.Tags()["tensors"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_run_has_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setenv(interpkit_tensorboard.PLACE, str(tmp_path))
    for _ in range(2):
        run(target())
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_folder_of_a_run_that_failed_is_closed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setenv(interpkit_tensorboard.PLACE, str(tmp_path))

    def stop(step: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interpkit.invert(target(), ["vecmat"], steps=20, batch_size=8, on_step=stop)
    (failed,) = interpkit_tensorboard.writers
    run(target())
    assert interpkit_tensorboard.writers == [] and failed.all_writers is None  # which is how torch marks a closed one


def test_without_the_variable_nothing_is_written_and_tensorboard_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(interpkit_tensorboard.PLACE, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # an import would raise
    run(target())
    assert list(tmp_path.iterdir()) == []


def test_without_tensorboard_the_run_continues_and_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(interpkit_tensorboard.PLACE, str(tmp_path))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with caplog.at_level(logging.WARNING, "interpkit"):
        assert run(target()).steps_done == 20
    assert interpkit.install_extra("tensorboard") in caplog.text


def test_the_plugin_is_found_by_its_entry_point() -> None:
    assert installed().found["tensorboard"].status == "ok"
