"""A fault at every file operation of a command: no finished file is lost or torn, and a second attempt succeeds.

An undisturbed run counts the operations of a command on its folder (open, write, flush to disk, rename, make, remove,
list). Then each operation gets each fault, in its own process:

- ``EIO``: the operation fails once;
- ``ENOSPC``: the disk is full from there on, before the operation, or in the middle of a write (``short``);
- ``memory``: the process runs out of memory there, either Python's or a device's;
- ``SIGTERM``, ``SIGINT``, ``SIGHUP``: the process is asked to stop;
- ``SIGKILL``: the process is killed.

Writes that Python does not see (Rust's) are cut short by a limit on the size of files, at half the size of each file.
After each fault, the files that exist have to be complete (see `torn`), and the command has to have ended with an
allowed exit code and message; then the same command, run again, has to end as if nothing had happened.
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

import numpy as np
import safetensors.torch
import torch
from PIL import Image

import interpkit
from interpkit.runs.folder import DRAWN
from torture import keep_part
from torture.kills import NARROW, arguments, command, differences, load_all
from torture.long_run import CNN, SHAPE, classifier
from torture.twice import content, differing

SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGKILL")
WRITING = ("open to write", "write", "fsync", "replace", "mkdir")
"""Operations that fail on a full disk."""
FAULTS = ("EIO", "ENOSPC", "short", "memory", "device memory", *SIGNALS)
ENDS = {"EIO": (0, 1), "ENOSPC": (0, 1), "short": (0, 1), "memory": (0, 1), "device memory": (0, 1), "limit": (0, 1)}
ENDS |= {"SIGTERM": (0, 130), "SIGINT": (0, 130), "SIGHUP": (0, 130), "SIGKILL": (-9,)}
"""The exit codes that a fault may lead to; 0 if the command does not depend on the operation, or has finished."""
STEPS = 8
OPERATIONS = {"open": "open", "replace": "replace", "rename": "replace", "mkdir": "mkdir", "unlink": "unlink"}
OPERATIONS |= {"fsync": "fsync", "scandir": "list", "listdir": "list"}
"""Functions of `os`, and the names of their operations."""


class Injector:
    """Counts the operations on a folder, and injects a fault into one of them.

    Args:
        folder: the folder to watch, with everything in it.
        at: the number of the operation that gets the fault, counted from 1; none if 0.
        fault: one of `FAULTS`.
        operations: a file to which a line is written for each operation.
    """

    def __init__(self, folder: Path, at: int, fault: str, operations: Path) -> None:
        self.folder, self.at, self.fault = str(folder), at, fault
        self.count = 0
        self.operations = operations

    def install(self) -> None:
        """Start to watch this process."""
        self._log = os.open(self.operations, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
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
        """Return whether a path, or an open file, is the folder or is in it."""
        if isinstance(path, int):
            try:
                path = os.readlink(f"/proc/self/fd/{path}")
            except OSError:
                return False
        return (str(path) + "/").startswith(self.folder + "/") if isinstance(path, str | os.PathLike) else False

    def reach(self, kind: str, path: Any, write_half: Callable[[], object] | None = None) -> None:
        """Count an operation, and inject the fault if this is the one."""
        if not self.within(path):
            return
        self.count += 1
        os.write(self._log, f"{kind} {os.path.basename(str(path))}\n".encode())
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
    """An open file that counts every write as an operation."""

    def __init__(self, file: Any, reach: Callable[..., None]) -> None:
        self._file, self._reach = file, reach

    def write(self, content: Any) -> Any:
        """Write the content, or only half of it if that is the fault."""

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
    """A command to inject faults into.

    Attributes:
        words: the command line; the same one resumes the command or starts it again.
        watched: the folder that the command writes to.
        before: a copy of the folder before the command; None if it did not exist.
        whole: the folder after an undisturbed command.
        differ: returns the names of the files that differ between ``whole`` and another folder.
        tidies: whether a second attempt removes the temporary files of a killed one. In a folder of the user's own,
            where another process may be writing, a hidden file next to the output file stays.
        over: what a second attempt says if the first one had finished after all.
    """

    words: list[str]
    watched: Path
    before: Path | None
    whole: Path
    differ: Callable[[Path, Path], list[str]]
    tidies: bool = True
    over: str = ""

    def prepare(self) -> None:
        """Restore the folder to its state before the command."""
        shutil.rmtree(self.watched, ignore_errors=True)
        if self.before is not None:
            shutil.copytree(self.before, self.watched)


def torn(folder: Path) -> list[str]:
    """Return the files in a folder that are incomplete; the last line of a history may be torn by design."""
    incomplete = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path, folder)):
        try:
            _read(path)
        except Exception as error:
            incomplete.append(f"{path.relative_to(folder)}: {error!r:.200}")
    return incomplete


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
    elif path.suffix in (".safetensors", ".rounds"):
        safetensors.torch.load_file(path)
    elif path.suffix == ".png":
        with Image.open(path) as picture:
            picture.load()
    elif path.suffix == ".html":
        if not path.read_text("utf-8").rstrip().endswith("</html>"):
            raise ValueError("the end of the page is missing")
    elif path.suffix == ".tar":
        with tarfile.open(path) as archive:
            for member in archive:
                content = archive.extractfile(member)
                if content is None or len(content.read()) != member.size:
                    raise ValueError(f"{member.name} is cut short")
    elif path.name == "checkpoint":
        torch.load(path, weights_only=True)
    else:
        raise ValueError("interpkit does not write such a file")


def _checkpoint(folder: Path) -> bytes:
    path = folder / "checkpoint"
    return path.read_bytes() if path.exists() else b""


def litter(folder: Path) -> list[str]:
    """Return the temporary files and locks that a writer has left behind."""
    hidden = (path for path in folder.rglob("*") if path.name.startswith(".") and path.name != ".shards")
    return sorted(str(path.relative_to(folder)) for path in hidden)


def inject(job: Job, scratch: Path, fault: str, at: int) -> list[str]:
    """Inject a fault into one operation of a command; for ``limit``, allow no file longer than ``at`` bytes.

    Returns:
        The violations of the guarantees, with the operation and the end of the command's output.
    """
    job.prepare()
    log, seen = scratch / "log", scratch / "operations"
    log.unlink(missing_ok=True)
    if fault == "limit":
        before = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (at, resource.RLIM_INFINITY))
    else:
        before = Injector(job.watched, at, fault, seen).install
    status = command(job.words, log, before=before)
    output = log.read_text("utf-8", errors="replace")
    operation = "" if fault == "limit" else seen.read_text().splitlines()[at - 1]
    # Excused are a report that the command itself reports as not written, and a file whose removal failed.
    excused = {"report.html"} if "report.html could not be written" in output else set()
    excused |= set(litter(job.watched)) if operation.startswith("unlink") else set()
    violations = [] if status in ENDS[fault] else [f"exit {status}"]
    if any(words in output for words in ("Traceback", "fault of interpkit", "bug in interpkit")):
        violations.append("a traceback, or a message that announces a bug")
    if status == 1 and "error: " not in output and not (fault == "limit" and len(output.encode()) >= at):
        violations.append("no message")
    violations += [f"torn {name}" for name in torn(job.watched)]
    if fault != "SIGKILL":
        violations += [f"left {name}" for name in litter(job.watched) if name not in excused]
    if job.before is not None:
        names = {path.relative_to(job.before) for path in job.before.rglob("*") if path.is_file()}
        names = {name for name in names if (job.whole / name).exists()}  # what it resumed from is removed at the end
        if _checkpoint(job.before) != _checkpoint(job.watched):  # a resumed run removes what is of its earlier steps
            names -= {Path(name) for name in DRAWN}
        violations += [f"lost {name}" for name in names if not (job.watched / name).exists()]
    if status == 0 and fault not in SIGNALS:
        violations += [
            f"done, but {name} differs" for name in job.differ(job.whole, job.watched) if name not in excused
        ]
    log.unlink()
    status = command(job.words, log)
    output_again = log.read_text("utf-8", errors="replace")
    if status != 0 and not (job.over and job.over in output_again):
        violations.append(f"again: exit {status}: {output_again[-300:]}")
    else:
        if fault == "SIGKILL" and not job.tidies:
            for name in litter(job.watched):
                (job.watched / name).unlink()
        violations += [f"again: {name} differs" for name in job.differ(job.whole, job.watched) if name not in excused]
        violations += [f"again: left {name}" for name in litter(job.watched) if name not in excused]
    return [f"{operation}: {what}: {output[-300:]}" for what in violations]


def jobs(scratch: Path, names: Sequence[str] = ()) -> Iterator[tuple[str, Job]]:
    """Yield the commands with these names, or all, each with the folder that it writes when undisturbed."""
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

    def stop(job: Job, operation: str, which: int, folder: Path) -> None:
        """Ask a command to stop at one of its operations of a kind, and move what it left into ``folder``."""
        those = [at for at, what in enumerate(operations(job, scratch), 1) if what.startswith(operation)]
        job.prepare()
        before = Injector(job.watched, those[which], "SIGTERM", scratch / "operations").install
        if command(job.words, log, before=before) != 130:
            raise SystemExit("the command was not interrupted: " + log.read_text("utf-8"))
        job.watched.rename(folder)

    for kind in ("pixels", "vecmat"):
        yield from made(f"invert {kind}", arguments(kind, model, run, STEPS), None, run, differences)
    finished, stopped, place, empty = (base / name for name in ("invert vecmat", "stopped", "place", "empty"))
    empty.mkdir()
    if not finished.exists():
        job = Job(arguments("vecmat", model, run, STEPS), run, None, finished, differences)
        command(job.words, log)
        run.rename(finished)
    if not names or "invert --resume" in names:
        # A run that was asked to stop, ready to be resumed.
        job = Job(arguments("vecmat", model, run, STEPS), run, None, finished, differences)
        stop(job, "replace .checkpoint", 0, stopped)
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
    other, decoder = base / "other", base / "decoder"
    shutil.copytree(finished, other)
    page = ["compare", str(finished), str(other), "--html", str(place / "compared.html")]
    yield from made("compare", page, empty, place, _differing_in_depth, tidies=False)
    balanced, data, answers = _balanced(scratch)
    few = ["--latents", "8", "--active", "2", "--count", "24", "--steps", "3"]
    yield from made(
        "concepts", ["concepts", str(finished), *few, "--out", str(place)], None, place, _differing_in_depth
    )
    tests = ["--test", "noise", "--per-class", "2", "--reference", str(data)]
    yield from made("audit", ["audit", str(balanced), *tests, "--out", str(place)], None, place, _differing_in_depth)
    changes = ["counterfactual", str(balanced), "--images", str(data), "--count", "2", "--out", str(place)]
    yield from made("counterfactual", changes, None, place, _differing_in_depth)
    student = ["distill", str(finished), "--arch", "interpkit:cnn", "--arch-arg", "hidden=4", "--steps", "2"]
    student += ["--batch-size", "4", "--force", "--out", str(place / "student.safetensors")]
    yield from made("distill", student, empty, place, differing, tidies=False)
    if not names or "reconstruct" in names:
        learned = ["invert", str(model), "--preset", "alignment", "--data", str(data), "--out", str(decoder)]
        if command([*learned, "--steps", "2", "--batch-size", "12", "--device", "cpu"], log) != 0:
            raise SystemExit(log.read_text("utf-8"))
    decoded = ["reconstruct", str(decoder), "--predictions", str(answers)]
    yield from made(
        "reconstruct", [*decoded, "--out", str(place / "decoded.safetensors")], empty, place, differing, tidies=False
    )
    hard = [
        "harden",
        str(balanced),
        "--data",
        str(data),
        "--preset",
        "vecmat",
        *NARROW,
        "--device",
        "cpu",
        "--seed",
        "1",
    ]
    hard += ["--rounds", "1", "--steps", "2", "--samples", "12", "--batch-size", "12", "--stop-at", "1"]
    hard += ["--out", str(place / "hard.safetensors")]
    yield from made("harden", [*hard, "--force"], empty, place, differing, tidies=False)
    if not names or "harden --resume" in names:
        whole, begun = base / "harden", base / "begun"
        job = Job([*hard, "--force"], place, empty, whole, differing)
        stop(job, "open to write .hard.rounds", -1, begun)  # of the last round
        if not whole.exists():
            job.prepare()
            command(job.words, log)
            place.rename(whole)
        over = "there is nothing to resume"
        yield "harden --resume", Job([*hard, "--resume"], place, begun, whole, differing, tidies=False, over=over)


def _balanced(scratch: Path) -> tuple[Path, Path, Path]:
    """Write a classifier that gives each class to some of its images, those images, and answers."""
    module = interpkit.build_architecture("interpkit:cnn", CNN)
    images = torch.randint(0, 256, (60, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        list(module.parameters())[-1].sub_(module.eval()(images / 255).mean(0))
        labels = module(images / 255).argmax(1)
    model, data, answers = scratch / "balanced.safetensors", scratch / "data.npz", scratch / "answers.npy"
    interpkit.save_target(module, model, architecture="interpkit:cnn", arch_args=CNN, input_shape=SHAPE)
    np.savez(data, images=images.numpy(), labels=labels.numpy())
    np.save(answers, 0.7 * np.eye(CNN["num_classes"]) + 0.1)
    return model, data, answers


def _differing_in_depth(one: Path, other: Path) -> list[str]:
    """Return the files that differ between two folders and their subfolders; like `differing`, but not for runs."""
    files = {path.relative_to(root) for root in (one, other) for path in root.rglob("*") if path.is_file()}
    return sorted(
        str(name)
        for name in files
        if not ((one / name).exists() and (other / name).exists()) or content(one / name) != content(other / name)
    )


def operations(job: Job, scratch: Path) -> list[str]:
    """Return the operations of an undisturbed command."""
    job.prepare()
    seen = scratch / "operations"
    if command(job.words, scratch / "log", before=Injector(job.watched, 0, "", seen).install) != 0:
        raise SystemExit((scratch / "log").read_text("utf-8"))
    return seen.read_text().splitlines()


def cases(job: Job, scratch: Path) -> list[tuple[str, int]]:
    """Return all faults for a command, each with the number of the operation."""
    every = list(enumerate(operations(job, scratch), 1))
    writing = [number for number, kind in every if kind.startswith(WRITING)]
    writes = [number for number, kind in every if kind.startswith("write ")]
    sizes = {path.stat().st_size // 2 for path in job.whole.rglob("*") if path.is_file()}
    pairs = [(fault, number) for fault in FAULTS if fault not in ("ENOSPC", "short") for number, _ in every]
    pairs += [("ENOSPC", number) for number in writing] + [("short", number) for number in writes]
    return pairs + [("limit", size) for size in sorted(sizes) if size]


def faults(
    folder: Path,
    share: float = 1.0,
    seed: int = 0,
    names: Sequence[str] = (),
    kinds: Sequence[str] = (),
    saved: bool = False,
) -> dict[str, Any]:
    """Inject every fault (of some kinds, or a random share of them) into every command; return the result."""
    load_all()
    drawn, result = random.Random(seed), {}
    for name, job in jobs(folder, names):
        every = [case for case in cases(job, folder) if not kinds or case[0] in kinds]
        chosen = sorted(drawn.sample(every, max(1, round(share * len(every)))))
        failed = {}
        for fault, at in chosen:
            violations = inject(job, folder, fault, at)
            if violations:
                failed[f"{fault} {at}"] = violations
                print(name, fault, at, *violations, sep="\n", flush=True)
        row = {"operations": max(at for fault, at in every if fault != "limit"), "possible": len(every)}
        counted = dict(Counter(fault for fault, _ in chosen))
        result[name] = {**row, "faults": len(chosen), "by kind": counted, "failed": failed}
        print(name, row["operations"], "operations,", len(chosen), "faults,", len(failed), "failed", flush=True)
        if saved:
            keep_part("faults", "commands", name, result[name], command="python -m torture.faults", seed=seed)
    return result


def main(words: Sequence[str] = ()) -> None:
    """Inject the faults, and save the result of each command as soon as it is known."""
    parser = argparse.ArgumentParser(prog="python -m torture.faults", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--share", type=float, default=1.0, help="Share of the faults to inject, drawn at random (default: 1)."
    )
    parser.add_argument("--seed", type=int, default=0, help="Random seed (default: 0).")
    parser.add_argument("--job", action="append", default=[], help="Test only this command; repeatable.")
    kinds = [*FAULTS, "limit"]
    parser.add_argument("--kind", action="append", default=[], choices=kinds, help="Only this kind; saves nothing.")
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        result = faults(Path(folder), options.share, options.seed, options.job, options.kind, saved=not options.kind)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
