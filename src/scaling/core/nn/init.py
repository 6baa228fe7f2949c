"""Initial values as a pure function of (seed, global name, block of the global tensor).

A tensor is cut into blocks of fixed shape. Each block has its own Philox stream (Salmon et al., SC 2011) keyed by a
hash of the seed, the tensor's name and the block's number, so a rank generates just the blocks its part touches, and
the same element has the same bits in every layout, on every machine (numpy's generators are specified bit for bit).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from scaling.core.nn.parameter import Initializer, ParameterMeta, meta

_BLOCK = (64, 256)  # 16 k numbers: large enough to hide the set-up of a stream, small enough to waste little at edges


@dataclass(frozen=True)
class Constant:
    """Every element has the same value."""

    value: float

    def sample(self, stream: np.random.Generator, count: int) -> NDArray[np.float32]:
        """Return the value `count` times; the stream is not read."""
        return np.full(count, self.value, dtype=np.float32)


@dataclass(frozen=True)
class Normal:
    """A normal distribution around zero."""

    std: float

    def sample(self, stream: np.random.Generator, count: int) -> NDArray[np.float32]:
        """Return `count` normal values."""
        values: NDArray[np.float32] = stream.standard_normal(count, dtype=np.float32) * np.float32(self.std)
        return values


@dataclass(frozen=True)
class Uniform:
    """A uniform distribution between -bound and bound."""

    bound: float

    def sample(self, stream: np.random.Generator, count: int) -> NDArray[np.float32]:
        """Return `count` uniform values."""
        unit = stream.random(count, dtype=np.float32) * np.float32(2) - np.float32(1)
        values: NDArray[np.float32] = unit * np.float32(self.bound)
        return values


def xavier_normal(fan_in: int, fan_out: int) -> Normal:
    """Return the normal distribution of Glorot and Bengio (AISTATS 2010), eq. 12, for the whole (unsharded) matrix."""
    return Normal(math.sqrt(2.0 / (fan_in + fan_out)))


def _blocks(rows: range, columns: range, total_columns: int) -> Iterator[tuple[int, range, range]]:
    height, width = _BLOCK
    per_row = -(-total_columns // width)
    for i in range(rows.start // height, -(-rows.stop // height)):
        for j in range(columns.start // width, -(-columns.stop // width)):
            yield i * per_row + j, range(i * height, (i + 1) * height), range(j * width, (j + 1) * width)


def part_of_initial_values(
    initializer: Initializer,
    *,
    seed: int,
    key: str,
    shape: tuple[int, ...],
    offset: tuple[int, ...],
    part: tuple[int, ...],
) -> NDArray[np.float32]:
    """Return the values of the part at `offset` with shape `part` of the tensor `key` of global `shape`.

    Tensors of more than two dimensions are seen as [first, product of the others]; only the first may be cut then,
    which every parallel layer of this library satisfies.
    """
    if isinstance(initializer, Constant):
        return initializer.sample(np.random.default_rng(0), math.prod(part)).reshape(part)
    part_2d = part
    if len(shape) < 2:
        shape, offset, part_2d = (1, math.prod(shape)), (0, sum(offset)), (1, math.prod(part))
    elif len(shape) > 2:
        inner = math.prod(shape[1:])
        shape, offset, part_2d = (shape[0], inner), (offset[0], 0), (part[0], inner)
    values = np.empty(part_2d, dtype=np.float32)
    rows = range(offset[0], offset[0] + part_2d[0])
    columns = range(offset[1], offset[1] + part_2d[1])
    digest = hashlib.sha256(f"{seed}\x1f{key}".encode()).digest()
    stream_key = int.from_bytes(digest[:16], "little")
    for number, block_rows, block_columns in _blocks(rows, columns, shape[1]):
        stream = np.random.Generator(np.random.Philox(key=stream_key, counter=number << 128))
        block = initializer.sample(stream, _BLOCK[0] * _BLOCK[1]).reshape(_BLOCK)
        r = range(max(rows.start, block_rows.start), min(rows.stop, block_rows.stop))
        c = range(max(columns.start, block_columns.start), min(columns.stop, block_columns.stop))
        values[r.start - rows.start : r.stop - rows.start, c.start - columns.start : c.stop - columns.start] = block[
            r.start - block_rows.start : r.stop - block_rows.start,
            c.start - block_columns.start : c.stop - block_columns.start,
        ]
    return values.reshape(part)


def local_part(description: ParameterMeta) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return (offset, shape) of what this rank holds of the global tensor, padding left out."""
    shape = list(description.global_shape)
    offset = [0] * len(shape)
    if (shard := description.shard) is not None:
        offset[shard.dim], shape[shard.dim] = shard.offset, shard.length
    return tuple(offset), tuple(shape)


@torch.no_grad()
def initialize(parameter: nn.Parameter, *, seed: int) -> None:
    """Fill this rank's part of a parameter from its description; padding becomes zero."""
    description = meta(parameter)
    if description.initializer is None:
        return
    offset, part = local_part(description)
    values = part_of_initial_values(
        description.initializer,
        seed=seed,
        key=description.key,
        shape=description.global_shape,
        offset=offset,
        part=part,
    )
    target = parameter
    if (shard := description.shard) is not None and shard.length < shard.local_length:
        parameter.zero_()
        target = parameter.narrow(shard.dim, 0, shard.length)  # type: ignore[assignment]  # a view of the parameter
    target.copy_(torch.from_numpy(values))
