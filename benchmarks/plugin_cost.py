"""What each installed plugin adds to ``interpkit plugins list`` (goal: at most 20 ms) and to ``--help`` (nothing)."""

import os
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.help_time import seconds

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
    """Put so many packages with a plugin each into a folder, as pip leaves them."""
    for number in range(count):
        name = f"dummy{number}"
        (folder / f"{name}.py").write_text(SOURCE.replace("NAME", name))
        info = folder / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[interpkit]\n{name} = {name}\n")


def main(rounds: int = 7) -> None:
    """Alternate with and without the plugins and compare the medians."""
    with tempfile.TemporaryDirectory() as folder:
        install(Path(folder), PLUGINS)
        path = os.environ.get("PYTHONPATH", "")
        for words, goal in ((["plugins", "list", "--json"], "goal <= 20"), (["--help"], "goal: 0, within the noise")):
            command = [sys.executable, "-m", "interpkit", *words]
            without, with_all = [], []
            for _ in range(rounds):
                without.append(seconds(command))
                os.environ["PYTHONPATH"] = f"{folder}{os.pathsep}{path}"
                with_all.append(seconds(command))
                os.environ["PYTHONPATH"] = path
            added = 1000 * (statistics.median(with_all) - statistics.median(without)) / PLUGINS
            print(f"{' '.join(words)}: {statistics.median(without):.2f} s, and {added:.1f} ms a plugin ({goal})")


if __name__ == "__main__":
    main()
