"""Rotary position embedding (Su et al., arXiv:2104.09864), in both layouts that checkpoints use."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from scaling.core.errors import LayoutError


@final
class RotaryEmbedding(nn.Module):
    """Rotate pairs of features of queries and keys by an angle proportional to the token's position.

    The angle of pair i is position * base^(-2i / dimensions). `interleaved` False pairs feature i with i + dimensions
    / 2 (GPT-NeoX, Hugging Face Llama; the predecessor's `rotary`), True pairs neighbours (Meta's Llama;
    `rotary_complex`). Features beyond `dimensions` pass unchanged. Angles and rotation are computed in at least
    float32.
    """

    cosine: Tensor
    sine: Tensor

    def __init__(
        self, dimensions: int, *, max_seq_length: int, base: float = 10000.0, interleaved: bool = False
    ) -> None:
        super().__init__()
        if dimensions < 2 or dimensions % 2:
            raise LayoutError(f"rotary dimensions ({dimensions}) must be even and at least 2")
        self.dimensions = dimensions
        self.base = base
        self.interleaved = interleaved
        cosine, sine = self._tables(max_seq_length)
        self.register_buffer("cosine", cosine, persistent=False)
        self.register_buffer("sine", sine, persistent=False)

    def _tables(self, length: int) -> tuple[Tensor, Tensor]:
        frequencies = self.base ** (-torch.arange(0, self.dimensions, 2, dtype=torch.float64) / self.dimensions)
        angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)
        return angles.cos(), angles.sin()

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]  # torch leaves it untyped
        # `module.to(bfloat16)` must not round the tables: angles of far positions would lose all meaning.
        tables = self.cosine, self.sine
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # as above
        self.cosine, self.sine = (table.to(self.cosine.device) for table in tables)
        return self

    def grow(self, length: int) -> None:
        """Extend the tables to `length` positions (generation beyond the training length)."""
        if length > self.cosine.shape[0]:
            self.cosine, self.sine = (table.to(self.cosine.device) for table in self._tables(length))

    def angles(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return (cosine, sine) [b, s, 1, dimensions / 2] of int64 positions [b, s], ready for tensors of `dtype`."""
        wide = dtype if dtype == torch.float64 else torch.float32
        return (
            self.cosine[position_ids].to(wide).unsqueeze(2),
            self.sine[position_ids].to(wide).unsqueeze(2),
        )

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """Rotate `x` [b, s, heads, head_dim]."""
        cosine, sine = angles
        turned, passed = x[..., : self.dimensions], x[..., self.dimensions :]
        turned = turned.to(cosine.dtype)
        if self.interleaved:
            even, odd = turned[..., 0::2], turned[..., 1::2]
            rotated = torch.stack([even * cosine - odd * sine, odd * cosine + even * sine], dim=-1).flatten(-2)
        else:
            first, second = turned.chunk(2, dim=-1)
            rotated = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
        rotated = rotated.to(x.dtype)
        return rotated if passed.shape[-1] == 0 else torch.cat([rotated, passed], dim=-1)
