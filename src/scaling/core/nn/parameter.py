"""The one description of a parameter that initialisation, gradient sums, clipping and checkpoints all read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scaling.core.boxes import Box, Former, whole
from scaling.core.errors import LayoutError
from scaling.core.nn.shard import Shard
from scaling.core.topology.layout import Axis
from scaling.core.topology.placement import SAME, SAME_IN_PARTS, USUAL, Placement, Placements


class Initializer(Protocol):
    """A distribution of initial values."""

    def sample(self, stream: np.random.Generator, count: int) -> NDArray[np.float32]:
        """Return `count` values drawn from `stream`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A box of one named tensor of the model, and where it lies in the local parameter.

    Most parameters are one piece. A fused weight has a piece for each tensor in it; checkpoints hold these tensors.
    """

    label: str = ""
    """Module that would hold the piece if it were separate, a sibling of the parameter's module; empty: the latter."""
    key: str = ""
    """Name of the tensor, set when the pipeline stage is built: `layers.3.mlp.dense_in.weight`, or the tie's name."""
    shape: tuple[int, ...]
    """Shape of the whole tensor without padding."""
    box: Box
    """This rank's part of the whole tensor."""
    place: tuple[int, ...]
    """Where in the local parameter the box starts."""
    initializer: Initializer | None
    """Distribution of the initial values; None = the module fills the parameter itself when it is built (it is then
    built under a seed derived from the layer's name, and must be whole on every rank)."""
    former: Former | None = None
    """Where the first version of the checkpoint format has the piece, if in another tensor."""
    former_label: str = ""
    """Module that held that other tensor, as in `label`."""

    def local(self, values: Tensor) -> Tensor:
        """Return the piece's part of a tensor that has the shape of the local parameter, as a view."""
        for dim, (start, length) in enumerate(zip(self.place, self.box.shape, strict=True)):
            values = values.narrow(dim, start, length)
        return values


@dataclass(frozen=True, kw_only=True)
class ParameterMeta:
    """The pieces of a local parameter, which ranks hold the same values, and how its gradient is summed."""

    name: str = ""
    """Name in the model, `layers.3.mlp.dense_in.weight`, set when the pipeline stage is built."""
    pieces: tuple[Piece, ...]
    placements: Placements = USUAL
    """How the parameter lies along each axis."""
    lr_scale: float = 1.0
    """Multiplies the learning rate of the parameter's group."""

    def named(self, name: str) -> ParameterMeta:
        """Return the description of the parameter under its name in the model, which names its pieces."""
        module, _, attribute = name.rpartition(".")
        # Beside the module, but not outside the layer: a layer may itself be the module.
        around = module if re.fullmatch(r"layers\.\d+", module) else module.rpartition(".")[0]

        def key(label: str) -> str:
            return name if not label else ".".join(part for part in (around, label, attribute) if part)

        pieces = tuple(
            replace(
                piece, key=key(piece.label), former=piece.former and replace(piece.former, key=key(piece.former_label))
            )
            for piece in self.pieces
        )
        return replace(self, name=name, pieces=pieces)


_ATTRIBUTE = "scaling_meta"


def annotate(parameter: nn.Parameter, meta: ParameterMeta) -> nn.Parameter:
    """Attach `meta` to `parameter` and return the parameter."""
    setattr(parameter, _ATTRIBUTE, meta)
    return parameter


def meta(parameter: nn.Parameter) -> ParameterMeta:
    """Return the parameter's description; a parameter never annotated is whole on every rank of the model axis."""
    found: Any = getattr(parameter, _ATTRIBUTE, None)
    if isinstance(found, ParameterMeta):
        return found
    shape = tuple(parameter.shape)
    piece = Piece(shape=shape, box=whole(shape), place=(0,) * len(shape), initializer=None)
    return ParameterMeta(pieces=(piece,))


class DescribedParameter(nn.Parameter):
    """A parameter that keeps its description when it is copied; torch's own loses its attributes."""

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Parameter:
        if id(self) in memo:
            known: nn.Parameter = memo[id(self)]
            return known
        copied: nn.Parameter = super().__deepcopy__(memo)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return annotate(copied, meta(self))


def update_meta(parameter: nn.Parameter, **changes: Any) -> None:
    """Replace fields of the parameter's description."""
    annotate(parameter, replace(meta(parameter), **changes))


def new_parameter(
    shape: tuple[int, ...],
    initializer: Initializer,
    *,
    shard: Shard | None = None,
    dtype: torch.dtype = torch.float32,
    gradient_in_parts: bool = False,
    axis: Axis = Axis.MODEL,
) -> nn.Parameter:
    """Describe this rank's part of a parameter of global `shape`; it has no values yet and lies on the meta device.

    `shard` says which part a rank of `axis` holds (None: all of it). `gradient_in_parts` is for values that are the
    same on several ranks of `axis` while each computes only a part of their gradient: norms and row-parallel biases
    under sequence parallelism, heads that ranks share. The pipeline stage fills the parameter once, when its name and
    the run's seed are known; `fill` does so for a layer outside a pipeline.
    """
    parts = {"": (shape, shard, initializer)}
    return fused_parameter(parts, dtype=dtype, gradient_in_parts=gradient_in_parts, axis=axis)


def fused_parameter(
    parts: Mapping[str, tuple[tuple[int, ...], Shard | None, Initializer]],
    *,
    dtype: torch.dtype = torch.float32,
    gradient_in_parts: bool = False,
    axis: Axis = Axis.MODEL,
) -> nn.Parameter:
    """Describe one parameter that consists of several tensors, stacked along dimension 0, as `new_parameter` does.

    `parts` gives for each the label of its piece, its global shape, this rank's part of it and its initial values.
    `LayoutError` where model ranks share only some of the parts: such tensors cannot be one parameter.
    """
    pieces: list[Piece] = []
    rows, local = 0, [0]
    for label, (shape, shard, initializer) in parts.items():
        offset, held, local = [0] * len(shape), list(shape), list(shape)
        if shard is not None:
            offset[shard.dim], held[shard.dim], local[shard.dim] = shard.offset, shard.length, shard.local_length
        place = (rows, *[0] * (len(shape) - 1))[: len(shape)]
        box = Box(tuple(offset), tuple(held))
        pieces.append(Piece(label=label, shape=shape, box=box, place=place, initializer=initializer))
        rows += local[0] if local else 0
    copies = {None if shard is None else shard.replicas for _, shard, _ in parts.values()}
    if len(copies) > 1:
        raise LayoutError(
            f"{', '.join(parts)} cannot be fused: some of them are shared by neighbouring ranks of the model axis, "
            "others are not; use a parameter for each"
        )
    parameter = DescribedParameter(torch.empty([rows, *local[1:]] if local else [], dtype=dtype, device="meta"))
    placement = replace(SAME_IN_PARTS if gradient_in_parts else SAME, copies=copies.pop())
    placements = USUAL.having(axis, placement)
    return annotate(parameter, ParameterMeta(pieces=tuple(pieces), placements=placements))


def share(parameter: nn.Parameter, axis: Axis, placement: Placement) -> None:
    """Change how a parameter lies along one axis."""
    update_meta(parameter, placements=meta(parameter).placements.having(axis, placement))


def named_parameters_with_meta(module: nn.Module) -> Iterator[tuple[str, nn.Parameter, ParameterMeta]]:
    """Yield (local name, parameter, description) of every distinct parameter in registration order."""
    for name, parameter in module.named_parameters():
        yield name, parameter, meta(parameter)
