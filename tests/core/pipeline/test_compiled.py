"""Compiled layers: when they are, what becomes of a layer that cannot be, and of a machine without a compiler."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from scaling.core.pipeline import compiled, module
from scaling.core.pipeline.layer_spec import LayerSpec
from scaling.core.pipeline.module import ParallelModule
from scaling.core.topology.topology import Topology
from tests.reference.worlds import topology_config

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(("asked", "device", "on"), [
    ("auto", CPU, False), ("auto", GPU, True), ("on", CPU, True), ("on", GPU, True), ("off", CPU, False),
    ("off", GPU, False),
])  # fmt: skip
def test_layers_are_compiled_on_gpus_and_where_it_is_asked_for(asked: str, device: torch.device, on: bool) -> None:
    assert compiled.compile_choice(topology_config(compile=asked), device).on is on


def counting(calls: list[bool]) -> Callable[..., Any]:
    """Return a stand-in for torch.compile that notes each call of what it has made."""

    def compile(layer: nn.Module, **options: Any) -> Callable[[Any], Any]:
        def run(x: Any) -> Any:
            calls.append(torch.is_grad_enabled())
            return layer(x)

        return run

    return compile


def test_only_passes_with_gradients_run_compiled_code() -> None:
    calls: list[bool] = []
    with mock.patch.object(torch, "compile", counting(calls)):
        run = compiled.compiled(nn.Linear(2, 2))
    run(torch.ones(1, 2))
    with torch.no_grad():
        run(torch.ones(1, 2))
    assert calls == [True]


def test_a_layer_with_nothing_to_fuse_is_left_alone() -> None:
    layer = nn.Identity()
    layer.compiles = False  # type: ignore[assignment]
    assert compiled.compiled(layer) is layer


def test_a_layer_that_cannot_be_compiled_runs_as_it_is_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    def failing(layer: nn.Module, **options: Any) -> Callable[[Any], Any]:
        def run(x: Any) -> Any:
            raise torch._dynamo.exc.InternalTorchDynamoError("\nno such thing\n  in detail")

        return run

    layer = nn.Linear(2, 2)
    with mock.patch.object(torch, "compile", failing):
        run = compiled.compiled(layer)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(run(torch.ones(1, 2)), layer(torch.ones(1, 2)))
    assert [record.getMessage() for record in caplog.records] == [
        "a layer (Linear) could not be compiled and runs as it is: InternalTorchDynamoError: no such thing"
    ]


def test_an_error_of_the_layer_itself_is_not_taken_for_one_of_the_compiler() -> None:
    run = compiled.compiled(nn.Linear(2, 2))
    with pytest.raises(RuntimeError, match="shape"):
        run(torch.ones(1, 3))


def test_a_machine_without_a_compiler_trains_without_and_says_why() -> None:
    with mock.patch.object(torch, "compile", side_effect=RuntimeError("\nno C++ compiler\n")):
        assert compiled.compiler_problem(CPU) == "RuntimeError: no C++ compiler"
    config = topology_config(compile="on")
    with mock.patch.object(module, "compiler_problem", return_value="RuntimeError: no C++ compiler"):
        built = ParallelModule([LayerSpec(nn.Linear, 2, 2)], Topology.single(), config, seed=1)
    assert str(built.compiling) == "off (the compiler does not work: on rank 0, RuntimeError: no C++ compiler)"


def test_a_working_compiler_has_no_problem() -> None:
    assert compiled.compiler_problem(CPU) is None
