"""test_distributed.py runs this in one process and in two: it writes its results to the file that it is passed."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import nn

import interpkit
from interpkit.api.invert import prepare
from interpkit.inversion import recovery
from interpkit.io.atomic import sha256
from interpkit.plugins.assembly import build_generator
from interpkit.plugins.discovery import installed
from interpkit.runs.folder import Run
from interpkit.runtime import distributed
from interpkit.runtime.distributed import World, processes
from interpkit.runtime.random import global_seed
from interpkit.runtime.sync_batchnorm import sync_batch_norms

CPU = torch.device("cpu")


def classifier() -> interpkit.Target:
    with global_seed(0, CPU):
        net = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(100, 3))
    return interpkit.wrap(net, input_shape=(1, 12, 12))


def gathered(world: World, count: int) -> dict[str, Any]:
    """Square and weight rows that the processes made; return them and their gradients."""
    torch.manual_seed(1)
    source = torch.randn(count, 3, requires_grad=True)
    whole = world.all_gather(count, source[world.rows(count, CPU)] ** 2)[0]
    (whole * torch.arange(1.0, count + 1)[:, None]).sum().backward()
    gradient = source.grad
    assert gradient is not None
    total = torch.stack(world.all_gather_object(gradient)).sum(0) / world.size
    return {"rows": whole.detach(), "gradient": total}


def batch_norm(world: World, norm: nn.Module, *size: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    torch.manual_seed(2)
    shape = nn.Unflatten(2, size) if len(size) > 1 else nn.Identity()
    net = nn.Sequential(nn.Flatten(2), nn.Conv1d(2, 3, 1, bias=False), shape, norm)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x, weights = torch.randn(8, 2, *size) * 3 + 1, torch.randn(8, 3, *size)
    if world.size > 1:
        sync_batch_norms(net)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        part = net(x[world.rows(8, CPU)])
    assert part.dtype == dtype
    y = world.all_gather(8, part.float())[0]
    (y * weights).sum().backward()
    world.average_gradients(net.parameters())
    return {
        "out": y.detach(),
        "gradients": {name: p.grad for name, p in net.named_parameters()},
        "state": dict(net.state_dict()),
    }


def cosine_gradient(world: World) -> dict[str, Any]:
    """The bundled cosine term over features that two processes made."""
    torch.manual_seed(3)
    features = torch.randn(6, 5, requires_grad=True)
    whole = world.all_gather(6, features[world.rows(6, CPU)])[0]
    unit = nn.functional.normalize(whole, dim=1)
    loss = (unit.sum(0).square().sum() - 6) / 30
    loss.backward()
    assert features.grad is not None
    return {"loss": loss.item(), "gradient": torch.stack(world.all_gather_object(features.grad)).sum(0) / world.size}


def run(**settings: Any) -> dict[str, Any]:
    inversion = interpkit.invert(
        classifier(), ["vecmat"], steps=4, batch_size=8, seed=1, device="cpu", precision="fp32",
        options={"upconv.width": 8, "upconv.min_width": 4, "upconv.latent": 8, "upconv.hidden": 8, "upconv.dropout": 0},
        **settings,
    )  # fmt: skip
    return {"losses": [record.loss for record in inversion.history], "weights": inversion.generator.state_dict()}


def resumed(world: World) -> dict[str, Any]:
    """Stop a run after 10 of 20 steps and resume it; dropout is on, so each process's own randomness matters."""
    box = world.broadcast(tempfile.mkdtemp())
    settings: dict[str, Any] = {"seed": 2, "batch_size": 8, "device": "cpu", "precision": "fp32"}
    settings["options"] = {"upconv.width": 8, "upconv.min_width": 4, "upconv.latent": 8, "upconv.hidden": 8}

    def job() -> Any:
        return prepare(classifier(), ["vecmat"], steps=20, checkpoint_every=10, **settings)

    whole = job().run(out=Path(box) / "whole")
    first = job()
    first.run(out=Path(box) / "parts", on_step=lambda step: first.request_stop() if step == 10 else None)
    parts = job().run(out=Path(box) / "parts", resume=True)
    return {"whole": whole.generator.state_dict(), "in two parts": parts.generator.state_dict()}


class Steep(interpkit.InversionLoss):
    """Explodes after 80 % of the run, while its parameter moves at the rate of the recipe."""

    name = "steep"

    def __init__(self, target: interpkit.Target, options: Any = None) -> None:
        super().__init__(target, options)
        self.place = nn.Parameter(torch.zeros(()))
        self.last: float | None = None

    def forward(self, batch: interpkit.InversionBatch) -> torch.Tensor:
        pace = 0.0 if self.last is None else abs(self.place.item() - self.last)
        self.last = self.place.item()
        return self.place + (1e6 if batch.progress > 0.8 and pace > 1e-3 else 0.0)


class Made:
    @interpkit.hookimpl
    def register(self, registry: interpkit.Registration) -> None:
        registry.add(Steep)


def diverging(world: World) -> dict[str, Any]:
    """Explode at step 26, in one go and in two parts; return the manifest's entries and the weights."""
    recovery.KEEP_EVERY = 10
    if "mine" not in installed().found:
        installed().add("mine", Made)
    box = Path(world.broadcast(tempfile.mkdtemp()))
    settings: dict[str, Any] = {
        "seed": 2,
        "batch_size": 8,
        "device": "cpu",
        "precision": "fp32",
        "losses": {"steep": 1.0},
    }
    settings["options"] = {"upconv.width": 8, "upconv.min_width": 4, "upconv.latent": 8, "upconv.hidden": 8}
    settings["options"]["optimizer.decay"] = 0.0

    def job() -> Any:
        return prepare(classifier(), ["vecmat"], steps=30, checkpoint_every=10, **settings)

    whole = job().run(out=box / "whole")
    first = job()
    first.run(out=box / "parts", on_step=lambda step: first.request_stop() if step == 20 else None)
    parts = job().run(out=box / "parts", resume=True)
    manifests = [Run.open(box / name).manifest() for name in ("whole", "parts")] if world.rank == 0 else []
    rates = [manifest.lowered_rate for manifest in manifests]
    return {"lowered_rate": rates, "whole": whole.generator.state_dict(), "in two parts": parts.generator.state_dict()}


def shards(world: World) -> dict[str, str]:
    """Write samples of a generator with fixed weights as shards; return the content of each file."""
    recipe = prepare(classifier(), ["vecmat"], device="cpu", options={"upconv.width": 8, "upconv.min_width": 4}).recipe
    with global_seed(4, CPU):
        conditioner, generator = build_generator(recipe, classifier(), installed())
    assert conditioner is not None and generator is not None
    inversion = interpkit.GeneratorInversion(classifier(), recipe, [], generator, conditioner)
    folder = Path(world.broadcast(tempfile.mkdtemp()))
    index = interpkit.write_shards(inversion, folder, count=50, shard_size=12)
    assert [shard["count"] for shard in index["shards"]] == [12, 12, 12, 12, 2]
    return {path.name: sha256(path) for path in folder.glob("[!.]*")}


def lose_the_second() -> None:
    """End the second process without a message, and write the error that the first one raises."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun asks it to end, but the message must be written first
    distributed.PATIENCE = timedelta(seconds=2)
    with processes() as world:
        world.any_rank(True)
        if world.rank == 1:
            os._exit(9)
        try:
            world.all_gather(2, torch.zeros(1))
        except interpkit.RunError as error:
            Path(sys.argv[1]).write_text(str(error), "utf-8")


def threads() -> list[str]:
    """Return the names of this process's threads, on Linux."""
    return [comm.read_text("utf-8") for comm in Path("/proc/self/task").glob("*/comm")]


def main() -> None:
    torch.set_num_threads(1)
    with processes() as world:
        results = {
            "rows": gathered(world, 6),
            "uneven rows": gathered(world, 5),
            "batch norm": batch_norm(world, nn.BatchNorm2d(3, momentum=0.3), 4, 5),
            "batch norm of vectors": batch_norm(world, nn.BatchNorm1d(3, affine=False, momentum=None), 1),
            "batch norm in volumes": batch_norm(world, nn.BatchNorm3d(3, track_running_stats=False), 2, 2, 3),
            "batch norm in bf16": batch_norm(world, nn.BatchNorm2d(3), 4, 5, dtype=torch.bfloat16),
            "cosine gradient": cosine_gradient(world),
            "flags": [float(flag) for flag in world.any_rank(world.rank == world.size - 1, False)],
            "from first": world.broadcast(7.0 + world.rank),
            "shards": shards(world),
            "diverging": diverging(world),
            "runs": {
                "plain": run(),
                "robust": run(losses={"robust": 1.0}),
                "two generators": run(generators=2),
                "four generators": run(generators=4),
            },
        }
        if world.size > 1:
            results["resumed"] = resumed(world)
    if world.rank == 0:
        results["threads left"] = [name for name in threads() if "gloo" in name]
        torch.save(results, sys.argv[1])


if __name__ == "__main__":
    lose_the_second() if sys.argv[2:] == ["lose"] else main()
