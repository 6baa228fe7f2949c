"""Self-attention with its heads cut over ranks, against the whole layer computed query by query."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from scaling.core.errors import LayoutError
from scaling.core.nn.attention import ParallelSelfAttention, attention_projections
from scaling.core.nn.attention_core import AttentionCore, DroppedAttention, ScaledDotProduct, SpelledOut
from scaling.core.nn.attention_masks import DocumentMasks
from scaling.core.nn.cache_spans import CacheShape, Decode, Prefill, Span
from scaling.core.nn.cached_attention import KeyValueCaches, Past
from scaling.core.nn.dropout import Dropout
from scaling.core.nn.key_query_norm import NormOverHeads, NormPerHead, RMSNormOverHeads
from scaling.core.nn.linear import RowParallelLinear
from scaling.core.nn.norm import LayerNorm, RMSNorm
from scaling.core.nn.parameter import meta
from scaling.core.nn.place import Place
from scaling.core.nn.rotary import RotaryEmbedding
from scaling.core.nn.scores import Scores
from scaling.core.nn.shard import Heads
from scaling.core.topology.layout import Axis
from scaling.core.topology.placement import SAME_IN_PARTS
from scaling.core.topology.topology import Topology
from tests.distributed import run_distributed
from tests.reference import dense
from tests.reference.compare import backward, close, gradient_of
from tests.reference.sharding import (
    GATHER,
    SCATTER,
    SUM,
    Weights,
    assembled,
    compare_layer,
    fill,
    own_slice,
    whole_gradients,
    whole_weights,
)
from tests.reference.worlds import connected, random, view_of

DOUBLE = torch.float64
HIDDEN, HEADS, SEQUENCE = 32, 8, 8
HEAD_DIM = HIDDEN // HEADS
PROJECTIONS = ("query", "key", "value")
LENGTHS = ([3, 5], [8])


@dataclass(frozen=True)
class Variant:
    """One way to build the layer."""

    kv_heads: int | None = None
    fused: bool = True
    """Where there are as many key-value heads as query heads."""
    bias: bool = True
    causal: bool = True
    packed: bool = True
    rotary: int = 0
    norm: str = ""
    """Of queries and keys: per_head, all_heads; empty: none."""
    clip: float | None = None
    dropout: float = 0.0
    scale: float = 1.0
    sequence_parallel: bool = False

    @property
    def heads(self) -> dict[str, Heads]:
        query, key_value = Heads(HEADS, HEAD_DIM), Heads(self.kv_heads or HEADS, HEAD_DIM)
        return {"query": query, "key": key_value, "value": key_value}

    def core(self, place: Place) -> AttentionCore:
        scale, masks = self.scale / math.sqrt(HEAD_DIM), DocumentMasks(causal=self.causal)
        core = ScaledDotProduct(masks, scale=scale)
        if not self.dropout:
            return core
        dropout = Dropout(self.dropout, seed=3, site="scores", place=place)
        heads = self.heads["query"].local(place.parts, place.index)
        return DroppedAttention(core, dropout, SpelledOut(masks, scale=scale), heads=heads)

    def build(self, topology: Topology) -> ParallelSelfAttention:
        place = Place(topology, DOUBLE, self.sequence_parallel)
        fused = self.fused and self.kv_heads is None
        layer = ParallelSelfAttention(
            attention_projections(HIDDEN, self.heads, place=place, bias=self.bias, fused=fused),
            self.core(place),
            RowParallelLinear(HIDDEN, HIDDEN, place=place, bias=self.bias),
            head_dim=HEAD_DIM,
            rotary=RotaryEmbedding(self.rotary) if self.rotary else None,
        )
        if self.clip is not None:
            layer.with_clipping(self.clip)
        alike = Place(topology, DOUBLE)
        if self.norm == "per_head":
            layer.with_key_query_norm(NormPerHead(RMSNorm(HEAD_DIM, place=alike), LayerNorm(HEAD_DIM, place=alike)))
        if self.norm == "all_heads":
            query, key = self.heads["query"], self.heads["key"]
            layer.with_key_query_norm(
                NormOverHeads(
                    RMSNormOverHeads(query, epsilon=0.3, place=place),
                    RMSNormOverHeads(key, epsilon=0.1, place=place, weight_offset=1.0),
                )
            )
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
        q, k, v = (dense.affine(weights, name, x) for name in PROJECTIONS)
        if self.clip is not None:
            q, k, v = (
                t.minimum(torch.full_like(t, self.clip)).maximum(torch.full_like(t, -self.clip)) for t in (q, k, v)
            )
        if self.norm == "all_heads":
            q = dense.rms_norm(q, weights["norm_query.weight"], 0.3)
            k = dense.rms_norm(k, 1 + weights["norm_key.weight"], 0.1)
        q, k, v = (t.unflatten(-1, (-1, HEAD_DIM)) for t in (q, k, v))
        if self.norm == "per_head":
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
        scale = self.scale / math.sqrt(HEAD_DIM)
        out = dense.attend(q, k, v, scale=scale, causal=self.causal, documents=self.documents, keep=keep)
        return dense.affine(weights, "dense", out.flatten(2))


VARIANTS = {
    "fused": Variant(),
    "plain": Variant(bias=False, causal=False, packed=False, scale=0.7),
    "separate": Variant(fused=False, rotary=4),
    "grouped": Variant(kv_heads=4, rotary=2, sequence_parallel=True),
    "two shared": Variant(kv_heads=2, norm="per_head"),
    "one shared": Variant(kv_heads=1, norm="per_head", sequence_parallel=True),
    "normed": Variant(norm="per_head", rotary=4, bias=False),
    "normed over all heads": Variant(norm="all_heads", rotary=4),
    **{
        f"normed over all heads, {kv_heads} shared, {sequence_parallel}": Variant(
            norm="all_heads", kv_heads=kv_heads, rotary=4, sequence_parallel=sequence_parallel
        )
        for kv_heads in (1, 2)
        for sequence_parallel in (False, True)
    },
    "clipped": Variant(clip=1.0, rotary=4),
    "clipped, then normed": Variant(clip=1.0, rotary=2, kv_heads=2, norm="all_heads"),
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
            messages = compare_layer(
                layer, variant.dense, x, topology, *arguments, cut_input=cut, cut_output=cut, what=f"{name}:"
            )
            enter, leave = (GATHER, SCATTER) if variant.sequence_parallel else (None, SUM)
            between = SUM if variant.norm == "all_heads" else None  # of queries and keys together
            expected = [enter, between, leave] * 2 if variant.sequence_parallel else [between, leave] * 2
            assert messages == ([message for message in expected if message] if world_size > 1 else []), name


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_layer_computes_attention_whatever_the_cut(world_size: int) -> None:
    if world_size == 1:
        compare_variants(0, 1, list(VARIANTS))
    else:
        run_distributed(compare_variants, world_size, list(VARIANTS))


def run_both_forms(rank: int, world_size: int) -> None:
    with connected(model=world_size) as topology:
        x = random(2, SEQUENCE, HIDDEN, seed=1)
        for bias, sequence_parallel in product((True, False), repeat=2):
            found = []
            for fused in (True, False):
                variant = Variant(fused=fused, bias=bias, sequence_parallel=sequence_parallel, rotary=4)
                layer = variant.build(topology)
                fill(layer)
                local = own_slice(x, topology, 1 if sequence_parallel else None).clone().requires_grad_()
                out = layer(local, variant.positions, variant.documents, variant.samples)
                backward(out, random(*out.shape, seed=rank * sequence_parallel))
                names = {name.rpartition(".")[0] for name, _ in layer.named_parameters()}
                assert names == ({"query_key_value", "dense"} if fused else {*PROJECTIONS, "dense"})
                found.append(
                    {
                        "output": out,
                        "gradient of the input": gradient_of(local),
                        **{f"gradient of {n}": t for n, t in whole_gradients(layer, topology).items()},
                        **whole_weights(layer, topology),
                    }
                )
            assert set(found[0]) == set(found[1])
            for name, tensor in found[0].items():
                close(tensor, found[1][name], name)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_one_product_for_queries_keys_and_values_is_three(world_size: int) -> None:
    if world_size == 1:
        run_both_forms(0, 1)
    else:
        run_distributed(run_both_forms, world_size)


def gather_key_query_norms(rank: int, world_size: int) -> list[bool]:
    with connected(model=world_size) as topology:
        layer = Variant(norm="per_head").build(topology)
        fill(layer)
        layer(random(2, SEQUENCE, HIDDEN, seed=1), Variant().positions, None, Variant().samples).sum().backward()
        weight = layer.get_parameter("norm_query.weight")
        assert weight.grad is not None
        (whole,) = assembled(weight.grad, meta(weight), topology, summed=True).values()
        placement = meta(weight).placements.on(Axis.MODEL)
        return [placement == SAME_IN_PARTS, bool(torch.allclose(whole, weight.grad))]


def test_each_rank_sees_a_part_of_the_gradient_of_key_query_norms() -> None:
    assert run_distributed(gather_key_query_norms, 2) == [[True, False]] * 2


@pytest.mark.parametrize(
    ("parts", "complaint"),
    [
        (3, r"8 heads and model_parallel_size \(3\) must divide one the other"),
        (16, r"the number of query heads must be divisible by model_parallel_size \(16\)"),
    ],
)
def test_heads_that_do_not_divide_are_refused(parts: int, complaint: str) -> None:
    with pytest.raises(LayoutError, match=complaint):
        Variant(fused=False).build(view_of(0, model=parts))
    with pytest.raises(LayoutError, match=complaint):
        Variant(fused=True).build(view_of(0, model=parts))


def test_layers_share_the_angles_of_their_positions() -> None:
    variant, rotary = Variant(rotary=4), RotaryEmbedding(4)
    layers = [variant.build(Topology.single()) for _ in range(2)]
    for layer in layers:
        layer.rotary = rotary
        fill(layer)
    assert not any("rotary" in name for name in nn.ModuleList(layers).state_dict())
    x, positions = random(2, SEQUENCE, HIDDEN, seed=1), variant.positions
    angles = rotary.angles(positions, DOUBLE)
    for layer in layers:
        close(layer(x, positions, variant.documents, variant.samples), variant.dense(whole(layer), x))
        assert rotary.angles(positions, DOUBLE) is angles
    other = Variant(rotary=4, packed=False)
    moved = torch.arange(SEQUENCE).expand(2, SEQUENCE)
    expected = other.build(Topology.single())
    fill(expected)
    for layer in layers:
        found = layer(x, moved, None, variant.samples)
        assert torch.equal(found, expected(x, moved, None, variant.samples))


def whole(layer: ParallelSelfAttention) -> Weights:
    return whole_weights(layer, Topology.single())


def test_dropout_is_off_in_evaluation() -> None:
    layer, plain = Variant(dropout=0.5).build(Topology.single()).eval(), Variant().build(Topology.single())
    for one in (layer, plain):
        fill(one)
    x, rest = random(2, SEQUENCE, HIDDEN, seed=1), (Variant().positions, Variant().documents, Variant().samples)
    assert torch.equal(layer(x, *rest), plain(x, *rest))


@pytest.mark.parametrize("norm", ["per_head", "all_heads"])
def test_a_copy_of_the_layer_normalises_by_weights_of_its_own(norm: str) -> None:
    layer = Variant(norm=norm).build(Topology.single())
    fill(layer)
    x, rest = random(2, SEQUENCE, HIDDEN, seed=1), (Variant().positions, Variant().documents, Variant().samples)
    before, copied = layer(x, *rest), copy.deepcopy(layer)
    copied.get_parameter("norm_key.weight").data.zero_()
    assert torch.equal(layer(x, *rest), before)
    assert not torch.equal(copied(x, *rest), before)


def test_the_past_attends_in_the_place_of_the_core() -> None:
    variant = Variant(kv_heads=2, rotary=4, packed=False, norm="per_head")
    layer = variant.build(Topology.single()).eval()
    fill(layer)
    x, positions = random(1, SEQUENCE, HIDDEN, seed=1), torch.arange(SEQUENCE)[None]
    whole = layer(x, positions, None, variant.samples[:1])
    scores, caches = Scores(scale=1 / math.sqrt(HEAD_DIM)), KeyValueCaches(dtype=x.dtype, device="cpu")
    shape = CacheShape.of(scores, rows=1, capacity=SEQUENCE, heads=2, head_size=HEAD_DIM)
    caches.add(layer, [shape], scores, heads=range(HEADS))
    spans: list[Span] = [Prefill(0, 0, 0, 5), *(Decode(0, (start,)) for start in range(5, SEQUENCE))]
    for span in spans:
        start = span.start if isinstance(span, Prefill) else span.starts[0]
        part = slice(start, start + span.tokens)
        found = layer(x[:, part], positions[:, part], None, variant.samples[:1], Past(caches, [span]))
        close(found, whole[:, part])
