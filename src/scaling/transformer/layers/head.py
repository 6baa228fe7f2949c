"""The last layers: final norm, and logits over this rank's part of the vocabulary."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from scaling.core import LayerNorm, RMSNorm, VocabParallelEmbedding, enter_model_parallel, linear
from scaling.transformer.io import TransformerIO


@final
class LayerNormWrapper(nn.Module):
    """Normalise the residual stream after the last block."""

    def __init__(self, norm: LayerNorm | RMSNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: TransformerIO) -> TransformerIO:
        """Return the normalised micro-batch."""
        return x.with_activations(self.norm(x.activations))


def _local_logits(x: TransformerIO, table: VocabParallelEmbedding) -> Tensor:
    activations = enter_model_parallel(x.activations, table.place)
    return linear(activations, table.weight[: table.shard.length])  # padding rows make no logits


@final
class TransformerLMHead(nn.Module):
    """Logits from a matrix of its own."""

    def __init__(self, linear: VocabParallelEmbedding) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: TransformerIO) -> Tensor:
        """Return the logits [b, s, local vocabulary]. Backward: all-reduce (or reduce-scatter) of its input."""
        return _local_logits(x, self.linear)


@final
class TransformerLMHeadTied(nn.Module):
    """Logits from the embedding matrix, which the first layer shares under the tie `embedding_tying`."""

    def __init__(self, embedding: VocabParallelEmbedding) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, x: TransformerIO) -> Tensor:
        """Return the logits [b, s, local vocabulary]. Backward: all-reduce (or reduce-scatter) of its input."""
        return _local_logits(x, self.embedding)
