"""The first layer: token ids to activations."""

from __future__ import annotations

from typing import final

from torch import nn

from scaling.core import Dropout, VocabParallelEmbedding
from scaling.transformer.io import TextInputs, TransformerIO


@final
class EmbeddingInput(nn.Module):
    """Look up the tokens' embeddings and drop some of their features."""

    def __init__(self, embedding: VocabParallelEmbedding, dropout: Dropout) -> None:
        super().__init__()
        self.embedding = embedding
        self.dropout = dropout

    def forward(self, inputs: TextInputs) -> TransformerIO:
        """Return the embedded micro-batch."""
        activations = self.dropout(self.embedding(inputs.token_ids), inputs.sample_positions)
        return TransformerIO(activations, inputs.position_ids, inputs.document_ids, inputs.sample_positions)
