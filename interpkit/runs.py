"""A run on disk: an inversion in a folder. Every file is written beside its place and renamed into it."""

from __future__ import annotations

import io
import json
import logging
import os
import platform
import time
import zipfile
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from interpkit import assembly, evaluation, loading, measuring
from interpkit._version import __version__
from interpkit.errors import ModelError, PluginError, RunError
from interpkit.files import read_tensors, sha256, to_json, write_atomically
from interpkit.interfaces import Target
from interpkit.inversion import GeneratorInversion, ImageInversion, Inversion
from interpkit.pictures import save_grid
from interpkit.plugins import installed
from interpkit.recipe import Recipe, read_toml, validated
from interpkit.recorder import CHECKPOINT_SECONDS, Recorder, StepRecord
from interpkit.registry import Entry

log = logging.getLogger("interpkit")

SCHEMA = 1
PACKAGES = ("torch", "torchvision", "numpy", "safetensors", "pluggy", "pydantic", "captum")


class Run:
    """A run folder; `create` and `open` make one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    @classmethod
    def create(cls, folder: Path, *, force: bool = False) -> Run:
        """Take a folder for a new run; with ``force``, another run's files there are removed.

        Raises:
            RunError: it holds another run, or is something else than a folder.
        """
        run = cls(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot make the folder {folder}: {error.strerror}.") from error
        if (run / "manifest.json").exists():
            if not force:
                raise RunError(
                    f"{folder} holds another run: go on with it by --resume, replace it by --force, or name "
                    f"another folder by --out."
                )
            for name in FILES:
                (run / name).unlink(missing_ok=True)
        return run

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Open an existing run.

        Raises:
            RunError: it is not one.
        """
        run = cls(folder)
        if not (run / "manifest.json").is_file():
            raise RunError(f"{folder} is not a run folder: it has no manifest.json.")
        return run

    # ------------------------------------------------------------------------------------- reading

    def manifest(self) -> dict[str, Any]:
        """Read manifest.json.

        Raises:
            RunError: it is torn, or of a newer schema.
        """
        manifest = self._read_json("manifest.json")
        model = manifest.get("model")
        facts = [model.get(name, 0) for name in ("name", "path", "sha256")] if isinstance(model, dict) else [0]
        if not all(fact is None or isinstance(fact, str) for fact in facts):
            raise RunError(f"{self / 'manifest.json'} does not say which classifier was inverted. Run it anew.")
        if not _is_record_of_plugins(manifest.get("plugins", {})):
            raise RunError(f"{self / 'manifest.json'} does not say which plugins the run was made with. Run it anew.")
        return manifest

    def metrics(self) -> dict[str, Any]:
        """Read metrics.json.

        Raises:
            RunError: it is torn, or of a newer schema.
        """
        metrics = self._read_json("metrics.json")
        lists = [metrics.get(name, []) for name in ("per_class", "evaluators")]
        whole = all(isinstance(rows, list) and all(isinstance(row, dict) for row in rows) for rows in lists)
        if not (whole and all("label" in row for row in lists[0]) and isinstance(metrics.get("left_out", {}), dict)):
            raise RunError(
                f'{self / "metrics.json"} is not as interpkit writes it. Write {{"schema": {SCHEMA}}} into it, and '
                f"measure anew by interpkit evaluate."
            )
        return metrics

    def _read_json(self, name: str) -> dict[str, Any]:
        def refuse(constant: str) -> None:
            raise ValueError(f"{constant} is not JSON")

        try:
            value = json.loads((self / name).read_text("utf-8"), parse_constant=refuse)
        except FileNotFoundError as error:
            raise RunError(f"{self.folder} has no {name}: the run was not finished. Go on by --resume.") from error
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"{self / name} cannot be read: {error}.") from error
        if not isinstance(value, dict):
            raise RunError(f"{self / name} is not a JSON object.")
        if value.get("schema") != SCHEMA:
            raise RunError(f"{self / name} has schema {value.get('schema')!r}; this interpkit reads {SCHEMA}.")
        return value

    def recipe(self) -> Recipe:
        """Read recipe.toml; a name that another plugin has come to use as well means what it meant in the run."""
        made_with = self.manifest().get("plugins", {}).values()

        def meant(entry: Entry) -> bool:
            return any(
                entry.package == facts.get("package") and entry.name in facts.get("used", {}).get(entry.kind, ())
                for facts in made_with
            )

        layer = installed().told_apart(read_toml(self / "recipe.toml"), meant)
        return validated(Recipe, layer, str(self / "recipe.toml"))

    def history(self, recipe: Recipe) -> list[StepRecord]:
        """Read history.jsonl; a torn last line is ignored."""
        records = []
        try:
            lines = (self / "history.jsonl").read_text("utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []
        for number, line in enumerate(lines, 1):
            try:
                records.append(StepRecord.from_row(json.loads(line), recipe.steps))
            except (ValueError, KeyError, TypeError) as error:
                if number == len(lines):
                    break
                raise RunError(f"{self / 'history.jsonl'}, line {number}: not a record of a step.") from error
        return records

    def checkpoint(self) -> dict[str, Any] | None:
        """Read the checkpoint; None if there is none. Holds tensors and plain values only, no code is run.

        Raises:
            RunError: it cannot be read.
        """
        path = self / "checkpoint"
        if not path.exists():
            return None
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(state, dict) or not {"step", "seconds"} <= state.keys():
                raise ValueError("it holds no state of a run")
        except (
            OSError,
            ValueError,
            RuntimeError,
            EOFError,
            zipfile.BadZipFile,
            KeyError,
            ImportError,
        ) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise RunError(f"{path} cannot be read: {reason}. Start anew by --force.") from error
        except Exception as error:  # pickle.UnpicklingError and its kin
            raise RunError(f"{path} is not a checkpoint of interpkit. Start anew by --force.") from error
        return state

    def check_plugins(self) -> None:
        """See that the plugins that the run was made with are here.

        Raises:
            UsageError: it records a plugin of one file, and the user has not typed that again.
            PluginError: one is not installed, was left out, is broken, or no longer has what the run takes of it.
        """
        plugins = installed()
        plugins.check_files(self.recipe().plugin_files or [], str(self.folder))
        for name, facts in self.manifest().get("plugins", {}).items():
            for kind, names in facts.get("used", {}).items():
                missing = next((used for used in names if not plugins.registry.has(kind, used)), None)
                if missing is None:
                    continue
                plugins.raise_if_broken(name)
                package, version = facts["package"], facts["version"]
                here = plugins.found.get(name)
                state = f"is of version {here.version} here and has none" if here else "is not installed here"
                raise PluginError(
                    f"{self.folder} takes the {kind} {missing!r} of the plugin {name!r}, which {state}"
                    + (f": pip install {package}=={version}" if package and version else ".")
                )

    def load_target(self, model: Path | None = None, *, arch: str | None = None, trust: bool = False) -> Target:
        """Load the run's classifier again.

        Args:
            model: its file, if it has moved.
            arch: what the user types where the recipe records code of the user's own; it is not run from a file.
            trust: likewise, for a file that may run code.

        Raises:
            RunError: it was wrapped in memory, or needs what only the user may type.
            ModelError: it is gone, or its content is not what it was (unless ``model`` names the file).
        """
        self.check_plugins()
        recorded = self.manifest()["model"]
        path = model or (Path(recorded["path"]) if recorded["path"] else None)
        if path is None:
            raise RunError(
                f"{self.folder} inverted a classifier that was wrapped in memory: pass it as "
                f"load_inversion(..., target=...), or its file by --model."
            )
        options = self.recipe().target
        if options.trust and not trust:
            raise ModelError(f"{path} may run code when it is loaded. If you trust it, add --trust.")
        if options.runs_code and not options.trust and arch is None:
            raise ModelError(
                f"{path} takes code of yours, which never runs because a file names it: add --arch {options.arch}"
            )
        options = options.model_copy(update={"trust": trust, "arch": arch or options.arch})
        if model is None and path.exists() and sha256(path) != recorded["sha256"]:
            raise ModelError(
                f"{path} is not what it was when {self.folder} was made (its sha256 differs). "
                f"Name the right file by --model PATH."
            )
        return loading.load(path, options)

    def load(self, target: Target | None = None, model: Path | None = None, **typed: Any) -> Inversion:
        """Load the inversion: target, history, and the generator and conditioner or the finished images.

        Raises:
            RunError: the run is not finished, or a file does not fit the others.
        """
        if target is None:
            target = self.load_target(model, **typed)
        else:
            self.check_plugins()
        recipe = self.recipe()
        if "generator" not in installed().component("inverter", recipe.inverter.name).needs:
            images, labels, _ = evaluation.read_images(self / "samples.safetensors", target)
            return ImageInversion(target, recipe, self.history(recipe), evaluation.to_unit(images, target), labels)
        conditioner, generator = assembly.build_generator(recipe, target, installed())
        if generator is None or conditioner is None:
            raise RunError(f"{self / 'recipe.toml'} names no generator, and {recipe.inverter.name} takes one.")
        path = self / "generator.safetensors"
        missing = f"{self.folder} has no generator.safetensors: go on with the run by --resume."
        weights = read_tensors(path, missing)
        for prefix, part in (("generator.", generator), ("conditioner.", conditioner)):
            own = {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}
            difference = loading.mismatch(part.state_dict(), own)
            if difference:
                raise RunError(f"{path} does not fit the recipe beside it: {difference}.")
            part.load_state_dict(own)
            part.eval()
        conditioner.progress = 1.0
        return GeneratorInversion(target, recipe, self.history(recipe), generator, conditioner)

    # ------------------------------------------------------------------------------------- writing

    def begin(self, recipe: Recipe, target: Target, presets: list[str]) -> None:
        """Write recipe.toml and manifest.json before the first step."""
        write_atomically(self / "recipe.toml", recipe.to_toml())
        self._write_manifest(describe(recipe, target) | {"presets": presets, "status": "running"})

    def check_same(self, recipe: Recipe, target: Target) -> None:
        """See that a recipe differs from the run's own in nothing but its length.

        Raises:
            RunError: the recipe or the classifier is another.
        """
        here = self.recipe()
        free = {"steps", "checkpoint_every", "micro_batch", "compile", "fall_back", "target", "plugin_files"}
        old, new = (r.model_dump(exclude=free, mode="json") for r in (here, recipe))
        differing = [f"{name} ({old[name]} there)" for name in old if old[name] != new[name]]
        if differing:
            raise RunError(
                f"{self.folder} was begun with another recipe: {', '.join(differing)}. To go on with its own, "
                f"give --resume without --plugin and settings; for a new run, another --out."
            )
        recorded = self.manifest()["model"]
        if target.origin is not None and recorded["sha256"] != sha256(target.origin):
            raise RunError(f"{self.folder} inverts another classifier ({recorded['path']}). Use another --out.")
        if recipe.steps < here.steps:
            raise RunError(f"{self.folder} has {here.steps} steps; --steps {recipe.steps} cannot shorten it.")

    def go_on(self, recipe: Recipe) -> None:
        """Take the run up again, under a recipe that `check_same` has passed."""
        checkpoint = self.checkpoint()
        write_atomically(self / "recipe.toml", recipe.to_toml())
        self.note(status="running", resumed_from=checkpoint["step"] if checkpoint else None)

    def note(self, **facts: Any) -> None:
        """Change entries of the manifest."""
        self._write_manifest(self.manifest() | facts)

    def _write_manifest(self, manifest: Mapping[str, Any]) -> None:
        write_atomically(self / "manifest.json", to_json(manifest))

    def finish(self, inversion: Inversion) -> Path:
        """Write what comes of a run: weights, history, samples, metrics, the grid and the report.

        Returns:
            the folder.
        """
        recipe, target = inversion.recipe, inversion.target
        begun = time.monotonic()
        if not (self / "manifest.json").exists():
            self.begin(recipe, target, [])
        if isinstance(inversion, GeneratorInversion):
            self._write_weights(inversion)
        rows = [json.dumps(record.to_row()) + "\n" for record in inversion.history]
        write_atomically(self / "history.jsonl", "".join(rows))
        samples = evaluation.draw_samples(inversion, **sample_size(inversion))
        if isinstance(inversion, ImageInversion) and len(samples.labels) < len(inversion.images):
            log.warning("the run keeps %d of the %d images", len(samples.labels), len(inversion.images))
        write_samples(samples, self / "samples.safetensors")
        if samples.images.dim() == 4:
            save_grid(samples.images, samples.labels, target.class_names, self / "samples.png")
        metrics = measuring.every_run(target, samples, seed=recipe.seed, device=inversion.device)
        write_atomically(self / "metrics.json", to_json(metrics))
        done = inversion.steps_done >= recipe.steps
        last = inversion.history[-1].seconds if inversion.history else 0.0
        self.note(
            status="finished" if done else "interrupted",
            steps_done=inversion.steps_done,
            timings={
                "training_seconds": round(last, 3),
                "sampling_seconds": round(time.monotonic() - begun, 3),
            },
        )
        self._report(inversion, samples)
        return self.folder

    def _report(self, inversion: Inversion, samples: evaluation.Samples) -> None:
        """Write report.html; the run is finished, and a fault here must not lose it."""
        try:
            from interpkit.report import render_report

            render_report(self, inversion, samples)
        except Exception as error:
            log.warning("report.html could not be written: %r. Try again by interpkit report %s", error, self.folder)

    def _write_weights(self, inversion: GeneratorInversion) -> None:
        parts: dict[str, nn.Module] = {"generator": inversion.generator, "conditioner": inversion.conditioner}
        weights = {
            f"{prefix}.{name}": tensor.detach().cpu().contiguous().clone()
            for prefix, part in parts.items()
            for name, tensor in part.state_dict().items()
        }
        metadata = {
            "format": "pt",
            "interpkit.schema": str(SCHEMA),
            "interpkit.kind": "generator",
            "interpkit.recipe": inversion.recipe.model_dump_json(exclude_none=True),
        }
        write_atomically(self / "generator.safetensors", safetensors.torch.save(weights, metadata))


def _is_record_of_plugins(plugins: Any) -> bool:
    """Say whether a manifest's entry is as `used_plugins` writes it, or as it was before it said what was used."""
    return isinstance(plugins, dict) and all(
        isinstance(facts, dict)
        and all(isinstance(facts.get(key, ""), str) for key in ("package", "version"))
        and isinstance(facts.get("used", {}), dict)
        and all(isinstance(names, list) for names in facts.get("used", {}).values())
        for facts in plugins.values()
    )


def sample_size(inversion: Inversion) -> dict[str, Any]:
    """Return how many samples a run keeps: 100 a class to 10 classes, then 1,000 in all, at least one a class."""
    classes, there = len(inversion.classes), inversion.images_per_class
    if classes <= 10:
        return {"per_class": 100 if there is None else min(100, there)}
    most = max(1000, classes)
    return {"count": most if there is None else min(most, there * classes)}


def write_samples(samples: evaluation.Samples, path: Path) -> None:
    """Write samples as safetensors: images, labels, confidence, generator and, up to 100 classes, probabilities."""
    metadata = {"format": "pt", "interpkit.schema": str(SCHEMA), "interpkit.kind": "samples"}
    write_atomically(path, safetensors.torch.save(samples.tensors(), metadata))


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
"""All that interpkit itself puts into a run folder."""


class RunRecorder(Recorder):
    """Writes the history as it goes, and checkpoints at least every minute."""

    def __init__(self, run: Run, recipe: Recipe, **callbacks: Any) -> None:
        super().__init__(recipe.steps, **callbacks)
        self.run = run
        self._recipe = recipe
        self._saved_at = time.monotonic()

    def start(self) -> dict[str, Any] | None:
        """Start the clock; return the checkpoint, the history cut to it."""
        state = self.run.checkpoint()
        if state is not None:
            self._seconds_before = state["seconds"]
            self.next_step = state["step"] + 1
            self.history = [r for r in self.run.history(self._recipe) if r.step <= state["step"]]
        self._write_history()
        super().start()
        self._saved_at = time.monotonic()
        return state

    def write(self, record: StepRecord) -> None:
        """Append the record and flush it."""
        with (self.run / "history.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record.to_row()) + "\n")

    def _write_history(self) -> None:
        rows = [json.dumps(record.to_row()) + "\n" for record in self.history]
        write_atomically(self.run / "history.jsonl", "".join(rows))

    def go_back(self, step: int) -> None:
        """Forget what was recorded after a step, on disk too."""
        super().go_back(step)
        self._write_history()

    def note(self, **facts: Any) -> None:
        """Change entries of the manifest."""
        self.run.note(**facts)

    def due(self, step: int) -> bool:
        """Say whether a checkpoint is due: every minute, every ``checkpoint_every`` steps, and at the end."""
        every = self._recipe.checkpoint_every
        return (
            step == self.steps
            or self.stop_requested
            or (every is not None and step % every == 0)
            or time.monotonic() - self._saved_at >= CHECKPOINT_SECONDS
        )

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Save a checkpoint, once all values up to it are known to be finite."""
        self.flush()
        buffer = io.BytesIO()
        torch.save({**state, "step": step, "seconds": self.seconds}, buffer)
        write_atomically(self.run / "checkpoint", buffer.getvalue())
        self._saved_at = time.monotonic()

    def kept(self) -> str:
        """Return where the last good state of a failed run is."""
        state = self.run.checkpoint()
        return f" The last good checkpoint, of step {state['step']}, is in {self.run.folder}." if state else ""


def used_plugins(recipe: Recipe, target: Target) -> dict[str, Any]:
    """Return the installed plugins for a manifest, each with what the run takes of it."""
    plugins = installed()
    owners = assembly.owners(recipe, plugins)
    loader = loading.loader_of(target.origin) if target.origin else None
    if loader is not None:
        owners["loader", loader.name] = loader.owner
    found: dict[str, Any] = {}
    for plugin in plugins.found.values():
        facts = {"package": plugin.package, "version": plugin.version, "status": plugin.status}
        if plugin.file is not None:
            facts |= {"file": str(plugin.file), "sha256": str(plugin.sha256)}
        used: dict[str, list[str]] = {}
        for kind, name in (key for key, owner in owners.items() if owner == plugin.name):
            used.setdefault(kind, []).append(name)
        found[plugin.name] = facts | {"used": used}
    return found


def describe(recipe: Recipe, target: Target) -> dict[str, Any]:
    """Return the manifest of a run: all that decides it beside the recipe, and where it was made."""
    path = target.origin
    return {
        "schema": SCHEMA,
        "interpkit": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "plugins": used_plugins(recipe, target),
        "model": {
            "name": target.name,
            "path": str(path) if path else None,
            "sha256": sha256(path) if path else None,
        },
        "device": recipe.device,
        "precision": recipe.precision,
        "threads": torch.get_num_threads(),
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
        "resumed_from": None,
        "steps_done": 0,
        "timings": {},
    }
