"""Step time of interpkit's loop over that of a hand-written loop doing the same mathematics; goal: at most 1.03.

Same networks, optimizer, precision and batch; the two take turns, a step each, in one process.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F

import interpkit
from interpkit import api, assembly, training
from interpkit.plugins import installed
from interpkit.recorder import Recorder

MODEL = Path(__file__).parent.parent / "examples/models/mnist.safetensors"


def hand_written(job: api.Job) -> Iterator[None]:
    """The plain script: the paper's three losses on the same networks, nothing else."""
    recipe, target = job.recipe, job.target
    _, parts = assembly.build(recipe, target, installed())
    conditioner, generator = parts.conditioner.train(), parts.generator.train()
    generator.to(memory_format=torch.channels_last)
    features = {}
    target.module.get_submodule(target.feature_layer.removesuffix(":in")).register_forward_pre_hook(
        lambda _, inputs: features.update(x=inputs[0])
    )
    adam = recipe.optimizer
    optimizer = torch.optim.Adam(generator.parameters(), lr=adam.lr, betas=(adam.beta1, adam.beta2), fused=True)
    n = recipe.batch_size
    while True:
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bf16"):
            p = torch.randn(n, target.num_classes).softmax(1)
            labels = p.argmax(1)
            condition = interpkit.Condition(labels, p, p, lambda h, w, y=labels: conditioner.matrix.draw(y, h, w))
            images = generator(torch.randn(n, generator.latent_dim), condition).float()
            logits = target(images)
        kl = F.kl_div(logits.log_softmax(1), p, reduction="batchmean")
        ce = F.cross_entropy(logits, labels)
        units = F.normalize(features["x"].float(), dim=1)
        cosine = (units.sum(0).square().sum() - n) / (n * (n - 1))
        loss = kl + ce + cosine
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield


class Pausing(Recorder):
    """A recorder that lets the other loop step after each step, and takes the time of both."""

    def __init__(self, steps: int, other: Iterator[None]) -> None:
        super().__init__(steps)
        self.other = other
        self.ours: list[float] = []
        self.theirs: list[float] = []

    def step(self, *args, **kwargs) -> None:
        """End our step; run and time theirs; begin our next one."""
        super().step(*args, **kwargs)
        now = time.perf_counter()
        if hasattr(self, "begun"):
            self.ours.append(now - self.begun)
        next(self.other)
        self.begun = time.perf_counter()
        self.theirs.append(self.begun - now)


def main(steps: int = 60) -> None:
    """Compare the medians."""
    job = api.prepare(MODEL, ["vecmat"], steps=steps)
    torch.manual_seed(0)
    with job.target.frozen():
        recorder = Pausing(steps, hand_written(job))
        _, parts = assembly.build(job.recipe, job.target, installed())
        training.train(job.target, parts.conditioner, parts.generator, parts.losses, job.recipe, recorder)
    ours, theirs = statistics.median(recorder.ours), statistics.median(recorder.theirs[1:])
    print(
        f"{steps} steps of {job.recipe.batch_size} in {job.recipe.precision}: interpkit {ours * 1e3:.1f} ms, "
        f"hand-written {theirs * 1e3:.1f} ms: ratio {ours / theirs:.3f} (goal <= 1.03)"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    main(parser.parse_args().steps)
