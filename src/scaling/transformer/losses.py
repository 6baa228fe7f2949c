"""The loss of the language model: cross entropy summed over valid tokens, and what is added to it in training."""

from __future__ import annotations

from typing import final

import torch

from scaling.core import LossOutput
from scaling.transformer.io import TextTargets
from scaling.transformer.layers.head import HeadOutput


@final
class CrossEntropyLoss:
    """Weighted sum of the tokens' cross entropies; the weight is the sum of the loss weights.

    The reported loss is one sum over the global batch divided by the other, never a mean of means.

    With `z_loss` each token adds z_loss * (log Z)^2 to what is trained, Z the sum of its exponentiated logits
    (arXiv:2204.02311, section 5), and the metric `z_loss` is their mean. It is there only where gradients are wanted:
    an evaluation's loss is the cross entropy, and so is its perplexity. `chunk_size`: the logits of no more tokens of a
    micro-batch exist at a time; None: of all.
    """

    def __init__(self, *, z_loss: float = 0.0, chunk_size: int | None = None) -> None:
        self._z_loss = z_loss
        self._chunk_size = chunk_size

    def __call__(self, output: HeadOutput, targets: TextTargets) -> LossOutput:
        """Return the loss of b sequences of s tokens. Collective over the model axis."""
        losses, log_normalisers = output.token_losses(
            targets.token_ids,
            chunk_size=self._chunk_size,
            normalisers=self._z_loss > 0 and torch.is_grad_enabled(),
        )
        weights = targets.loss_weights.to(losses.dtype)
        loss = (losses * weights).sum()
        if log_normalisers is None:
            return LossOutput(loss, weights.sum())
        z_loss = self._z_loss * (log_normalisers.square() * weights).sum()
        return LossOutput(loss + z_loss, weights.sum(), {"z_loss": z_loss.detach()})
