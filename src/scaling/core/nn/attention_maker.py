"""Make the attention cores of a rank's layers, with the kernels chosen for them and masks that they share."""

from __future__ import annotations

from typing import final

from torch.nn.attention.flex_attention import BlockMask

from scaling.core.nn.attention_choice import AttentionKernel
from scaling.core.nn.attention_core import AttentionCore, DroppedAttention, HeadsApart, ScaledDotProduct, SpelledOut
from scaling.core.nn.attention_fused import FlashAttention, FlexAttention, VariableLengthAttention, block_masks
from scaling.core.nn.attention_masks import DocumentMasks, PerMicroBatch, document_bounds
from scaling.core.nn.dropout import Dropout
from scaling.core.nn.scores import Scores

Kind = tuple[bool, int | None]
"""The properties that a mask depends on: causal, window."""


@final
class AttentionCoreMaker:
    """A factory of attention cores. Those of one maker share the values that they derive from a micro-batch.

    `deterministic`: flash-attn's backward pass gives the same bits each time.
    """

    def __init__(self, *, deterministic: bool = False) -> None:
        self._deterministic = deterministic
        self._masks: dict[Kind, DocumentMasks] = {}
        self._block_masks: dict[Kind, PerMicroBatch[BlockMask | None]] = {}
        self._bounds = PerMicroBatch(document_bounds)

    def __call__(
        self, kernel: AttentionKernel, scores: Scores, *, heads: range, dropout: Dropout | None = None
    ) -> AttentionCore:
        """Return the core of a layer for this rank's query `heads`, given by their numbers in the whole layer.

        While `dropout` is active, attention is spelled out, with probabilities dropped; otherwise `kernel` computes it.
        """
        parts = [(len(own), self._core(kernel, of, own, dropout)) for own, of in scores.of_heads(heads)]
        (_, core), *others = parts
        return HeadsApart(parts) if others else core

    def _core(self, kernel: AttentionKernel, scores: Scores, heads: range, dropout: Dropout | None) -> AttentionCore:
        core = self._plain(kernel, scores)
        return core if dropout is None else DroppedAttention(core, dropout, self._spelled(scores), heads=heads)

    def _plain(self, kernel: AttentionKernel, scores: Scores) -> AttentionCore:
        match kernel:
            case AttentionKernel.SCALED_DOT_PRODUCT:
                return ScaledDotProduct(self._masks_of(scores), scale=scores.scale)
            case AttentionKernel.VARIABLE_LENGTH:
                return VariableLengthAttention(scores, self._bounds)
            case AttentionKernel.FLEX:
                kind = (scores.causal, scores.window)
                if kind not in self._block_masks:
                    self._block_masks[kind] = block_masks(causal=scores.causal, window=scores.window)
                return FlexAttention(scores, self._block_masks[kind])
            case AttentionKernel.FLASH_ATTN:
                return FlashAttention(scores, self._bounds, deterministic=self._deterministic)
            case AttentionKernel.SPELLED_OUT:
                return self._spelled(scores)

    def _spelled(self, scores: Scores) -> SpelledOut:
        return SpelledOut(self._masks_of(scores), scale=scores.scale, cap=scores.cap)

    def _masks_of(self, scores: Scores) -> DocumentMasks:
        kind = (scores.causal, scores.window)
        return self._masks.setdefault(kind, DocumentMasks(causal=scores.causal, window=scores.window))
