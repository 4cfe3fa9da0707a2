"""``interpkit report``: a run as one self-contained page."""

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
            help="Real images, to show each sample's nearest one: FILE.npz[:train], FILE.csv, a folder with one "
            "subfolder per class, or torchvision:NAME.",
        ),
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    model: Annotated[Path | None, typer.Option(metavar="FILE", help="Path of the classifier, if it has moved.")] = None,
    arch: options.Arch = None,
    trust: options.Trust = False,
    plugin: options.PluginFile = None,
) -> None:
    """Rewrite report.html with the results of evaluate and attribute since the run ended.

    The page is one self-contained file: it opens from disk and needs no network.
    Example: interpkit report runs/mnist-vecmat-1 --reference mnist.npz --open
    """
    from interpkit.report import write_report

    options.load_plugin_files(plugin)
    path = write_report(run, reference=reference, model=model, arch=arch, trust=trust)
    console.out.out(str(path))
    if open_ and typer.launch(path.absolute().as_uri()) != 0:
        console.warning(f"no browser could be started: open {path.absolute()} yourself.")
