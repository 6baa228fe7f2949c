"""Edits of layers: the additions of fine-tuning methods to the parts of a layer. Each knows its parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from scaling.core import LowRankForm
from scaling.transformer.plan.parameters import Cut, Even, Padded, ParameterPlan, Start, Whole
from scaling.transformer.plan.parts import NONE, LinearPlan, MultiplyAdds, TablePlan

_ZERO, _ONE = Start("constant", 0.0), Start("constant", 1.0)
_ALL_RANKS = Whole(always_in_parts=True)


class EditPlan(Protocol):
    """A change of a layer."""

    @property
    def module(self) -> str:
        """Return the dotted name of the module of the layer that is changed; empty: the layer itself."""
        ...

    @property
    def name(self) -> str:
        """Return the name of the edit within the module."""
        ...

    def parameters(self) -> Iterator[ParameterPlan]:
        """Yield the added parameters, by names within the layer."""
        ...

    def multiply_adds(self) -> MultiplyAdds:
        """Return the multiply-adds for one token."""
        ...


def _low_rank(
    below: str, form: LowRankForm, shape: tuple[int, int], *, of_inputs: Cut, of_outputs: Cut
) -> Iterator[ParameterPlan]:
    """Yield the parameters, named `below.`, of an update of a matrix of this shape that is used in a product."""
    outputs, inputs = shape
    start = Start("uniform", form.initial_bound(inputs))
    yield ParameterPlan(name=f"{below}.a", shape=(form.rank, inputs), cut=of_inputs, start=start)
    yield ParameterPlan(name=f"{below}.b", shape=(outputs, form.rank), cut=of_outputs, start=_ZERO)
    if form.bias:
        yield ParameterPlan(name=f"{below}.bias", shape=(outputs,), cut=of_outputs, start=_ZERO)
    if form.magnitude:
        yield ParameterPlan(name=f"{below}.magnitude", shape=(outputs,), cut=of_outputs, start=_ONE)


@dataclass(frozen=True, kw_only=True)
class LowRankLinearPlan:
    """A low-rank update of a linear layer, or of one output of a fused one."""

    module: str
    name: str
    linear: LinearPlan
    form: LowRankForm
    dropout: float = 0.0

    def parameters(self) -> Iterator[ParameterPlan]:
        """Return A, B, and the other parameters of the form."""
        linear, joins_sum = self.linear, self.linear.cut == Even(1)
        of_inputs: Cut = Even(1) if joins_sum else _ALL_RANKS
        of_outputs: Cut = _ALL_RANKS if joins_sum else linear.cut
        below, shape = f"{self.module}.{self.name}", (linear.outputs, linear.inputs)
        return _low_rank(below, self.form, shape, of_inputs=of_inputs, of_outputs=of_outputs)

    def multiply_adds(self) -> MultiplyAdds:
        """Return the multiply-adds of A and B."""
        return MultiplyAdds(self.form.rank * (self.linear.inputs + self.linear.outputs), 0)


@dataclass(frozen=True, kw_only=True)
class LowRankEmbeddingPlan:
    """A low-rank update of the table that embeds tokens."""

    module: str
    name: str
    table: TablePlan
    form: LowRankForm

    def parameters(self) -> Iterator[ParameterPlan]:
        """Yield A, which is looked up, and B."""
        below, rank, table = f"{self.module}.{self.name}", self.form.rank, self.table
        yield ParameterPlan(name=f"{below}.a", shape=(rank, table.vocabulary), cut=Padded(1), start=_ZERO)
        normal = Start("normal", 1.0)
        yield ParameterPlan(name=f"{below}.b", shape=(table.hidden, rank), cut=_ALL_RANKS, start=normal)

    def multiply_adds(self) -> MultiplyAdds:
        """Return the multiply-adds of B."""
        return MultiplyAdds(self.form.rank * self.table.hidden, 0)


@dataclass(frozen=True, kw_only=True)
class LowRankHeadPlan:
    """A low-rank update of the matrix of a head."""

    module: str
    name: str
    table: TablePlan
    form: LowRankForm
    dropout: float = 0.0

    def parameters(self) -> Iterator[ParameterPlan]:
        """Return A, B, and the other parameters of the form."""
        below, shape = f"{self.module}.{self.name}", (self.table.vocabulary, self.table.hidden)
        return _low_rank(below, self.form, shape, of_inputs=_ALL_RANKS, of_outputs=Padded())

    def multiply_adds(self) -> MultiplyAdds:
        """Return the multiply-adds of A and B."""
        return MultiplyAdds(self.form.rank * (self.table.hidden + self.table.vocabulary), 0)


@dataclass(frozen=True, kw_only=True)
class VectorPlan:
    """A vector that multiplies the outputs of a linear layer, or its inputs."""

    module: str
    name: str
    linear: LinearPlan
    of_inputs: bool

    def parameters(self) -> Iterator[ParameterPlan]:
        """Yield the vector."""
        linear, joins_sum = self.linear, self.linear.cut == Even(1)
        cut: Cut
        if self.of_inputs:
            size, cut = linear.inputs, Even(0) if joins_sum else _ALL_RANKS
        else:
            size, cut = linear.outputs, Whole() if joins_sum else linear.cut
        yield ParameterPlan(name=f"{self.module}.{self.name}.scale", shape=(size,), cut=cut, start=_ONE)

    def multiply_adds(self) -> MultiplyAdds:
        """Return nothing: no matrix."""
        return NONE


@dataclass(frozen=True, kw_only=True)
class AddedBiasPlan:
    """A bias for a linear layer that has none."""

    module: str
    name: str
    linear: LinearPlan

    def parameters(self) -> Iterator[ParameterPlan]:
        """Yield the bias."""
        cut: Cut = _ALL_RANKS if self.linear.cut == Even(1) else self.linear.cut
        yield ParameterPlan(name=f"{self.module}.{self.name}.bias", shape=(self.linear.outputs,), cut=cut, start=_ZERO)

    def multiply_adds(self) -> MultiplyAdds:
        """Return nothing: no matrix."""
        return NONE


@dataclass(frozen=True, kw_only=True)
class BottleneckPlan:
    """A small network after a residual sum."""

    module: str
    name: str
    hidden: int
    width: int
    std: float

    def parameters(self) -> Iterator[ParameterPlan]:
        """Yield the matrices on the way in and out."""
        for own, shape in (("dense_in", (self.width, self.hidden)), ("dense_out", (self.hidden, self.width))):
            name, start = f"{self.module}.{self.name}.{own}.weight", Start("normal", self.std)
            yield ParameterPlan(name=name, shape=shape, cut=Whole(), start=start)

    def multiply_adds(self) -> MultiplyAdds:
        """Return the multiply-adds of both matrices."""
        return MultiplyAdds(2 * self.hidden * self.width, 0)


@dataclass(frozen=True, kw_only=True)
class SoftPromptPlan:
    """Vectors in place of the embeddings of placeholders."""

    name: str
    length: int
    hidden: int
    std: float
    module: str = ""

    def parameters(self) -> Iterator[ParameterPlan]:
        """Yield the vectors."""
        shape, start = (self.length, self.hidden), Start("normal", self.std)
        yield ParameterPlan(name=f"{self.name}.weight", shape=shape, cut=Whole(), start=start)

    def multiply_adds(self) -> MultiplyAdds:
        """Return nothing: they are looked up."""
        return NONE


@dataclass(frozen=True, kw_only=True)
class TokenRowsPlan:
    """Rows of some tokens that replace those of a table."""

    module: str
    tokens: tuple[int, ...]
    table: TablePlan
    name: str = "token_rows"

    def parameters(self) -> Iterator[ParameterPlan]:
        """Yield the rows."""
        shape, start = (len(self.tokens), self.table.hidden), Start("normal", self.table.std)
        yield ParameterPlan(name=f"{self.module}.{self.name}.weight", shape=shape, cut=_ALL_RANKS, start=start)

    def multiply_adds(self) -> MultiplyAdds:
        """Return the multiply-adds in a head, where the logits of the tokens are corrected; a lookup has none."""
        return MultiplyAdds(2 * len(self.tokens) * self.table.hidden, 0) if self.table.multiplied else NONE
