"""The work of the rank that chooses: from the logits of rows to their next tokens, and whether these end the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from scaling.transformer.data.tokenizer import Tokenizer
from scaling.transformer.inference.generation.batching import Decision, End, Row
from scaling.transformer.inference.generation.choosing import NOT_FINITE, Chosen, Draw, choose_tokens
from scaling.transformer.inference.generation.options import Options
from scaling.transformer.inference.text import TextStream


def numbers_of(options: Options) -> int:
    """Return how many numbers describe the decision for a row."""
    return 2 + (0 if options.best is None else 1 + 2 * options.best)


def told(decisions: Sequence[Decision], numbers: int) -> Tensor:
    """Return decisions as a message: float64 [rows, numbers], which holds any token id exactly."""
    return torch.tensor([(one.token, one.end, *one.numbers) for one in decisions], dtype=torch.float64).reshape(
        len(decisions), numbers
    )


def understood(message: Tensor) -> list[Decision]:
    """Return the decisions of a message."""
    return [Decision(int(token), End(int(end)), tuple(numbers)) for token, end, *numbers in message.tolist()]


@final
class Decider:
    """The choice of tokens for the rows of one generation. `placeholders`: those in front of each prompt."""

    def __init__(self, options: Options, tokenizer: Tokenizer | None, *, placeholders: int) -> None:
        self._options = options
        self._tokenizer = tokenizer
        self._placeholders = placeholders
        self._texts: dict[int, TextStream] = {}

    def decide(self, logits: Tensor, rows: Sequence[Row]) -> list[Decision]:
        """Return the decisions for rows with logits [rows, vocabulary]."""
        chosen = choose_tokens(logits, [self._draw(row) for row in rows])
        return [self._decision(row, one) for row, one in zip(rows, chosen, strict=True)]

    def _draw(self, row: Row) -> Draw:
        options = self._options
        prompt, sample = divmod(row.number, options.samples)
        early = len(row.decisions) < options.min_tokens
        return Draw(
            sampling=options.sampling,
            seed=options.seed_of(prompt, sample),
            position=len(row.tokens) - self._placeholders,
            seen=None if options.sampling.repetition_penalty == 1.0 else row.tokens[self._placeholders :],
            forbidden=options.ends if early else frozenset(),
            best=options.best,
        )

    def _decision(self, row: Row, chosen: Chosen) -> Decision:
        numbers: tuple[float, ...] = ()
        if self._options.best is not None:
            padding = ((0, -torch.inf),) * (self._options.best - len(chosen.best))  # for a tiny vocabulary
            pairs = (*chosen.best, *padding)
            numbers = (chosen.log_probability or 0.0, *(number for pair in pairs for number in pair))
        return Decision(chosen.token, self._end(row, chosen.token), numbers)

    def _end(self, row: Row, token: int) -> End:
        if token == NOT_FINITE:
            return End.NOT_FINITE
        if token in self._options.ends or self._completes_stop(row, token):
            return End.STOP
        return End.LENGTH if len(row.decisions) + 1 == self._options.max_tokens else End.NOT_YET

    def _completes_stop(self, row: Row, token: int) -> bool:
        if not self._options.stop or self._tokenizer is None:
            return False
        if row.number not in self._texts:
            self._texts[row.number] = TextStream(self._tokenizer, self._options.stop)
        text = self._texts[row.number]
        text.push(token)
        return text.stopped
