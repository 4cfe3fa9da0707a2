"""Save everything that the rest of a run depends on, and restore it bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from interpkit.errors import RunError, first_line
from interpkit.runtime.distributed import World


class TrainingState:
    """The networks that a run trains, their optimizer, the run's randomness, and the last completed step.

    `Recorder.resume` loads it and `Recorder.training_steps` saves it.

    Args:
        trained: all networks that are trained.
        optimizer: the optimizer of their parameters.
        rng: the run's own randomness.

    Attributes:
        step: the last completed step; initially 0.

    Example:
        >>> import torch
        >>> from interpkit import Recorder, TrainingState
        >>> net, rng = torch.nn.Linear(2, 3), torch.Generator().manual_seed(0)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> state, recorder = TrainingState(net, optimizer, rng), Recorder(steps=2)
        >>> recorder.resume(state)  # in memory there is no checkpoint
        False
        >>> for step in recorder.training_steps(state):
        ...     images = torch.rand(4, 2, generator=rng)
        ...     logits = net(images)
        ...     loss = logits.logsumexp(1).mean()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
        ...     recorder.step(step, loss, {"size": loss}, images, logits, torch.zeros(4, dtype=torch.int64))
        >>> state.step, [record.step for record in recorder.history]
        (2, [1, 2])
    """

    def __init__(self, trained: nn.Module, optimizer: torch.optim.Optimizer, rng: torch.Generator) -> None:
        self.trained = trained
        self.optimizer = optimizer
        self.rng = rng
        self.world = World.current()
        self.step = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain values; see `snapshot`."""
        return snapshot(self.step, self.trained, self.optimizer, self.rng, self.world)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state; see `restore`."""
        self.step = restore(state_dict, self.trained, self.optimizer, self.rng, self.world)


def snapshot(
    step: int,
    trained: nn.Module,
    optimizer: torch.optim.Optimizer,
    rng: torch.Generator,
    share: World | None = None,
) -> dict[str, Any]:
    """Return everything that the rest of the run depends on, as tensors and plain values.

    Args:
        step: the last completed step.
        trained: all networks that are trained.
        optimizer: the optimizer of their parameters.
        rng: the run's own randomness.
        share: the processes, if there are several; all of them call this, and each one's own randomness is saved.

    Example:
        >>> import torch
        >>> from interpkit import snapshot
        >>> net, rng = torch.nn.Linear(2, 2), torch.Generator().manual_seed(0)
        >>> state = snapshot(10, net, torch.optim.Adam(net.parameters()), rng)
        >>> sorted(state)
        ['optimizer', 'processes', 'rng', 'step', 'trained']
    """
    drawn = get_randomness(rng)
    return {
        "step": step,
        "trained": trained.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": drawn.pop("rng"),
        "processes": (share or World()).all_gather_object(drawn),
    }


def restore(
    state: dict[str, Any],
    trained: nn.Module,
    optimizer: torch.optim.Optimizer,
    rng: torch.Generator,
    share: World | None = None,
) -> int:
    """Restore a snapshot; return its last completed step.

    If the number of processes is the same, each gets its own randomness back; otherwise dropout draws other numbers.

    Raises:
        RunError: the snapshot is of other networks.

    Example:
        >>> import torch
        >>> from interpkit import restore, snapshot
        >>> net, rng = torch.nn.Linear(2, 2), torch.Generator().manual_seed(0)
        >>> optimizer = torch.optim.Adam(net.parameters())
        >>> state = snapshot(10, net, optimizer, rng)
        >>> drawn = torch.rand(3, generator=rng)
        >>> restore(state, net, optimizer, rng)
        10
        >>> torch.equal(torch.rand(3, generator=rng), drawn)
        True
    """
    world = share or World()
    try:
        trained.load_state_dict(state["trained"])
        optimizer.load_state_dict(state["optimizer"])
        set_randomness({"rng": state["rng"]}, rng)
        if len(state["processes"]) == world.size:
            set_randomness(state["processes"][world.rank], rng)
        return int(state["step"])
    except Exception as error:  # whatever torch raises for unexpected values
        raise RunError(f"the checkpoint does not fit its recipe: {first_line(error)}.") from error


def get_randomness(rng: torch.Generator) -> dict[str, Tensor]:
    """Return the state of the run's randomness and of this process's own, which dropout uses."""
    drawn = {"rng": rng.get_state(), "global_rng": torch.get_rng_state()}
    if rng.device.type == "cuda":
        drawn["cuda_rng"] = torch.cuda.get_rng_state(rng.device)
    return drawn


def set_randomness(drawn: Mapping[str, Tensor], rng: torch.Generator) -> None:
    """Restore a state of randomness, or those parts of it that are present."""
    if "rng" in drawn:
        rng.set_state(drawn["rng"].cpu())
    if "global_rng" in drawn:
        torch.set_rng_state(drawn["global_rng"].cpu())
    if "cuda_rng" in drawn:
        torch.cuda.set_rng_state(drawn["cuda_rng"].cpu(), rng.device)
