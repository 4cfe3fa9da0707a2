"""Reference data in all common layouts are read as the same images, and invalid data are refused with the reason."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from interpkit import LabelledImages, UsageError
from interpkit.io.datasets import checked, load_data, read_picture
from interpkit.io.images import save_images

GRAY, COLOR, VECTOR = (1, 4, 6), (3, 4, 6), (5,)
NAMES = ("cat", "dog", "7")


def numbers(*shape: int) -> np.ndarray:
    """Return 8-bit numbers that are as distinct as possible."""
    return np.arange(np.prod(shape)).reshape(shape).astype(np.uint8)


def saved(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


def refused(spec: str | Path, words: str, shape: tuple[int, ...] = GRAY, names: tuple[str, ...] = ()) -> None:
    with pytest.raises(UsageError, match=words):
        load_data(str(spec), shape, names)


def picture(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


# ------------------------------------------------------------------------------------------------------- .npz


def test_the_named_split_is_read_by_default_the_test_split(tmp_path: Path) -> None:
    test, train = np.zeros((2, *GRAY), np.uint8), np.full((3, *GRAY), 255, np.uint8)
    spec = saved(tmp_path / "both.npz", x_test=test, y_test=[0, 1], x_train=train, y_train=[2, 1, 0])
    assert load_data(spec, GRAY).labels.tolist() == load_data(f"{spec}:test", GRAY).labels.tolist() == [0, 1]
    found = load_data(f"{spec}:train", GRAY)
    assert found.labels.tolist() == [2, 1, 0] and (found.images == 1).all()
    refused(
        f"{spec}:valid",
        r"has x_test, y_test, x_train, y_train; it needs x_valid and y_valid, or valid_images and valid_labels, or im",
    )


def test_images_and_labels_are_read_if_there_is_no_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = saved(tmp_path / "data.npz", images=numbers(2, *GRAY), labels=[1, 0])
    assert load_data(spec, GRAY).labels.tolist() == [1, 0] and caplog.text == ""
    assert load_data(f"{spec}:train", GRAY).labels.tolist() == [1, 0]
    assert "has no split 'train': using its images and labels" in caplog.text


@pytest.mark.parametrize(
    ("stored", "shape"),
    [
        (lambda x: x, COLOR),
        (lambda x: x.transpose(0, 2, 3, 1), COLOR),
        (lambda x: x, GRAY),
        (lambda x: x.transpose(0, 2, 3, 1), GRAY),
        (lambda x: x[:, 0], GRAY),
        (lambda x: np.asfortranarray(x), COLOR),
        (lambda x: x, VECTOR),
    ],
    ids=["CHW", "HWC", "gray", "gray HWC", "gray HW", "column by column", "vectors"],
)
def test_every_layout_is_converted_to_the_classifiers(
    stored: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...], tmp_path: Path
) -> None:
    given = numbers(2, *shape)
    data = load_data(saved(tmp_path / "data.npz", images=stored(given), labels=np.array([0, 1], np.int16)), shape)
    expected = torch.from_numpy(given.copy()).float() / (255 if len(shape) == 3 else 1)
    assert torch.equal(data.images, expected)
    assert data.images.dtype == torch.float32 and data.labels.dtype == torch.int64


def test_an_image_of_ambiguous_layout_is_not_transposed(tmp_path: Path) -> None:
    given = numbers(1, 3, 3, 3)
    data = load_data(saved(tmp_path / "data.npz", images=given, labels=[0]), (3, 3, 3))
    assert torch.equal(data.images, torch.from_numpy(given) / 255)


def test_names_may_be_bytes(tmp_path: Path) -> None:
    labels = np.array([name.encode() for name in ("Äpfel", "dog")])
    np.savez(tmp_path / "names.npz", images=np.zeros((2, 4, 4)), labels=labels)
    assert load_data(str(tmp_path / "names.npz"), (1, 4, 4), ["dog", "Äpfel"]).labels.tolist() == [1, 0]


def test_bytes_of_only_0_and_1_cause_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    np.savez(tmp_path / "masks.npz", images=np.eye(4, dtype=np.uint8)[None], labels=[0])
    assert load_data(str(tmp_path / "masks.npz"), (1, 4, 4)).images.max() < 0.01
    assert "multiply by 255" in caplog.text


def test_an_ambiguous_class_name_is_refused_but_its_number_is_accepted(tmp_path: Path) -> None:
    names = ["crane", "dog", "crane"]
    np.savez(tmp_path / "names.npz", images=np.zeros((2, 4, 4)), labels=["dog", "crane"])
    with pytest.raises(UsageError, match="the classes 0 and 2 are all named 'crane'"):
        load_data(str(tmp_path / "names.npz"), (1, 4, 4), names)
    np.savez(tmp_path / "numbers.npz", images=np.zeros((2, 4, 4)), labels=["dog", "2"])
    assert load_data(str(tmp_path / "numbers.npz"), (1, 4, 4), names).labels.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": numbers(2, 4, 5), "labels": [0, 1]}, r"images of shape \(1, 4, 5\); .* takes \(1, 4, 6\)"),
        ({"images": numbers(2, 5), "labels": [0, 1]}, r"images of shape \(5,\)"),
        ({"images": numbers(2, 4, 6), "labels": [0]}, r"label for each of its 2 images, not int64 \(1,\)"),
        ({"images": numbers(2, 4, 6), "labels": [[0, 1], [1, 1]]}, r"not int64 \(2, 2\)"),
        ({"images": numbers(2, 4, 6), "labels": [0.5, 1.0]}, "not float64"),
        ({"images": numbers(2, 4, 6), "labels": [np.nan, 1.0]}, "not float64"),
        ({"images": numbers(2, 4, 6), "labels": [np.inf, 1.0]}, "not float64"),
        ({"images": numbers(2, 4, 6), "labels": ["9" * 30, "1"]}, "no class is named '999"),
        ({"images": numbers(2, 4, 6), "labels": ["cat", "bird"]}, "no class is named 'bird'. Classes: cat, dog, 7"),
        ({"images": numbers(0, 4, 6), "labels": np.zeros(0, int)}, "each of its 0 images"),
        ({"images": numbers(2, 4, 6) * 1j, "labels": [0, 1]}, "complex128, which cannot be pixel values"),
        ({"images": np.full((2, 4, 6), "a"), "labels": [0, 1]}, "cannot be pixel values"),
        ({"images": np.full((2, 4, 6), 1.5), "labels": [0, 1]}, r"images from 1.5 to 1.5: pass uint8"),
        ({"images": np.full((2, 4, 6), -0.5), "labels": [0, 1]}, r"images from -0.5"),
        ({"images": np.full((2, 4, 6), np.nan), "labels": [0, 1]}, "from nan to nan"),
        ({"images": np.full((2, 4, 6), 1e300), "labels": [0, 1]}, "from inf to inf"),
        ({"images": np.array([{}] * 2, object), "labels": [0, 1]}, "images.npy holds Python objects"),
        ({"images": numbers(2, 4, 6), "labels": [0, 3]}, "the label 3; the classifier's are 0 to 2"),
        ({"images": numbers(2, 4, 6), "labels": [0, -1]}, "the label -1"),
        ({"picture": numbers(2, 4, 6), "labels": [0, 1]}, "has picture, labels; it needs x_test and y_test"),
    ],
    ids=str,
)
def test_arrays_that_do_not_fit_are_refused_with_what_was_found(
    arrays: dict[str, Any], words: str, tmp_path: Path
) -> None:
    refused(saved(tmp_path / "data.npz", **arrays), words, names=NAMES)


@pytest.mark.parametrize(
    ("images", "labels"),
    [("x_test", "y_test"), ("test_images", "test_labels"), ("images", "labels"), ("X", "y"), ("data", "target")],
)
@pytest.mark.parametrize(
    "stored",
    [[2, 0], [[2], [0]], [2.0, 0.0], [[0, 0, 1], [1, 0, 0]], ["7", "cat"]],
    ids=["numbers", "column", "whole floats", "one-hot", "names"],
)
def test_every_notation_of_labels_is_read(images: str, labels: str, stored: Any, tmp_path: Path) -> None:
    spec = saved(tmp_path / "data.npz", **{images: numbers(2, *GRAY), labels: stored})
    assert load_data(spec, GRAY, NAMES).labels.tolist() == [2, 0]


def test_a_medmnist_split_is_read_by_its_name(tmp_path: Path) -> None:
    arrays = {f"{split}_images": numbers(n, 4, 6) for n, split in enumerate(("train", "val", "test"), 1)}
    arrays |= {f"{split}_labels": np.full((n, 1), n - 1) for n, split in enumerate(("train", "val", "test"), 1)}
    spec = saved(tmp_path / "med.npz", **arrays)
    assert load_data(f"{spec}:val", GRAY).labels.tolist() == [1, 1]
    assert load_data(spec, GRAY).labels.tolist() == [2, 2, 2]


def test_a_colon_in_a_path_does_not_start_a_split(tmp_path: Path) -> None:
    place = tmp_path / "run:2"
    picture(place / "1" / "a.png", numbers(4, 6))
    arrays = {"x_test": numbers(1, 4, 6), "y_test": [1], "x_train": numbers(2, 4, 6), "y_train": [0, 0]}
    spec = saved(place / "a:b.npz", **arrays)
    assert load_data(str(place), GRAY).labels.tolist() == load_data(spec, GRAY).labels.tolist() == [1]
    assert load_data(f"{spec}:train", GRAY).labels.tolist() == [0, 0]


def test_signals_and_volumes_become_vectors(tmp_path: Path) -> None:
    for shape in ((2, 5), (1, 2, 3, 4)):
        given = np.random.default_rng(0).random((2, *shape))
        data = load_data(saved(tmp_path / "data.npz", X=given, y=[0, 1]), shape)
        assert torch.equal(data.images, torch.from_numpy(given).float().flatten(1))
        refused(saved(tmp_path / "data.npz", X=given.swapaxes(1, -1), y=[0, 1]), "has images of shape", shape)
    spec = saved(tmp_path / "data.npz", X=given[:, 0], y=[0, 1])  # one channel, as MedMNIST stores volumes
    assert torch.equal(load_data(spec, (1, 2, 3, 4)).images, data.images)


def test_vectors_may_hold_any_finite_number(tmp_path: Path) -> None:
    given = np.array([[-4.0, 3e9, 0, 1, 2]] * 2)
    assert torch.equal(
        load_data(saved(tmp_path / "a.npz", images=given, labels=[0, 1]), VECTOR).images,
        torch.from_numpy(given).float(),
    )
    given[1, 2] = np.inf
    refused(saved(tmp_path / "b.npz", images=given, labels=[0, 1]), "values that are not finite", VECTOR)


def test_values_slightly_out_of_range_are_accepted_as_rounding(tmp_path: Path) -> None:
    for value, fits in ((1.0009, True), (-0.0009, True), (1.002, False), (-0.002, False)):
        spec = saved(tmp_path / "data.npz", images=np.full((1, 4, 6), value), labels=[0])
        if fits:
            assert load_data(spec, GRAY).images.max().item() == pytest.approx(value)
        else:
            refused(spec, "or float in")


def test_invalid_reference_data_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    for spec in ("", "nothing", "data.txt", tmp_path / "none"):
        refused(spec, "is not reference data: pass an .npz, a .csv, a folder with one folder per class, or torch")
    refused(tmp_path / "none.npz", "there is no file .*none.npz")
    (tmp_path / "text.npz").write_text("text")
    refused(tmp_path / "text.npz", r"text.npz is not a complete .npz: write one with numpy.savez\('text.npz'")


def test_an_array_with_a_false_header_is_refused_before_memory_is_allocated(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole.npz", images=numbers(2, 4, 6), labels=[0, 1])
    for number, (said, instead) in enumerate([("(2, 4, 6)", "(9, 4, 6)"), ("|u1", "<u8"), ("(2, 4, 6)", "(-2,4,-6)")]):
        with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(tmp_path / f"{number}.npz", "w") as other:
            for name in archive.namelist():
                content = archive.read(name)
                other.writestr(name, content.replace(said.encode(), instead.encode()) if "images" in name else content)
        refused(tmp_path / f"{number}.npz", r"images.npy claims to be .*, but holds something else")


def test_a_decompression_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "bomb.npz", images=np.zeros((500, 4, 6), np.uint8), labels=np.zeros(500, int))
    spec = str(tmp_path / "bomb.npz")
    assert len(load_data(spec, GRAY).images) == 500  # as small as it is, no harm is done
    monkeypatch.setattr("interpkit.io.datasets.BOMB_RATIO", 20)
    monkeypatch.setattr("interpkit.io.datasets.BOMB_BYTES", 12_128)
    assert len(load_data(spec, GRAY).images) == 500
    monkeypatch.setattr("interpkit.io.datasets.BOMB_BYTES", 12_127)
    refused(spec, r"unpacks \d+ bytes to 12,128, like a decompression bomb")
    monkeypatch.setattr("interpkit.io.datasets.BOMB_RATIO", 1000)
    assert len(load_data(spec, GRAY).images) == 500


@pytest.mark.parametrize(("limit", "most"), [("MAX_BYTES", 128 + 48), ("MAX_NUMBERS", 48)])
def test_data_too_large_for_memory_are_refused(
    limit: str, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = saved(tmp_path / "data.npz", images=numbers(2, 4, 6), labels=np.zeros(2, np.uint8))
    monkeypatch.setattr(f"interpkit.io.datasets.{limit}", most)
    assert len(load_data(spec, GRAY).images) == 2
    monkeypatch.setattr(f"interpkit.io.datasets.{limit}", most - 1)
    refused(spec, "more images than interpkit reads into memory")


# ---------------------------------------------------------------------------------------------------- folders


def test_class_folders_are_matched_by_name_or_number(tmp_path: Path) -> None:
    pixels = {"dog/b.PNG": 3, "dog/a.png": 2, "7/c.bmp": 9, "1/d.tif": 5, "cat/e.webp": 0}
    for name, value in pixels.items():
        picture(tmp_path / name, np.full((4, 6), value * 20, np.uint8))
    (tmp_path / "cat" / "notes.txt").write_text("not a picture")
    (tmp_path / "labels.csv").write_text("nor a class")
    data = load_data(str(tmp_path), GRAY, NAMES)
    # A folder named 7 is that of the class of this name, the third; one named 1 is the second.
    assert data.labels.tolist() == [1, 2, 0, 1, 1]
    assert torch.equal(data.images[:, 0, 0, 0] * 255, torch.tensor([100.0, 180, 0, 40, 60]))


def test_pictures_are_converted_to_gray_or_color_for_the_classifier(tmp_path: Path) -> None:
    red = np.zeros((4, 6, 3), np.uint8)
    red[..., 0] = 200
    path = picture(tmp_path / "0" / "red.png", red)
    assert np.array_equal(read_picture(path, COLOR), red)
    assert read_picture(path, GRAY).shape == (4, 6) and set(read_picture(path, GRAY).flat) == {60}  # 0.299 x 200
    assert load_data(str(tmp_path), COLOR).images[0, :, 0, 0].tolist() == pytest.approx([200 / 255, 0, 0])


def test_pictures_of_other_sizes_are_resized_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture(tmp_path / "0" / "a.png", np.full((4, 6), 40, np.uint8))
    picture(tmp_path / "0" / "b.png", np.full((8, 20), 80, np.uint8))
    picture(tmp_path / "1" / "c.png", np.full((2, 2), 120, np.uint8))
    data = load_data(str(tmp_path), GRAY)
    assert (data.images * 255).amax((1, 2, 3)).tolist() == [40, 80, 120]
    (record,) = caplog.records
    assert (
        ": 2 of its 3 pictures: each is resized to cover 6 x 4 pixels, and cropped at the center."
        in record.getMessage()
    )


def test_class_folders_may_hold_arrays_instead_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    bands = numbers(13, 4, 6)
    np.save(tmp_path / "1" / "a.npy", bands)
    data = load_data(str(tmp_path), (13, 4, 6))
    assert torch.equal(data.images[0], torch.from_numpy(bands) / 255) and data.labels.tolist() == [1]
    refused(tmp_path, r"holds uint8 \(13, 4, 6\); an image of this classifier is uint8 \(12, 4, 6\)", (12, 4, 6))
    np.save(tmp_path / "1" / "a.npy", bands / 255)
    refused(tmp_path, r"holds float64 \(13, 4, 6\).*give an .npz", (13, 4, 6))
    np.save(tmp_path / "1" / "a.npy", np.array([{}], object))
    refused(tmp_path, "is not a readable .npy", (13, 4, 6))


def test_a_table_lists_pictures_and_labels(tmp_path: Path) -> None:
    for number, name in enumerate(("cat/a.png", "dog/b.png", "cat/c.png")):
        picture(tmp_path / "images" / name, np.full((4, 6), 10 * number, np.uint8))
    table = tmp_path / "labels.csv"
    for text in (
        "\ufeffimage,label\r\nimages/cat/a.png,cat\r\nimages/dog/b.png,1\r\nimages/cat/c.png,0\r\n",
        "Label;Filename;note\n0;images/cat/a.png;\ndog;images/dog/b.png;x\n0.0;images/cat/c.png;y\n",
        "path\nimages/cat/a.png\nimages/dog/b.png\nimages/cat/c.png\n",
    ):
        table.write_text(text, encoding="utf-8")
        data = load_data(str(table), GRAY, NAMES)
        assert data.labels.tolist() == [0, 1, 0]
        assert (data.images[:, 0, 0, 0] * 255).tolist() == [0, 10, 20]


def test_a_table_holds_labels_with_pixels_or_features(tmp_path: Path) -> None:
    table, columns = tmp_path / "mnist.csv", ",".join(f"pixel{i}" for i in range(24))
    table.write_text(f"label,{columns}\n1,{','.join(map(str, range(24)))}\n", encoding="utf-8")
    assert torch.equal(load_data(str(table), GRAY).images, torch.arange(24).view(1, *GRAY) / 255)
    table.write_text(f"label,{columns}\n1,{','.join(str(i % 17) for i in range(24))}\n", encoding="utf-8")
    refused(table, "images from 0 to 16: pass uint8, or float in", GRAY)
    table.write_text("a,b,c,d,e,species\n1,2,3,4,5.5,dog\n", encoding="utf-8")
    data = load_data(str(table), VECTOR, NAMES)
    assert data.images.tolist() == [[1, 2, 3, 4, 5.5]] and data.labels.tolist() == [1]


def test_tables_and_arrays_name_the_features_of_vectors(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("a,b,label,c,d,e\n1,2,0,3,4,5\n")
    assert load_data(str(tmp_path / "table.csv"), VECTOR).columns == ("a", "b", "c", "d", "e")
    arrays = {"X": np.zeros((2, 5)), "y": [0, 1]}
    named = saved(tmp_path / "named.npz", **arrays, feature_names=list("vwxyz"))
    assert load_data(named, VECTOR).columns == tuple("vwxyz")
    assert load_data(saved(tmp_path / "few.npz", **arrays, feature_names=["v"]), VECTOR).columns == ()
    assert load_data(saved(tmp_path / "none.npz", **arrays), VECTOR).columns == ()
    pickled = saved(tmp_path / "pickled.npz", **arrays, feature_names=np.array(list("vwxyz"), dtype=object))
    refused(pickled, "holds Python objects, which only a pickle can hold", VECTOR)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has 0 columns .* and no rows"),
        ("image,label\n", "and no rows"),
        ("image,label\na.png,0,1\n", "has 2 columns .* and a row of 3: a.png,0,1"),
        ("image,label\nnone.png,0\n", "there is no file"),
        ("image,label\nnone.png,bird\n", "no class is named 'bird'"),
        ("a,b,label\n1,2,0\n", "it needs the columns image .* and label, or label and 24 numbers"),
        ("label," + ",".join("a" * 24) + "\n0" + ",x" * 24 + "\n", "a value that is not a number"),
    ],
)
def test_tables_that_do_not_fit_are_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    refused(tmp_path / "a.csv", words, names=NAMES)
    (tmp_path / "a.csv").write_bytes(b"image,label\n\xff\xfe,0\n")
    refused(tmp_path / "a.csv", "is not a CSV table: .* Save it as CSV in UTF-8")
    os.mkfifo(tmp_path / "pipe.csv")
    refused(tmp_path / "pipe.csv", "there is no file")


def test_class_names_match_regardless_of_unicode_normalization(tmp_path: Path) -> None:
    picture(tmp_path / "e\u0301te\u0301" / "a.png", numbers(4, 6))  # as macOS spells it
    assert load_data(str(tmp_path), GRAY, ("bar", "\u00e9t\u00e9")).labels.tolist() == [1]


def test_folders_of_samples_are_numbered_also_where_classes_are_called_by_numbers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_images(torch.zeros(3, 1, 4, 6, dtype=torch.uint8), torch.arange(3), ["1", "2", "3"], tmp_path / "samples")
    assert load_data(str(tmp_path / "samples"), GRAY, ["1", "2", "3"]).labels.tolist() == [0, 1, 2]
    assert not caplog.text
    picture(tmp_path / "own" / "2" / "a.png", numbers(4, 6))
    assert load_data(str(tmp_path / "own"), GRAY, ["1", "2", "3"]).labels.tolist() == [1]
    assert "2 are taken for the names of classes, not for their numbers" in caplog.text


def test_folders_that_do_not_fit_are_refused_with_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "empty needs one folder per class, by the class's name or number; it has no pictures")
    picture(tmp_path / "flat" / "a.png", numbers(4, 6))
    refused(tmp_path / "flat", "its pictures lie directly in it .1.")
    picture(tmp_path / "unknown" / "bird" / "a.png", numbers(4, 6))
    refused(tmp_path / "unknown", "unknown: no class is named 'bird'. Classes: cat, dog, 7", names=NAMES)
    picture(tmp_path / "wide" / "0" / "a.png", numbers(4, 7))
    refused(tmp_path / "wide", "is a picture, and the classifier takes .*: give an .npz", VECTOR)
    refused(tmp_path / "wide", "is a picture, and the classifier takes", (2, 4, 7))
    (tmp_path / "text" / "0").mkdir(parents=True)
    (tmp_path / "text" / "0" / "a.png").write_text("text")
    refused(tmp_path / "text", "a.png is not a readable image")
    os.mkfifo(tmp_path / "empty" / "pipe.png")
    with pytest.raises(UsageError, match="there is no file"):
        read_picture(tmp_path / "empty" / "pipe.png", GRAY)
    for number in range(2):
        picture(tmp_path / "many" / str(number) / "a.png", numbers(4, 6))
    monkeypatch.setattr("interpkit.io.datasets.MAX_NUMBERS", 48)
    assert len(load_data(str(tmp_path / "many"), GRAY).images) == 2
    monkeypatch.setattr("interpkit.io.datasets.MAX_NUMBERS", 47)
    refused(tmp_path / "many", "many has more images than interpkit reads into memory")


def test_a_picture_with_the_wrong_extension_is_read_only_in_a_common_format(tmp_path: Path) -> None:
    Image.fromarray(numbers(4, 6)).save(tmp_path / "a.png", format="BMP")
    assert np.array_equal(read_picture(tmp_path / "a.png", GRAY), numbers(4, 6))
    Image.fromarray(numbers(4, 6)).save(tmp_path / "b.png", format="PPM")
    with pytest.raises(UsageError, match="is not a readable image"):
        read_picture(tmp_path / "b.png", GRAY)


# ------------------------------------------------------------------------------------------------ torchvision


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Replace torchvision's data sets by ones of a few images, and return the list of calls."""
    import torchvision

    asked: list[tuple[Any, ...]] = []

    def mnist(root: str, train: bool, download: bool) -> Any:
        asked.append(("MNIST", root, train, download))
        return SimpleNamespace(data=torch.from_numpy(numbers(2, 4, 6)), targets=torch.tensor([1, 0]))

    def cifar(root: str, train: bool, download: bool) -> Any:
        asked.append(("CIFAR10", root, train, download))
        return SimpleNamespace(data=numbers(2, 3, 4, 6).transpose(0, 2, 3, 1), targets=[1, 0])

    def svhn(root: str, split: str, download: bool) -> Any:
        asked.append(("SVHN", root, split, download))
        return SimpleNamespace(data=numbers(2, 3, 4, 6), labels=np.array([1, 0]))

    for name, make in (("MNIST", mnist), ("CIFAR10", cifar), ("SVHN", svhn)):
        monkeypatch.setattr(torchvision.datasets, name, make)
    return asked


@pytest.mark.parametrize(
    ("spec", "asked", "shape"),
    [
        ("MNIST", ("MNIST", "data", False, True), GRAY),
        ("mnist:test", ("MNIST", "data", False, True), GRAY),
        ("mnist:train", ("MNIST", "data", True, True), GRAY),
        ("Cifar10", ("CIFAR10", "data", False, True), COLOR),
        ("svhn", ("SVHN", "data", "test", True), COLOR),
        ("SVHN:train", ("SVHN", "data", "train", True), COLOR),
    ],
    ids=str,
)
def test_torchvision_data_sets_are_loaded_and_converted(
    spec: str, asked: tuple[Any, ...], shape: tuple[int, ...], downloads: list[tuple[Any, ...]]
) -> None:
    data = load_data(f"torchvision:{spec}", shape)
    assert downloads == [asked]
    assert torch.equal(data.images, torch.from_numpy(numbers(2, *shape)) / 255)
    assert data.labels.tolist() == [1, 0]


def test_an_unknown_data_set_or_split_is_refused(downloads: list[tuple[Any, ...]]) -> None:
    refused("torchvision:", "torchvision: is not one of MNIST, FashionMNIST, KMNIST, CIFAR10, CIFAR100, SVHN")
    refused("torchvision:ImageNet", "torchvision:ImageNet is not one of")
    refused("torchvision:mnist:valid", "torchvision:mnist:valid: the split is train or test")
    assert downloads == []


@pytest.mark.parametrize("name", ["MNIST", "SVHN"])
@pytest.mark.parametrize("error", [OSError("no network"), RuntimeError("File not found or corrupted")], ids=str)
def test_a_failed_download_is_reported(name: str, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(torchvision.datasets, name, fail)
    refused(f"torchvision:{name}", f"torchvision:{name} cannot be downloaded: {error}", COLOR)


def test_a_data_set_that_is_not_here_is_refused_where_nothing_may_be_downloaded(
    downloads: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision

    for spec, shape in (("MNIST", GRAY), ("svhn", COLOR)):
        assert load_data(f"torchvision:{spec}", shape, download=False).labels.tolist() == [1, 0]
    assert [asked[-1] for asked in downloads] == [False, False]

    def missing(root: str, train: bool, download: bool) -> None:
        raise RuntimeError("Dataset not found. You can use download=True to download it")

    monkeypatch.setattr(torchvision.datasets, "MNIST", missing)
    words = r"torchvision:MNIST is not in the folder data here, .* name it yourself: data='torchvision:MNIST'"
    with pytest.raises(UsageError, match=words):
        load_data("torchvision:MNIST", GRAY, download=False)


# ------------------------------------------------------------------------------------------------ in memory


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (torch.zeros(2, 1, 4, 6), torch.zeros(3).long(), r"mine has \(2, 1, 4, 6\) images and \(3,\) labels"),
        (torch.zeros(2, 1, 4, 5), torch.zeros(2).long(), "the classifier takes images of"),
        (torch.zeros(0, 1, 4, 6), torch.zeros(0).long(), "each with a label"),
        (torch.zeros(2, 1, 4, 6).double(), torch.zeros(2).long(), "images of torch.float64 and labels of torch.int64"),
        (torch.zeros(2, 1, 4, 6), torch.zeros(2), "labels of torch.float32: use float32 and int64"),
        (torch.full((2, 1, 4, 6), torch.nan), torch.zeros(2).long(), "from nan to nan"),
        (torch.zeros(2, 1, 4, 6), torch.tensor([0, 3]), "mine has the label 3; the classifier's are 0 to 2"),
    ],
    ids=["labels", "size", "empty", "double", "float labels", "nan", "unknown class"],
)
def test_images_in_memory_that_do_not_fit_are_refused(images: Tensor, labels: Tensor, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        checked(LabelledImages(images, labels), "mine", GRAY, NAMES)


def test_images_in_memory_that_fit_are_returned_unchanged() -> None:
    data = LabelledImages(torch.rand(2, *GRAY), torch.tensor([2, 0]))
    assert checked(data, "mine", GRAY, NAMES) is data
    unnamed = LabelledImages(data.images, torch.tensor([-5, 99]))
    assert checked(unnamed, "mine", GRAY) is unnamed  # whose classes nobody knows


def test_arrays_of_other_channels_or_axes_are_refused_with_what_to_change(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=np.zeros((4, 8, 8, 3), "u1"), labels=np.arange(4))
    gray = r"Give them 1 channel instead of 3: images\.mean\(-1\)\.astype\(\"uint8\"\)"
    with pytest.raises(UsageError, match=rf"{gray}\.$"):
        load_data(str(tmp_path / "x.npz"), (1, 8, 8))
    with pytest.raises(UsageError, match=rf"{gray}, and resize them\.$"):
        load_data(str(tmp_path / "x.npz"), (1, 9, 9))
    with pytest.raises(UsageError, match=r"\(3, 9, 9\)\. Resize them first\.$"):
        load_data(str(tmp_path / "x.npz"), (3, 9, 9))
    with pytest.raises(UsageError, match=r"the classifier's axes"):
        load_data(str(tmp_path / "x.npz"), (3, 64))


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize("shape", [(4, 3, 8, 8), (4, 8, 8, 3)])
def test_the_remedy_for_colors_makes_images_that_are_read(tmp_path: Path, shape: tuple[int, ...], dtype: Any) -> None:
    images = np.ones(shape, dtype)
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(4))
    with pytest.raises(
        UsageError, match=r"has images of shape \(3, 8, 8\).* 1 channel instead of 3: (\S+)\."
    ) as failure:
        load_data(str(tmp_path / "x.npz"), (1, 8, 8))
    axis = -1 if shape[-1] == 3 else 1
    assert f"images.mean({axis})" in str(failure.value) and (".astype" in str(failure.value)) == (dtype == "uint8")
    np.savez(tmp_path / "gray.npz", images=images.mean(axis).astype(dtype), labels=np.arange(4))
    assert load_data(str(tmp_path / "gray.npz"), (1, 8, 8)).images.shape == (4, 1, 8, 8)


def test_arrays_with_channels_first_are_not_turned_for_another_size(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=np.zeros((4, 3, 64, 64), "u1"), labels=np.arange(4))
    with pytest.raises(
        UsageError, match=r"shape \(3, 64, 64\); the classifier takes \(3, 32, 32\)\. Resize them first"
    ):
        load_data(str(tmp_path / "x.npz"), (3, 32, 32))


def test_a_file_of_another_split_is_refused_with_its_name(tmp_path: Path) -> None:
    for split, other in (("train", "test"), ("test", "train")):
        np.savez(tmp_path / "x.npz", **{f"x_{split}": np.zeros((4, 8, 8), "u1"), f"y_{split}": np.arange(4)})
        with pytest.raises(UsageError, match=rf"For its other images, name \S+x\.npz:{split}\."):
            load_data(f"{tmp_path}/x.npz:{other}", GRAY)


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        *((ending, "is too long for a file name") for ending in ("", ".npz", ".png")),
        (".npz:train", "cannot be read: File name too long"),
    ],
)
def test_a_name_too_long_for_a_file_is_refused(ending: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load_data("a" * 5000 + ending, (1, 8, 8))


def test_memory_that_ran_out_is_not_the_files_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    np.savez(tmp_path / "x.npz", images=numbers(4, 4, 6), labels=np.arange(4))
    picture(tmp_path / "x.png", numbers(4, 6))
    monkeypatch.setattr(np, "load", fail)
    monkeypatch.setattr(Image, "open", fail)
    for name in ("x.npz", "x.png"):
        with pytest.raises(MemoryError):
            read_picture(tmp_path / name, GRAY) if name == "x.png" else load_data(str(tmp_path / name), GRAY)
