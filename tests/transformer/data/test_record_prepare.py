"""Files and data sets of records as the data of a run: made once, read by every process, refused where they misfit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaling.core.data.memory_map_builder import MemoryMapDatasetBuilder
from scaling.core.errors import ConfigError, DataError, DataRefusedError
from scaling.transformer.config.environment import environment_problems
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.data.batch import TextSample
from scaling.transformer.data.load import TextMixture, load_datasets, told
from scaling.transformer.data.prepare import prepare_data
from scaling.transformer.data.record_files import report_beside
from scaling.transformer.data.tokenizer import Tokenizer, train_tokenizer
from tests.transformer.data.small_data import make_data

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(["hello world, how are you"], 280).save(path)
    return path


def write_lines(path: Path, records: Iterable[object]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def prompts(path: Path, count: int = 30, *, completion: str = "yes") -> Path:
    return write_lines(
        path, ({"prompt": f"is {number} a number? ", "completion": completion} for number in range(count))
    )


def config(folder: Path, vocab: Path | None, prefixes: Sequence[Path], **data: Any) -> TransformerConfig:
    tokens = {"vocab_size": 280} if vocab is None else {"vocab_file": str(vocab)}
    return TransformerConfig.from_dict(
        {
            "transformer_architecture": {"sequence_length": data.pop("length", 64), **tokens},
            "data": {
                "data_prefixes": [str(prefix) for prefix in prefixes],
                "records_dir": str(folder / "made"),
                **{name: str(value) if isinstance(value, Path) else value for name, value in data.items()},
            },
        }
    )


def made_of(given: TransformerConfig) -> list[Path]:
    """Return the data sets that are made of the files of a configuration."""
    return prepare_data(given).data.data_prefixes or []


def records_of(data: TextMixture, vocab: Path) -> list[tuple[str, str]]:
    """Return the text of each record, and what of it counts."""
    tokenizer, found = Tokenizer.from_file(vocab), {}
    for row in map(data.__getitem__, range(len(data))):
        weights = np.array([0.0, *row.weights])
        for span, first in row.pieces():
            place = slice(first, first + span.stop - span.start)
            tokens = row.tokens[place]
            found[span.document] = tuple(
                tokenizer.decode(chosen.tolist(), skip_special_tokens=False)
                for chosen in (tokens, tokens[weights[place] > 0])
            )
    return [(found[number][0], found[number][1]) for number in sorted(found)]


def test_a_file_of_records_is_made_tokens_once_and_read_from_there(tmp_path: Path, vocab: Path) -> None:
    given = config(tmp_path, vocab, [prompts(tmp_path / "ask.jsonl")], record_format="auto")
    assert environment_problems(given) == []
    prepared = prepare_data(given)
    made = prepared.data.data_prefixes
    assert made is not None
    assert made[0].parent.parent == tmp_path / "made"
    train, validation = load_datasets(prepared)
    assert validation is None
    assert records_of(train, vocab) == [
        (f"is {number} a number? yes<|endoftext|>", "yes<|endoftext|>") for number in range(30)
    ]
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "made").rglob("*") if path.is_file()}
    assert prepare_data(given).digest() == prepared.digest() == prepare_data(prepared).digest()
    assert written == {path: path.stat().st_mtime_ns for path in (tmp_path / "made").rglob("*") if path.is_file()}
    report = report_beside(made[0])
    assert report is not None
    assert (report.formats, report.records, report.bad) == (("prompt_completion",), 30, 0)
    for other in ({"train_on": "all"}, {"too_long": "drop"}, {"length": 63}):
        again = prepare_data(config(tmp_path, vocab, given.data.data_prefixes or [], record_format="auto", **other))
        assert again.data.data_prefixes != made
        same_samples = "too_long" in other  # since none is
        assert (load_datasets(again)[0].fingerprint() == train.fingerprint()) == same_samples


def test_conversations_keep_their_turns_and_learn_the_assistants(tmp_path: Path, vocab: Path) -> None:
    turns = [("user", "hello"), ("assistant", "how are you"), ("user", "world"), ("assistant", "you")]
    messages = [{"role": role, "content": text} for role, text in turns]
    path = write_lines(tmp_path / "chat.jsonl", [{"messages": messages}])
    (tmp_path / "template").write_text(TEMPLATE)
    prepared = prepare_data(
        config(tmp_path, vocab, [path], record_format="messages", chat_template=tmp_path / "template")
    )
    train, _ = load_datasets(prepared)
    (row,) = (train[index] for index in range(len(train)))
    assert len(row.spans) == 1
    assert row.starts[: row.length].sum() == 1
    whole, counted = records_of(train, vocab)[0]
    assert whole == "".join(f"<{role}>{text}<|endoftext|>" for role, text in turns)
    assert counted == "how are you<|endoftext|>you<|endoftext|>"
    (tmp_path / "template").write_text(TEMPLATE + " ")
    with pytest.raises(DataError, match=r"was made with a chat template of SHA-256 .* but that of data\.chat_template"):
        load_datasets(prepared)


def test_bad_records_are_named_and_left_out_only_if_they_may_be(tmp_path: Path, vocab: Path) -> None:
    good = [json.dumps({"prompt": "hello ", "completion": "world"})] * 50
    lines = [*good[:7], "{", *good[7:20], json.dumps({"prompt": "hello"}), *good[20:]]
    path = tmp_path / "ask.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(
        DataError, match=r"2 records of .* cannot be used: .*line 8: .*line 22: .*max_bad_records to at"
    ):
        prepare_data(config(tmp_path, vocab, [path], record_format="auto"))
    train, _ = load_datasets(prepare_data(config(tmp_path, vocab, [path], record_format="auto", max_bad_records=2)))
    assert len(records_of(train, vocab)) == 50
    path.write_text("\n".join(["{"] * 60 + good))
    with pytest.raises(DataRefusedError, match=r"more than 20 records are bad.*data\.max_bad_records"):
        prepare_data(config(tmp_path, vocab, [path], record_format="auto"))
    long = write_lines(tmp_path / "long.jsonl", [{"prompt": "hello " * 40, "completion": "world"}])
    with pytest.raises(DataError, match=r"long\.jsonl, line 1: .* tokens, more than 33"):
        prepare_data(config(tmp_path, vocab, [long], record_format="auto", length=32))


def test_the_predecessors_three_formats(tmp_path: Path, vocab: Path) -> None:
    (tmp_path / "ask.json").write_text(json.dumps([{"prompt": "hello", "completion": " world"}] * 3))
    train, _ = load_datasets(prepare_data(config(tmp_path, vocab, [tmp_path / "ask.json"], finetuning_dataset=True)))
    assert [text for _, text in records_of(train, vocab)] == [" world<|endoftext|>"] * 3
    assert len(train) == 3
    said = [{"type": "text", "content": "hello"}, {"type": "text", "content": " you", "has_loss": True}]
    chat = write_lines(tmp_path / "chat.jsonl", [said])
    train, _ = load_datasets(prepare_data(config(tmp_path, vocab, [chat], finetuning_chat_dataset=True)))
    assert records_of(train, vocab) == [("hello you", " you")]
    with MemoryMapDatasetBuilder(tmp_path / "map", np.int32) as builder:
        builder.add([300, *[5] * 300, 7, 8])  # a length above the vocabulary, and a record that is cut
        builder.add([2, 5, 6, 7, 8])
        builder.add([0, 9])
    given = config(tmp_path, vocab, [tmp_path / "map"], finetuning_dataset_memory_map=True, too_long="drop")
    assert environment_problems(given) == []
    train, _ = load_datasets(prepare_data(given))
    rows: list[TextSample] = [train[index] for index in range(len(train))]
    assert [(row.tokens[:5].tolist(), row.weights[:5].tolist()) for row in rows] == [
        ([5, 6, 7, 8, 0], [0, 1, 1, 1, 0]),
        ([9, 0, 0, 0, 0], [1, 0, 0, 0, 0]),
    ]
    with MemoryMapDatasetBuilder(tmp_path / "texts", np.int32) as builder:
        builder.add([9, 5, 6])
    with pytest.raises(
        DataError, match=r"document 0 of .*texts cannot be used: the document begins with 9, which is no"
    ):
        load_datasets(prepare_data(config(tmp_path, vocab, [tmp_path / "texts"], finetuning_dataset_memory_map=True)))


def test_files_and_data_sets_of_records_are_mixed_and_validated(tmp_path: Path, vocab: Path) -> None:
    first, second = prompts(tmp_path / "a.jsonl"), prompts(tmp_path / "b.jsonl", completion="no")
    (stored,) = made_of(config(tmp_path, vocab, [second], record_format="auto"))
    mixed = {"record_format": "auto", "blended_dataset": {"weight_by_num_documents": False, "weights": [1, 3]}}
    train, validation = load_datasets(
        prepare_data(config(tmp_path, vocab, [first, stored], **mixed, validation_fraction=0.3))
    )
    assert validation is not None
    held = {
        (row.source, span.document) for row in map(validation.__getitem__, range(len(validation))) for span in row.spans
    }
    used = {(row.source, span.document) for row in map(train.__getitem__, range(len(train))) for span in row.spans}
    assert len(held | used) == 60
    assert not held & used
    separate = config(tmp_path, vocab, [first], record_format="auto", validation_data_prefixes=[str(second)])
    _, validation = load_datasets(prepare_data(separate))
    assert validation is not None
    assert {counted for _, counted in records_of(validation, vocab)} == {"no<|endoftext|>"}


def test_what_does_not_fit_together_is_refused_by_name(tmp_path: Path, vocab: Path) -> None:
    file = prompts(tmp_path / "ask.jsonl")
    texts = make_data(tmp_path / "texts", tokenizer=vocab)
    (records,) = made_of(config(tmp_path, vocab, [file], record_format="auto"))
    for prefixes, settings, message in (
        ([records], {}, "holds records .* set data.record_format to auto"),
        ([file, texts], {"record_format": "auto"}, "texts holds texts, .* cannot be mixed"),
        ([records], {"finetuning_dataset_memory_map": True}, "reads the predecessor's memory maps"),
        ([records], {"record_format": "alpaca"}, "made of records of prompt_completion, not of .* alpaca"),
        ([records], {"record_format": "auto", "train_on": "last"}, "made to train on assistant, not .* last"),
        ([tmp_path / "absent"], {"record_format": "auto"}, "absent.* does not exist"),
    ):
        with pytest.raises(DataError, match=message):
            load_datasets(prepare_data(config(tmp_path, vocab, prefixes, **settings)))
    without = config(tmp_path, None, [file], record_format="auto")
    with pytest.raises(ConfigError, match=r"vocab_file: is not given, and data\.data_prefixes\.0 .* is a file of rec"):
        prepare_data(without)
    assert any("is a file of records, which it tokenizes" in str(one) for one in environment_problems(without))
    (problem,) = environment_problems(config(tmp_path, vocab, [file]))
    assert "set record_format to auto if it holds records" in str(problem)
    (problem,) = environment_problems(
        config(tmp_path, vocab, [file], record_format="auto", chat_template=tmp_path / "gone")
    )
    assert str(problem).startswith("data.chat_template: is ")


def test_what_was_left_out_is_told_at_the_start(tmp_path: Path, vocab: Path) -> None:
    lines = ["{", *(json.dumps({"prompt": "hello " * size, "completion": "world"}) for size in (1, 2, 30))]
    (tmp_path / "ask.jsonl").write_text("\n".join(lines))
    settings = {"record_format": "auto", "max_bad_records": 1, "too_long": "drop", "length": 40}
    train, _ = load_datasets(prepare_data(config(tmp_path, vocab, [tmp_path / "ask.jsonl"], **settings)))
    first, *others = told(train)
    assert re.search(r"ask: 2 records in 1 sequences, \d+\.\d % of their places taken$", first)
    assert others[0] == "2 records left out: 1 bad, 1 too long"
    assert "ask.jsonl, line 1: " in others[1]
    stored = config(tmp_path, vocab, [Path(train.names[0])], record_format="auto", too_long="cut_right", length=4)
    (line,) = list(told(load_datasets(prepare_data(stored))[0]))[:1]
    assert re.search(r"; \d longer than a sequence \(cut_right\)", line)
