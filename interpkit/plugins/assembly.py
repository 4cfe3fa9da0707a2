"""Recipe + plugins -> components: every option is checked and filled in, and the parts are built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from interpkit.config import sizes
from interpkit.config.recipe import Component as Named
from interpkit.config.recipe import Optimizer, Recipe, Term, validated
from interpkit.errors import UsageError, listed, setting
from interpkit.interfaces import contracts
from interpkit.interfaces.components import Component, Options, options_of
from interpkit.interfaces.data import ReadingOptions
from interpkit.interfaces.generation import Conditioner, Generator
from interpkit.interfaces.inverters import Inverter, Parts
from interpkit.interfaces.losses import InversionLoss
from interpkit.interfaces.targets import Target
from interpkit.inversion.ensemble import Ensemble
from interpkit.inversion.requested import RequestedClasses
from interpkit.plugins.discovery import Plugins, installed
from interpkit.runtime.compile import choose_compile
from interpkit.runtime.devices import choose_device, choose_precision
from interpkit.runtime.distributed import World


def resolve(recipe: Recipe, target: Target, plugins: Plugins) -> Recipe:
    """Return the recipe with every default filled in: the components' options, the device, the target, and the sizes.

    Raises:
        UsageError: a component or option is unknown or out of range, or a part is missing.
        PluginError: the plugin that a component is named after is broken.
    """
    _refuse_missing(recipe, plugins)
    wrong = [label for label in recipe.labels or () if not 0 <= label < target.num_classes]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UsageError(
            f"{setting('labels', wrong[:5])}{more}: the classes of {target.name} are 0 to {target.num_classes - 1}."
        )
    trained = trains_generator(recipe, plugins)
    needless = {"generators": recipe.generators > 1, "warm_start": recipe.warm_start.run is not None}
    given = [name for name, is_given in needless.items() if is_given]
    if given and not trained:
        raise UsageError(
            f"the inverter {recipe.inverter.name!r} trains no generator: leave {setting(given[0], None)} out."
        )
    if World.current().size > 1 and not plugins.component("inverter", recipe.inverter.name).shares_batch:
        shared = [entry.name for entry in plugins.registry.entries("inverter") if entry.item.shares_batch]
        raise UsageError(
            f"the inverter {recipe.inverter.name!r} runs in one process, and there are {World.current().size}: start "
            f"it without torchrun, or choose one that several can share: {listed(sorted(set(shared)))}."
        )
    device = choose_device(recipe.device)
    update = sizes.for_large(
        recipe,
        target.input_shape,
        target.num_classes,
        device.type,
        trains_generator=trained,
        processes=World.current().size,
    )
    if update.get("batch_size", recipe.batch_size) < 2 * recipe.generators:
        raise UsageError(
            f"{recipe.generators} generators share a batch of {recipe.batch_size}; each needs two images, for batch "
            f"norm: {setting('batch_size', 2 * recipe.generators)} or more."
        )
    precision = choose_precision(recipe.precision, device)
    compiles = "compile" not in plugins.component("inverter", recipe.inverter.name).ignores
    update |= {
        "device": str(device),
        "precision": precision,
        "fall_back": precision == "bf16" and (recipe.precision == "auto" or recipe.fall_back),
        "compile": choose_compile(recipe.compile, device, update.get("steps", recipe.steps)) if compiles else "off",
        "target": target.description,
    }
    return with_options(recipe.model_copy(update=update), plugins)


def _refuse_missing(recipe: Recipe, plugins: Plugins) -> None:
    weights = [term.weight for term in recipe.losses.values()]
    named = {"conditioner": recipe.conditioner, "generator": recipe.generator, "loss": max(weights, default=0) > 0}
    missing = [kind for kind in plugins.component("inverter", recipe.inverter.name).needs if not named[kind]]
    if missing:
        parts = [f"{setting(kind, 'NAME')} ({listed(plugins.registry.names(kind))})" for kind in missing]
        raise UsageError(
            f"the recipe names no {', no '.join(missing)}: add {', '.join(parts)}, or {setting('preset', 'NAME')} "
            f"({listed(plugins.registry.names('preset'))})."
        )


def with_options(recipe: Recipe, plugins: Plugins) -> Recipe:
    """Return the recipe with the default of every option of its components filled in.

    Raises:
        UsageError: a component or option is unknown or out of range.
        PluginError: the plugin that a component is named after is broken.
    """

    def settled(kind: str, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        return _options(plugins, kind, name, values)[1].model_dump(mode="json", exclude_none=True)

    update: dict[str, Any] = {
        kind: Named(name=part.name, **settled(kind, part.name, part.options)) for kind, part in _parts(recipe)
    }
    update["losses"] = {
        name: Term(weight=term.weight, **settled("loss", name, term.options)) for name, term in recipe.losses.items()
    }
    return recipe.model_copy(update=update)


def trains_generator(recipe: Recipe, plugins: Plugins) -> bool:
    """Return whether the recipe's inverter trains a generator."""
    return "generator" in plugins.component("inverter", recipe.inverter.name).needs


def without_effect(recipe: Recipe, plugins: Plugins) -> list[str]:
    """Return what a composed recipe sets and its inverter does not use, as presets may leave it there."""
    cls = plugins.component("inverter", recipe.inverter.name)
    used = ("inverter", *cls.needs)
    parts = [(kind, part.name) for kind, part in _parts(recipe)]
    parts += [("loss", name) for name, term in recipe.losses.items() if term.weight > 0]
    idle = [f"the {kind} {name!r}" for kind, name in parts if kind not in used]
    for name in cls.ignores:
        value = getattr(recipe, name)
        if name == "optimizer":
            idle += [setting(f"optimizer.{key}", own) for key, own in value if own != getattr(Optimizer(), key)]
        elif value not in (None, "auto", "off"):
            idle.append(setting(name, value))
    return idle


def build(recipe: Recipe, target: Target, plugins: Plugins) -> tuple[Inverter, Parts]:
    """Build the parts of a resolved recipe, with weights from torch's global generator; a misfit is a `UsageError`."""
    built = inverter(recipe, plugins)
    conditioner, generator = build_generator(recipe, target, plugins)
    losses = build_losses(recipe, target, plugins)
    own = built.needs_conditioner
    if own is not None and not isinstance(conditioner, own):
        raise UsageError(
            f"the inverter {built.name!r} requires its own conditioner, for all classes. Set "
            f"{setting('conditioner', own.name)}, and in a recipe conditions = 'all'."
        )
    return built, Parts(conditioner, generator, losses)


def build_losses(recipe: Recipe, target: Target, plugins: Plugins) -> dict[str, tuple[float, InversionLoss]]:
    """Build the terms that the recipe names by name, each with its weight, if that is above 0."""
    losses = {}
    for name, term in recipe.losses.items():
        if term.weight > 0:
            cls, options = _options(plugins, "loss", name, term.options)
            losses[name] = (term.weight, _made(cls, target, options))
    return losses


def terms_with_figures(recipe: Recipe, target: Target) -> dict[str, InversionLoss]:
    """Build those of a run's terms that have figures of single images; see `InversionLoss.figures`."""
    plugins = installed()
    there = [name for name in recipe.losses if plugins.registry.has("loss", name)]
    own = {name for name in there if plugins.component("loss", name).describe}
    losses = {name: term for name, term in recipe.losses.items() if name in own}
    built = build_losses(recipe.model_copy(update={"losses": losses}), target, plugins)
    return {name: loss for name, (_, loss) in built.items()}


def inverter(recipe: Recipe, plugins: Plugins) -> Inverter:
    """Build the inverter that the recipe names."""
    cls, options = _options(plugins, "inverter", recipe.inverter.name, recipe.inverter.options)
    built: Inverter = _made(cls, options)
    return built


def data_options(recipe: Recipe, plugins: Plugins) -> dict[str, ReadingOptions]:
    """Return the options of components that read labeled images, by the recipe's entries for them."""
    used = [(kind, kind, part.name, part.options) for kind, part in _parts(recipe)]
    used += [(f"losses.{name}", "loss", name, term.options) for name, term in recipe.losses.items() if term.weight > 0]
    options = {place: _options(plugins, kind, name, values)[1] for place, kind, name, values in used}
    return {f"{place}.data": chosen for place, chosen in options.items() if isinstance(chosen, ReadingOptions)}


def build_generator(recipe: Recipe, target: Target, plugins: Plugins) -> tuple[Conditioner | None, Generator | None]:
    """Build the conditioner and the generator that the recipe names, or None for each that it does not."""
    if recipe.conditioner is None:
        return None, None
    cls, options = _options(plugins, "conditioner", recipe.conditioner.name, recipe.conditioner.options)
    classes = _conditioned(recipe, target.num_classes)
    conditioner: Conditioner = _made(cls, len(classes), target.input_shape, options)
    if len(classes) < target.num_classes:
        conditioner = RequestedClasses(conditioner, classes, target.num_classes)
    if recipe.generator is None:
        return conditioner, None
    cls, options = _options(plugins, "generator", recipe.generator.name, recipe.generator.options)
    spec = contracts.spec(conditioner)
    members: list[Generator] = [_made(cls, spec, target.input_shape, options) for _ in range(recipe.generators)]
    contracts.latent_dim(members[0])
    return conditioner, members[0] if len(members) == 1 else Ensemble(members)


def _conditioned(recipe: Recipe, num_classes: int) -> Sequence[int]:
    """Return the classes that conditions distinguish: at least two, the least that a conditioner is for."""
    if recipe.labels is None or recipe.conditions == "all":
        return range(num_classes)
    others = (label for label in range(num_classes) if label not in recipe.labels)
    return recipe.labels if len(recipe.labels) > 1 else [*recipe.labels, next(others)]


def without_gradient(plugins: Plugins) -> str:
    """Return the settings that choose an inverter which needs no gradient of the target."""
    entries = plugins.registry.entries("inverter")
    return listed(setting("inverter", entry.name) for entry in entries if not entry.item.needs_gradient)


def owners(recipe: Recipe, plugins: Plugins) -> dict[tuple[str, str], str]:
    """Return the plugin of each component that the recipe names, by kind and name, and of its architecture."""
    used = [(kind, part.name) for kind, part in _parts(recipe)]
    used += [("loss", name) for name, term in recipe.losses.items() if term.weight > 0]
    used += [("architectures", recipe.target.arch.partition(":")[0])] if recipe.target.arch else []
    there = [key for key in used if plugins.registry.has(*key)]
    return {key: plugins.registry.entry(*key).owner for key in there}


def _parts(recipe: Recipe) -> list[tuple[str, Named]]:
    """Return the components that the recipe names, beside the losses, by kind."""
    named = [(kind, getattr(recipe, kind)) for kind in ("inverter", "conditioner", "generator")]
    return [(kind, part) for kind, part in named if part is not None]


def _made(cls: type[Any], *arguments: Any) -> Any:
    """Build a component; an error in its code names the component."""
    with contracts.blamed(cls):
        return cls(*arguments)


def _options(plugins: Plugins, kind: str, name: str, values: Mapping[str, Any]) -> tuple[Any, Options]:
    """Return a component's class and its validated options."""
    cls: type[Component] = plugins.component(kind, name)
    return cls, options_of(name, validated(cls.Options, values, f"the {kind} {name!r}"))
