"""Where results go: no file of a run is replaced, links to folders and files are followed, and it is known early."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import interpkit
from interpkit import RunError, UsageError
from interpkit.api.outputs import result_file, result_folder

OUT = ["report.html"]


def test_a_file_is_what_the_user_named_or_the_end_of_a_link(run_copy: Path, tmp_path: Path) -> None:
    file, link = tmp_path / "a.safetensors", tmp_path / "link.safetensors"
    assert result_file(file) == file
    link.symlink_to(file)
    assert result_file(link) == file.resolve()
    link.unlink()
    samples = run_copy / "samples.safetensors"
    link.symlink_to(samples)
    with pytest.raises(UsageError, match="is a file of the run in"):
        result_file(link)
    samples.rename(file)
    samples.symlink_to(file)
    with pytest.raises(UsageError, match="is a file of the run in"):
        result_file(samples)


def test_a_folder_may_be_new_or_a_link_but_no_run(run_copy: Path, tmp_path: Path) -> None:
    assert result_folder(tmp_path / "new" / "er", OUT) == tmp_path / "new" / "er"
    assert not (tmp_path / "new").exists()  # until there is a result
    (tmp_path / "new").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "new")
    assert result_folder(tmp_path / "link", OUT) == tmp_path / "link"
    assert result_folder(run_copy, ["other.html"]) == run_copy
    with pytest.raises(UsageError, match=r"report\.html is a file of the run in"):
        result_folder(run_copy, OUT)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot make the folder .*file: File exists"):
        result_folder(tmp_path / "file", OUT)


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    tiny_target: interpkit.Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    images, labels = torch.rand(60, 1, 12, 12), torch.arange(60) % 3

    def computed(*_: object) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.setattr("interpkit.api.audit.contracts.tested", computed)
    monkeypatch.setattr("interpkit.api.concepts.found_by.read", computed)
    monkeypatch.setattr("interpkit.api.counterfactual.nearest", computed)
    for place in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(RunError, match="cannot make the folder"):
            interpkit.audit(tiny_target, reference=(images, labels), tests=["patch"], out=place, device="cpu")
        with pytest.raises(RunError, match="cannot make the folder"):
            interpkit.concepts(tiny_target, images, out=place, device="cpu")
        with pytest.raises(RunError, match="cannot make the folder"):
            interpkit.counterfactual(tiny_target, images, out=place, device="cpu")


def test_a_link_to_a_folder_receives_the_result(tiny_target: interpkit.Target, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    images = torch.rand(60, 1, 12, 12)
    interpkit.concepts(tiny_target, images, latents=4, steps=2, out=tmp_path / "link", device="cpu")
    assert (tmp_path / "disk" / "concepts.json").exists() and (tmp_path / "link").is_symlink()
