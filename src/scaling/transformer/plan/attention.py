"""Self-attention as a part of a layer: heads, rotation, norms of queries and keys, and the keys that are seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from scaling.core import Heads, RotaryScaling
from scaling.transformer.plan.parameters import Cut, Even, ParameterPlan, Whole
from scaling.transformer.plan.parts import LinearPlan, MultiplyAdds, NormPlan


@dataclass(frozen=True)
class RotationPlan:
    """Rotary positions: pairs of the first `dimensions` features of a head are rotated."""

    dimensions: int
    base: float
    interleaved: bool
    """Whether pairs are neighbours, instead of a feature of the first half and one of the second."""
    scaling: RotaryScaling
    length: int
    """Length of the configured sequences, on which some scalings depend."""


@dataclass(frozen=True)
class KeyQueryNormPlan:
    """Norms of queries and keys, within each head or over the features of all heads."""

    norm: NormPlan
    """Norm of one head."""
    over_all_heads: bool = False

    def cut_of(self, heads: int) -> Cut:
        """Return how the model axis cuts the weights for `heads` heads, of which a rank has only its own."""
        return Heads(heads, self.norm.features) if self.over_all_heads else Whole(always_in_parts=True)


@dataclass(frozen=True, kw_only=True)
class AttentionPlan:
    """Self-attention with grouped heads."""

    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    fused: bool
    """Whether query, key and value are one product; checkpoints hold three weights all the same."""
    scale: float
    """Factor of the scores, in place of 1 / sqrt(head size)."""
    causal: bool
    projection_bias: bool
    """Whether query, key and value have biases."""
    output_bias: bool
    projection_std: float
    output_std: float
    rotation: RotationPlan | None = None
    norm: KeyQueryNormPlan | None = None
    clip: float | None = None
    """Queries, keys and values are clipped to plus and minus this. None: they are not clipped."""
    window: int | None = None
    """Number of keys that a token sees, itself included. None: all."""
    windowed_heads: int | None = None
    """Only this many heads, the first ones, have the window. None: all."""
    cap: float | None = None
    """Scores s become cap * tanh(s / cap). None: no cap."""
    dropout: float = 0.0
    """Dropout of the probabilities."""

    @property
    def projections(self) -> tuple[LinearPlan, ...]:
        """Return the products that compute queries, keys and values."""
        counts = {"query": self.heads, "key": self.kv_heads, "value": self.kv_heads}
        return tuple(
            LinearPlan(
                name=name,
                inputs=self.hidden,
                outputs=count * self.head_size,
                cut=Heads(count, self.head_size),
                bias=self.projection_bias,
                std=self.projection_std,
            )
            for name, count in counts.items()
        )

    @property
    def dense(self) -> LinearPlan:
        """Return the product that maps the heads back to the residual stream."""
        return LinearPlan(
            name="dense",
            inputs=self.heads * self.head_size,
            outputs=self.hidden,
            cut=Even(1),
            bias=self.output_bias,
            std=self.output_std,
        )

    def parameters(self, name: str) -> Iterator[ParameterPlan]:
        """Yield weights, biases and norms."""
        for linear in (*self.projections, self.dense):
            yield from linear.parameters(name)
        if self.norm is not None:
            for own, heads in (("norm_query", self.heads), ("norm_key", self.kv_heads)):
                norm, cut = self.norm.norm, self.norm.cut_of(heads)
                features = norm.features * heads if self.norm.over_all_heads else norm.features
                yield from replace(norm, features=features).parameters(f"{name}.{own}", cut=cut)

    def multiply_adds(self, sequence: int) -> MultiplyAdds:
        """Return the multiply-adds of the projections and of the scores."""
        windowed = self.heads if self.windowed_heads is None else min(self.heads, self.windowed_heads)
        window = sequence if self.window is None else min(self.window, sequence)
        keys = (self.heads - windowed) * sequence + windowed * window
        matrices = sum(linear.inputs * linear.outputs for linear in (*self.projections, self.dense))
        return MultiplyAdds(matrices, 2 * self.head_size * keys)
