"""The repeated layer: attention and feed-forward, each behind a norm and added to the residual stream."""

from __future__ import annotations

from typing import final

from torch import nn

from scaling.core import Dropout, LayerNorm, ParallelMLP, ParallelSelfAttention, ParallelSwiGLUMLP, RMSNorm
from scaling.transformer.io import TransformerIO


@final
class TransformerLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)) (pre-norm, arXiv:2002.04745)."""

    def __init__(
        self,
        *,
        input_layernorm: LayerNorm | RMSNorm,
        self_attention: ParallelSelfAttention,
        post_attention_layernorm: LayerNorm | RMSNorm,
        mlp: ParallelMLP | ParallelSwiGLUMLP,
        dropout_after_attention: Dropout,
        dropout_after_mlp: Dropout,
    ) -> None:
        super().__init__()
        self.input_layernorm = input_layernorm
        self.self_attention = self_attention
        self.post_attention_layernorm = post_attention_layernorm
        self.mlp = mlp
        self.dropout_after_attention = dropout_after_attention
        self.dropout_after_mlp = dropout_after_mlp

    def forward(self, x: TransformerIO) -> TransformerIO:
        """Return the micro-batch with new activations."""
        residual = x.activations
        attended = self.self_attention(
            self.input_layernorm(residual), x.position_ids, x.document_ids, x.sample_positions
        )
        residual = residual + self.dropout_after_attention(attended, x.sample_positions)
        transformed = self.mlp(self.post_attention_layernorm(residual))
        return x.with_activations(residual + self.dropout_after_mlp(transformed, x.sample_positions))
