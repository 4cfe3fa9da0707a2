"""What a plugin is given to build its parts from: targets, architectures, files, seeds, the loop's own pieces."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import interpkit


def test_every_error_is_an_interpkit_error_with_an_exit_code_of_its_own() -> None:
    errors = [interpkit.RunError, interpkit.UsageError, interpkit.ModelError, interpkit.PluginError]
    assert all(issubclass(error, interpkit.InterpkitError) for error in errors)
    assert [error.exit_code for error in errors] == [1, 2, 3, 4]
    assert issubclass(interpkit.UsageError, ValueError)


def test_an_architecture_is_filled_with_weights_and_takes_its_width_from_them() -> None:
    weights = interpkit.build_architecture("torchvision:squeezenet1_1", {"num_classes": 3}).state_dict()
    module, arguments = interpkit.fill_architecture("torchvision:squeezenet1_1", {}, weights)
    assert arguments == {"num_classes": 3}
    assert all(torch.equal(tensor, weights[name]) for name, tensor in module.state_dict().items())


def test_a_loader_ends_in_a_target_by_what_is_known_of_the_module() -> None:
    facts = interpkit.TargetOptions(input_shape=(1, 4, 4), mean=[0.5], class_names=["a", "b"])
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    target = interpkit.make_target(module, "mine", facts, {"mean": "its header"}, arch="mine:linear")
    images = torch.rand(3, 1, 4, 4)
    assert torch.allclose(target(images), module(images - 0.5))
    assert (target.name, target.class_names, target.sources["mean"]) == ("mine", ["a", "b"], "its header")
    assert target.description.arch == "mine:linear"


def test_a_target_of_no_registered_architecture_is_packed_as_a_graph(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 2)).eval()
    target = interpkit.wrap(module, input_shape=(1, 4, 4), mean=0.2)
    path = interpkit.pack_target(target, tmp_path / "packed.safetensors")
    tensors, facts = interpkit.read_target_file(path)
    assert list(tensors) == [interpkit.ONNX_TENSOR]
    assert facts.arch == interpkit.ONNX_GRAPH
    images = torch.rand(2, 1, 4, 4)
    assert torch.allclose(interpkit.load_target(path)(images), target(images), atol=1e-5)


def test_a_seed_and_a_word_make_a_source_of_randomness_that_repeats() -> None:
    def drawn(word: str) -> torch.Tensor:
        return torch.rand(4, generator=interpkit.random_generator(torch.device("cpu"), interpkit.derive_seed(7, word)))

    assert torch.equal(drawn("one"), drawn("one"))
    assert not torch.equal(drawn("one"), drawn("another"))


class Brightness(interpkit.InversionLoss):
    """The mean of the images and of views twice as bright."""

    name = "brightness"

    def views(self, batch: interpkit.GeneratedBatch, rng: torch.Generator) -> torch.Tensor:
        return 2 * batch.images

    def forward(self, batch: interpkit.InversionBatch) -> torch.Tensor:
        assert batch.views is not None and batch.view_response is not None
        torch.testing.assert_close(batch.view_response.logits, batch.target(batch.views))
        return batch.images.mean() + batch.views.mean()


def test_the_objective_is_the_weighted_sum_of_the_terms_and_shows_the_target_their_views(
    tiny_target: interpkit.Target,
) -> None:
    images = torch.full((2, *tiny_target.input_shape), 0.25, requires_grad=True)
    one_hot = torch.eye(tiny_target.num_classes)[:2]
    condition = interpkit.Condition(torch.arange(2), one_hot, one_hot)
    batch = interpkit.GeneratedBatch(tiny_target, condition, torch.zeros(2, 1), images, 0.0)
    rng, plain = torch.Generator().manual_seed(0), torch.autocast("cpu", torch.bfloat16, enabled=False)
    with tiny_target.frozen():
        losses = {"brightness": (0.5, Brightness(tiny_target))}
        total, values, response = interpkit.objective(batch, losses, [], rng, plain)
    assert values["brightness"].item() == pytest.approx(0.75)
    assert total.item() == pytest.approx(0.375)
    assert response.logits.shape == (2, tiny_target.num_classes)


def test_an_objective_is_the_same_for_a_whole_run_and_may_run_in_micro_batches(tiny_target: interpkit.Target) -> None:
    images = torch.rand(5, *tiny_target.input_shape)
    one_hot = torch.eye(tiny_target.num_classes)[[0, 1, 2, 0, 1]]
    condition = interpkit.Condition(one_hot.argmax(1), one_hot, one_hot)
    batch = interpkit.GeneratedBatch(tiny_target, condition, torch.zeros(5, 1), images, 0.0)
    rng, plain = torch.Generator().manual_seed(0), torch.autocast("cpu", torch.bfloat16, enabled=False)
    with tiny_target.frozen():
        losses = {"brightness": (0.5, Brightness(tiny_target))}
        objective = interpkit.Objective(tiny_target, losses, plain)
        values = [objective(batch, rng)]
        objective.micro_batch = 2
        values.append(objective(batch, rng))
        for value in values:
            assert isinstance(value, interpkit.ObjectiveValue)
            assert value.terms.keys() == {"brightness"}
            torch.testing.assert_close(value.terms["brightness"], 3 * images.mean())
            torch.testing.assert_close(value.total, 1.5 * images.mean())
            torch.testing.assert_close(value.response.logits, tiny_target(images))


def test_an_inverter_steps_resumes_and_stops_by_its_recorder() -> None:
    class Memory(interpkit.Recorder):
        """Saves every second step, and resumes from what it was given."""

        def __init__(self, steps: int, saved: dict[int, Any]) -> None:
            super().__init__(steps)
            self.saved = saved

        def start(self) -> dict[str, Any] | None:
            super().start()
            return self.saved[max(self.saved)] if self.saved else None

        def due(self, step: int | None) -> bool:
            return step % 2 == 0

        def save(self, step: int, state: dict[str, Any]) -> None:
            self.saved[step] = copy.deepcopy(state)

    def run(steps: int, saved: dict[int, Any], stop: int | None = None) -> tuple[list[int], torch.Tensor]:
        net, rng = nn.Linear(2, 1, bias=False), torch.Generator().manual_seed(3)
        nn.init.ones_(net.weight)
        state = interpkit.TrainingState(net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), rng)
        recorder, done = Memory(steps, saved), []
        assert recorder.resume(state) == (state.step > 0)
        for step in recorder.training_steps(state):
            interpkit.set_learning_rate(state.optimizer, interpkit.Recipe(), (step - 1) / steps)
            loss = net(torch.rand(4, 2, generator=rng)).square().mean()
            state.optimizer.zero_grad()
            loss.backward()
            state.optimizer.step()
            logits = torch.zeros(4, 2)
            recorder.step(step, loss, {"square": loss}, torch.zeros(4, 2), logits, logits.argmax(1))
            done.append(step)
            recorder.stop_requested = step == stop
        assert recorder.history[-1].step == state.step == done[-1]  # also where a run is stopped
        return done, net.weight.detach()

    whole = run(6, {})
    saved: dict[int, Any] = {}
    assert run(6, saved, stop=5)[0] == [1, 2, 3, 4, 5]
    assert list(saved) == [2, 4]
    rest = run(6, saved)
    assert (whole[0], rest[0]) == ([1, 2, 3, 4, 5, 6], [5, 6])
    assert torch.equal(whole[1], rest[1])


def test_a_snapshot_restores_networks_optimizer_and_randomness() -> None:
    net, rng = nn.Linear(2, 1), torch.Generator().manual_seed(3)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        net(torch.rand(4, 2, generator=rng)).sum().backward()
        optimizer.step()
        return net.weight.detach().clone()

    step()
    state = copy.deepcopy(interpkit.snapshot(1, net, optimizer, rng))
    onwards = step()
    assert interpkit.restore(state, net, optimizer, rng) == 1
    assert torch.equal(step(), onwards)


def test_a_snapshot_of_other_networks_is_refused() -> None:
    rng = torch.Generator()
    net, other = nn.Linear(2, 1), nn.Linear(3, 1)
    state = interpkit.snapshot(1, net, torch.optim.Adam(net.parameters()), rng)
    with pytest.raises(interpkit.RunError, match="does not fit its recipe"):
        interpkit.restore(state, other, torch.optim.Adam(other.parameters()), rng)


def test_class_evidence_is_mean_and_spread_of_the_maps_of_each_class() -> None:
    maps = torch.tensor([[0.0], [2.0], [5.0]])
    evidence = interpkit.class_evidence(maps, torch.tensor([1, 1, 4]))
    assert isinstance(evidence, interpkit.ClassEvidence)
    assert evidence.labels.tolist() == [1, 4] and evidence.count.tolist() == [2, 1]
    assert evidence.mean.tolist() == [[1.0], [5.0]]
    assert evidence.spread[:, 0].tolist() == pytest.approx([2**0.5, 0.0])
