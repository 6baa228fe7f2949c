"""LayerNorm and RMSNorm, the same on all model ranks; under sequence parallelism these sum the gradients."""

from __future__ import annotations

from typing import final

import torch
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

    Without `weight` nothing is scaled, without `bias` nothing is shifted. Under sequence parallelism the input is a
    slice of the sequence, so each model rank sees a part of the gradient.
    """

    def __init__(
        self,
        features: int,
        *,
        epsilon: float = 1e-5,
        place: Place | None = None,
        weight: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.features = features
        self.epsilon = epsilon
        self.weight = _vector(features, 1.0, place) if weight else None
        self.bias = _vector(features, 0.0, place) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised tensor; statistics are taken in float32 for half precision."""
        return F.layer_norm(x, (self.features,), self.weight, self.bias, self.epsilon)


@final
class RMSNorm(nn.Module):
    """Divide the last dimension by its root mean square, then scale (Zhang and Sennrich, arXiv:1910.07467).

    The factor is weight_offset + weight. With an offset of 1, as in Gemma, weights lie around 0, where half precision
    is finest, and the sum is used in float32: rounding it would lose the digits that the weight keeps. Under sequence
    parallelism the input is a slice of the sequence, so each model rank sees a part of the gradient.
    """

    def __init__(
        self, features: int, *, epsilon: float = 1e-5, place: Place | None = None, weight_offset: float = 0.0
    ) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight_offset = weight_offset
        self.weight = _vector(features, 1.0 - weight_offset, place)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised tensor; statistics are taken in float32 for half precision."""
        if not self.weight_offset:
            return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)
        wide = torch.promote_types(x.dtype, torch.float32)
        factor = self.weight_offset + self.weight.to(wide)
        return F.rms_norm(x.to(wide), factor.shape, factor, self.epsilon).to(x.dtype)
