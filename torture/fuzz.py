"""Mutated files for every reader: each is read, or refused in one message, within seconds and without side effects.

    python -m torture.fuzz [--seed N] [--inputs N] [--share S] [--reader NAME]... [--number N]

Without ``--inputs`` the result of each reader is saved as soon as it is known.
Workers are forked with a memory limit, an alarm, and an audit hook that sees imports, processes, sockets and files.
Any input can be reproduced from the seed, the reader and its number; inputs that failed are saved in ``build/fuzz``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from interpkit.errors import InterpkitError
from torture import keep_part
from torture.mutate import Files, files
from torture.readers import READERS, Reader

SEED = 1
INPUTS = 300_000
GROWTH = 1_000_000_000
"""Bytes of address space that a worker may use beyond those it starts with."""
SECONDS = 5
"""Of computing, that an input may take; a busy machine makes no difference."""
KILLED_AFTER = 60
"""Seconds after which a worker that waits for something, or does not respond to its alarm, is killed."""
CHUNK = 500
"""Inputs per worker."""
SAVED = Path("build") / "fuzz"
STARTS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "subprocess.Popen")
REACHES = ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname")
CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.chmod")


class TooLongError(BaseException):
    """An input took longer than `SECONDS`; not an `Exception`, so that no reader mistakes it for an invalid file."""


@dataclass(frozen=True)
class Finding:
    """Something that should not have happened.

    Attributes:
        reader: name of the reader.
        number: number of the input.
        kind: traceback, slow, memory, crash, or the kind of side effect.
        detail: a short description.
    """

    reader: str
    number: int
    kind: str
    detail: str


def made(reader: Reader, corpus: list[Files], seed: int, number: int) -> Files:
    """Return the input with this number, the same each time."""
    rng = random.Random(f"{seed} {reader.name} {number}")
    return files(rng.choice(corpus), rng)


def put(contents: Files, folder: Path) -> None:
    """Write files into a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    folder.mkdir(exist_ok=True)


class Watch:
    """Records what this process does from now on, with `sys.addaudithook`."""

    def __init__(self, scratch: Path) -> None:
        self.events: list[tuple[str, str]] = []
        self.on = False
        self._scratch = str(scratch)
        self._known = {name.partition(".")[0] for name in sys.modules}
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "import" and str(arguments[0]).partition(".")[0] not in self._known:
            self.events.append(("import", str(arguments[0])))
        elif event in STARTS or event == "pickle.find_class":
            self.events.append(("process" if event in STARTS else "unpickling", f"{event} {arguments!r:.200}"))
        elif event in REACHES:
            self.events.append(("network", f"{event} {arguments!r:.200}"))
        elif event in ("exec", "compile") and "/interpkit" in sys._getframe(1).f_code.co_filename:
            self.events.append(("exec", f"{arguments!r:.200}"))
        elif event in CHANGES or (event == "open" and self._writes(*arguments)):
            self._outside(arguments[0])

    def _writes(self, path: Any, mode: str | None, flags: int) -> bool:
        return not isinstance(path, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))

    def _outside(self, path: Any) -> None:
        if not os.path.abspath(os.fsdecode(path)).startswith(self._scratch) and os.fsdecode(path) != os.devnull:
            self.events.append(("file", os.fsdecode(path)[:200]))


def violation(read: Callable[[], Any], watch: Watch) -> tuple[str, str] | None:
    """Read an input; return the kind and detail of what went wrong, or None."""

    def too_long(number: int, frame: FrameType | None) -> None:
        raise TooLongError

    signal.signal(signal.SIGPROF, too_long)
    error: BaseException | None = None
    watch.events.clear()
    watch.on = True
    try:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        read()
    except BaseException as caught:
        error = caught
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        watch.on = False
    if watch.events:
        return watch.events[0]
    if isinstance(error, TooLongError):
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "torture" not in frame.filename]
        return "slow", " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in frames[:-4:-1])
    cause = error
    while cause is not None:
        if isinstance(cause, MemoryError) or "allocate" in str(cause):
            return "memory", _description(cause)
        cause = cause.__cause__ or cause.__context__
    if error is not None and not isinstance(error, InterpkitError):
        return "traceback", _description(error)
    return None


def _description(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "torture" not in frame.filename]
    own = [f for f in frames if "interpkit" in f.filename][-1:] + frames[-1:]
    places = " ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in own)
    return f"{type(error).__name__}: {str(error).splitlines()[0][:150] if str(error) else ''} ({places})"


def work(reader: Reader, corpus: list[Files], seed: int, numbers: range, place: mmap.mmap, results: Path) -> None:
    """Read inputs in this process, which is a fork; write each number to ``place`` and each finding to ``results``."""
    os.setsid()
    with open(os.devnull, "r+b") as nothing:
        for descriptor in (0, 1, 2):
            os.dup2(nothing.fileno(), descriptor)
    scratch = Path(tempfile.mkdtemp(prefix="interpkit-fuzz-"))
    (scratch / "evil.py").write_text("raise SystemExit('imported')\n", "utf-8")
    os.chdir(scratch)
    sys.path.insert(0, str(scratch))
    sys.dont_write_bytecode = True
    tempfile.tempdir = str(scratch)
    warnings.simplefilter("ignore")
    watch = Watch(scratch)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + GROWTH, resource.RLIM_INFINITY))
    folder = scratch / "input"
    with results.open("a", encoding="utf-8") as lines:
        for number in numbers:
            struct.pack_into("<q", place, 0, number)
            put(made(reader, corpus, seed, number), folder)
            outcome = violation(lambda: reader.read(folder), watch)
            if outcome is not None:
                print(json.dumps(asdict(Finding(reader.name, number, *outcome))), file=lines, flush=True)
    struct.pack_into("<q", place, 0, numbers.stop)
    shutil.rmtree(scratch, ignore_errors=True)


def fuzz(reader: Reader, seed: int, numbers: range) -> list[Finding]:
    """Let forked workers read a range of inputs; a worker that dies is a finding, and the next one continues."""
    corpus = reader.corpus()
    with tempfile.TemporaryDirectory() as folder:
        for number, contents in enumerate(corpus):  # reading the unchanged files imports all that readers need
            put(contents, Path(folder, str(number)))
            with open(os.devnull, "w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
                reader.read(Path(folder, str(number)))
    findings: list[Finding] = []
    with tempfile.NamedTemporaryFile() as results, mmap.mmap(-1, 8) as place:
        at = numbers.start
        while at < numbers.stop:
            part = range(at, min(at + CHUNK, numbers.stop))
            struct.pack_into("<q", place, 0, at)
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    work(reader, corpus, seed, part, place, Path(results.name))
                    status = 0
                finally:
                    os._exit(status)
            status = _wait(child, place)
            at = struct.unpack_from("<q", place)[0]
            if at < part.stop:
                findings.append(Finding(reader.name, at, "crash", f"the worker ended with {status}"))
                at += 1
        findings += [Finding(**json.loads(line)) for line in Path(results.name).read_text("utf-8").splitlines()]
    return sorted(findings, key=lambda finding: finding.number)


def _wait(child: int, place: mmap.mmap) -> int:
    """Wait for a worker; kill it if one input takes far longer than its alarm."""
    last, since = -1, time.monotonic()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        number = struct.unpack_from("<q", place)[0]
        if number != last:
            last, since = number, time.monotonic()
        elif time.monotonic() - since > KILLED_AFTER:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)


def save(finding: Finding, seed: int) -> None:
    """Write the input of a finding into ``build/fuzz``."""
    reader = READERS[finding.reader]
    folder = SAVED / f"{finding.reader}-{finding.number}"
    put(made(reader, reader.corpus(), seed, finding.number), folder)


def run(inputs: int | None, seed: int = SEED, names: list[str] | None = None, share: float = 1.0) -> bool:
    """Run inputs through readers, according to their shares; print the findings, and return whether there are any.

    Args:
        inputs: how many over these readers; None for their part of `INPUTS`, whose results are saved.
        seed: random seed.
        names: the readers, or all.
        share: of `INPUTS`, for less time.
    """
    readers = [READERS[name] for name in names or READERS]
    shares = sum(reader.share for reader in (READERS.values() if inputs is None else readers))
    facts = {
        "seed": seed,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "safetensors", "numpy", "pillow")},
        "command": "python -m torture.fuzz",
    }
    failed = False
    for reader in readers:
        count = math.ceil((inputs or share * INPUTS) * reader.share / shares)
        begun = time.monotonic()
        new = fuzz(reader, seed, range(count))
        seconds = round(time.monotonic() - begun, 1)
        failed |= bool(new)
        print(f"{reader.name}: {count} inputs, {len(new)} findings, {seconds} s", flush=True)
        for finding in new:
            save(finding, seed)
        for detail, many in Counter((finding.kind, finding.detail) for finding in new).most_common(20):
            first = next(finding.number for finding in new if (finding.kind, finding.detail) == detail)
            print(f"    {many} x {detail[0]}: {detail[1]} (the first is {first})", flush=True)
        if inputs is None:
            kinds = dict(Counter(finding.kind for finding in new))
            result = {"inputs": count, "findings": kinds, "seconds": seconds}
            keep_part("fuzz", "readers", reader.name, result, **facts)
    return failed


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=SEED, help=f"Random seed (default: {SEED}).")
    parser.add_argument("--inputs", type=int, help=f"Number of inputs over all readers (default: {INPUTS:,}).")
    parser.add_argument("--share", type=float, default=1.0, help="Share of that number to read and save (default: 1).")
    parser.add_argument("--reader", action="append", choices=sorted(READERS), help="Test only this one; repeatable.")
    parser.add_argument("--number", type=int, help="Read only this input, in this process, with a traceback.")
    options = parser.parse_args(arguments)
    if options.number is not None:
        reader = READERS[options.reader[0]]
        with tempfile.TemporaryDirectory() as folder:
            put(made(reader, reader.corpus(), options.seed, options.number), Path(folder, "input"))
            reader.read(Path(folder, "input"))
        return
    if run(options.inputs, options.seed, options.reader, options.share):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
