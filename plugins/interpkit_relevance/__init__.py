"""Attribution methods beyond Captum's: relevance propagation, attention, random masks, and minimal evidence.

``lrp`` requires zennit, the extra ``zennit``.
"""

from interpkit import Registration, hookimpl


from interpkit_relevance.propagation import RelevancePropagation


INTERPKIT_INTERFACE = 1


@hookimpl
def register(registry: Registration) -> None:
    """Add the attribution methods."""
    for method in (RelevancePropagation,):
        registry.add(method)
