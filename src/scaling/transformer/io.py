"""The inputs of the language model, the data passed between its layers, and the targets of its loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from typing_extensions import Self

if TYPE_CHECKING:  # commands that only prepare data make no tensors, and importing torch takes seconds
    from torch import Tensor

    from scaling.core import Past


@dataclass(frozen=True)
class TextInputs:
    """The input of the first layer, for b sequences of s tokens."""

    token_ids: Tensor
    """int64 [b, s]."""
    position_ids: Tensor
    """int64 [b, s]: the position of each token in its document (in its row, where positions do not restart)."""
    document_ids: Tensor | None
    """int32 [b, s]: tokens attend to each other where the numbers agree. None: everything in a row is one document."""
    sample_positions: Tensor
    """int64 [b]: the place of each sequence in the order of the run, the key of its dropout masks."""
    past: Past | None = None
    """The keys and values of earlier positions, for b = 1. None: there are none."""


@dataclass(frozen=True)
class TextTargets:
    """The targets of the loss, for b sequences of s tokens."""

    token_ids: Tensor
    """int64 [b, s]: the token that follows each input."""
    loss_weights: Tensor
    """float32 [b, s]: the weight of each target in the loss; 0 where it must not count."""


@dataclass(frozen=True)
class TransformerIO:
    """Activations of a micro-batch, and the data about its tokens that layers need."""

    activations: Tensor
    """[b, s, hidden]; under sequence parallelism this rank's slice of s."""
    position_ids: Tensor
    """int64 [b, s]: each token's position in its document."""
    document_ids: Tensor | None
    """int32 [b, s]: which document of its row a token belongs to; None where rows are not cut into documents."""
    sample_positions: Tensor
    """int64 [b]: each row's place in the order of the whole run, the key of its dropout masks."""
    past: Past | None = None
    """The keys and values of earlier positions, for b = 1. None: there are none."""

    def with_activations(self, activations: Tensor) -> Self:
        """Return the same micro-batch with other activations."""
        # Written out because a generic copy takes 15 microseconds, twice per layer for each generated token.
        return type(self)(activations, self.position_ids, self.document_ids, self.sample_positions, self.past)
