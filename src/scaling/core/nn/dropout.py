"""Dropout whose mask is a pure function of global coordinates, the same in every layout, in recomputation, on resume.

A mask bit is a hash of (seed, layer, site, sample, position, feature). The sample is known by its place in the order
of the whole run, which the data loader provides; so no generator state exists that a layout, a schedule or a restart
could disturb. The hash is two rounds of the multiply-xorshift kind (as in MurmurHash3's finaliser) on 32-bit integers:
good enough for dropout, and cheap on every device.
"""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor, nn

from scaling.core.errors import LayoutError
from scaling.core.nn.place import Place
from scaling.core.topology.rng import derive_seed

DropoutStream = Literal["layout_invariant", "per_rank"]

_ROW = (
    -7046029254386353131,
    -4658895280553007687,
    -7723592293110705685,
)  # odd 64-bit constants of splitmix64 and xxHash
_MIX = (-2048144789, -1028477387)  # 0x85EBCA6B and 0xC2B2AE35 as signed 32-bit integers


def _shift(x: Tensor, bits: int, width: int) -> Tensor:
    """Shift right without the sign: torch's >> copies it."""
    return (x >> bits) & ((1 << (width - bits)) - 1)


def _mix64(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30, 64)) * _ROW[1]
    x = (x ^ _shift(x, 27, 64)) * _ROW[2]
    return x ^ _shift(x, 31, 64)


def keep_mask(rows: Tensor, features: Tensor, probability: float) -> Tensor:
    """Return the boolean mask [*rows.shape, *features.shape] of the elements that are kept.

    `rows` int64 [...]: one well-mixed key per row. `features` int64 [f]: global feature numbers.
    """
    spread = _mix64(features * _ROW[0]).to(torch.int32)
    row_1 = rows.to(torch.int32).unsqueeze(-1)
    row_2 = (rows >> 32).to(torch.int32).unsqueeze(-1)
    bits = (spread ^ row_1) * _MIX[0]
    bits ^= _shift(bits, 15, 32)
    bits += row_2
    bits *= _MIX[1]
    bits ^= _shift(bits, 16, 32)
    return bits >= round(probability * 2**32) - 2**31


def row_keys(site: int, *coordinates: Tensor) -> Tensor:
    """Return one int64 key per row from a site's seed and broadcastable integer coordinates (sample, position, ...)."""
    keys = torch.zeros((), dtype=torch.int64, device=coordinates[0].device) + site
    for coordinate in coordinates:
        keys = _mix64((keys ^ coordinate.long()) * _ROW[0] + _ROW[1])
    return keys


@final
class Dropout(nn.Module):
    """Zero elements with a probability while training and scale the rest by 1 / (1 - probability).

    `layout_invariant`: the mask is a hash of global coordinates, as this module describes. `per_rank`: torch's own
    dropout on this rank's random stream, faster, different in every layout, still exact under recomputation.
    """

    def __init__(
        self,
        probability: float,
        *,
        seed: int,
        site: str,
        place: Place | None = None,
        stream: DropoutStream = "layout_invariant",
    ) -> None:
        super().__init__()
        self.probability = probability
        self.site = derive_seed(seed, "dropout", site)
        self.place = place or Place()
        self.stream = stream

    @property
    def active(self) -> bool:
        """Whether anything is dropped now."""
        return self.training and self.probability > 0.0

    def forward(self, x: Tensor, samples: Tensor) -> Tensor:
        """Drop elements of `x` [b, s, h] (under sequence parallelism this rank's slice of s).

        `samples` int64 [b]: each row's place in the order of the whole run. `LayoutError` if elements are to be
        dropped from an `x` of another number of dimensions.
        """
        cut = self.place.sequence_parallel
        return self._drop(x, samples, first_position=self.place.index * x.shape[1] if cut else 0, cut=cut)

    def within(self, x: Tensor, samples: Tensor, *, features: range | None = None) -> Tensor:
        """Drop elements of `x` [b, s, f] within sharded computation, where the sequence is whole on all model ranks.

        `features`: the global numbers of the f features that this rank has; None: every model rank has all features.
        """
        first_feature = 0 if features is None else features.start
        return self._drop(x, samples, first_feature=first_feature, cut=features is not None)

    def _drop(
        self, x: Tensor, samples: Tensor, *, first_position: int = 0, first_feature: int = 0, cut: bool
    ) -> Tensor:
        """Drop elements of `x`; `cut`: whether model ranks hold different parts of a tensor."""
        if not self.active:
            return x
        if x.dim() != 3:
            hint = "; give it x[:, None]" if x.dim() == 2 else ""
            raise LayoutError(f"Dropout takes [b, s, h], not {list(x.shape)}{hint}")
        if self.stream == "per_rank":
            with self.place.topology.rng.stream("sharded" if cut else "replicated"):
                return nn.functional.dropout(x, self.probability)
        positions = torch.arange(first_position, first_position + x.shape[1], device=x.device)
        features = torch.arange(first_feature, first_feature + x.shape[2], device=x.device)
        rows = row_keys(self.site, samples.unsqueeze(1), positions)
        return self.apply_mask(x, keep_mask(rows, features, self.probability))

    def scores_mask(self, samples: Tensor, *, heads: range, queries: int, keys: int) -> Tensor:
        """Return the mask [b, heads, queries, keys] for attention probabilities; `heads` are global head numbers."""
        device = samples.device
        head_numbers = torch.arange(heads.start, heads.stop, device=device).unsqueeze(-1)
        positions = torch.arange(keys - queries, keys, device=device)
        rows = row_keys(self.site, samples.view(-1, 1, 1), head_numbers, positions)
        return keep_mask(rows, torch.arange(keys, device=device), self.probability)

    def apply_mask(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return `x` where the mask keeps it, scaled so that the expectation is unchanged."""
        return x * mask.to(x.dtype).mul_(1.0 / (1.0 - self.probability)) if self.probability < 1.0 else x * 0.0
