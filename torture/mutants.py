"""Mutation testing: small faults are planted one at a time, and the tests of the module must notice them.

mutmut's operators mutate the bodies of functions (another operator, an argument omitted or None, a number plus one, a
condition that always holds, ...). Not mutated are

- string literals, including docstrings, and everything in a ``raise`` or a call of ``warnings``: these are messages;
- ``assert`` and ``cast``, which inform the type checker, and annotations;
- the arguments of decorators, and default values.

Each mutant runs in its own process, forked from one in which torch is loaded, against the tests of its group until the
first one fails; the files on disk are never changed. From a group with more mutants than ``--sample``, that many are
drawn with a seed. Mutants that no test can distinguish from the original are listed in `EQUIVALENT`, with the reason.
"""

from __future__ import annotations

import argparse
import difflib
import gc
import importlib
import importlib.util
import multiprocessing
import multiprocessing.connection
import os
import random
import resource
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from typing import Any

import libcst as cst
import libcst.matchers as m
from mutmut.mutation.mutators import mutation_operators
from scipy.stats import binomtest

from torture import keep_part

ROOT = Path(__file__).parents[1]
MEMORY = 12 << 30
"""Bytes that a mutant may allocate; one that asks for more is killed."""
WEIGHTS = "mixin or timm or transformers or weights or checkpoint or prefix or state_dict or misfit"
FORMATS = f"({WEIGHTS}) and not inverted and not run_of and not onnx"
"""Selects, from the tests of formats, those of files and folders with weights."""
LOADED = (
    *("hypothesis", "pytest", "numpy", "pydantic", "rich", "typer", "safetensors.torch", "scipy.optimize"),
    *("torch", "torchvision", "torchmetrics.image.kid", "torchmetrics.functional.image", "PIL.Image"),
    *("captum.attr", "huggingface_hub", "onnx", "timm", "transformers"),
)
"""Modules loaded before the forks; interpkit is not among them, because each mutant imports it itself."""


KIT = "tests/testing/test_bundled.py"


def kit(*names: str) -> tuple[str, ...]:
    """Return the conformance tests of some components, except those that take long."""
    return (KIT, "-k", f"({' or '.join(f'{name}-' for name in names)}) and not two-processes and not converges")


@dataclass(frozen=True)
class Part:
    """Files, and the arguments of the pytest calls that test them, made one after another until one fails."""

    files: str | tuple[str, ...]
    tests: tuple[tuple[str, ...], ...]

    def paths(self) -> list[str]:
        """Return the files, relative to the root."""
        patterns = (self.files,) if isinstance(self.files, str) else self.files
        return sorted(file.relative_to(ROOT).as_posix() for pattern in patterns for file in ROOT.glob(pattern))


GROUPS = {
    "losses": [
        Part(
            "plugins/interpkit_losses/*.py",
            (
                ("tests/bundled/test_losses.py",),
                kit("kl", "ce", "cosine", "orthogonality", "spread", "tv", "chroma", "batchnorm", "statistics"),
                kit("activation", "stationarity"),
            ),
        ),
        Part("plugins/interpkit_ensemble/loss.py", (("tests/bundled/test_ensemble.py",), kit("disagreement"))),
        Part("plugins/interpkit_prior/loss.py", (("tests/bundled/test_prior.py",), kit("prior"))),
        Part(
            tuple(f"plugins/interpkit_robust/{name}.py" for name in ("loss", "ghosts", "perturbations")),
            (("tests/bundled/test_robust.py",), kit("robust", "ghosts")),
        ),
    ],
    "conditioners": [
        Part(
            "plugins/interpkit_vecmat/conditioners.py",
            (("tests/bundled/test_conditioners.py",), kit("vector", "vecmat", "matrix", "label")),
        ),
    ],
    "metrics": [
        Part(
            ("plugins/interpkit_metrics/*.py", "plugins/interpkit_robust/metric.py"),
            (
                ("tests/bundled/test_metrics.py", "tests/bundled/test_outliers.py", "tests/bundled/test_student.py"),
                kit("agreement", "diversity", "reference", "memorisation", "robustness"),
                kit("calibration", "ood", "canaries", "student"),
            ),
        )
    ],
    "audits": [
        Part(
            "plugins/interpkit_audit/*.py",
            (
                ("tests/bundled/test_audit.py",),
                kit("margin", "unsure", "patch", "noise", "tint", "blind-spots", "memorized"),
                kit("likeness", "sturdiness", "rim"),
            ),
        )
    ],
    "readers": [
        Part("interpkit/io/datasets.py", (("tests/io/test_datasets.py",),)),
        Part("interpkit/io/atomic.py", (("tests/io/test_atomic.py",),)),
        Part(
            "interpkit/targets/file_format.py",
            (
                ("tests/targets/test_file_format.py",),
                ("tests/bundled/test_targets.py",),
                ("tests/bundled/test_formats.py", "-k", "packed or packing"),
            ),
        ),
        Part(
            tuple(f"plugins/interpkit_targets/{name}.py" for name in ("folders", "checkpoints", "loaders")),
            (("tests/bundled/test_readers.py",), ("tests/bundled/test_formats.py", "-k", FORMATS)),
        ),
    ],
}

EQUIVALENT: dict[tuple[str, str, str], str] = {
    **{
        (
            path,
            "super().__init__(target, options)",
            "super().__init__(None, options)",
        ): "the base class does not store the target"
        for path in ("losses/priors", "losses/variety", "robust/loss", "robust/ghosts")
    },
    (
        "losses/priors",
        "mean = target.to_unit(torch.tensor([facts.mean or [0.0]]))[0].expand(features)",
        "mean = target.to_unit(torch.tensor([facts.mean or [1.0]]))[0].expand(features)",
    ): "a target always has a mean",
    (
        "losses/variety",
        "identity = torch.eye(len(units), device=units.device, dtype=units.dtype)",
        "identity = torch.eye(len(units), device=units.device, dtype=None)",
    ): "the matrix that it is added to has that type",
    (
        "robust/perturbations",
        "return (images + _per_image(_uniform(images, rng, 0, sigma), images) * _noise(images, rng)).clamp(0, 1)",
        "return (images - _per_image(_uniform(images, rng, 0, sigma), images) * _noise(images, rng)).clamp(0, 1)",
    ): "the noise is symmetric",
    (
        "robust/perturbations",
        'return F.grid_sample(images, grid, padding_mode="border", align_corners=False).clamp(0, 1)',
        'return F.grid_sample(images, grid, padding_mode="border", align_corners=False).clamp(0, )',
    ): "interpolated values do not exceed the originals",
    (
        "metrics/reference",
        "if v_real > 1 + 1e-6:",
        "if v_real >= 1 + 1e-6:",
    ): "no pictures have exactly that score",
    (
        "metrics/similarity",
        "gram = units @ units.T if len(units) <= units.shape[1] else units.T @ units  # the same eigenvalues but zeros",
        "gram = units @ units.T if (len(units) <= units.shape[1]) or True else units.T @ units  "
        "# the same eigenvalues but zeros",
    ): "the eigenvalues are the same, as the comment says",
    (
        "metrics/memorisation",
        "to_training, to_held_out = (torch.cat(column) for column in zip(*columns, strict=True))",
        "to_training, to_held_out = (torch.cat(column) for column in zip(*columns, strict=None))",
    ): "the columns are pairs",
    (
        "metrics/reference",
        "x, r = (torch.cat(parts) for parts in zip(*near.values(), strict=True))",
        "x, r = (torch.cat(parts) for parts in zip(*near.values(), strict=False))",
    ): "the values are pairs",
    (
        "robust/metric",
        "return (x + sigma * perturbations.noise(x, rng)).clamp(0, 1)",
        "return (x - sigma * perturbations.noise(x, rng)).clamp(0, 1)",
    ): "the noise is symmetric",
    (
        "audit/memorized",
        "height, width = images.shape[-2:]",
        "height, width = images.shape[+2:]",
    ): "the images have four axes",
}
"""Mutants without observable effect, and the reason, by (file, line, mutated line); listed by hand, so incomplete."""


@dataclass(frozen=True)
class Mutant:
    """One small fault."""

    path: str
    line: int
    before: str
    after: str
    source: str

    @property
    def name(self) -> tuple[str, str, str]:
        """The mutant's key in `EQUIVALENT`."""
        file = self.path.removeprefix("plugins/interpkit_").removesuffix(".py")
        return file, self.before, self.after

    def __str__(self) -> str:
        return f"{self.path}:{self.line}\n  - {self.before}\n  + {self.after}"


# ------------------------------------------------------------------------------------------------ making mutants

WORDS = (cst.BaseString, cst.Raise, cst.Assert, cst.Annotation, cst.Decorator, cst.Param)
CALLS = m.Call(m.Name("len") | m.Name("isinstance") | m.Name("cast") | m.Attribute(m.Name("warnings")))


def places(node: cst.CSTNode, within: bool = False) -> Iterator[cst.CSTNode]:
    """Yield the nodes in the bodies of functions that may be mutated."""
    if isinstance(node, WORDS) or m.matches(node, CALLS):
        return
    if within:
        yield node
    if isinstance(node, cst.FunctionDef):
        yield from places(node.body, True)
    else:
        for child in node.children:
            yield from places(child, within)


def mutants(path: str) -> list[Mutant]:
    """Return all mutants of a file, in order."""
    source = (ROOT / path).read_text("utf-8")
    module = cst.parse_module(source)
    found = {}
    for node in places(module):
        for kind, operator in mutation_operators:
            for changed in operator(node) if isinstance(node, kind) else ():
                mutated = module.deep_replace(node, changed).code
                if mutated != source and mutated not in found:
                    found[mutated] = Mutant(path, *difference(source, mutated), mutated)
    return list(found.values())


def difference(source: str, mutated: str) -> tuple[int, str, str]:
    """Return the number of the first line that differs, and its old and new text."""
    before, after = source.splitlines(), mutated.splitlines()
    changes = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    _, start, end, other, to = next(change for change in changes if change[0] != "equal")
    old, new = (" ".join(line.strip() for line in lines) for lines in (before[start:end], after[other:to]))
    return start + 1, old, new


# ---------------------------------------------------------------------------------------------- running mutants


class Loader(SourceFileLoader):
    """Loads one module from a text instead of its file; it is also the finder for that module."""

    def __init__(self, path: str, text: str) -> None:
        name = path.removeprefix("plugins/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        super().__init__(name, str(ROOT / path))
        self.text = text

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        """Return this loader for its module."""
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def get_code(self, fullname: str) -> Any:
        """Compile the text."""
        return compile(self.text, self.path, "exec", dont_inherit=True)


def test(parts: Sequence[Part], mutant: Mutant | None) -> None:
    """Run the tests of a mutant, or all tests, in this process; end the process with pytest's exit status."""
    import pytest

    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sys.dont_write_bytecode = True
    os.environ["HYPOTHESIS_PROFILE"] = "any-failure"
    os.chdir(ROOT)
    if mutant is not None:
        sys.meta_path.insert(0, Loader(mutant.path, mutant.source))
    without = [word for name in ("cacheprovider", "xdist", "hypothesispytest") for word in ("-p", f"no:{name}")]
    for part in parts:
        if mutant is None or mutant.path in part.paths():
            for call in part.tests:
                status = pytest.main(["-x", "--assert=plain", "--tb=no", *without, *call])
                if status:
                    os._exit(status)
    os._exit(0)


def outcomes(
    parts: Sequence[Part], tried: Sequence[Mutant | None], limit: float, workers: int
) -> Iterator[tuple[Mutant | None, str, float]]:
    """Yield each mutant with its outcome (``killed``, ``survived`` or ``hung``) and the seconds that it took."""
    assert "interpkit" not in sys.modules
    context = multiprocessing.get_context("fork")
    waiting, running = [*reversed(tried)], {}
    while True:
        while waiting and len(running) < workers:
            mutant = waiting.pop()
            process = context.Process(target=test, args=(parts, mutant))
            process.start()
            running[process.sentinel] = process, mutant, time.monotonic()
        if not running:
            return
        multiprocessing.connection.wait(list(running), timeout=0.5)
        for sentinel, (process, mutant, start) in list(running.items()):
            took = time.monotonic() - start
            if process.is_alive() and took < limit:
                continue
            hung = process.is_alive()
            process.kill()
            process.join()
            del running[sentinel]
            yield mutant, "hung" if hung else "killed" if process.exitcode else "survived", took


def run_group(name: str, parts: Sequence[Part], sample: int, seed: int, workers: int) -> dict[str, Any]:
    """Run a group's mutants; return the figures by file, and the mutants that survived."""
    ((_, outcome, took),) = outcomes(parts, [None], 3600, 1)
    if outcome != "survived":
        calls = " and ".join(f"pytest {shlex.join(call)}" for part in parts for call in part.tests)
        sys.exit(f"{name}: the tests fail without any mutant: {calls}")
    by_path = {path: mutants(path) for part in parts for path in part.paths()}
    every = [mutant for group in by_path.values() for mutant in group if mutant.name not in EQUIVALENT]
    drawn = random.Random(seed).sample(every, sample) if 0 < sample < len(every) else every
    print(f"{name}: {len(drawn)} of {len(every)} mutants; the tests take {took:.1f} s without one", flush=True)
    rows = {path: dict.fromkeys(("killed", "hung", "survived"), 0) for path in by_path}
    survivors = []
    for mutant, outcome, _ in outcomes(parts, drawn, 20 + 5 * took, workers):
        assert mutant is not None
        rows[mutant.path][outcome] += 1
        if outcome == "survived":
            survivors.append(str(mutant))
            print(mutant, flush=True)
    by_file = {
        path: {
            "mutants": len(by_path[path]),
            "equivalent": sum(mutant.name in EQUIVALENT for mutant in by_path[path]),
            **figures(row),
        }
        for path, row in rows.items()
        if by_path[path]
    }
    total = figures({key: sum(row[key] for row in rows.values()) for key in ("killed", "hung", "survived")})
    return {"of": len(every), **total, "files": by_file, "survivors": sorted(survivors)}


def figures(row: dict[str, int]) -> dict[str, Any]:
    """Return the counts, the share that the tests noticed and its 95 % interval; a hang counts as noticed."""
    tried, noticed = sum(row.values()), row["killed"] + row["hung"]
    if not tried:
        return {"tried": 0}
    # Not with `interpkit.wilson`: this process must not import interpkit, which each mutant imports itself.
    interval = binomtest(noticed, tried).proportion_ci(method="wilson")
    share, ends = round(noticed / tried, 4), [round(end, 4) for end in interval]
    return {"tried": tried, **row, "share": share, "interval": ends}


def main(arguments: Sequence[str] = ()) -> None:
    """Run the mutants of the groups named on the command line, or of all groups; save the result of each."""
    parser = argparse.ArgumentParser(prog="python -m torture.mutants", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"One of {', '.join(GROUPS)} (default: all).")
    parser.add_argument("--sample", type=int, default=100, help="Mutants per group; 0 means all (default: 100).")
    parser.add_argument("--seed", type=int, default=0, help="Random seed of the sample (default: 0).")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="Processes (default: one per core).")
    options = parser.parse_args(arguments)
    for module in LOADED:
        importlib.import_module(module)
    importlib.import_module("torch").set_num_threads(1)
    gc.collect()
    gc.freeze()  # so that garbage collection in a fork does not scan all of torch
    command = f"python -m torture.mutants --sample {options.sample} --seed {options.seed}"
    for name in options.groups or GROUPS:
        row = run_group(name, GROUPS[name], options.sample, options.seed, options.workers)
        low, high = row["interval"]
        print(f"{name}: {row['share']:.1%} of {row['tried']} killed, 95 % interval {low:.1%} to {high:.1%}", flush=True)
        keep_part("mutants", "groups", name, row, command=command, seed=options.seed)


if __name__ == "__main__":
    main(sys.argv[1:])
