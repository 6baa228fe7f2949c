"""Stages are built alike on every rank: layers named, tied, and filled once, each part where it stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scaling.core.errors import LayoutError
from scaling.core.nn.embedding import VocabParallelEmbedding
from scaling.core.nn.init import Normal, Uniform
from scaling.core.nn.linear import ColumnParallelLinear
from scaling.core.nn.parameter import Piece, meta
from scaling.core.nn.place import Place
from scaling.core.nn.shard import Heads
from scaling.core.pipeline.build import Tie, build_stages, describe_layers, ties
from scaling.core.pipeline.layer_spec import LayerSpec, TiedLayerSpec
from scaling.core.pipeline.stage import Stage
from scaling.core.pipeline.stage_map import InTurn, StageMap
from scaling.core.topology.layout import Axis
from scaling.core.topology.placement import USUAL, Placement
from scaling.core.topology.topology import Topology
from tests.reference.worlds import view_of


def plain(*, bias: bool = True) -> LayerSpec:
    return LayerSpec(nn.Linear, 4, 4, bias=bias)


def tied(
    layer: type[nn.Module], *arguments: Any, tie: str = "t", name: str = "weight", **options: Any
) -> TiedLayerSpec:
    return TiedLayerSpec(layer, *arguments, tie=tie, tied_parameters=[name], **options)


def cut(specs: list[LayerSpec], stages: int) -> list[range]:
    size = len(specs) // stages
    return [range(first, first + size) for first in range(0, size * stages, size)]


def build(specs: list[LayerSpec], topology: Topology, *, stages: int = 1, seed: int = 1) -> dict[int, Stage]:
    stage_map = InTurn(stages // topology.layout.pipe).over(topology.layout.pipe)
    return build_stages(specs, cut(specs, stages), stage_map, topology=topology, seed=seed)


def by_name(stages: dict[int, Stage]) -> dict[str, Tensor]:
    return {meta(p).name: p.detach() for stage in stages.values() for p in stage.parameters()}


def over_ranks(specs: list[LayerSpec], *, pipe: int, stages: int) -> dict[str, list[Tensor]]:
    """Return every rank's value of each parameter."""
    found: dict[str, list[Tensor]] = {}
    for rank in range(pipe):
        for name, value in by_name(build(specs, view_of(rank, pipe=pipe), stages=stages)).items():
            found.setdefault(name, []).append(value)
    return found


def test_parameters_go_by_their_layer_in_the_whole_model() -> None:
    specs = [plain(), LayerSpec(nn.ReLU), plain(bias=False), plain()]
    stages = build(specs, view_of(1, pipe=2), stages=2)
    assert list(stages) == [1]
    assert list(by_name(stages)) == ["layers.2.weight", "layers.3.weight", "layers.3.bias"]


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
        assert list(by_name(build([plain(), LayerSpec(same)], Topology.single())))[2:] == [
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
    alone = by_name(build(specs, Topology.single()))
    for name, values in over_ranks(specs, pipe=pipe, stages=stages).items():
        assert all(torch.equal(value, alone[name]) for value in values), name
    assert not torch.equal(alone["layers.0.weight"], alone["layers.1.weight"])
    assert not torch.equal(alone["layers.2.weight"], alone["layers.3.weight"])
    other = by_name(build(specs, Topology.single(), seed=2))
    assert not any(
        torch.equal(alone[name], other[name]) for name in alone if not name.startswith(("layers.2.b", "layers.3.b"))
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
        alone = by_name(build([first, plain(), last], Topology.single()))
        found = over_ranks([first, plain(), last], pipe=pipe, stages=stages)["layers.0.weight"]
        assert len(found) == (2 if pipe > 1 else 1)
        assert all(torch.equal(value, alone["layers.0.weight"]) for value in found)


def test_a_tie_on_one_rank_is_one_parameter() -> None:
    specs = [tied(nn.Linear, 4, 4), plain(), tied(nn.Linear, 4, 4), plain()]
    stages = build(specs, Topology.single(), stages=2)
    first, last = stages[0].layers[0], stages[1].layers[0]
    assert first.weight is last.weight
    assert first.bias is not last.bias
    shared = meta(first.weight)  # type: ignore[arg-type]  # torch's Module has tensors
    assert shared.name == "layers.0.weight"
    assert shared.placements == USUAL.having(Axis.PIPE, Placement(indices=(0,), gradient_in_parts=True))
    assert meta(first.bias).placements == meta(last.bias).placements == USUAL  # type: ignore[arg-type]  # as above
    assert sorted(by_name(stages)) == [
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
        assert sorted(by_name(stages)) == ["layers.0.bias", "layers.0.weight"]
        described = [meta(p) for p in stages[rank].parameters()]
        assert {piece.key for one in described for piece in one.pieces} == {"layers.0.bias", "layers.0.weight"}
        both = USUAL.having(Axis.PIPE, Placement(indices=(0, 1), gradient_in_parts=True))
        assert [one.placements for one in described] == [both, both]
    assert all(torch.equal(a, b) for a, b in over_ranks(specs, pipe=2, stages=2).values())


def test_ties_are_known_to_every_rank_without_asking() -> None:
    specs = [tied(nn.Linear, 4, 4, tie="a"), tied(nn.Linear, 4, 4, tie="b"), plain(), tied(nn.Linear, 4, 4, tie="b")]
    specs += [plain(), tied(nn.Linear, 4, 4, tie="a")]
    stages = [range(0, 1), range(1, 3), range(3, 5), range(5, 6)]
    assert ties(specs, stages, InTurn().over(4)) == {
        "a": Tie(0, ("layers.0.weight",), (0, 3)),
        "b": Tie(1, ("layers.1.weight",), (1, 2)),
    }
    assert ties(specs, stages, InTurn(2).over(2)) == {
        "a": Tie(0, ("layers.0.weight",), (0, 1)),
        "b": Tie(1, ("layers.1.weight",), (0, 1)),
    }
    assert ties(specs, stages, StageMap((0, 1, 1, 0)))["a"].ranks == (0,)
    assert ties(specs, [range(6)], InTurn().over(1))["a"].ranks == (0,)


@pytest.mark.parametrize("pipe", [1, 2])
def test_tied_parameters_of_two_shapes_are_refused_wherever_they_are(pipe: int) -> None:
    specs: list[LayerSpec] = [tied(nn.Linear, 4, 4), tied(nn.Linear, 4, 6)]
    with pytest.raises(LayoutError, match=r"the tie 't' joins layers.0.weight \[4, 4\] and weight \[6, 4\]"):
        build(specs, view_of(pipe - 1, pipe=pipe), stages=pipe)


class Joined(nn.Module):
    def __init__(self, topology: Topology) -> None:
        super().__init__()
        self.joined = ColumnParallelLinear(4, {"left": 4, "right": Heads(2, 3)}, place=Place(topology))


class Apart(nn.Module):
    def __init__(self, topology: Topology) -> None:
        super().__init__()
        self.left = ColumnParallelLinear(4, 4, place=Place(topology))
        self.right = ColumnParallelLinear(4, Heads(2, 3), place=Place(topology))


@pytest.mark.parametrize("model", [1, 2])
def test_a_fused_parameter_is_filled_as_its_pieces_are_where_they_stand_alone(model: int) -> None:
    for rank in range(model):
        view = view_of(rank, model=model)
        (fused,), (apart,) = (build([plain(), LayerSpec(layer, view)], view).values() for layer in (Joined, Apart))
        names, alone = by_name({0: fused}), by_name({0: apart})
        assert list(names)[2:] == ["layers.1.joined.weight", "layers.1.joined.bias"]
        for attribute in ("weight", "bias"):
            keys = [f"layers.1.{side}.{attribute}" for side in ("left", "right")]
            joined = meta(next(p for p in fused.parameters() if meta(p).name == f"layers.1.joined.{attribute}"))
            assert [piece.key for piece in joined.pieces] == keys
            assert torch.equal(names[joined.name], torch.cat([alone[key] for key in keys]))


def test_layers_are_described_for_any_rank_without_being_filled() -> None:
    specs = [tied(VocabParallelEmbedding, 8, 4), plain(), LayerSpec(Joined, view_of(1, model=2)), plain()]
    specs += [plain(), tied(VocabParallelEmbedding, 8, 4)]
    found: dict[int, dict[str, tuple[Piece, ...]]] = {}
    for rank in range(3):
        layers = list(describe_layers(specs, cut(specs, 6), InTurn(2).over(3), topology=view_of(rank, pipe=3), seed=1))
        assert [(number, index) for number, index, _ in layers] == [(rank, rank), (rank + 3, rank + 3)]
        for _, index, layer in layers:
            assert all(p.is_meta == (index in (0, 2, 5)) for p in layer.parameters())
            found[index] = {meta(p).name: meta(p).pieces for p in layer.parameters()}
    assert sorted(found[2]) == ["layers.2.joined.bias", "layers.2.joined.weight"]
    assert found[0] == found[5]
    (embedding,) = found[0]["layers.0.weight"]
    assert (embedding.key, embedding.shape) == ("layers.0.weight", (8, 4))
