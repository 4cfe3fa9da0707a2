"""The file formats of shards, which hold some thousand samples each."""

from __future__ import annotations

import importlib.util
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from interpkit.io.atomic import save_tensors
from interpkit.io.images import encoded, is_picture

COLUMNS = {"labels": "label", "confidence": "confidence", "generator": "generator"}
"""What each sample has besides its pixels: tensor name to column name."""
ROW_GROUP = 1000
"""Rows per group of a parquet file, encoded together."""


@dataclass(frozen=True)
class Shard:
    """Samples that go into one file.

    Attributes:
        tensors: as in samples.safetensors; see `interpkit.interfaces.samples.Samples.tensors`.
        first: index of the first sample among those of all shards.
        class_names: names of all classes.
    """

    tensors: dict[str, Tensor]
    first: int
    class_names: list[str]

    def __len__(self) -> int:
        return len(self.tensors["labels"])


@dataclass(frozen=True)
class ShardFormat:
    """A file format for shards.

    Attributes:
        ending: extension of the file's name.
        write: writes a shard to a path.
        overhead: approximate upper bounds for the bytes per sample besides its pixels, and per probability.
        package: the package that the format requires, or an empty string; interpkit's extra is named like the format.
    """

    ending: str
    write: Callable[[Path, Shard], None]
    overhead: tuple[int, int]
    package: str = ""

    def is_installed(self) -> bool:
        """Return whether the required package is installed."""
        return not self.package or importlib.util.find_spec(self.package) is not None


def _write_safetensors(path: Path, shard: Shard) -> None:
    save_tensors(path, shard.tensors, {"format": "pt"})


def _write_webdataset(path: Path, shard: Shard) -> None:
    """Write an uncompressed tar; each sample's files are named by its index: 000000012345.png, .cls, .json."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, (ending, content, facts) in enumerate(_rows(shard), shard.first):
            files = {
                ending: content,
                "cls": str(facts["label"]).encode(),
                "json": json.dumps({**facts, "name": shard.class_names[facts["label"]]}).encode(),
            }
            for name, data in files.items():
                entry = tarfile.TarInfo(f"{number:012d}.{name}")  # dated 1970, so that equal samples give equal files
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


def _rows(shard: Shard) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """Yield each sample's file extension, encoded pixels, and other columns."""
    values = shard.tensors.get("images", shard.tensors.get("inputs"))
    assert values is not None
    columns = {single: shard.tensors[name].tolist() for name, single in COLUMNS.items()}
    for row, value in enumerate(values):
        facts = {name: column[row] for name, column in columns.items()}
        if "probabilities" in shard.tensors:
            facts["probabilities"] = shard.tensors["probabilities"][row].tolist()
        yield *encoded(value), facts


def _write_parquet(path: Path, shard: Shard) -> None:
    """Write a table with one row per sample: image as PNG, or its numbers as a list; label, confidence, ..."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def numbers(values: Tensor) -> Any:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1).numpy()), values[0].numel())

    name = "images" if "images" in shard.tensors else "inputs"
    shape = tuple(shard.tensors[name].shape[1:])
    facts = {"interpkit.schema": "1", "interpkit.kind": "samples", "interpkit.shape": json.dumps(shape)}
    facts["interpkit.class_names"] = json.dumps(shard.class_names)
    writer = None
    try:
        for start in range(0, len(shard), ROW_GROUP):
            group = {key: tensor[start : start + ROW_GROUP] for key, tensor in shard.tensors.items()}
            if is_picture(shape):
                pictures = [content for _, content, _ in _rows(Shard(group, start, shard.class_names))]
                columns = {"image": pa.array(pictures, pa.binary())}
            else:
                columns = {name.removesuffix("s"): numbers(group[name])}
            for column, single in COLUMNS.items():
                columns[single] = pa.array(group[column].numpy())
            if "probabilities" in group:
                columns["probabilities"] = numbers(group["probabilities"])
            table = pa.table(columns).replace_schema_metadata(facts)
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


FORMATS = {
    "safetensors": ShardFormat("safetensors", _write_safetensors, (20, 4)),
    # Three tar headers, padding of each file to 512 bytes, and numbers as text.
    "webdataset": ShardFormat("tar", _write_webdataset, (4096, 24)),
    "parquet": ShardFormat("parquet", _write_parquet, (256, 4), package="pyarrow"),
}
