"""Call plugins' components: errors name the component and its plugin, and results are checked against the interfaces.

Types, shapes and devices are checked on each call, as this never synchronizes with the device; values are checked on
the CPU only, for the same reason. `interpkit.runtime.recorder` checks that images and terms are finite and in range,
because it reads them anyway.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interpkit.config.recipe import Preset
from interpkit.config.schemas import FILE_NAME
from interpkit.errors import InterpkitError, PluginError, RunError, setting, with_place
from interpkit.interfaces.attributions import Attribution, AttributionContext
from interpkit.interfaces.audits import Audit, AuditCase, Tested
from interpkit.interfaces.components import owner_of
from interpkit.interfaces.generation import Condition, Conditioner, ConditionSpec, Generator
from interpkit.interfaces.inversions import Inversion, OutOfUnitError
from interpkit.interfaces.inverters import Inverter, Parts, StoredInversion
from interpkit.interfaces.loaders import Architectures, Loader
from interpkit.interfaces.losses import GeneratedBatch, InversionBatch, InversionLoss
from interpkit.interfaces.metrics import Metric
from interpkit.interfaces.sections import MOST_IN_STRIP, Section, Strip
from interpkit.interfaces.targets import Target
from interpkit.runtime.devices import is_out_of_memory
from interpkit.runtime.profiler import phase

if TYPE_CHECKING:
    from interpkit.config.recipe import Recipe, TargetOptions
    from interpkit.runtime.recorder import Recorder


KINDS: dict[str, type] = {
    "conditioner": Conditioner,
    "generator": Generator,
    "loss": InversionLoss,
    "inverter": Inverter,
    "metric": Metric,
    "attribution": Attribution,
    "audit": Audit,
    "loader": Loader,
    "architectures": Architectures,
    "preset": Preset,
}
"""The kinds of components that a plugin can register, each with its base class."""
SAID = {"audit": "test"}
"""What users call a component of a kind, where that is another word."""


def kind_of(cls: type) -> str | None:
    """Return the kind of a class, determined by its base class; None if it does not have one."""
    return next((kind for kind, base in KINDS.items() if issubclass(cls, base)), None)


def described(component: object) -> str:
    """Describe a component or its class, with its plugin: ``the loss 'tv' of the plugin 'losses'``."""
    component = getattr(component, "responsible", component)
    cls = component if inspect.isclass(component) else type(component)
    owner = owner_of(cls)
    if owner is not None:
        kind, name, plugin = owner
        return f"the {kind} {name!r} of the plugin {plugin!r}"
    return f"the {kind_of(cls) or 'object'} {getattr(cls, 'name', '')!r} ({cls.__module__}.{cls.__qualname__})"


def module_of(component: object) -> str:
    """Return the top-level package or module that defines a component or its class."""
    cls = component if inspect.isclass(component) else type(component)
    return cls.__module__.partition(".")[0]


@contextmanager
def blamed(component: object) -> Iterator[None]:
    """Turn any exception in this block into an error that names the component, its plugin and the line of code.

    interpkit's own errors pass unchanged, and so do out-of-memory errors, which are not the component's fault.

    Raises:
        PluginError: the block raised anything else.
    """
    try:
        yield
    except InterpkitError:
        raise
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):
            raise
        raise PluginError(f"{described(component)} failed: {with_place(error, module_of(component))}.") from error


def _breach(component: object, rule: str, actual: str) -> PluginError:
    return PluginError(f"{described(component)} violates its interface contract: {rule}, not {actual}.")


def _check(
    component: object,
    what: str,
    value: Any,
    shape: tuple[int, ...],
    device: torch.device | None,
    dtypes: str = "floating point",
) -> None:
    """Check that a value is a tensor of the shape, on the device and of the kind of dtype that the interface requires.

    Raises:
        PluginError: the value is not such a tensor.
    """
    if not isinstance(value, Tensor):
        raise _breach(component, f"{what} is a tensor", type(value).__name__)
    if value.shape != shape:
        raise _breach(component, f"{what} has the shape {shape}", str(tuple(value.shape)))
    if device is not None and value.device != device:
        raise _breach(component, f"{what} is on the device {device}", str(value.device))
    if not (value.dtype == torch.int64 if dtypes == "int64" else value.is_floating_point()):
        raise _breach(component, f"{what} is {dtypes}", str(value.dtype))


def spec(conditioner: Conditioner) -> ConditionSpec:
    """Return a conditioner's `ConditionSpec`.

    Raises:
        PluginError: ``spec`` is not a `ConditionSpec`.
    """
    with blamed(conditioner):
        value = conditioner.spec
    if not isinstance(value, ConditionSpec):
        raise _breach(conditioner, "spec is a ConditionSpec", type(value).__name__)
    return value


def latent_dim(generator: Generator) -> int:
    """Return a generator's ``latent_dim``.

    Raises:
        PluginError: ``latent_dim`` is missing or not valid.
    """
    value = getattr(generator, "latent_dim", None)
    if not isinstance(value, int) or value < 0:
        raise _breach(generator, "latent_dim is a number, which __init__ sets", repr(value))
    return value


def layers(loss: InversionLoss, target: Target) -> list[str]:
    """Return the layers that a loss reads.

    Raises:
        PluginError: the method fails, or does not return a list of names.
    """
    with blamed(loss):
        names = loss.layers(target)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _breach(loss, "layers(target) returns a list of names", repr(names))
    return names


@phase("conditioner")
def condition(
    conditioner: Conditioner,
    count: int,
    labels: Tensor | None,
    rng: torch.Generator | None,
    *,
    check_values: bool = True,
) -> Condition:
    """Draw ``count`` conditions; see `Conditioner.sample`.

    Args:
        conditioner: draws the conditions.
        count: the number of images.
        labels: (count,), the requested classes.
        rng: source of the randomness.
        check_values: also check, on a CPU, that labels are in range, the distribution sums to 1, and the rest is
            finite; the loop does so in its first step only.

    Raises:
        PluginError: the method fails, or does not return a valid condition for ``count`` images.
    """
    with blamed(conditioner):
        drawn = conditioner.sample(count, labels=labels, rng=rng)
    return _checked(conditioner, drawn, "sample", count, check_values)


def condition_of(conditioner: Conditioner, answers: Tensor) -> Condition:
    """Return the conditions of a target's answers, (B, n); see `Conditioner.of_answers`.

    Raises:
        PluginError: the method fails, or does not return a valid condition for B images.
    """
    with blamed(conditioner):
        made = conditioner.of_answers(answers)
    return _checked(conditioner, made, "of_answers", len(answers), True)


def _checked(conditioner: Conditioner, drawn: Any, method: str, count: int, check_values: bool) -> Condition:
    if not isinstance(drawn, Condition):
        raise _breach(conditioner, f"{method} returns a Condition", type(drawn).__name__)
    device = conditioner.device
    _check(conditioner, "Condition.labels", drawn.labels, (count,), device, "int64")
    _check(conditioner, "Condition.distribution", drawn.distribution, (count, conditioner.num_classes), device)
    _check(conditioner, "Condition.vector", drawn.vector, (count, conditioner.spec.vector_dim), device)
    if check_values and count and device.type == "cpu":
        low, high = drawn.labels.aminmax()
        if low < 0 or high >= conditioner.num_classes:
            rule = f"Condition.labels are classes, 0 to {conditioner.num_classes - 1}"
            raise _breach(conditioner, rule, str(int(low if low < 0 else high)))
        for what, values in (("distribution", drawn.distribution), ("vector", drawn.vector)):
            if not values.isfinite().all():
                raise _breach(conditioner, f"Condition.{what} is finite", "NaN or infinite")
        sums = drawn.distribution.double().sum(1)
        if drawn.distribution.min() < 0 or (sums - 1).abs().max() > 0.01:  # not 1e-6: it may be bf16
            odd = f"from {drawn.distribution.min():.3g} on, with sums from {sums.min():.3g} to {sums.max():.3g}"
            raise _breach(conditioner, "the rows of Condition.distribution are probabilities, which sum to 1", odd)
    return drawn


def images(generator: Generator, latent: Tensor, condition: Condition, member: Tensor | None = None) -> Tensor:
    """Generate images, (B, *input_shape) float32; see `Generator.forward`.

    Args:
        generator: a single generator or an ensemble.
        latent: (B, latent_dim).
        condition: the condition of the same B images.
        member: (B,) int64, which member of an ensemble generates each image; they take turns if omitted.

    Raises:
        PluginError: the generator fails, or does not return B images of that shape.
    """
    which = () if member is None or generator.num_members == 1 else (member,)
    with blamed(generator):
        made: Tensor = generator(latent, condition, *which)
    _check(generator, "forward's images", made, (len(latent), *generator.input_shape), latent.device)
    return made.float()


def views(loss: InversionLoss, batch: GeneratedBatch, rng: torch.Generator) -> Tensor | None:
    """Return the extra images that a loss requests; see `InversionLoss.views`.

    Raises:
        PluginError: the method fails, or does not return images.
    """
    with blamed(loss):
        extra = loss.views(batch, rng)
    if extra is not None:
        count = len(extra) if isinstance(extra, Tensor) and extra.dim() else 0
        _check(loss, "views's images", extra, (count, *batch.images.shape[1:]), batch.images.device)
    return extra


def maps(method: Attribution, target: Target, images: Tensor, classes: Tensor, context: AttributionContext) -> Tensor:
    """Return attribution maps, of the images' shape; see `Attribution.attribute`.

    Raises:
        PluginError: the method fails, or does not return such maps.
    """
    with blamed(method):
        result = method.attribute(target, images, classes, context)
    _check(method, "attribute's maps", result, tuple(images.shape), images.device)
    return result


def tested(test: Audit, case: AuditCase) -> Tested:
    """Return what a test of an audit finds; see `Audit.test`.

    Raises:
        PluginError: the test fails, a figure is not a number in its range or of a class that was not asked for, or a
            picture or a tensor is not valid.
    """
    with blamed(test):
        found = test.test(case)
    if not isinstance(found, Tested):
        raise _breach(test, "test returns a Tested", type(found).__name__)
    if not found.p_values:
        raise _breach(test, "test returns p-values or raises TooFew", "none")
    for label, p in found.p_values.items():
        where = "the whole classifier" if label is None else f"class {label}"
        if label is not None and label not in case.classes:
            raise _breach(test, "p-values are of the classes to test", where)
        if not (isinstance(p, int | float) and 0 < p <= 1):
            raise _breach(test, f"the p-value of {where} is a Python float above 0 and at most 1", repr(p))
        value = found.statistics.get(label)
        if not (isinstance(value, int | float) and math.isfinite(value)):
            raise _breach(test, f"the statistic of {where} is a finite Python float", repr(value))
    for strip in (strip for strips in found.pictures.values() for strip in strips):
        _check_strip(test, strip, case.target)
    for name, tensor in found.tensors.items():
        if not (name.startswith(f"{test.name}.") and isinstance(tensor, Tensor)):
            raise _breach(test, f"what it keeps are tensors named '{test.name}...'", f"{name}: {tensor!r:.50}")
    return found


def loaded(loader: Loader, path: Path, options: TargetOptions) -> Target:
    """Return the target that a loader reads from a file; see `Loader.load`.

    Raises:
        PluginError: the loader fails, or does not return a target.
    """
    with blamed(loader):
        target = loader.load(path, options)
    if not isinstance(target, Target):
        raise _breach(loader, "load returns a Target", type(target).__name__)
    return target


def term(loss: InversionLoss, batch: InversionBatch) -> Tensor:
    """Return a term of the objective, a scalar; see `InversionLoss.forward`.

    Raises:
        PluginError: the loss fails, or does not return a scalar.
    """
    with blamed(loss):
        value: Tensor = loss(batch)
    _check(loss, "forward's value", value, (), batch.images.device)
    return value


def figures(loss: InversionLoss, target: Target, images: Tensor) -> dict[str, Tensor]:
    """Return a loss's figures of single images, on the CPU; see `InversionLoss.figures`.

    Raises:
        PluginError: the method fails, or a figure has another name or shape, or is not finite.
    """
    with blamed(loss):
        found = dict(loss.figures(target, images.clone()))  # the images may be those that are stored
    if found.keys() != loss.describe.keys():
        raise _breach(loss, f"figures() returns {', '.join(loss.describe) or 'nothing'}", ", ".join(found) or "nothing")
    for name, values in found.items():
        _check(loss, f"the figure {name!r}", values, (len(images),), images.device)
        if not values.isfinite().all():
            raise _breach(loss, f"the figure {name!r} is finite", "NaN or infinite")
    return {name: values.float().cpu() for name, values in found.items()}


def inversion(inverter: Inverter, target: Target, recipe: Recipe, parts: Parts, recorder: Recorder) -> Inversion:
    """Invert a target; see `Inverter.invert`.

    Raises:
        PluginError: the inverter does not return an inversion.
    """
    if "optimizer" in inverter.ignores:
        recorder.advice = "Try other options of the inverter."
    else:
        recorder.advise(recipe.optimizer.lr, recipe.precision)
    made = inverter.invert(target, recipe, parts, recorder)
    if not isinstance(made, Inversion):
        raise _breach(inverter, "invert returns an Inversion", type(made).__name__)
    return made


def loaded_inversion(inverter: Inverter, stored: StoredInversion) -> Inversion:
    """Return the inversion that a run folder holds; see `Inverter.load`.

    Raises:
        PluginError: the inverter fails, or does not return an inversion.
        RunError: its stored images leave [0, 1].
    """
    try:
        with blamed(inverter):
            loaded = inverter.load(stored)
    except OutOfUnitError as error:
        raise RunError(
            f"{error} They are stored in the run, whose files may be damaged: run again with {setting('force')}."
        ) from error
    if not isinstance(loaded, Inversion):
        raise _breach(inverter, "load returns an Inversion", type(loaded).__name__)
    return loaded


def files(inversion: Inversion, reserved: Collection[str]) -> dict[str, bytes]:
    """Return an inversion's own files by name; see `Inversion.files`.

    Raises:
        PluginError: the method fails, or a file's name or content is not valid.
    """
    with blamed(inversion):
        made = dict(inversion.files())
    for name, content in made.items():
        if not isinstance(name, str) or not FILE_NAME.fullmatch(name) or name.lower() in reserved:
            raise _breach(inversion, "files() names files of its own, of letters, digits, '.', '_' and '-'", repr(name))
        if not isinstance(content, bytes):
            raise _breach(inversion, f"files() returns the content of {name} as bytes", type(content).__name__)
    return made


def sections_of_metric(metric: type[Metric], metrics: Mapping[str, Any]) -> list[Section]:
    """Return the sections that a metric adds to the report; see `Metric.sections`.

    Raises:
        PluginError: the method fails, or the report cannot show a section.
    """
    with blamed(metric):
        made = list(metric.sections(metrics))
    for section in made:
        _laid_out(metric, section)
        if section.strips:
            raise _breach(metric, "sections() has no pictures, as metrics.json has none", section.title)
    return made


def _laid_out(component: Any, section: Any) -> None:
    if not isinstance(section, Section):
        raise _breach(component, "sections() returns Sections", type(section).__name__)
    for row in section.rows:
        if len(row) != len(section.columns):
            raise _breach(component, f"a row of {section.title!r} has {len(section.columns)} cells", str(len(row)))


def sections(inversion: Inversion) -> list[Section]:
    """Return the sections that an inversion adds to the report; see `Inversion.sections`.

    Raises:
        PluginError: the method fails, or the report cannot show a section.
    """
    with blamed(inversion):
        made = list(inversion.sections())
    for section in made:
        _laid_out(inversion, section)
        for strip in section.strips:
            _check_strip(inversion, strip, inversion.target)
    return made


def _check_strip(component: object, strip: Strip, target: Target) -> None:
    count = min(len(strip.images), MOST_IN_STRIP) or 1
    _check(component, f"the strip {strip.title!r}", strip.images, (count, *target.input_shape), None)
