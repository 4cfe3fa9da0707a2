"""Shards have exact counts, do not depend on processes or order, and are in memory one at a time."""

from __future__ import annotations

import errno
import gc
import io
import json
import logging
import os
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

import interpkit
from interpkit import GeneratorInversion, ImageInversion, Inversion, Recipe, RunError, UsageError, write_shards
from interpkit.evaluation.scoring import read_images
from interpkit.runs import shards
from interpkit.runs.shards import ShardJob
from interpkit.runtime.distributed import World

SHAPE = (1, 6, 6)
SIZES = {f"upconv.{name}": 8 for name in ("width", "min_width", "latent", "hidden")}


class Dice(nn.Module):
    """Predicts the sum of an image's bytes modulo 3, so one of the classes 0 to 2, and never class 3."""

    def forward(self, x: Tensor) -> Tensor:
        faces = (x * 255).round().flatten(1).sum(1).detach().long() % 3
        return 3 * nn.functional.one_hot(faces, 4).float() + 1e-3 * x.flatten(1)[:, :4]


@pytest.fixture(scope="module")
def inversion() -> GeneratorInversion:
    """Return an inversion of two generators, drawn in chunks of 8, of a target that accepts about one in three."""
    names = ["one", "two", "three", "never"]
    target = interpkit.wrap(Dice(), SHAPE, num_classes=4, class_names=names, name="dice")
    made = interpkit.invert(
        target, ["vecmat"], steps=1, batch_size=8, generators=2, device="cpu", precision="fp32",
        options={**SIZES, "sampling.chunk": 8, "sampling.dropout": True}, losses={"cosine": 0},
    )  # fmt: skip
    assert isinstance(made, GeneratorInversion)
    return made


def read(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of all shards, joined."""
    parts = [safetensors.torch.load_file(path) for path in sorted(folder.glob("samples-*.safetensors"))]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def asked(**changes: Any) -> dict[str, Any]:
    return {"count": 50, "shard_size": 20, "labels": [0, 1, 2]} | changes


class Alone(World):
    """One of several processes that run one after another."""

    def broadcast(self, value: Any) -> Any:
        return value

    def all_gather_object(self, value: Any) -> list[Any]:
        return [value]


# ------------------------------------------------------------------------------------- what is written


@pytest.mark.parametrize("accepted", [False, True])
def test_the_count_is_exact_and_classes_alternate_across_shards(
    inversion: GeneratorInversion, tmp_path: Path, accepted: bool
) -> None:
    index = write_shards(inversion, tmp_path, **asked(accepted=accepted))
    assert [(shard["file"], shard["count"]) for shard in index["shards"]] == [
        ("samples-000000.safetensors", 20),
        ("samples-000001.safetensors", 20),
        ("samples-000002.safetensors", 10),
    ]
    samples = read(tmp_path)
    assert samples["images"].shape == (50, *SHAPE) and samples["images"].dtype == torch.uint8
    assert samples["labels"].tolist() == [row % 3 for row in range(50)]
    assert samples["probabilities"].shape == (50, 4)
    assert len({image.numpy().tobytes() for image in samples["images"]}) == 50
    assert index == json.loads((tmp_path / "index.json").read_text())
    assert [(row["label"], row["name"], row["count"]) for row in index["per_class"]] == [
        (0, "one", 17),
        (1, "two", 17),
        (2, "three", 16),
    ]


def test_a_shard_is_read_like_the_samples_of_a_run(inversion: GeneratorInversion, tmp_path: Path) -> None:
    write_shards(inversion, tmp_path, **asked())
    path = tmp_path / "samples-000001.safetensors"
    images, labels, generator = read_images(path, inversion.target)
    assert (len(images), labels.tolist()[:3]) == (20, [2, 0, 1])
    assert generator.tolist() == [row // 3 % 2 for row in range(20, 40)]


def test_only_accepted_samples_are_kept_and_the_rate_counts_all_tries(
    inversion: GeneratorInversion, tmp_path: Path
) -> None:
    index = write_shards(inversion, tmp_path, **asked(accepted=True))
    samples = read(tmp_path)
    with torch.no_grad():
        said = inversion.target(samples["images"] / 255).argmax(1)
    assert torch.equal(said, samples["labels"])
    assert (samples["confidence"] > 0.8).all()
    assert index["tries"] == sum(row["tries"] for row in index["per_class"]) and index["tries"] % 8 == 0
    for row in index["per_class"]:
        assert row["count"] <= row["accepted"] < row["tries"]
        assert row["rate"] == row["accepted"] / row["tries"]
    assert 0.2 < index["rate"] < 0.5


def test_without_rejection_the_rate_is_that_of_the_samples(inversion: GeneratorInversion, tmp_path: Path) -> None:
    index = write_shards(inversion, tmp_path, **asked())
    samples = read(tmp_path)
    right = samples["probabilities"].argmax(1) == samples["labels"]
    assert 0 < index["rate"] == right.double().mean().item() < 1
    for row in index["per_class"]:
        own = samples["labels"] == row["label"]
        assert (row["tries"], row["accepted"]) == (int(own.sum()), int(right[own].sum()))


def test_repeated_tries_use_the_next_generator(inversion: GeneratorInversion, tmp_path: Path) -> None:
    write_shards(inversion, tmp_path / "all", **asked(labels=[1]))
    write_shards(inversion, tmp_path / "accepted", **asked(labels=[1], accepted=True))
    assert read(tmp_path / "all")["generator"].tolist() == [0, 1] * 25
    assert set(read(tmp_path / "accepted")["generator"][::2].tolist()) == {0, 1}


def test_seed_dropout_and_labels_change_the_samples(inversion: GeneratorInversion, tmp_path: Path) -> None:
    variants: list[dict[str, Any]] = [{}, {"seed": 5}, {"dropout": False}, {"labels": [2, 1, 0]}]
    found = []
    for number, variant in enumerate(variants):
        write_shards(inversion, tmp_path / str(number), **asked(**variant))
        found.append(read(tmp_path / str(number))["images"].numpy().tobytes())
    assert len(set(found)) == len(variants)


# -------------------------------------------------------------------- the same whoever makes it, and when


@pytest.mark.parametrize("accepted", [False, True])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_several_processes_write_the_same_files_as_one(
    inversion: GeneratorInversion, tmp_path: Path, size: int, accepted: bool
) -> None:
    write_shards(inversion, tmp_path / "one", **asked(accepted=accepted))
    made = []
    for rank in reversed(range(size)):  # the first one, which waits for the others, last
        if rank == size - 1:  # but it is the first that takes the folder
            ShardJob(inversion, tmp_path / "many", **asked(accepted=accepted), world=Alone(0, size))._begin()
        job = ShardJob(inversion, tmp_path / "many", **asked(accepted=accepted), world=Alone(rank, size))
        made += job.todo
        job.run()
    assert sorted(made) == [0, 1, 2]
    assert contents(tmp_path / "one") == contents(tmp_path / "many")


@pytest.mark.parametrize("accepted", [False, True])
@pytest.mark.parametrize("count", [1, 7, 20, 33])
def test_a_smaller_count_gives_the_beginning_of_a_larger_one(
    inversion: GeneratorInversion, tmp_path: Path, count: int, accepted: bool
) -> None:
    write_shards(inversion, tmp_path / "more", **asked(accepted=accepted))
    write_shards(inversion, tmp_path / "fewer", **asked(count=count, accepted=accepted))
    more, fewer = read(tmp_path / "more"), read(tmp_path / "fewer")
    assert len(fewer["labels"]) == count
    for name, tensor in fewer.items():
        assert torch.equal(tensor, more[name][:count]), name


def test_moving_the_inversion_to_its_own_device_changes_nothing(inversion: GeneratorInversion, tmp_path: Path) -> None:
    write_shards(inversion, tmp_path / "before", **asked())
    assert inversion.to("cpu") is inversion
    write_shards(inversion, tmp_path / "after", **asked())
    assert contents(tmp_path / "before") == contents(tmp_path / "after")


def test_a_shard_does_not_depend_on_earlier_ones(inversion: GeneratorInversion, tmp_path: Path) -> None:
    write_shards(inversion, tmp_path / "all", **asked())
    job = ShardJob(inversion, tmp_path / "one", **asked(), world=Alone(2, 3))
    shard, _ = job._make(2, lambda images: None)
    path = tmp_path / "all" / "samples-000002.safetensors"
    assert torch.equal(safetensors.torch.load_file(path)["images"], shard.tensors["images"])


# ------------------------------------------------------------------------------------------- going on


@pytest.mark.parametrize("after", [0, 1, 2])
def test_an_interrupted_job_resumes_and_writes_no_shard_twice(
    inversion: GeneratorInversion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    write_shards(inversion, tmp_path / "whole", **asked(accepted=True))

    def stop(done: int) -> None:
        if done > 20 * after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(inversion, tmp_path / "parts", **asked(accepted=True), on_images=stop)
    assert len(list(tmp_path.glob("parts/samples-*"))) == after
    assert json.loads((tmp_path / "parts" / "index.json").read_text())["finished"] is False
    make, made = ShardJob._make, []

    def counted(job: ShardJob, number: int, *rest: Any) -> Any:
        made.append(number)
        return make(job, number, *rest)

    monkeypatch.setattr(ShardJob, "_make", counted)
    for expected in ([*range(after, 3)], []):
        made.clear()
        write_shards(inversion, tmp_path / "parts", **asked(accepted=True))
        assert made == expected
        assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_a_shard_that_disappears_during_the_job_is_named(inversion: GeneratorInversion, tmp_path: Path) -> None:
    def remove(done: int) -> None:
        if done > 20:
            for path in tmp_path.glob("shards/samples-00000*"):
                path.unlink()

    with pytest.raises(RunError, match=r"samples-00000\S* is missing. Repeat the command to write it"):
        write_shards(inversion, tmp_path / "shards", **asked(), on_images=remove)
    write_shards(inversion, tmp_path / "shards", **asked())
    assert json.loads((tmp_path / "shards" / "index.json").read_text())["finished"] is True


def test_a_larger_count_extends_the_folder(inversion: GeneratorInversion, tmp_path: Path) -> None:
    write_shards(inversion, tmp_path / "grown", **asked(count=30))
    kept = (tmp_path / "grown" / "samples-000000.safetensors").stat().st_ino
    write_shards(inversion, tmp_path / "grown", **asked())
    write_shards(inversion, tmp_path / "whole", **asked())
    assert (tmp_path / "grown" / "samples-000000.safetensors").stat().st_ino == kept
    assert contents(tmp_path / "grown") == contents(tmp_path / "whole")
    with pytest.raises(RunError, match="is for 50 samples; a count of 30 cannot shorten it"):
        write_shards(inversion, tmp_path / "grown", **asked(count=30))


def test_damaged_files_are_rewritten_and_temporary_files_of_a_killed_process_removed(
    inversion: GeneratorInversion, tmp_path: Path
) -> None:
    write_shards(inversion, tmp_path, **asked())
    before = contents(tmp_path)
    shard, facts = tmp_path / "samples-000000.safetensors", tmp_path / ".shards" / "000002.json"
    shard.write_bytes(shard.read_bytes()[:-1])
    facts.write_bytes(facts.read_bytes()[:-9])
    (tmp_path / "samples-000001.safetensors").unlink()
    (tmp_path / ".samples-000001.safetensors.x1y2z3").write_bytes(b"torn")
    index = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**index, "finished": False}))
    write_shards(inversion, tmp_path, **asked())
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 9}, "seed is 0 there and 9 here"),
        ({"shard_size": 10}, "shard_size is 20 there and 10 here"),
        ({"labels": [0, 1]}, r"labels is \[0, 1, 2\] there and \[0, 1\] here"),
        ({"dropout": False}, "dropout is True there and False here"),
        ({"accepted": True, "seed": 1}, "accepted is False there and True here; seed is 0 there and 1 here"),
        ({"format": "webdataset"}, "format is 'safetensors' there and 'webdataset' here"),
    ],
)
def test_a_folder_of_other_samples_is_refused_with_what_differs(
    inversion: GeneratorInversion, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    write_shards(inversion, tmp_path, **asked())
    before = contents(tmp_path)
    with pytest.raises(RunError, match=words):
        write_shards(inversion, tmp_path, **asked(**changes))
    assert contents(tmp_path) == before


def test_another_generator_or_another_target_is_refused(
    inversion: GeneratorInversion, tmp_path: Path, tiny_target: interpkit.Target
) -> None:
    write_shards(inversion, tmp_path, **asked())
    bias = next(inversion.generator.parameters())
    with torch.no_grad():
        bias.view(-1)[0] += 1
    try:
        with pytest.raises(RunError, match=r"generator_sha256 is '[0-9a-f]+.* there and .* here"):
            write_shards(inversion, tmp_path, **asked())
    finally:
        with torch.no_grad():
            bias.view(-1)[0] -= 1
    other = GeneratorInversion(tiny_target, inversion.recipe, [], inversion.generator, inversion.conditioner)
    with pytest.raises(RunError, match="target_sha256"):
        write_shards(other, tmp_path, **asked())


def test_a_folder_with_something_else_is_refused(inversion: GeneratorInversion, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(RunError, match=r"holds mine\.txt but no index\.json"):
        write_shards(inversion, tmp_path, **asked())
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    (tmp_path / "index.json").write_text("[]")
    with pytest.raises(RunError, match="is not an index of shards"):
        write_shards(inversion, tmp_path, **asked())
    with pytest.raises(RunError, match=r"cannot make the folder .*mine\.txt"):
        write_shards(inversion, tmp_path / "mine.txt", **asked())


# ------------------------------------------------------------------------------------------ what fails


def test_a_class_that_is_never_accepted_is_named_and_finished_shards_stay(
    inversion: GeneratorInversion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "ENOUGH_TRIES", 40)
    with pytest.raises(RunError, match=r"class 3 \(never\): 0 of \d+ tries .*\(0\.00%\).*Leave the class out"):
        write_shards(inversion, tmp_path, **asked(accepted=True, count=6, shard_size=3, labels=[0, 1, 2, 3]))
    assert [path.name for path in tmp_path.glob("samples-*")] == ["samples-000000.safetensors"]
    monkeypatch.setattr(shards, "ENOUGH_TRIES", 12)  # one accepted in three must not count as almost none
    write_shards(inversion, tmp_path / "others", **asked(accepted=True))


@pytest.mark.parametrize("format", ["safetensors", "webdataset", "parquet"])
def test_a_full_disk_names_the_shard_and_leaves_no_part_of_it(
    inversion: GeneratorInversion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    write_shards(inversion, tmp_path, **asked(count=20, format=format))
    names = {path.name for path in tmp_path.glob("samples-*")}

    sync, written = os.fsync, []

    def full(handle: int) -> None:
        written.append(handle)
        if len(written) == 7:  # after the lock, the index and what is known of the shard, each with its folder
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=r"samples-000001.*No space left.*shards are kept"):
            write_shards(inversion, tmp_path, **asked(format=format))
    assert {path.name for path in tmp_path.glob("*samples-*")} == names
    assert not list(tmp_path.glob(".samples-*"))
    assert write_shards(inversion, tmp_path, **asked(format=format))["finished"] is True


def test_too_little_disk_space_is_reported_before_the_start(
    inversion: GeneratorInversion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 1000))
    with caplog.at_level(logging.WARNING):
        write_shards(inversion, tmp_path, **asked())
        assert "has 1.0 kB free, and the samples may take 3.6 kB" in caplog.text
        caplog.clear()
        write_shards(inversion, tmp_path, **asked())  # nothing is left to write
        assert caplog.text == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"count": 0}, "at least 1, not 0 and 20"),
        ({"shard_size": 0}, "at least 1, not 50 and 0"),
        ({"format": "zip"}, "no format 'zip' of shards; there are: safetensors, webdataset, parquet"),
        ({"labels": [7]}, r"labels \[7\] were not inverted"),
    ],
)
def test_arguments_out_of_range_are_refused(
    inversion: GeneratorInversion, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        write_shards(inversion, tmp_path / "new", **asked(**changes))
    assert not (tmp_path / "new").exists()


def test_parquet_without_pyarrow_says_what_to_install(
    inversion: GeneratorInversion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=re.escape(interpkit.install_extra("parquet"))):
        write_shards(inversion, tmp_path, **asked(format="parquet"))


# ---------------------------------------------------------------------------------------- other inversions


@pytest.fixture
def finite(tiny_target: interpkit.Target) -> ImageInversion:
    """Return 4 finished images of each of 3 classes; all pixels of image i are i / 20."""
    labels = torch.arange(3).repeat(4)
    images = (torch.arange(12) / 20).view(12, 1, 1, 1).expand(12, *tiny_target.input_shape)
    return ImageInversion(tiny_target, Recipe(), [], images, labels)


def test_finished_images_are_written_in_order_until_they_run_out(finite: ImageInversion, tmp_path: Path) -> None:
    write_shards(finite, tmp_path / "all", count=12, shard_size=5)
    images = read(tmp_path / "all")["images"].float().mean((1, 2, 3)) / 255 * 20
    assert images.round().tolist() == list(range(12))
    with pytest.raises(UsageError, match="class 0 has 4 images, not 5"):
        write_shards(finite, tmp_path / "more", count=13, shard_size=5)
    with pytest.raises(UsageError, match="made a fixed number of images, so rejected ones cannot be drawn again"):
        write_shards(finite, tmp_path / "accepted", count=6, accepted=True)


# ------------------------------------------------------------------------------------------------ formats


def pictures(inversion: Inversion, folder: Path, **changes: Any) -> dict[str, Tensor]:
    """Return the samples in safetensors, which the other formats must match."""
    write_shards(inversion, folder, **asked(count=25, **changes))
    return read(folder)


def tar_files(folder: Path) -> dict[str, bytes]:
    files = {}
    for path in sorted(folder.glob("samples-*.tar")):
        with tarfile.open(path) as tar:
            for entry in tar:
                data = tar.extractfile(entry)
                assert data is not None and entry.name not in files
                files[entry.name] = data.read()
    return files


def test_webdataset_holds_png_class_and_facts_of_each_image(inversion: GeneratorInversion, tmp_path: Path) -> None:
    expected = pictures(inversion, tmp_path / "plain")
    write_shards(inversion, tmp_path / "tar", **asked(count=25, format="webdataset"))
    files = tar_files(tmp_path / "tar")
    assert list(files)[:4] == ["000000000000.png", "000000000000.cls", "000000000000.json", "000000000001.png"]
    assert len(files) == 75
    for row in range(25):
        with Image.open(io.BytesIO(files[f"{row:012d}.png"])) as picture:
            assert torch.equal(torch.from_numpy(np.array(picture)), expected["images"][row, 0])
        assert int(files[f"{row:012d}.cls"]) == expected["labels"][row]
        facts = json.loads(files[f"{row:012d}.json"])
        assert facts["name"] == ["one", "two", "three"][facts["label"]]
        assert facts["confidence"] == expected["confidence"][row].item()
        assert facts["generator"] == expected["generator"][row]
        assert facts["probabilities"] == expected["probabilities"][row].tolist()


def test_parquet_has_one_row_per_sample(inversion: GeneratorInversion, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    expected = pictures(inversion, tmp_path / "plain")
    write_shards(inversion, tmp_path / "table", **asked(count=25, format="parquet"))
    tables = [pq.read_table(path) for path in sorted((tmp_path / "table").glob("*.parquet"))]
    assert json.loads(tables[0].schema.metadata[b"interpkit.class_names"]) == ["one", "two", "three", "never"]
    rows = [row for table in tables for row in table.to_pylist()]
    assert len(rows) == 25
    for number, row in enumerate(rows):
        with Image.open(io.BytesIO(row["image"])) as picture:
            assert torch.equal(torch.from_numpy(np.array(picture)), expected["images"][number, 0])
        assert row["label"] == expected["labels"][number]
        assert row["probabilities"] == expected["probabilities"][number].tolist()


@pytest.mark.parametrize("shape", [(5, 4, 4), (7,)])
def test_inputs_that_are_not_pictures_are_stored_as_numbers(tmp_path: Path, shape: tuple[int, ...]) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    width = torch.Size(shape).numel()
    target = interpkit.wrap(nn.Sequential(nn.Flatten(), nn.Linear(width, 3)), shape)
    labels = torch.arange(3).repeat(4)
    inversion = ImageInversion(target, Recipe(), [], torch.rand(12, *shape), labels)
    write_shards(inversion, tmp_path / "plain", count=12, shard_size=12)
    plain = read(tmp_path / "plain")
    expected = plain["images" if len(shape) == 3 else "inputs"]
    assert expected.dtype == (torch.uint8 if len(shape) == 3 else torch.float32)
    write_shards(inversion, tmp_path / "tar", count=12, shard_size=12, format="webdataset")
    files = tar_files(tmp_path / "tar")
    loaded = [np.load(io.BytesIO(files[f"{row:012d}.npy"])) for row in range(12)]
    assert torch.equal(torch.from_numpy(np.stack(loaded)), expected)
    write_shards(inversion, tmp_path / "table", count=12, shard_size=12, format="parquet")
    table = pq.read_table(tmp_path / "table" / "samples-000000.parquet")
    assert tuple(json.loads(table.schema.metadata[b"interpkit.shape"])) == shape
    column = table["image" if len(shape) == 3 else "input"].to_pylist()
    assert torch.equal(torch.tensor(column).to(expected.dtype).view(12, *shape), expected)


# -------------------------------------------------------------------------------------- memory and progress


def live_bytes() -> int:
    """Return the bytes of all live tensors, counting each storage once."""
    with np.errstate(all="ignore"):
        tensors = [thing for thing in gc.get_objects() if type(thing) is Tensor]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def test_many_shards_use_no_more_memory_than_one(inversion: GeneratorInversion, tmp_path: Path) -> None:
    peaks = {}
    for count in (40, 120):
        gc.collect()
        before, seen = live_bytes(), []
        write_shards(
            inversion, tmp_path / str(count), **asked(count=count, shard_size=40),
            on_images=lambda done, seen=seen: seen.append(live_bytes()),
        )  # fmt: skip
        peaks[count] = max(seen) - before
    one_shard = 40 * 36
    assert one_shard < peaks[40]
    assert peaks[120] <= 1.1 * peaks[40]


def test_progress_counts_the_samples_that_are_kept(inversion: GeneratorInversion, tmp_path: Path) -> None:
    seen: list[int] = []
    write_shards(inversion, tmp_path, **asked(accepted=True), on_images=seen.append)
    assert seen == sorted(seen) and seen[-1] == 50 and len(seen) > 7
