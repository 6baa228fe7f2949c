"""Self-attention with its heads cut over ranks, against the whole layer computed query by query."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from scaling.core.errors import LayoutError
from scaling.core.nn.attention import AttentionShape, ParallelSelfAttention, kv_shard
from scaling.core.nn.attention_kernels import DocumentMasks, KeyValueCache
from scaling.core.nn.dropout import Dropout
from scaling.core.nn.norm import LayerNorm, RMSNorm
from scaling.core.nn.parameter import meta
from scaling.core.nn.rotary import RotaryEmbedding
from scaling.core.topology.topology import Topology
from tests.distributed import run_distributed
from tests.reference import dense
from tests.reference.compare import close
from tests.reference.sharding import Weights, assembled, compare_layer, fill
from tests.reference.worlds import connected, random, view_of

DOUBLE = torch.float64
HIDDEN, HEADS, SEQUENCE = 32, 8, 8
LENGTHS = ([3, 5], [8])


@dataclass(frozen=True)
class Variant:
    """One way to build the layer."""

    kv_heads: int | None = None
    fused: bool = True
    bias: bool = True
    causal: bool = True
    packed: bool = True
    rotary: int = 0
    norm: bool = False
    dropout: float = 0.0
    scale: float = 1.0
    sequence_parallel: bool = False

    @property
    def shape(self) -> AttentionShape:
        return AttentionShape(
            hidden_size=HIDDEN,
            num_heads=HEADS,
            num_kv_heads=self.kv_heads,
            fused=self.fused,
            bias=self.bias,
            causal=self.causal,
            scale=self.scale,
        )

    def build(self, topology: Topology) -> ParallelSelfAttention:
        layer = ParallelSelfAttention(
            self.shape,
            masks=DocumentMasks(causal=self.causal),
            rotary=RotaryEmbedding(self.rotary, max_seq_length=SEQUENCE) if self.rotary else None,
            dropout=Dropout(self.dropout, seed=3, site="scores", topology=topology) if self.dropout else None,
            topology=topology,
            dtype=DOUBLE,
            sequence_parallel=self.sequence_parallel,
        )
        if self.norm:
            features = self.shape.head_dim
            layer.with_key_query_norm(RMSNorm(features, dtype=DOUBLE), LayerNorm(features, dtype=DOUBLE))
        return layer

    @property
    def positions(self) -> Tensor:
        return dense.lengths_to_positions(LENGTHS)

    @property
    def documents(self) -> Tensor | None:
        return dense.lengths_to_documents(LENGTHS) if self.packed else None

    @property
    def samples(self) -> Tensor:
        return torch.tensor([17, 4])

    def dense(self, weights: Weights, x: Tensor) -> Tensor:
        head_dim = HIDDEN // HEADS
        if self.kv_heads is None and self.fused:
            by_head = dense.affine(weights, "query_key_value", x).unflatten(-1, (HEADS, 3, head_dim))
            q, k, v = by_head[..., 0, :], by_head[..., 1, :], by_head[..., 2, :]
        else:
            q, k, v = (
                dense.affine(weights, name, x).unflatten(-1, (-1, head_dim)) for name in ("query", "key", "value")
            )
        if self.norm:
            q = dense.rms_norm(q, weights["norm_query.weight"])
            k = dense.layer_norm(k, weights["norm_key.weight"], weights["norm_key.bias"])
        if self.rotary:
            q, k = (dense.rotate(t, self.positions, self.rotary) for t in (q, k))
        k, v = (t.repeat_interleave(HEADS // t.shape[2], dim=2) for t in (k, v))
        keep = None
        if self.dropout:
            mask = Dropout(self.dropout, seed=3, site="scores")
            keep = mask.scores_mask(self.samples, heads=range(HEADS), queries=SEQUENCE, keys=SEQUENCE)
            keep = keep.double() / (1 - self.dropout)
        scale = self.scale / math.sqrt(head_dim)
        out = dense.attend(q, k, v, scale=scale, causal=self.causal, documents=self.documents, keep=keep)
        return dense.affine(weights, "dense", out.flatten(2))


VARIANTS = {
    "fused": Variant(),
    "plain": Variant(bias=False, causal=False, packed=False, scale=0.7),
    "separate": Variant(fused=False, rotary=4),
    "grouped": Variant(kv_heads=4, rotary=2, sequence_parallel=True),
    "two shared": Variant(kv_heads=2, norm=True),
    "one shared": Variant(kv_heads=1, norm=True, sequence_parallel=True),
    "normed": Variant(norm=True, rotary=4, bias=False),
    "dropout": Variant(dropout=0.3, kv_heads=2),
    "dropout, sliced": Variant(dropout=0.3, sequence_parallel=True, rotary=4),
}


def compare_variants(rank: int, world_size: int, names: list[str]) -> None:
    with connected(model=world_size) as topology:
        x = random(2, SEQUENCE, HIDDEN, seed=1)
        for name in names:
            variant = VARIANTS[name]
            cut = 1 if variant.sequence_parallel else None
            arguments = (variant.positions, variant.documents, variant.samples)
            layer = variant.build(topology)
            compare_layer(layer, variant.dense, x, topology, *arguments, cut_input=cut, cut_output=cut, what=f"{name}:")


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_layer_computes_attention_whatever_the_cut(world_size: int) -> None:
    if world_size == 1:
        compare_variants(0, 1, list(VARIANTS))
    else:
        run_distributed(compare_variants, world_size, list(VARIANTS))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_ranks_that_share_a_head_hold_the_same_rows_and_say_so(kv_heads: int) -> None:
    layers = [Variant(kv_heads=kv_heads).build(view_of(rank, model=8)) for rank in range(8)]
    for layer in layers:
        fill(layer)
    replicas = 8 // kv_heads
    for rank, layer in enumerate(layers):
        first = layers[rank // replicas * replicas]
        for own, shared in zip((layer.key, layer.value), (first.key, first.value), strict=True):
            assert torch.equal(own.weight, shared.weight)
            assert meta(own.weight).model_replicas(8) == replicas
            assert meta(own.weight).sum_grad_over_model
        assert meta(layer.query.weight).model_replicas(8) == 1
        assert not meta(layer.query.weight).sum_grad_over_model
    heads = [layers[rank].key.weight.detach() for rank in range(0, 8, replicas)]
    whole = Variant(kv_heads=kv_heads).build(Topology.single())
    fill(whole)
    assert torch.equal(torch.cat(heads), whole.key.weight)


def test_a_fused_weight_is_grouped_by_head_so_that_a_cut_by_heads_is_a_cut_of_rows() -> None:
    parts = [Variant().build(view_of(rank, model=4)) for rank in range(4)]
    whole = Variant().build(Topology.single())
    for part in (*parts, whole):
        fill(part)
    assert torch.equal(
        torch.cat([part.query_key_value.weight.detach() for part in parts]), whole.query_key_value.weight
    )


def gather_key_query_norms(rank: int, world_size: int) -> list[bool]:
    with connected(model=world_size) as topology:
        layer = Variant(norm=True).build(topology)
        fill(layer)
        layer(random(2, SEQUENCE, HIDDEN, seed=1), Variant().positions, None, Variant().samples).sum().backward()
        assert layer.norm_query is not None
        weight = layer.norm_query.weight
        assert weight.grad is not None
        whole = assembled(weight.grad, meta(weight), topology, summed=True)
        return [meta(weight).sum_grad_over_model, bool(torch.allclose(whole, weight.grad))]


def test_each_rank_sees_a_part_of_the_gradient_of_key_query_norms() -> None:
    assert run_distributed(gather_key_query_norms, 2) == [[True, False]] * 2


def test_heads_that_do_not_divide_are_refused() -> None:
    shape = AttentionShape(hidden_size=32, num_heads=8)
    with pytest.raises(LayoutError, match=r"num_attention_heads \(8\) must be divisible by model_parallel_size \(3\)"):
        ParallelSelfAttention(shape, masks=DocumentMasks(causal=True), topology=view_of(0, model=3))


@pytest.mark.parametrize(("kv_heads", "parts"), [(4, 6), (6, 4), (3, 2)])
def test_key_value_heads_that_cannot_be_shared_evenly_are_refused(kv_heads: int, parts: int) -> None:
    with pytest.raises(
        LayoutError, match=rf"attention_num_kv_heads \({kv_heads}\) and model_parallel_size \({parts}\) must divide"
    ):
        kv_shard(kv_heads, 8, parts, 0)


def test_dropout_is_off_in_evaluation() -> None:
    layer, plain = Variant(dropout=0.5).build(Topology.single()).eval(), Variant().build(Topology.single())
    for one in (layer, plain):
        fill(one)
    x, rest = random(2, SEQUENCE, HIDDEN, seed=1), (Variant().positions, Variant().documents, Variant().samples)
    assert torch.equal(layer(x, *rest), plain(x, *rest))


@pytest.mark.parametrize("chunks", [[8], [5, 3], [1] * 8, [4, 1, 1, 2]])
def test_generating_bit_by_bit_attends_as_the_whole_sequence_does(chunks: list[int]) -> None:
    variant = Variant(kv_heads=2, rotary=4, packed=False, norm=True)
    layer = variant.build(Topology.single()).eval()
    fill(layer)
    x, positions = random(2, SEQUENCE, HIDDEN, seed=1), torch.arange(SEQUENCE).expand(2, SEQUENCE)
    whole = layer(x, positions, None, variant.samples)
    layer.cache, start = KeyValueCache(), 0
    for chunk in chunks:
        part = slice(start, start + chunk)
        close(layer(x[:, part], positions[:, part], None, variant.samples), whole[:, part])
        start += chunk
    layer.cache = None
    assert torch.equal(layer(x, positions, None, variant.samples), whole)
