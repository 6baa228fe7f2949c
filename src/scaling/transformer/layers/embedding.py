"""The first layer: token ids to activations."""

from __future__ import annotations

from typing import final

from torch import nn

from scaling.core import Dropout, Normal, Place, VocabParallelEmbedding
from scaling.transformer.io import TextInputs, TransformerIO


@final
class EmbeddingInput(nn.Module):
    """Look up the tokens' embeddings and drop some of their features."""

    def __init__(self, vocab_size: int, hidden_size: int, *, std: float, dropout: Dropout, place: Place) -> None:
        super().__init__()
        self.embedding = VocabParallelEmbedding(vocab_size, hidden_size, place=place, initializer=Normal(std))
        self.dropout = dropout

    def forward(self, inputs: TextInputs) -> TransformerIO:
        """Return the embedded micro-batch."""
        activations = self.dropout(self.embedding(inputs.token_ids), inputs.sample_positions)
        return TransformerIO(activations, inputs.position_ids, inputs.document_ids, inputs.sample_positions)
