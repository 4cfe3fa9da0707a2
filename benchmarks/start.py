"""CPU time to start, over ``import torch``, and what each installed plugin adds: ``python -m benchmarks.start``."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measuring import Figure, ratios

PLUGINS = 20
MODEL = Path(__file__).parents[1] / "examples" / "models" / "mnist_bn.safetensors"
GOALS = {"--help": "<= 0.15", "plugins list": "<= 1.4", "inspect MODEL": "<= 1.4"}
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
    """Run a command with cached bytecode; return its CPU seconds, which other programs on the machine change little."""

    def used() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return children.ru_utime + children.ru_stime

    cached = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before = used()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=cached)
    return used() - before


def figures(rounds: int = 7) -> Iterator[Figure]:
    """Yield the figures; the competitors take turns."""
    interpkit = [sys.executable, "-m", "interpkit"]
    rivals = {"torch": [sys.executable, "-c", "import torch"]}
    rivals |= {words: [*interpkit, *words.replace("MODEL", str(MODEL)).split(" ")] for words in GOALS}
    took: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(1 + rounds):  # the first round fills the caches
        for name, command in rivals.items():
            took[name].append(seconds(command))
    theirs = took["torch"][1:]
    for words, goal in GOALS.items():
        ours = took[words][1:]
        detail = f"{statistics.median(ours):.2f} over {statistics.median(theirs):.2f} CPU seconds"
        yield Figure.of(f"interpkit {words}, over import torch", ratios(ours, theirs), goal, detail)
    with tempfile.TemporaryDirectory() as folder:
        install(Path(folder), PLUGINS)
        path = os.environ.get("PYTHONPATH", "")
        for added_to, most in ((["plugins", "list", "--json"], "<= 20"), (["--help"], "")):
            without, added = [], []
            for _ in range(rounds):
                without.append(seconds([*interpkit, *added_to]))
                os.environ["PYTHONPATH"] = f"{folder}{os.pathsep}{path}"
                added.append(1000 * (seconds([*interpkit, *added_to]) - without[-1]) / PLUGINS)
                os.environ["PYTHONPATH"] = path
            what = f"ms that a plugin adds to interpkit {' '.join(added_to)}"
            yield Figure.of(
                what, added, most, f"{statistics.median(without):.2f} CPU seconds without, {PLUGINS} plugins"
            )


if __name__ == "__main__":
    for figure in figures():
        print(figure.row(), flush=True)
