"""The loss of the language model: cross entropy summed over valid tokens, and the z-loss added to it in training."""

from __future__ import annotations

from typing import final

import torch

from scaling.core import LossOutput
from scaling.transformer.io import TextTargets
from scaling.transformer.layers.head import HeadOutput


@final
class CrossEntropyLoss:
    """Weighted sum of the tokens' cross entropies; the weight is the sum of the loss weights.

    The reported loss is the first sum divided by the second, each over the global batch, never a mean of means.

    With `z_loss` each token adds z_loss * (log Z)^2 to the training loss, where Z is the sum of its exponentiated
    logits (arXiv:2204.02311, section 5), and the metric `z_loss` is the mean of these terms. They are added only where
    gradients are enabled: the loss of an evaluation is the cross entropy alone, and its perplexity follows from that.
    `chunk_size` is the largest number of tokens of a micro-batch whose logits exist at a time (twice as many over
    several model ranks). None: a number that is fast.

    Gradients are computed while these logits exist, and kept until the micro-batch's backward pass. One of them is as
    large as the head's matrix, in at least float32.
    """

    def __init__(self, *, z_loss: float = 0.0, chunk_size: int | None = None) -> None:
        self._z_loss = z_loss
        self._chunk_size = chunk_size

    def __call__(self, output: HeadOutput, targets: TextTargets) -> LossOutput:
        """Return the loss of b sequences of s tokens. Collective over the model axis."""
        z_loss = self._z_loss if torch.is_grad_enabled() else 0.0
        loss, penalty = output.loss_sum(
            targets.token_ids, targets.loss_weights, z_loss=z_loss, chunk_size=self._chunk_size
        )
        weight = targets.loss_weights.to(loss.dtype).sum()
        return LossOutput(loss, weight, {"z_loss": penalty} if z_loss else {})
