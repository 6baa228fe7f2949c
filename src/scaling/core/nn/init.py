"""Initial values as a pure function of (seed, global name, block of the global tensor).

A tensor is cut into blocks of fixed shape. Each block has its own Philox stream (Salmon et al., SC 2011) keyed by a
hash of the seed, the tensor's name and the block's number, so a rank generates just the blocks its part touches, and
the same element has the same bits in every layout, on every machine (numpy's generators are specified bit for bit).
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scaling.core.nn.parameter import DescribedParameter, Initializer, Piece, annotate, meta

_BLOCK = (64, 256)  # 16 k numbers: large enough to hide the set-up of a stream, small enough to waste little at edges
_BLOCKS_PER_THREAD = 8  # drawing fewer is faster than starting a thread


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
        values: NDArray[np.float32] = stream.standard_normal(count, dtype=np.float32)
        values *= np.float32(self.std)
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


def part_of_initial_values(
    initializer: Initializer,
    *,
    seed: int,
    key: str,
    shape: tuple[int, ...],
    offset: tuple[int, ...],
    part: tuple[int, ...],
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Return (in `out`, if given) the values of the part at `offset` with shape `part` of the tensor `key` of `shape`.

    Tensors of more than two dimensions are treated as [first, product of the others]; only the first may then be cut,
    which holds for every parallel layer of this library.
    """
    if isinstance(initializer, Constant):
        return initializer.sample(np.random.default_rng(0), math.prod(part)).reshape(part)
    part_2d = part
    if len(shape) < 2:
        shape, offset, part_2d = (1, math.prod(shape)), (0, sum(offset)), (1, math.prod(part))
    elif len(shape) > 2:
        inner = math.prod(shape[1:])
        shape, offset, part_2d = (shape[0], inner), (offset[0], 0), (part[0], inner)
    values = np.empty(part_2d, dtype=np.float32) if out is None else out.reshape(part_2d)
    digest = hashlib.sha256(f"{seed}\x1f{key}".encode()).digest()
    stream_key = int.from_bytes(digest[:16], "little")
    height, width = _BLOCK
    blocks_per_row = -(-shape[1] // width)

    def draw(block: tuple[int, int]) -> None:
        stream = np.random.Generator(
            np.random.Philox(key=stream_key, counter=(block[0] * blocks_per_row + block[1]) << 128)
        )
        drawn = initializer.sample(stream, height * width).reshape(_BLOCK)
        here, there = [], []
        for number, size, start, length in zip(block, _BLOCK, offset, part_2d, strict=True):
            first, last = max(start, number * size), min(start + length, (number + 1) * size)
            here.append(slice(first - start, last - start))
            there.append(slice(first - number * size, last - number * size))
        values[tuple(here)] = drawn[tuple(there)]

    rows, columns = (
        range(start // size, -(-(start + length) // size))
        for start, length, size in zip(offset, part_2d, _BLOCK, strict=True)
    )
    _in_threads(draw, list(itertools.product(rows, columns)))
    return values.reshape(part)


def _in_threads(draw: Callable[[tuple[int, int]], None], blocks: Sequence[tuple[int, int]]) -> None:
    """Draw all blocks, in as many threads as PyTorch computes with: numpy draws without holding Python's lock."""
    threads = min(torch.get_num_threads(), len(blocks) // _BLOCKS_PER_THREAD)
    if threads < 2:
        for block in blocks:
            draw(block)
        return

    def draw_share(first: int) -> None:
        for block in blocks[first::threads]:
            draw(block)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(draw_share, range(threads)))


def fill(module: nn.Module, *, seed: int = 0, device: torch.device | str = "cpu") -> nn.Module:
    """Give the described parameters of a module their values, on the device where they stay, and return the module.

    The values are a function of the seed and the parameters' names (their names in the module, if they have none in a
    model yet). Parameters that already have values keep them, and move to the device. Nothing is communicated.
    """
    for name, parameter in module.named_parameters():
        description = meta(parameter)
        if not parameter.is_meta:
            continue
        if not description.name:
            description = description.named(name)
        values = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
        _fill(values, description.pieces, seed)
        filled = annotate(DescribedParameter(values, requires_grad=parameter.requires_grad), description)
        torch.utils.swap_tensors(parameter, filled)  # the parameter keeps its identity wherever it is shared
    return module.to(device)


@torch.no_grad()
def _fill(values: Tensor, pieces: Sequence[Piece], seed: int) -> None:
    """Fill a local parameter piece by piece; elements that belong to no piece are padding, and zero."""
    if sum(piece.box.size for piece in pieces) < values.numel():
        values.zero_()
    for piece in pieces:
        target = piece.local(values)
        if isinstance(piece.initializer, Constant):
            target.fill_(piece.initializer.value)
        elif piece.initializer is not None:
            in_place = target.dtype == torch.float32 and target.is_contiguous() and target.device.type == "cpu"
            drawn = part_of_initial_values(
                piece.initializer,
                seed=seed,
                key=piece.key,
                shape=piece.shape,
                offset=piece.box.offset,
                part=piece.box.shape,
                out=target.numpy() if in_place else None,
            )
            if not in_place:
                target.copy_(torch.from_numpy(drawn))
