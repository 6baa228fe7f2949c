"""A line of a file is a prompt in one of three forms, or the message says which line is none and why."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from scaling.cli.prompt_file import Request, kept_for_processes, read_requests, requests_of
from scaling.core.errors import ConfigError


def test_lines_are_texts_or_tokens_and_may_have_seeds() -> None:
    content = '\ufeff"a\\n\U0001f642"\r\n\n{"prompt": ""}\n{"tokens": [3, 1], "seed": 7}\n  \n"last"'.encode()
    assert requests_of(content, "file") == [Request("a\n\U0001f642"), Request(""), Request([3, 1], 7), Request("last")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'"caf\xe9"', "is not UTF-8: it has the byte 0xe9 at byte 4; give text in UTF-8"),
        (b"Once upon", "is not JSON: 'Once upon'; write {\"prompt\": "),
        (b"[" * 10**5, "is not JSON"),
        (b"3", "is no prompt: '3'; write"),
        (b'{"text": "a"}', 'is no prompt: \'{"text": "a"}\'; write {"prompt": "..."}'),
        (b'{"prompt": "a", "tokens": [1]}', "is no prompt"),
        (b'{"prompt": "a", "max_tokens": 3}', "has 'max_tokens', which means nothing here"),
        (b'{"prompt": [1]}', "has the prompt [1], which is no text; give token ids as tokens"),
        (b'{"tokens": [1, true]}', "has the tokens [1, True]; give a list of whole numbers"),
        (b'{"prompt": "a", "seed": "b"}', "has the seed 'b'; give a whole number"),
    ],
)
def test_what_is_no_prompt_is_named_by_its_line(line: bytes, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        requests_of(b'"a"\n' + line + b"\n", "file")
    assert str(raised.value).startswith("file, line 2 ")
    assert message in str(raised.value)


def test_a_file_without_prompts_or_that_is_not_there_gets_a_message(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"file has no prompts; write one a line: "):
        requests_of(b"\n \n", "file")
    with pytest.raises(ConfigError, match=r"--prompts .*nowhere cannot be read: No such file"):
        read_requests(str(tmp_path / "nowhere"))


def test_standard_input_is_read_once_for_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'"a\\ud800"\n{"tokens": [], "seed": -1}')))
    with pytest.raises(ConfigError, match="reads standard input, which one process has to itself"):
        read_requests("-", alone=False)
    requests = read_requests("-")
    assert requests == [Request("a\ud800"), Request([], -1)]
    with kept_for_processes(requests) as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert read_requests("-", alone=False) == requests
    assert not any(map(Path.exists, map(Path, variables.values())))
