"""Of all ranks that hold an element of a weight or of the optimizer's state, one writes it and one counts it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from unittest import mock

import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from scaling.core.collectives.ops import Group
from scaling.core.nn.embedding import VocabParallelEmbedding
from scaling.core.nn.linear import ColumnParallelLinear, RowParallelLinear
from scaling.core.nn.norm import LayerNorm
from scaling.core.nn.place import Place
from scaling.core.nn.shard import Heads
from scaling.core.optimizer import grad_sync
from scaling.core.optimizer.clip import squared_norm
from scaling.core.optimizer.config import OptimizerConfig
from scaling.core.optimizer.flat_buffer import FlatBuffer
from scaling.core.optimizer.rule import AdamW, Pace, UpdateRule
from scaling.core.optimizer.shard import FlatShard
from scaling.core.pipeline.layer_spec import LayerSpec, TiedLayerSpec
from scaling.core.topology.layout import Layout
from scaling.core.topology.topology import Topology
from tests.reference.assembly import everything, module_and_optimizer
from tests.reference.compare import close
from tests.reference.training import Part, join, parts_of
from tests.reference.worlds import topology_config, view_of

WIDTH = 4


class Parts(nn.Module):
    """Every way to lie on the model axis: cut in rows or columns, fused, shared by some ranks, alike on all."""

    def __init__(self, topology: Topology, dtype: torch.dtype) -> None:
        super().__init__()
        place = Place(topology, dtype, sequence_parallel=True)
        self.joined = ColumnParallelLinear(WIDTH, {"query": Heads(4, 2), "key": Heads(8, 1), "rest": 4}, place=place)
        self.shared = ColumnParallelLinear(WIDTH, Heads(2, 3), place=place)
        self.dense = RowParallelLinear(8, WIDTH, place=place)
        self.norm = LayerNorm(WIDTH, place=place)
        self.register_buffer("seen", torch.zeros(3))


class WholeMatrices:
    """A rule of whose parameters none is cut by the slices of a bucket."""

    slots = ("momentum",)
    bfloat16_slots = ()
    whole_matrices = True

    def update(self, shards: Sequence[FlatShard], pace: Pace) -> None:
        raise AssertionError("nothing is updated here")


def layers(kinds: list[str], topology: Topology) -> list[LayerSpec]:
    """Return a layer of each kind; kinds that occur more than once are tied, fused and shared parameters with them."""

    def layer(kind: str) -> LayerSpec:
        if kind == "plain":
            return LayerSpec(nn.Linear, WIDTH, WIDTH)
        if kind in ("parts", "half"):
            return LayerSpec(Parts, topology, torch.float32 if kind == "parts" else torch.bfloat16)
        names = {"tied parts": ["joined.weight", "shared.bias"], "tied embedding": ["weight"]}[kind]
        build = (
            LayerSpec(Parts, topology, torch.float32)
            if kind == "tied parts"
            else LayerSpec(VocabParallelEmbedding, 5, WIDTH, place=Place(topology))  # padded on the last model ranks
        )
        if kinds.count(kind) == 1:
            return build
        return TiedLayerSpec(build.layer, *build.args, tie=kind, tied_parameters=names, **build.kwargs)

    return [layer(kind) for kind in kinds]


@contextmanager
def sharded_without_messages() -> Iterator[None]:
    """Let optimizers of `view_of` topologies, which have no process group, shard as they would with one."""

    def groups(buffers: list[FlatBuffer], topology: Topology) -> tuple[list[Group], list[tuple[int, Group]]]:
        batch = [buffer.kind.placements.batch_axes(topology.layout) for buffer in buffers]
        return [mock.sentinel.group if axes else None for axes in batch], []

    with mock.patch.object(grad_sync, "_make_groups", groups):
        yield


def held(kinds: list[str], layout: Layout, rank: int, *, zero: bool, rule: UpdateRule) -> tuple[list[Part], float]:
    """Return what a rank holds, all of the state being copies of the weights, and what it counts of the gradients."""
    topology = view_of(rank, pipe=layout.pipe, data=layout.data, context=layout.context, model=layout.model)
    config = topology_config(data=layout.data)
    options = OptimizerConfig.from_dict({"zero": zero, "allreduce_bucket_size": 100})
    module, optimizer = module_and_optimizer(
        layers(kinds, topology), topology, config, options, groups=everything(rule=rule)
    )
    for shard in optimizer._shards:
        for values in (shard.gradients, *shard.slots.values()):
            values.copy_(shard.weights)
    counted = squared_norm([shard.gradients for shard in optimizer._counted], topology)
    return parts_of((*module.global_tensors(), *optimizer.global_tensors())), float(counted)


def joined(kinds: list[str], layout: Layout, *, zero: bool, rule: UpdateRule) -> tuple[Mapping[str, Tensor], float]:
    with sharded_without_messages():
        ranks = [held(kinds, layout, rank, zero=zero, rule=rule) for rank in range(layout.world_size)]
    return join([parts for parts, _ in ranks]), sum(counted for _, counted in ranks)


LAYOUTS = st.builds(
    Layout,
    pipe=st.integers(1, 3),
    data=st.integers(1, 3),
    context=st.integers(1, 2),
    model=st.sampled_from([1, 2, 4]),
).filter(lambda layout: layout.world_size <= 12)
KINDS = st.lists(st.sampled_from(["plain", "parts", "half", "tied parts", "tied embedding"]), min_size=3, max_size=6)


@settings(max_examples=15, phases=[Phase.explicit, Phase.generate])  # to shrink a failure would take minutes
@given(kinds=KINDS, layout=LAYOUTS, zero=st.booleans(), rule=st.sampled_from([AdamW(), WholeMatrices()]))
def test_every_element_is_written_and_counted_once_in_any_layout(
    kinds: list[str], layout: Layout, zero: bool, rule: UpdateRule
) -> None:
    found, counted = joined(kinds, layout, zero=zero, rule=rule)  # fails where none or several own an element
    expected, once = joined(kinds, Layout(), zero=False, rule=rule)
    assert set(found) == set(expected)
    for key, value in found.items():
        assert torch.equal(value, expected[key]), key
    weights = [value for key, value in found.items() if not key.startswith("optimizer.") and not key.endswith("seen")]
    for key, value in found.items():
        if key.startswith("optimizer."):
            close(value, found[key.split(".", 2)[2]], key, tolerance=0.0)
    close(torch.tensor(counted), torch.tensor(once), tolerance=1e-5)
    close(torch.tensor(counted), torch.stack([weight.square().sum() for weight in weights]).sum(), tolerance=1e-5)
