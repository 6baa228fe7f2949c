"""The form of a low-rank update. Without torch, so that plans can use it."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LowRankForm:
    """An update s B A of a matrix (LoRA, arXiv:2106.09685)."""

    rank: int
    scale: float
    """s: alpha / rank, or alpha / sqrt(rank) (rsLoRA, arXiv:2312.03732)."""
    bias: bool = False
    """Whether a vector, also multiplied by s, is added to the output."""
    magnitude: bool = False
    """Whether the rows of the updated matrix are scaled to learned lengths (DoRA, arXiv:2402.09353)."""
    kaiming_a: float = math.sqrt(5)
    """Slope of the Kaiming-uniform initialisation of A (arXiv:1502.01852); B starts at zero."""

    def initial_bound(self, in_features: int) -> float:
        """Return the bound of A's initial values, which lie between -bound and bound.

        It is sqrt(6 / ((1 + slope^2) in_features)).
        """
        return math.sqrt(6.0 / ((1.0 + self.kaiming_a**2) * in_features))
