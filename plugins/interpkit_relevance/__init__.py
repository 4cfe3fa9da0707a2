"""Attribution methods beyond Captum's: relevance propagation, attention, random masks, and minimal evidence.

``lrp`` requires zennit, the extra ``zennit``.
"""

from interpkit import Registration, hookimpl
from interpkit_relevance.attention import AttentionRollout
from interpkit_relevance.evidence import MinimalEvidence
from interpkit_relevance.propagation import RelevancePropagation
from interpkit_relevance.random_masks import Rise

INTERPKIT_INTERFACE = 1


@hookimpl
def register(registry: Registration) -> None:
    """Add the attribution methods."""
    for method in (RelevancePropagation, AttentionRollout, Rise, MinimalEvidence):
        registry.add(method)
