"""The report of a run, and the comparison of several: each one self-contained HTML file.

It opens from disk and asks the network for nothing; its content security policy forbids both, and any script but
its own. Every name and figure in it is text to the template, which escapes it.
"""

from __future__ import annotations

from interpkit.report.compare import write_comparison
from interpkit.report.run import render_report, write_report

__all__ = ["render_report", "write_comparison", "write_report"]
