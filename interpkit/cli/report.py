"""``interpkit report``: a run as one page to look at and to send."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interpkit.cli import console, options


def report(
    run: options.RunFolder,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Real images, to show beside each sample its nearest: FILE.npz[:train], a folder of folders, or "
            "torchvision:NAME.",
        ),
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    model: Annotated[Path | None, typer.Option(metavar="FILE", help="The classifier, if it has moved.")] = None,
    arch: options.Arch = None,
    trust: options.Trust = False,
    plugin: options.PluginFile = None,
) -> None:
    """Write report.html anew, with what evaluate and attribute have found since the run ended.

    One self-contained file: it opens from disk and needs no network.
    Example: interpkit report runs/mnist-vecmat-1 --reference mnist.npz --open
    """
    from interpkit.report import write_report

    options.load_plugin_files(plugin)
    path = write_report(run, reference=reference, model=model, arch=arch, trust=trust)
    console.out.out(str(path))
    if open_ and typer.launch(path.absolute().as_uri()) != 0:
        console.warning(f"no browser could be started: open {path.absolute()} yourself.")
