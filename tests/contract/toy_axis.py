"""Context parallelism as a toy: an axis whose ranks hold slices of the sequence, made of the library's public parts.

The engine knows the axis by its size alone. That gradients are summed along it, that ZeRO cuts along it, and who counts
and writes, follows from `Axis.CONTEXT.splits_batch`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from scaling.core import (
    Axis,
    BaseDataset,
    ColumnParallelLinear,
    Derived,
    Heads,
    LayerSpec,
    LossOutput,
    MicroBatch,
    Normal,
    ParallelMLP,
    ParallelSelfAttention,
    Place,
    Recipe,
    RMSNorm,
    RowParallelLinear,
    TiedLayerSpec,
    Topology,
    TopologyConfig,
    VocabParallelEmbedding,
    attention_projections,
    enter_model_parallel,
    linear,
    padded_shard,
    vocab_parallel_cross_entropy,
)
from scaling.core.collectives.autograd import gather_sequence

VOCABULARY, HIDDEN, HEADS, SEQUENCE, BLOCKS = 29, 16, Heads(4, 4), 8, 2


class ContextTopologyConfig(TopologyConfig):
    """The topology section with one more axis."""

    parallel_sizes: ClassVar[tuple[str, ...]] = (*TopologyConfig.parallel_sizes, "context_parallel_size")

    context_parallel_size: Annotated[int, Derived(null_in_template=False)] = Field(default=1, ge=1)
    """Number of processes that each compute a slice of every sequence."""


class Tokens(BaseDataset[Tensor]):
    """Random sequences; every fourth token does not count."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        return torch.randint(VOCABULARY, (SEQUENCE + 1,), generator=torch.Generator().manual_seed(index))

    def collate(self, samples: Sequence[Tensor], positions: Sequence[int], valid: Sequence[bool]) -> MicroBatch:
        tokens = torch.stack(list(samples))
        weights = (tokens[:, 1:] % 4 > 0).double() * torch.tensor(valid).unsqueeze(1)
        return MicroBatch(tokens[:, :-1], (tokens[:, 1:], weights))

    def fingerprint(self) -> str:
        return "tokens"


def own_slice(tensor: Tensor, topology: Topology) -> Tensor:
    """Return this context rank's slice of [b, s, ...]."""
    return tensor.chunk(topology.size(Axis.CONTEXT), dim=1)[topology.index(Axis.CONTEXT)]


class GatheredAttention:
    """Attention of this rank's queries to the keys and values of all context ranks."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology

    def __call__(
        self, q_BSHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, document_ids: Tensor | None, samples: Tensor
    ) -> Tensor:
        group = self.topology.group(Axis.CONTEXT)
        q, k, v = (t.transpose(1, 2) for t in (q_BSHD, gather_sequence(k_BSKD, group), gather_sequence(v_BSKD, group)))
        seen = own_slice(torch.ones(1, SEQUENCE, SEQUENCE, dtype=torch.bool).tril(), self.topology)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2)


class Embed(nn.Module):
    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place
        self.embedding = VocabParallelEmbedding(VOCABULARY, HIDDEN, place=place, initializer=Normal(0.3))

    def forward(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self.embedding(own_slice(tokens, self.place.topology))
        return embedded


class Block(nn.Module):
    def __init__(self, place: Place) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = RMSNorm(HIDDEN, place=place), RMSNorm(HIDDEN, place=place)
        self.attention = ParallelSelfAttention(
            attention_projections(HIDDEN, dict.fromkeys(("query", "key", "value"), HEADS), place=place, fused=True),
            GatheredAttention(place.topology),
            RowParallelLinear(HIDDEN, HIDDEN, place=place),
            head_dim=HEADS.size,
        )
        self.mlp = ParallelMLP(
            ColumnParallelLinear(HIDDEN, 32, place=place), RowParallelLinear(32, HIDDEN, place=place)
        )

    def forward(self, x: Tensor) -> Tensor:
        nothing = torch.empty(0)
        x = x + self.attention(self.norm_1(x), nothing, None, nothing)
        return x + self.mlp(self.norm_2(x))  # type: ignore[no-any-return]  # nn.Module.__call__ is Any


class Head(nn.Module):
    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place
        self.embedding = VocabParallelEmbedding(VOCABULARY, HIDDEN, place=place, initializer=Normal(0.3))

    def forward(self, x: Tensor) -> Tensor:
        return linear(enter_model_parallel(x, self.place), self.embedding.weight[: self.embedding.shard.length])


def layers(topology: Topology) -> list[LayerSpec]:
    """Return embedding, blocks and the tied head."""
    place = Place(topology, torch.float64)
    ends = [TiedLayerSpec(end, place, tie="table", tied_parameters=["embedding.weight"]) for end in (Embed, Head)]
    return [ends[0], *(LayerSpec(Block, place) for _ in range(BLOCKS)), ends[1]]


class Loss:
    """Cross entropy over this context rank's slice: the engine adds up all of them."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        shard = padded_shard(VOCABULARY, topology.size(Axis.MODEL), topology.index(Axis.MODEL), dim=0)
        self.offset = shard.offset

    def __call__(self, logits: Tensor, targets: tuple[Tensor, Tensor]) -> LossOutput:
        tokens, weights = (own_slice(tensor, self.topology) for tensor in targets)
        group = self.topology.group(Axis.MODEL)
        losses = vocab_parallel_cross_entropy(logits, tokens, group=group, offset=self.offset)
        return LossOutput((losses * weights).sum(), weights.sum())


RECIPE = Recipe(layers=layers, loss=Loss, training=Tokens(100), evaluation=Tokens(9), usual_weight=64.0)
