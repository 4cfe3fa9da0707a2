"""`load_inversion`: open a run folder from Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from interpkit.interfaces.inversions import Inversion
from interpkit.interfaces.targets import Target
from interpkit.plugins.discovery import installed
from interpkit.runs.folder import Run
from interpkit.runtime.autograd import with_autograd


@with_autograd
def load_inversion(
    run: str | Path, *, target: Target | str | Path | None = None, plugins: Sequence[str | Path] = ()
) -> Inversion:
    """Load an inversion from a run folder.

    Args:
        run: the folder.
        target: the classifier, for a run of one that was wrapped in memory; or its file, if that has moved.
        plugins: the plugins of one file that the run was made with; a file never has one loaded by itself.

    Raises:
        RunError: it is not a run folder, or the run is not finished.
        ModelError: the classifier's file is gone or is not what it was.
        PluginError: a plugin that it was made with is not installed, or broken.
        UsageError: it was made with a plugin of one file that is not named here.

    Example:
        >>> import torch
        >>> from interpkit import invert, load_inversion, wrap
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
        >>> target = wrap(net, input_shape=(1, 8, 8))
        >>> folder = invert(target, ["pixels"], steps=5).save("runs/first")
        >>> inversion = load_inversion(folder, target=target)
        >>> inversion.recipe.inverter.name, inversion.steps_done
        ('pixels', 5)
    """
    for path in plugins:
        installed().add_file(Path(path))
    opened = Run.open(Path(run))
    return opened.load(target) if target is None or isinstance(target, Target) else opened.load(model=Path(target))
