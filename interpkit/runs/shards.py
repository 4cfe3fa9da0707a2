"""Write any number of samples as a folder of shards: one in memory at a time, by several processes, and resumable.

    FOLDER/index.json                   the arguments and, once all shards are written, each shard and each class
    FOLDER/samples-000000.safetensors   the first ``shard_size`` samples, and so on; the last file may have fewer
    FOLDER/.shards/000000.json          figures of the first shard, for the index

The seeds of a shard depend only on its number. So its samples do not depend on the process that makes it, on earlier
shards, or on ``count``: a larger count only adds samples, and a shorter last shard is the beginning of the full one.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from rich.filesize import decimal
from torch import Tensor

from interpkit._version import __version__
from interpkit.config import schemas
from interpkit.errors import RunError, UsageError, install_extra, listed, setting
from interpkit.evaluation.scoring import judge
from interpkit.interfaces.inversions import Inversion
from interpkit.interfaces.samples import MAX_PROBABILITIES
from interpkit.io import strict_json
from interpkit.io.atomic import digest, inner_folder, replacing, to_json, write_atomically
from interpkit.io.locking import only_writer
from interpkit.runs.shard_formats import FORMATS, Shard
from interpkit.runtime.autograd import with_autograd
from interpkit.runtime.distributed import World
from interpkit.runtime.random import derive_seed

log = logging.getLogger("interpkit")

SCHEMA = 1
ENOUGH_TRIES = 10_000
LOWEST_RATE = 0.001
"""A shard fails if after ENOUGH_TRIES tries the acceptance rate of a class is below LOWEST_RATE."""


@with_autograd
def write_shards(
    inversion: Inversion,
    folder: str | Path,
    *,
    count: int,
    shard_size: int = 10_000,
    accepted: bool = False,
    labels: Sequence[int | str] | None = None,
    seed: int | None = None,
    dropout: bool | None = None,
    format: str = "safetensors",
    on_images: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Write any number of samples, with classes in turn, as files of ``shard_size`` samples each.

    One shard is in memory at a time. The same arguments give the same shards, with any number of processes started by
    ``torchrun``, and a larger ``count`` only adds samples. To resume an interrupted job, repeat the call: finished
    shards are kept.

    Args:
        inversion: the inversion to sample, on its device; see `Inversion.to`.
        folder: output folder, created if it does not exist.
        count: number of samples in total.
        shard_size: samples per file.
        accepted: keep only samples that the target assigns to the class asked for, drawing each until it does.
        labels: the classes; if omitted, all that have images.
        seed: random seed of the samples; if omitted, the recipe's.
        dropout: keep the generator's dropout on; if omitted, as in the recipe.
        format: ``safetensors``, with the tensors of a run's samples.safetensors; ``webdataset``, tar files with one PNG
            (or npy if a PNG cannot hold the sample), ``.cls`` and ``.json`` per sample; or ``parquet``, which requires
            pyarrow.
        on_images: called now and then with the number of samples that this process has made.

    Returns:
        The content of index.json: the arguments, ``generator_sha256`` and ``target_sha256`` of the weights, ``tries``
        and the ``rate`` in [0, 1] of those that the target accepts, ``shards`` (``file``, ``count``, ``bytes``), and
        ``per_class`` (``label``, ``name``, ``count``, ``tries``, ``accepted`` and ``rate``).

    Raises:
        UsageError: an argument is out of range, there are not enough images, or the format's package is missing.
        RunError: the folder holds other samples, a file cannot be written (as on a full disk), or the target accepts
            almost no samples of a class: fewer than 1 in 1,000 of 10,000 tries. Finished shards are kept.

    Example:
        >>> import torch
        >>> from interpkit import invert, wrap, write_shards
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
        >>> inversion = invert(wrap(net, input_shape=(1, 8, 8)), ["vecmat"], steps=10, batch_size=16)
        >>> index = write_shards(inversion, "samples", count=60, shard_size=40)
        >>> [shard["file"] for shard in index["shards"]]
        ['samples-000000.safetensors', 'samples-000001.safetensors']
    """
    job = ShardJob(
        inversion,
        Path(folder),
        count=count,
        shard_size=shard_size,
        accepted=accepted,
        labels=labels,
        seed=seed,
        dropout=dropout,
        format=format,
    )
    return job.run(on_images)


class ShardJob:
    """A validated job of `write_shards`, with the same arguments.

    ``shards`` is the total number of shards, ``done`` counts those that are written, and ``todo`` lists those that this
    process still has to write. ``bytes_needed`` is an approximate upper bound for all missing shards.
    """

    def __init__(
        self,
        inversion: Inversion,
        folder: Path,
        *,
        count: int,
        shard_size: int,
        accepted: bool = False,
        labels: Sequence[int | str] | None = None,
        seed: int | None = None,
        dropout: bool | None = None,
        format: str = "safetensors",
        world: World | None = None,
    ) -> None:
        if count < 1 or shard_size < 1:
            raise UsageError(f"count and shard size must be at least 1, not {count} and {shard_size}.")
        if format not in FORMATS:
            raise UsageError(f"there is no format {format!r} of shards; there are: {listed(FORMATS)}.")
        if not FORMATS[format].is_installed():
            package = FORMATS[format].package
            raise UsageError(f"the format {format} requires the package {package}: {install_extra(format)}.")
        recipe = inversion.recipe
        self.classes = inversion.choose(labels)
        inversion.check_count(self.classes, count)
        if accepted and inversion.images_per_class is not None:
            raise UsageError(
                f"{recipe.inverter.name} made a fixed number of images, so rejected ones cannot be drawn again. Write "
                f"them all, and keep those with the confidence you want."
            )
        self.inversion, self.folder = inversion, folder
        self.count, self.shard_size, self.accepted = count, shard_size, accepted
        self.seed = recipe.seed if seed is None else seed
        self.dropout = recipe.sampling.dropout if dropout is None else dropout
        self.format = FORMATS[format]
        self.world = world or World.current()
        self.shards = -(-count // shard_size)
        self.facts = {
            "schema": SCHEMA,
            "interpkit": __version__,
            "target": inversion.target.name,
            "count": count,
            "shard_size": shard_size,
            "accepted": accepted,
            "labels": self.classes,
            "seed": self.seed,
            "dropout": self.dropout,
            "chunk": recipe.sampling.chunk,
            "format": format,
            "device": inversion.device.type,
            "generator_sha256": inversion.fingerprint(),
            "target_sha256": digest(inversion.target.state_dict()),
        }
        self._check_folder()
        missing = [number for number in range(self.shards) if self._facts_of(number) is None]
        self.done = self.shards - len(missing)
        self.todo = [number for number in missing if number % self.world.size == self.world.rank]
        self.bytes_needed = sum(map(self.images_in, missing)) * self._bytes_each()

    def images_in(self, number: int) -> int:
        """Return the number of samples in a shard."""
        return min(self.shard_size, self.count - number * self.shard_size)

    def path(self, number: int) -> Path:
        """Return the path of a shard."""
        return self.folder / f"samples-{number:06d}.{self.format.ending}"

    def run(self, on_images: Callable[[int], None] | None = None) -> dict[str, Any]:
        """Write this process's shards, wait for the other processes, and write the index; see `write_shards`."""
        with ExitStack() as until_written:
            fault = None
            if self.world.rank == 0:
                try:
                    until_written.enter_context(only_writer(self.folder, ["index.json"]))
                    self._begin()
                except OSError as error:
                    fault = RunError(f"cannot write into {self.folder}: {error.strerror}.")
                except RunError as error:
                    fault = error
            fault = self.world.broadcast(fault)
            if fault is not None:
                raise fault
            return self._write_all(on_images)

    def _write_all(self, on_images: Callable[[int], None] | None) -> dict[str, Any]:
        done = 0

        def made(images: int) -> None:
            nonlocal done
            done += images
            if on_images is not None:
                on_images(done)

        own = {self.path(number).name for number in self.todo}
        for torn in self.folder.glob(".samples-*"):  # left by a killed process
            if torn.stem.removeprefix(".") in own:
                torn.unlink(missing_ok=True)
        with self.inversion.target.frozen(self.inversion.device):
            for number in self.todo:
                self._write(number, *self._make(number, made))  # a variable would keep it in memory with the next
        self.world.all_gather_object(True)
        index: dict[str, Any] = self.world.broadcast(self._finish() if self.world.rank == 0 else {})
        return index

    def _check_folder(self) -> None:
        """Raise a `RunError` unless the folder is new or holds the same job, possibly with fewer samples."""
        visible = self.folder.glob("[!.]*")
        names = sorted(path.name for path in itertools.islice(visible, 4))
        path = self.folder / "index.json"
        if not path.exists():
            if names:
                raise RunError(
                    f"{self.folder} holds {listed(names, 3)} but no index.json of shards: name a new folder."
                )
            return
        try:
            index = strict_json.parse(strict_json.read_text(path))
            schemas.ShardIndex.model_validate(index)
        except ValueError as error:  # includes pydantic's ValidationError
            raise RunError(f"{path} is not an index of shards: name another folder.") from error
        free = {"interpkit", "target", "count"}
        differing = [
            f"{name} is {index.get(name)!r:.40} there and {value!r:.40} here"
            for name, value in self.facts.items()
            if name not in free and index.get(name) != value
        ]
        if differing:
            raise RunError(
                f"{self.folder} holds other samples: {'; '.join(differing)}. Ask for the same, or name another folder."
            )
        if index["count"] > self.count:
            raise RunError(
                f"{self.folder} is for {index['count']} samples; a count of {self.count} cannot shorten it. Name "
                f"another folder."
            )

    def _begin(self) -> None:
        inner_folder(self.folder / ".shards")
        for torn in (self.folder / ".shards").glob(".*"):  # left by a killed process
            torn.unlink(missing_ok=True)
        left, needed = shutil.disk_usage(self.folder).free, self.bytes_needed
        if left < needed:
            log.warning("%s has %s free, and the samples may take %s", self.folder, decimal(left), decimal(needed))
        write_atomically(self.folder / "index.json", to_json({**self.facts, "finished": False}))

    def _facts_of(self, number: int) -> dict[str, Any] | None:
        """Return the recorded figures of a shard that is complete and has the right length; otherwise None."""
        try:
            facts = strict_json.parse(strict_json.read_text(self.folder / ".shards" / f"{number:06d}.json"))
            schemas.ShardFacts.model_validate(facts)
            on_disk = (self.path(number).name, self.images_in(number), self.path(number).stat().st_size)
        except (OSError, ValueError):
            return None
        whole = (facts["file"], facts["count"], facts["bytes"]) == on_disk
        rows = facts["per_class"]
        counted = sum(images for images, _, _ in rows.values()) == facts["count"] and all(
            int(label) < self.inversion.target.num_classes and 0 <= images <= tries < 2**53 and 0 <= accepted <= tries
            for label, (images, tries, accepted) in rows.items()
        )
        return dict(facts) if whole and counted else None

    def _make(self, number: int, made: Callable[[int], None]) -> tuple[Shard, Tensor]:
        """Sample a shard, one chunk of tries at a time.

        A chunk tries the first rows that are still open, repeatedly if they are fewer than its tries. These rows depend
        on the full shard, even if fewer samples are wanted.

        Returns:
            the shard, and for each class its images, tries, and accepted tries, (n, 3) int64.
        """
        inversion, size, turn = self.inversion, self.inversion.recipe.sampling.chunk, len(self.classes)
        wanted = self.images_in(number)
        rows = torch.arange(number * self.shard_size, (number + 1) * self.shard_size)
        labels, turns = torch.tensor(self.classes)[rows % turn], rows // turn
        is_open, tried = torch.ones_like(rows, dtype=torch.bool), torch.zeros_like(rows)
        tensors: dict[str, Tensor] = {}
        tally = torch.zeros(inversion.target.num_classes, 3, dtype=torch.int64)
        for chunk in itertools.count():
            first = is_open.nonzero()[:, 0][:size]
            tries = first.repeat(-(-size // len(first)))[:size]
            again = tried[tries] + torch.arange(size) // len(first)  # each try uses the next of several generators
            seed = derive_seed(self.seed, "shard", number, chunk)
            samples = judge(inversion, inversion.chunk(labels[tries], turns[tries] + again, seed, self.dropout))
            tried += tries.bincount(minlength=self.shard_size)
            right = samples.predicted == samples.labels
            kept = right.nonzero()[:, 0] if self.accepted else torch.arange(size)
            filled, at = map(torch.from_numpy, np.unique(tries[kept].numpy(), return_index=True))
            is_open[filled] = False
            needed = filled < wanted
            filled, rows_kept = filled[needed], kept[at[needed]]
            for name, values in samples.tensors().items():
                if chunk == 0:
                    tensors[name] = values.new_empty((wanted, *values.shape[1:]))
                tensors[name][filled] = values[rows_kept]
            counted = torch.arange(size) if self.accepted else rows_kept
            for column, labeled in enumerate((rows_kept, counted, counted[right[counted]])):
                tally[:, column] += samples.labels[labeled].bincount(minlength=len(tally))
            made(len(filled))
            if not is_open[:wanted].any():
                return Shard(tensors, int(rows[0]), inversion.target.class_names), tally
            self._check_acceptance(number, tally, labels[is_open])
        raise AssertionError

    def _check_acceptance(self, number: int, tally: Tensor, labels: Tensor) -> None:
        _, tries, accepted = tally.unbind(1)
        hopeless = (tries >= ENOUGH_TRIES) & (accepted < LOWEST_RATE * tries)
        still_open = labels.unique()
        for label in still_open[hopeless[still_open]].tolist():
            done, of, name = int(accepted[label]), int(tries[label]), self.inversion.target.class_names[label]
            raise RunError(
                f"the target accepts almost no samples of class {label} ({name}): {done} of {of} tries for "
                f"{self.path(number).name} ({done / of:.2%}). Leave the class out by {setting('labels', None)} or, in "
                f"another folder, also keep samples that are not accepted, without {setting('accepted', None)}. "
                f"Finished shards are kept in {self.folder}."
            )

    def _write(self, number: int, shard: Shard, tally: Tensor) -> None:
        """Write a shard, with its record just before the shard's file gets its name."""
        path = self.path(number)
        try:
            with replacing(path) as temporary:
                self.format.write(temporary, shard)
                facts = {
                    "file": path.name,
                    "count": len(shard),
                    "bytes": temporary.stat().st_size,
                    "per_class": {label: tally[label].tolist() for label in tally[:, 1].nonzero()[:, 0].tolist()},
                }
                write_atomically(self.folder / ".shards" / f"{number:06d}.json", json.dumps(facts))
        except (OSError, safetensors.SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RunError(
                f"{path.name} could not be written: {reason}. Finished shards are kept in {self.folder}; repeat the "
                f"command to write the others."
            ) from error

    def _finish(self) -> dict[str, Any]:
        """Write the final index of all shards."""
        shards, tally = [], torch.zeros(self.inversion.target.num_classes, 3, dtype=torch.int64)
        for number in range(self.shards):
            facts = self._facts_of(number)
            if facts is None:
                raise RunError(f"{self.path(number)} is missing. Repeat the command to write it.")
            for label, figures in facts.pop("per_class").items():
                tally[int(label)] += torch.tensor(figures)
            shards.append(facts)
        names = self.inversion.target.class_names
        per_class = [
            {"label": i, "name": names[i], "count": n, "tries": tries, "accepted": accepted, "rate": accepted / tries}
            for i, (n, tries, accepted) in enumerate(tally.tolist())
            if tries
        ]
        _, tries, accepted = tally.sum(0).tolist()
        index = {**self.facts, "finished": True, "tries": tries, "rate": accepted / tries}
        index |= {"per_class": per_class, "shards": shards}
        write_atomically(self.folder / "index.json", to_json(index))
        return index

    def _bytes_each(self) -> int:
        shape, classes = self.inversion.target.input_shape, self.inversion.target.num_classes
        pixels = math.prod(shape) * (1 if len(shape) == 3 else 4)
        each, a_probability = self.format.overhead
        return pixels + each + a_probability * (classes if classes <= MAX_PROBABILITIES else 0)
