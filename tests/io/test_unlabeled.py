"""Pictures whose labels are missing, or do not matter."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from interpkit.errors import UsageError
from interpkit.io.unlabeled import load_unlabeled

SHAPE = (1, 8, 8)


def gray(folder: Path, name: str, level: int, side: int = 8) -> None:
    folder.mkdir(exist_ok=True)
    Image.fromarray(np.full((side, side), level, np.uint8)).save(folder / name)


def test_an_npz_needs_no_labels_and_any_that_it_has_are_ignored(tmp_path: Path) -> None:
    images = np.arange(4, dtype=np.uint8).repeat(64).reshape(4, 8, 8)
    np.savez(tmp_path / "bare.npz", images=images)
    np.savez(tmp_path / "letters.npz", x_train=images, y_train=["alpha", "beta", "gamma", "delta"], x_test=images[:1])
    bare = load_unlabeled(str(tmp_path / "bare.npz"), SHAPE)
    assert bare[:, 0, 0, 0].mul(255).round().tolist() == [0, 1, 2, 3]
    assert torch.equal(bare, load_unlabeled(f"{tmp_path}/letters.npz:train", SHAPE))
    assert len(load_unlabeled(f"{tmp_path}/letters.npz", SHAPE)) == 1


def test_a_folder_is_read_with_the_folders_in_it_whatever_they_are_called(tmp_path: Path) -> None:
    gray(tmp_path, "b.png", 20)
    gray(tmp_path, "a.png", 10)
    gray(tmp_path / "no class", "c.png", 30)
    assert load_unlabeled(str(tmp_path), SHAPE)[:, 0, 0, 0].mul(255).round().tolist() == [10, 20, 30]
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match="no pictures in it"):
        load_unlabeled(str(tmp_path / "none"), SHAPE)


def test_a_table_needs_no_label_column(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("width,height\n1.5,2\n3,4\n")
    assert load_unlabeled(str(tmp_path / "rows.csv"), (2,)).tolist() == [[1.5, 2], [3, 4]]
    (tmp_path / "bare.csv").write_text("1.5,2\n3,4\n")  # without a header
    assert load_unlabeled(str(tmp_path / "bare.csv"), (2,)).tolist() == [[1.5, 2], [3, 4]]
    (tmp_path / "named.csv").write_text("width,height,species\n1.5,2,unheard of\n")
    assert load_unlabeled(str(tmp_path / "named.csv"), (2,)).tolist() == [[1.5, 2]]
    gray(tmp_path, "a.png", 51)
    (tmp_path / "files.csv").write_text("image\na.png\n")
    assert load_unlabeled(str(tmp_path / "files.csv"), SHAPE).mean().item() == pytest.approx(0.2)


@pytest.mark.parametrize("kind", ["int64", "float32"])
def test_values_beyond_1_of_another_size_are_refused_as_those_of_the_same_size_are(tmp_path: Path, kind: str) -> None:
    for name, side in (("same", 8), ("larger", 20)):
        np.savez(tmp_path / f"{name}.npz", images=np.full((2, side, side), 100).astype(kind))
        with pytest.raises(UsageError, match=f"{name}.npz has images from .* to 100: pass uint8, or float"):
            load_unlabeled(str(tmp_path / f"{name}.npz"), SHAPE, resize=True)


@pytest.mark.parametrize("layout", ["gray", "channels first", "channels last", "floats", "files"])
def test_pictures_of_another_size_are_refused_unless_they_may_be_resized(tmp_path: Path, layout: str) -> None:
    place = tmp_path / ("pictures" if layout == "files" else "pictures.npz")
    if layout == "files":
        gray(place, "a.png", 102, side=20)
    else:
        sides = {"gray": (20, 20), "channels first": (3, 20, 20), "channels last": (20, 20, 3), "floats": (20, 20)}
        value = np.float32(0.4) if layout == "floats" else np.uint8(102)
        np.savez(place, images=np.full((1, *sides[layout]), value))
    with pytest.raises(UsageError, match=r"pictures of .*20.*takes \(1, 8, 8\)"):
        load_unlabeled(str(place), SHAPE)
    assert load_unlabeled(str(place), SHAPE, resize=True).flatten().tolist() == pytest.approx([0.4] * 64)
    assert load_unlabeled(str(place), (3, 16, 16), resize=True).mean().item() == pytest.approx(0.4)


def test_pictures_of_torchvision_are_downloaded_only_where_they_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    asked: list[bool] = []

    def mnist(root: str, train: bool, download: bool) -> SimpleNamespace:
        asked.append(download)
        return SimpleNamespace(data=torch.zeros(2, 8, 8, dtype=torch.uint8), targets=torch.tensor([1, 0]))

    monkeypatch.setattr(torchvision.datasets, "MNIST", mnist)
    for download in (True, False):
        assert load_unlabeled("torchvision:MNIST", SHAPE, download=download).shape == (2, *SHAPE)
    assert asked == [True, False]


def test_a_source_without_pictures_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "masks.npz", masks=np.zeros((2, 8, 8)))
    with pytest.raises(UsageError, match="has masks; it needs x_test, or test_images, or images"):
        load_unlabeled(str(tmp_path / "masks.npz"), SHAPE)
    with pytest.raises(UsageError, match="holds no pictures"):
        load_unlabeled(str(tmp_path / "weights.pth"), SHAPE)
    np.savez(tmp_path / "many.npz", images=np.zeros((2, 5, 20, 20)))
    with pytest.raises(UsageError, match="both need 1 or 3 channels"):
        load_unlabeled(str(tmp_path / "many.npz"), SHAPE, resize=True)
