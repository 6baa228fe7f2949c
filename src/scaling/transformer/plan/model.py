"""ModelPlan: the list of layers, and the properties of the whole model that follow from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import repeat
from math import gcd, prod
from typing import Literal, TypeVar

from scaling.transformer.plan.attention import AttentionPlan
from scaling.transformer.plan.edits import EditPlan
from scaling.transformer.plan.float8 import NO_FLOAT8, Float8Plan
from scaling.transformer.plan.parameters import ParameterPlan
from scaling.transformer.plan.parts import FeedForwardPlan, MultiplyAdds, PartPlan

Part = TypeVar("Part", bound=PartPlan)


@dataclass(frozen=True)
class LayerPlan:
    """A layer of the pipeline: the class that runs it, and its parts, by their names in checkpoints."""

    kind: str
    """`embedding`, `pre`, `norm`, `head`, ...: how the parts are put together."""
    parts: tuple[tuple[str, PartPlan], ...]
    tied: tuple[str, ...] = ()
    """Parameters of the parts shared with the other layers that tie the same names."""
    edits: tuple[EditPlan, ...] = ()
    """Additions to the parts."""
    tied_edits: tuple[str, ...] = ()
    """Parameters of the edits that are shared in the same way."""

    @property
    def shared(self) -> tuple[str, ...]:
        """Return all parameters shared with other layers."""
        return (*self.tied, *self.tied_edits)

    def parameters(self) -> Iterator[ParameterPlan]:
        """Yield the parameters by their names within the layer."""
        for name, part in self.parts:
            yield from part.parameters(name)
        for edit in self.edits:
            yield from edit.parameters()

    def multiply_adds(self, sequence: int) -> MultiplyAdds:
        """Return the multiply-adds for one token in a sequence of this length."""
        each = [part.multiply_adds(sequence) for _, part in self.parts]
        each += [edit.multiply_adds() for edit in self.edits]
        return MultiplyAdds(sum(one.matrices for one in each), sum(one.scores for one in each))


@dataclass(frozen=True)
class Arithmetic:
    """How the model is computed; nothing here changes the model."""

    precision: Literal["float64", "float32", "bfloat16", "float16"] = "float32"
    """Type of parameters and activations."""
    kernel: Literal["torch", "flash_attention"] = "torch"
    """Kernel of attention."""
    deterministic: bool = False
    """Whether the backward pass of flash attention gives the same bits each time."""
    dropout_stream: Literal["layout_invariant", "per_rank"] = "layout_invariant"
    """Whether dropout masks are the same in every layout, or are drawn faster."""
    float8: Float8Plan = NO_FLOAT8
    """The products that are in 8 bits."""


@dataclass(frozen=True)
class Divisors:
    """Numbers that must divide evenly where a model is cut."""

    heads: int
    """Greatest common divisor of all layers' numbers of heads; the model-parallel size must divide it."""
    width: int
    """Greatest common divisor of all feed-forward widths; the model-parallel size must divide it."""
    kv_heads: tuple[int, ...]
    """Numbers of key-value heads; each must be a multiple of the model-parallel size, or divide it."""
    sequence: int
    """Sequence length; under sequence parallelism, the model-parallel size must divide it."""


@dataclass(frozen=True)
class ModelPlan:
    """A model: its layers from the first to the last, with equal consecutive layers in one run."""

    runs: tuple[tuple[int, LayerPlan], ...]
    """(number of layers, layer)."""
    sequence: int
    """Number of tokens of one sample."""
    arithmetic: Arithmetic = Arithmetic()

    @property
    def num_layers(self) -> int:
        """Return the length of the list that is cut into pipeline stages."""
        return sum(count for count, _ in self.runs)

    def layers(self) -> Iterator[LayerPlan]:
        """Yield the layers in the order in which they run."""
        for count, layer in self.runs:
            yield from repeat(layer, count)

    @property
    def costs(self) -> list[float]:
        """Return the cost of each layer, for the balanced partition."""
        each = [(count, layer.multiply_adds(self.sequence).cost) for count, layer in self.runs]
        return [cost for count, cost in each for _ in range(count)]

    @property
    def multiply_adds(self) -> MultiplyAdds:
        """Return the multiply-adds of a forward pass, per token."""
        each = [(count, layer.multiply_adds(self.sequence)) for count, layer in self.runs]
        return MultiplyAdds(
            sum(count * one.matrices for count, one in each), sum(count * one.scores for count, one in each)
        )

    def parameters(self, layers: range | None = None) -> Iterator[ParameterPlan]:
        """Yield the parameters of some layers (None: of all) by their global names, each once.

        A parameter that layers share has the name that it has in the first of them.
        """
        owners: dict[str, str] = {}
        seen = set()
        for index, layer in enumerate(self.layers()):
            for parameter in layer.parameters():
                name = f"layers.{index}.{parameter.name}"
                if parameter.name in layer.shared:
                    name = owners.setdefault(parameter.name, name)
                if (layers is None or index in layers) and name not in seen:
                    seen.add(name)
                    yield replace(parameter, name=name)

    @property
    def num_parameters(self) -> int:
        """Return how many numbers are learned: the sizes of all tensors, with those that layers share counted once."""
        total, shared = 0, set()
        for count, layer in self.runs:
            for parameter in layer.parameters():
                if parameter.name not in layer.shared:
                    total += count * prod(parameter.shape)
                elif parameter.name not in shared:
                    shared.add(parameter.name)
                    total += prod(parameter.shape)
        return total

    def parts(self, kind: type[Part]) -> list[Part]:
        """Return the distinct parts of a kind."""
        return list(dict.fromkeys(part for _, layer in self.runs for _, part in layer.parts if isinstance(part, kind)))

    @property
    def divisors(self) -> Divisors:
        """Return the numbers that the sizes of the axes must divide."""
        attentions = self.parts(AttentionPlan)
        return Divisors(
            heads=gcd(*(attention.heads for attention in attentions)),
            width=gcd(*(part.width for part in self.parts(FeedForwardPlan))),
            kv_heads=tuple(sorted({attention.kv_heads for attention in attentions})),
            sequence=self.sequence,
        )
