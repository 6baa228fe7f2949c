"""The repeated layer: attention and feed-forward, each added to the residual stream, and the order of norms."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from scaling.core import Dropout, LayerNorm, ParallelMLP, ParallelSelfAttention, ParallelSwiGLUMLP, RMSNorm
from scaling.transformer.io import TransformerIO


class TransformerLayer(nn.Module):
    """The parts of a block, under the names that checkpoints know. Each order of them is a class with a `forward`."""

    self_attention: ParallelSelfAttention
    mlp: ParallelMLP | ParallelSwiGLUMLP
    dropout_after_attention: Dropout
    dropout_after_mlp: Dropout

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    @final
    def attend(self, activations: Tensor, x: TransformerIO) -> Tensor:
        """Return the output of attention for some activations of a micro-batch."""
        return self.self_attention(activations, x.position_ids, x.document_ids, x.sample_positions)  # type: ignore[no-any-return]  # nn.Module.__call__ is Any


@final
class PreNorm(TransformerLayer):
    """x + attention(norm(x)), then x + mlp(norm(x)) (arXiv:2002.04745)."""

    input_layernorm: LayerNorm | RMSNorm
    post_attention_layernorm: LayerNorm | RMSNorm

    def forward(self, x: TransformerIO) -> TransformerIO:
        """Return the micro-batch with new activations."""
        h, samples = x.activations, x.sample_positions
        h = h + self.dropout_after_attention(self.attend(self.input_layernorm(h), x), samples)
        h = h + self.dropout_after_mlp(self.mlp(self.post_attention_layernorm(h)), samples)
        return x.with_activations(h)
