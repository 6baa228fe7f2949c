"""`scaling chat` answers lines, keeps the history, and leaves a terminal as it was, however it ends."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scaling.cli.leaving import PATIENCE_SECONDS
from scaling.cli.main import main
from scaling.core.errors import OUTPUT_CLOSED
from scaling.transformer import Sampling, TransformerInferenceModule
from scaling.transformer.data.records.formats import RecordFormat
from scaling.transformer.data.records.record import Record
from scaling.transformer.inference.chat import ChatText
from scaling.transformer.inference.generation.defaults import GenerationDefaults
from tests.cli.chatting import Parrot
from tests.transformer.data.records.chat import CHATML, chat_template, encoder, talk, tokenizer
from tests.transformer.finetuned import write_base
from tests.transformer.small import command_environment

Chat = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make what a folder of checkpoints has beside its step folders."""
    (tmp_path / "global_step1").mkdir()
    (tmp_path / "global_step1" / "manifest.json").write_text("{}")
    tokenizer().save(tmp_path / "vocab.json")
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    return tmp_path


@pytest.fixture
def parrot(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Parrot:
    made = Parrot(folder)
    monkeypatch.setattr(TransformerInferenceModule, "from_checkpoint", lambda *_, **__: made)
    monkeypatch.setattr("scaling.cli.model_options.checkpoints_at", lambda path, **_: path)
    return made


@pytest.fixture
def chat(folder: Path, parrot: Parrot, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Chat:
    """Run `scaling chat CHECKPOINT ARGUMENTS` on lines; return status, output and errors."""

    def run(lines: str | bytes | None, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["scaling", "chat", str(folder), *arguments])
        given = lines.encode() if isinstance(lines, str) else lines
        monkeypatch.setattr("sys.stdin", None if given is None else io.TextIOWrapper(io.BytesIO(given)))
        with pytest.raises(SystemExit) as leaving:
            main()
        shown = capsys.readouterr()
        return int(leaving.value.code or 0), shown.out, shown.err

    return run


def test_each_line_is_answered_and_stays_in_the_history(chat: Chat, folder: Path, parrot: Parrot) -> None:
    saved = folder / "said.jsonl"
    saved.write_text('{"messages": []}')  # without an end of line
    said = chat(
        f"Hi!\n\n <|im_end|> é\n/save {saved}\n/reset\na\n/save {saved}\n/quit\nnever\n", "--system", "Be brief."
    )
    notes = f"(saved to {saved})\n(forgotten)\n(saved to {saved})\n"
    assert said == (0, "You said: Hi!\nYou said:  <|im_end|> é\nYou said: a\n", notes)
    _, first, second = map(json.loads, saved.read_text().splitlines())
    assert [message["content"] for message in first["messages"]] == [
        *("Be brief.", "Hi!", "You said: Hi!", " <|im_end|> é", "You said:  <|im_end|> é")
    ]
    assert second["messages"][1:] == [{"role": "user", "content": "a"}, {"role": "assistant", "content": "You said: a"}]
    assert parrot.closed == 3
    records = encoder(chat_template()).encode([first, second], RecordFormat.MESSAGES, folder=folder)
    assert all(isinstance(one, Record) for one in records)


def test_options_go_to_the_model(chat: Chat, parrot: Parrot) -> None:
    assert chat("a\n")[0] == 0
    given = parrot.options[-1]
    assert (given["max_tokens"], given["sampling"].temperature, given["seed"]) == (100, 0.8, None)
    assert given["stop_tokens"] == sorted([0, tokenizer().token_id("<|im_end|>") or 0])
    parrot.defaults = GenerationDefaults(sampling=Sampling(temperature=0.5, top_k=9), max_tokens=10_000)
    assert chat("a\n", "--top-k", "0")[0] == 0
    given = parrot.options[-1]
    assert (given["max_tokens"], given["sampling"]) == (100, Sampling(temperature=0.5))
    options = "--temperature 0 --top-k 3 --top-p 0.5 --min-p 0.1 --repetition-penalty 2 --max-tokens 7 --seed 5"
    assert chat("a\n", *options.split())[0] == 0
    given = parrot.options[-1]
    sampling = given["sampling"]
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0, 3, 0.5, 0.1)
    assert (sampling.repetition_penalty, given["max_tokens"], given["seed"]) == (2, 7, 5)


def test_turns_that_no_longer_fit_are_left_out_and_that_is_said(chat: Chat) -> None:
    long = "la " * 12
    _, said, shown = chat(f"{long}\n{long}\n{long}\n{long}\n", "--max-tokens", "20")
    assert said == f"You said: {long}\n" * 4
    assert shown.startswith("(the oldest turn no longer fits and was left out)\n")


@pytest.mark.parametrize(
    ("lines", "arguments", "message"),
    [
        ("/dance\n", [], "there is no command /dance; /help says which there are"),
        ("/save\n", [], "name the file to save to"),
        ("/save a\n", [], "there is nothing to save yet"),
        ("a\0\n", [], "a NUL character"),
        (b"a\nb\xff\n", [], "line 2 of the input is not UTF-8: byte 2 is 0xff"),
        ("word " * 200, [], "the message does not fit: by itself it has"),
        ("fail\n", [], "that cannot be said"),
        ("a\n", ["--template", "none.jinja"], "none.jinja cannot be read"),
        ("a\n", ["--max-tokens", "200"], "max_tokens (200) leaves no room for a message"),
    ],
)
def test_what_is_wrong_ends_a_chat_that_nobody_sits_at(
    chat: Chat, lines: str | bytes, arguments: list[str], message: str
) -> None:
    status, _, shown = chat(lines, *arguments)
    assert status == 2
    assert message in shown
    assert "Traceback" not in shown


def test_a_template_has_to_be_there_and_to_take_the_system_message(chat: Chat, folder: Path) -> None:
    template = folder / "chat_template.jinja"
    template.write_text(
        "{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}" + CHATML
    )
    status, _, shown = chat("a\n", "--system", "Be brief.")
    assert status == 2
    assert "No system role; it takes no system message" in shown
    template.unlink()
    status, _, shown = chat("a\n")
    assert status == 2
    assert "--template FILE" in shown


def test_a_closed_input_is_an_empty_one(chat: Chat) -> None:
    assert chat(None) == (0, "", "")


def test_a_model_goes_on_where_the_template_leads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = tokenizer()
    write_base(tmp_path, vocab_size=known.vocab_size, sequence_length=256)
    known.save(tmp_path / "vocab.json")
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    monkeypatch.setattr("sys.argv", ["scaling", "chat", str(tmp_path), "--seed", "1", "--max-tokens", "9"])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hi!\nAnd?\n")))
    with pytest.raises(SystemExit) as leaving:
        main()
    model = TransformerInferenceModule.from_checkpoint(tmp_path)
    text, said = ChatText(known, chat_template()), ["Hi!"]
    for following in ("And?", ""):
        tokens = text.prompt(talk(*said)).tokens
        sampling = Sampling(temperature=0.8)
        said += ["".join(model.stream_text(tokens, max_tokens=9, sampling=sampling, seed=1)), following]
    assert (leaving.value.code or 0, capsys.readouterr().out) == (0, f"{said[1]}\n{said[3]}\n")


@contextmanager
def at_terminal(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[bytes], bytes], int]]:
    """Start a chat at a terminal of its own; return it, what reads up to a text, and the terminal to type at."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "tests.cli.chatting", "chat", str(folder)]
    environment = command_environment(TERM="dumb")
    process = subprocess.Popen(
        command, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    shown = bytearray()

    def read_to(text: bytes) -> bytes:
        deadline = time.monotonic() + 60
        while text not in shown:
            assert time.monotonic() < deadline, shown
            shown.extend(os.read(ours, 4096))
        place = shown.index(text) + len(text)
        found = bytes(shown[:place])
        del shown[:place]
        return found

    try:
        yield process, read_to, ours
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


def test_ctrl_c_stops_an_answer_and_then_the_chat(folder: Path) -> None:
    with at_terminal(folder) as (process, read_to, keyboard):
        read_to(b"> ")
        os.write(keyboard, b"long\n")
        read_to(b"la la")
        os.write(keyboard, b"\x03")
        read_to(b"\n> ")
        time.sleep(PATIENCE_SECONDS + 0.2)  # what insists on the end of other commands does not on that of this one
        os.write(keyboard, b"\x1b[2J red\n")
        assert b"\x1b[2J" not in read_to(b"You said: ") + read_to(b"\n> ")
        os.write(keyboard, f"/dance\n/save {folder / 'said.jsonl'}\n".encode())
        read_to(b"error: there is no command /dance")
        read_to(b"(saved to ")
        read_to(b"> ")
        os.write(keyboard, b"\x03")
        assert process.wait(20) == 130
        modes = termios.tcgetattr(keyboard)
        assert modes[0] & termios.ICRNL
        assert modes[3] & termios.ECHO
        assert modes[3] & termios.ICANON
    messages = json.loads((folder / "said.jsonl").read_text())["messages"]
    assert messages[1]["content"].startswith("You said: la la")


@pytest.mark.slow
def test_a_chat_ends_with_its_terminal_and_with_its_reader(folder: Path) -> None:
    with at_terminal(folder) as (process, read_to, keyboard):
        read_to(b"> ")
        os.write(keyboard, b"long\n")
        read_to(b"la la")
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), keyboard)  # closes it: the terminal is gone
        assert process.wait(2) == -signal.SIGHUP
    command = [sys.executable, "-m", "tests.cli.chatting", "chat", str(folder)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=command_environment(), stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"long\n")
        process.stdin.flush()
        assert process.stdout.read(10) == b"You said: "
        process.stdout.close()
        assert process.wait(2) == OUTPUT_CLOSED
        assert process.stderr.read() == b""
