"""From tokens to text: piece by piece, up to the first stop text, with the same work for each token."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, final

from scaling.core import ConfigError
from scaling.transformer.data.tokenizer import Tokenizer

_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"
_BYTE: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""A token that stands for one byte, where a vocabulary does not consist of bytes."""

_KEPT: Final = 6
"""Tokens that are kept in front of the next ones, so that these are decoded as within a text, not as its beginning. An
unfinished character has at most three bytes, so a character that the last three tokens begin is seen too."""
_MOST: Final = 12
"""Largest number of tokens that are decoded at a time."""

_COMMANDS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escaped(text: str) -> str:
    """Return text that is safe for a terminal: characters that control it, or reverse text, appear as escapes.

    Tabs and newlines stay.
    """
    return _COMMANDS.sub(lambda found: (r"\x%02x" if found[0] < "\u0100" else r"\u%04x") % ord(found[0]), text)


@final
class TextStream:
    """The text of tokens that arrive one by one.

    The pieces together are the text of all tokens (special ones left out) before the first stop text. A piece is held
    back while it may still be part of a character or of a stop text, so nothing that was shown is ever taken back.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        if isinstance(stop, str):
            raise ConfigError(f"stop is one text, {stop!r}; give a list of texts: stop=[{stop!r}]")
        if "" in stop:
            raise ConfigError("a stop text is empty; leave it out, or give the text to end before")
        self._decoding = _Decoding(tokenizer)
        self._stop = tuple(stop)
        self._longest = max(map(len, stop), default=1)
        self._held = ""
        self._pieces: list[str] = []
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Whether a stop text has ended the text."""
        return self._stopped

    @property
    def text(self) -> str:
        """All pieces so far."""
        return "".join(self._pieces)

    def push(self, token: int) -> str:
        """Take the next token, and return the text that may be shown now."""
        return "" if self._stopped else self._take(self._decoding.push(token), last=False)

    def finish(self, *, cut: bool) -> str:
        """Return what was held back. `cut`: the limit of tokens ended the text, perhaps within a character."""
        return "" if self._stopped else self._take(self._decoding.finish(cut=cut), last=True)

    def _take(self, new: str, *, last: bool) -> str:
        text = self._held + new
        ends = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        end = min(ends, default=len(text))
        # A stop text that begins before this one may still become the first.
        opened = end if last else self._opened(text, end)
        self._stopped = bool(ends) and opened == end
        self._held = "" if self._stopped else text[opened:]
        piece = text[:opened]
        if piece:
            self._pieces.append(piece)
        return piece

    def _opened(self, text: str, end: int) -> int:
        """Return the first place before `end` where the end of `text` could begin a stop text; else `end`."""
        first = max(0, len(text) - self._longest + 1)
        places = (place for place in range(first, end) if any(stop.startswith(text[place:]) for stop in self._stop))
        return next(places, end)


@final
class _Decoding:
    """The text of tokens, decoded in a window of the last ones.

    Decoders depend on the context. At the beginning of a text, a space may be dropped, so a few tokens whose text is
    known stay in front. At its end, a character may be unfinished; and where tokens stand for single bytes, one that is
    not UTF-8 turns all bytes beside it into replacement characters, so the bytes wait for one another.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._in_bytes = "ByteLevel" in tokenizer.decoder_steps
        self._falls_back = "ByteFallback" in tokenizer.decoder_steps
        self._window: list[int] = []
        self._names: list[str] = []
        self._returned = 0  # number of characters of the window's text
        self._bytes = bytearray()  # of the tokens at the window's end that stand for one byte each

    def push(self, token: int) -> str:
        name = self._tokenizer.shown_name(token)
        if name is None:
            return ""
        self._window.append(token)
        self._names.append(name)
        if self._falls_back and (byte := _BYTE.fullmatch(name)):
            self._bytes.append(int(byte[1], 16))
            return ""
        self._bytes.clear()
        text = self._finished()
        new = text[self._returned :]
        self._returned = max(self._returned, len(text))
        if len(self._window) >= _MOST:
            del self._window[:-_KEPT], self._names[:-_KEPT]
            self._returned = len(self._finished())
        return new

    def finish(self, *, cut: bool) -> str:
        if cut and (unfinished := _unfinished(self._bytes)):
            del self._window[-unfinished:], self._names[-unfinished:]
        text = self._finished() if cut else self._tokenizer.decode(self._window)
        new = text[self._returned :]
        self._returned = max(self._returned, len(text))
        return new

    def _finished(self) -> str:
        """Return the text of the window without an unfinished character at its end."""
        text = self._tokenizer.decode(self._window)
        if not self._in_bytes or not text.endswith(_REPLACEMENT):
            return text
        # The text itself may hold a replacement character: in a token's name, or as letters that stand for its bytes.
        return text if "".join(self._names).endswith((_REPLACEMENT, "ï¿½")) else text[:-1]


def _unfinished(content: bytes | bytearray) -> int:
    """Return the number of bytes at the end that begin a character; 0 where other bytes are not UTF-8."""
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return len(content) - error.start if error.reason == "unexpected end of data" else 0
    return 0
