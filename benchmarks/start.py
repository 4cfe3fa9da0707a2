"""Startup time: ``interpkit --help``, and the time that each installed plugin adds: ``python -m benchmarks.start``."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measuring import Figure, ratios

PLUGINS = 20
SOURCE = '''
"""A plugin with a loss."""
from pydantic import Field

import interpkit
from interpkit import InversionLoss, hookimpl

INTERPKIT_INTERFACE = 1


class Loss(InversionLoss):
    """Mean brightness, raised to a power."""

    name = "NAME"

    class Options(interpkit.Options):
        power: float = Field(1.0, gt=0, description="the exponent")

    def forward(self, batch):
        return batch.images.mean() ** self.options.power


@hookimpl
def register(registry):
    registry.add(Loss)
'''


def install(folder: Path, count: int) -> None:
    """Write ``count`` packages with one plugin each into a folder, laid out as pip installs them."""
    for number in range(count):
        name = f"dummy{number}"
        (folder / f"{name}.py").write_text(SOURCE.replace("NAME", name))
        info = folder / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[interpkit]\n{name} = {name}\n")


def seconds(command: list[str]) -> float:
    """Run a command; return its wall-clock seconds."""
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def figures(rounds: int = 7) -> Iterator[Figure]:
    """Yield the figures; the competitors take turns."""
    interpkit = [sys.executable, "-m", "interpkit"]
    pairs = [(seconds([*interpkit, "--help"]), seconds([sys.executable, "-c", "import torch"])) for _ in range(rounds)]
    ours, theirs = zip(*pairs, strict=True)
    detail = f"{statistics.median(ours):.2f} over {statistics.median(theirs):.2f} s"
    yield Figure.of("interpkit --help, over import torch", ratios(ours, theirs), "<= 0.4", detail)
    with tempfile.TemporaryDirectory() as folder:
        install(Path(folder), PLUGINS)
        path = os.environ.get("PYTHONPATH", "")
        for words, goal in ((["plugins", "list", "--json"], "<= 20"), (["--help"], "")):
            without, added = [], []
            for _ in range(rounds):
                without.append(seconds([*interpkit, *words]))
                os.environ["PYTHONPATH"] = f"{folder}{os.pathsep}{path}"
                added.append(1000 * (seconds([*interpkit, *words]) - without[-1]) / PLUGINS)
                os.environ["PYTHONPATH"] = path
            what = f"ms that a plugin adds to interpkit {' '.join(words)}"
            yield Figure.of(what, added, goal, f"{statistics.median(without):.2f} s without, {PLUGINS} plugins")


if __name__ == "__main__":
    for figure in figures():
        print(figure.row(), flush=True)
