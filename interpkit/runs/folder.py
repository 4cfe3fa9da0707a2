"""A run folder: create, read, check and resume it. Every file in it is written atomically."""

from __future__ import annotations

import functools
import hashlib
import logging
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pydantic
import torch

from interpkit._version import __version__
from interpkit.config import schemas
from interpkit.config.recipe import Recipe, read_toml, validated
from interpkit.config.schemas import Manifest
from interpkit.errors import (
    DISTRIBUTION,
    ModelError,
    PluginError,
    RunError,
    UsageError,
    command,
    listed,
    restart,
    resume,
    setting,
    upgrade,
)
from interpkit.evaluation.warnings import invalid
from interpkit.interfaces import contracts
from interpkit.interfaces.inversions import Inversion
from interpkit.interfaces.samples import Samples
from interpkit.interfaces.targets import Target
from interpkit.inversion.results import GENERATOR_FILE
from interpkit.io import strict_json
from interpkit.io.atomic import sha256, to_json, to_path, write_atomically, write_tensors
from interpkit.io.locking import LOCK, only_writer
from interpkit.io.safe_load import load_plain
from interpkit.plugins import assembly, loading, typed_code
from interpkit.plugins.discovery import installed
from interpkit.plugins.registry import Entry
from interpkit.runs.manifest import SCHEMA, conditions, describe, used_data, weights_digest
from interpkit.runs.stored import StoredRun
from interpkit.runtime import environment
from interpkit.runtime.devices import is_out_of_memory
from interpkit.runtime.random import global_seed
from interpkit.runtime.recorder import StepRecord

log = logging.getLogger("interpkit")


class Run:
    """A run folder; use `create` or `open` to get one."""

    def __init__(self, folder: Path) -> None:
        self.folder = to_path(folder)
        self._manifest: Manifest | None = None

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    @classmethod
    def create(cls, folder: Path, *, force: bool = False) -> Run:
        """Prepare a folder for a new run; with ``force``, remove the files of another run there.

        Raises:
            RunError: it contains another run, or the user's own files that a run would overwrite.
        """
        run = cls(folder)
        present = [name for name in FILES if (run / name).exists()]
        if present and "manifest.json" not in present:
            raise RunError(
                f"{folder} is not a run, but holds {listed(present)}, which a run would overwrite: name another folder "
                f"with {setting('out', None)}."
            )
        if present and not force and run.has_started():
            raise RunError(
                f"{folder} holds another run: resume it with {setting('resume')}, replace it with "
                f"{setting('force')}, or name another folder with {setting('out', None)}."
            )
        if present:
            try:
                present += run._own_files()
            except RunError as error:
                raise RunError(
                    f"{error} It may not be a run, so {setting('force')} removes nothing: name another folder with "
                    f"{setting('out', None)}."
                ) from error
        for name in sorted(present, key="manifest.json".__eq__):  # the manifest last, which marks the folder as a run
            (run / name).unlink()
        return cls(folder)

    def has_started(self) -> bool:
        """Return whether the folder has a run; one that ended before it kept anything does not count."""
        present = [name for name in FILES if (self / name).exists()]
        if "manifest.json" not in present or set(present) - {"manifest.json", "recipe.toml"}:
            return "manifest.json" in present
        try:
            return self.manifest().status not in (["running"] if len(present) == 1 else ["failed"])
        except RunError:
            return True

    def locked(self) -> AbstractContextManager[None]:
        """Keep other processes from writing to the run during a block; see `interpkit.io.locking.only_writer`."""
        return only_writer(self.folder, FILES)

    def tidy(self) -> None:
        """Remove the lock that a process left which was killed as it ended, unless another one writes now."""
        if (self / LOCK).exists():
            with suppress(RunError), self.locked():
                pass

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Open an existing run; raise a `RunError` if the folder is not one."""
        run = cls(folder)
        if not (run / "manifest.json").is_file():
            raise RunError(f"{folder} is not a run folder: it has no manifest.json.")
        return run

    # ------------------------------------------------------------------------------------- reading

    def manifest(self) -> Manifest:
        """Return manifest.json, read once; raise a `RunError` if it is damaged or has a newer schema."""
        if self._manifest is None:
            value = self._read_json("manifest.json")
            try:
                self._manifest = Manifest.model_validate(value)
            except pydantic.ValidationError as error:
                missing = {"model": "which classifier was inverted", "plugins": "which plugins the run was made with"}
                what = missing.get(str(error.errors()[0]["loc"][0]))
                words = "is not in interpkit's format" if what is None else f"does not state {what}"
                raise RunError(
                    f"{self / 'manifest.json'} {words} ({schemas.first_fault(error)}). Run it again."
                ) from error
        return self._manifest

    def metrics(self) -> dict[str, Any]:
        """Read metrics.json; raise a `RunError` if it is damaged or has a newer schema."""
        metrics = self._read_json("metrics.json")
        try:
            schemas.Metrics.model_validate(metrics)
            fault = invalid(metrics)
        except pydantic.ValidationError as error:
            fault = schemas.first_fault(error)
        if fault is not None:
            raise RunError(
                f"{self / 'metrics.json'} is not in interpkit's format ({fault}). Replace its content with "
                f'{{"schema": {SCHEMA}}} and evaluate again: {command("evaluate", str(self.folder))}.'
            )
        return metrics

    def _read_json(self, name: str) -> dict[str, Any]:
        try:
            value = strict_json.parse(strict_json.read_text(self / name))
        except FileNotFoundError as error:
            raise RunError(
                f"{self.folder} has no {name}: the run was not finished. Resume it: {resume(self.folder)}."
            ) from error
        except (OSError, ValueError) as error:
            raise RunError(f"{self / name} cannot be read: {error}.") from error
        if not isinstance(value, dict):
            raise RunError(f"{self / name} is not a JSON object.")
        # Future schemas: upgrade what was read to the current one here, one schema at a time.
        schema = value.get("schema")
        if schema != SCHEMA:
            newer = isinstance(schema, int) and schema > SCHEMA
            advice = f" A newer one wrote it: {upgrade()}" if newer else ""
            raise RunError(f"{self / name} has schema {schema!r:.40}; this interpkit reads {SCHEMA}.{advice}")
        return value

    def recipe(self) -> Recipe:
        """Read recipe.toml; a name that several plugins use now means the component that the run used."""
        made_with = self.manifest().plugins.values()

        def meant(entry: Entry) -> bool:
            used = (p.used.get(entry.kind, ()) for p in made_with if p.distribution == entry.package)
            return any(entry.name in names for names in used)

        try:
            layer = installed().told_apart(read_toml(self / "recipe.toml"), meant)
        except UsageError as error:
            if isinstance(error.__cause__, OSError):  # not the user's input
                raise RunError(str(error)) from error.__cause__
            raise
        try:
            return validated(Recipe, layer, str(self / "recipe.toml"))
        except UsageError as error:
            written_by = self.manifest().interpkit or __version__
            if written_by == __version__:
                raise
            raise UsageError(
                f"{error} interpkit {written_by} wrote it, and this is {__version__}. To read it: pip install "
                f"{DISTRIBUTION}=={written_by}"
            ) from error

    def history(self, recipe: Recipe) -> list[StepRecord]:
        """Read history.jsonl; ignore an incomplete last line."""
        records, path = [], self / "history.jsonl"
        if not path.exists():
            return []
        try:
            lines = strict_json.read_text(path, errors="replace").splitlines()
        except (OSError, ValueError) as error:
            raise RunError(f"{path} cannot be read: {error}.") from error
        for number, line in enumerate(lines, 1):
            try:
                records.append(StepRecord.from_row(strict_json.parse(line), recipe.steps))
            except (ValueError, KeyError, TypeError) as error:
                if number == len(lines):
                    break
                raise RunError(f"{path}, line {number}: not a record of a step.") from error
        return records

    def checkpoint(self) -> dict[str, Any] | None:
        """Read the checkpoint, if any; raise a `RunError` if it holds more than tensors and plain values."""
        path = self / "checkpoint"
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = load_plain(path)
            step, seconds = (state[name] for name in ("step", "seconds"))
            if type(step) is not int or step < 0 or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
                raise ValueError("it does not contain the state of a run")
        except Exception as error:  # torch.load raises many kinds
            short = is_out_of_memory(error)
            reason = "memory ran out" if short else (str(error) or type(error).__name__).splitlines()[0]
            remedy = "" if short or isinstance(error, OSError) else f" {restart()}"
            raise RunError(f"{path} cannot be read: {reason:.200}.{remedy}") from error
        return state

    def check_plugins(self) -> Recipe:
        """Check that the run's plugins are installed and have the components that the run uses; return its recipe.

        Raises:
            PluginError: a plugin or component is missing.
            UsageError: the user has not passed a single-file plugin again.
        """
        plugins, recipe = installed(), self.recipe()
        plugins.check_files(recipe.plugin_files or [], str(self.folder))
        for name, plugin in self.manifest().plugins.items():
            for kind, names in plugin.used.items():
                missing = next((used for used in names if not plugins.registry.has(kind, used)), None)
                if missing is None:
                    continue
                plugins.raise_if_broken(name)
                here = plugins.found.get(name)
                state = f"does not have it in the installed version {here.version}" if here else "is not installed"
                known = plugin.package and plugin.version
                remedy = f": pip install {plugin.package}=={plugin.version}" if known else "."
                raise PluginError(
                    f"{self.folder} needs the {kind} {missing!r} of the plugin {name!r}, which {state}{remedy}"
                )
        return recipe

    def load_target(self, model: Path | None = None, *, arch: str | None = None, trust: bool = False) -> Target:
        """Load the run's classifier again.

        Args:
            model: the classifier's file, if it has moved.
            arch: the architecture, if the recipe records code of the user's own. Such code does not run because a file
                names it, only if this user has passed the same before (see `interpkit.plugins.typed_code`).
            trust: allow a file that may run code.

        Raises:
            RunError: the classifier was wrapped in memory.
            ModelError: the file is missing or has changed (unless ``model`` names it), or needs ``arch`` or ``trust``.
        """
        self.check_plugins()
        recorded = self.manifest().model
        path = model or (Path(recorded.path) if recorded.path else None)
        if path is None:
            raise RunError(
                f"{self.folder} inverted a classifier that was wrapped in memory: pass it as "
                f"load_inversion(..., target=...), or its file with {setting('model', None)}."
            )
        options = self.recipe().target
        if options.trust and not trust:
            raise ModelError(f"{path} may run code when it is loaded. If you trust it, add {setting('trust')}.")
        if model is None and not path.exists():
            raise ModelError(
                f"there is no {path}, the classifier that {self.folder} inverted. If it has moved, name it by "
                f"{setting('model', 'PATH')}."
            )
        # Hash only what a loader recognizes: a manifest may name any folder, even the root of the file system.
        digest = loading.digest(path) if path.exists() and loading.loader_of(path) else None
        if (options.arch or "").startswith("py:") and arch is None:  # trust is for the classifier's file
            reason = typed_code.refusal(options, digest)
            if reason is not None:
                raise ModelError(
                    f"{path} takes code of yours, which never runs because a file names it ({reason}): add "
                    f"{setting('arch', options.arch)}"
                )
        options = options.model_copy(update={"trust": trust, "arch": arch or options.arch})
        if model is None and digest not in (None, recorded.sha256):
            raise ModelError(
                f"{path} is not what it was when {self.folder} was made (its sha256 differs). "
                f"Name the right file with {setting('model', 'PATH')}."
            )
        target = loading.load(path, options)
        if model is not None and not self.has_target(target):
            self._warn_of_other(path)
        if arch is not None:
            typed_code.remember(options, digest)
        return target

    def load(self, target: Target | None = None, model: Path | None = None, **typed: Any) -> Inversion:
        """Load the inversion: target, history, and what the inverter makes of the files of its own.

        Raises:
            RunError: the run is not finished, or a file does not fit the others.
            PluginError: the inverter cannot load it.
        """
        if target is None:
            target = self.load_target(model, **typed)
        else:
            self.check_plugins()
            if not self.has_target(target):
                self._warn_of_other(target.name)
        recipe, manifest = self.recipe(), self.manifest()
        history = self.history(recipe)
        extended = manifest.status in ("running", "failed") and manifest.steps_done < recipe.steps
        if extended and (manifest.steps_done or (self / "samples.safetensors").exists()):
            log.warning(
                "%s is being extended to %d steps, or that was interrupted: what it holds is of step %d",
                self.folder,
                recipe.steps,
                manifest.steps_done,
            )
            history = [record for record in history if record.step <= manifest.steps_done]
        elif (history[-1].step if history else 0) < manifest.steps_done:
            log.warning(
                "%s is missing or ends early: its curves are not those of the whole run", self / "history.jsonl"
            )
        empty = {int(label): reason for label, reason in manifest.empty.items() if int(label) < target.num_classes}
        stored = StoredRun(self.folder, target, recipe, history, manifest.files, empty)
        with global_seed(0, torch.device("cpu")):  # building draws weights, which are overwritten
            inversion = contracts.loaded_inversion(assembly.inverter(recipe, installed()), stored)
        inversion.terms = functools.partial(assembly.terms_with_figures, recipe, target)
        inversion.last_step, inversion.noted = manifest.steps_done, self.noted()
        return inversion

    def noted(self) -> dict[str, Any]:
        """Return what the manifest notes of how the run was computed."""
        return {name: value for name, value in self.manifest().to_dict().items() if name in NOTED}

    # ------------------------------------------------------------------------------------- writing

    def begin(self, recipe: Recipe, target: Target, **facts: Any) -> None:
        """Write manifest.json, with more facts, and recipe.toml; call this before the first step."""
        self._write_manifest(describe(recipe, target) | facts | {"status": "running"})
        write_atomically(self / "recipe.toml", recipe.to_toml())
        typed_code.remember(recipe.target, self.manifest().model.sha256)

    def check_same(self, recipe: Recipe, target: Target) -> None:
        """Raise a `RunError` if the recipe, classifier or data differ from the run's; only more steps are allowed."""
        # A component may have got an option since the run was begun: its default is what the component did before.
        here = assembly.with_options(self.recipe(), installed())
        manifest, data = self.manifest(), used_data(recipe, target)
        free = {"steps", "checkpoint_every", "micro_batch", "compile", "fall_back", "plugin_files"}
        old, new = (r.model_dump(exclude=free, mode="json") for r in (here, recipe))
        for settings in (old, new):  # the paths of the classifier and the data do not matter
            for place in data.keys() & manifest.data.keys():
                table = functools.reduce(lambda inner, key: inner.get(key) or {}, place.split(".")[:-1], settings)
                for name in ("data", "training"):
                    table.pop(name, None)
            facts = settings.pop("target").items()
            settings |= {f"target.{name}": value for name, value in facts if name not in ("path", "arch", "trust")}
        differing = [f"{name} ({old[name]} there)" for name in old if old[name] != new[name]]
        if differing:
            raise RunError(
                f"{self.folder} was begun with another recipe: {', '.join(differing)}. To resume it with its own, "
                f"give {setting('resume')} without presets and settings; for a new run, name another folder with "
                f"{setting('out', None)}."
            )
        if not self.has_target(target):
            which = manifest.model.path or "one in memory with other weights"
            raise RunError(
                f"{self.folder} inverts another classifier ({which}). Name another folder with {setting('out', None)}."
            )
        for place, now in data.items():
            if place in manifest.data and manifest.data[place].sha256 != now["sha256"]:
                raise RunError(
                    f"{now['path']}, the data of {place}, has changed since {self.folder} was begun: the sha256 of its "
                    f"images and labels differs. Restore it, name it by "
                    f"{setting(place.removeprefix('losses.'), 'DATA')} if it has moved, "
                    f"or name another folder with {setting('out', None)}."
                )
        if recipe.steps < here.steps:
            raise RunError(f"{self.folder} has {here.steps} steps; {setting('steps', recipe.steps)} cannot shorten it.")

    def has_target(self, target: Target) -> bool:
        """Return whether a classifier is the one that the run inverts, as far as its digest shows."""
        known = self.manifest().model
        if known.sha256 is None:  # a run of 0.1 or 0.2 in memory
            return True
        if known.path is None:
            return known.sha256 == weights_digest(target)
        return target.origin is None or known.sha256 == loading.digest(target.origin)  # a file's is not that of weights

    def _warn_of_other(self, which: object) -> None:
        log.warning(
            "%s is not what %s inverted (its sha256 differs): unless it is the same classifier in another form, what "
            "follows is of another one",
            which,
            self.folder,
        )

    def resume(self, recipe: Recipe, target: Target) -> None:
        """Resume the run with a recipe that has passed `check_same`.

        If conditions that affect the numbers have changed, update the manifest and keep the old ones in ``moves``.
        """
        checkpoint = self.checkpoint()
        step = checkpoint["step"] if checkpoint else None
        if step is None and self.manifest().steps_done:
            log.warning("%s has no checkpoint, so it starts again at step 1", self.folder)
        changes: dict[str, Any] = {}
        if changed := self.changed_since(recipe, target):
            move = {"after_step": step, "was": {name: was for name, (was, _) in changed.items()}}
            changes = {**conditions(recipe, target), "moves": [*self.manifest().moves, move]}
        if self.manifest().data:  # the same images, possibly moved
            places = assembly.data_options(recipe, installed())
            changes["data"] = {
                name: {"path": places[name].source, "sha256": was.sha256}
                for name, was in self.manifest().data.items()
                if name in places
            }
        write_atomically(self / "recipe.toml", recipe.to_toml())
        self.note(**changes, status="running", resumed_from=step)
        typed_code.remember(recipe.target, self.manifest().model.sha256)

    def changed_since(self, recipe: Recipe, target: Target) -> dict[str, tuple[Any, Any]]:
        """Return the conditions that affect the numbers and differ from the manifest, (there, here), and log them."""
        manifest = self.manifest()
        changed = environment.changed(manifest.to_dict(), conditions(recipe, target))
        if manifest.data:
            for place, now in used_data(recipe, target).items():
                was = manifest.data.get(place)
                if was is not None and was.sha256 != now["sha256"]:
                    changed[place] = (f"{was.path} {was.sha256:.8}", f"{now['path']} {now['sha256']:.8}")
        if changed:
            facts = listed(f"{name} {was!r:.40} -> {here!r:.40}" for name, (was, here) in changed.items())
            log.warning("%s was computed under other conditions, so the numbers may differ: %s", self.folder, facts)
        return changed

    def note(self, **facts: Any) -> None:
        """Change entries of the manifest."""
        self._write_manifest(self.manifest().to_dict() | facts)

    def write_files(self, inversion: Inversion, **facts: Any) -> None:
        """Write the inversion's own files atomically, and list them in the manifest with their sha256 and more facts.

        What was drawn from the files before is removed: samples, metrics and report.

        Raises:
            PluginError: a name is invalid or reserved for the run.
            RunError: a file of the user's has that name.
        """
        files = contracts.files(inversion, RESERVED)
        before = self._own_files()
        for name in files:
            if name not in (*FILES, *self.manifest().files) and (self / name).exists():
                raise RunError(
                    f"{self / name} does not belong to this run, which would overwrite it: move it, then resume with "
                    f"{setting('resume')}."
                )
        for name in DRAWN:
            (self / name).unlink(missing_ok=True)
        # List the files first, so that a run that is killed in between recognizes them as its own.
        self.note(files={name: hashlib.sha256(content).hexdigest() for name, content in files.items()}, **facts)
        for name, content in files.items():
            write_atomically(self / name, content)
        for name in set(before) - files.keys():
            (self / name).unlink()

    def _own_files(self) -> list[str]:
        """Return the inversion's own files whose content matches the manifest; others may be the user's."""
        files = {name: known for name, known in self.manifest().files.items() if name.lower() not in FILES}
        return [name for name, known in files.items() if (self / name).is_file() and sha256(self / name) == known]

    def _write_manifest(self, facts: Mapping[str, Any]) -> None:
        self._manifest = Manifest.model_validate(facts)
        write_atomically(self / "manifest.json", to_json(facts))


def write_samples(samples: Samples, path: Path) -> None:
    """Write samples as safetensors; see `Samples.tensors`."""
    metadata = {"format": "pt", "interpkit.schema": str(SCHEMA), "interpkit.kind": "samples"}
    write_tensors(path, samples.tensors(), metadata)


FILES = (
    "recipe.toml",
    "manifest.json",
    "generator.safetensors",
    "history.jsonl",
    "metrics.json",
    "samples.safetensors",
    "samples.png",
    "report.html",
    "profile.json",
    "checkpoint",
)
"""The files that interpkit itself writes into a run folder; an inversion may add its own."""
NOTED = ("presets", "precision", "folded", "micro_batch", "fell_back", "lowered_rate", "collapsed")
"""Entries of the manifest that note how a run was computed."""
DRAWN = ("report.html", "metrics.json", "samples.png", "samples.safetensors")
"""Those that are drawn from an inversion when it ends."""
RESERVED = {*FILES, "attributions", "concepts"} - {GENERATOR_FILE}
"""Names that an inversion's own files must not use; the generator's weights are such a file."""


def refuse_run_files(path: Path) -> None:
    """Raise a `UsageError` if a path that the user names for output is a file of a run."""
    if path.name in FILES and (path.parent / "manifest.json").exists():
        raise UsageError(f"{path} is a file of the run in {path.parent}: name another.")
