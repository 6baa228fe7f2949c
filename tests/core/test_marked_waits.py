"""Every function that waits for other ranks has the mark by which the watch sees it. Files are parsed, not imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.core.test_architecture import Source, allowed, calls_by_function, sources

WAITS_FOR_RANKS = {
    "src/scaling/core/collectives/ops.py": (
        "Several.wait all_reduce all_reduce_start reduce_scatter_start reduce_scatter all_gather_start all_gather "
        "broadcast send_start receive receive_start gather"
    ),
    "src/scaling/core/collectives/calls.py": "_Waited.wait",
    "src/scaling/core/collectives/shared_memory.py": "DeferredCall.wait open_memory",
    "src/scaling/core/collectives/exchanges.py": "_all_reduce _reduce_scatter _all_gather _broadcast",
    "src/scaling/core/optimizer/grad_sync.py": "GradientSync.finish GradientSync.gather_weights",
    "src/scaling/core/pipeline/engine.py": "_Step._receive_gradient",
    "src/scaling/core/pipeline/link.py": "Outbox.wait ActivationReceiver.receive",
    "src/scaling/core/topology/gate.py": "Gate._wait_for_answer",
    "src/scaling/core/topology/topology.py": "Topology.gather Topology.broadcast Topology.subgroup Topology.connect",
    "src/scaling/core/profiler/clock_exchange.py": "_ask _answer",
    "src/scaling/core/trainer/trainer.py": "Trainer._maxima",
    "src/scaling/core/checkpoint/communicator.py": "StoreCommunicator._take",
}
"""What has a mark by which the watch sees that it waits for other ranks, by file."""

STARTS_NO_WAIT = {
    "src/scaling/core/topology/topology.py::Topology.close": "is the end; an error may have brought it about",
}

HAVE_MARKS = ("self._outbox.wait", "engine.outbox.wait")
"""What is called with a mark of its own."""

MAY_WAIT_FOR_RANKS = tuple(
    f"src/scaling/core/{part}"
    for part in ("collectives/", "optimizer/", "pipeline/", "topology/topology.py", "topology/gate.py")
)


def marked_functions(tree: ast.AST, prefix: str = "") -> Iterator[str]:
    """Yield the qualified names of what is decorated as waiting for other ranks."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            name = f"{prefix}.{node.name}" if prefix else node.name
            if {"waits", "votes"} & {ast.unparse(one) for one in node.decorator_list}:
                yield name
            yield from marked_functions(node, name)


def what_waits_for_ranks_is_marked(source: Source) -> Iterator[str]:
    """Anything called `wait`, and every function of torch.distributed, may keep a rank until others come."""
    if not source.path.startswith(MAY_WAIT_FOR_RANKS):
        return
    marked = set(marked_functions(source.tree))
    for name, call in calls_by_function(source.tree):
        called = ast.unparse(call.func)
        waits = called.endswith(".wait") and not call.args
        collective = called.startswith("dist.") and called.removeprefix("dist.").islower()
        if (waits or collective or called in ("_reduce_scatter", "_all_gather")) and not (
            name in marked or called in HAVE_MARKS or allowed(f"{source.path}::{name}", STARTS_NO_WAIT)
        ):
            yield f"line {call.lineno}: {name or 'the module'} calls {called}(), and has no mark: @waits"


def test_nothing_waits_for_ranks_without_a_mark() -> None:
    broken = [f"{s.path}: {problem}" for s in sources("src") for problem in what_waits_for_ranks_is_marked(s)]
    assert not broken, "\n".join(["", *broken])


@pytest.mark.parametrize("exception", STARTS_NO_WAIT)
def test_every_exception_is_still_needed(exception: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(STARTS_NO_WAIT, exception)
    assert any(problem for source in sources("src") for problem in what_waits_for_ranks_is_marked(source))


@pytest.mark.parametrize("path", WAITS_FOR_RANKS)
def test_the_watch_is_told_of_every_wait_for_other_ranks(path: str) -> None:
    [source] = [source for source in sources("src") if source.path == path]
    assert sorted(marked_functions(source.tree)) == sorted(WAITS_FOR_RANKS[path].split())


def test_no_other_file_marks_a_wait() -> None:
    assert {s.path for s in sources("src") if set(marked_functions(s.tree))} == set(WAITS_FOR_RANKS)


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ("def f(work: Work) -> None:\n    work.wait()", True),
        ("@waits\ndef f() -> None: ...\ndef g() -> None:\n    dist.barrier()", True),
        ("@waits\ndef f(work: Work) -> None:\n    work.wait()", False),
    ],
)
def test_the_rule_finds_what_it_is_for(text: str, is_found: bool) -> None:
    assert (
        bool(list(what_waits_for_ranks_is_marked(Source.parse("src/scaling/core/pipeline/link.py", text)))) == is_found
    )
