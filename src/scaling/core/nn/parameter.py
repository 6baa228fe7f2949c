"""The one description of a parameter that initialisation, gradient sums, clipping and checkpoints all read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from scaling.core.errors import LayoutError


class Initializer(Protocol):
    """A distribution of initial values."""

    def sample(self, stream: np.random.Generator, count: int) -> NDArray[np.float32]:
        """Return `count` values drawn from `stream`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Which part of a global dimension this rank holds, and who else holds the same part.

    `offset` and `length` are in elements of `dim`. `local_length` is what the local tensor has along `dim`: it is
    larger than `length` where the tail is padding (a vocabulary that the model-parallel size does not divide).
    `replicas` consecutive ranks of the model axis hold the same part (key and value heads, where there are fewer heads
    than ranks); 1 means that the part is this rank's alone.
    """

    dim: int
    offset: int
    length: int
    local_length: int
    replicas: int = 1


@dataclass(frozen=True, kw_only=True)
class ParameterMeta:
    """How one local parameter relates to its global tensor, and what its gradient needs."""

    key: str = ""
    """Global name, set when the pipeline stage is built: `layers.3.mlp.dense_in.weight`, or the tie's name."""
    global_shape: tuple[int, ...]
    """Shape of the whole tensor without padding."""
    shard: Shard | None = None
    """This rank's part along the model axis; None = the whole tensor is on every rank of the model axis."""
    initializer: Initializer | None = None
    """Distribution of the initial values; None = the module fills the parameter itself when it is built (it is then
    built under a seed derived from the layer's name, and must be whole on every rank)."""
    sum_grad_over_model: bool = False
    """True where each model rank sees only its part of the gradient although it holds the same values as others:
    norms and row-parallel biases under sequence parallelism, key-value heads shared by several ranks."""
    tied: str | None = None
    """Name of the tie: same values and summed gradient wherever this name appears in the pipeline."""
    lr_scale: float = 1.0
    """Multiplies the learning rate of the parameter's group."""

    def model_replicas(self, model_parallel_size: int) -> int:
        """Return how many consecutive ranks of the model axis hold the same values."""
        return model_parallel_size if self.shard is None else self.shard.replicas


_ATTRIBUTE = "scaling_meta"


def annotate(parameter: nn.Parameter, meta: ParameterMeta) -> nn.Parameter:
    """Attach `meta` to `parameter` and return the parameter."""
    setattr(parameter, _ATTRIBUTE, meta)
    return parameter


def meta(parameter: nn.Parameter) -> ParameterMeta:
    """Return the parameter's description; a parameter never annotated is whole on every rank of the model axis."""
    found: Any = getattr(parameter, _ATTRIBUTE, None)
    return found if isinstance(found, ParameterMeta) else ParameterMeta(global_shape=tuple(parameter.shape))


class DescribedParameter(nn.Parameter):
    """A parameter that takes its description along when it is copied; torch's own leaves attributes behind."""

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Parameter:
        if id(self) in memo:
            known: nn.Parameter = memo[id(self)]
            return known
        copied: nn.Parameter = super().__deepcopy__(memo)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return annotate(copied, meta(self))


def update_meta(parameter: nn.Parameter, **changes: Any) -> None:
    """Replace fields of the parameter's description."""
    annotate(parameter, replace(meta(parameter), **changes))


def even_shard(size: int, parts: int, index: int, *, dim: int, what: str) -> Shard:
    """Return part `index` of `size` elements cut into equal `parts`; `LayoutError` naming `what` for a remainder."""
    if size % parts:
        raise LayoutError(f"{what} ({size}) must be divisible by model_parallel_size ({parts})")
    length = size // parts
    return Shard(dim=dim, offset=index * length, length=length, local_length=length)


def padded_shard(size: int, parts: int, index: int, *, dim: int) -> Shard:
    """Return part `index` of `size` elements cut into `parts` of equal local length; the last ones end in padding."""
    local = -(-size // parts)
    offset = min(index * local, size)
    return Shard(dim=dim, offset=offset, length=min(local, size - offset), local_length=local)


def named_parameters_with_meta(module: nn.Module) -> Iterator[tuple[str, nn.Parameter, ParameterMeta]]:
    """Yield (local name, parameter, description) of every distinct parameter in registration order."""
    for name, parameter in module.named_parameters():
        yield name, parameter, meta(parameter)
