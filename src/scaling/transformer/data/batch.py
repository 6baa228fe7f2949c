"""The micro-batches of a language model: token ids, and the positions, documents and loss weights that go with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scaling.core import DataError, MicroBatch
from scaling.transformer.data.boundaries import document_ids, document_starts, loss_weights, position_ids
from scaling.transformer.data.packing import Span
from scaling.transformer.io import TextInputs, TextTargets

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TextSample:
    """A sequence of s inputs and s targets, with the place in the data that each token comes from."""

    tokens: NDArray[np.int64]
    """[s + 1]."""
    spans: tuple[Span, ...]
    """The pieces of documents that make up `tokens`; where they are fewer than s + 1 tokens the rest is padding."""
    source: str
    """The data set, for messages."""

    @property
    def length(self) -> int:
        """The number of tokens that are not padding."""
        return sum(span.stop - span.start for span in self.spans)

    def starts(self) -> NDArray[np.bool_]:
        """Mark the first token of each piece, [s + 1]. Padding tokens are pieces of their own, so none is predicted."""
        result = np.zeros(len(self.tokens), np.bool_)
        place = 0
        for span in self.spans:
            result[place] = True
            place += span.stop - span.start
        result[place:] = True
        return result

    def origin(self, place: int) -> str:
        """Say where the token at a place in this sample comes from, for a message."""
        for span in self.spans:
            if place < span.stop - span.start:
                return f"token {span.start + place} of document {span.document} of {self.source}"
            place -= span.stop - span.start
        return f"padding of the last sequence of {self.source}"


@dataclass(frozen=True)
class TextCollator:
    """Makes micro-batches of text samples, and refuses tokens that the model has no embedding for."""

    vocab_size: int
    eod_token_id: int
    reset_attention_mask: bool = True
    """Keep documents of one row from attending to each other."""
    reset_position_ids: bool = True
    """Count positions from 0 in each document rather than in each row."""

    def collate(self, samples: Sequence[TextSample], positions: Sequence[int], valid: Sequence[bool]) -> MicroBatch:
        """Make a micro-batch of (TextInputs, TextTargets); a sample that is not valid has no weight in the loss.

        Raises:
            DataError: A token lies outside the vocabulary.
        """
        import torch  # here, so that the commands which only prepare data start without it

        tokens_BT = np.stack([sample.tokens for sample in samples])
        self._check_vocabulary(tokens_BT, samples)
        starts_BT = document_starts(
            tokens_BT, np.stack([sample.starts() for sample in samples]), eod_token_id=self.eod_token_id
        )
        weights_BS = loss_weights(starts_BT) * np.asarray(valid, np.float32)[:, None]

        def tensor(values: NDArray[Any]) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values))

        return MicroBatch(
            inputs=TextInputs(
                token_ids=tensor(tokens_BT[:, :-1]),
                position_ids=tensor(position_ids(starts_BT, restart=self.reset_position_ids)),
                document_ids=tensor(document_ids(starts_BT)) if self.reset_attention_mask else None,
                sample_positions=tensor(np.asarray(positions, np.int64)),
            ),
            targets=TextTargets(token_ids=tensor(tokens_BT[:, 1:]), loss_weights=tensor(weights_BS)),
        )

    def _check_vocabulary(self, tokens_BT: NDArray[np.int64], samples: Sequence[TextSample]) -> None:
        outside = (tokens_BT < 0) | (tokens_BT >= self.vocab_size)
        if outside.any():
            row, place = (int(index) for index in np.argwhere(outside)[0])
            raise DataError(
                f"{samples[row].origin(place)} is {tokens_BT[row, place]}, outside the vocabulary (0 to "
                f"{self.vocab_size - 1}); the data was made with another tokenizer: tokenize it again with the one in "
                "transformer_architecture.vocab_file, or set transformer_architecture.vocab_size to that tokenizer's."
            )
