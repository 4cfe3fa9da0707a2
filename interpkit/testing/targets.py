"""The checks of targets, and of loaders, which make targets from files."""

from __future__ import annotations

import contextlib
import copy
import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from interpkit.config.recipe import TargetOptions
from interpkit.errors import ModelError, UsageError
from interpkit.interfaces import contracts
from interpkit.interfaces.loaders import Loader
from interpkit.interfaces.targets import Target
from interpkit.runtime.devices import device_of
from interpkit.testing import toy_models
from interpkit.testing.checks import Broken, checks_of_kind, expect, promised
from interpkit.testing.components import expect_no_draws, expect_on, expect_refusal, expect_unchanged
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


@promised("target", "set them in __init__; interpkit.wrap and interpkit.make_target do")
def facts(target: Target) -> None:
    """It says what it is: name, input_shape (C, H, W) or (D,), num_classes of 2 or more, and as many class_names.

    Its description has the same input_shape and num_classes.
    """
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


@promised("target", "put the preprocessing inside, and turn what the classifier gives into logits: see interpkit.wrap")
def logits(target: Target) -> None:
    """It gives finite logits (B, n) float32 of images in [0, 1], black and white ones among them."""
    images = images_for(target)
    with looking(target):
        found = target(images)
    expect(isinstance(found, Tensor), f"a {type(found).__name__} instead of logits")
    wanted = (len(images), target.num_classes)
    expect(found.shape == wanted, f"{tuple(found.shape)} in place of {wanted}")
    expect(found.dtype == torch.float32, f"logits of {found.dtype}")
    expect(found.isfinite().all(), "logits that are not finite")


@promised(
    "target", "leave them as interpkit.Target has them, and set multi_label where each class is a yes or no of its own"
)
def scores(target: Target) -> None:
    """Its probabilities, accepts, predictions, cross_entropy and divergence agree on what logits mean.

    Probabilities sum to 1, and the largest decides; if it is `multi_label`, each is by itself, and above 1/2 decides.
    """
    labels = torch.arange(BATCH * target.num_classes, device=device_of(target)) % target.num_classes
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(len(labels), target.num_classes, generator=generator).to(labels.device)
    p, same = target.probabilities(logits), functools.partial(torch.allclose, rtol=1e-4, atol=1e-5)
    expect(p.shape == logits.shape and bool(((p >= 0) & (p <= 1)).all()), "probabilities that are not (B, n) in [0, 1]")
    expect(target.multi_label or same(p.sum(1), p.new_ones(())), "probabilities that do not sum to 1")
    alone = target.probabilities(logits + 9 * F.one_hot(labels, target.num_classes)) - p
    others = float(alone.scatter(1, labels[:, None], 0).abs().max())
    expect(
        not target.multi_label or others < 1e-5, "a label's probability depends on other labels, despite multi_label"
    )
    own = p.gather(1, labels[:, None])[:, 0]
    accepted, said = target.accepts(logits, labels), target.predictions(logits, labels)
    wanted = own > 0.5 if target.multi_label else p.argmax(1) == labels
    expect(bool((accepted == wanted).all()), "it accepts other classes than its probabilities do")
    expect(bool(((said == labels) == accepted).all()), "its predictions are other classes than it accepts")
    expect(same(target.cross_entropy(logits, labels), -own.log()), "cross_entropy is not -log p")
    apart = target.divergence(logits, p)
    expect(same(apart, torch.zeros_like(own)), "the divergence from its own probabilities is not 0")
    expect(bool((target.divergence(logits, p.roll(1, 0)) >= -1e-5).all()), "a divergence below 0")


@promised("target", "hook the layers, remove the hooks in a finally, and name the default one feature_layer")
def responds(target: Target) -> None:
    """It responds with the logits of forward, and with features (B, ...) of the default layer and of those named.

    Layers are named as `layers` lists them, NAME and NAME:in.
    """
    images = images_for(target)
    with looking(target):
        plain, response = target(images), target.respond(images)
        expect(torch.allclose(plain, response.logits, rtol=1e-4, atol=1e-5), "other logits than forward's")
        expect(target.feature_layer in response.features, f"no features of {target.feature_layer!r}, the default layer")
        expect(len(response.penultimate) == len(images), f"features {tuple(response.penultimate.shape)}")
        for layer in list(target.layers())[-6:]:
            for name in (layer, f"{layer}:in"):
                with contextlib.suppress(UsageError):  # it takes no part in the pass
                    features = target.respond(images, [name]).features
                    expect(name in features, f"no features of {name!r}, which was asked for")


@promised("target", "raise interpkit.UsageError, with the names that there are")
def unknown_layer(target: Target) -> None:
    """A layer that it does not have is refused by a UsageError."""
    with looking(target), expect_refusal(UsageError, "'no.such.layer' is taken"):
        target.respond(images_for(target), ["no.such.layer"])


@promised("target", "use no rounding, argmax, numpy or detach() between image and logits")
def gradients(target: Target) -> None:
    """The logits have a finite gradient on the images, not zero for all of them, unless `no_gradient` says why not."""
    if target.no_gradient:
        return
    images = images_for(target).requires_grad_()
    with target.frozen():
        found = target(images)
        expect(found.requires_grad, "the logits have no gradient")
        (found * torch.linspace(-1, 1, found.shape[1], device=found.device)).sum().backward()
    slope = images.grad
    expect(slope is not None and slope.isfinite().all(), "a gradient is missing or not finite")
    expect(slope is not None and slope.any(), "the gradient is zero for random images, black and white")


@promised("target", "use running statistics, no batch's own; leave dropout and other noise off in eval mode")
def image_alone(target: Target) -> None:
    """Frozen, it gives an image the same logits alone as in a batch, and time after time."""
    images = images_for(target)
    with looking(target):
        together, again = target(images), target(images)
        alone = torch.cat([target(image) for image in images.split(1)])
    scale = 1 + together.abs().max().item()
    for what, other in (("alone", alone), ("a second time", again)):
        apart = (together - other).abs().max().item()
        expect(apart < 1e-3 * scale, f"a logit differs by {apart:.3g} {what}")


@promised("target", "leave `frozen` as interpkit.Target has it, and keep the module as a submodule")
def frozen(target: Target) -> None:
    """Within target.frozen() all is in eval mode and nothing takes a gradient; after it all is as it was.

    So it is after an exception as well.
    """
    modes = [(part, part.training) for part in target.modules()]
    taking = [(p, p.requires_grad) for p in target.parameters() if p.is_floating_point()]
    try:
        for place, (part, _) in enumerate(modes):
            part.training = place % 2 == 0
        for place, (parameter, _) in enumerate(taking):
            parameter.requires_grad_(place % 2 == 0)
        with expect_unchanged(target, "changed after it"), contextlib.suppress(KeyError), target.frozen():
            training = [name for name, part in target.named_modules() if part.training]
            expect(not training, f"in train mode within: {', '.join(training[:3]) or 'the target'}")
            named = [name for name, parameter in target.named_parameters() if parameter.requires_grad]
            expect(not named, f"taking a gradient within: {', '.join(named[:3])}")
            raise KeyError
    finally:
        for part, mode in modes:
            part.training = mode
        for parameter, requires_grad in taking:
            parameter.requires_grad_(requires_grad)


@promised("target", "leave `differentiable` as interpkit.Target has it, and the weights as nn.Parameters")
def differentiable(target: Target) -> None:
    """Within target.differentiable() its weights get finite gradients; after it a frozen target is frozen again."""
    images = images_for(target)
    with target.frozen(), expect_unchanged(target, "changed after it"), target.differentiable() as weights:
        found = target(images)
        if weights and found.requires_grad:
            slopes = torch.autograd.grad(found.sum(), weights, allow_unused=True)
            finite = all(slope is None or slope.isfinite().all() for slope in slopes)
            expect(finite, "a gradient of a weight is not finite")


@promised("target", "remove hooks in a finally, and keep nothing of a pass")
def untouched(target: Target) -> None:
    """A forward pass leaves the classifier unchanged, and every global generator of random numbers.

    Unchanged are parameters, buffers, modes, hooks and requires_grad.
    """
    images = images_for(target)
    with looking(target), expect_unchanged(target), expect_no_draws():
        target(images)
        target.respond(images)
        with contextlib.suppress(UsageError):
            target.respond(images, ["no.such.layer"])


@promised("target", "make new tensors with device=images.device, and register tensors of its own by register_buffer")
def device(target: Target) -> None:
    """It computes on the device that its parameters and buffers are on."""
    if any(isinstance(part, torch.jit.ScriptModule) for part in target.modules()):
        return  # it knows the devices of PyTorch alone, and is moved by PyTorch
    images = images_for(target).cpu()
    for place in other_devices():
        with place as other:
            there = copy.deepcopy(target).cpu().to(other)
            for part in there.modules():
                part.training = False
            expect_on(other, logits=there(images.to(other)))


@promised("target", "turn what the classifier gives into float32: .float()")
def bf16(target: Target) -> None:
    """Under bf16 autocast its logits and features are float32 all the same, near those without it."""
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


@promised("target", "see that its gradient points the right way: compare it with finite differences")
def converges(target: Target) -> None:
    """It can be inverted: in a short inversion the cross-entropy of the class asked for falls.

    One that says by `no_gradient` why it has no gradient is not tried.
    """
    if target.no_gradient:
        return
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


@promised("loader", "write help = '.xyz, with the input shape' in the class")
def has_help(component: Any) -> None:
    """Its `help` says which files it reads."""
    expect(component.help.strip(), "it is empty")


@promised("loader", "look at the ending and at the first bytes; return False for what is missing or of another kind")
def accepts(component: Any) -> None:
    """It accepts a file or folder of its own format, and nothing else; it never raises."""
    with example_of(component) as (loader, path, _):
        expect(loader.accepts(path) is True, f"accepts({path.name!r}) is {loader.accepts(path)!r}")
        with tempfile.TemporaryDirectory(prefix="interpkit-") as other:
            (Path(other) / "notes.txt").write_text("no classifier")
            (Path(other) / "empty").mkdir()
            for wrong in ("notes.txt", "empty", "missing" + path.suffix):
                expect(loader.accepts(Path(other) / wrong) is False, f"it accepts {wrong!r}")


@promised("loader", "return interpkit.make_target(module, ...), its weights read from the file and its buffers too")
def loads(component: Any) -> None:
    """It makes a target of a file that it accepts, and the same one each time."""
    with example_of(component) as (loader, path, options):
        one, other = (contracts.loaded(loader, path, options) for _ in range(2))
        images = images_for(one)
        with looking(one), looking(other):
            expect(torch.allclose(one(images), other(images)), "two loads of one file give other logits")


@promised("loader", "let interpkit.make_target or interpkit.wrap make the target; else see check_target")
def target_kept(component: Any) -> None:
    """The target that it makes satisfies the contract of a target."""
    with example_of(component) as (loader, path, options):
        target = loader.load(path, options)
        if not isinstance(target, Target):
            return  # the check loads reports it
        for check in checks_of_kind("target"):
            outcome = check.outcome(target)
            expect(outcome.status == "kept", f"{check.name}: {check.promise}; seen: {outcome.detail}")


@promised("loader", "lay options.said() over the file's own facts before the target is made")
def user_wins(component: Any) -> None:
    """What the user says of a classifier wins over what its file says."""
    with example_of(component) as (loader, path, options):
        usual = loader.load(path, options)
        channels = (usual.description.input_shape or usual.input_shape)[0]
        said = {
            "class_names": [f"class number {label}" for label in range(usual.num_classes)],
            "mean": [0.3] * channels,
            "std": [0.7] * channels,
            "input_range": (0.0, 2.0),
            "family": "said",
        }
        target = loader.load(path, options.model_copy(update=said))
        found = {**dict(target.description), "class_names": list(target.class_names)}
        lost = [
            f"{fact} {found[fact]!r:.60} in place of {said[fact]!r:.60}" for fact in said if found[fact] != said[fact]
        ]
        expect(not lost, f"{', '.join(lost)}, as the user says")


@promised("loader", "catch what the format's library raises, and raise interpkit.ModelError with what to do")
def refuses_torn(component: Any) -> None:
    """A file that is torn or empty is refused by a ModelError."""
    with example_of(component) as (loader, path, options):
        files = filter(Path.is_file, path.rglob("*")) if path.is_dir() else [path]
        file = max(files, key=lambda part: part.stat().st_size)
        content = file.read_bytes()
        for what, left in (("torn", content[: len(content) // 2]), ("empty", b"")):
            file.write_bytes(left)
            with expect_refusal(ModelError, f"a file that is {what} is loaded"):
                loader.load(path, options)
