"""A chat line by line: messages and commands from a terminal or a file, and answers written piece by piece."""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn, final

import typer

from scaling.core import ConfigError, ScalingError, storage_errors
from scaling.transformer.inference.chat import Conversation, Message
from scaling.transformer.inference.text import escaped

_HELP: Final = """\
/reset      forget what was said, but for the system message
/save FILE  add the conversation to a file of JSON lines ({"messages": [...]}), to train on
/quit       end, as Ctrl-D does
Ctrl-C stops an answer, and ends the chat where there is none.
A message that begins with / has a space in front of it."""


@final
class Session:
    """A chat that answers lines, some of which are commands.

    `answer` yields the pieces of text that follow the tokens of a prompt. With `interactive`, an error is shown and the
    chat continues, and Ctrl-C ends an answer, not the chat.
    """

    def __init__(
        self, conversation: Conversation, answer: Callable[[Sequence[int]], Iterator[str]], *, interactive: bool
    ) -> None:
        self._conversation = conversation
        self._answer = answer
        self._interactive = interactive
        self._shown = escaped if is_terminal(sys.stdout) else str

    def run(self, lines: Iterator[str]) -> None:
        """Answer lines up to the last one, or up to /quit."""
        for line in lines:
            try:
                if line.startswith("/"):
                    if not self._command(*line.split(maxsplit=1)):
                        return
                elif line.strip():
                    self._message(line)
            except ScalingError as error:
                if not self._interactive:
                    raise
                _note(f"error: {error}")

    def _command(self, name: str, given: str = "") -> bool:
        """Execute a command, and return whether the chat continues."""
        match name:
            case "/quit":
                return False
            case "/help":
                _note(_HELP)
            case "/reset":
                self._conversation.reset()
                _note("(forgotten)")
            case "/save" if not given.strip():
                raise ConfigError("name the file to save to: /save FILE")
            case "/save":
                self._save(Path(given.strip()).expanduser())
            case _:
                raise ConfigError(
                    f"there is no command {escaped(name)}; /help says which there are. For a message that begins with "
                    "/, put a space in front of it"
                )
        return True

    def _save(self, path: Path) -> None:
        if not self._conversation.turns:
            raise ConfigError("there is nothing to save yet")
        save_conversation(path, self._conversation.messages)
        _note(f"(saved to {path})")

    def _message(self, content: str) -> None:
        question = self._conversation.ask(content)
        if question.left_out:
            turns, they = ("turn", "fits and was") if question.left_out == 1 else ("turns", "fit and were")
            count = "" if question.left_out == 1 else f"{question.left_out} "
            _note(f"(the {count}oldest {turns} no longer {they} left out)")
        said: list[str] = []
        stopped = False
        pieces = self._answer(question.prompt.tokens)
        try:
            for piece in pieces:
                said.append(piece)
                typer.echo(self._shown(piece), nl=False)
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            stopped = True
        except ScalingError:
            if said:
                typer.echo()
            raise
        finally:
            with suppress(AttributeError):  # of an iterator that is not a generator
                pieces.close()  # type: ignore[attr-defined]
        typer.echo()
        if stopped and not said:
            _note("(stopped before anything was said; the message is forgotten)")
            return
        self._conversation.answered(question, "".join(said))


def save_conversation(path: Path, messages: Sequence[Message]) -> None:
    """Append a conversation to a file of records, in the form that `scaling data` reads.

    Raises:
        StorageError: The file cannot be written.
    """
    line = json.dumps({"messages": [dict(message) for message in messages]}, ensure_ascii=False) + "\n"
    with storage_errors(f"saving the conversation to {path}"), path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                line = "\n" + line
        file.write(line.encode())


def typed() -> Iterator[str]:
    """Yield the lines typed at a terminal, with line editing where readline is available."""
    with suppress(ImportError):
        importlib.import_module("readline")
    at_terminal = is_terminal(sys.stdout)
    while True:
        try:
            if not at_terminal:
                typer.echo("> ", err=True, nl=False)
            line = input("> " if at_terminal else "")
        except EOFError:
            typer.echo(err=True)
            return
        except UnicodeDecodeError as error:
            _note(f"error: what was typed is not UTF-8 ({error.reason}); it is not sent")
            continue
        except KeyboardInterrupt:
            typer.echo(err=True)
            raise
        yield line


def lines_of_input() -> Iterator[str]:
    """Yield the lines of a file or a pipe."""
    if sys.stdin is None:  # closed
        return
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"line {number} of the input is not UTF-8: byte {error.start + 1} is 0x{line[error.start]:02x}; "
                "give text in UTF-8"
            ) from error
        yield text.rstrip("\r\n")


@contextmanager
def stoppable() -> Iterator[None]:
    """Let Ctrl-C only raise `KeyboardInterrupt`: it may stop an answer, and must not force the program to end."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)


@contextmanager
def ending_with_terminal() -> Iterator[None]:
    """End the process as SIGHUP would, if the terminal is gone and the signal was missed."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        os._exit(128 + signal.SIGHUP)  # any other exit would try to flush the output


def _note(text: str) -> None:
    typer.echo(text, err=True)


def is_terminal(stream: object) -> bool:
    """Return whether standard input or output, which may be closed, is a terminal."""
    try:
        return stream is not None and bool(stream.isatty())  # type: ignore[attr-defined]
    except ValueError:  # closed
        return False
