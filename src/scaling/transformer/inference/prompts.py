"""From prompts to tokens: special tokens, the token that begins a text, and what fits into the context."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

from scaling.core import ConfigError
from scaling.transformer.data.tokenizer import Tokenizer
from scaling.transformer.inference.text import escaped

_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_BYTES_OF_A_COMMAND_LINE: Final = range(0xDC80, 0xDD00)
"""Code points that Python substitutes for bytes that are not UTF-8: 0x80 to 0xff, plus 0xdc00."""
_AROUND: Final = 12


def prompt_tokens(
    prompt: str | Sequence[int], tokenizer: Tokenizer | None, *, vocab_size: int, number: int | None = None
) -> list[int]:
    """Return the tokens of a prompt, at least one.

    Special tokens spelled in a text become special tokens. Tokens that the tokenizer itself puts in front of a text
    (BOS) occur once, also where the text spells them; tokens that it would put at the end are left out. Token ids are
    taken unchanged. An empty text, or an empty list of ids, becomes BOS.

    `number`: index of the prompt among several, counted from 0.

    Raises:
        ConfigError: The prompt is empty and there is no BOS, it is not text, or it has ids outside the vocabulary.
    """
    who = name_of_prompt(number)
    if isinstance(prompt, str):
        tokens = _tokens_of_text(prompt, tokenizer, who)
    elif isinstance(prompt, bytes):
        raise ConfigError(f"{who} is bytes; give a text, or token ids")
    else:
        tokens = token_ids(prompt, who)
    tokens = tokens or _beginning(tokenizer)
    if not tokens:
        raise ConfigError(f"{who} is empty, and this model has no token that begins a text; give at least one token")
    return require_known(tokens, who, vocab_size=vocab_size)


def require_known(tokens: list[int], who: str, *, vocab_size: int) -> list[int]:
    """Return token ids that are all in the vocabulary; refuse the first that is not."""
    outside = [token for token in tokens if not 0 <= token < vocab_size]
    if outside:
        raise ConfigError(f"{who} has token {outside[0]}, outside the vocabulary of {vocab_size}")
    return tokens


def token_ids(row: Any, who: str) -> list[int]:
    """Return whole numbers of any type as token ids; refuse anything else."""
    if isinstance(row, str | bytes) or not isinstance(row, Iterable):
        raise ConfigError(f"{who} is {row!r}; give token ids, a list of whole numbers")
    return [_token_id(token, who) for token in row]


def name_of_prompt(number: int | None) -> str:
    """Return the name of a prompt in messages; one of several is named by its index."""
    return "the prompt" if number is None else f"prompts[{number}]"


def require_text(text: str, *, who: str) -> None:
    """Refuse a Python string that is not text: with half of a character, which bytes that are not UTF-8 become."""
    found = _SURROGATE.search(text)
    if found is None:
        return
    code, place = ord(found[0]), found.start()
    if code in _BYTES_OF_A_COMMAND_LINE:
        what = f"is not UTF-8: it has the byte 0x{code - 0xDC00:02x}"
    else:
        what = f"is not Unicode text: it has the lone surrogate U+{code:04X}"
    before = escaped(text[max(0, place - _AROUND) : place])
    where = f"at character {place}, behind {before!r}" if before else "at its beginning"
    raise ConfigError(f"{who} {what} {where}; give text in UTF-8")


def require_fits(
    tokens: Sequence[int],
    max_tokens: int,
    context: int | None,
    *,
    learned: bool,
    placeholders: int = 0,
    opening: Sequence[int] = (),
    truncate_left: bool = False,
    number: int | None = None,
) -> list[int]:
    """Return the tokens of a prompt that fits into the context, or refuse it; `truncate_left` cuts its first tokens.

    `learned`: `context` is the number of learned positions, after which there are none; the last new token is not
    read and needs no position, placeholders of a soft prompt need one each. Otherwise, `context` is the length the
    model was trained on, beyond which a text may grow, but which a prompt may not exceed. None: there is no limit.
    `opening`: tokens that stay in front when the prompt is cut.

    Raises:
        ConfigError: The prompt is too long, or nothing of it would be left.
    """
    who = name_of_prompt(number)
    if context is None:
        return list(tokens)
    longest = context - placeholders + (1 if max_tokens else 0) if learned else context
    if truncate_left:
        return _shortened(tokens, longest, max_tokens, opening, who=who)
    if not learned:
        if len(tokens) > context:
            raise ConfigError(
                f"{who} has {len(tokens)} tokens, but the model was trained on {context}; shorten it, or let "
                "truncate_left (--truncate-left) cut its first tokens"
            )
        return list(tokens)
    if len(tokens) + max_tokens > longest:
        most = longest - len(tokens)
        advice = f"set max_tokens to at most {most}" if most > 0 else "shorten it"
        soft = f" and {placeholders} placeholders of a soft prompt" if placeholders else ""
        raise ConfigError(
            f"{who} has {len(tokens)} tokens{soft} and max_tokens is {max_tokens}, but the model knows {context} "
            f"positions (transformer_architecture.absolute_positions); {advice}, or let truncate_left "
            "(--truncate-left) cut its first tokens"
        )
    return list(tokens)


def _shortened(tokens: Sequence[int], longest: int, max_tokens: int, opening: Sequence[int], *, who: str) -> list[int]:
    """Return the last tokens of a prompt, so that the text will have at most `longest` tokens; its opening stays."""
    room = longest - max_tokens
    if len(tokens) <= room:
        return list(tokens)
    kept = len(opening) if opening and list(tokens[: len(opening)]) == list(opening) else 0
    if room <= kept:
        most = longest - kept - 1
        advice = f"; set max_tokens to at most {most}" if most > 0 else ""
        raise ConfigError(
            f"max_tokens is {max_tokens} and a text may have {longest} tokens, so nothing of {who} would be left"
            f"{advice}"
        )
    return [*tokens[:kept], *tokens[len(tokens) - room + kept :]]


def _tokens_of_text(text: str, tokenizer: Tokenizer | None, who: str) -> list[int]:
    if tokenizer is None:
        raise ConfigError(f"this checkpoint has no tokenizer beside it; give {who} as token ids")
    require_text(text, who=who)
    if not text:  # some tokenizers turn an empty text into a space
        return []
    tokens, opening = tokenizer.encode(text), list(tokenizer.opening)
    return tokens if tokens[: len(opening)] == opening else [*opening, *tokens]


def _beginning(tokenizer: Tokenizer | None) -> list[int]:
    """Return the tokens of an empty text."""
    if tokenizer is None:
        return []
    if tokenizer.opening:
        return list(tokenizer.opening)
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


def _token_id(token: Any, who: str) -> int:
    if not isinstance(token, bool):
        try:
            return operator.index(token)
        except TypeError:
            pass
    raise ConfigError(f"{who} has {token!r} among its token ids; give whole numbers")
