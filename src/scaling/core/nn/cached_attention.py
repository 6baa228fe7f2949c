"""Attention for generation: the keys and values of earlier positions are kept, and new positions attend to them.

Shape suffixes: T new tokens of all texts, one after the other; A active rows of a pool, R all of its rows; P kept
positions of a row, S those attended to, C new positions of one row; H query heads, K key-value heads, G query heads
that share one of these; D head features.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaling.core.errors import ConfigError
from scaling.core.nn.attention_masks import band
from scaling.core.nn.cache_spans import CacheShape, Decode, Prefill, Span, head_pieces, seen, stretches
from scaling.core.nn.scores import Scores

_HALF = (torch.bfloat16, torch.float16)


class DecodePlan(NamedTuple):
    """Where the new positions of the rows of a pool are kept, and which slots they see."""

    new: tuple[slice | Tensor, slice, int | Tensor]
    """The index of the new positions in [r, k, p, d]; it selects [a, k, d]."""
    seen: slice
    """The slots that the rows see together."""
    mask: Tensor | None
    """The mask to add to the scores, [a, 1, 1, s]. None: every row sees all of these slots."""


@final
class SharedSpans:
    """The spans of a step of generation, and the masks and indices that its layers share: each is made once."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self.spans = tuple(spans)
        self._decodes: dict[Hashable, DecodePlan] = {}
        self._masks: dict[Hashable, Tensor] = {}

    def decode(self, number: int, span: Decode, window: int | None, positions: int, like: Tensor) -> DecodePlan:
        """Return the plan for caches that keep `positions`; `like` has the device, and the type of the scores."""
        key = (number, window, positions, like.dtype)
        if key not in self._decodes:
            self._decodes[key] = _decode_plan(span.starts, window, positions, like)
        return self._decodes[key]

    def prefill(self, queries: int, keys: int, window: int | None, like: Tensor) -> Tensor:
        """Return the mask to add to the scores [1, 1, queries, keys] of the last positions of a text."""
        if window is not None and window >= keys:
            window = None
        key = (queries, keys, window, like.dtype)
        if key not in self._masks:
            self._masks[key] = _added(band(queries, keys, causal=True, window=window, device=like.device), like.dtype)
        return self._masks[key]


def _decode_plan(starts: Sequence[int], window: int | None, positions: int, like: Tensor) -> DecodePlan:
    found, device = seen(starts, window, positions), like.device
    new: tuple[slice | Tensor, slice, int | Tensor] = (slice(0, len(starts)), slice(None), starts[0] % positions)
    if len(set(starts)) > 1:
        slots_A = torch.tensor([start % positions for start in starts], device=device)
        new = (torch.arange(len(starts), device=device), slice(None), slots_A)
    mask = None
    if not found.alike:
        slots_S = torch.arange(found.first, found.stop, device=device)
        first_A1, stop_A1 = torch.tensor(found.rows, device=device)[:, :, None].unbind(1)
        mask = _added((slots_S >= first_A1) & (slots_S < stop_A1), like.dtype)[:, None, None]
    return DecodePlan(new, slice(found.first, found.stop), mask)


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the mask to add to scores: minus infinity where `mask` is False, else 0."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)


@final
class KeyValueCache:
    """Keys and values of one attention layer, for the rows of each pool, and attention to them.

    `heads` are the global numbers of this rank's query heads, of which some may have a window and others not. The
    memory is allocated and cleared at once. Slots after the end of a row stay zero, whatever the row held before: rows
    of different lengths are attended to together, and zero times NaN would be NaN.
    """

    def __init__(
        self,
        shapes: Sequence[CacheShape],
        scores: Scores,
        *,
        heads: range,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        if not scores.causal:
            raise ConfigError(
                "a model whose tokens see later ones cannot continue a text (transformer_architecture.causal is "
                "false); give a causal one"
            )
        group = len(heads) // shapes[0].heads
        self._pieces = [
            (slice(queries.start, queries.stop), slice(kept.start, kept.stop), of.window)
            for part, of in scores.of_heads(heads)
            for queries, kept in head_pieces(range(part.start - heads.start, part.stop - heads.start), group)
        ]
        self._scale, self._cap = scores.scale, scores.cap
        with torch.inference_mode(mode=False):  # inference tensors could not be written later
            self.memory = [
                torch.zeros(2, shape.rows, shape.heads, shape.positions, shape.head_size, dtype=dtype, device=device)
                for shape in shapes
            ]
        self._keys_RKPD = [kept[0] for kept in self.memory]
        self._values_RKPD = [kept[1] for kept in self.memory]
        self._used = [0 for _ in shapes]
        """By pool, the number of slots that may hold something in any row."""

    @property
    def nbytes(self) -> int:
        """Return the memory of the keys and values."""
        return sum(kept.nbytes for kept in self.memory)

    def attend(self, shared: SharedSpans, q_1THD: Tensor, k_1TKD: Tensor, v_1TKD: Tensor) -> Tensor:
        """Keep the keys and values of new positions, and let these attend. Returns [1, t, h, d]."""
        found, start = [], 0
        for number, span in enumerate(shared.spans):
            part = slice(start, start + span.tokens)
            if len(shared.spans) == 1:
                q, k, v = q_1THD, k_1TKD, v_1TKD
            else:
                q, k, v = q_1THD[:, part], k_1TKD[:, part], v_1TKD[:, part]
            if isinstance(span, Decode):
                found.append(self._decode(shared, number, span, q, k, v))
            else:
                found.append(self._prefill(shared, span, q, k, v))
            start = part.stop
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)

    def move(self, pool: int, source: int, target: int, length: int) -> None:
        """Copy row `source`, of `length` tokens, to row `target`."""
        kept = self.memory[pool]
        stop = min(length, kept.shape[3])
        kept[:, target, :, :stop] = kept[:, source, :, :stop]
        kept[:, target, :, stop : self._used[pool]] = 0

    def _decode(
        self, shared: SharedSpans, number: int, span: Decode, q_1AHD: Tensor, k_1AKD: Tensor, v_1AKD: Tensor
    ) -> Tensor:
        keys_RKPD, values_RKPD, active = self._keys_RKPD[span.pool], self._values_RKPD[span.pool], len(span.starts)
        wide_1AHD = _wide(q_1AHD)
        found: list[Tensor] = []
        for queries, heads, window in self._pieces:
            plan = shared.decode(number, span, window, keys_RKPD.shape[2], wide_1AHD)
            if not found:  # all pieces keep the same keys and values
                keys_RKPD[plan.new], values_RKPD[plan.new] = k_1AKD[0], v_1AKD[0]
                self._used[span.pool] = max(self._used[span.pool], plan.seen.stop)
            k_AKSD, v_AKSD = keys_RKPD[:active, heads, plan.seen], values_RKPD[:active, heads, plan.seen]
            q_AKGD = wide_1AHD[:, :, queries].reshape(active, k_AKSD.shape[1], -1, k_AKSD.shape[3])
            out_AKGD = self._attention(q_AKGD, _wide(k_AKSD), _wide(v_AKSD), plan.mask)
            found.append(out_AKGD.reshape(1, active, -1, k_AKSD.shape[3]))
        out_1AHD = found[0] if len(found) == 1 else torch.cat(found, dim=2)
        return out_1AHD.to(q_1AHD.dtype)

    def _prefill(self, shared: SharedSpans, span: Prefill, q_1CHD: Tensor, k_1CKD: Tensor, v_1CKD: Tensor) -> Tensor:
        row_KPD = [kept[span.row] for kept in (self._keys_RKPD[span.pool], self._values_RKPD[span.pool])]
        new_KCD = [new[0].transpose(0, 1) for new in (k_1CKD, v_1CKD)]
        start, stop, positions = span.start, span.start + span.count, row_KPD[0].shape[1]
        if start and stop > positions:  # new positions overwrite some that the first of them still see
            before = list(stretches(max(0, start + 1 - positions), start, positions))
            k_KSD, v_KSD = (
                torch.cat([*(row[:, slot : slot + count] for _, slot, count in before), new.to(row.dtype)], dim=1)
                for row, new in zip(row_KPD, new_KCD, strict=True)
            )
        for position, slot, count in stretches(max(start, stop - positions), stop, positions):
            for row, new in zip(row_KPD, new_KCD, strict=True):
                row[:, slot : slot + count] = new[:, position - start : position - start + count]
        if start == 0:
            for row in row_KPD:  # clear the rest of another text
                row[:, stop : self._used[span.pool]] = 0
            k_KSD, v_KSD = new_KCD
        elif stop <= positions:
            k_KSD, v_KSD = (row[:, :stop] for row in row_KPD)
        self._used[span.pool] = max(self._used[span.pool], min(stop, positions))
        return self._last_positions(shared, _wide(q_1CHD), k_KSD[None], v_KSD[None]).to(q_1CHD.dtype)

    def _last_positions(self, shared: SharedSpans, q_1CHD: Tensor, k_1KSD: Tensor, v_1KSD: Tensor) -> Tensor:
        """Let the last positions of a text attend to all of its positions, or to as many as any of them sees."""
        found, queries = [], q_1CHD.shape[1]
        for own, heads, window in self._pieces:
            keys = k_1KSD.shape[2] if window is None else min(k_1KSD.shape[2], queries + window - 1)
            k, v = (_wide(t[:, heads, t.shape[2] - keys :]) for t in (k_1KSD, v_1KSD))
            q_1HCD = q_1CHD[:, :, own].transpose(1, 2)
            causal = self._cap is None and queries == keys and (window is None or window >= keys)
            mask = None if causal or queries == 1 else shared.prefill(queries, keys, window, q_1CHD)
            if self._cap is None:
                gqa = q_1HCD.shape[1] != k.shape[1]
                out = F.scaled_dot_product_attention(
                    q_1HCD, k, v, attn_mask=mask, is_causal=causal, scale=self._scale, enable_gqa=gqa
                )
            else:
                out = self._spelled_out(q_1HCD.unflatten(1, (k.shape[1], -1)), k, v, mask).flatten(1, 2)
            found.append(out.transpose(1, 2))
        return found[0] if len(found) == 1 else torch.cat(found, dim=2)

    def _attention(self, q_AKGD: Tensor, k_AKSD: Tensor, v_AKSD: Tensor, mask: Tensor | None) -> Tensor:
        """Let one position of each row attend. Query heads that share a key are in the usual dimension of positions."""
        if self._cap is None and (q_AKGD.shape[0] == 1 or q_AKGD.device.type != "cpu"):
            return F.scaled_dot_product_attention(q_AKGD, k_AKSD, v_AKSD, attn_mask=mask, scale=self._scale)
        return self._spelled_out(q_AKGD.unsqueeze(3), k_AKSD, v_AKSD, mask).squeeze(3)

    def _spelled_out(self, q_BKGCD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, mask: Tensor | None) -> Tensor:
        """Return [b, k, g, c, d]. `mask`, which is added to the scores, has a size of 1 for heads."""
        wide = torch.float64 if q_BKGCD.dtype == torch.float64 else torch.float32
        group = q_BKGCD.shape[2]
        q, k, v = (q_BKGCD.flatten(2, 3) * self._scale).to(wide), k_BKSD.to(wide), v_BKSD.to(wide)
        scores = torch.matmul(q, k.transpose(2, 3))
        if self._cap is not None:
            scores = scores.div_(self._cap).tanh_().mul_(self._cap)
        if mask is not None:
            scores.view(*scores.shape[:2], group, -1, scores.shape[-1]).add_(mask.unsqueeze(2))
        out = torch.matmul(scores.softmax(-1), v).to(q_BKGCD.dtype)
        return out.view(*q_BKGCD.shape)


def _wide(t: Tensor) -> Tensor:
    """Return half precision on a CPU as float32, in which attention is computed there and rounded once."""
    return t.float() if t.dtype in _HALF and t.device.type == "cpu" else t


@final
class KeyValueCaches:
    """The caches of all attention layers that a rank runs."""

    def __init__(self, *, dtype: torch.dtype, device: torch.device | str) -> None:
        self._dtype, self._device = dtype, device
        self._caches: dict[nn.Module, KeyValueCache] = {}

    def add(self, attention: nn.Module, shapes: Sequence[CacheShape], scores: Scores, *, heads: range) -> None:
        """Make the cache of a layer: a shape for each pool, and the global numbers of this rank's query heads."""
        self._caches[attention] = KeyValueCache(shapes, scores, heads=heads, dtype=self._dtype, device=self._device)

    def __getitem__(self, attention: nn.Module) -> KeyValueCache:
        """Return the cache of a layer."""
        return self._caches[attention]

    def release(self) -> None:
        """Release the memory, even while something else, such as an error, still refers to this object."""
        self._caches.clear()

    @property
    def nbytes(self) -> int:
        """Return the memory of all keys and values."""
        return sum(cache.nbytes for cache in self._caches.values())

    def move(self, pool: int, source: int, target: int, length: int) -> None:
        """Copy row `source`, of `length` tokens, to row `target`, in every layer."""
        for cache in self._caches.values():
            cache.move(pool, source, target, length)


@final
class Past:
    """The context of the tokens of one step: the caches, and the place of each of the tokens in them.

    The first layer receives it with the tokens, and attention calls it in place of its core.
    """

    def __init__(self, caches: KeyValueCaches, spans: Sequence[Span]) -> None:
        self.caches = caches
        self.shared = SharedSpans(spans)

    def __call__(self, attention: nn.Module, q_1THD: Tensor, k_1TKD: Tensor, v_1TKD: Tensor) -> Tensor:
        """Keep the keys and values of a layer, and return the outputs of its heads, [1, t, h, d]."""
        return self.caches[attention].attend(self.shared, q_1THD, k_1TKD, v_1TKD)
