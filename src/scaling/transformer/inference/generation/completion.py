"""The result of a generation for one text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

from scaling.transformer.data.tokenizer import Tokenizer
from scaling.transformer.inference.generation.batching import Decision, End, Row
from scaling.transformer.inference.generation.options import Options
from scaling.transformer.inference.text import TextStream


@final
@dataclass(frozen=True)
class Completion:
    """The continuation of a prompt."""

    completion_tokens: list[int]
    """The new tokens, without the prompt; including the token that ended them, if one did."""
    completion_text: str
    """The text of the new tokens, without the token or text that ended it; empty for a model without a tokenizer."""
    finish_reason: Literal["stop", "length"] = "length"
    """`stop`: a token that ends the text, or a stop text. `length`: as many new tokens as were asked for."""
    log_probabilities: list[float] | None = None
    """log p of each new token under the model itself, whatever the sampling. None: not asked for."""
    best: list[list[tuple[int, float]]] | None = None
    """For the position of each new token, the most likely tokens and their log p. None: not asked for."""


def completion_of(row: Row, options: Options, tokenizer: Tokenizer | None) -> Completion:
    """Return the completion of a row that has ended, or for which no tokens were requested."""
    tokens = [decision.token for decision in row.decisions]
    stopped = bool(row.decisions) and row.decisions[-1].end is End.STOP
    wanted = options.best is not None
    return Completion(
        completion_tokens=tokens,
        completion_text="" if tokenizer is None else _text(tokens, options, tokenizer, cut=not stopped),
        finish_reason="stop" if stopped else "length",
        log_probabilities=[decision.numbers[0] for decision in row.decisions] if wanted else None,
        best=[_best(decision) for decision in row.decisions] if wanted else None,
    )


def _text(tokens: list[int], options: Options, tokenizer: Tokenizer, *, cut: bool) -> str:
    text = TextStream(tokenizer, options.stop)
    shown = tokens[:-1] if tokens and tokens[-1] in options.ends else tokens
    for token in shown:
        text.push(token)
    text.finish(cut=cut)
    return text.text


def _best(decision: Decision) -> list[tuple[int, float]]:
    pairs = zip(decision.numbers[1::2], decision.numbers[2::2], strict=True)
    return [(int(token), log_probability) for token, log_probability in pairs if log_probability > float("-inf")]
