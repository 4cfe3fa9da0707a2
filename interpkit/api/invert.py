"""`invert`: compose the recipe, load the target, train, and write the run folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interpkit.api import trial
from interpkit.api.finish import finish
from interpkit.config import sizes
from interpkit.config.recipe import Layer, PluginFile, Preset, Recipe, TargetOptions, compose, read_toml, validated
from interpkit.errors import InterpkitError, ModelError, PluginError, RunError, UsageError, command, listed, setting
from interpkit.evaluation.scoring import most_samples, read_images
from interpkit.interfaces import contracts
from interpkit.interfaces.data import fetch
from interpkit.interfaces.inversions import Inversion
from interpkit.interfaces.samples import to_unit
from interpkit.interfaces.targets import Target
from interpkit.io.atomic import to_json, to_path, write_atomically
from interpkit.plugins import assembly, loading, typed_code
from interpkit.plugins.discovery import Plugins, installed, is_file
from interpkit.runs import disk_space
from interpkit.runs.folder import Run
from interpkit.runs.recorder import RunRecorder
from interpkit.runtime import profiler
from interpkit.runtime.autograd import with_autograd
from interpkit.runtime.devices import is_out_of_memory, keep_freed_memory
from interpkit.runtime.distributed import World
from interpkit.runtime.progress import duration
from interpkit.runtime.random import OwnStream, derive_seed, global_seed
from interpkit.runtime.recorder import Recorder, StepRecord
from interpkit.targets import preprocessing
from interpkit.targets.layers import has_batch_norm

log = logging.getLogger("interpkit")

MEASURED = ("samples.safetensors", "metrics.json")
"""What every finished run has besides the inversion's own files."""


def invert(
    target: Target | str | Path,
    plugins: Sequence[str | Path] = (),
    *,
    presets: Sequence[str] = (),
    out: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    on_step: Callable[[int], None] | None = None,
    on_record: Callable[[StepRecord], None] | None = None,
    **settings: Any,
) -> Inversion:
    """Invert a classifier.

    Args:
        target: from `wrap` or `load_target`, or the path of a classifier's file.
        plugins: paths of plugins of one file, which are loaded, and whose own preset is applied if they have one;
            names of presets may be given here too.
        presets: names of presets to apply over ``config``, the later ones winning, before those of ``plugins``.
        out: a run folder to write; in memory alone if left out (`Inversion.save` writes it later).
        resume: resume from the checkpoint in ``out``, with the recipe there unless another is given.
        force: replace another run in ``out``.
        on_step: called after each step with its number.
        on_record: called with each line of the history.
        settings: as in `prepare`: ``config``, ``conditioner``, ``generator``, ``inverter``, ``losses``,
            ``options``, ``target_options``, ``per_class``, ``data``, ``warm_start``, and the recipe's own ``steps``,
            ``batch_size``, ``labels``, ``classes_per_batch``, ``seed``, ``device``, ``precision``, ``compile``,
            ``checkpoint_every``.

    Raises:
        UsageError: a name or value is wrong.
        ModelError: the classifier cannot be loaded.
        PluginError: a plugin is unknown or broken.
        RunError: a value turned non-finite, or ``out`` holds another run.

    Example:
        >>> import torch
        >>> from interpkit import invert, wrap
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))  # your trained classifier
        >>> target = wrap(net, input_shape=(1, 8, 8))
        >>> inversion = invert(target, presets=["vecmat"], steps=10, batch_size=16, seed=0)
        >>> images, labels = inversion.sample(per_class=2)
        >>> images.shape, labels.tolist()
        (torch.Size([6, 1, 8, 8]), [0, 0, 1, 1, 2, 2])
    """
    folder = None if out is None else to_path(out)
    refuse_both(resume, force)
    job = prepare(target, plugins, presets=presets, resume_from=folder if resume else None, **settings)
    return job.run(out=folder, resume=resume, force=force, on_step=on_step, on_record=on_record)


@with_autograd
def prepare(
    target: Target | str | Path,
    plugins: Sequence[str | Path] = (),
    *,
    presets: Sequence[str] = (),
    config: str | Path | None = None,
    conditioner: str | None = None,
    generator: str | None = None,
    inverter: str | None = None,
    losses: Mapping[str, float] | None = None,
    options: Mapping[str, Any] | None = None,
    target_options: Mapping[str, Any] | None = None,
    per_class: int | None = None,
    data: str | Path | None = None,
    warm_start: str | Path | None = None,
    resume_from: Path | None = None,
    **fields: Any,
) -> Job:
    """Compose and resolve the recipe and load the target, without training; see `invert`.

    The layers, the later ones winning: defaults, presets that the file names, the file, presets named here,
    components, losses and fields named here, then ``options``.

    Args:
        target: from `wrap` or `load_target`, or the path of a classifier's file.
        plugins: paths of plugins of one file, and names of presets, applied left to right. The preset of a file is
            not applied again over a recipe that records the file.
        presets: names of presets, applied before those of ``plugins``.
        config: a recipe in TOML.
        conditioner: its name, in place of the preset's; so are ``generator`` and ``inverter``.
        generator: likewise.
        inverter: likewise; with neither ``config`` nor a preset, the preset of its name is applied if there is one,
            and one that needs no other part does without.
        losses: weights by name; adds or reweights, 0 removes.
        options: settings by ``COMPONENT.OPTION``.
        target_options: what the file does not say itself, as in `load_target`.
        per_class: number of images of each class, for an inverter that makes a fixed set of them.
        data: images for the one component that reads some, as its option ``data``.
        warm_start: a run folder, to whose images the generator is fitted before the training.
        resume_from: a run folder; its recipe is the config if neither ``config`` nor a preset is given.
        fields: of the recipe (``steps``, ``seed``, ...); None stands for "not said".

    Raises:
        UsageError: neither a preset nor a file is named, or a name or value is wrong.
        ModelError: the classifier cannot be loaded.
        PluginError: a preset is unknown, or its plugin broken.
    """
    if target_options and isinstance(target, Target):
        facts = listed(setting(name, value) for name, value in target_options.items())
        raise UsageError(
            f"the classifier is loaded already, so {facts} would have no effect: state it in wrap or load_target."
        )
    plugins = _checked(presets, plugins)
    known_plugins = installed()
    files = {given: known_plugins.add_file(Path(given)) for given in plugins if is_file(given)}
    if len({plugin.name for plugin in files.values()}) < len(files):
        raise UsageError(f"plugin files are told apart by their names, so name each once: {listed(map(str, files))}.")
    nothing = ""
    if resume_from is not None and not Run(resume_from).has_started():
        nothing, resume_from = f"there is no run in {resume_from} to resume; to begin one, ", None
    begun = None
    if resume_from is not None:
        begun = Run.open(resume_from).check_plugins()
        if config is None and len(files) == len(plugins):
            config = resume_from / "recipe.toml"
    layers: list[Layer | Preset] = []
    recorded: list[PluginFile] = []
    if config is not None:
        layer = read_toml(Path(config))
        recorded = _recorded_files(layer.pop("plugin_files", []), config)
        known_plugins.check_files(recorded, str(config))
        layers += [known_plugins.preset(name) for name in _preset_names(layer.pop("presets", []), config)]
        resumed = None if resume_from is None or isinstance(target, Target) else Path(target)
        layers.append(_without_code(layer, target_options or {}, config, resumed))
    # look the inverter up here, so that a misspelt name is not reported as a missing preset
    whole = inverter is not None and not known_plugins.component("inverter", inverter).needs
    own_presets = {given: known_plugins.own_preset(file) for given, file in files.items()}
    named = len(plugins) > len(files) or any(preset is not None for preset in own_presets.values())
    if config is None and not named and inverter in known_plugins.registry.names("preset"):
        plugins = [inverter, *plugins]  # a method that brings its own recipe needs naming once
    applied: list[str] = []
    for given in plugins:
        if given not in files:
            layers.append(known_plugins.preset(str(given)))
            applied.append(str(given))
            continue
        preset = own_presets[given]
        if preset is not None and files[given].name not in [file.name for file in recorded]:
            layers.append(preset)
            applied.append(preset.name)
    if not layers and not files and not whole:
        if not isinstance(target, Target):
            target = loading.load(Path(target), validated(TargetOptions, target_options or {}, "about the classifier"))
        chosen = known_plugins.photograph_preset(target.input_shape)
        if chosen is None:
            raise UsageError(
                f"{nothing}name a preset by {setting('preset', 'NAME')} (there are: {known_plugins.all_presets()}), or "
                f"a recipe by {setting('config', 'FILE')}."
            )
        layers.append(known_plugins.preset(chosen))
        applied.append(chosen)
        size = "x".join(map(str, target.input_shape[1:]))
        log.warning("no preset is named: applying %s, for images of %s", setting("preset", chosen), size)
    components = {"conditioner": conditioner, "generator": generator, "inverter": inverter}
    layers.append({kind: {"name": name} for kind, name in components.items() if name is not None})
    layers.append({"losses": {name: {"weight": weight} for name, weight in (losses or {}).items()}})
    if warm_start is not None:
        layers.append({"warm_start": {"run": str(warm_start)}})
    labels = fields.pop("labels", None)  # which may be names, so the target has to be loaded first
    layers.append({name: value for name, value in fields.items() if value is not None})
    if fields.get("precision") is not None:
        layers.append({"fall_back": False})  # a recipe may say so; who names the precision means it
    layers.append({"target": target_options or {}})
    if files:
        layers.append({"plugin_files": [{"path": p.source, "sha256": p.sha256} for p in files.values()]})
    if config is None:  # a recipe that does not say is of a release whose conditions distinguished all classes
        conditions = "requested" if begun is None else begun.conditions
        layers.insert(0, {"conditions": conditions})
    if not isinstance(target, Target):
        target = loading.load(Path(target), compose(_expanded(layers, begun)).target)
    if labels is not None:
        layers.append({"labels": _numbers(labels, target)})
    elif target.garbage is not None and begun is None and compose(_expanded(layers, begun)).labels is None:
        log.warning(
            "the class %r stands for no class and is left out; to invert it too: %s",
            *(target.class_names[target.garbage], setting("labels", [*range(target.num_classes)])),
        )
        layers.append({"labels": [label for label in range(target.num_classes) if label != target.garbage]})
    settings = [(known_plugins.settled_key(key, begun), value) for key, value in (options or {}).items()]
    vectors = len(target.input_shape) == 1
    batch_norm = has_batch_norm(target)
    expanded = _expanded(layers, begun, vectors, batch_norm)
    recipe = compose(expanded, settings)
    if data is not None:
        settings.append((_reader(recipe, known_plugins), str(data)))
        recipe = compose(expanded, settings)
    fetch({"data": None if data is None else str(data), **(options or {})})
    if vectors:
        _tell_changes(compose(_expanded(layers, begun)), recipe)
    changed = [layer.name for layer in layers if isinstance(layer, Preset) and layer.without_batch_norm]
    if changed and not batch_norm:
        log.info("%s has no batch norm with statistics, which changes the preset %s", target.name, listed(changed))
    if per_class is not None:
        name = recipe.inverter.name
        if "per_class" not in known_plugins.component("inverter", name).Options.model_fields:
            raise UsageError(
                f"the inverter {name!r} does not make a fixed number of images of each class: leave "
                f"{setting('per_class', None)} out, and draw as many as you like from the run "
                f"({command('sample', 'RUN')})."
            )
        recipe = compose(expanded, [*settings, (f"{name}.per_class", per_class)])
    job = Job(recipe, target, applied, begun=begun)
    if resume_from is None:
        for doubt in preprocessing.doubts(target):
            log.warning(doubt)
        idle = assembly.without_effect(recipe, known_plugins)
        if idle:
            log.warning("the inverter %r does not use %s", job.recipe.inverter.name, listed(idle))
    if config is not None and resume_from is None:
        with suppress(RunError):  # the file is not in a run folder
            Run(Path(config).parent).changed_since(job.recipe, target)
    return job


def _reader(recipe: Recipe, plugins: Plugins) -> str:
    """Return the option ``data`` of the component that reads images: the inverter, or else the only one.

    Raises:
        UsageError: no component reads any, or several do.
    """
    places = [place.removeprefix("losses.") for place in assembly.data_options(recipe, plugins)]
    if "inverter.data" in places or len(places) == 1:
        return "inverter.data" if "inverter.data" in places else places[0]
    if places:
        raise UsageError(
            f"several components read images, so {setting('data', None)} is ambiguous. Name those of each: "
            f"{listed(setting(place, 'DATA') for place in places)}."
        )
    raise UsageError(f"no component of the recipe reads images: leave {setting('data', None)} out.")


def _checked(presets: Sequence[str], plugins: Sequence[str | Path]) -> list[str | Path]:
    """Return what to apply, in order.

    Raises:
        UsageError: a preset is a file, or both arguments name presets.
    """
    for name in filter(is_file, presets):
        raise UsageError(f"{setting('preset', name)} names a file, not a preset. Load it: {setting('plugin', name)}")
    named = [str(given) for given in plugins if not is_file(given)]
    if presets and named:
        raise UsageError(
            f"presets are named in two ways, which leaves their order open: {listed([*presets, *named])}. Name each "
            f"by {setting('preset', 'NAME')}."
        )
    return [*presets, *plugins]


def _without_code(layer: Layer, typed: Mapping[str, Any], config: str | Path, resumed: Path | None) -> Layer:
    """Return a file's layer without what only the user may say: code of the user's own, and trust.

    Args:
        layer: what the file says.
        typed: what the user types about the classifier.
        config: the file.
        resumed: the classifier's file, if its run is resumed: the user may have typed the code before.

    Raises:
        UsageError: the file records some, and the user has not typed it again.
    """
    recorded = layer.get("target", {})
    if not isinstance(recorded, Mapping):
        return layer
    arch = str(recorded.get("arch", ""))
    if arch.startswith("py:") and not typed.get("arch"):
        facts = validated(TargetOptions, {**recorded, **typed}, str(config))
        classifier = loading.digest(resumed) if resumed is not None and resumed.exists() else None
        reason = typed_code.refusal(facts, classifier)
        if reason is not None:
            raise UsageError(f"{config} records {setting('arch', arch)}, which is code; {reason}. Type it again.")
    if recorded.get("trust") and not typed.get("trust"):
        raise UsageError(
            f"{config} records {setting('trust')}; a file cannot grant it. Type it again if you trust the classifier."
        )
    return {**layer, "target": {key: value for key, value in recorded.items() if key != "trust"}}


def _numbers(labels: Any, target: Target) -> Any:
    """Return the numbers of classes, some of which may be named; other values as they are, for the recipe to refuse."""
    if not isinstance(labels, Sequence) or isinstance(labels, str):
        return labels

    def number(label: Any) -> Any:
        try:
            return target.class_number(label) if isinstance(label, str) else label
        except UsageError as error:
            raise UsageError(f"{setting('labels', [label])}: {error}") from error

    return list(map(number, labels))


def _expanded(
    layers: Sequence[Layer | Preset], begun: Recipe | None, vectors: bool = False, batch_norm: bool = True
) -> list[Layer]:
    """Return the layers, with the fragments of presets for a classifier of this kind, and one name per component."""
    return [
        installed().settled(part, begun)
        for layer in layers
        for part in (layer.layers(vectors, batch_norm) if isinstance(layer, Preset) else [layer])
    ]


def _tell_changes(plain: Recipe, recipe: Recipe) -> None:
    """Log which components presets have replaced for vectors."""
    kinds = ("conditioner", "generator", "inverter")
    before, after = ({kind: part.name for kind in kinds if (part := getattr(of, kind))} for of in (plain, recipe))
    changed = [setting(kind, name) for kind, name in after.items() if before.get(kind) != name]
    if changed:
        log.warning("the classifier's inputs are vectors for interpkit, so the run uses %s", " ".join(changed))


def _preset_names(value: Any, config: str | Path) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise UsageError(f'{config}: presets is a list of names, e.g. presets = ["NAME"], not {value!r}.')
    for name in filter(is_file, value):
        typed = setting("plugin", name)
        raise UsageError(f"{config} names {name}, which is code; a file cannot have it run. Type it: {typed}")
    return value


def _recorded_files(value: Any, config: str | Path) -> list[PluginFile]:
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
        raise UsageError(f"{config}: plugin_files is a list of tables with path and sha256, not {value!r}.")
    return [validated(PluginFile, entry, f"{config}, plugin_files") for entry in value]


def _starting_images(recipe: Recipe, target: Target) -> tuple[Tensor, Tensor] | None:
    """Return the images, in [0, 1], and labels of the run that the recipe starts from, if it does.

    Raises:
        RunError: the run has no samples of this target's shape, or none of a class to invert.
    """
    if recipe.warm_start.run is None:
        return None
    run = Run.open(Path(recipe.warm_start.run))
    images, labels, _ = read_images(run / "samples.safetensors", target)
    classes = range(target.num_classes) if recipe.labels is None else recipe.labels
    there = set(labels.tolist())
    missing = [label for label in classes if label not in there]
    if missing:
        raise RunError(
            f"{run.folder} has no images of {len(missing)} of the {len(classes)} classes to invert, {missing[0]} "
            f"({target.class_names[missing[0]]}) among them. Invert those there too, or name those that it has by "
            f"{setting('labels', sorted(there))}."
        )
    if target.origin is not None and run.manifest().model.sha256 != loading.digest(target.origin):
        log.warning("the images of %s were made for another classifier", run.folder)
    return to_unit(images, target), labels


def refuse_both(resume: bool, force: bool) -> None:
    """Raise a `UsageError` if a run is to be resumed and replaced."""
    if resume and force:
        raise UsageError(
            f"{setting('resume')} continues a run, and {setting('force')} replaces it: leave one of them out."
        )


class Job:
    """A resolved recipe and its target, ready to run.

    Args:
        recipe: as composed; `recipe` is then the resolved one.
        target: the classifier.
        presets: the names that were applied, for the record.
        begun: the recipe of the run if it is resumed, which has decided the length and sizes that are left open now.

    Attributes:
        estimate: what the run takes, where steps were tried beforehand; see `interpkit.api.trial`.
    """

    def __init__(self, recipe: Recipe, target: Target, presets: list[str], *, begun: Recipe | None = None) -> None:
        self.plugins: Plugins = installed()
        self.target = target
        self.presets = presets
        if begun is not None:
            recipe = recipe.model_copy(update=sizes.as_begun(recipe, begun))
        self.recipe = assembly.resolve(recipe, target, self.plugins)
        self._check_gradient()
        self.estimate: trial.Estimate | None = None
        if begun is None:
            self._try_out(recipe)
        self.recorder: Recorder | None = None
        self.profile: profiler.Profile | None = None
        self.metrics: dict[str, Any] | None = None
        self.stop_requested = False
        self.trained = False
        """Whether the training has ended, so that only samples and figures are left to do."""

    def _check_gradient(self) -> None:
        name = self.recipe.inverter.name
        if self.target.no_gradient and self.plugins.component("inverter", name).needs_gradient:
            raise ModelError(
                f"no gradient passes from the logits of {self.target.name} to its images: {self.target.no_gradient}. "
                f"The inverter {name!r} needs one. Without gradients: {assembly.without_gradient(self.plugins)}."
            )

    def _try_out(self, stated: Recipe) -> None:
        """Try a few steps if images are large; choose by them what is left open, and estimate what the run takes."""
        found = trial.try_out(self.recipe, self.target, self.plugins)
        if found is None:
            return
        pieces = "micro_batch" not in self.plugins.component("inverter", self.recipe.inverter.name).ignores
        fitting = trial.fit(self.recipe, stated, found, in_pieces=self._trains_generator and pieces)
        self.recipe = self.recipe.model_copy(update=fitting)
        if self.images_per_step is not None:
            fitted_to = 0 if self._start is None else len(self._start[1])
            self.estimate = trial.estimate(self.recipe, found, self.samples, self.images_per_step, fitted_to)

    @cached_property
    def _start(self) -> tuple[Tensor, Tensor] | None:
        return _starting_images(self.recipe, self.target)

    @property
    def smaller(self) -> list[str]:
        """What the user can set to make the run smaller."""
        photographs = self.plugins.photograph_preset(self.target.input_shape)
        return trial.smaller(self.recipe, self.target.num_classes, photographs)

    @property
    def _trains_generator(self) -> bool:
        return assembly.trains_generator(self.recipe, self.plugins)

    @property
    def _classes(self) -> int:
        return self.target.num_classes if self.recipe.labels is None else len(self.recipe.labels)

    @property
    def images_per_step(self) -> int | None:
        """How many images a step moves, if that is known."""
        per_class = self.recipe.inverter.options.get("per_class")
        if self._trains_generator:
            return self.recipe.batch_size
        return per_class * self._classes if isinstance(per_class, int) else None

    @property
    def samples(self) -> int:
        """How many samples are judged at the end, about."""
        most = most_samples(self._classes)
        return most if self._trains_generator or self.images_per_step is None else min(most, self.images_per_step)

    def request_stop(self) -> None:
        """Stop after the step that is running."""
        self.stop_requested = True
        if self.recorder is not None:
            self.recorder.stop_requested = True

    @property
    def after_stop(self) -> str:
        """What still happens after a stop was requested, and how long it takes if a step has shown that, in words."""
        so_far = None if self.recorder is None else self.recorder.images_so_far
        if so_far == 0:
            return "stopping before the first step; nothing is drawn"
        step, took = None if self.recorder is None else self.recorder.seconds_per_step, ""
        samples = self.samples if so_far is None else min(self.samples, so_far)
        if step is not None:
            judging = samples * trial.SAMPLE * step / (self.images_per_step or self.recipe.batch_size)
            took = f", which takes about {duration(judging + (step if so_far is None else 0))} in all"
        if so_far is None:
            return f"stopping after this step; then {samples:,} samples are drawn and judged{took}"
        return f"stopping within this step; then the {so_far:,} images so far are judged{took}"

    @cached_property
    def disk_bytes(self) -> int:
        """How many bytes a run folder takes at most; the networks are counted without memory for their weights."""

        def count(device: str) -> int:
            with global_seed(0, torch.device("cpu")), torch.device(device):
                parts = assembly.build_generator(self.recipe, self.target, self.plugins)
            inverter = self.plugins.component("inverter", self.recipe.inverter.name)
            return disk_space.at_most(self.recipe, self.target, *parts, in_groups=inverter.in_groups)

        try:
            return count("meta")
        except PluginError:  # not every plugin's component can be built so
            return count("cpu")

    def is_done(self, out: Path) -> bool:
        """Say whether the folder holds a finished run of this job, at least as long as is asked for.

        The lock of a process that was killed just before it ended is removed from such a run.

        Raises:
            RunError: it holds a finished run of another.
        """
        run = Run(out)
        if not run.has_started():
            return False
        manifest = run.manifest()
        if manifest.status != "finished" or manifest.steps_done < self.recipe.steps:
            return False
        missing = [name for name in (*manifest.files, *MEASURED) if not (out / name).exists()]
        if missing and (out / "checkpoint").exists():
            log.warning(
                "%s has no %s: it is finished again from its checkpoint. Measure again what evaluate measured since",
                out,
                listed(missing),
            )
            return False
        run.check_same(self.recipe.model_copy(update={"steps": manifest.steps_done}), self.target)
        run.tidy()
        return True

    @with_autograd
    def run(
        self,
        *,
        out: Path | None = None,
        resume: bool = False,
        force: bool = False,
        on_step: Callable[[int], None] | None = None,
        on_record: Callable[[StepRecord], None] | None = None,
        on_samples: Callable[[int, int], None] | None = None,
        profile: bool = False,
    ) -> Inversion:
        """Train, and write the run folder if there is one; see `invert`, and `finish` for ``on_samples``.

        Where several processes share the batch, the first one alone calls hooks and writes. With ``profile`` the time
        of a step is taken apart: see `Job.profile` afterwards, and profile.json in the folder.
        """
        recipe, target = self.recipe, self.target
        world = World.current()
        first = world.rank == 0
        world.check(recipe.batch_size, recipe.generators)
        if world.broadcast(first and resume and out is not None and self.is_done(out)):
            assert out is not None
            return Run.open(out).load(target)
        device = torch.device(recipe.device)
        keep_freed_memory(device)
        files = [] if out is None or not resume else [out / "checkpoint", out / "history.jsonl"]
        has_begun = bool(files) and all(path.exists() and path.stat().st_size for path in files)
        start = None if has_begun else self._start

        others = OwnStream(derive_seed(recipe.seed, "callbacks"), device)  # what they draw does not change the run

        def record(line: StepRecord) -> None:
            with others.used():
                self.plugins.call("inversion_step", record=line)
                if on_record is not None:
                    on_record(line)

        watch = trial.FirstSteps(recipe, self.smaller) if self.estimate is None else None

        def step_done(step: int) -> None:
            if watch is not None:
                watch.step_done(step)
            if self.profile is not None:
                self.profile.step_done()
            if on_step is not None:
                with others.used():
                    on_step(step)

        callbacks: dict[str, Any] = {"accepts": target.accepts}
        if first:
            callbacks |= {"on_step": step_done, "on_record": record, "class_names": target.class_names}
            callbacks["classes"] = self._classes
        run = None
        with ExitStack() as until_finished:
            with target.frozen(device, torch.channels_last), global_seed(derive_seed(recipe.seed, "weights"), device):
                inverter, parts = assembly.build(recipe, target, self.plugins)
                parts = replace(parts, start=start)
                callbacks["owners"] = assembly.owners(recipe, self.plugins)
                presets = (entry.item for entry in self.plugins.registry.entries("preset"))
                callbacks["variety_preset"] = next((preset.name for preset in presets if preset.adds_variety), "")
                if out is None or not first:
                    self.recorder = Recorder(recipe.steps, **callbacks)
                else:
                    disk_space.check(out, self.disk_bytes)
                    until_finished.enter_context(Run(out).locked())
                    run = self._open(out, resume=resume, force=force)
                    self.recorder = RunRecorder(run, recipe, **callbacks)
                self.recorder.stop_requested = self.stop_requested
                if first:
                    with others.used():
                        self.plugins.call("inversion_started", target=target, recipe=recipe)
                    if self.estimate is not None:
                        self.estimate.tell(self.smaller)
                with self._failing(run), profiler.profiled(device, profile and first) as self.profile:
                    inversion = contracts.inversion(inverter, target, recipe, parts, self.recorder)
                    inversion.terms = {name: loss for name, (_, loss) in parts.losses.items()}
                    notes = {"presets": self.presets, **self.recorder.notes}
                    inversion.noted = notes if run is None else run.noted()
            self.trained = True
            if run is not None:
                with self._failing(run):
                    if self.profile is not None:
                        write_atomically(run / "profile.json", to_json(self.profile.to_json()))
                    self.metrics = finish(run, inversion, on_samples)
        if first:
            self.plugins.call("inversion_finished", inversion=inversion)
        return inversion

    @contextmanager
    def _failing(self, run: Run | None) -> Iterator[None]:
        """Note a failure in the manifest; if it was in a plugin, say in which, at which step, and what is kept."""
        assert self.recorder is not None
        try:
            yield
        except (Exception, SystemExit) as error:
            if run is not None:
                with suppress(OSError, RunError, MemoryError):  # the first error is the one to tell
                    run.note(status="failed")
            if isinstance(error, InterpkitError) and not isinstance(error, PluginError):
                raise
            fault = error if isinstance(error, PluginError) else self.plugins.blame(error)
            again = f" Once that is fixed, resume with {setting('resume')}." if run is not None else ""
            if isinstance(error, OSError):
                place = str(error.filename or (run and run.folder) or "a file")
                # Who writes the run is the recorder, whichever plugin has called it.
                if fault is None or (run is not None and Path(place).parent == run.folder):
                    raise RunError(f"{place}: {error.strerror or error}.{self.recorder.kept()}{again}") from error
            if is_out_of_memory(error):
                ways = setting("labels", None), setting("batch_size" if self._trains_generator else "per_class", None)
                end = "end what else runs here" + (f" and resume with {setting('resume')}" if run is not None else "")
                words = f"out of memory: {end}, or make a smaller run ({', '.join(ways)})."
                raise RunError(f"{words}{self.recorder.kept()}") from error
            if fault is None:
                raise
            self.recorder.flush()  # a value that is not finite is then the cause, and this reports it instead
            step = self.recorder.next_step
            place = f"at step {step}" if step <= self.recipe.steps else "after the last step"
            raise PluginError(f"{place}, {fault}{self.recorder.kept()}") from error

    def _open(self, out: Path, *, resume: bool, force: bool) -> Run:
        run = Run(out)
        if resume and run.has_started():
            run.check_same(self.recipe, self.target)
            run.resume(self.recipe, self.target)
            return run
        run = Run.create(out, force=force)
        run.begin(self.recipe, self.target, presets=self.presets)
        return run
