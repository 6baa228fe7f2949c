"""The rules that hold for every source file: layers, where collectives live, no hidden state or waits, small files.

Files are parsed, not imported. A rule that hurts gets an entry with a reason in the lists below, not a workaround.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

MAX_LINES = 400

MAX_PARAMETERS = 5

LAYERS: Sequence[Sequence[str]] = (
    ("errors", "faults", "lazy", "waiting"),
    ("config", "collectives", "boxes", "storage", "svg"),
    ("logging",),
    ("topology",),
    ("nn", "data", "checkpoint", "profiler"),
    ("finetuning", "pipeline", "optimizer", "statistics"),
    ("training",),
    ("trainer",),
    ("report", "runner", "verify"),
)
"""The parts of `scaling.core`. A part may import those of the rows above its own, and nothing beside it."""

MAY_NAME_TORCH_DISTRIBUTED = {
    "src/scaling/core/topology/": "makes the store and the process groups",
    "src/scaling/core/collectives/": "wraps every collective in use",
    "src/scaling/core/runner/elastic.py": "starts processes through the elastic launcher",
}

MAY_WAIT_FOR_THE_DEVICE = {
    "src/scaling/core/data/": "works on NumPy arrays in memory",
    "src/scaling/core/collectives/shared_memory.py::open_memory": "is about memory of the host, once per group",
    "src/scaling/core/checkpoint/": "copies to the host to write files",
    "src/scaling/core/logging/": "fetches metrics, once per log interval",
    "src/scaling/core/profiler/": "reads timers after the profiled steps",
    "src/scaling/core/report/": "works on NumPy arrays in memory, and without torch",
    "src/scaling/core/optimizer/loss_scaler.py::LossScaler.state": "is written into checkpoints",
    "src/scaling/core/optimizer/optimizer.py::Optimizer.state": "is written into checkpoints",
    "src/scaling/core/pipeline/link.py::ActivationReceiver": "reads the header of the first message",
    "src/scaling/core/statistics/activations.py::ActivationWatch.differing": "runs in the first recorded step",
    "src/scaling/core/trainer/finite.py::require_finite": "runs where a checkpoint is saved, or something went wrong",
    "src/scaling/core/trainer/trainer.py::Trainer._maxima": "runs once per log interval",
    "src/scaling/transformer/data/": "works on NumPy arrays in memory",
    "src/scaling/transformer/inference/generation/choosing.py::_on_host": "brings the chosen tokens, once per step",
    "src/scaling/transformer/inference/generation/decider.py::understood": "reads the decisions, once per step",
    "src/scaling/transformer/inference/module.py::TransformerInferenceModule.log_likelihood": "reads given ids",
    "src/scaling/cli/": "runs outside of training",
}

WAITS = ("item", "cpu", "tolist", "synchronize")

READ_ONLY_ANNOTATIONS = ("Mapping", "Sequence", "Collection", "Final", "tuple", "frozenset")

Rule = Callable[["Source"], Iterator[str]]


@dataclass(frozen=True)
class Source:
    """A parsed file."""

    path: str
    """Relative to the repository, with slashes."""
    text: str
    tree: ast.Module

    @classmethod
    def parse(cls, path: str, text: str) -> Source:
        return cls(path, text, ast.parse(text, path))

    @property
    def module(self) -> str:
        parts = self.path.removeprefix("src/").removesuffix(".py").split("/")
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def imports(self, tree: ast.AST | None = None) -> Iterator[tuple[int, str]]:
        """Yield (line, dotted name) of all imports: `from a.b import c` is a.b.c."""
        for node in ast.walk(tree or self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = "." * node.level + (node.module or "")
                yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)

    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        for node in ast.walk(self.tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield node


@cache
def sources(*folders: str) -> list[Source]:
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return [Source.parse(path.relative_to(ROOT).as_posix(), path.read_text()) for path in paths]


def allowed(path: str, entries: dict[str, str]) -> bool:
    return any(path.startswith(entry) for entry in entries)


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def core_imports_point_to_lower_layers(source: Source) -> Iterator[str]:
    row = {part: index for index, parts in enumerate(LAYERS) for part in parts}
    if not source.module.startswith("scaling.core."):
        return
    own = source.module.split(".")[2]
    if own not in row:
        yield f"scaling.core.{own} has no layer yet"
        return
    for line, name in source.imports():
        if name.startswith("."):
            yield f"line {line}: {name} is relative; write the whole name"
        elif inside(name, "scaling"):
            part = name.split(".")[2] if inside(name, "scaling.core") else ""
            if part not in row:
                yield f"line {line}: {name} is above every layer of scaling.core, or not of any"
            elif part != own and row[part] >= row[own]:
                yield f"line {line}: {own} imports {part}, which is not below it"


@cache
def packages_with_public_names() -> list[str]:
    """Return the packages that load their public names on use."""
    return [source.module for source in sources("src") if "load_on_use(__name__)" in source.text]


@cache
def public_names() -> frozenset[str]:
    return frozenset(f"{p}.{name}" for p in packages_with_public_names() for name in importlib.import_module(p).__all__)


def clients_use_public_names(source: Source) -> Iterator[str]:
    own = "scaling.transformer" if inside(source.module, "scaling.transformer") else source.module.rpartition(".")[0]
    if inside(source.module, "scaling.core") or inside(source.module, "scaling.cli"):
        return
    parts = {f"scaling.core.{part}" for parts in LAYERS for part in parts}
    public = public_names()
    for line, name in source.imports():
        if name.startswith("."):
            yield f"line {line}: {name} is relative; write the whole name"
        elif inside(name, own) or not inside(name, "scaling"):
            continue
        elif inside(name, "scaling.cli") or (own == "scaling.transformer" and not inside(name, "scaling.core")):
            yield f"line {line}: {name} is above this module"
        elif name not in public and (any(inside(name, part) for part in parts) or name.count(".") != 2):
            yield f"line {line}: {name} is not a public name; import it from {'.'.join(name.split('.')[:2])}"


def the_mlp_example_needs_only_the_core(source: Source) -> Iterator[str]:
    if source.path.startswith("examples/mlp_example/"):
        for line, name in source.imports():
            top = name.split(".")[0]
            known = top in ("torch", "numpy") or top in sys.stdlib_module_names
            if not (known or inside(name, "scaling.core") or inside(name, "examples.mlp_example")):
                yield f"line {line}: {name} is more than scaling.core, torch and numpy"


def torch_distributed_is_named_in_few_files(source: Source) -> Iterator[str]:
    if allowed(source.path, MAY_NAME_TORCH_DISTRIBUTED):
        return
    for line, name in source.imports():
        if inside(name, "torch.distributed"):
            yield f"line {line}: imports {name}"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed":
            yield f"line {node.lineno}: names torch.distributed"


def modules_have_no_mutable_state(source: Source) -> Iterator[str]:
    mutable_calls = ("list", "dict", "set", "bytearray", "deque", "defaultdict", "Counter", "OrderedDict")
    for node in source.tree.body:
        target: ast.expr
        if isinstance(node, ast.AnnAssign):
            target, value = node.target, node.value
            if ast.unparse(node.annotation).split("[")[0] in READ_ONLY_ANNOTATIONS:
                continue
        elif isinstance(node, ast.Assign):
            target, value = node.targets[0], node.value
        else:
            continue
        called = ast.unparse(value.func).split(".")[-1] if isinstance(value, ast.Call) else ""
        literal = isinstance(value, (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp))
        if (literal or called in mutable_calls) and ast.unparse(target) != "__all__":
            types = ", ".join(READ_ONLY_ANNOTATIONS)
            yield f"line {node.lineno}: {ast.unparse(target)} can be changed; make it a tuple, or annotate it: {types}"
    for inner in ast.walk(source.tree):
        if isinstance(inner, ast.Global):
            yield f"line {inner.lineno}: global {', '.join(inner.names)}"


def nothing_prints(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield f"line {node.lineno}: prints; use logging, or typer.echo in the command line"


def functions_do_not_import_this_package(source: Source) -> Iterator[str]:
    for function in source.functions():
        for line, name in source.imports(function):
            if inside(name, "scaling") or name.startswith("."):
                yield f"line {line}: {function.name} imports {name}"


def nothing_waits_for_the_device(source: Source) -> Iterator[str]:
    if allowed(source.path, MAY_WAIT_FOR_THE_DEVICE):
        return
    for name, call in calls_by_function(source.tree):
        waits = isinstance(call.func, ast.Attribute) and call.func.attr in WAITS
        if waits and not allowed(f"{source.path}::{name}", MAY_WAIT_FOR_THE_DEVICE):
            yield f"line {call.lineno}: {name or 'the module'} calls {ast.unparse(call.func)}()"


def calls_by_function(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.Call]]:
    """Yield (qualified name of the function or class around it, call)."""
    for node in ast.iter_child_nodes(tree):
        name = prefix
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            name = f"{prefix}.{node.name}" if prefix else node.name
        elif isinstance(node, ast.Call):
            yield prefix, node
        yield from calls_by_function(node, name)


def layers_are_given_their_parts(source: Source) -> Iterator[str]:
    for kind in (node for node in ast.walk(source.tree) if isinstance(node, ast.ClassDef)):
        for method in kind.body:
            if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                taken = method.args
                count = len([*taken.posonlyargs, *taken.args, *taken.kwonlyargs]) - 1  # self
                count += len([more for more in (taken.vararg, taken.kwarg) if more is not None])
                if count > MAX_PARAMETERS:
                    yield f"line {method.lineno}: {kind.name} takes {count} parameters, more than {MAX_PARAMETERS}"


def axes_are_iterated(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("Axis.MODEL", "Axis.DATA", "Axis.CONTEXT"):
            yield f"line {node.lineno}: names {ast.unparse(node)}; ask the parameters' placements"


def files_are_small(source: Source) -> Iterator[str]:
    lines = source.text.count("\n")
    if lines > MAX_LINES:
        yield f"{lines} lines are more than {MAX_LINES}; a file has one idea"


def files_say_what_they_are_for(source: Source) -> Iterator[str]:
    docstring = ast.get_docstring(source.tree)
    if not docstring or not docstring.splitlines()[0].endswith("."):
        yield "the first line has to be a docstring, one sentence with a full stop"
    code = [node for node in source.tree.body if not isinstance(node, ast.Expr)]
    future = "from __future__ import annotations"
    if code and ast.unparse(code[0]) != future and not source.path.endswith("__init__.py"):
        yield f"{future} is missing"


RULES: dict[Rule, tuple[str, ...]] = {
    core_imports_point_to_lower_layers: ("src",),
    clients_use_public_names: ("src", "examples"),
    the_mlp_example_needs_only_the_core: ("examples",),
    torch_distributed_is_named_in_few_files: ("src",),
    modules_have_no_mutable_state: ("src",),
    nothing_prints: ("src",),
    functions_do_not_import_this_package: ("src", "examples"),
    nothing_waits_for_the_device: ("src",),
    layers_are_given_their_parts: ("src/scaling/core/nn",),
    axes_are_iterated: tuple(f"src/scaling/core/{part}" for part in ("optimizer", "checkpoint", "pipeline")),
    files_are_small: ("src", "examples", "benchmarks", "tests"),
    files_say_what_they_are_for: ("src", "examples", "benchmarks", "tests"),
}

EXCEPTIONS: dict[Rule, dict[str, str]] = {
    torch_distributed_is_named_in_few_files: MAY_NAME_TORCH_DISTRIBUTED,
    nothing_waits_for_the_device: MAY_WAIT_FOR_THE_DEVICE,
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_file_keeps_the_rule(rule: Rule) -> None:
    broken = [f"{source.path}: {problem}" for source in sources(*RULES[rule]) for problem in rule(source)]
    assert not broken, "\n".join(["", *broken])


MAY_BUILD_AN_OPTIMIZER: dict[str, str] = {
    "src/scaling/core/training/learner.py": "the one place in which a recipe becomes what is trained",
    "benchmarks/optimizer.py": "measures the optimizer alone, on parameters of no model",
    "tests/core/optimizer/test_optimizer.py": "has a group without parameters, which no recipe makes",
}


def test_what_is_trained_is_put_together_in_one_place() -> None:
    """Whoever trains starts from a recipe: what is proved of one training is then true of all."""
    calls = [
        source.path
        for source in sources("src", "examples", "benchmarks", "tests")
        for _, call in calls_by_function(source.tree)
        if isinstance(call.func, (ast.Name, ast.Attribute)) and ast.unparse(call.func).split(".")[-1] == "Optimizer"
    ]
    assert sorted(calls) == sorted(MAY_BUILD_AN_OPTIMIZER)


@pytest.mark.parametrize(
    ("rule", "exception"), [(rule, exception) for rule, entries in EXCEPTIONS.items() for exception in entries]
)
def test_every_exception_is_still_needed(rule: Rule, exception: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(EXCEPTIONS[rule], exception)
    assert any(problem for source in sources(*RULES[rule]) for problem in rule(source))


CORE, MODEL = "src/scaling/core/nn/linear.py", "src/scaling/transformer/model.py"


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (core_imports_point_to_lower_layers, CORE, "from scaling.core.pipeline.stage import Stage"),
        (core_imports_point_to_lower_layers, CORE, "from scaling.core.data.types import MicroBatch"),
        (core_imports_point_to_lower_layers, CORE, "import scaling.core.trainer"),
        (core_imports_point_to_lower_layers, CORE, "from scaling.core import runner"),
        (core_imports_point_to_lower_layers, CORE, "from scaling.core import Topology"),
        (core_imports_point_to_lower_layers, CORE, "from scaling.transformer import TransformerConfig"),
        (core_imports_point_to_lower_layers, CORE, "from ..errors import LayoutError"),
        (core_imports_point_to_lower_layers, "src/scaling/core/novelty.py", ""),
        (clients_use_public_names, MODEL, "from scaling.core.topology.topology import Topology"),
        (clients_use_public_names, MODEL, "from scaling.core import nn"),
        (clients_use_public_names, MODEL, "import scaling.core"),
        (clients_use_public_names, MODEL, "from scaling.cli.main import main"),
        (
            clients_use_public_names,
            "examples/transformer_example/run.py",
            "from scaling.transformer.model import specs",
        ),
        (the_mlp_example_needs_only_the_core, "examples/mlp_example/data.py", "import torchvision"),
        (the_mlp_example_needs_only_the_core, "examples/mlp_example/data.py", "from scaling.transformer import X"),
        (torch_distributed_is_named_in_few_files, CORE, "import torch.distributed as dist"),
        (torch_distributed_is_named_in_few_files, CORE, "from torch import distributed"),
        (torch_distributed_is_named_in_few_files, CORE, "import torch\ntorch.distributed.barrier()"),
        (modules_have_no_mutable_state, CORE, "CACHE = {}"),
        (modules_have_no_mutable_state, CORE, "SEEN: set[int] = set()"),
        (modules_have_no_mutable_state, CORE, "import collections\nQUEUE = collections.deque()"),
        (modules_have_no_mutable_state, CORE, "def f() -> None:\n    global STATE\n    STATE = 1"),
        (nothing_prints, CORE, "def f() -> None:\n    print(1)"),
        (functions_do_not_import_this_package, CORE, "def f() -> None:\n    from scaling.core.errors import DataError"),
        (nothing_waits_for_the_device, CORE, "def f(x: Tensor) -> float:\n    return x.sum().item()"),
        (layers_are_given_their_parts, CORE, "class A:\n    def __init__(self, a, b, /, c, d, *, e, f): ..."),
        (layers_are_given_their_parts, CORE, "class A:\n    def __init__(self, a, b, c, d, *e, **f): ..."),
        (
            layers_are_given_their_parts,
            CORE,
            "def f():\n    class A:\n        def __init__(self, a, b, c, d, e, f): ...",
        ),
        (files_are_small, CORE, "\n" * 401),
        (files_say_what_they_are_for, CORE, "import torch"),
        (files_say_what_they_are_for, CORE, '"""Linear layers."""\nimport torch'),
        (files_say_what_they_are_for, CORE, '"""linear layers"""'),
    ],
)
def test_a_rule_finds_what_it_is_for(rule: Rule, path: str, text: str) -> None:
    assert list(rule(Source.parse(path, text)))


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (core_imports_point_to_lower_layers, CORE, "from scaling.core.topology.topology import Topology"),
        (core_imports_point_to_lower_layers, CORE, "from scaling.core.nn.parameter import meta"),
        (clients_use_public_names, MODEL, "from scaling.core import Topology"),
        (clients_use_public_names, MODEL, "from scaling.core.topology import Topology"),
        (clients_use_public_names, MODEL, "from scaling.transformer.config.root import TransformerConfig"),
        (clients_use_public_names, "examples/mlp_example/run.py", "from examples.mlp_example.model import layers"),
        (torch_distributed_is_named_in_few_files, "src/scaling/core/collectives/ops.py", "import torch.distributed"),
        (modules_have_no_mutable_state, CORE, "NAMES: Mapping[str, int] = {}\n__all__ = ['A']\nSIZES = (1, 2)"),
        (functions_do_not_import_this_package, CORE, "def f() -> None:\n    import wandb"),
        (nothing_waits_for_the_device, "src/scaling/core/logging/metrics.py", "x.item()"),
        (layers_are_given_their_parts, CORE, "class A:\n    def __init__(self, a, b, *, c, d, e): ..."),
        (layers_are_given_their_parts, CORE, "class A:\n    def forward(self, a, b, c, d, e, f): ..."),
        (
            layers_are_given_their_parts,
            CORE,
            "@dataclass\nclass A:\n" + "".join(f"    {name}: int\n" for name in "abcdef"),
        ),
    ],
)
def test_a_rule_lets_pass_what_is_right(rule: Rule, path: str, text: str) -> None:
    assert not list(rule(Source.parse(path, text)))
