"""The loss of the language model: cross entropy summed over valid tokens."""

from __future__ import annotations

from typing import final

from torch import Tensor

from scaling.core import Axis, LossOutput, Topology, padded_shard, vocab_parallel_cross_entropy
from scaling.transformer.io import TextTargets


@final
class CrossEntropyLoss:
    """Weighted sum of the tokens' cross entropies; the weight is the sum of the loss weights.

    The reported loss is one sum over the global batch divided by the other, never a mean of means.
    """

    def __init__(self, vocab_size: int, topology: Topology) -> None:
        self._group = topology.group(Axis.MODEL)
        shard = padded_shard(vocab_size, topology.size(Axis.MODEL), topology.index(Axis.MODEL), dim=0)
        self._offset = shard.offset

    def __call__(self, logits: Tensor, targets: TextTargets) -> LossOutput:
        """Return the loss of logits [b, s, local vocabulary]. Collective over the model axis."""
        losses = vocab_parallel_cross_entropy(logits, targets.token_ids, group=self._group, offset=self._offset)
        weights = targets.loss_weights.to(losses.dtype)
        return LossOutput((losses * weights).sum(), weights.sum())
