"""TensorMap: one tensor of a Hugging Face file, and the tensors of ours that it consists of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rows:
    """Where the rows of one of our tensors lie along dimension 0 of theirs: in blocks, in order.

    Theirs is seen before it is transposed.
    """

    offset: int
    """First row of the first block."""
    block: int
    """Rows of a block; divides our rows."""
    stride: int
    """From the beginning of a block to the beginning of the next."""


@dataclass(frozen=True)
class Source:
    """A tensor of ours."""

    key: str
    shape: tuple[int, ...]
    rows: Rows | None = None
    """None: it is all of theirs."""


@dataclass(frozen=True)
class TensorMap:
    """A tensor of theirs, and what it consists of."""

    name: str
    shape: tuple[int, ...]
    """As in their file."""
    sources: tuple[Source, ...]
    """Together they fill it, each value once."""
    transposed: bool = False
    """Their file holds the transpose of what the sources make up (GPT-2's `Conv1D`). Never of one dimension."""
