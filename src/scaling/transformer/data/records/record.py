"""A record for training: its tokens, and how much each counts as a target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt


@final
@dataclass(frozen=True, eq=False)
class Record:
    """A conversation, or a prompt with its completion, in tokens; it stays whole, packed with others or alone."""

    tokens: npt.NDArray[np.int64]
    """[n]"""
    weights: npt.NDArray[np.float32]
    """[n]: the weight of token i in the loss as a target. The weight of the first token is 0: nothing predicts it."""

    def __post_init__(self) -> None:
        shapes: tuple[Any, ...] = (self.tokens.shape, self.weights.shape)
        if self.tokens.ndim != 1 or shapes[0] != shapes[1]:
            raise ValueError(f"tokens {shapes[0]} and weights {shapes[1]} have to be of one length")

    @property
    def counts(self) -> bool:
        """Return whether any token counts in the loss."""
        return bool(self.weights.any())
