"""What travels between the layers of the language model."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor
from typing_extensions import Self


@dataclass(frozen=True)
class TransformerIO:
    """Activations of a micro-batch, and what the layers need to know about its tokens."""

    activations: Tensor
    """[b, s, hidden]; under sequence parallelism this rank's slice of s."""
    position_ids: Tensor
    """int64 [b, s]: each token's position in its document."""
    document_ids: Tensor | None
    """int32 [b, s]: which document of its row a token belongs to; None where rows are not cut into documents."""
    sample_positions: Tensor
    """int64 [b]: each row's place in the order of the whole run, the key of its dropout masks."""

    def with_activations(self, activations: Tensor) -> Self:
        """Return the same micro-batch with other activations."""
        return replace(self, activations=activations)
