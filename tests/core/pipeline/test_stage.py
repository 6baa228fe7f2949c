"""Stages: named, tied and filled alike on every rank, run with or without recomputation."""

from __future__ import annotations

import sys
import traceback
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scaling.core.errors import LayoutError
from scaling.core.nn.embedding import VocabParallelEmbedding
from scaling.core.nn.init import Normal, Uniform
from scaling.core.nn.linear import ColumnParallelLinear
from scaling.core.nn.parameter import meta
from scaling.core.pipeline.layer_spec import LayerSpec, TiedLayerSpec
from scaling.core.pipeline.stage import Recompute, Stage, Tie, build_stages, ties
from scaling.core.topology.topology import Topology
from tests.reference.compare import backward, gradient_of
from tests.reference.worlds import random, view_of


def plain(*, width: int = 4, bias: bool = True) -> LayerSpec:
    return LayerSpec(nn.Linear, width, width, bias=bias)


def tied(
    layer: type[nn.Module], *arguments: Any, tie: str = "t", name: str = "weight", **options: Any
) -> TiedLayerSpec:
    return TiedLayerSpec(layer, *arguments, tie=tie, tied_parameters=[name], **options)


def build(
    specs: list[LayerSpec], topology: Topology, *, stages: int = 1, seed: int = 1, recompute: Recompute = "disabled"
) -> dict[int, Stage]:
    size = len(specs) // stages
    cut = [range(first, first + size) for first in range(0, size * stages, size)]
    return build_stages(specs, cut, topology=topology, seed=seed, recompute=recompute)


def by_key(stages: dict[int, Stage]) -> dict[str, Tensor]:
    return {meta(p).key: p.detach() for stage in stages.values() for p in stage.parameters()}


def over_ranks(specs: list[LayerSpec], *, pipe: int, stages: int) -> dict[str, list[Tensor]]:
    """Return every rank's value of each parameter."""
    found: dict[str, list[Tensor]] = {}
    for rank in range(pipe):
        for key, value in by_key(build(specs, view_of(rank, pipe=pipe), stages=stages)).items():
            found.setdefault(key, []).append(value)
    return found


def test_parameters_go_by_their_layer_in_the_whole_model() -> None:
    specs = [plain(), LayerSpec(nn.ReLU), plain(bias=False), plain()]
    stages = build(specs, view_of(1, pipe=2), stages=2)
    assert list(stages) == [1]
    assert list(by_key(stages)) == ["layers.2.weight", "layers.3.weight", "layers.3.bias"]


def test_a_module_in_two_places_is_refused_where_it_is_no_tie() -> None:
    module = nn.Linear(4, 4)

    def same() -> nn.Module:
        return module

    with pytest.raises(
        LayoutError, match=r"layer 2 \(same\) has the parameter weight .* layers.0.weight.* TiedLayerSpec"
    ):
        build([LayerSpec(same), plain(), LayerSpec(same)], Topology.single())


def test_a_module_may_be_built_into_one_model_after_another() -> None:
    module = nn.Linear(4, 4)

    def same() -> nn.Module:
        return module

    for _ in range(2):
        assert list(by_key(build([plain(), LayerSpec(same)], Topology.single())))[2:] == [
            "layers.1.weight",
            "layers.1.bias",
        ]


def test_stages_are_dealt_to_the_ranks_in_turn() -> None:
    specs = [plain() for _ in range(8)]
    assert [list(build(specs, view_of(rank, pipe=2), stages=4)) for rank in range(2)] == [[0, 2], [1, 3]]


@pytest.mark.parametrize(("pipe", "stages"), [(2, 2), (2, 4), (4, 4), (1, 2)])
def test_every_layer_starts_with_the_same_bits_wherever_it_is_built(pipe: int, stages: int) -> None:
    specs = [
        *(plain() for _ in range(2)),
        *(LayerSpec(ColumnParallelLinear, 4, 4, initializer=Uniform(1.0)) for _ in range(2)),
        tied(VocabParallelEmbedding, 8, 4),
        *(plain() for _ in range(2)),
        tied(VocabParallelEmbedding, 8, 4),
    ]
    alone = by_key(build(specs, Topology.single()))
    for key, values in over_ranks(specs, pipe=pipe, stages=stages).items():
        assert all(torch.equal(value, alone[key]) for value in values), key
    assert not torch.equal(alone["layers.0.weight"], alone["layers.1.weight"])
    assert not torch.equal(alone["layers.2.weight"], alone["layers.3.weight"])
    other = by_key(build(specs, Topology.single(), seed=2))
    assert not any(
        torch.equal(alone[key], other[key]) for key in alone if not key.startswith(("layers.2.b", "layers.3.b"))
    )


def test_building_does_not_disturb_torchs_generator() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2, generator=torch.Generator().manual_seed(3))
    build([plain()], Topology.single())
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(("pipe", "stages"), [(1, 1), (1, 3), (3, 3)])
def test_tied_parameters_start_as_the_first_layer_of_the_tie_fills_them(pipe: int, stages: int) -> None:
    """Whatever the other layers would have made of theirs."""
    pairs = (
        (tied(VocabParallelEmbedding, 8, 4), tied(VocabParallelEmbedding, 8, 4, initializer=Normal(0.01))),
        (tied(nn.Embedding, 8, 4), tied(nn.Linear, 4, 8, bias=False)),  # each fills itself
        (tied(nn.Embedding, 8, 4), tied(VocabParallelEmbedding, 8, 4)),
    )
    for first, last in pairs:
        alone = by_key(build([first, plain(), last], Topology.single()))
        found = over_ranks([first, plain(), last], pipe=pipe, stages=stages)["layers.0.weight"]
        assert len(found) == (2 if pipe > 1 else 1)
        assert all(torch.equal(value, alone["layers.0.weight"]) for value in found)


def test_a_tie_on_one_rank_is_one_parameter() -> None:
    specs = [tied(nn.Linear, 4, 4), plain(), tied(nn.Linear, 4, 4), plain()]
    stages = build(specs, Topology.single(), stages=2)
    first, last = stages[0].layers[0], stages[1].layers[0]
    assert first.weight is last.weight
    assert first.bias is not last.bias
    assert meta(first.weight).tied == "layers.0.weight"  # type: ignore[arg-type]  # torch's Module has tensors
    assert sorted(by_key(stages)) == [
        *("layers.0.bias", "layers.0.weight", "layers.1.bias"),
        *("layers.1.weight", "layers.2.bias", "layers.3.bias", "layers.3.weight"),
    ]


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(x)
        return result


def test_a_tie_may_hold_several_parameters_of_other_names() -> None:
    specs: list[LayerSpec] = [
        TiedLayerSpec(nn.Linear, 4, 4, tie="t", tied_parameters=["weight", "bias"]),
        TiedLayerSpec(Nested, tie="t", tied_parameters=["inner.weight", "inner.bias"]),
    ]
    for rank in range(2):
        stages = build(specs, view_of(rank, pipe=2), stages=2)
        assert sorted(by_key(stages)) == ["layers.0.bias", "layers.0.weight"]
        assert {meta(p).tied for p in stages[rank].parameters()} == {"layers.0.bias", "layers.0.weight"}
    assert all(torch.equal(a, b) for a, b in over_ranks(specs, pipe=2, stages=2).values())


def test_ties_are_known_to_every_rank_without_asking() -> None:
    specs = [tied(nn.Linear, 4, 4, tie="a"), tied(nn.Linear, 4, 4, tie="b"), plain(), tied(nn.Linear, 4, 4, tie="b")]
    specs += [plain(), tied(nn.Linear, 4, 4, tie="a")]
    cut = [range(0, 1), range(1, 3), range(3, 5), range(5, 6)]
    assert ties(specs, cut, 4) == {"a": Tie(0, ("layers.0.weight",), (0, 3)), "b": Tie(1, ("layers.1.weight",), (1, 2))}
    assert ties(specs, cut, 2) == {"a": Tie(0, ("layers.0.weight",), (0, 1)), "b": Tie(1, ("layers.1.weight",), (0, 1))}
    assert ties(specs, [range(6)], 1)["a"].ranks == (0,)


@pytest.mark.parametrize("pipe", [1, 2])
def test_tied_parameters_of_two_shapes_are_refused_wherever_they_are(pipe: int) -> None:
    specs: list[LayerSpec] = [tied(nn.Linear, 4, 4), tied(nn.Linear, 4, 6)]
    with pytest.raises(LayoutError, match=r"the tie 't' joins layers.0.weight \[4, 4\] and weight \[6, 4\]"):
        build(specs, view_of(pipe - 1, pipe=pipe), stages=pipe)


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, dtype=torch.float64)
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        result: Tensor = self.linear(x).tanh()
        return result


@pytest.mark.parametrize("recompute", ["disabled", "every_layer", "every_pipe_stage"])
def test_a_stage_runs_its_layers_one_after_another_and_again_where_asked(recompute: Recompute) -> None:
    specs = [LayerSpec(Counted) for _ in range(3)]
    stage = build(specs, Topology.single(), recompute=recompute)[0]
    plain_stage = build(specs, Topology.single())[0]
    for one in (stage, plain_stage):
        x = random(2, 4, seed=1).requires_grad_()
        backward(one(x).sum())
    assert [layer.runs for layer in stage.layers] == [1 if recompute == "disabled" else 2] * 3
    for a, b in zip(stage.parameters(), plain_stage.parameters(), strict=True):
        assert torch.equal(gradient_of(a), gradient_of(b))
    with torch.no_grad():
        stage.eval()(x)
    assert [layer.runs for layer in stage.layers] == [2 if recompute == "disabled" else 3] * 3


class Forgetful(nn.Module):
    """A layer without a return."""

    def forward(self, x: Tensor) -> None:
        x + 1


@pytest.mark.parametrize("recompute", ["disabled", "every_layer", "every_pipe_stage"])
def test_a_layer_that_returns_nothing_is_named(recompute: Recompute) -> None:
    (stage,) = build([plain(), LayerSpec(Forgetful), plain()], Topology.single(), recompute=recompute).values()
    with pytest.raises(LayoutError, match=r"layer 1 \(Forgetful\) returned None; let its forward return"):
        stage(torch.ones(2, 4))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes")
@pytest.mark.parametrize("recompute", ["disabled", "every_layer", "every_pipe_stage"])
def test_an_error_says_in_which_layer_and_what_it_was_given(recompute: Recompute) -> None:
    (stage,) = build([plain(), plain(width=5), plain()], Topology.single(), recompute=recompute).values()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
        stage(torch.ones(2, 4))
    shown = traceback.format_exception(caught.value)[-1]
    assert shown == "in layer 1 (Linear) of the model, which was given torch.float32 [2, 4]\n"
