"""Make the modules that the parts of a plan describe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from scaling.core import (
    AttentionCore,
    AttentionCoreMaker,
    ColumnParallelLinear,
    ConfigError,
    Dropout,
    Float8Product,
    Float8Recipe,
    Heads,
    KeyQueryNorm,
    LayerNorm,
    LayoutError,
    Normal,
    NormOverHeads,
    NormPerHead,
    NormType,
    ParallelMLP,
    ParallelSelfAttention,
    ParallelSwiGLUMLP,
    Place,
    PositionEmbedding,
    RMSNorm,
    RMSNormOverHeads,
    RotaryEmbedding,
    RowParallelLinear,
    Topology,
    VocabParallelEmbedding,
    attention_projections,
    find_float8_obstacle,
    find_kernels,
)
from scaling.transformer.config.choices import Precision
from scaling.transformer.layers.head import LogitBias, LogitRange
from scaling.transformer.layers.kernels import choices, scores_of
from scaling.transformer.layers.residual import Residual, Scale
from scaling.transformer.plan.attention import AttentionPlan, KeyQueryNormPlan, RotationPlan
from scaling.transformer.plan.model import ModelPlan
from scaling.transformer.plan.parts import (
    DropoutPlan,
    FeedForwardPlan,
    LinearPlan,
    LogitBiasPlan,
    LogitRangePlan,
    NormPlan,
    PartPlan,
    PositionTablePlan,
    ResidualPlan,
    ScalePlan,
    TablePlan,
)


def squared_relu(x: Tensor) -> Tensor:
    """Return relu(x)^2 (So et al., arXiv:2109.08668)."""
    return F.relu(x).square()


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "squared_relu": squared_relu,
    "silu": F.silu,
}


@final
class PartMaker:
    """A maker of parts of layers. One serves all layers of a rank, which share its masks and rotations."""

    def __init__(self, plan: ModelPlan, topology: Topology, *, seed: int) -> None:
        self.plan = plan
        self.seed = seed
        self.place = Place(topology, Precision(plan.arithmetic.precision).dtype, topology.sequence_parallel)
        device = topology.device
        if plan.arithmetic.float8.recipes and (obstacle := find_float8_obstacle(device, self.place.dtype)):
            raise ConfigError(f"transformer_architecture has an fp8_config, but {obstacle}")
        self._kernels = choices(plan, device.type, find_kernels(device))
        self._make_core = AttentionCoreMaker(deterministic=plan.arithmetic.deterministic)
        self._float8 = plan.arithmetic.float8
        self._rotations: dict[RotationPlan, RotaryEmbedding] = {}

    def __call__(self, part: PartPlan, layer: int) -> nn.Module:
        """Return the module of a part of layer `layer`, with parameters that are described but not yet filled."""
        match part:
            case NormPlan():
                return self._norm(part, self.place)
            case TablePlan():
                initializer = Normal(part.std)
                return VocabParallelEmbedding(part.vocabulary, part.hidden, place=self.place, initializer=initializer)
            case LogitBiasPlan():
                return LogitBias(part.vocabulary, place=self.place)
            case LogitRangePlan():
                return LogitRange(part.scale, part.cap)
            case AttentionPlan():
                return self._attention(part, layer)
            case FeedForwardPlan():
                return self._feed_forward(part)
            case DropoutPlan():
                return self._dropout(part, layer)
            case ResidualPlan():
                return Residual(self._dropout(DropoutPlan(part.site, part.dropout), layer), scale=part.scale)
            case ScalePlan():
                return Scale(part.factor)
            case PositionTablePlan():
                initializer = Normal(part.std)
                return PositionEmbedding(part.length, part.hidden, place=self.place, initializer=initializer)
        raise LayoutError(f"a layer has a {type(part).__name__}, which nothing builds")

    def _dropout(self, part: DropoutPlan, layer: int) -> Dropout:
        site = part.site if layer == 0 else f"{part.site}.{layer - 1}"  # blocks are counted from 0
        stream = self.plan.arithmetic.dropout_stream
        return Dropout(part.probability, seed=self.seed, site=site, place=self.place, stream=stream)

    def _norm(self, part: NormPlan, place: Place) -> LayerNorm | RMSNorm:
        if part.kind is NormType.RMS:
            return RMSNorm(part.features, epsilon=part.epsilon, place=place, weight_offset=part.offset)
        return LayerNorm(part.features, epsilon=part.epsilon, place=place, weight=part.weight, bias=part.bias)

    def _attention(self, part: AttentionPlan, layer: int) -> ParallelSelfAttention:
        heads, kv_heads = (Heads(count, part.head_size) for count in (part.heads, part.kv_heads))
        projections = attention_projections(
            part.hidden,
            {"query": heads, "key": kv_heads, "value": kv_heads},
            place=self.place,
            bias=part.projection_bias,
            initializer=Normal(part.projection_std),
            fused=part.fused,
        )
        for projection in projections.values():
            self._round(projection, self._float8.attention)
        attention = ParallelSelfAttention(
            projections,
            self._core(part, layer, heads),
            self._out(part.dense, self._float8.attention_out),
            head_dim=part.head_size,
            rotary=None if part.rotation is None else self._rotary(part.rotation),
        )
        if part.clip is not None:
            attention.with_clipping(part.clip)
        return attention if part.norm is None else attention.with_key_query_norm(self._key_query_norm(part, part.norm))

    def _key_query_norm(self, part: AttentionPlan, planned: KeyQueryNormPlan) -> KeyQueryNorm:
        norm = planned.norm
        if not planned.over_all_heads:
            whole = replace(self.place, sequence_parallel=False)  # within attention, every rank has the whole sequence
            return NormPerHead(self._norm(norm, whole), self._norm(norm, whole))
        query, key = (
            RMSNormOverHeads(
                Heads(count, part.head_size), epsilon=norm.epsilon, place=self.place, weight_offset=norm.offset
            )
            for count in (part.heads, part.kv_heads)
        )
        return NormOverHeads(query, key)

    def _core(self, part: AttentionPlan, layer: int, heads: Heads) -> AttentionCore:
        dropout = self._dropout(DropoutPlan("attention_probs", part.dropout), layer) if part.dropout else None
        own, kernel = heads.local(self.place.parts, self.place.index), self._kernels[part].otherwise
        return self._make_core(kernel, scores_of(part), heads=own, dropout=dropout)

    def _rotary(self, part: RotationPlan) -> RotaryEmbedding:
        if part not in self._rotations:
            self._rotations[part] = RotaryEmbedding(
                part.dimensions,
                base=part.base,
                interleaved=part.interleaved,
                scaling=part.scaling,
                length=part.length,
            )
        return self._rotations[part]

    def _feed_forward(self, part: FeedForwardPlan) -> ParallelMLP | ParallelSwiGLUMLP:
        ways_in = {linear.name: self._in(linear, self._float8.mlp) for linear in part.inputs}
        activation, out = ACTIVATIONS[part.activation], self._out(part.output, self._float8.mlp_out)
        if part.gated:
            return ParallelSwiGLUMLP(ways_in, out, activation=activation)
        (way_in,) = ways_in.values()
        return ParallelMLP(way_in, out, activation=activation)

    def _in(self, part: LinearPlan, float8: Float8Recipe | None) -> ColumnParallelLinear:
        layer = ColumnParallelLinear(
            part.inputs, part.outputs, place=self.place, bias=part.bias, initializer=Normal(part.std)
        )
        self._round(layer, float8)
        return layer

    def _out(self, part: LinearPlan, float8: Float8Recipe | None) -> RowParallelLinear:
        layer = RowParallelLinear(
            part.inputs, part.outputs, place=self.place, bias=part.bias, initializer=Normal(part.std)
        )
        self._round(layer, float8)
        return layer

    def _round(self, layer: ColumnParallelLinear | RowParallelLinear, float8: Float8Recipe | None) -> None:
        """Make the layer multiply in 8 bits where there is a recipe."""
        if float8 is not None:
            layer.product = Float8Product(float8, self.place, inputs_cut=isinstance(layer, RowParallelLinear))


def unbuilt(plan: ModelPlan) -> Iterator[str]:
    """Yield the features of a plan that no part of this version implements."""
    for norm in plan.parts(NormPlan):
        if norm.kind is NormType.RMS and norm.bias:
            yield "an RMSNorm with a bias"
    for feed_forward in plan.parts(FeedForwardPlan):
        if feed_forward.activation not in ACTIVATIONS:
            yield f"the activation {feed_forward.activation} (there is {', '.join(ACTIVATIONS)})"
