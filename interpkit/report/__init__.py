"""Write the report of a run, or a comparison of several runs, as one self-contained HTML file.

The page opens from disk and loads nothing else: its content security policy forbids network access and all scripts
except its own. The templates escape every name and figure.
"""

from __future__ import annotations

from interpkit.report.compare import write_comparison
from interpkit.report.run import render_report, write_report

__all__ = ["render_report", "write_comparison", "write_report"]
