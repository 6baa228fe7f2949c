"""The samples and micro-batches of a language model: token ids, starts of pieces, and weights of targets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scaling.core import DataError, MicroBatch
from scaling.transformer.data.boundaries import document_ids, document_starts, loss_weights, piece_starts, position_ids
from scaling.transformer.data.packing import Span
from scaling.transformer.io import TextInputs, TextTargets

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TextSample:
    """A sequence of s inputs and s targets, with the starts of its pieces, the weight of each target, and its origin.

    Everything that depends on pieces follows from `starts` and `weights`: only the data set knows them, never the token
    ids.
    """

    tokens: NDArray[np.int64]
    """[s + 1]."""
    starts: NDArray[np.bool_]
    """[s + 1]: marks the first token of each piece. Padding tokens are pieces of their own."""
    weights: NDArray[np.float32]
    """[s]: the weight of each target in the loss."""
    spans: tuple[Span, ...]
    """The pieces of documents or records in `tokens`, in order; after the last one comes padding."""
    source: str
    """The data set, for messages."""
    unit: str = "document"
    """The unit that the document numbers in `spans` count."""
    placeholders: int = 0
    """Tokens in front of each piece that hold the places of a soft prompt; `spans` do not cover them."""

    @classmethod
    def of_documents(
        cls, tokens: NDArray[np.int64], spans: tuple[Span, ...], source: str, *, eod_token_id: int
    ) -> TextSample:
        """Make a sample from pieces of documents; a document also ends after `eod_token_id`."""
        begins = piece_starts([span.stop - span.start for span in spans], len(tokens))
        starts = document_starts(tokens, begins, eod_token_id=eod_token_id)
        return cls(tokens, starts, loss_weights(starts), spans, source)

    @property
    def length(self) -> int:
        """The number of tokens that are not padding."""
        return sum(self.placeholders + span.stop - span.start for span in self.spans)

    def pieces(self) -> Iterator[tuple[Span, int]]:
        """Yield each span with the place in `tokens` of its first token, after its placeholders."""
        place = 0
        for span in self.spans:
            place += self.placeholders
            yield span, place
            place += span.stop - span.start

    def origin(self, place: int) -> str:
        """Return where the token at a place in this sample comes from, for a message."""
        for span, first in self.pieces():
            if place < first:
                return f"a placeholder of the soft prompt in front of {self.unit} {span.document} of {self.source}"
            if place < first + span.stop - span.start:
                return f"token {span.start + place - first} of {self.unit} {span.document} of {self.source}"
        return f"padding of the last sequence of {self.source}"


@dataclass(frozen=True)
class TextCollator:
    """Collator of text samples into micro-batches; refuses tokens that the model has no embedding for."""

    vocab_size: int
    _: KW_ONLY
    reset_attention_mask: bool = True
    """Keep pieces of one row from attending to each other."""
    reset_position_ids: bool = True
    """Count positions from 0 in each piece rather than in each row."""

    def collate(self, samples: Sequence[TextSample], positions: Sequence[int], valid: Sequence[bool]) -> MicroBatch:
        """Make a micro-batch of (TextInputs, TextTargets); a sample that is not valid has no weight in the loss.

        Raises:
            DataError: A token lies outside the vocabulary.
        """
        import torch  # here, so that the commands which only prepare data start without it

        tokens_BT = np.stack([sample.tokens for sample in samples])
        self._check_vocabulary(tokens_BT, samples)
        starts_BT = np.stack([sample.starts for sample in samples])
        weights_BS = np.stack([sample.weights for sample in samples]) * np.asarray(valid, np.float32)[:, None]

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
