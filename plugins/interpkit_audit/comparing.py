"""What the tests share that compare a class with the other classes of its classifier."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

import interpkit
from interpkit import Audit, outlier_p_values


class ComparesClasses(Audit):
    """A test whose null distribution is that of `outlier_p_values`, with a prior from clean classifiers."""

    # python -m benchmarks.planted; see docs/results/audit.md
    false_alarms = "none on 12 held-out clean classifiers, small ones of ten classes"

    class Options(interpkit.Options):
        """The prior."""

        sd: float = Field(gt=0, description="standard deviation of the statistic on clean classifiers")
        df: float = Field(12.0, ge=1, description="weight of that standard deviation, in classes")

    options: Options

    def p_values(self, values: Mapping[int | None, float]) -> dict[int | None, float]:
        """Return the p-values of the statistics."""
        return outlier_p_values(values, sd=self.options.sd, df=self.options.df)
