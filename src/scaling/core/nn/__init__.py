"""Layers whose weights may be cut over the model axis, described parameter by parameter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaling.core.lazy import load_on_use

if TYPE_CHECKING:
    from scaling.core.nn.attention import ParallelSelfAttention as ParallelSelfAttention
    from scaling.core.nn.attention import attention_projections as attention_projections
    from scaling.core.nn.attention_choice import AttentionKernel as AttentionKernel
    from scaling.core.nn.attention_choice import AttentionNeeds as AttentionNeeds
    from scaling.core.nn.attention_choice import choose_kernel as choose_kernel
    from scaling.core.nn.attention_choice import kernel_order as kernel_order
    from scaling.core.nn.attention_core import AttentionCore as AttentionCore
    from scaling.core.nn.attention_core import DroppedAttention as DroppedAttention
    from scaling.core.nn.attention_core import ScaledDotProduct as ScaledDotProduct
    from scaling.core.nn.attention_core import SpelledOut as SpelledOut
    from scaling.core.nn.attention_fused import FlashAttention as FlashAttention
    from scaling.core.nn.attention_fused import find_kernels as find_kernels
    from scaling.core.nn.attention_maker import AttentionCoreMaker as AttentionCoreMaker
    from scaling.core.nn.attention_masks import DocumentMasks as DocumentMasks
    from scaling.core.nn.cache_spans import CacheShape as CacheShape
    from scaling.core.nn.cache_spans import Decode as Decode
    from scaling.core.nn.cache_spans import Prefill as Prefill
    from scaling.core.nn.cache_spans import Span as Span
    from scaling.core.nn.cached_attention import KeyValueCache as KeyValueCache
    from scaling.core.nn.cached_attention import KeyValueCaches as KeyValueCaches
    from scaling.core.nn.cached_attention import Past as Past
    from scaling.core.nn.config import FP8LinearConfig as FP8LinearConfig
    from scaling.core.nn.config import FP8MatmulConfig as FP8MatmulConfig
    from scaling.core.nn.config import LayerNormConfig as LayerNormConfig
    from scaling.core.nn.config import LayerNormOptimizationType as LayerNormOptimizationType
    from scaling.core.nn.config import MaskedSoftmaxConfig as MaskedSoftmaxConfig
    from scaling.core.nn.config import MaskedSoftmaxKernel as MaskedSoftmaxKernel
    from scaling.core.nn.config import NormType as NormType
    from scaling.core.nn.config import RelativePositionEmbeddingType as RelativePositionEmbeddingType
    from scaling.core.nn.dropout import Dropout as Dropout
    from scaling.core.nn.edit import Edit as Edit
    from scaling.core.nn.embedding import HeadProducts as HeadProducts
    from scaling.core.nn.embedding import PositionEmbedding as PositionEmbedding
    from scaling.core.nn.embedding import TableEdit as TableEdit
    from scaling.core.nn.embedding import VocabParallelEmbedding as VocabParallelEmbedding
    from scaling.core.nn.embedding import without_padding as without_padding
    from scaling.core.nn.float8 import Float8Product as Float8Product
    from scaling.core.nn.float8 import find_float8_obstacle as find_float8_obstacle
    from scaling.core.nn.float8_recipe import FLOAT8_MULTIPLE as FLOAT8_MULTIPLE
    from scaling.core.nn.float8_recipe import Float8Recipe as Float8Recipe
    from scaling.core.nn.float8_recipe import FP8DType as FP8DType
    from scaling.core.nn.float8_recipe import float8_obstacle as float8_obstacle
    from scaling.core.nn.init import Constant as Constant
    from scaling.core.nn.init import Normal as Normal
    from scaling.core.nn.init import Uniform as Uniform
    from scaling.core.nn.init import fill as fill
    from scaling.core.nn.init import xavier_normal as xavier_normal
    from scaling.core.nn.joined import join_layers as join_layers
    from scaling.core.nn.key_query_norm import KeyQueryNorm as KeyQueryNorm
    from scaling.core.nn.key_query_norm import NormOverHeads as NormOverHeads
    from scaling.core.nn.key_query_norm import NormPerHead as NormPerHead
    from scaling.core.nn.key_query_norm import RMSNormOverHeads as RMSNormOverHeads
    from scaling.core.nn.linear import ColumnParallelLinear as ColumnParallelLinear
    from scaling.core.nn.linear import LinearEdit as LinearEdit
    from scaling.core.nn.linear import RowParallelLinear as RowParallelLinear
    from scaling.core.nn.logits import all_gather_vocabulary as all_gather_vocabulary
    from scaling.core.nn.logits import gather_vocabulary as gather_vocabulary
    from scaling.core.nn.logits import gathered_bytes as gathered_bytes
    from scaling.core.nn.loss import LogitTerm as LogitTerm
    from scaling.core.nn.loss import TokenLosses as TokenLosses
    from scaling.core.nn.loss import linear_cross_entropy as linear_cross_entropy
    from scaling.core.nn.loss import linear_logits as linear_logits
    from scaling.core.nn.loss import vocab_parallel_cross_entropy as vocab_parallel_cross_entropy
    from scaling.core.nn.loss_sum import LossSum as LossSum
    from scaling.core.nn.loss_sum import linear_cross_entropy_sum as linear_cross_entropy_sum
    from scaling.core.nn.loss_sum import tokens_per_chunk as tokens_per_chunk
    from scaling.core.nn.mlp import ParallelMLP as ParallelMLP
    from scaling.core.nn.mlp import ParallelSwiGLUMLP as ParallelSwiGLUMLP
    from scaling.core.nn.norm import LayerNorm as LayerNorm
    from scaling.core.nn.norm import RMSNorm as RMSNorm
    from scaling.core.nn.outputs import DescribesOutputs as DescribesOutputs
    from scaling.core.nn.outputs import Output as Output
    from scaling.core.nn.outputs import placement_of as placement_of
    from scaling.core.nn.parameter import Initializer as Initializer
    from scaling.core.nn.parameter import ParameterMeta as ParameterMeta
    from scaling.core.nn.parameter import Piece as Piece
    from scaling.core.nn.parameter import annotate as annotate
    from scaling.core.nn.parameter import fused_parameter as fused_parameter
    from scaling.core.nn.parameter import meta as meta
    from scaling.core.nn.parameter import new_parameter as new_parameter
    from scaling.core.nn.parameter import share as share
    from scaling.core.nn.place import Place as Place
    from scaling.core.nn.place import enter_model_parallel as enter_model_parallel
    from scaling.core.nn.place import leave_model_parallel as leave_model_parallel
    from scaling.core.nn.rotary import RotaryEmbedding as RotaryEmbedding
    from scaling.core.nn.rotary import rotary_frequencies as rotary_frequencies
    from scaling.core.nn.rotary_scaling import DynamicScaling as DynamicScaling
    from scaling.core.nn.rotary_scaling import LinearScaling as LinearScaling
    from scaling.core.nn.rotary_scaling import Llama3Scaling as Llama3Scaling
    from scaling.core.nn.rotary_scaling import LongRopeScaling as LongRopeScaling
    from scaling.core.nn.rotary_scaling import RotaryScaling as RotaryScaling
    from scaling.core.nn.rotary_scaling import Unscaled as Unscaled
    from scaling.core.nn.rotary_scaling import YarnScaling as YarnScaling
    from scaling.core.nn.scores import Scores as Scores
    from scaling.core.nn.selective import kept_by_selective as kept_by_selective
    from scaling.core.nn.shard import Heads as Heads
    from scaling.core.nn.shard import Shard as Shard
    from scaling.core.nn.shard import even_shard as even_shard
    from scaling.core.nn.shard import padded_shard as padded_shard
    from scaling.core.nn.token_scores import TokenScores as TokenScores
    from scaling.core.nn.token_scores import linear_token_scores as linear_token_scores

load_on_use(__name__)
