"""Fixtures for all tests: a tiny classifier's file, a short finished run of it, plugins made on the spot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, settings
from torch import Tensor, nn

import interpkit
from interpkit.plugins.discovery import Plugins, installed

SHAPE = (1, 12, 12)
ARCH_ARGS: dict[str, Any] = {"input_shape": list(SHAPE), "num_classes": 3, "widths": [4], "hidden": 8}
QUICK: dict[str, Any] = {
    "plugins": ["vecmat"],
    "steps": 12,
    "batch_size": 8,
    "seed": 3,
    "device": "cpu",
    "precision": "fp32",
    "options": {"upconv.width": 8, "upconv.min_width": 4, "upconv.latent": 8, "upconv.hidden": 8},
}
QUICK_FLAGS = ["--plugin", "vecmat", "--device", "cpu", "--precision", "fp32"]
QUICK_FLAGS += ["--steps", "12", "--batch-size", "8", "--seed", "3"]
QUICK_FLAGS += [word for name, value in QUICK["options"].items() for word in ("--set", f"{name}={value}")]


os.environ.pop("COLUMNS", None)  # set where tests run on several cores; a console made under it keeps that width

settings.register_profile("interpkit", deadline=None, derandomize=True)
# Of a failure nothing but that it failed, for mutation testing: the smallest example takes long to find.
settings.register_profile("any-failure", settings.get_profile("interpkit"), phases=[Phase.explicit, Phase.generate])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "interpkit"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Compute in one thread: networks this small gain nothing by more, and lose much on a machine that is shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _no_memory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep records of what the user has typed out of the home of the user who runs the tests."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Seed torch's global generator, and leave it as it was."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def plugins() -> Iterator[Plugins]:
    """Return plugins of this test's own, used by the whole of interpkit until it ends: ``plugins.add(...)``."""
    installed.cache_clear()
    yield installed()
    installed.cache_clear()


class MadePlugin:
    """A plugin that registers some items."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    @interpkit.hookimpl
    def register(self, registry: interpkit.Registration) -> None:
        for item in self.items:
            registry.add(item)


@pytest.fixture
def add_plugin(plugins: Plugins) -> Callable[..., None]:
    """Return an adder of a plugin, ``mine`` if not named, that registers the given items, for this test alone."""

    def add(*items: Any, plugin: str = "mine") -> None:
        added = plugins.add(plugin, lambda: MadePlugin(*items))
        assert added.error is None, added.error

    return add


@pytest.fixture(scope="session")
def quick() -> Callable[..., dict[str, Any]]:
    """Return the arguments of a very short inversion, with changes: ``quick(steps=5, options={...})``."""

    def settings(options: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
        return QUICK | {"options": QUICK["options"] | (options or {})} | changes

    return settings


@pytest.fixture(scope="session")
def quick_flags() -> list[str]:
    """Return the same settings for the command line."""
    return list(QUICK_FLAGS)


@pytest.fixture(scope="session")
def tiny_module() -> Callable[..., nn.Module]:
    """Return a maker of tiny CNNs with fixed weights, for 12 x 12 gray images and 3 classes."""

    def make(seed: int = 0, **arguments: Any) -> nn.Module:
        from interpkit.plugins.architectures import build_architecture

        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            return build_architecture("interpkit:cnn", ARCH_ARGS | arguments)

    return make


@pytest.fixture(scope="session")
def make_model(tiny_module: Callable[..., nn.Module]) -> Callable[..., Path]:
    """Return a writer of tiny classifiers' files: ``make_model(path, seed=0, **arch_args)``."""

    def make(path: Path, *, seed: int = 0, **arguments: Any) -> Path:
        module = tiny_module(seed, **arguments)
        classes = (ARCH_ARGS | arguments)["num_classes"]
        return interpkit.save_target(
            module,
            path,
            architecture="interpkit:cnn",
            arch_args=ARCH_ARGS | arguments,
            input_shape=SHAPE,
            mean=0.25,
            std=0.5,
            class_names=[f"class {i}" for i in range(classes)],
        )

    return make


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Path]) -> Path:
    """Return the tiny classifier's file. Not to be changed; make another with ``make_model``."""
    return make_model(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture
def tiny_target(tiny_model: Path) -> interpkit.Target:
    """Return the tiny classifier, loaded."""
    return interpkit.load_target(tiny_model)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Return a finished run of 12 steps of the tiny classifier. Not to be changed; see ``run_copy``."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    interpkit.invert(tiny_model, out=folder, **QUICK)
    return folder


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    """Return a copy of the finished run that a test may spoil."""
    return Path(shutil.copytree(finished_run, tmp_path / "run-copy"))


@pytest.fixture
def module_state() -> Callable[[nn.Module], dict[str, Any]]:
    """Return a taker of all that must not change in a user's module."""

    def take(module: nn.Module) -> dict[str, Any]:
        tensors = [*module.named_parameters(), *module.named_buffers()]
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        return {
            "modes": [part.training for part in module.modules()],
            "requires_grad": [p.requires_grad for p in module.parameters()],
            "gradients": [p.grad is None for p in module.parameters()],
            "identities": [(name, id(t), t.data_ptr(), t.dtype) for name, t in tensors],
            "values": [t.tolist() for _, t in tensors],
            "hooks": [list(getattr(part, hook).values()) for part in module.modules() for hook in hooks],
            "attributes": [sorted(vars(part)) for part in module.modules()],
        }

    return take


@pytest.fixture(scope="session")
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a runner of real processes: ``run_python("-m", "interpkit", ..., cwd=..., env={...})``."""

    def run(*arguments: str | Path, env: dict[str, str] | None = None, **options: Any) -> Any:
        command = [sys.executable, *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, **options)

    return run


@pytest.fixture(scope="session")
def same_tensors() -> Callable[[dict[str, Tensor], dict[str, Tensor]], bool]:
    """Return a comparison, bit by bit, of two dicts of tensors."""

    def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
        return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)

    return same
