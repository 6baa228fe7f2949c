"""The public names: listed once, documented, joined in `scaling.core`, and none of them that of a module."""

from __future__ import annotations

import ast
import importlib
from enum import Enum
from typing import Any, get_args

import pytest

import scaling.core
import scaling.transformer
from scaling.core import BaseConfig, RunConfig
from scaling.transformer import TransformerConfig
from tests.core.test_architecture import ROOT, packages_with_public_names, public_names, sources


def text_of(statement: ast.stmt | None) -> str | None:
    """Return the string that a statement consists of, None where it is anything else."""
    match statement:
        case ast.Expr(value=ast.Constant(value=str(text))):
            return text
    return None


def docstring_of(module: str, name: str) -> str | None:
    """Return the docstring of a name that a module defines or imports, None where it has none."""
    path = ROOT / "src" / module.replace(".", "/")
    tree = ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        match node, after:
            case (ast.ClassDef() | ast.FunctionDef(), _) if node.name == name:
                return ast.get_docstring(node)
            case (
                (ast.Assign(targets=[ast.Name(id=assigned)]) | ast.AnnAssign(target=ast.Name(id=assigned))),
                following,
            ):
                if assigned == name:
                    return text_of(following)
    for imported in (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)):
        for alias in imported.names:
            if (alias.asname or alias.name) == name:
                return docstring_of(imported.module or "", alias.name)
            if alias.name == "*" and f"{imported.module}.{name}" in public_names():
                return docstring_of(imported.module or "", name)
    raise LookupError(f"{module} neither defines nor imports {name}")


@pytest.mark.parametrize("package", packages_with_public_names())
def test_public_names_are_listed_once_and_documented(package: str) -> None:
    names = importlib.import_module(package).__all__
    assert names
    assert len(names) == len(set(names))
    assert [name for name in names if not docstring_of(package, name)] == []


def test_scaling_core_has_the_public_names_of_all_its_packages() -> None:
    packages = [package for package in packages_with_public_names() if package.startswith("scaling.core.")]
    assert len(packages) > 10
    names = {name for package in packages for name in importlib.import_module(package).__all__}
    assert names <= set(importlib.import_module("scaling.core").__all__)


def types_of(annotation: Any, found: set[type]) -> set[type]:
    """Collect the sections and enumerations that a setting of this type can hold, and those within them."""
    if isinstance(annotation, type) and annotation not in found:
        if issubclass(annotation, Enum):
            found.add(annotation)
        elif issubclass(annotation, BaseConfig):
            found.add(annotation)
            for field in annotation.model_fields.values():
                types_of(field.annotation, found)
    for argument in get_args(annotation):
        types_of(argument, found)
    return found


def test_whatever_a_program_sets_in_python_has_a_public_name() -> None:
    reachable = types_of(TransformerConfig, types_of(RunConfig, set()))
    public = {getattr(package, name) for package in (scaling.core, scaling.transformer) for name in package.__all__}
    assert len(reachable) > 30
    assert sorted(one.__name__ for one in reachable - public) == []


@pytest.mark.parametrize(
    "line",
    [
        "from scaling.core import runner_main",
        "from scaling.core.topology import Topology, TopologyConfig",
        "from scaling.core.logging import LoggerConfig, logger",
        "from scaling.core.runner import RunnerConfig, runner_main",
        "from scaling.core.optimizer import LearningRateSchedulerConfig, OptimizerConfig",
        "from scaling.core.nn import ColumnParallelLinear, RowParallelLinear",
        "from scaling.core.data import DataLoader, MemoryMapDataset",
        "from scaling.core.trainer import TrainerConfig",
        "from scaling.core.profiler import ProfilerConfig",
        "from scaling.core.config import BaseConfig",
        "from scaling.transformer import TransformerConfig",
        "from scaling.transformer.config import TransformerConfig",
        "from scaling.transformer.data import TextDataset",
        "from scaling.transformer.inference import TransformerInferenceModule",
    ],
)
def test_a_package_gives_its_public_names(line: str) -> None:
    exec(line, {})


def test_no_public_name_is_that_of_a_module() -> None:
    """Once the module is imported, Python makes it the attribute of its package, in place of the name."""
    modules = {source.module for source in sources("src")}
    assert sorted(public_names() & modules) == []
