"""Named choices for an architecture."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Precision(str, Enum):
    """Type of parameters and activations. Master weights and sums of gradients are float32, or float64 for float64."""

    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"
    FLOAT64 = "float64"

    @property
    def dtype(self) -> torch.dtype:
        """Return PyTorch's type of this name."""
        import torch  # checking a configuration does not need it, and importing it takes seconds

        dtype: torch.dtype = getattr(torch, self.value)
        return dtype


class MLPType(str, Enum):
    """Type of the MLP."""

    DEFAULT = "default"
    SWIGLU = "swiglu"
    GEGLU = "geglu"


class ActivationFunction(str, Enum):
    """Function that the MLP applies to the output of its first product."""

    GELU = "gelu"
    GELU_TANH = "gelu_tanh"
    RELU = "relu"
    SQUARED_RELU = "squared_relu"
    SILU = "silu"


class NormPlacement(str, Enum):
    """Position of the norms in a block."""

    PRE = "pre"
    POST = "post"
    SANDWICH = "sandwich"
    AFTER_SUM = "after_sum"


class InitializationScheme(str, Enum):
    """How the standard deviation of initial values depends on the layer."""

    NORMAL = "normal"
    DEPTH_SCALED = "depth_scaled"


class DropoutStream(str, Enum):
    """Whether the random masks of dropout depend on the layout."""

    LAYOUT_INVARIANT = "layout_invariant"
    PER_RANK = "per_rank"
