"""The checks of targets, and of loaders, which make targets from files."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interpkit.config.recipe import TargetOptions
from interpkit.errors import ModelError, UsageError
from interpkit.interfaces.loaders import Loader
from interpkit.interfaces.targets import Target
from interpkit.runtime.devices import device_of
from interpkit.testing import toy_models
from interpkit.testing.checks import Broken, checks_of_kind, expect, promised
from interpkit.testing.components import expect_on, expect_untouched, random_states
from interpkit.testing.second_device import other_devices

BATCH = 3


def images_for(target: Target, count: int = BATCH) -> Tensor:
    """Return random images, then a black and a white one, on the target's device."""
    plain = torch.stack([torch.zeros(target.input_shape), torch.ones(target.input_shape)])
    return torch.cat([toy_models.images_of(target.input_shape, count), plain]).to(device_of(target))


@contextlib.contextmanager
def looking(target: Target) -> Iterator[None]:
    """Have a target frozen, and no gradients."""
    with target.frozen(), torch.no_grad():
        yield


@promised(
    "facts",
    by="target",
    promise="it says what it is: name, input_shape (C, H, W) or (D,), num_classes of 2 or more, as many "
    "class_names, and a description with the same input_shape and num_classes",
    remedy="set them in __init__; interpkit.wrap and interpkit.make_target do",
)
def facts(target: Target) -> None:
    """It states its facts."""
    for fact in ("name", "input_shape", "num_classes", "class_names", "feature_layer", "description", "sources"):
        expect(hasattr(target, fact), f"it has no {fact}")
    shape = target.input_shape
    expect(isinstance(shape, tuple) and len(shape) in (1, 3) and min(shape) >= 1, f"input_shape is {shape!r}")
    expect(isinstance(target.num_classes, int) and target.num_classes >= 2, f"num_classes is {target.num_classes!r}")
    names = len(target.class_names)
    expect(names == target.num_classes, f"{names} class_names of {target.num_classes} classes")
    expect(isinstance(target.description, TargetOptions), f"description is a {type(target.description).__name__}")
    said = (target.description.input_shape, target.description.num_classes)
    expect(said == (shape, target.num_classes), f"its description says {said}, and it {(shape, target.num_classes)}")


@promised(
    "logits",
    by="target",
    promise="forward gives finite logits (B, n) float32 of images in [0, 1], black and white ones among them",
    remedy="put the preprocessing inside, and turn what the classifier gives into logits: see interpkit.wrap",
)
def logits(target: Target) -> None:
    """It gives logits."""
    images = images_for(target)
    with looking(target):
        found = target(images)
    wanted = (len(images), target.num_classes)
    expect(isinstance(found, Tensor) and found.shape == wanted, f"{_shape(found)} in place of {wanted}")
    expect(found.dtype == torch.float32, f"logits of {found.dtype}")
    expect(found.isfinite().all(), "logits that are not finite")


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


@promised(
    "responds",
    by="target",
    promise="respond gives the logits of forward, and float features (B, ...) of the default layer and of "
    "those named, NAME and NAME:in, as `layers` lists them",
    remedy="hook the layers, remove the hooks in a finally, and name the default one feature_layer",
)
def responds(target: Target) -> None:
    """It responds."""
    images = images_for(target)
    with looking(target):
        plain, response = target(images), target.respond(images)
        expect(torch.allclose(plain, response.logits, rtol=1e-4, atol=1e-5), "other logits than forward's")
        expect(target.feature_layer in response.features, f"no features of {target.feature_layer!r}, the default layer")
        expect(len(response.penultimate) == len(images), f"features {tuple(response.penultimate.shape)}")
        for layer in list(target.layers())[-6:]:
            for name in (layer, f"{layer}:in"):
                try:
                    features = target.respond(images, [name]).features
                except UsageError:  # it takes no part in the pass
                    continue
                expect(name in features, f"no features of {name!r}, which was asked for")


@promised(
    "unknown-layer",
    by="target",
    promise="a layer that it does not have is refused by a UsageError",
    remedy="raise interpkit.UsageError, with the names that there are",
)
def unknown_layer(target: Target) -> None:
    """Unknown layers are refused."""
    with looking(target):
        try:
            target.respond(images_for(target), ["no.such.layer"])
        except UsageError:
            return
    raise Broken("'no.such.layer' is taken")


@promised(
    "gradients",
    by="target",
    promise="the logits have a finite gradient on the images, and not zero for all of them",
    remedy="use no rounding, argmax, numpy or detach() between image and logits",
)
def gradients(target: Target) -> None:
    """Gradients reach the images."""
    images = images_for(target).requires_grad_()
    with target.frozen():
        found = target(images)
        expect(found.requires_grad, "the logits have no gradient")
        (found * torch.linspace(-1, 1, found.shape[1], device=found.device)).sum().backward()
    expect(images.grad is not None and images.grad.isfinite().all(), "a gradient is missing or not finite")
    assert images.grad is not None
    expect(images.grad.any(), "the gradient is zero for random images, black and white")


@promised(
    "image-alone",
    by="target",
    promise="frozen, it gives an image the same logits alone as in a batch, and time after time",
    remedy="use running statistics, no batch's own; leave dropout and other noise off in eval mode",
)
def image_alone(target: Target) -> None:
    """Other images of the batch do not matter."""
    images = images_for(target)
    with looking(target):
        together, again = target(images), target(images)
        alone = torch.cat([target(image) for image in images.split(1)])
    scale = 1 + together.abs().max().item()
    for what, other in (("alone", alone), ("a second time", again)):
        apart = (together - other).abs().max().item()
        expect(apart < 1e-3 * scale, f"a logit differs by {apart:.3g} {what}")


@promised(
    "frozen",
    by="target",
    promise="within target.frozen() all is in eval mode and nothing takes a gradient; after it, also after an "
    "exception, all is as it was",
    remedy="leave `frozen` as interpkit.Target has it, and keep the module as a submodule",
)
def frozen(target: Target) -> None:
    """It can be frozen."""
    with _odd(target):
        before = toy_models.state_of(target)
        with contextlib.suppress(KeyError), target.frozen():
            modes = [name for name, part in target.named_modules() if part.training]
            expect(not modes, f"in train mode within: {', '.join(modes[:3]) or 'the target'}")
            taking = [name for name, p in target.named_parameters() if p.requires_grad]
            expect(not taking, f"taking a gradient within: {', '.join(taking[:3])}")
            raise KeyError
        changed = toy_models.changes(before, toy_models.state_of(target))
        expect(not changed, f"changed after it: {changed}")


@contextlib.contextmanager
def _odd(target: Target) -> Iterator[None]:
    """Have half the modules in train mode, and a parameter that takes no gradient."""
    modes = [(part, part.training) for part in target.modules()]
    taking = [(p, p.requires_grad) for p in target.parameters()]
    try:
        for place, (part, _) in enumerate(modes):
            part.training = place % 2 == 0
        for place, (parameter, _) in enumerate(taking):
            if parameter.is_floating_point():
                parameter.requires_grad_(place % 2 == 0)
        yield
    finally:
        for part, training in modes:
            part.training = training
        for parameter, requires_grad in taking:
            parameter.requires_grad_(requires_grad)


@promised(
    "untouched",
    by="target",
    promise="a forward pass leaves the classifier unchanged: parameters, buffers, modes, hooks, requires_grad; and "
    "every global generator of random numbers",
    remedy="remove hooks in a finally, and keep nothing of a pass",
)
def untouched(target: Target) -> None:
    """A forward pass changes nothing."""
    images = images_for(target)
    with looking(target):
        before, random = toy_models.state_of(target), random_states()
        target(images)
        target.respond(images)
        with contextlib.suppress(UsageError):
            target.respond(images, ["no.such.layer"])
        changed = toy_models.changes(before, toy_models.state_of(target))
        expect(not changed, f"changed: {changed}")
        expect_untouched(random)


@promised(
    "device",
    by="target",
    promise="it computes on the device that its parameters and buffers are on",
    remedy="make new tensors with device=images.device, and register tensors of its own by register_buffer",
)
def device(target: Target) -> None:
    """It computes on its device."""
    if any(isinstance(part, torch.jit.ScriptModule) for part in target.modules()):
        return  # it knows the devices of PyTorch alone, and is moved by PyTorch
    images = images_for(target).cpu()
    for place in other_devices():
        with place as other:
            there = copy.deepcopy(target).cpu().to(other)
            for part in there.modules():
                part.training = False
            expect_on(other, **{"what forward gives": there(images.to(other))})


@promised(
    "bf16",
    by="target",
    promise="under bf16 autocast its logits and features are float32 all the same, near those without it",
    remedy="turn what the classifier gives into float32: .float()",
)
def bf16(target: Target) -> None:
    """It runs under autocast."""
    images = images_for(target)
    with looking(target):
        usual = target(images)
        with torch.autocast(images.device.type, torch.bfloat16):
            found, response = target(images), target.respond(images)
    expect(found.dtype == torch.float32, f"logits of {found.dtype}")
    kinds = {f.dtype for f in response.features.values() if f.is_floating_point()}
    expect(kinds <= {torch.float32}, f"features of {kinds}")
    apart = (found - usual).abs().max().item()
    expect(apart <= 0.1 * (1 + usual.abs().max().item()), f"a logit differs by {apart:.3g} under bf16 autocast")


@promised(
    "converges",
    by="target",
    promise=f"it can be inverted: in {toy_models.STEPS} steps of an inversion the cross-entropy of the class asked "
    "for falls",
    remedy="see that its gradient points the right way: compare it with finite differences",
)
def converges(target: Target) -> None:
    """An inversion of it converges."""
    history = toy_models.invert(target).history
    first, last = history[0].loss, history[-1].loss
    expect(last < first, f"cross-entropy went from {first:.4g} to {last:.4g}")


# ---------------------------------------------------------------------------------------------- loaders


@contextlib.contextmanager
def example_of(component: Any) -> Iterator[tuple[Loader, Path, TargetOptions]]:
    """Write a loader's example, and yield the loader, the file, and what a user must say of it.

    Raises:
        Broken: it has none.
    """
    loader: Loader = component() if isinstance(component, type) else component
    with tempfile.TemporaryDirectory(prefix="interpkit-") as folder:
        try:
            made = loader.example(Path(folder))
        except NotImplementedError as error:
            raise Broken("it has no `example`, so there is no file to try it on") from error
        path, options = made if isinstance(made, tuple) else (made, TargetOptions())
        expect(isinstance(path, Path) and path.exists(), f"its example is {path!r}, which is not there")
        yield loader, path, options


@promised(
    "has-help",
    by="loader",
    promise="its `help` says which files it reads",
    remedy="write help = '.xyz, with the input shape' in the class",
)
def has_help(component: Any) -> None:
    """It has a help text."""
    expect(component.help.strip(), "it is empty")


@promised(
    "accepts",
    by="loader",
    promise="it accepts a file or folder of its own format, and nothing else; it never raises",
    remedy="look at the ending and at the first bytes; return False for what is missing or of another kind",
)
def accepts(component: Any) -> None:
    """It accepts its own alone."""
    with example_of(component) as (loader, path, _):
        expect(loader.accepts(path) is True, f"accepts({path.name!r}) is {loader.accepts(path)!r}")
        with tempfile.TemporaryDirectory(prefix="interpkit-") as other:
            (Path(other) / "notes.txt").write_text("no classifier")
            (Path(other) / "empty").mkdir()
            for wrong in ("notes.txt", "empty", "missing" + path.suffix):
                expect(loader.accepts(Path(other) / wrong) is False, f"it accepts {wrong!r}")


@promised(
    "loads",
    by="loader",
    promise="it makes a target of a file that it accepts, and the same one each time",
    remedy="return interpkit.make_target(module, ...), its weights read from the file and its buffers too",
)
def loads(component: Any) -> None:
    """It loads."""
    with example_of(component) as (loader, path, options):
        one, other = loader.load(path, options), loader.load(path, options)
        expect(isinstance(one, Target), f"load gives {type(one).__name__}")
        images = images_for(one)
        with looking(one), looking(other):
            expect(torch.allclose(one(images), other(images)), "two loads of one file give other logits")


@promised(
    "target-kept",
    by="loader",
    promise="the target that it makes satisfies the contract of a target",
    remedy="let interpkit.make_target or interpkit.wrap make the target; else see check_target",
)
def target_kept(component: Any) -> None:
    """The target satisfies its contract."""
    with example_of(component) as (loader, path, options):
        target = loader.load(path, options)
        if not isinstance(target, Target):
            return  # the check loads reports it
        for check in checks_of_kind("target"):
            outcome = check.outcome(target)
            expect(outcome.status == "kept", f"{check.name}: {check.promise}; seen: {outcome.detail}")


@promised(
    "user-wins",
    by="loader",
    promise="what the user says of a classifier wins over what its file says",
    remedy="lay options.said() over the file's own facts before the target is made",
)
def user_wins(component: Any) -> None:
    """The user wins."""
    with example_of(component) as (loader, path, options):
        count = loader.load(path, options).num_classes
        names = [f"class number {label}" for label in range(count)]
        said = options.model_copy(update={"class_names": names})
        found = loader.load(path, said).class_names
        expect(list(found) == names, f"class names {found[:2]} in place of {names[:2]}, as the user says")


@promised(
    "refuses-torn",
    by="loader",
    promise="a file that is torn or empty is refused by a ModelError",
    remedy="catch what the format's own library raises, and raise interpkit.ModelError from it, with what to "
    "do instead",
)
def refuses_torn(component: Any) -> None:
    """Torn files are refused."""
    with example_of(component) as (loader, path, options):
        file = max(path.rglob("*") if path.is_dir() else [path], key=lambda part: part.stat().st_size)
        content = file.read_bytes()
        for what, left in (("torn", content[: len(content) // 2]), ("empty", b"")):
            file.write_bytes(left)
            _refused(loader, path, options, what)


def _refused(loader: Loader, path: Path, options: TargetOptions, what: str) -> None:
    try:
        loader.load(path, options)
    except ModelError:
        return
    except Exception as error:
        raise Broken(f"a file that is {what}: {type(error).__name__}: {error}") from error
    raise Broken(f"a file that is {what} is loaded")
