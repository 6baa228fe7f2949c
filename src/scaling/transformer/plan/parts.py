"""The parts of a layer: norms, tables, products, feed-forward, and those without weights. Attention has its own file.

Each part knows its parameters and its products; sizes are those of the whole model, whatever the layout.
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
    """Multiply-adds with weights: one for each weight."""
    scores: int
    """Multiply-adds of queries with keys, and of probabilities with values, as if tokens saw the whole sequence."""

    @property
    def cost(self) -> float:
        """Return the cost for the balanced partition: a causal kernel computes half of the scores."""
        return self.matrices + self.scores / 2


NONE = MultiplyAdds(0, 0)


class PartPlan(Protocol):
    """A part of a layer."""

    def parameters(self, name: str) -> Iterator[ParameterPlan]:
        """Yield the parameters of the part, whose name in its layer is `name`."""
        ...

    def multiply_adds(self, sequence: int) -> MultiplyAdds:
        """Return the multiply-adds for one token in a sequence of this length."""
        ...


@dataclass(frozen=True)
class DropoutPlan:
    """Dropout of activations, at a site that distinguishes its masks from others."""

    site: str
    probability: float

    def parameters(self, name: str) -> Iterator[ParameterPlan]:
        """Yield nothing."""
        return iter(())

    def multiply_adds(self, sequence: int) -> MultiplyAdds:
        """Return nothing."""
        return NONE


@dataclass(frozen=True)
class ScalePlan:
    """Multiplication by a constant."""

    factor: float

    def parameters(self, name: str) -> Iterator[ParameterPlan]:
        """Yield nothing."""
        return iter(())

    def multiply_adds(self, sequence: int) -> MultiplyAdds:
        """Return nothing."""
        return NONE


@dataclass(frozen=True)
class ResidualPlan:
    """The sum of the residual stream and the output of a branch, with dropout and a constant factor."""

    site: str
    """Distinguishes the masks of its dropout from others."""
    dropout: float = 0.0
    scale: float = 1.0

    def parameters(self, name: str) -> Iterator[ParameterPlan]:
        """Yield nothing."""
        return iter(())

    def multiply_adds(self, sequence: int) -> MultiplyAdds:
        """Return nothing."""
        return NONE


@dataclass(frozen=True, kw_only=True)
class NormPlan:
    """LayerNorm, with weight and bias or without, or RMSNorm."""

    kind: NormType
    features: int
    epsilon: float
    bias: bool = False
    weight: bool = True
    offset: int = 0
    """Number that is added to the weight where the weight is used."""

    def parameters(self, name: str, *, cut: Cut | None = None) -> Iterator[ParameterPlan]:
        """Yield weight and bias; `cut`: how the model axis cuts them, if not like those of the residual stream."""
        cut = Whole() if cut is None else cut
        for own, present, value in (("weight", self.weight, 1.0 - self.offset), ("bias", self.bias, 0.0)):
            if present:
                start = Start("constant", value)
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
        """Return the multiply-adds of a head; a lookup has none."""
        return MultiplyAdds(self.vocabulary * self.hidden, 0) if self.multiplied else NONE


@dataclass(frozen=True)
class LogitBiasPlan:
    """A number for each token of the vocabulary, added to its logit."""

    vocabulary: int

    def parameters(self, name: str) -> Iterator[ParameterPlan]:
        """Yield the bias."""
        zeros = Start("constant", 0.0)
        yield ParameterPlan(name=f"{name}.weight", shape=(self.vocabulary,), cut=Padded(), start=zeros)

    def multiply_adds(self, sequence: int) -> MultiplyAdds:
        """Return nothing: no matrix."""
        return NONE


@dataclass(frozen=True)
class LogitRangePlan:
    """The range of a head's logits x, which become cap * tanh(scale * x / cap)."""

    scale: float = 1.0
    cap: float | None = None
    """None: the logits are only scaled."""

    def parameters(self, name: str) -> Iterator[ParameterPlan]:
        """Yield nothing."""
        return iter(())

    def multiply_adds(self, sequence: int) -> MultiplyAdds:
        """Return nothing: no matrix."""
        return NONE


@dataclass(frozen=True, kw_only=True)
class PositionTablePlan:
    """A learned vector for each position, added to the embedding."""

    length: int
    hidden: int
    std: float

    def parameters(self, name: str) -> Iterator[ParameterPlan]:
        """Yield the table."""
        shape, start = (self.length, self.hidden), Start("normal", self.std)
        yield ParameterPlan(name=f"{name}.weight", shape=shape, cut=Whole(), start=start)

    def multiply_adds(self, sequence: int) -> MultiplyAdds:
        """Return nothing: it is looked up."""
        return NONE


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
        """Yield weight and bias; a bias after a sum over the model axis is whole on every rank."""
        shape, start = (self.outputs, self.inputs), Start("normal", self.std)
        yield ParameterPlan(name=f"{name}.{self.name}.weight", shape=shape, cut=self.cut, start=start)
        if self.bias:
            cut: Cut = Whole() if self.cut == Even(1) else self.cut
            zeros = Start("constant", 0.0)
            yield ParameterPlan(name=f"{name}.{self.name}.bias", shape=(self.outputs,), cut=cut, start=zeros)


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
        """Return the multiply-adds of the matrices."""
        return MultiplyAdds(sum(linear.inputs * linear.outputs for linear in (*self.inputs, self.output)), 0)
