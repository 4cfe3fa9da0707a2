"""Metrics of the samples: their variety, what other classifiers say, how they compare to real images."""

from interpkit import Registration, hookimpl
from interpkit_metrics.agreement import Agreement
from interpkit_metrics.canaries import Canaries
from interpkit_metrics.diversity import Diversity
from interpkit_metrics.memorisation import Memorisation
from interpkit_metrics.outliers import Calibration, Outliers
from interpkit_metrics.reference import Reference
from interpkit_metrics.student import Student

INTERPKIT_INTERFACE = 1


@hookimpl
def register(registry: Registration) -> None:
    """Add the metrics."""
    for metric in (Diversity, Agreement, Reference, Memorisation, Student, Canaries, Calibration, Outliers):
        registry.add(metric)
