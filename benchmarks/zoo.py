"""Tries everything that interpkit does with a classifier on every torchvision classifier and the families of timm.

    python -m benchmarks.zoo [--only NAME ...] [--limit N]

Each has random weights and ten classes, and runs in a process of its own: it is wrapped, inverted for one step,
explained by Grad-CAM and integrated gradients, and packed twice, as weights of its architecture and as a graph, as the
user's own network would be. The packed files must give the same logits. What docs/zoo.json has already is not repeated,
so that a run can be stopped and go on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

KEPT = Path(__file__).parents[1] / "docs" / "zoo.json"
STAGES = ("wrap", "step", "grad-cam", "integrated-gradients", "pack", "pack as a graph")
SECONDS = 900
TIMM = Path(__file__).with_name("zoo_timm.txt").read_text().split()
"""The smallest of each family, as far as it has no more than 60 million weights."""
QUICK = {"upconv.width": 16, "upconv.min_width": 8}


def names() -> list[str]:
    """Return the architectures to try, torchvision's from the smallest to the largest."""
    from torchvision import models

    def size(name: str) -> int:
        return int(models.get_model_weights(name).DEFAULT.meta["num_params"])

    classifiers = sorted(models.list_models(module=models), key=size)
    return [f"timm:{name}" for name in TIMM] + [f"torchvision:{name}" for name in classifiers]


def input_shape(name: str) -> tuple[int, int, int]:
    """Return the shape that an architecture is made for; 64 pixels where torchvision's accepts any size."""
    family, _, model = name.partition(":")
    if family == "timm":
        import timm

        channels, height, width = timm.get_pretrained_cfg(model).input_size
        return channels, height, width
    if "vit" in model:
        return 3, 224, 224
    return (3, 96, 96) if model in ("inception_v3", "googlenet") else (3, 64, 64)


def check(name: str) -> dict[str, str]:
    """Try each stage; return "ok" or what went wrong, by stage."""
    import torch

    import interpkit

    torch.manual_seed(0)
    net = interpkit.build_architecture(name, {"num_classes": 10}).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):  # fresh statistics leave nothing to lose
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, torch.nn.Linear) and not module.weight.any():  # a head that starts at zero
            torch.nn.init.normal_(module.weight, std=0.02)
    shape = input_shape(name)
    images = torch.rand(2, *shape)
    folder = Path(tempfile.mkdtemp())
    target: Any = None

    def wrap() -> None:
        nonlocal target
        target = interpkit.wrap(net, shape)
        with torch.no_grad():
            assert torch.allclose(target(images), net(images), rtol=1e-3, atol=1e-4), "other logits than the network"
        assert not target.no_gradient, target.no_gradient

    def step() -> None:
        interpkit.invert(target, presets=["vecmat"], steps=1, batch_size=4, options=QUICK)

    def explain(method: str, **options: Any) -> Callable[[], None]:
        def run() -> None:
            classes = torch.arange(10)
            maps = interpkit.attribute(target, images[:1].expand(10, *shape), classes, method=method, options=options)
            assert maps.flatten(1).std(1).max() > 0, "constant maps of all classes"

        return run

    def pack(again: Callable[[Path], Any]) -> Callable[[], None]:
        def run() -> None:
            other = again(folder / "packed.safetensors")
            with torch.no_grad():
                far = (other(images) - target(images)).abs().max() / target(images).abs().max()
            assert far < 1e-3, f"logits {far:.2g} apart"
            assert norms(other) == norms(target), f"{norms(target)} batch norms, {norms(other)} in the packed file"

        return run

    def as_weights(path: Path) -> Any:
        interpkit.save_target(net, path, architecture=name, arch_args={"num_classes": 10}, input_shape=shape)
        return interpkit.load_target(path)

    def as_graph(path: Path) -> Any:
        interpkit.pack_target(target, path)
        return interpkit.load_target(path)

    def norms(classifier: interpkit.Target) -> int:
        """Return how many batch norms run: auxiliary heads have some that only run in training."""
        ran = set()
        kind = torch.nn.modules.batchnorm._BatchNorm
        found = [part for part in classifier.modules() if isinstance(part, kind)]
        hooks = [part.register_forward_hook(lambda part, *_: ran.add(part)) for part in found]
        classifier(images)
        for hook in hooks:
            hook.remove()
        return len(ran)

    integrated = explain("integrated-gradients", steps=4)
    stages = (wrap, step, explain("grad-cam"), integrated, pack(as_weights), pack(as_graph))
    results = {}
    for stage, run in zip(STAGES, stages, strict=True):
        try:
            run()
            results[stage] = "ok"
        except Exception as error:  # whatever fails is the result
            results[stage] = f"{type(error).__name__}: {error}"[:300]
            if stage == "wrap":
                break
    shutil.rmtree(folder)
    return results


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", help="Try only this architecture, again; repeatable.")
    parser.add_argument("--limit", type=int, help="Try at most so many more.")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.inside:
        print(json.dumps(check(options.inside)))
        return
    kept: dict[str, dict[str, str]] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    todo = options.only or [name for name in names() if name not in kept][: options.limit]
    for name in todo:
        command = [sys.executable, "-m", "benchmarks.zoo", "--inside", name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
            kept[name] = json.loads(done.stdout.splitlines()[-1])
        except subprocess.TimeoutExpired:
            kept[name] = {"all": f"took more than {SECONDS} s"}
        except (IndexError, ValueError):
            killed = f"killed by signal {-done.returncode}, as for too much memory" if done.returncode < 0 else ""
            kept[name] = {"all": killed or done.stderr.strip()[-300:] or f"exit {done.returncode}"}
        KEPT.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")
        faults = {stage: words for stage, words in kept[name].items() if words != "ok"}
        print(name, faults or "ok", flush=True)
    for stage in STAGES:
        good = sum(result.get(stage) == "ok" for result in kept.values())
        print(f"{stage}: {good} of {len(kept)}")


if __name__ == "__main__":
    main()
