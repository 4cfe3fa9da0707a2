"""Attribution methods from Captum: gradients, path integrals, Grad-CAM, occlusion and regions, for any target.

Captum is imported when a method first runs, so that the command line starts quickly.
"""

from interpkit import Registration, hookimpl
from interpkit_captum.layer_maps import GradCam, GuidedGradCam
from interpkit_captum.pixels import (
    GradientShap,
    InputTimesGradient,
    IntegratedGradients,
    Occlusion,
    Saliency,
    SmoothGrad,
)
from interpkit_captum.regions import KernelShap, RegionAblation

INTERPKIT_INTERFACE = 1


@hookimpl
def register(registry: Registration) -> None:
    """Add the attribution methods."""
    for method in (
        IntegratedGradients,
        Saliency,
        InputTimesGradient,
        GradCam,
        GuidedGradCam,
        Occlusion,
        GradientShap,
        SmoothGrad,
        KernelShap,
        RegionAblation,
    ):
        registry.add(method)
