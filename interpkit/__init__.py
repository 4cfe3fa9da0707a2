"""interpkit: what does my classifier think a class looks like, and how varied is what it accepts?

    import interpkit
    target = interpkit.load_target("model.safetensors")
    inversion = interpkit.invert(target, plugins=["vecmat"], steps=300, seed=0)
    images, labels = inversion.sample(per_class=10)

Names are imported when they are first used, so that ``import interpkit`` does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from interpkit._lazy import lazy
from interpkit._version import __version__

if TYPE_CHECKING:
    from interpkit.api import invert, load_inversion
    from interpkit.attributing import ClassEvidence, Explainer, attribute, class_evidence, evidence_agreement
    from interpkit.attribution import Attribution, AttributionContext
    from interpkit.data import LabelledImages, load_data
    from interpkit.errors import InterpkitError, ModelError, PluginError, RunError, UsageError
    from interpkit.evaluation import Samples, wilson
    from interpkit.hookspecs import hookimpl
    from interpkit.interfaces import (
        Architectures,
        Condition,
        Conditioner,
        ConditionSpec,
        GeneratedBatch,
        Generator,
        InversionBatch,
        InversionLoss,
        Inverter,
        Loader,
        Options,
        Parts,
        Response,
        Target,
    )
    from interpkit.inversion import Draw, GeneratorInversion, ImageInversion, Inversion
    from interpkit.loading import build_architecture, fill_architecture, load_target, make_target
    from interpkit.measuring import evaluate
    from interpkit.metrics import Metric, Study, TooFew
    from interpkit.plain import load_plain
    from interpkit.recipe import Preset, Recipe, TargetOptions
    from interpkit.recorder import Recorder, StepRecord
    from interpkit.registry import Registration
    from interpkit.report import write_comparison, write_report
    from interpkit.seeding import derive_seed, random_generator
    from interpkit.shards import write_shards
    from interpkit.target import wrap
    from interpkit.target_file import ONNX_GRAPH, ONNX_TENSOR, pack_target, read_target_file, save_target
    from interpkit.training import falling, objective, restore, snapshot

_HOMES = {
    "api": ("invert", "load_inversion"),
    "attributing": ("ClassEvidence", "Explainer", "attribute", "class_evidence", "evidence_agreement"),
    "attribution": ("Attribution", "AttributionContext"),
    "errors": ("InterpkitError", "ModelError", "PluginError", "RunError", "UsageError"),
    "data": ("LabelledImages", "load_data"),
    "evaluation": ("Samples", "wilson"),
    "hookspecs": ("hookimpl",),
    "interfaces": (
        "Architectures",
        "Condition",
        "ConditionSpec",
        "Conditioner",
        "GeneratedBatch",
        "Generator",
        "InversionBatch",
        "InversionLoss",
        "Inverter",
        "Loader",
        "Options",
        "Parts",
        "Response",
        "Target",
    ),
    "inversion": ("Draw", "GeneratorInversion", "ImageInversion", "Inversion"),
    "loading": ("build_architecture", "fill_architecture", "load_target", "make_target"),
    "measuring": ("evaluate",),
    "metrics": ("Metric", "Study", "TooFew"),
    "plain": ("load_plain",),
    "recipe": ("Preset", "Recipe", "TargetOptions"),
    "recorder": ("Recorder", "StepRecord"),
    "registry": ("Registration",),
    "report": ("write_comparison", "write_report"),
    "seeding": ("derive_seed", "random_generator"),
    "shards": ("write_shards",),
    "target": ("wrap",),
    "target_file": ("ONNX_GRAPH", "ONNX_TENSOR", "pack_target", "read_target_file", "save_target"),
    "training": ("falling", "objective", "restore", "snapshot"),
}
__getattr__ = lazy(__name__, _HOMES)

__all__ = [
    "__version__",
    "ONNX_GRAPH",
    "ONNX_TENSOR",
    "Architectures",
    "Attribution",
    "AttributionContext",
    "ClassEvidence",
    "Condition",
    "ConditionSpec",
    "Conditioner",
    "Draw",
    "Explainer",
    "GeneratedBatch",
    "Generator",
    "GeneratorInversion",
    "ImageInversion",
    "InterpkitError",
    "Inversion",
    "InversionBatch",
    "InversionLoss",
    "Inverter",
    "LabelledImages",
    "Loader",
    "Metric",
    "ModelError",
    "Options",
    "Parts",
    "PluginError",
    "Preset",
    "Recipe",
    "Recorder",
    "Registration",
    "Response",
    "RunError",
    "Samples",
    "StepRecord",
    "Study",
    "Target",
    "TargetOptions",
    "TooFew",
    "UsageError",
    "attribute",
    "build_architecture",
    "class_evidence",
    "evaluate",
    "evidence_agreement",
    "derive_seed",
    "falling",
    "fill_architecture",
    "hookimpl",
    "invert",
    "load_data",
    "load_inversion",
    "load_plain",
    "load_target",
    "make_target",
    "objective",
    "pack_target",
    "random_generator",
    "read_target_file",
    "restore",
    "save_target",
    "snapshot",
    "wilson",
    "wrap",
    "write_comparison",
    "write_report",
    "write_shards",
]


def __dir__() -> list[str]:
    return sorted(__all__)
