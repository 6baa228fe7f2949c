"""LayerNorm and RMSNorm, alike on all model ranks; under sequence parallelism their gradients are summed over them."""

from __future__ import annotations

from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from scaling.core.nn.init import Constant
from scaling.core.nn.parameter import new_parameter
from scaling.core.nn.place import Place


def _vector(features: int, value: float, place: Place | None) -> nn.Parameter:
    place = place or Place()
    return new_parameter((features,), Constant(value), dtype=place.dtype, gradient_in_parts=place.sequence_parallel)


@final
class LayerNorm(nn.Module):
    """Normalise the last dimension to mean 0 and variance 1, then scale and shift (Ba et al., arXiv:1607.06450).

    Under sequence parallelism the input is a slice of the sequence, so each model rank sees a part of the gradient.
    """

    def __init__(
        self,
        features: int,
        *,
        epsilon: float = 1e-5,
        place: Place | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = _vector(features, 1.0, place)
        self.bias = _vector(features, 0.0, place) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised tensor; statistics are taken in float32 for half precision."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


@final
class RMSNorm(nn.Module):
    """Divide the last dimension by its root mean square, then scale (Zhang and Sennrich, arXiv:1910.07467).

    Under sequence parallelism the input is a slice of the sequence, so each model rank sees a part of the gradient.
    """

    def __init__(self, features: int, *, epsilon: float = 1e-5, place: Place | None = None) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = _vector(features, 1.0, place)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised tensor; statistics are taken in float32 for half precision."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)
