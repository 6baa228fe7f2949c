"""Files of records are read in order; what is none is named with its place, or counted up to a limit."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from scaling.core.errors import DataError, DataRefusedError, StorageError
from scaling.transformer.data.records.budget import RecordBudget, TooLong
from scaling.transformer.data.records.formats import RecordFormat
from scaling.transformer.data.records.read import read_records
from scaling.transformer.data.records.record import Record
from tests.transformer.data.records.chat import chat_template, encoder, talk, tokenizer

PAIR = {"prompt": "a", "completion": "b"}


def lines(path: Path, values: list[Any]) -> Path:
    path.write_text("".join((value if isinstance(value, str) else json.dumps(value)) + "\n" for value in values))
    return path


def read(path: Path, budget: RecordBudget | None = None, **options: Any) -> list[Record]:
    return list(read_records(path, encoder(chat_template(), **options), budget or RecordBudget()))


def texts(records: list[Record]) -> list[str]:
    return [tokenizer().decode(record.tokens.tolist()) for record in records]


@pytest.mark.parametrize("suffix", [".json", ".json.gz", ".jsonl", ".jsonl.gz", "-lines.json"])
def test_arrays_and_lines_are_read_packed_or_not(tmp_path: Path, suffix: str) -> None:
    values = [{"prompt": "", "completion": f"number {number}"} for number in range(300)]
    array = suffix.startswith(".json") and "jsonl" not in suffix
    content = json.dumps(values) if array else "\n\n".join(map(json.dumps, values))
    path = tmp_path / f"data{suffix}"
    path.write_bytes(gzip.compress(content.encode()) if suffix.endswith(".gz") else content.encode())
    budget = RecordBudget()
    assert texts(read(path, budget)) == [f"number {number}" for number in range(300)]
    assert (budget.records, budget.bad_records, budget.left_out()) == (300, 0, "")
    assert budget.formats == {path: RecordFormat.PROMPT_COMPLETION}


def test_an_array_of_lists_and_lines_of_lists_are_told_apart(tmp_path: Path) -> None:
    talked = [[{"type": "text", "content": "q"}, {"type": "text", "content": str(n), "has_loss": True}] for n in "12"]
    assert texts(read(lines(tmp_path / "a.json", [json.dumps(talked)]))) == ["q1", "q2"]
    assert texts(read(lines(tmp_path / "b.json", talked))) == ["q1", "q2"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["{"], r"a.jsonl, line 1: not JSON \(Expecting"),
        ([PAIR, "", "{]"], r"a.jsonl, line 3: not JSON .* Mend it, or skip up to n such records with --max-bad n"),
        ([PAIR, {"prompt": "a"}], "a.jsonl, line 2: the record has no field 'completion'"),
        ([{"question": "a"}], "a.jsonl, line 1: an object with the fields 'question', which is no known format"),
        ([5], "a.jsonl, line 1: a number, which is no known format"),
        ([], "a.jsonl is empty"),
        (["", " "], "a.jsonl is empty"),
        ([{"messages": talk("a")}], r"none of its 1 records .* \(1 records left out: 1 without a token that counts"),
        ([{"input_ids": [1, 2], "labels": [-100, -100]}], "none of its 1 records"),
    ],
)
def test_a_bad_file_of_lines_is_refused_by_place(tmp_path: Path, values: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(lines(tmp_path / "a.jsonl", values))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "a.json is empty"),
        ("[]", "a.json is empty"),
        ('[{"prompt": "a",\n]', "a.json, line 2: not JSON .Illegal trailing comma|a.json, line 2: not JSON"),
        ("5", "a.json holds a number; a list of records is due"),
        ("[" * 100_000, "a.json"),
        (json.dumps([PAIR, {"prompt": 1, "completion": "b"}]), "element 2 of .*a.json: 'prompt' is a number"),
    ],
)
def test_a_bad_array_is_refused_by_place(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.json")


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    for name in ("none.jsonl", "none.json"):
        with pytest.raises(DataError, match=f"{name} cannot be read"):
            read(tmp_path / name)
    for name in ("folder.jsonl", "folder.json"):
        (tmp_path / name).mkdir()
        with pytest.raises(StorageError, match="cannot be read"):
            read(tmp_path / name)
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(b"[" + b"{}" * 9000)[:30])
    with pytest.raises(DataError, match="damaged or cut off"):
        read(tmp_path / "cut.json.gz")


def test_bad_records_are_skipped_and_named_up_to_a_number(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", ["{", PAIR, {"prompt": 5}, PAIR, [1]])
    budget = RecordBudget(max_bad=3)
    assert len(read(path, budget)) == budget.records == 2
    assert [place.partition(":")[0] for place in budget.bad] == [f"{path}, line {line}" for line in (1, 3, 5)]
    assert budget.left_out() == "3 records left out: 3 bad"
    with pytest.raises(DataRefusedError, match=r"more than 2 records are bad, the last one: .*line 5: .* --max-bad"):
        read(path, RecordBudget(max_bad=2))


def test_a_named_format_is_not_guessed(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [{**PAIR, "text": "t"}])
    assert texts(read(path, format=RecordFormat.TEXT)) == ["t"]
    with pytest.raises(DataError, match="line 1: a record of 'prompt_completion' among those of 'alpaca'"):
        read(path, format=RecordFormat.ALPACA)


def test_long_records_are_refused_dropped_or_cut_and_counted(tmp_path: Path) -> None:
    values = [
        {"input_ids": [1, 2, 3, 4, 5], "labels": [-100, -100, -100, 4, 5]},
        {"input_ids": [1, 2, 3, 4], "labels": [-100, 2, -100, -100]},
        {"input_ids": [7, 8, 9], "labels": [-100, -100, 9]},
    ]
    path = lines(tmp_path / "a.jsonl", values)

    def kept(too_long: TooLong) -> tuple[list[tuple[list[int], list[float]]], RecordBudget]:
        budget = RecordBudget(longest=3, too_long=too_long)
        return [(record.tokens.tolist(), record.weights.tolist()) for record in read(path, budget)], budget

    short = ([7, 8, 9], [0.0, 0.0, 1.0])
    with pytest.raises(DataError, match="line 1: 5 tokens, more than 3; shorten it, or choose to drop or cut"):
        kept(TooLong.REFUSE)
    made, budget = kept(TooLong.DROP)
    assert (made, budget.dropped, budget.records, budget.cut) == ([short], 2, 1, 0)
    assert budget.left_out() == "2 records left out: 2 too long"
    made, budget = kept(TooLong.CUT_LEFT)
    assert made == [([3, 4, 5], [0.0, 1.0, 1.0]), short]
    assert budget.left_out() == "1 records left out: 1 without a token that counts; 1 cut to 3 tokens"
    made, budget = kept(TooLong.CUT_RIGHT)
    assert made == [([1, 2, 3], [0.0, 1.0, 0.0]), short]
    assert (budget.cut, budget.without_loss) == (1, 1)


@pytest.mark.slow
def test_seven_bad_records_of_a_hundred_thousand_are_each_named_with_their_line(tmp_path: Path) -> None:
    bad = {
        3: '{"messages"',
        500: '{"messages": []}',
        20_000: '{"messages": [{"role": "bot", "content": "a"}]}',
        50_001: '{"messages": [{"role": "assistant", "content": "a"}]}',
        70_000: '{"messages": "text"}',
        99_999: '{"other": 1}',
        100_000: '{"messages": [{"role": "user"}]}',
    }
    good = json.dumps({"messages": talk("a", "b")})
    path = lines(tmp_path / "a.jsonl", [bad.get(line, good) for line in range(1, 100_001)])
    budget = RecordBudget(max_bad=7)
    count = sum(1 for _ in read_records(path, encoder(chat_template()), budget))
    assert count == budget.records == 99_993
    assert [named.partition(":")[0] for named in budget.bad] == [f"{path}, line {line}" for line in bad]
