"""Which products of a linear layer are in 8-bit floating point, and how their operands are scaled. Without torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


class FP8DType(str, Enum):
    """The 8-bit floating-point types."""

    E4M3 = "e4m3"
    E5M2 = "e5m2"


class Operands(NamedTuple):
    """Types of the two factors of a matrix product."""

    left: FP8DType
    right: FP8DType


_VALUES = Operands(FP8DType.E4M3, FP8DType.E4M3)
# Gradients spread over more orders of magnitude than values do.
_GRADIENT_FIRST = Operands(FP8DType.E5M2, FP8DType.E4M3)
_GRADIENT_SECOND = Operands(FP8DType.E4M3, FP8DType.E5M2)


@dataclass(frozen=True, kw_only=True)
class Float8Recipe:
    """How the three products of a linear layer are computed. None: in the precision of the layer."""

    per_row: bool = False
    """A scale for each row of the left factor and each column of the right one, instead of one for each factor."""
    forward: Operands | None = _VALUES
    """Input times weight."""
    grad_input: Operands | None = _GRADIENT_FIRST
    """Output gradient times weight."""
    grad_weight: Operands | None = _GRADIENT_SECOND
    """Input times output gradient."""

    def __str__(self) -> str:
        """Return the recipe as messages show it."""
        named = {"output": self.forward, "input gradient": self.grad_input, "weight gradient": self.grad_weight}
        wide = [name for name, operands in named.items() if operands is None]
        scale = f"float8 scaled per {'row' if self.per_row else 'tensor'}"
        return f"{scale}, but for the {' and the '.join(wide)}" if wide else scale


FLOAT8_MULTIPLE = 16
"""Kernels for 8-bit products want sizes that are multiples of this."""


def float8_obstacle(
    *, device: str, capability: tuple[int, int] | None, has_torchao: bool, precision: str
) -> str | None:
    """Return what keeps a machine from computing 8-bit products, and what to do about it; None if nothing does.

    `capability` is that of the GPU; None if it is unknown. A CPU emulates the products, in any precision.
    """
    if device != "cuda":
        return None
    if capability is not None and capability < (8, 9):
        has = ".".join(map(str, capability))
        return f"8-bit products need a GPU of compute capability 8.9 or later, and this one has {has}; remove it"
    if not has_torchao:
        return "8-bit products need the package torchao, which is not installed; `pip install torchao`, or remove it"
    if precision != "bfloat16":
        return f"on a GPU 8-bit products belong to a model in bfloat16, and precision is {precision}; change either"
    return None
