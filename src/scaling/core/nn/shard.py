"""How a tensor is cut over the model axis: evenly, with padding, or between heads. Pure, and without torch."""

from __future__ import annotations

from dataclasses import dataclass

from scaling.core.errors import LayoutError


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The part of a tensor's dimension that a model rank holds, and how many ranks hold the same part.

    `offset` and `length` are in elements of `dim`. `local_length` is the local tensor's size along `dim`: it is larger
    than `length` where the tail is padding (a vocabulary that the model-parallel size does not divide).
    `replicas` consecutive ranks of the model axis hold the same part (key and value heads, where there are fewer heads
    than ranks); 1 means that the part is this rank's alone.
    """

    dim: int
    offset: int
    length: int
    local_length: int
    replicas: int = 1


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


@dataclass(frozen=True)
class Heads:
    """Output features in `count` heads of `size` each: cut between heads only."""

    count: int
    size: int

    @property
    def features(self) -> int:
        """Return the features of all heads."""
        return self.count * self.size

    def shard(self, parts: int, index: int) -> Shard:
        """Return the rows that model rank `index` of `parts` holds; ranks share heads if there are fewer heads.

        `LayoutError` where neither number divides the other.
        """
        if self.count % parts == 0:
            length = self.count // parts * self.size
            return Shard(dim=0, offset=index * length, length=length, local_length=length)
        if parts % self.count:
            raise LayoutError(
                f"{self.count} heads and model_parallel_size ({parts}) must divide one the other; choose a "
                f"model_parallel_size that divides or is a multiple of {self.count}"
            )
        replicas = parts // self.count
        return Shard(
            dim=0, offset=index // replicas * self.size, length=self.size, local_length=self.size, replicas=replicas
        )

    def local(self, parts: int, index: int) -> range:
        """Return the numbers of the heads that model rank `index` of `parts` holds."""
        shard = self.shard(parts, index)
        return range(shard.offset // self.size, (shard.offset + shard.length) // self.size)
