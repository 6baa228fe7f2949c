"""The first layer: token ids to activations."""

from __future__ import annotations

from typing import ClassVar, final

from torch import nn

from scaling.core import Dropout, PositionEmbedding, SoftPrompt, VocabParallelEmbedding
from scaling.transformer.io import TextInputs, TransformerIO
from scaling.transformer.layers.residual import Scale


@final
class EmbeddingInput(nn.Module):
    """The embedding of tokens: looked up and scaled, with learned positions added and some features dropped."""

    compiles: ClassVar[bool] = False
    """It is a lookup; a compiler would stumble over its parts of the vocabulary and its prompts."""

    def __init__(
        self,
        embedding: VocabParallelEmbedding,
        dropout: Dropout,
        *,
        scale: Scale | None = None,
        positions: PositionEmbedding | None = None,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.scale = scale
        self.positions = positions
        self.dropout = dropout
        self._prompts: tuple[SoftPrompt, ...] = ()

    def put_prompt(self, name: str, prompt: SoftPrompt) -> None:
        """Put a soft prompt in place of its placeholders; its parameter is named `name.weight` within the layer."""
        self.add_module(name, prompt)
        self._prompts = (*self._prompts, prompt)

    def forward(self, inputs: TextInputs) -> TransformerIO:
        """Return the embedded micro-batch."""
        activations = self.embedding(inputs.token_ids)
        if self.scale is not None:
            activations = self.scale(activations)
        for prompt in self._prompts:
            if prompt.active:
                activations = prompt(activations, inputs.position_ids)
        if self.positions is not None:
            activations = activations + self.positions(inputs.position_ids)
        activations = self.dropout(activations, inputs.sample_positions)
        return TransformerIO(
            activations, inputs.position_ids, inputs.document_ids, inputs.sample_positions, inputs.past
        )
