"""Attention heads as rows of a weight, and how model ranks hold or share them."""

from __future__ import annotations

from dataclasses import dataclass

from scaling.core.errors import LayoutError
from scaling.core.nn.parameter import Shard


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
        """Return which rows model rank `index` of `parts` holds; ranks share heads where there are fewer than ranks.

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
