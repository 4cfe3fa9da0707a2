"""The house: CONTRIBUTING.md maps it as it stands, and the tests mirror it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "interpkit"
MAP = (ROOT / "CONTRIBUTING.md").read_text("utf-8")

TESTED_ELSEWHERE = {
    "plugins/typed_code": "bundled/test_formats.py",
    "api/evaluate": "evaluation/test_metrics.py",
    "api/invert": "inversion/test_loop.py",
    "api/load": "runs/test_folder.py",
    "targets/around": "targets/test_units.py",
    "attribution/concepts": "api/test_concepts.py",
    "attribution/dictionaries": "api/test_concepts.py",
    "attribution/evidence": "attribution/test_explainer.py",
    "attribution/export": "cli/test_attribute.py",
    "attribution/faithfulness": "attribution/test_explainer.py",
    "cli/compare": "cli/test_evaluate.py",
    "cli/concepts": "api/test_concepts.py",
    "cli/counterfactual": "api/test_counterfactual.py",
    "cli/reconstruct": "api/test_reconstruct.py",
    "cli/describing": "plugins/test_discovery.py",
    "cli/figures": "cli/test_evaluate.py",
    "cli/inspect": "cli/test_invert.py",
    "cli/pack": "bundled/test_formats.py",
    "cli/plugins": "cli/test_plugins_new.py",
    "cli/plugins_check": "cli/test_plugin_life.py",
    "cli/report": "report/test_run.py",
    "config/schemas": "io/test_hostile_files.py",
    "evaluation/flatten": "evaluation/test_metrics.py",
    "evaluation/scoring": "evaluation/test_metrics.py",
    "evaluation/warnings": "evaluation/test_metrics.py",
    "interfaces/attributions": "attribution/test_explainer.py",
    "interfaces/generation": "interfaces/test_components.py",
    "interfaces/inversions": "inversion/test_results.py",
    "interfaces/inverters": "inversion/test_results.py",
    "interfaces/loaders": "bundled/test_formats.py",
    "interfaces/metrics": "evaluation/test_metrics.py",
    "interfaces/samples": "evaluation/test_metrics.py",
    "interfaces/sections": "report/test_run.py",
    "inversion/checkpoint": "inversion/test_recovery.py",
    "inversion/objective": "inversion/test_loop.py",
    "io/strict_json": "io/test_hostile_files.py",
    "plugins/assembly": "config/test_recipe.py",
    "plugins/hookspecs": "plugins/test_discovery.py",
    "io/stand_ins": "io/test_safe_load.py",
    "plugins/loading": "bundled/test_targets.py",
    "plugins/packing": "targets/test_file_format.py",
    "plugins/registry": "plugins/test_discovery.py",
    "report/compare": "report/test_run.py",
    "report/concepts": "api/test_concepts.py",
    "report/counterfactual": "api/test_counterfactual.py",
    "report/curves": "report/test_run.py",
    "report/encode": "report/test_run.py",
    "report/page": "report/test_run.py",
    "report/text": "report/test_run.py",
    "runs/manifest": "runs/test_folder.py",
    "io/tables": "io/test_datasets.py",
    "runs/recorder": "runs/test_folder.py",
    "runs/shard_formats": "runs/test_shards.py",
    "runtime/micro_batch": "runtime/test_distributed.py",
    "runtime/random": "inversion/test_loop.py",
    "runtime/sync_batchnorm": "runtime/test_distributed.py",
    "runtime/torchrun": "runtime/test_distributed.py",
    "scaffold/kinds": "cli/test_plugins_new.py",
    "scaffold/names": "cli/test_plugins_new.py",
    "scaffold/package": "cli/test_plugins_new.py",
    "targets/layers": "targets/test_module_target.py",
}
"""Modules without a test file of the same name, and where they are tested. The conformance kit's have
``testing/test_kit.py`` and ``testing/test_planted_faults.py``."""


def folders() -> list[str]:
    """Return the folders of the package that hold modules."""
    return sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def modules(folder: Path) -> list[str]:
    """Return the names of a folder's modules, but for dunder files."""
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("__"))


def mapped(folder: str) -> list[str]:
    """Return the modules that the map lists for a folder, from the row that begins with it."""
    row = re.search(rf"^\| `interpkit/{folder}/` \|(.*)\|$", MAP, re.MULTILINE)
    return [] if row is None else sorted(re.findall(r"`(\w+)\.py`", row[1]))


@pytest.mark.parametrize("folder", folders())
def test_the_map_lists_each_module_of_a_folder(folder: str) -> None:
    assert mapped(folder) == modules(PACKAGE / folder)


def test_the_map_lists_no_folder_that_does_not_exist() -> None:
    assert sorted(re.findall(r"^\| `interpkit/(\w+)/` \|", MAP, re.MULTILINE)) == folders()


def test_the_map_lists_the_bundled_plugins() -> None:
    plugins = {path.name for path in (ROOT / "plugins").iterdir() if (path / "__init__.py").exists()}
    assert set(re.findall(r"\binterpkit_[a-z]+\b", MAP)) - {"interpkit_NAME"} == plugins


def test_the_package_itself_holds_few_modules() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 8


def test_each_module_has_a_test_file_of_its_name_or_says_where_it_is_tested() -> None:
    missing = {
        f"{folder}/{name}"
        for folder in folders()
        for name in modules(PACKAGE / folder)
        if folder != "testing" and not (ROOT / "tests" / folder / f"test_{name}.py").exists()
    }
    assert missing == TESTED_ELSEWHERE.keys(), "write a test file, or list where the module is tested"
    assert [place for place in TESTED_ELSEWHERE.values() if not (ROOT / "tests" / place).exists()] == []
