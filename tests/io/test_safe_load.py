"""Files of torch.save that hold tensors and plain values alone."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from interpkit import load_plain


@pytest.mark.parametrize("archive", [True, False])
def test_tensors_and_plain_values_are_read(tmp_path: Path, archive: bool) -> None:
    path = tmp_path / "state.pt"
    torch.save({"w": torch.arange(3.0), "step": 7}, path, _use_new_zipfile_serialization=archive)
    found = load_plain(path)
    assert found["step"] == 7 and found["w"].tolist() == [0.0, 1.0, 2.0]


def test_a_tensor_that_is_a_number_repeated_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    torch.save({"w": torch.zeros(1).expand(10_000, 10_000)}, path)
    with pytest.raises(ValueError, match="its tensors have 400,000,000 bytes together"):
        load_plain(path)


def test_an_archive_that_unpacks_to_more_than_it_is_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(5_000_000))
    with pytest.raises(ValueError, match="it unpacks to 5,000,000 bytes"):
        load_plain(path)
