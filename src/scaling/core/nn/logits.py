"""Whole logits of a few positions, on one or all of the ranks over which the vocabulary is cut.

Shape suffixes: N positions, v the local part of the vocabulary.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from scaling.core.collectives import ops
from scaling.core.errors import LayoutError
from scaling.core.nn.place import Place
from scaling.core.nn.shard import padded_shard


def gather_vocabulary(logits_Nv: Tensor, place: Place, vocabulary: int) -> Tensor | None:
    """Return the logits [N, vocabulary] on model rank 0, None on the others, from the parts that the ranks have.

    The parts are those of `padded_shard`, with or without their padding: the last may be shorter, or empty. Collective
    over the model axis: one gather, of `gathered_bytes` for each position. Without gradients.
    """
    shard = padded_shard(vocabulary, place.parts, place.index, dim=0)
    found = logits_Nv.shape[-1]
    if found not in (shard.length, shard.local_length):
        raise LayoutError(
            f"model rank {place.index} of {place.parts} has logits of {found} tokens, but its part of a vocabulary of "
            f"{vocabulary} has {shard.length}"
        )
    if place.group is None:
        return logits_Nv
    parts = ops.gather(F.pad(logits_Nv, (0, shard.local_length - found)), place.group, to=0)
    return None if parts is None else parts.movedim(0, 1).flatten(1)[:, :vocabulary]


def all_gather_vocabulary(logits: Tensor, place: Place, vocabulary: int) -> Tensor:
    """Return the logits [..., vocabulary] on all model ranks, from the parts [..., v] that they have.

    Collective over the model axis: one all-gather. Without gradients.
    """
    if place.group is None:
        return logits
    longest = padded_shard(vocabulary, place.parts, place.index, dim=0).local_length
    return ops.gather_slices(F.pad(logits, (0, longest - logits.shape[-1])), place.group, dim=-1)[..., :vocabulary]


def gathered_bytes(vocabulary: int, parts: int, itemsize: int) -> int:
    """Return how many bytes of logits model rank 0 of `parts` receives for each position: all parts but its own."""
    return (parts - 1) * padded_shard(vocabulary, parts, 0, dim=0).local_length * itemsize
