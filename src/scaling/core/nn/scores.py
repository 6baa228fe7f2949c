"""The attention scores of a layer: their scale and cap, and which keys a token sees. Pure, without torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from scaling.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of attention: how they are scaled and capped, and which of them there are.

    In addition, keys of other documents are never seen; no field here says so.
    """

    scale: float
    """Multiplies the product of a query and a key."""
    causal: bool = True
    """A token sees no later one."""
    window: int | None = None
    """Keys that a token sees, itself included: those less than this many positions away. None: all."""
    cap: float | None = None
    """Scaled scores s become cap * tanh(s / cap), before any are masked (arXiv:2408.00118). None: no cap."""
    windowed_heads: int | None = None
    """How many query heads have the window: the first ones of the layer; the others see all keys. None: all heads."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        if self.window is not None and self.window < 1:
            raise ConfigError(f"a window of {self.window} keys is none; a token sees itself: give 1 or more, or None")
        if self.cap is not None and not self.cap > 0:
            raise ConfigError(f"scores cannot be capped at {self.cap:g}; give a positive number, or None for no cap")
        if self.windowed_heads is not None and (self.window is None or self.windowed_heads < 0):
            raise ConfigError(
                f"{self.windowed_heads} heads have a window of {self.window} keys; give a window, and 0 heads or more"
            )

    def of_heads(self, heads: range) -> tuple[tuple[range, Scores], ...]:
        """Return the scores of some heads, grouped by those that have the same: one or two entries of (heads, scores).

        `heads` are the numbers, in the whole layer, of the query heads that a model rank holds. The scores of an entry
        hold for all of its heads.
        """
        if self.windowed_heads is None:
            return ((heads, self),)
        border = min(max(self.windowed_heads, heads.start), heads.stop)
        windowed, others = replace(self, windowed_heads=None), replace(self, windowed_heads=None, window=None)
        parts = ((range(heads.start, border), windowed), (range(border, heads.stop), others))
        return tuple((part, scores) for part, scores in parts if part)
