"""A small language model twice: as layers of the engine, and as one dense function of its whole weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scaling.core.data.types import MicroBatch
from scaling.core.nn.attention import ParallelSelfAttention, attention_projections
from scaling.core.nn.attention_core import AttentionCore, DroppedAttention, ScaledDotProduct, SpelledOut
from scaling.core.nn.attention_masks import DocumentMasks
from scaling.core.nn.dropout import Dropout, DropoutStream
from scaling.core.nn.embedding import VocabParallelEmbedding
from scaling.core.nn.linear import ColumnParallelLinear, RowParallelLinear, linear
from scaling.core.nn.loss import vocab_parallel_cross_entropy
from scaling.core.nn.mlp import ParallelSwiGLUMLP
from scaling.core.nn.norm import LayerNorm, RMSNorm
from scaling.core.nn.place import Place, enter_model_parallel
from scaling.core.nn.rotary import RotaryEmbedding
from scaling.core.nn.shard import Heads, padded_shard
from scaling.core.pipeline.layer_spec import LayerSpec, TiedLayerSpec
from scaling.core.pipeline.loss import BatchMetric, LossOutput
from scaling.core.topology.config import TopologyConfig
from scaling.core.topology.layout import Axis
from scaling.core.topology.topology import Topology
from tests.reference import dense

LENGTHS = ([3, 5], [8], [1, 1, 6], [7, 1])
"""Documents of a sample, by its number modulo four."""


@dataclass(frozen=True)
class Model:
    """Sizes of the model; a vocabulary that no number of ranks divides, and an odd number of layers."""

    vocabulary: int = 21
    hidden: int = 16
    heads: int = 4
    kv_heads: int | None = None
    sequence: int = 8
    blocks: int = 3
    tied: bool = True
    dropout: float = 0.0
    per_rank_dropout: bool = False
    dtype: torch.dtype = torch.float64
    global_batch: int = 8

    def place(self, topology: Topology) -> Place:
        return Place(topology, self.dtype, topology.sequence_parallel)


@dataclass
class Activations:
    """What travels between the layers."""

    x: Tensor
    positions: Tensor
    documents: Tensor | None
    samples: Tensor


class Embed(nn.Module):
    def __init__(self, model: Model, topology: Topology) -> None:
        super().__init__()
        self.embedding = VocabParallelEmbedding(model.vocabulary, model.hidden, place=model.place(topology))

    def forward(self, inputs: dict[str, Tensor]) -> Activations:
        x = self.embedding(inputs["tokens"])
        return Activations(x, inputs["positions"], inputs.get("documents"), inputs["samples"])


def attention(model: Model, place: Place, masks: DocumentMasks, dropout: Dropout) -> ParallelSelfAttention:
    size = model.hidden // model.heads
    heads, kv_heads = Heads(model.heads, size), Heads(model.kv_heads or model.heads, size)
    scale = 1 / math.sqrt(size)
    core: AttentionCore = ScaledDotProduct(masks, scale=scale)
    if model.dropout:
        own = heads.local(place.parts, place.index)
        core = DroppedAttention(core, dropout, SpelledOut(masks, scale=scale), heads=own)
    return ParallelSelfAttention(
        attention_projections(
            model.hidden,
            {"query": heads, "key": kv_heads, "value": kv_heads},
            place=place,
            fused=model.kv_heads is None,
        ),
        core,
        RowParallelLinear(model.hidden, model.hidden, place=place),
        head_dim=size,
        rotary=RotaryEmbedding(size),
    )


class Block(nn.Module):
    def __init__(self, index: int, model: Model, topology: Topology, masks: DocumentMasks) -> None:
        super().__init__()
        place = model.place(topology)

        def dropout(site: str) -> Dropout:
            stream: DropoutStream = "per_rank" if model.per_rank_dropout else "layout_invariant"
            return Dropout(model.dropout, seed=1, site=f"{index} {site}", place=place, stream=stream)

        self.norm_1 = RMSNorm(model.hidden, place=place)
        self.norm_2 = LayerNorm(model.hidden, place=place)
        self.attention = attention(model, place, masks, dropout("scores"))
        ways_in = ("dense_in", "siglu_weight")
        self.mlp = ParallelSwiGLUMLP(
            {name: ColumnParallelLinear(model.hidden, 2 * model.hidden, place=place) for name in ways_in},
            RowParallelLinear(2 * model.hidden, model.hidden, place=place),
        )
        self.dropout_1, self.dropout_2 = dropout("1"), dropout("2")

    def forward(self, a: Activations) -> Activations:
        x = a.x + self.dropout_1(self.attention(self.norm_1(a.x), a.positions, a.documents, a.samples), a.samples)
        x = x + self.dropout_2(self.mlp(self.norm_2(x)), a.samples)
        return Activations(x, a.positions, a.documents, a.samples)


class Head(nn.Module):
    def __init__(self, model: Model, topology: Topology) -> None:
        super().__init__()
        self.place = model.place(topology)
        self.norm = RMSNorm(model.hidden, place=self.place)
        self.embedding = VocabParallelEmbedding(model.vocabulary, model.hidden, place=self.place)

    def forward(self, a: Activations) -> Tensor:
        x = enter_model_parallel(self.norm(a.x), self.place)
        return linear(x, self.embedding.weight[: self.embedding.shard.length])


def layer_specs(model: Model, topology: Topology) -> list[LayerSpec]:
    """Return the layers, embedding and head tied on request."""
    masks = DocumentMasks(causal=True)

    def end(layer: type[nn.Module]) -> LayerSpec:
        if model.tied:
            return TiedLayerSpec(layer, model, topology, tie="embedding", tied_parameters=["embedding.weight"])
        return LayerSpec(layer, model, topology)

    return [end(Embed), *(LayerSpec(Block, i, model, topology, masks) for i in range(model.blocks)), end(Head)]


class Loss:
    """Cross entropy over the valid tokens, how many of them are of the lower half of the vocabulary, and the worst."""

    def __init__(self, model: Model, topology: Topology) -> None:
        self.group = topology.group(Axis.MODEL)
        self.offset = padded_shard(
            model.vocabulary, topology.size(Axis.MODEL), topology.index(Axis.MODEL), dim=0
        ).offset
        self.half = model.vocabulary // 2

    def __call__(self, logits: Tensor, targets: dict[str, Tensor]) -> LossOutput:
        losses = vocab_parallel_cross_entropy(logits, targets["tokens"], group=self.group, offset=self.offset)
        valid = targets["valid"]
        low = ((targets["tokens"] < self.half) * valid).sum()
        worst = BatchMetric((losses * valid).amax().view(1), torch.amax)
        return LossOutput((losses * valid).sum(), valid.sum(), {"low": low, "worst": worst})


def global_batch(model: Model, step: int) -> dict[str, Tensor]:
    """Return all samples of a step, packed documents with some tokens that do not count."""
    generator = torch.Generator().manual_seed(step)
    samples = torch.arange(model.global_batch) + model.global_batch * step
    tokens = torch.randint(model.vocabulary, (model.global_batch, model.sequence + 1), generator=generator)
    lengths = [LENGTHS[int(sample) % 4] for sample in samples]
    valid = torch.rand(model.global_batch, model.sequence, generator=generator) > 0.3
    valid[5] = False  # a micro-batch of one sample has no valid token
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "valid": valid.double(),
        "samples": samples,
        "documents": dense.lengths_to_documents(lengths),
        "positions": dense.lengths_to_positions(lengths),
    }


def micro_batches(model: Model, step: int, config: TopologyConfig, topology: Topology) -> Iterator[MicroBatch]:
    """Yield this data rank's micro-batches of a step, as the data loader would cut them."""
    batch = global_batch(model, step)
    size = config.micro_batch_size
    for number in range(config.gradient_accumulation_steps):
        first = (number * config.data_parallel_size + topology.index(Axis.DATA)) * size
        cut = {name: values[first : first + size] for name, values in batch.items()}
        targets = {"tokens": cut.pop("targets"), "valid": cut.pop("valid")}
        yield MicroBatch(cut, targets)


def dense_loss(model: Model, weights: dict[str, Tensor], step: int) -> Tensor:
    """Return the loss of a whole global batch, in one piece, from the whole weights by global name."""
    batch = global_batch(model, step)
    x = weights["layers.0.embedding.weight"][batch["tokens"]]
    head_dim = model.hidden // model.heads
    for index in range(1, model.blocks + 1):
        prefix = f"layers.{index}."
        own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        attention = {name.removeprefix("attention."): value for name, value in own.items()}
        mlp = {name.removeprefix("mlp."): value for name, value in own.items()}
        y = dense.rms_norm(x, own["norm_1.weight"])
        q, k, v = (dense.affine(attention, name, y).unflatten(-1, (-1, head_dim)) for name in ("query", "key", "value"))
        k, v = (t.repeat_interleave(q.shape[2] // k.shape[2], dim=2) for t in (k, v))
        q, k = (dense.rotate(t, batch["positions"], head_dim) for t in (q, k))
        out = dense.attend(q, k, v, scale=1 / math.sqrt(head_dim), causal=True, documents=batch["documents"])
        x = x + dense.affine(attention, "dense", out.flatten(2))
        x = x + dense.swiglu(mlp, dense.layer_norm(x, own["norm_2.weight"], own["norm_2.bias"]))
    last = model.blocks + 1
    head = weights["layers.0.embedding.weight" if model.tied else f"layers.{last}.embedding.weight"]
    logits = dense.rms_norm(x, weights[f"layers.{last}.norm.weight"]) @ head.t()
    return (dense.cross_entropy(logits, batch["targets"]) * batch["valid"]).sum() / batch["valid"].sum()
