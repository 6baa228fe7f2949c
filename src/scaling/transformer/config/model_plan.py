"""Make the plan of the model from the flat section of the configuration."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import cycle, groupby, islice

from scaling.core import NormType, RelativePositionEmbeddingType
from scaling.transformer.config.architecture import ArchitectureConfig
from scaling.transformer.config.attention_kinds import AttentionKindConfig
from scaling.transformer.config.choices import ActivationFunction, InitializationScheme, MLPType, NormPlacement
from scaling.transformer.config.methods import with_methods
from scaling.transformer.plan.attention import AttentionPlan, KeyQueryNormPlan, RotationPlan
from scaling.transformer.plan.blocks import BlockParts, after_sum, one_norm_parallel, parallel, post, pre, sandwich
from scaling.transformer.plan.model import Arithmetic, LayerPlan, ModelPlan
from scaling.transformer.plan.parts import (
    DropoutPlan,
    FeedForwardPlan,
    LogitBiasPlan,
    LogitRangePlan,
    NormPlan,
    PartPlan,
    PositionTablePlan,
    ResidualPlan,
    ScalePlan,
    TablePlan,
)

_ACTIVATIONS: Mapping[MLPType, ActivationFunction] = {
    MLPType.DEFAULT: ActivationFunction.GELU,
    MLPType.SWIGLU: ActivationFunction.SILU,
    MLPType.GEGLU: ActivationFunction.GELU,
}


def plan_of(architecture: ArchitectureConfig) -> ModelPlan:
    """Return the model that a valid section describes, with the additions of its fine-tuning methods."""
    return with_methods(base_plan_of(architecture), architecture)


def base_plan_of(architecture: ArchitectureConfig) -> ModelPlan:
    """Return the model that methods are added to. Nothing else derives the layers from the section's keys."""
    embedding, *head = _ends_of(architecture)
    final: list[LayerPlan] = []
    if architecture.norm_placement is not NormPlacement.AFTER_SUM:
        final = [LayerPlan("norm", (("norm", _norm_of(architecture, architecture.hidden_size)),))]
    return ModelPlan(
        runs=((1, embedding), *_blocks_of(architecture), *((1, layer) for layer in (*final, *head))),
        sequence=architecture.sequence_length,
        arithmetic=Arithmetic(
            precision=architecture.precision.value,
            kernel=architecture.masked_softmax.kernel.value,
            deterministic=architecture.masked_softmax.deterministic_flash_attn_bwd,
            dropout_stream=architecture.dropout_stream.value,
            float8=architecture.float8_plan,
        ),
    )


def _blocks_of(architecture: ArchitectureConfig) -> Iterator[tuple[int, LayerPlan]]:
    """Yield the blocks as runs: how many equal blocks follow each other, and the block."""
    period = [_block_of(architecture, kind) for kind in architecture.kind_of_layers()]
    if len(set(period)) == 1:  # then a model of any depth needs no list of its layers
        yield architecture.num_layers, period[0]
        return
    for block, alike in groupby(islice(cycle(period), architecture.num_layers)):
        yield len(list(alike)), block


def _block_of(architecture: ArchitectureConfig, kind: AttentionKindConfig) -> LayerPlan:
    scale = architecture.residual_scale
    block = BlockParts(
        norm=_norm_of(architecture, architecture.hidden_size),
        attention=_attention_of(architecture, kind),
        feed_forward=_feed_forward_of(architecture),
        add_attention=ResidualPlan("after_attention", architecture.dropout_after_attention, scale),
        add_mlp=ResidualPlan("after_mlp", architecture.dropout_after_mlp, scale),
    )
    if architecture.parallel_residual:
        return one_norm_parallel(block) if architecture.parallel_residual_norms == 1 else parallel(block)
    match architecture.norm_placement:
        case NormPlacement.PRE:
            return pre(block)
        case NormPlacement.POST:
            return post(block)
        case NormPlacement.SANDWICH:
            return sandwich(block)
        case NormPlacement.AFTER_SUM:
            return after_sum(block)


def _ends_of(architecture: ArchitectureConfig) -> Iterator[LayerPlan]:
    """Yield the embedding, and the head if there is one."""
    hidden, std = architecture.hidden_size, _std_of(architecture)
    table = TablePlan(vocabulary=architecture.vocab_size, hidden=hidden, std=std)
    matrix, tied = replace(table, multiplied=True), ("embedding.weight",)
    looked_up: list[tuple[str, PartPlan]] = [("embedding", table)]
    if architecture.embedding_scale != 1.0:
        looked_up.append(("scale", ScalePlan(architecture.embedding_scale)))
    if architecture.absolute_positions is not None:
        looked_up.append(
            ("positions", PositionTablePlan(length=architecture.absolute_positions, hidden=hidden, std=std))
        )
    looked_up.append(("dropout", DropoutPlan("embedding", architecture.dropout_embedding)))
    logits: list[tuple[str, PartPlan]] = [("logits", LogitRangePlan(architecture.logit_scale, architecture.logit_cap))]
    if architecture.lm_head_bias:
        logits.append(("logit_bias", LogitBiasPlan(architecture.vocab_size)))
    if architecture.lm_head and architecture.weight_tying:
        yield LayerPlan("embedding", tuple(looked_up), tied)
        yield LayerPlan("tied_head", (("embedding", matrix), *logits), tied)
        return
    yield LayerPlan("embedding", tuple(looked_up))
    if architecture.lm_head:
        yield LayerPlan("head", (("linear", matrix), *logits))


def _std_of(architecture: ArchitectureConfig) -> float:
    given = architecture.initialization.std
    return math.sqrt(2.0 / (5.0 * architecture.hidden_size)) if given is None else given


def _std_behind(architecture: ArchitectureConfig) -> float:
    """Return the standard deviation of the weights that lead back to the residual stream."""
    std = _std_of(architecture)
    if architecture.initialization.scheme is InitializationScheme.DEPTH_SCALED:
        return std / math.sqrt(2.0 * architecture.num_layers)
    return std


def _norm_of(architecture: ArchitectureConfig, features: int) -> NormPlan:
    kind, given = architecture.norm_type, architecture.layernorm
    return NormPlan(
        kind=kind,
        features=features,
        epsilon=given.layernorm_epsilon,
        bias=kind is NormType.LAYERNORM if given.bias is None else given.bias,
        weight=given.weight,
        offset=given.weight_offset,
    )


def _attention_of(architecture: ArchitectureConfig, kind: AttentionKindConfig) -> AttentionPlan:
    heads, size, bias = architecture.num_attention_heads, architecture.head_size, architecture.attention_bias
    qkv_bias, dense_bias = architecture.attention_qkv_bias, architecture.attention_dense_bias
    scale, local = architecture.attention_score_scale, architecture.num_local_attention_heads
    return AttentionPlan(
        hidden=architecture.hidden_size,
        heads=heads,
        kv_heads=architecture.attention_num_kv_heads or heads,
        head_size=size,
        fused=architecture.attention_qkv_in_one,
        scale=architecture.masked_softmax.scale / math.sqrt(size) if scale is None else scale,
        causal=architecture.causal,
        projection_bias=bias if qkv_bias is None else qkv_bias,
        output_bias=bias if dense_bias is None else dense_bias,
        projection_std=_std_of(architecture),
        output_std=_std_behind(architecture),
        rotation=_rotation_of(architecture, kind),
        norm=_key_query_norm_of(architecture),
        clip=architecture.attention_qkv_clip,
        window=architecture.local_attention_window_size if local else kind.window,
        windowed_heads=local if 0 < local < heads else None,
        cap=architecture.attention_score_cap,
        dropout=architecture.dropout_attention_probs,
    )


def _rotation_of(architecture: ArchitectureConfig, kind: AttentionKindConfig) -> RotationPlan | None:
    rotary = architecture.rotary if kind.rotary is None else kind.rotary
    scaling = rotary.scaling(architecture.sequence_length)
    if scaling is None or not architecture.rotated_dimensions:
        return None
    return RotationPlan(
        dimensions=architecture.rotated_dimensions,
        base=architecture.rotary_embedding_base if rotary.base is None else rotary.base,
        interleaved=architecture.relative_position_embedding_type is RelativePositionEmbeddingType.ROTARY_COMPLEX,
        scaling=scaling,
        length=architecture.sequence_length,
    )


def _key_query_norm_of(architecture: ArchitectureConfig) -> KeyQueryNormPlan | None:
    if not architecture.key_query_norm:
        return None
    norm = _norm_of(architecture, architecture.head_size)
    return KeyQueryNormPlan(norm, over_all_heads=architecture.key_query_norm == "all_heads")


def _feed_forward_of(architecture: ArchitectureConfig) -> FeedForwardPlan:
    activation = architecture.activation_function or _ACTIVATIONS[architecture.mlp_type]
    return FeedForwardPlan(
        hidden=architecture.hidden_size,
        width=architecture.mlp_width,
        activation=activation.value,
        gated=architecture.mlp_type is not MLPType.DEFAULT,
        input_bias=architecture.mlp_bias,
        output_bias=architecture.mlp_bias,
        input_std=_std_of(architecture),
        output_std=_std_behind(architecture),
    )
