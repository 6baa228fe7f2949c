"""Rotary position embedding (Su et al., arXiv:2104.09864), in both layouts that checkpoints use."""

from __future__ import annotations

import weakref
from typing import final

import torch
from torch import Tensor

from scaling.core.errors import LayoutError


@final
class RotaryEmbedding:
    """Rotate pairs of features of queries and keys by an angle proportional to the token's position.

    The angle of pair i is position * base^(-2i / dimensions). `interleaved` False pairs feature i with i + dimensions
    / 2 (GPT-NeoX, Hugging Face Llama; the predecessor's `rotary`), True pairs neighbours (Meta's Llama;
    `rotary_complex`). Features beyond `dimensions` pass unchanged. Angles and rotation are computed in at least
    float32. One object serves all layers of a rank: the tables are large at long sequences.
    """

    def __init__(
        self, dimensions: int, *, max_seq_length: int, base: float = 10000.0, interleaved: bool = False
    ) -> None:
        if dimensions < 2 or dimensions % 2:
            raise LayoutError(f"rotary dimensions ({dimensions}) must be even and at least 2")
        self.dimensions = dimensions
        self.base = base
        self.interleaved = interleaved
        self._length = max_seq_length
        self._tables: tuple[Tensor, Tensor] | None = None
        self._of: tuple[weakref.ref[Tensor], torch.dtype] | None = None
        self._angles: tuple[Tensor, Tensor] | None = None

    def grow(self, length: int) -> None:
        """Extend the tables to `length` positions (generation beyond the training length)."""
        if length > self._length:
            self._length, self._tables = length, None

    def angles(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return (cosine, sine) [b, s, 1, dimensions / 2] of int64 positions [b, s], ready for tensors of `dtype`.

        The last ones are kept: the layers of a rank ask for those of one micro-batch one after another.
        """
        wide = dtype if dtype == torch.float64 else torch.float32
        if self._angles is None or self._of is None or self._of[0]() is not position_ids or self._of[1] != wide:
            cosine, sine = self._tables_on(position_ids.device)
            self._angles = (
                cosine[position_ids].to(wide).unsqueeze(2),
                sine[position_ids].to(wide).unsqueeze(2),
            )
            self._of = weakref.ref(position_ids), wide
        return self._angles

    def _tables_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return cosine and sine of all positions and pairs, float64: angles of far positions need the digits."""
        if self._tables is None or self._tables[0].device != device:
            frequencies = self.base ** (-torch.arange(0, self.dimensions, 2, dtype=torch.float64) / self.dimensions)
            angles = torch.outer(torch.arange(self._length, dtype=torch.float64), frequencies)
            self._tables = angles.cos().to(device), angles.sin().to(device)
        return self._tables

    def __call__(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
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
