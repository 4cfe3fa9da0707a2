"""Explain a classifier with Captum, through interpkit and directly.

    python examples/captum_attribution.py                      # the shipped MNIST classifier, on noise
    python examples/captum_attribution.py --data mnist.npz     # on real images
    python examples/captum_attribution.py --run runs/mnist     # on a run's samples

A target is a plain nn.Module that maps images in [0, 1] to logits and includes the preprocessing. Every Captum method
that works with the classifier's own module also works with the target. This script first calls interpkit.attribute,
then passes both modules to Captum's own methods and prints which of them work.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path

import captum.attr
import torch
from torch import Tensor, nn

import interpkit

Explain = Callable[[nn.Module, nn.Module, Tensor, Tensor], Tensor]
"""(module, one of its layers, images, classes) -> attributions."""

PLAIN = ("IntegratedGradients", "Saliency", "InputXGradient", "DeepLift", "GuidedBackprop", "Deconvolution", "LRP")
OF_A_LAYER = ("LayerGradCam", "LayerConductance", "InternalInfluence", "LayerDeepLift")
SQUARES = torch.arange(16).view(4, 4).repeat_interleave(7, 0).repeat_interleave(7, 1)
"""Sixteen squares of an image of 28 x 28 pixels; perturbation methods treat each as one feature."""


def captum_methods() -> dict[str, Explain]:
    """Return Captum's methods by name."""
    methods: dict[str, Explain] = {}
    for name in PLAIN:
        cls = getattr(captum.attr, name)
        methods[name] = lambda module, layer, x, y, cls=cls: cls(module).attribute(x, target=y)
    for name in OF_A_LAYER:
        cls = getattr(captum.attr, name)
        methods[name] = lambda module, layer, x, y, cls=cls: cls(module, layer).attribute(x, target=y)
    attr = captum.attr
    methods["LayerActivation"] = lambda module, layer, x, y: attr.LayerActivation(module, layer).attribute(x)
    methods["GuidedGradCam"] = lambda module, layer, x, y: attr.GuidedGradCam(module, layer).attribute(x, target=y)
    methods["NoiseTunnel"] = lambda module, layer, x, y: attr.NoiseTunnel(attr.Saliency(module)).attribute(
        x, nt_samples=4, target=y
    )
    methods["GradientShap"] = lambda module, layer, x, y: attr.GradientShap(module).attribute(
        x, baselines=torch.zeros_like(x), target=y
    )
    methods["DeepLiftShap"] = lambda module, layer, x, y: attr.DeepLiftShap(module).attribute(
        x, baselines=torch.zeros_like(x), target=y
    )
    methods["Occlusion"] = lambda module, layer, x, y: attr.Occlusion(module).attribute(
        x, sliding_window_shapes=(1, 7, 7), strides=(1, 7, 7), target=y
    )
    for name in ("FeatureAblation", "ShapleyValueSampling", "KernelShap", "Lime"):
        cls = getattr(attr, name)
        rows = {} if name == "FeatureAblation" else {"n_samples": 2 if name == "ShapleyValueSampling" else 20}
        methods[name] = lambda module, layer, x, y, cls=cls, rows=rows: cls(module).attribute(
            x, target=y, feature_mask=SQUARES[None, None], **rows
        )
    return methods


def outcome(explain: Explain, module: nn.Module, layer: nn.Module, images: Tensor, classes: Tensor) -> str:
    """Run a method; return ``ok``, or why it failed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            explain(module, layer, images.clone().requires_grad_(), classes)
    except Exception as error:  # Captum raises many kinds
        return f"{type(error).__name__}: {str(error).splitlines()[0][:60]}"
    return "ok"


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(Path(__file__).parent / "models" / "mnist.safetensors"))
    parser.add_argument("--data", help="An .npz file of 28 x 28 images.")
    parser.add_argument("--run", help="A run folder, whose samples are explained.")
    arguments = parser.parse_args()

    target = interpkit.load_target(arguments.model)
    images, labels = torch.rand(2, *target.input_shape), torch.tensor([3, 5])
    if arguments.run:
        inversion = interpkit.load_inversion(arguments.run)
        target = inversion.target
        images, labels = inversion.sample(per_class=1)
    if arguments.data:
        data = interpkit.load_data(arguments.data, target.input_shape)
        images, labels = data.images[:4], data.labels[:4]

    # 1. Through interpkit: any method, in one call.
    for method in ("integrated-gradients", "grad-cam"):
        maps = interpkit.attribute(target, images, labels, method=method)
        print(f"{method}: maps {tuple(maps.shape)}, from {maps.min():.3f} to {maps.max():.3f}")
    if arguments.run:
        fives, _ = inversion.sample(8, labels=[5])
        maps = interpkit.attribute(target, images, labels, target_class=(3, 5), baseline=fives)
        print(f"why 3 rather than what it classifies as 5: {maps.flatten(1).sum(1)[3]:.2f} logits in all")

    # 2. Directly: the user's module, which expects preprocessed images, and the target, which includes that step.
    module = target.module
    assert isinstance(module, nn.Module)
    convolution = [layer for layer in target.layers().values() if isinstance(layer, nn.Conv2d)][-1]
    print(f"\n{'Captum method':22} {'the module':12} the target")
    failures = []
    with target.frozen("cpu"):
        for name, explain in captum_methods().items():
            own, ours = (outcome(explain, m, convolution, images[:2], labels[:2]) for m in (module, target))
            print(f"{name:22} {own.partition(':')[0]:12} {ours}")
            if own == "ok" != ours:
                failures.append(name)
    print(f"\nworks with the module but not with the target: {', '.join(failures) or 'none'}")


if __name__ == "__main__":
    main()
