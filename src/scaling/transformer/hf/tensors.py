"""TensorMap: one tensor of a Hugging Face file and the tensors of ours that it consists of; Table: maps of a family.

Names come from the family's data, shapes and layers from the plan: a tensor that a model does not have has no map.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final, Literal

from scaling.transformer.plan.attention import AttentionPlan
from scaling.transformer.plan.model import ModelPlan

_LAYER: Final = re.compile(r"layers\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Rows:
    """Where the rows of one of our tensors lie along dimension 0 of theirs: in blocks, in order.

    Their tensor is meant as it is before it is transposed.
    """

    offset: int
    """First row of the first block."""
    block: int
    """Number of rows of a block; divides the number of our rows."""
    stride: int
    """Rows from the beginning of a block to the beginning of the next."""


@dataclass(frozen=True)
class Source:
    """A tensor of ours."""

    key: str
    shape: tuple[int, ...]
    rows: Rows | None = None
    """None: the source is the whole of their tensor."""


@dataclass(frozen=True)
class TensorMap:
    """A tensor of theirs, and the tensors of ours that it consists of."""

    name: str
    shape: tuple[int, ...]
    """Shape in their file."""
    sources: tuple[Source, ...]
    """Together they fill the tensor, each value once."""
    transposed: bool = False
    """Their file holds the transpose of the combined sources (GPT-2's `Conv1D`). False for tensors of one dimension."""


@dataclass(frozen=True)
class Row:
    """A module of theirs, and the modules of ours that its weight and its bias consist of."""

    theirs: str
    ours: Sequence[str]
    """Names within the layer."""
    order: Literal["blocks", "heads"] = "blocks"
    """blocks: our modules in turn; heads: the rows of one head of each module, then those of the next head."""
    transposed: bool = False

    def maps(self, prefix: str, ours: Shapes, layer: int, head_size: int) -> Iterator[TensorMap]:
        """Yield the maps of weight and bias, as far as the model has them, and remove the parts from `ours`."""
        for kind in ("weight", "bias"):
            keys = [f"layers.{layer}.{name}.{kind}" for name in self.ours]
            if all(key in ours for key in keys):
                yield self._map(f"{prefix}{self.theirs}.{kind}", {key: ours.pop(key) for key in keys}, head_size)

    def _map(self, name: str, parts: Shapes, head_size: int) -> TensorMap:
        counts, rest = [shape[0] for shape in parts.values()], next(iter(parts.values()))[1:]
        shape, transposed = (sum(counts), *rest), self.transposed and bool(rest)
        if len(parts) == 1:
            rows: list[Rows | None] = [None]
        elif self.order == "heads":
            rows = [Rows(at * head_size, head_size, len(parts) * head_size) for at in range(len(parts))]
        else:
            offsets = accumulate(counts[:-1], initial=0)
            rows = [Rows(offset, count, count) for offset, count in zip(offsets, counts, strict=True)]
        sources = tuple(Source(key, parts[key], at) for key, at in zip(parts, rows, strict=True))
        return TensorMap(name, shape[::-1] if transposed else shape, sources, transposed)


Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Table:
    """The modules of a family, in the order of its files."""

    embedding: Row
    block: str
    """Name of a block; the number of the layer takes the place of {}."""
    rows: Sequence[Row]
    """Modules of a block."""
    norm: Row
    head: Row
    positions: Sequence[Row] = field(default=())

    def maps(self, plan: ModelPlan) -> Iterator[TensorMap]:
        """Yield the maps of all tensors of a model."""
        ours = {parameter.name: parameter.shape for parameter in plan.parameters()}
        blocks = len({name.split(".")[1] for name in ours if ".self_attention." in name})
        head_size = plan.parts(AttentionPlan)[0].head_size
        for row in (self.embedding, *self.positions):
            yield from row.maps("", ours, 0, head_size)
        for block in range(blocks):
            for row in self.rows:
                yield from row.maps(self.block.format(block), ours, block + 1, head_size)
        for behind in (1, 2):
            for row in (self.norm, self.head):
                yield from row.maps("", ours, blocks + behind, head_size)
        assert not ours, f"the table has no place for {', '.join(ours)}"
