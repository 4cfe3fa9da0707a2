"""Fusing a batch norm with the layer before it keeps the logits; it is not fused if anything reads between the two."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import interpkit
from interpkit.inversion.objective import objective
from interpkit.targets.fuse_batchnorm import fuse

SHAPE = (3, 8, 8)


class Head(nn.Module):
    """Pools four channels and returns three logits; networks inherit it and define the layers before."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


class Skip(Head):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.second, self.second_norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def features(self, x: Tensor) -> Tensor:
        out = self.norm(self.conv(x)) + self.stem(x)
        return F.relu(self.second_norm(self.second(F.relu(out))) + out, inplace=True)


class TwoConsumers(Head):
    def features(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y


class DetachedConsumer(Head):
    def features(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) * y.detach().mean()


class CalledTwice(Head):
    def features(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.norm(self.conv(x.flip(3)))


class NormCalledTwice(Head):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(3, 4, 1)

    def features(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.norm(self.other(x))


class UnderTwoNames(Head):
    def __init__(self) -> None:
        super().__init__()
        self.alias = self.conv


class WeightUsedElsewhere(Head):
    def features(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + F.conv2d(x, self.conv.weight, padding=1)


class Functional(Head):
    def features(self, x: Tensor) -> Tensor:
        norm = self.norm
        return F.batch_norm(self.conv(x), norm.running_mean, norm.running_var, norm.weight, norm.bias)


class ChangedInPlace(Head):
    def features(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y.mul_(2)
        return self.norm(y)


class NormFirst(Head):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(3)

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(F.relu(self.first(x))))


class Branches(Head):
    """Cannot be traced, because its computation depends on the image."""

    def features(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) if x.mean() > 0.3 else y


class TypeDependent(Head):
    """Misleads a tracer, which does not see that the convolution's output is read twice."""

    def features(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y if isinstance(y, Tensor) else self.norm(y)


class BatchStatistics(Head):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)


class OfPositions(nn.Module):
    """A batch norm over the second axis of a linear layer's output, whose third axis has the same size."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.head = nn.Linear(64, 3), nn.BatchNorm1d(3), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.linear(x.flatten(2))).flatten(1))


def sequence(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(3))


NETS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "plain": (Head, 1),
    "skip connections": (Skip, 2),
    "read twice": (TwoConsumers, 0),
    "read twice, once detached": (DetachedConsumer, 0),
    "both called twice": (CalledTwice, 0),
    "norm called twice": (NormCalledTwice, 0),
    "two names": (UnderTwoNames, 0),
    "weight used elsewhere": (WeightUsedElsewhere, 0),
    "functional": (Functional, 0),
    "changed in place": (ChangedInPlace, 0),
    "norm before convolution": (NormFirst, 0),
    "untraceable": (Branches, 0),
    "deceives the tracer": (TypeDependent, 0),
    "no running statistics": (BatchStatistics, 0),
    "linear over positions": (OfPositions, 0),
    "with bias": (lambda: sequence(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), 1),
    "not affine": (lambda: sequence(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)), 1),
    "grouped": (lambda: sequence(nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6)), 1),
    "transposed": (lambda: sequence(nn.ConvTranspose2d(3, 5, 3, 2), nn.BatchNorm2d(5)), 1),
    "transposed and grouped": (lambda: sequence(nn.ConvTranspose2d(3, 6, 3, groups=3), nn.BatchNorm2d(6)), 0),
    "of vectors": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)), 1),
    "half precision": (lambda: Head().bfloat16(), 1),
}


def trained(make: Callable[[], nn.Module]) -> interpkit.Target:
    """Return a target whose batch norms have non-trivial running statistics."""
    module = make()
    with torch.no_grad():
        module(torch.rand(2, *SHAPE).to(next(p.dtype for p in module.parameters() if p.dtype.is_floating_point)))
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                for tensor in (*part.parameters(), part.running_mean, part.running_var):
                    if tensor is not None:
                        tensor.uniform_(0.2, 2)
    return interpkit.wrap(module.eval(), SHAPE, mean=0.4, std=0.3)


@pytest.mark.parametrize("name", NETS)
def test_logits_do_not_change_and_only_adjacent_batch_norms_are_fused(
    name: str, module_state: Callable[[nn.Module], dict[str, Any]]
) -> None:
    make, expected = NETS[name]
    target = trained(make)
    before = module_state(target)
    images = torch.rand(5, *SHAPE)
    with target.frozen(layout=torch.channels_last):
        twin, count = fuse(target)
        norms = [module for module in twin.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        logits, same = target(images), twin(images)
    assert count == expected
    assert len(norms) == sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in target.modules()) - count
    assert (twin is target) == (count == 0)
    rounding = 2e-2 if name == "half precision" else 1e-5
    torch.testing.assert_close(same, logits, rtol=0, atol=rounding * logits.abs().max().item())
    assert module_state(target) == before


def test_fusing_does_not_change_the_gradients_of_images() -> None:
    target = trained(Skip)
    images = torch.rand(5, *SHAPE, requires_grad=True)
    with target.frozen():
        twin, _ = fuse(target)
        ours, theirs = (torch.autograd.grad(t(images).logsumexp(1).sum(), images)[0] for t in (twin, target))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_tensors_that_are_not_fused_are_shared() -> None:
    target = trained(Head)
    twin, _ = fuse(target)
    assert twin.get_parameter("module.head.weight") is target.get_parameter("module.head.weight")
    assert twin.get_parameter("module.conv.weight") is not target.get_parameter("module.conv.weight")


@pytest.mark.parametrize(
    ("layer", "count"),
    [("conv", 0), ("norm:in", 0), ("norm", 1), ("conv:in", 1), ("head", 1)],
)
def test_a_requested_layer_is_not_fused_away(layer: str, count: int) -> None:
    target = trained(Head)
    images = torch.rand(2, *SHAPE)
    with target.frozen():
        twin, folds = fuse(target, [layer])
        torch.testing.assert_close(twin.respond(images, [layer]).features, target.respond(images, [layer]).features)
    assert folds == count


@pytest.mark.parametrize(("layer", "count"), [("0", 0), ("1:in", 0), ("0:in", 1), ("1", 1)])
def test_a_requested_block_that_ends_between_the_layers_is_not_fused(layer: str, count: int) -> None:
    target = trained(
        lambda: sequence(nn.Sequential(nn.Conv2d(3, 4, 3)), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(inplace=True)))
    )
    images = torch.rand(2, *SHAPE)
    with target.frozen():
        twin, folds = fuse(target, [layer])
        torch.testing.assert_close(twin.respond(images, [layer]).features, target.respond(images, [layer]).features)
    assert folds == count


@pytest.mark.parametrize("watched", ["conv", "norm"])
def test_a_layer_with_a_user_hook_is_not_fused(watched: str) -> None:
    target = trained(Head)
    target.get_submodule(f"module.{watched}").register_forward_hook(lambda module, inputs, output: output + 1)
    with target.frozen():
        assert fuse(target) == (target, 0)


def test_a_target_without_batch_norms_is_not_copied(tiny_target: interpkit.Target) -> None:
    assert fuse(tiny_target) == (tiny_target, 0)


# ----------------------------------------------------------------------------------------- in the loop


def test_five_steps_have_the_same_result_without_fusing(
    quick: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    target = trained(Skip)
    settings = quick(steps=5, generator="upconv", losses={"cosine": 1.0})
    folds: list[int] = []

    def note(recorder: interpkit.Recorder, **facts: Any) -> None:
        folds.append(facts["folded"])

    monkeypatch.setattr(interpkit.Recorder, "note", note)
    ours = interpkit.invert(target, **settings)
    monkeypatch.setattr("interpkit.inversion.objective.fuse", lambda target, layers: (target, 0))
    plain = interpkit.invert(target, **settings)
    assert folds == [2, 0]
    for one, other in zip(ours.history, plain.history, strict=True):
        assert one.terms == pytest.approx(other.terms, rel=1e-4)
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
    assert ours.history[-1].loss != pytest.approx(ours.history[0].loss, rel=1e-3)


def test_the_manifest_records_how_many_batch_norms_were_fused(
    quick: Callable[..., dict[str, Any]], tmp_path: Any
) -> None:
    from interpkit.runs.folder import Run

    interpkit.invert(trained(Head), out=tmp_path / "run", **quick(steps=1))
    assert Run.open(tmp_path / "run").manifest().folded == 1


def test_terms_receive_the_target_itself_while_a_copy_runs() -> None:
    target = trained(Head)
    with target.frozen():
        twin, _ = fuse(target)
    assert twin is not target
    seen: list[interpkit.Target] = []

    class Noting(interpkit.InversionLoss):
        name = "noting"

        def forward(self, batch: interpkit.InversionBatch) -> Tensor:
            seen.append(batch.target)
            return batch.response.logits.mean()

    images = torch.rand(4, *SHAPE)
    condition = interpkit.Condition(torch.zeros(4, dtype=torch.int64), torch.eye(3)[[0] * 4], torch.eye(3)[[0] * 4])
    batch = interpkit.GeneratedBatch(target, condition, torch.zeros(4, 1), images, 0.0)
    losses = {"noting": (1.0, Noting(target))}
    off = torch.autocast("cpu", enabled=False)
    broken = copy.deepcopy(twin)
    broken.get_parameter("module.head.bias").data += 1.0
    plain, _, _ = objective(batch, losses, [], torch.Generator(), off)
    moved, _, _ = objective(batch, losses, [], torch.Generator(), off, looking=broken)
    assert moved.item() == pytest.approx(plain.item() + 1, rel=1e-4)  # so the copy is what runs
    assert all(given is target for given in seen)
