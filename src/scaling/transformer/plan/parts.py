"""The parts of a layer: norm, attention, feed-forward, the table of a vocabulary, dropout.

Each knows its parameters and its products; sizes are those of the whole model, whatever the layout.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from scaling.core import Heads, NormType
from scaling.transformer.plan.parameters import Cut, Even, Padded, ParameterPlan, Start, Whole


class MultiplyAdds(NamedTuple):
    """Multiply-adds of a forward pass for one token."""

    matrices: int
    """With weights: one for each."""
    scores: int
    """Of queries with keys, and of probabilities with values, as if every token saw the whole sequence."""

    @property
    def cost(self) -> float:
        """Return what the balanced partition weighs: of the scores a causal kernel computes half."""
        return self.matrices + self.scores / 2


NONE = MultiplyAdds(0, 0)


class PartPlan(Protocol):
    """A part of a layer."""

    def parameters(self, name: str) -> Iterator[ParameterPlan]:
        """Yield the parameters of the part, which its layer calls `name`."""
        ...

    def multiply_adds(self, sequence: int) -> MultiplyAdds:
        """Return what one token costs in a sequence of so many."""
        ...


@dataclass(frozen=True)
class DropoutPlan:
    """Dropout of activations, at a site by which its masks are told apart from others."""

    site: str
    probability: float

    def parameters(self, name: str) -> Iterator[ParameterPlan]:
        """Yield nothing."""
        return iter(())

    def multiply_adds(self, sequence: int) -> MultiplyAdds:
        """Return nothing."""
        return NONE


@dataclass(frozen=True, kw_only=True)
class NormPlan:
    """LayerNorm, with a bias or without, or RMSNorm."""

    kind: NormType
    features: int
    epsilon: float
    bias: bool = False

    def parameters(self, name: str, *, of_heads: bool = False) -> Iterator[ParameterPlan]:
        """Yield weight and bias; `of_heads`: the norm of queries or keys, of which a model rank sees its heads."""
        for own, value in (("weight", 1.0), ("bias", 0.0))[: 1 + self.bias]:
            cut, start = Whole(always_in_parts=of_heads), Start("constant", value)
            yield ParameterPlan(name=f"{name}.{own}", shape=(self.features,), cut=cut, start=start)

    def multiply_adds(self, sequence: int) -> MultiplyAdds:
        """Return nothing: no matrix."""
        return NONE


@dataclass(frozen=True, kw_only=True)
class TablePlan:
    """A vector for each token of the vocabulary: looked up by an embedding, multiplied by a head."""

    vocabulary: int
    hidden: int
    std: float
    multiplied: bool = False

    def parameters(self, name: str) -> Iterator[ParameterPlan]:
        """Yield the table."""
        shape, start = (self.vocabulary, self.hidden), Start("normal", self.std)
        yield ParameterPlan(name=f"{name}.weight", shape=shape, cut=Padded(), start=start)

    def multiply_adds(self, sequence: int) -> MultiplyAdds:
        """Return those of a head."""
        return MultiplyAdds(self.vocabulary * self.hidden, 0) if self.multiplied else NONE


@dataclass(frozen=True, kw_only=True)
class LinearPlan:
    """A matrix product within a part."""

    name: str
    inputs: int
    outputs: int
    cut: Even | Heads
    bias: bool
    std: float

    def parameters(self, name: str) -> Iterator[ParameterPlan]:
        """Yield weight and bias; a bias behind a sum over the model axis is whole on every rank."""
        shape, start = (self.outputs, self.inputs), Start("normal", self.std)
        yield ParameterPlan(name=f"{name}.{self.name}.weight", shape=shape, cut=self.cut, start=start)
        if self.bias:
            cut: Cut = Whole() if self.cut == Even(1) else self.cut
            zeros = Start("constant", 0.0)
            yield ParameterPlan(name=f"{name}.{self.name}.bias", shape=(self.outputs,), cut=cut, start=zeros)


@dataclass(frozen=True)
class RotationPlan:
    """Rotary positions: pairs of the first `dimensions` features of a head are turned."""

    dimensions: int
    base: float
    interleaved: bool
    """Pairs are neighbours, instead of a feature of the first half and one of the second."""


@dataclass(frozen=True, kw_only=True)
class AttentionPlan:
    """Self-attention of grouped heads."""

    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    fused: bool
    """Query, key and value in one product; checkpoints hold three weights all the same."""
    scale: float
    """Of the scores, in place of 1 / sqrt(head size)."""
    causal: bool
    projection_bias: bool
    """Of query, key and value."""
    output_bias: bool
    projection_std: float
    output_std: float
    rotation: RotationPlan | None = None
    norm: NormPlan | None = None
    """Of queries and keys, within each head."""
    window: int | None = None
    """Keys that a token sees, itself included. None: all."""
    cap: float | None = None
    """Scores s become cap * tanh(s / cap). None: they stay."""
    dropout: float = 0.0
    """Of the probabilities."""

    @property
    def projections(self) -> tuple[LinearPlan, ...]:
        """Return the products that make queries, keys and values."""
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
        """Return the product that takes the heads back to the residual stream."""
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
            for own in ("norm_query", "norm_key"):
                yield from self.norm.parameters(f"{name}.{own}", of_heads=True)

    def multiply_adds(self, sequence: int) -> MultiplyAdds:
        """Return those of the projections and of the scores."""
        seen = sequence if self.window is None else min(self.window, sequence)
        matrices = sum(linear.inputs * linear.outputs for linear in (*self.projections, self.dense))
        return MultiplyAdds(matrices, 2 * self.heads * self.head_size * seen)


@dataclass(frozen=True, kw_only=True)
class FeedForwardPlan:
    """out(activation(in x)); gated: out(activation(in x) * linear factor)."""

    hidden: int
    width: int
    activation: str
    gated: bool
    input_bias: bool
    output_bias: bool
    input_std: float
    output_std: float

    @property
    def inputs(self) -> tuple[LinearPlan, ...]:
        """Return the products on the way in: the one inside the activation, then the linear factor."""
        return tuple(
            LinearPlan(
                name=name,
                inputs=self.hidden,
                outputs=self.width,
                cut=Even(0),
                bias=self.input_bias,
                std=self.input_std,
            )
            for name in ("dense_in", "siglu_weight")[: 1 + self.gated]
        )

    @property
    def output(self) -> LinearPlan:
        """Return the product on the way out."""
        return LinearPlan(
            name="dense_out",
            inputs=self.width,
            outputs=self.hidden,
            cut=Even(1),
            bias=self.output_bias,
            std=self.output_std,
        )

    def parameters(self, name: str) -> Iterator[ParameterPlan]:
        """Yield weights and biases."""
        for linear in (*self.inputs, self.output):
            yield from linear.parameters(name)

    def multiply_adds(self, sequence: int) -> MultiplyAdds:
        """Return those of the matrices."""
        return MultiplyAdds(sum(linear.inputs * linear.outputs for linear in (*self.inputs, self.output)), 0)
