"""Write a classifier into a self-describing file."""

from __future__ import annotations

import copy
import importlib.util
import io
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional

from interpkit.config.recipe import ClassifierFacts, TargetOptions
from interpkit.errors import ModelError, UsageError, first_line, install_extra, setting
from interpkit.interfaces.targets import Target
from interpkit.runtime.autograd import with_autograd
from interpkit.runtime.random import global_seed
from interpkit.targets.file_format import ONNX_GRAPH, ONNX_TENSOR, target_path, write_target_file
from interpkit.targets.units import UnitTarget

OPSET = 20
"""The oldest with an operator for `torch.nn.functional.affine_grid`, and the newest of torch's older exporter."""

DEPENDS = (
    "An `if`, a loop or an index in its forward that depends on the images (such as the choice of an expert), or a "
    "random number, does that: compute every branch and use torch.where, or keep the classifier in its own file."
)


@with_autograd
def save_target(
    module: nn.Module,
    path: str | Path,
    *,
    architecture: str,
    input_shape: Sequence[int],
    arch_args: Mapping[str, Any] | None = None,
    **facts: Unpack[ClassifierFacts],
) -> Path:
    """Write a classifier as one self-describing file that ``interpkit invert`` reads without flags.

    Args:
        module: the trained classifier, built from ``architecture`` with ``arch_args``.
        path: ends in .safetensors.
        architecture: FAMILY:NAME of a registered architecture, e.g. ``torchvision:resnet18``.
        input_shape: as in `wrap`.
        arch_args: JSON values.
        facts: any others that `wrap` accepts: ``mean``, ``std``, ``input_range``, ``class_names``, ``layout``, ...

    Raises:
        UsageError: the architecture is not registered, its tensors differ from the module's, or with the same tensors
            it returns other logits.
        ModelError: the module does not classify such images.

    Example:
        >>> from interpkit import build_architecture, save_target
        >>> sizes = {"input_shape": [1, 12, 12], "num_classes": 3, "widths": [4], "hidden": 8}
        >>> net = build_architecture("interpkit:cnn", sizes)  # train it
        >>> save_target(
        ...     net, "net.safetensors", architecture="interpkit:cnn", arch_args=sizes, input_shape=(1, 12, 12), mean=0.1
        ... ).name
        'net.safetensors'
    """
    from interpkit.plugins.architectures import build_architecture, fill_architecture, mismatch
    from interpkit.targets.wrapping import wrap

    target_path(path)
    target = wrap(module, input_shape, **facts)
    arguments = dict(arch_args or {})
    try:
        expected = build_architecture(architecture, arguments, meta=True).state_dict()
    except ModelError as error:
        raise UsageError(str(error)) from error
    difference = mismatch(expected, module.state_dict())
    if difference:
        raise UsageError(f"{architecture} with {arguments} does not match the module: {difference}")
    with global_seed(0, torch.device("cpu")):  # building draws weights, as in `load`
        rebuilt, _ = fill_architecture(architecture, arguments, module.state_dict())
    if "at random" not in target.sources.get("batch", ""):
        _refuse_other_logits(target, rebuilt, f"{architecture} with {arguments}")
    named = {"arch": architecture, "arch_args": arguments}
    return write_target_file(path, dict(module.state_dict()), target.description.model_copy(update=named))


@with_autograd
def pack_target(target: Target, path: str | Path) -> Path:
    """Write a loaded target as one self-describing file, whatever it was loaded from.

    A target of a registered architecture is written as its weights. Anything else (ONNX, the user's own code,
    TorchScript, an exported program) is written as an ONNX graph from images in [0, 1] to logits, which requires the
    extra ``onnx``. A graph is data, so loading the file runs no code from it.

    Args:
        target: from `load_target`.
        path: ends in .safetensors.

    Raises:
        ModelError: it cannot be exported, or the graph returns something else.

    Example:
        >>> import torch
        >>> from interpkit import build_architecture, load_target, pack_target
        >>> sizes = {"input_shape": [1, 12, 12], "num_classes": 3, "widths": [4], "hidden": 8}
        >>> torch.save(build_architecture("interpkit:cnn", sizes).state_dict(), "net.pt")
        >>> target = load_target("net.pt", arch="interpkit:cnn", arch_args=sizes, input_shape=(1, 12, 12))
        >>> packed = pack_target(target, "net.safetensors")
        >>> load_target(packed).description.arch  # needs no options
        'interpkit:cnn'
    """
    target_path(path)
    facts = target.description
    if isinstance(target, UnitTarget):
        raise UsageError(
            f"{target.name} cannot be packed with units for its classes: leave out "
            f"{setting('unit', 'LAYER:CHANNEL')}, and name them where you use the packed file."
        )
    if facts.arch is not None and not facts.runs_code and facts.arch != ONNX_GRAPH:
        return write_target_file(path, _weights(target), facts)
    if "at random" in target.sources.get("batch", ""):
        raise ModelError(
            f"{target.name} cannot be packed: it draws at random in eval mode, so no graph returns the same. Turn off "
            f"what draws (dropout that ignores eval mode, noise), or keep the classifier in its own file."
        )
    if importlib.util.find_spec("onnx") is None:
        raise ModelError(f"packing this classifier requires the package onnx: {install_extra('onnx')}.")
    shape = facts.input_shape or target.input_shape
    output = "log_probs" if facts.output in ("probs", "log_probs", "neg_log_probs") else "logits"
    outside = TargetOptions(  # the graph does everything else
        arch=ONNX_GRAPH,
        family=target.family or None,
        input_shape=shape,
        num_classes=target.num_classes,
        class_names=target.class_names,
        mean=[0.0] * shape[0],
        std=[1.0] * shape[0],
        input_range=_units(target),
        crop_pct=facts.crop_pct,
        output="sigmoid_logits" if target.multi_label else output,
    )
    exported = target
    if any(weight.dtype == torch.bfloat16 for weight in target.parameters()):  # which onnxruntime does not compute with
        exported = copy.deepcopy(target).float()
    # What reads the number of images as a constant, such as x.view(len(x), -1), works in a graph of one image alone.
    batches = (1,) if getattr(target, "one_by_one", False) else (2,) if "batch" in target.sources else (2, 1)
    for images in batches:
        graph = torch.frombuffer(bytearray(export_graph(exported, images)), dtype=torch.uint8)
        try:
            with tempfile.TemporaryDirectory() as folder:
                _check_same(target, write_target_file(Path(folder, Path(path).name), {ONNX_TENSOR: graph}, outside))
            break
        except ModelError:
            if images == batches[-1]:
                raise
    return write_target_file(path, {ONNX_TENSOR: graph}, outside)


def _check_same(target: Target, packed: Path) -> None:
    """Check that a packed target returns what the target does: a graph has no `if` of Python, and draws otherwise.

    Raises:
        ModelError: it does not, or cannot be read.
    """
    from interpkit.plugins.loading import load

    try:
        graph = load(packed, TargetOptions())
    except ModelError as error:
        reason = str(error).replace(str(packed), "its graph")
        if failed := re.search(r" fails on an input of shape .*?\): (.*?)\.( Is \S+ right\?)?$", reason):
            reason = f"its graph fails on images other than those that it was made with: {failed[1]}. {DEPENDS}"
        raise ModelError(f"{target.name} cannot be packed: {reason}") from error
    rng = torch.Generator().manual_seed(0)
    noise = torch.rand(3, *target.input_shape, generator=rng)
    flat = torch.tensor([0.0, 0.5, 1.0]).view(3, *(1 for _ in target.input_shape)).expand_as(noise)
    images = torch.cat([flat, noise])
    # Normalized activations of a flat image may be nothing but rounding, in the classifier itself as well.
    nudged = images + 1e-6 * torch.randn(images.shape, generator=rng)

    def probabilities(classifier: Target, images: Tensor) -> Tensor:
        return torch.cat([classifier.probabilities(classifier(image)) for image in images.split(1)])

    with target.frozen("cpu"), graph.frozen(), torch.no_grad():
        ours, rounded, theirs = (probabilities(*each) for each in ((target, images), (target, nudged), (graph, images)))
    rounding = (ours - rounded).abs().amax(1, keepdim=True)
    apart = float(((ours - theirs).abs() - rounding).max())
    if not apart <= 1e-4 + 0.1 * float(ours.std(0).max()):
        raise ModelError(
            f"{target.name} cannot be packed: the probabilities of its graph are up to {apart:.2g} apart from its own. "
            f"{DEPENDS}"
        )


def _refuse_other_logits(target: Target, rebuilt: nn.Module, built: str) -> None:
    """Check that a target returns the same logits with its module replaced, in place, by one built as the file says.

    Raises:
        UsageError: it does not.
    """
    target = target.target if isinstance(target, UnitTarget) else target
    images = torch.rand(4, *target.input_shape, generator=torch.Generator().manual_seed(0))
    logits = []
    for module in (target.module, rebuilt):
        target.module = module
        with target.frozen("cpu"), torch.no_grad():
            logits.append(target(images))
    apart = float((logits[1] - logits[0]).abs().max())
    if apart > 1e-3 * float(logits[0].abs().max()):
        raise UsageError(
            f"{built} fits the module's weights, but its logits are up to {apart:.2g} apart from the module's. State "
            f"everything that the module was built with in arch_args, such as act_layer or transform_input. If the "
            f"module was changed after it was built, use pack_target(wrap(module, ...), PATH)."
        )


def _weights(target: Target) -> dict[str, Tensor]:
    module = target.module
    assert isinstance(module, nn.Module)
    return dict(module.state_dict())


def _units(target: Target) -> Any:
    """Return the input range that a packed graph states: of vectors their own, so that tables are read as before."""
    return target.description.input_range or (0.0, 1.0) if len(target.input_shape) == 1 else (0.0, 1.0)


class _Opaque(nn.Module):
    """Takes inputs in a target's units, and hides it from the exporter, which would call methods that are refused."""

    def __init__(self, target: Target, hidden: bool = True) -> None:
        super().__init__()
        self._target = (target,)
        if not hidden:
            self.target = target  # as tracing wants it
        ranges = TargetOptions(input_range=_units(target)).ranges
        axes = [1] * (len(target.description.input_shape or target.input_shape) - 1)
        self._lo, self._hi = (torch.tensor(ends).view(-1, *axes) for ends in zip(*ranges, strict=True))

    def forward(self, inputs: Tensor) -> Tensor:
        if (self._lo != 0).any() or (self._hi != 1).any():
            inputs = (inputs - self._lo) / (self._hi - self._lo)
        return self._target[0](inputs)  # type: ignore[no-any-return]


@contextmanager
def _exportable() -> Iterator[None]:
    """For a block, compute by operators that ONNX has, and let the exporter not print a graph on failure."""
    fast, log = torch.backends.mha.get_fastpath_enabled(), torch._C._jit_onnx_log
    pool = functional.adaptive_avg_pool2d
    torch.backends.mha.set_fastpath_enabled(False)
    torch._C._jit_onnx_log = lambda *_: None
    functional.adaptive_avg_pool2d = _adaptive_pool  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch._C._jit_onnx_log = log
        functional.adaptive_avg_pool2d = pool


def _adaptive_pool(images: Tensor, output_size: Any) -> Tensor:
    """Return `torch.nn.functional.adaptive_avg_pool2d` as two matrix products, which ONNX has for every size."""
    wanted = tuple(output_size) if isinstance(output_size, Sequence) else (output_size, output_size)
    if wanted == (1, 1):
        return images.mean((-2, -1), keepdim=True)  # so that the graph goes on accepting images of any size
    rows, columns = (
        _means(int(have), int(have if size is None else size), images)
        for have, size in zip(images.shape[-2:], wanted, strict=True)
    )
    return rows @ images @ columns.T


def _means(have: int, wanted: int, like: Tensor) -> Tensor:
    """Return the matrix (wanted, have) that averages the numbers from floor(i have / wanted) to ceil((i + 1) ...)."""
    parts = [range(i * have // wanted, -(-(i + 1) * have // wanted)) for i in range(wanted)]
    weights = [[1 / len(part) if j in part else 0.0 for j in range(have)] for part in parts]
    return torch.tensor(weights, dtype=like.dtype, device=like.device)


def export_graph(target: Target, images: int = 2) -> bytes:
    """Return a target as an ONNX graph from images in [0, 1], or others in their own units, (B, ...), to logits (B, n).

    Args:
        target: the classifier.
        images: B of the example that it is made with; a graph made with one image accepts one at a time.

    Raises:
        ModelError: ONNX has no operation for a part of it.
    """
    buffer = io.BytesIO()
    shape = target.description.input_shape or target.input_shape
    example = torch.rand(images, *shape, generator=torch.Generator().manual_seed(0))
    try:
        with warnings.catch_warnings(), _exportable(), target.frozen(), torch.no_grad():
            warnings.simplefilter("ignore")  # it is deprecated, but the newer one requires another package
            scripted = any(isinstance(module, torch.jit.ScriptModule) for module in target.modules())
            unit = _Opaque(target, hidden=not scripted)
            torch.onnx.export(
                torch.jit.trace(unit, example, check_trace=False) if scripted else unit,
                (example,),
                buffer,  # type: ignore[arg-type]  # a legacy exporter writes to a file object as well
                dynamo=False,
                opset_version=OPSET,
                training=torch.onnx.TrainingMode.PRESERVE,  # in eval mode it merges batch norms into convolutions
                do_constant_folding=False,  # likewise
                input_names=["images"],
                output_names=["logits"],
                dynamic_axes=None if images == 1 else {"images": {0: "batch"}, "logits": {0: "batch"}},
            )
    except Exception as error:  # the exporter's own kinds
        if "2GiB" in str(error):
            raise ModelError(
                f"{target.name} cannot be packed: its graph is larger than the 2 GiB that ONNX allows. Keep it as the "
                f"weights of its architecture."
            ) from error
        part = re.search(r"Occurred when translating (\S+)\)", str(error))
        where = f" (at {part[1]})" if part else ""
        raise ModelError(
            f"{target.name} cannot be packed: ONNX cannot express it{where}: "
            f"{first_line(error).partition('  [Caused by')[0][:300]}. Keep the classifier in its own file."
        ) from error
    return buffer.getvalue()
