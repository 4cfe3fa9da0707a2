"""The public names of interpkit and the modules that define them."""

from ._version import __version__ as __version__
from .api.evaluate import (
    evaluate as evaluate,
)
from .api.invert import (
    invert as invert,
)
from .api.load import (
    load_inversion as load_inversion,
)
from .attribution.evidence import (
    ClassEvidence as ClassEvidence,
)
from .attribution.evidence import (
    class_evidence as class_evidence,
)
from .attribution.evidence import (
    evidence_agreement as evidence_agreement,
)
from .attribution.explainer import (
    Explainer as Explainer,
)
from .attribution.explainer import (
    attribute as attribute,
)
from .config.recipe import (
    Preset as Preset,
)
from .config.recipe import (
    Recipe as Recipe,
)
from .config.recipe import (
    TargetOptions as TargetOptions,
)
from .errors import (
    InterpkitError as InterpkitError,
)
from .errors import (
    ModelError as ModelError,
)
from .errors import (
    PluginError as PluginError,
)
from .errors import (
    RunError as RunError,
)
from .errors import (
    UsageError as UsageError,
)
from .errors import (
    install_extra as install_extra,
)
from .evaluation.statistics import (
    wilson as wilson,
)
from .interfaces.attributions import (
    Attribution as Attribution,
)
from .interfaces.attributions import (
    AttributionContext as AttributionContext,
)
from .interfaces.components import (
    Options as Options,
)
from .interfaces.data import (
    DataOptions as DataOptions,
)
from .interfaces.generation import (
    Condition as Condition,
)
from .interfaces.generation import (
    Conditioner as Conditioner,
)
from .interfaces.generation import (
    ConditionSpec as ConditionSpec,
)
from .interfaces.generation import (
    Generator as Generator,
)
from .interfaces.inversions import (
    Draw as Draw,
)
from .interfaces.inversions import (
    Inversion as Inversion,
)
from .interfaces.inverters import (
    Inverter as Inverter,
)
from .interfaces.inverters import (
    Parts as Parts,
)
from .interfaces.inverters import (
    StoredInversion as StoredInversion,
)
from .interfaces.loaders import (
    Architectures as Architectures,
)
from .interfaces.loaders import (
    Loader as Loader,
)
from .interfaces.losses import (
    GeneratedBatch as GeneratedBatch,
)
from .interfaces.losses import (
    InversionBatch as InversionBatch,
)
from .interfaces.losses import (
    InversionLoss as InversionLoss,
)
from .interfaces.metrics import (
    Metric as Metric,
)
from .interfaces.metrics import (
    Study as Study,
)
from .interfaces.metrics import (
    TooFew as TooFew,
)
from .interfaces.samples import (
    Samples as Samples,
)
from .interfaces.sections import (
    Section as Section,
)
from .interfaces.sections import (
    Strip as Strip,
)
from .interfaces.targets import (
    Response as Response,
)
from .interfaces.targets import (
    Target as Target,
)
from .inversion.checkpoint import (
    TrainingState as TrainingState,
)
from .inversion.checkpoint import (
    restore as restore,
)
from .inversion.checkpoint import (
    snapshot as snapshot,
)
from .inversion.loop import (
    GeneratorInverter as GeneratorInverter,
)
from .inversion.objective import (
    Objective as Objective,
)
from .inversion.objective import (
    ObjectiveValue as ObjectiveValue,
)
from .inversion.objective import (
    falling as falling,
)
from .inversion.objective import (
    objective as objective,
)
from .inversion.objective import (
    set_learning_rate as set_learning_rate,
)
from .inversion.results import (
    GeneratorInversion as GeneratorInversion,
)
from .inversion.results import (
    ImageInversion as ImageInversion,
)
from .io.datasets import (
    LabelledImages as LabelledImages,
)
from .io.datasets import (
    load_data as load_data,
)
from .io.safe_load import (
    load_plain as load_plain,
)
from .plugins.architectures import (
    build_architecture as build_architecture,
)
from .plugins.architectures import (
    fill_architecture as fill_architecture,
)
from .plugins.hookspecs import (
    hookimpl as hookimpl,
)
from .plugins.loading import (
    load_target as load_target,
)
from .plugins.loading import (
    make_target as make_target,
)
from .plugins.packing import (
    pack_target as pack_target,
)
from .plugins.packing import (
    save_target as save_target,
)
from .plugins.registry import (
    Registration as Registration,
)
from .report.compare import (
    write_comparison as write_comparison,
)
from .report.run import (
    write_report as write_report,
)
from .runs.shards import (
    write_shards as write_shards,
)
from .runtime.random import (
    derive_seed as derive_seed,
)
from .runtime.random import (
    random_generator as random_generator,
)
from .runtime.recorder import (
    Recorder as Recorder,
)
from .runtime.recorder import (
    StepRecord as StepRecord,
)
from .targets.file_format import (
    ONNX_GRAPH as ONNX_GRAPH,
)
from .targets.file_format import (
    ONNX_TENSOR as ONNX_TENSOR,
)
from .targets.file_format import (
    read_target_file as read_target_file,
)
from .targets.module_target import (
    wrap as wrap,
)
