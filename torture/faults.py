"""A fault at every file operation of a command: nothing finished is lost or torn, and the same command ends the same.

The operations of a command on its folder (open, write, flush to disk, rename, make, remove, list) are counted in a run
that is left alone. Then each is given each fault in a process of its own:

- ``EIO``: it fails once;
- ``ENOSPC``: the disk is full from there on, before it, or in the middle of what is written (``short``);
- ``memory``: the process is out of memory at it, of Python's or of a device's;
- ``SIGTERM``, ``SIGINT``, ``SIGHUP``: the process is asked to stop;
- ``SIGKILL``: the process is gone.

Writing that Python does not see (Rust's) is cut short by a limit on the size of files, at each size that there is.
After each, what is there has to be whole, in the words of `torn`, and the command has to have ended as promised; then
the same command again has to end as if nothing had happened.
"""

from __future__ import annotations

import argparse
import builtins
import errno
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tarfile
import tempfile
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from PIL import Image

from interpkit.io.locking import HOLDER, LOCK
from torture import keep
from torture.kills import arguments, command, differences, load_all
from torture.long_run import classifier
from torture.twice import content, differing

SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGKILL")
WRITING = ("open to write", "write", "fsync", "replace", "mkdir")
"""Operations that a full disk refuses."""
FAULTS = ("EIO", "ENOSPC", "short", "memory", "device memory", *SIGNALS)
ENDS = {"EIO": (0, 1), "ENOSPC": (0, 1), "short": (0, 1), "memory": (0, 1), "device memory": (0, 1), "limit": (0, 1)}
ENDS |= {"SIGTERM": (0, 130), "SIGINT": (0, 130), "SIGHUP": (0, 130), "SIGKILL": (-9,)}
"""The exit codes that a fault may lead to; 0 where the command can do without the operation, or is done."""
STEPS = 8
OPERATIONS = {"open": "open", "replace": "replace", "rename": "replace", "mkdir": "mkdir", "unlink": "unlink"}
OPERATIONS |= {"fsync": "fsync", "scandir": "list", "listdir": "list"}
"""Functions of `os`, and what they do."""


class Injector:
    """Counts the operations on a folder, and gives one of them a fault.

    Args:
        folder: what lies in it is watched, and itself.
        at: the number of the operation that gets the fault, from 1; none if 0.
        fault: one of `FAULTS`.
        seen: a file that gets a line for each operation.
    """

    def __init__(self, folder: Path, at: int, fault: str, seen: Path) -> None:
        self.folder, self.at, self.fault = str(folder), at, fault
        self.count = 0
        self.seen = seen

    def install(self) -> None:
        """Watch this process from now on."""
        self._seen = os.open(self.seen, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        opened = io.open

        def watched(file: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
            writes = any(letter in mode for letter in "wxa+")
            self.reach("open to write" if writes else "open", file)
            handle = opened(file, mode, *rest, **more)
            return Watched(handle, partial(self.reach, "write", file)) if writes and self.within(file) else handle

        builtins.open = io.open = watched  # type: ignore[assignment]
        for name, kind in OPERATIONS.items():
            setattr(os, name, self._before(kind, getattr(os, name)))

    def _before(self, kind: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def reached(path: Any, *rest: Any, **more: Any) -> Any:
            writes = kind == "open" and bool(rest) and rest[0] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR)
            self.reach("open to write" if writes else kind, path)
            return call(path, *rest, **more)

        return reached

    def within(self, path: Any) -> bool:
        """Say whether a path, or an open file, is the folder or lies in it."""
        if isinstance(path, int):
            try:
                path = os.readlink(f"/proc/self/fd/{path}")
            except OSError:
                return False
        return (str(path) + "/").startswith(self.folder + "/") if isinstance(path, str | os.PathLike) else False

    def reach(self, kind: str, path: Any, write_half: Callable[[], object] | None = None) -> None:
        """Count an operation, and give it the fault if it is its turn."""
        if not self.within(path):
            return
        self.count += 1
        os.write(self._seen, f"{kind} {os.path.basename(str(path))}\n".encode())
        full = self.fault in ("ENOSPC", "short") and kind in WRITING
        if self.at and self.count > self.at and full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.count != self.at:
            return
        if self.fault in SIGNALS:
            os.kill(os.getpid(), getattr(signal, self.fault))
        elif self.fault == "EIO":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        elif self.fault == "memory":
            raise MemoryError
        elif self.fault == "device memory":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        elif full:
            if self.fault == "short" and write_half is not None:
                write_half()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Watched:
    """An open file whose every write is an operation."""

    def __init__(self, file: Any, reach: Callable[..., None]) -> None:
        self._file, self._reach = file, reach

    def write(self, content: Any) -> Any:
        """Write; half of it, where that is the fault."""

        def half() -> None:
            self._file.write(content[: len(content) // 2])
            self._file.flush()

        self._reach(write_half=half)
        return self._file.write(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Watched:
        self._file.__enter__()
        return self

    def __exit__(self, *exception: object) -> Any:
        return self._file.__exit__(*exception)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._file)


@dataclass(frozen=True)
class Job:
    """A command that is given faults.

    Attributes:
        words: the command line; the same one goes on where it was stopped, or starts anew.
        watched: the folder that it writes.
        before: the folder as it was; None if it was not there.
        whole: what the command makes of it when it is left alone.
        differ: names what is not the same in ``whole`` and in another folder.
        tidies: whether the same command removes what a killed one has left. In a folder of the user's own, where
            another may be writing, a hidden file beside the one that was named stays.
    """

    words: list[str]
    watched: Path
    before: Path | None
    whole: Path
    differ: Callable[[Path, Path], list[str]]
    tidies: bool = True

    def prepare(self) -> None:
        """Put the folder back as it was."""
        shutil.rmtree(self.watched, ignore_errors=True)
        if self.before is not None:
            shutil.copytree(self.before, self.watched)


def torn(folder: Path) -> list[str]:
    """Return the files in a folder that are not whole; a torn last line of the history is, by its contract."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path, folder)):
        try:
            _read(path)
        except Exception as error:
            found.append(f"{path.relative_to(folder)}: {error!r:.200}")
    return found


def _is_hidden(path: Path, folder: Path) -> bool:
    return path.name.startswith(".")


def _read(path: Path) -> None:
    if path.suffix == ".json":
        json.loads(path.read_text("utf-8"))
    elif path.suffix == ".jsonl":
        for line in path.read_text("utf-8").splitlines()[:-1]:
            json.loads(line)
    elif path.suffix == ".toml":
        tomllib.loads(path.read_text("utf-8"))
    elif path.suffix == ".safetensors":
        safetensors.torch.load_file(path)
    elif path.suffix == ".png":
        with Image.open(path) as picture:
            picture.load()
    elif path.suffix == ".html":
        if not path.read_text("utf-8").rstrip().endswith("</html>"):
            raise ValueError("no end")
    elif path.suffix == ".tar":
        with tarfile.open(path) as archive:
            for member in archive:
                content = archive.extractfile(member)
                if content is None or len(content.read()) != member.size:
                    raise ValueError(f"{member.name} is cut short")
    elif path.name == "checkpoint":
        torch.load(path, weights_only=True)
    else:
        raise ValueError("not a file of interpkit's")


def litter(folder: Path) -> list[str]:
    """Return what a writer has left half written, or of its lock."""
    hidden = (path for path in folder.rglob("*") if path.name.startswith(".") and path.name != ".shards")
    return sorted(str(path.relative_to(folder)) for path in hidden)


def give(job: Job, scratch: Path, fault: str, at: int) -> list[str]:
    """Give one operation of a command a fault; for ``limit``, let no file be longer than ``at`` bytes.

    Returns:
        what is not as promised.
    """
    job.prepare()
    log, seen = scratch / "log", scratch / "seen"
    log.unlink(missing_ok=True)
    if fault == "limit":
        before = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (at, resource.RLIM_INFINITY))
    else:
        before = Injector(job.watched, at, fault, seen).install
    status = command(job.words, log, before=before)
    said = log.read_text("utf-8", errors="replace")
    operation = "" if fault == "limit" else seen.read_text().splitlines()[at - 1]
    # What the command itself says cannot be had for this once: the report of a run, and the removal of a file.
    excused = {"report.html"} if "report.html could not be written" in said else set()
    excused |= set(litter(job.watched)) if operation.startswith("unlink") else set()
    found = [] if status in ENDS[fault] else [f"exit {status}"]
    if "Traceback" in said or "a fault of interpkit" in said:
        found.append("a traceback, or the word of one")
    if status == 1 and "error: " not in said and not (fault == "limit" and len(said.encode()) >= at):
        found.append("no message")
    found += [f"torn {name}" for name in torn(job.watched)]
    if fault != "SIGKILL":
        found += [f"left {name}" for name in litter(job.watched) if name not in excused]
    if job.before is not None:
        names = {path.relative_to(job.before) for path in job.before.rglob("*") if path.is_file()}
        found += [f"lost {name}" for name in names if not (job.watched / name).exists()]
    if status == 0 and fault not in SIGNALS:
        found += [f"done, but {name} differs" for name in job.differ(job.whole, job.watched) if name not in excused]
    told = said
    log.unlink()
    status = command(job.words, log)
    if status != 0:
        found.append(f"again: exit {status}: {log.read_text('utf-8', errors='replace')[-300:]}")
    else:
        if fault == "SIGKILL":
            # A finished run is only read, so the lock that was killed with its holder may lie there: it holds no one.
            for name in litter(job.watched):
                if not job.tidies or name in (LOCK, HOLDER):
                    (job.watched / name).unlink()
        found += [f"again: {name} differs" for name in job.differ(job.whole, job.watched) if name not in excused]
        found += [f"again: left {name}" for name in litter(job.watched) if name not in excused]
    return [f"{operation}: {what}: {told[-300:]}" for what in found]


def jobs(scratch: Path, names: Sequence[str] = ()) -> Iterator[tuple[str, Job]]:
    """Yield the commands of these names, or all, each with what it makes when it is left alone."""
    model = classifier(scratch)
    base, run, log = scratch / "base", scratch / "work" / "run", scratch / "log"
    base.mkdir()
    run.parent.mkdir()

    def made(
        name: str,
        words: list[str],
        before: Path | None,
        watched: Path,
        differ: Callable[[Path, Path], list[str]],
        tidies: bool = True,
    ) -> Iterator[tuple[str, Job]]:
        if names and name not in names:
            return
        job = Job(words, watched, before, base / name.replace("/", "-"), differ, tidies)
        job.prepare()
        if command(words, log) != 0:
            raise SystemExit(log.read_text("utf-8"))
        watched.rename(job.whole)
        yield name, job

    for kind in ("pixels", "vecmat"):
        yield from made(f"invert {kind}", arguments(kind, model, run, STEPS), None, run, differences)
    finished, stopped, place, empty = (base / name for name in ("invert vecmat", "stopped", "place", "empty"))
    empty.mkdir()
    if not finished.exists():
        job = Job(arguments("vecmat", model, run, STEPS), run, None, finished, differences)
        command(job.words, log)
        run.rename(finished)
    if not names or "invert --resume" in names:
        # One that was asked to stop, as it lies there to be gone on with.
        job = Job(arguments("vecmat", model, run, STEPS), run, None, finished, differences)
        first = next(
            at for at, what in enumerate(operations(job, scratch), 1) if what.startswith("replace .checkpoint")
        )
        job.prepare()
        if command(job.words, log, before=Injector(run, first, "SIGTERM", scratch / "seen").install) != 130:
            raise SystemExit("the run was not interrupted: " + log.read_text("utf-8"))
        run.rename(stopped)
        yield "invert --resume", Job(job.words, run, stopped, finished, differences)
    for name in ("evaluate", "report"):
        yield from made(name, [name, str(run)], finished, run, differing)
    maps = ["attribute", str(run), "--method", "saliency", "--no-checks", "--per-class", "2"]
    yield from made("attribute", maps, finished, run, _differing_in_depth)
    samples = ["sample", str(finished), "--out", str(place), "--count", "50", "--shard-size", "20"]
    for format in ("safetensors", "webdataset"):
        yield from made(f"sample {format}", [*samples, "--format", format], None, place, _differing_in_depth)
    few = ["sample", str(finished), "--per-class", "3", "--out", str(place / "few.safetensors")]
    yield from made("sample FILE", few, empty, place, differing, tidies=False)
    pack = ["pack", str(model), "--force", "--out", str(place / "model.safetensors")]
    yield from made("pack", pack, empty, place, differing, tidies=False)


def _differing_in_depth(one: Path, other: Path) -> list[str]:
    """Return the files that differ in two folders and in those within, which hold no run; as `differing`."""
    files = {path.relative_to(root) for root in (one, other) for path in root.rglob("*") if path.is_file()}
    return sorted(
        str(name)
        for name in files
        if not ((one / name).exists() and (other / name).exists()) or content(one / name) != content(other / name)
    )


def operations(job: Job, scratch: Path) -> list[str]:
    """Return the operations of a command that is left alone."""
    job.prepare()
    seen = scratch / "seen"
    if command(job.words, scratch / "log", before=Injector(job.watched, 0, "", seen).install) != 0:
        raise SystemExit((scratch / "log").read_text("utf-8"))
    return seen.read_text().splitlines()


def cases(job: Job, scratch: Path) -> list[tuple[str, int]]:
    """Return all faults of a command: which, and at which operation."""
    every = list(enumerate(operations(job, scratch), 1))
    writing = [number for number, kind in every if kind.startswith(WRITING)]
    writes = [number for number, kind in every if kind.startswith("write ")]
    sizes = {path.stat().st_size // 2 for path in job.whole.rglob("*") if path.is_file()}
    found = [(fault, number) for fault in FAULTS if fault not in ("ENOSPC", "short") for number, _ in every]
    found += [("ENOSPC", number) for number in writing] + [("short", number) for number in writes]
    return found + [("limit", size) for size in sorted(sizes) if size]


def faults(
    folder: Path, share: float = 1.0, seed: int = 0, names: Sequence[str] = (), kinds: Sequence[str] = ()
) -> dict[str, Any]:
    """Give every command every fault (or those of some kinds), or a share that is drawn; return what came of it."""
    load_all()
    drawn, result = random.Random(seed), {}
    for name, job in jobs(folder, names):
        every = [case for case in cases(job, folder) if not kinds or case[0] in kinds]
        chosen = sorted(drawn.sample(every, max(1, round(share * len(every)))))
        failed = {}
        for fault, at in chosen:
            found = give(job, folder, fault, at)
            if found:
                failed[f"{fault} {at}"] = found
                print(name, fault, at, *found, sep="\n", flush=True)
        operations_there = max(at for fault, at in every if fault != "limit")
        counted = dict(Counter(fault for fault, _ in chosen))
        result[name] = {"operations": operations_there, "faults": len(chosen), "by kind": counted, "failed": failed}
        print(name, operations_there, "operations,", len(chosen), "faults,", len(failed), "failed", flush=True)
    return result


def main(given: Sequence[str] = ()) -> None:
    """Give every command every fault."""
    parser = argparse.ArgumentParser(prog="python -m torture.faults", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--share", type=float, default=1.0, help="of the faults, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--job", action="append", default=[], help="this command only; repeatable")
    parser.add_argument("--kind", action="append", default=[], choices=[*FAULTS, "limit"], help="this kind; repeatable")
    asked = parser.parse_args(given)
    with tempfile.TemporaryDirectory() as folder:
        result = faults(Path(folder), asked.share, asked.seed, asked.job, asked.kind)
    total = sum(row["faults"] for row in result.values())
    failed = sum(len(row["failed"]) for row in result.values())
    whole = {"command": f"python -m torture.faults --share {asked.share:g} --seed {asked.seed}"}
    if not asked.job and not asked.kind:
        keep("faults", {**whole, "tried": total, "failed": failed, "commands": result})
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
