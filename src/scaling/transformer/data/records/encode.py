"""Encode the records of files for training: by format and chat template, into tokens and weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt

from scaling.core import DataError
from scaling.transformer.data.records.conversation import Conversation, Pieces, Tokens, TrainOn
from scaling.transformer.data.records.fields import Refusal, require_characters
from scaling.transformer.data.records.formats import FORMATS, RecordFormat, recognise
from scaling.transformer.data.records.guarded import frame_of, guards_of
from scaling.transformer.data.records.record import Record
from scaling.transformer.data.records.template import ChatTemplate
from scaling.transformer.data.records.texts import TextTokenizer
from scaling.transformer.data.records.turns import Rendered, render_conversation
from scaling.transformer.data.tokenizer import Tokenizer


@final
class RecordEncoder:
    """Encoder of records of a format; `format` None: the format of each file is recognised from its first record.

    `vocab_size` is that of the model; None: that of the tokenizer.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        template: ChatTemplate | None,
        format: RecordFormat | None,
        train_on: TrainOn,
        eos_token_id: int,
        vocab_size: int | None,
    ) -> None:
        self.format = format
        self._template = template
        self._train_on = train_on
        self._eos_token_id = eos_token_id
        self._vocab_size = tokenizer.vocab_size if vocab_size is None else vocab_size
        eos_token = tokenizer.token_name(eos_token_id)
        if eos_token is None:
            raise DataError(
                f"the end-of-document token {eos_token_id} is none of the tokenizer's, which has the tokens 0 to "
                f"{tokenizer.vocab_size - 1}"
            )
        frame = "" if template is None else frame_of(template)
        self._texts = TextTokenizer(tokenizer, eos_token=eos_token, frame=frame)
        self._controls = guards_of(special=self._texts.special, framing=self._texts.framing)

    def encode(self, values: Sequence[Any], format: RecordFormat, *, folder: Path) -> list[Record | Refusal]:
        """Return the record of each value, or why it has none.

        Raises:
            DataError: The format needs a chat template, and there is none.
        """
        prepared = [self._prepared(value, format, folder) for value in values]
        rendered = iter(self._texts.renderings([one for one in prepared if isinstance(one, Rendered)]))
        pieces = iter(
            self._texts.pieces([[piece.text for piece in one.pieces] for one in prepared if isinstance(one, Pieces)])
        )
        records: list[Record | Refusal] = []
        for one in prepared:
            match one:
                case Rendered():
                    made = next(rendered)
                    records.append(made if isinstance(made, Refusal) else self._record(made[0], _weights(one, made[1])))
                case Pieces():
                    records.append(self._of_pieces(one, next(pieces)))
                case Tokens():
                    records.append(self._of_tokens(one))
                case Refusal():
                    records.append(one)
        return records

    def _prepared(self, value: Any, format: RecordFormat, folder: Path) -> Rendered | Pieces | Tokens | Refusal:
        try:
            require_characters(value)
            read = _read(value, format, folder)
            if not isinstance(read, Conversation):
                return read
            if self._template is None:
                raise DataError(
                    f"records of the format {format.value!r} are conversations, and the tokenizer has no chat template "
                    "beside it; name a file with one"
                )
            return render_conversation(read, self._template, self._controls, self._train_on)
        except Refusal as refusal:
            return refusal
        except RecursionError:
            return Refusal("it is nested too deeply")

    def _of_pieces(self, one: Pieces, ids: Sequence[Sequence[int]]) -> Record | Refusal:
        learnt = [piece.learnt for piece in one.pieces]
        if self._train_on is TrainOn.ALL:
            learnt = [True] * len(learnt)
        elif self._train_on is TrainOn.LAST:
            last = max((place for place, one in enumerate(learnt) if one), default=None)
            learnt = [place == last for place in range(len(learnt))]
        tokens = [token for piece in ids for token in piece]
        weights = [float(counts) for counts, piece in zip(learnt, ids, strict=True) for _ in piece]
        if one.ends:
            tokens.append(self._eos_token_id)
            weights.append(1.0)
        return self._record(tokens, np.asarray(weights, dtype=np.float32))

    def _of_tokens(self, one: Tokens) -> Record | Refusal:
        learnt = np.asarray(one.learnt, dtype=np.float32)
        if self._train_on is TrainOn.ALL:
            learnt = np.ones_like(learnt)
        elif self._train_on is TrainOn.LAST:
            gaps = np.flatnonzero(np.diff(learnt, prepend=0) > 0)
            learnt[: gaps[-1] if len(gaps) else 0] = 0
        return self._record(one.ids, learnt)

    def _record(self, ids: Sequence[int], weights: npt.NDArray[np.float32]) -> Record | Refusal:
        if not ids:
            return Refusal("it has no tokens")
        for place, token in enumerate(ids):
            if not 0 <= token < self._vocab_size:
                return Refusal(
                    f"token {place} is {token}, which is outside the vocabulary of {self._vocab_size} (0 to "
                    f"{self._vocab_size - 1})"
                )
        weights[0] = 0  # nothing predicts it
        return Record(np.asarray(ids, dtype=np.int64), weights)


def _read(value: Any, format: RecordFormat, folder: Path) -> Conversation | Pieces | Tokens:
    try:
        return FORMATS[format].read(value, folder)
    except Refusal as refusal:
        looks = recognise(value)
        if looks is None or FORMATS[format].recognises(value):
            raise
        raise Refusal(f"a record of {looks.value!r} among those of {format.value!r}: {refusal}") from refusal


def _weights(rendered: Rendered, places: Sequence[tuple[int, int]]) -> npt.NDArray[np.float32]:
    """Return the weight of each token: that of the turn in which it begins, else of the turn into which it reaches."""
    weights = np.full(len(places), rendered.weight, dtype=np.float32)
    begins, ends = np.asarray(places, dtype=np.int64).reshape(-1, 2).T
    for turn in reversed(rendered.turns):
        weights[(begins < turn.stop) & (ends > turn.start)] = turn.weight
    return weights
