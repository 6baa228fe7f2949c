"""A soft prompt: learned vectors in place of the embeddings of placeholders (prompt tuning, arXiv:2104.08691)."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from scaling.core.finetuning.cut import added_dtype
from scaling.core.nn.edit import Edit
from scaling.core.nn.init import Normal
from scaling.core.nn.parameter import new_parameter
from scaling.core.nn.place import Place


@final
class SoftPrompt(Edit):
    """n vectors that replace the embeddings at positions 0 to n - 1 of each text. Communicates nothing.

    The data put n placeholders in front of each text; the text's own positions follow. Every model rank holds all
    vectors; under sequence parallelism it uses those in its slice of the sequence, and so has a part of the gradient.
    """

    def __init__(self, length: int, features: int, *, std: float, place: Place) -> None:
        super().__init__()
        self.place = place
        self.length = length
        self.weight = new_parameter(
            (length, features), Normal(std), dtype=added_dtype(place), gradient_in_parts=place.sequence_parallel
        )

    def forward(self, x: Tensor, position_ids: Tensor) -> Tensor:
        """Return activations of the shape [b, s, features] and type of `x`.

        `position_ids` int64 [b, s] cover the whole sequence.
        """
        if self.place.sequence_parallel:
            position_ids = position_ids.chunk(self.place.parts, dim=1)[self.place.index]
        prompted = position_ids < self.length
        vectors = F.embedding(torch.where(prompted, position_ids, 0), self.weight).to(x.dtype)
        return torch.where(prompted.unsqueeze(-1), vectors, x)
