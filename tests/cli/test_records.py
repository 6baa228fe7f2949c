"""`scaling data` for records of fine-tuning data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scaling.core.errors import DataError
from scaling.transformer.data.tokenizer import train_tokenizer
from tests.cli.test_data import scaling_data

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer, a chat template, and three records of which one is bad and one has nothing to learn."""
    train_tokenizer(["hello world, how are you"], 280).save(tmp_path / "tok.json")
    (tmp_path / "template").write_text(TEMPLATE)
    asked, answered = {"role": "user", "content": "hello"}, {"role": "assistant", "content": "how\nare you"}
    records = [{"messages": [asked, answered]}, {"messages": []}, {"messages": [asked]}]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path


def test_records_are_tokenized_inspected_and_shown_with_what_counts(folder: Path) -> None:
    told = scaling_data(
        *("tokenize", folder / "chat.jsonl", "-o", folder / "chat", "-t", folder / "tok.json"),
        *("--format", "auto", "--chat-template", folder / "template", "--max-bad", 1, "--max-length", 100),
    ).stdout
    assert f"{folder / 'chat'}: 1 records (messages), " in told
    assert "2 records left out: 1 bad, 1 without a token that counts\n" in told
    assert "chat.jsonl, line 2: 'messages' is empty" in told
    shown = scaling_data("inspect", folder / "chat", "-t", folder / "tok.json", "--verify").stdout
    assert "records      of messages, to train on assistant, by a chat template of SHA-256 " in shown
    expected = "    0 | <user>hello<|endoftext|><assistant>\n    1 | how\n      | are you<|endoftext|>\n"
    assert expected in shown
    config = {
        "transformer_architecture": {"sequence_length": 64, "vocab_file": str(folder / "tok.json")},
        "topology": {"global_batch_size": 1, "micro_batch_size": 1},
        "data": {"record_format": "auto", "data_prefixes": [str(folder / "chat")]},
    }
    (folder / "config.yml").write_text(json.dumps(config))
    shown = scaling_data("show", folder / "config.yml").stdout
    assert "--- record 0, tokens 0 to " in shown
    assert expected in shown


def test_options_of_the_other_kind_of_data_are_refused(folder: Path) -> None:
    command = ("tokenize", folder / "chat.jsonl", "-o", folder / "chat", "-t", folder / "tok.json")
    with pytest.raises(DataError, match="--train-on is about records; name their format"):
        scaling_data(*command, "--train-on", "all")
    with pytest.raises(DataError, match="--field is about texts, and --format says"):
        scaling_data(*command, "--format", "messages", "--field", "body")
    with pytest.raises(DataError, match="is a folder; name the files of records in it"):
        scaling_data("tokenize", folder, *command[2:], "--format", "messages")
    with pytest.raises(DataError, match="no chat template"):
        scaling_data(*command, "--format", "messages")
    assert not list(folder.glob("chat.*.building"))
