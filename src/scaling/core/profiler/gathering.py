"""Gather the recordings of all ranks on rank 0, over the process group: the store is for small data."""

from __future__ import annotations

from typing import Final

import torch

from scaling.core.collectives import ops
from scaling.core.topology.topology import Topology

_LARGEST_PIECE: Final = 2**20
_MOST_AT_ONCE: Final = 2**26
"""Bytes of all ranks together in one round: device memory that rank 0 allocates."""


def piece_of(sizes: list[int]) -> int:
    """Return how many bytes each rank sends in a round: the same for all, and no more than the largest content."""
    return max(1, min(_LARGEST_PIECE, _MOST_AT_ONCE // len(sizes), max(sizes)))


def gather_bytes(topology: Topology, content: bytes) -> list[bytes] | None:
    """Return the contents of all ranks, in rank order, on rank 0; None on the others. Collective: all ranks.

    Communicates in rounds: each rank sends a piece of its bytes to rank 0, padded to the same size.
    """
    sizes: list[int] = topology.agree("bytes of the timeline", len(content), list)
    if topology.world is None:
        return [content]
    piece = piece_of(sizes)
    parts: list[list[bytes]] = [[] for _ in sizes]
    for start in range(0, max(sizes), piece):
        sent = torch.zeros(piece, dtype=torch.uint8)
        if own := content[start : start + piece]:
            sent[: len(own)] = torch.frombuffer(bytearray(own), dtype=torch.uint8)
        gathered = ops.gather(sent.to(topology.device), topology.world, to=0)
        if gathered is not None:
            for rank, row in enumerate(gathered.cpu().numpy()):
                parts[rank].append(row.tobytes())
    if topology.rank != 0:
        return None
    return [b"".join(pieces)[:size] for pieces, size in zip(parts, sizes, strict=True)]
