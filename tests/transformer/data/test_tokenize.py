"""Tokenizing files: the same bytes for any number of workers, resumed where it stopped, refused where data is bad."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scaling.core.data.memory_map import MemoryMapDataset
from scaling.core.errors import DataError, DataRefusedError, ExitStatus
from scaling.transformer.data import shards
from scaling.transformer.data.chunks import Chunk
from scaling.transformer.data.end_token import END_OF_TEXT
from scaling.transformer.data.readers import Piece, PieceReader
from scaling.transformer.data.shards import TokenizeOptions
from scaling.transformer.data.tokenize import TokenizeResult, tokenize_files
from scaling.transformer.data.tokenizer import Tokenizer, train_tokenizer
from tests.processes import wait_until

TEXTS = [f"document number {number}: " + "the quick brown fox " * (number % 7) for number in range(300)]


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(TEXTS, 300).save(path)
    return path


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    """Two files of JSON lines and one of text."""
    folder = tmp_path / "inputs"
    folder.mkdir()
    for name, texts in (("a", TEXTS[:200]), ("b", TEXTS[200:-1])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "c.txt").write_text(TEXTS[-1])
    return [folder]


def run(
    inputs: list[Path], output: Path, tokenizer_file: Path, *, workers: int = 1, **options: object
) -> TokenizeResult:
    rules = TokenizeOptions(tokenizer_file, **options)  # type: ignore[arg-type]  # options of several types
    return tokenize_files(inputs, output, rules, workers=workers, chunk_bytes=4000)


def files(output: Path) -> dict[str, bytes]:
    return {suffix: (output.parent / (output.name + suffix)).read_bytes() for suffix in (".bin", ".idx", ".meta.json")}


def test_documents_come_out_as_they_went_in_and_end_with_the_end_token(
    tmp_path: Path, inputs: list[Path], tokenizer_file: Path
) -> None:
    result = run(inputs, tmp_path / "out" / "data", tokenizer_file)
    documents = MemoryMapDataset(tmp_path / "out" / "data")
    tokenizer = Tokenizer.from_file(tokenizer_file)
    assert result.documents == len(documents) == len(TEXTS)
    assert result.tokens == documents.token_count
    for tokens, text in zip(documents, TEXTS, strict=True):
        assert tokenizer.decode(tokens.tolist(), skip_special_tokens=False) == text + END_OF_TEXT
    assert documents.meta.tokenizer_sha256 == tokenizer.sha256
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["data.bin", "data.idx", "data.meta.json"]


def test_the_end_token_can_be_named_and_is_recorded(tmp_path: Path, tokenizer_file: Path) -> None:
    content = json.loads(tokenizer_file.read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "id": 400, "content": "<done>"})
    named = tmp_path / "tokenizer.json"
    named.write_text(json.dumps(content))
    number = Tokenizer.from_file(named).token_id("<done>")
    (tmp_path / "text.txt").write_text("a <done> b")
    for name in ("named", "told"):
        result = run([tmp_path / "text.txt"], tmp_path / name, named, eod_token="<done>" if name == "named" else None)
        documents = MemoryMapDataset(tmp_path / name)
        assert result.eod_token == "<done>"
        assert documents.meta.eod_token_id == number
        assert documents[0].tolist().count(number) == 1
        (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<done>"}')
    assert files(tmp_path / "named") == files(tmp_path / "told")
    for options in ({"eod_token": "<dome>"}, {"eod_token": "<done>", "append_eod": False}):
        with pytest.raises(DataError, match=r"did you mean '<done>'|leave one out"):
            run([tmp_path / "text.txt"], tmp_path / "no", named, **options)


def test_the_end_token_can_be_left_out(tmp_path: Path, inputs: list[Path], tokenizer_file: Path) -> None:
    run(inputs, tmp_path / "data", tokenizer_file, append_eod=False)
    end = Tokenizer.from_file(tokenizer_file).eos_token_id
    documents = MemoryMapDataset(tmp_path / "data")
    assert all(end not in tokens for tokens in documents)
    assert documents.meta.eod_token_id is None


def test_two_workers_write_the_same_bytes_as_one(tmp_path: Path, inputs: list[Path], tokenizer_file: Path) -> None:
    one = run(inputs, tmp_path / "one", tokenizer_file)
    two = run(inputs, tmp_path / "two", tokenizer_file, workers=2)
    assert one == two
    assert files(tmp_path / "one") == files(tmp_path / "two")


def stop_at_third(inputs: list[Path], output: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokenize two chunks, and be stopped."""
    write = shards.Shard.write

    def stop(shard: shards.Shard, chunk: Chunk, *arguments: object) -> shards.ShardReport:
        if chunk.index == 2:
            raise KeyboardInterrupt
        return write(shard, chunk, *arguments)  # type: ignore[arg-type]  # handed on as they came

    with monkeypatch.context() as patch:
        patch.setattr(shards.Shard, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            run(inputs, output, tokenizer_file)


def test_a_run_that_was_stopped_goes_on_where_it_stopped(
    tmp_path: Path, inputs: list[Path], tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(inputs, tmp_path / "whole", tokenizer_file)
    stop_at_third(inputs, tmp_path / "data", tokenizer_file, monkeypatch)
    assert not (tmp_path / "data.meta.json").exists()
    assert run(inputs, tmp_path / "data", tokenizer_file).reused_chunks == 2
    assert files(tmp_path / "whole") == files(tmp_path / "data")
    assert not (tmp_path / "data.partial").exists()


@pytest.mark.parametrize("kept", ["size", "time"])
def test_chunks_of_a_file_that_was_changed_in_place_are_not_taken_over(
    tmp_path: Path, inputs: list[Path], tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    stop_at_third(inputs, tmp_path / "data", tokenizer_file, monkeypatch)
    path = tmp_path / "inputs" / "a.jsonl"
    before, animal = path.stat(), {"size": "cat", "time": "tortoise"}[kept]
    path.write_text(path.read_text().replace("fox", animal))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + (kept == "size")))
    assert (path.stat().st_size == before.st_size) == (kept == "size")
    assert run(inputs, tmp_path / "data", tokenizer_file).reused_chunks == 0
    run(inputs, tmp_path / "whole", tokenizer_file)
    assert files(tmp_path / "whole") == files(tmp_path / "data")


def test_a_worker_of_a_killed_run_that_is_still_at_work_does_no_harm(
    tmp_path: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("some text")
    chunk = Chunk(0, (Piece(tmp_path / "a.txt"),), 9)
    options = TokenizeOptions(tokenizer_file)
    shard, dtype = shards.Shard(tmp_path, 0), shards.token_dtype(300)
    fsync = os.fsync

    def late(descriptor: int) -> None:
        """Let another process begin with the same chunk just before this one is finished."""
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "getpid", lambda: 1)
        with pytest.raises(KeyboardInterrupt):
            shard.write(Chunk(0, (Piece(tmp_path / "a.txt"), Piece(tmp_path / "b.txt")), 9), options, dtype)
        monkeypatch.undo()

    def interrupt(piece: Piece, **options: object) -> PieceReader:
        if piece.path.name == "b.txt":
            raise KeyboardInterrupt
        return PieceReader(piece, **options)  # type: ignore[arg-type]  # handed on as they came

    monkeypatch.setattr(shards, "PieceReader", interrupt)
    monkeypatch.setattr(os, "fsync", late)
    shard.write(chunk, options, dtype)
    tokens = shard.documents(dtype).tokens
    assert Tokenizer.from_file(tokenizer_file).decode(tokens.tolist()) == "some text"


def test_a_shard_that_was_changed_is_noticed(tmp_path: Path, tokenizer_file: Path) -> None:
    (tmp_path / "a.txt").write_text("some text")
    shard, dtype = shards.Shard(tmp_path, 0), shards.token_dtype(300)
    shard.write(Chunk(0, (Piece(tmp_path / "a.txt"),), 9), TokenizeOptions(tokenizer_file), dtype)
    os.truncate(tmp_path / "chunk-000000.tokens", 3)
    with pytest.raises(DataError, match=r"chunk-000000\.tokens has 3 bytes, not the \d+ of its documents"):
        shard.documents(dtype)


def test_tokens_are_stored_in_the_smallest_type_that_holds_them_all() -> None:
    types = {1 << 16: "uint16", (1 << 16) + 1: "int32", 1 << 31: "int32", (1 << 31) + 1: "int64"}
    assert {size: shards.token_dtype(size).name for size in types} == types


def test_a_tokenizer_that_cannot_encode_a_text_is_refused(tmp_path: Path, inputs: list[Path]) -> None:
    model = {"type": "WordLevel", "vocab": {"</s>": 0}, "unk_token": "absent"}
    (tmp_path / "words.json").write_text(json.dumps({"version": "1.0", "model": model}))
    with pytest.raises(DataError, match="cannot encode every text"):
        run(inputs, tmp_path / "data", tmp_path / "words.json")


def test_what_was_made_with_other_options_is_not_taken_over(
    tmp_path: Path, inputs: list[Path], tokenizer_file: Path
) -> None:
    (tmp_path / "inputs" / "d.jsonl").write_text("bad")
    for append_eod in (True, False, False):
        with pytest.raises(DataError):
            run(inputs, tmp_path / "data", tokenizer_file, append_eod=append_eod)
    result = run(inputs, tmp_path / "data", tokenizer_file, append_eod=False, max_bad=1)
    assert result.reused_chunks > 0
    assert END_OF_TEXT not in str(MemoryMapDataset(tmp_path / "data")[0])
    end = Tokenizer.from_file(tokenizer_file).eos_token_id
    assert all(end not in tokens for tokens in MemoryMapDataset(tmp_path / "data"))


KILLED = """
import os, signal, sys
from pathlib import Path
from scaling.transformer.data.shards import TokenizeOptions
from scaling.transformer.data.tokenize import tokenize_files

def progress(stage, done, total):
    if stage == sys.argv[4] and done:
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    options = TokenizeOptions(Path(sys.argv[3]))
    tokenize_files([Path(sys.argv[1])], Path(sys.argv[2]), options, workers=int(sys.argv[5]), chunk_bytes=4000,
                   progress=progress)
"""


@pytest.mark.parametrize(("stage", "workers"), [("tokenizing", 2), ("writing", 1)])
def test_a_killed_run_leaves_no_memory_map_and_no_process_and_the_next_one_finishes(
    tmp_path: Path, inputs: list[Path], tokenizer_file: Path, stage: str, workers: int
) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    arguments = [str(inputs[0]), str(tmp_path / "data"), str(tokenizer_file), stage, str(workers)]
    process = subprocess.Popen([sys.executable, str(script), *arguments], start_new_session=True)
    assert process.wait() == -signal.SIGKILL
    with pytest.raises(DataError, match="does not exist"):
        MemoryMapDataset(tmp_path / "data")
    assert run(inputs, tmp_path / "data", tokenizer_file).reused_chunks > 0
    run(inputs, tmp_path / "whole", tokenizer_file)
    assert files(tmp_path / "whole") == files(tmp_path / "data")
    wait_until(lambda: not _session_is_alive(process.pid), "a worker outlived the run")


def _session_is_alive(session: int) -> bool:
    try:
        os.killpg(session, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_bad_record_is_refused_by_file_and_line(tmp_path: Path, inputs: list[Path], tokenizer_file: Path) -> None:
    path = tmp_path / "inputs" / "a.jsonl"
    lines = path.read_text().splitlines()
    lines[149] = '{"text": 1}'
    path.write_text("\n".join(lines))
    for workers in (1, 2):
        with pytest.raises(DataError, match=r"a\.jsonl, line 150 \(byte \d+\): 'text' is a JSON number") as raised:
            run(inputs, tmp_path / "data", tokenizer_file, workers=workers)
        assert raised.value.exit_status == ExitStatus.USER_INPUT
    assert not (tmp_path / "data.meta.json").exists()


def test_bad_records_within_the_budget_are_skipped_and_listed(
    tmp_path: Path, inputs: list[Path], tokenizer_file: Path
) -> None:
    path = tmp_path / "inputs" / "b.jsonl"
    path.write_text("bad\n" + path.read_text() + '{"text": ""}\n' + '{"texts": "bad"}')
    result = run(inputs, tmp_path / "data", tokenizer_file, max_bad=2)
    assert (result.documents, result.empty, result.left_out) == (len(TEXTS), 1, ())
    assert [(record.path.name, record.line) for record in result.bad] == [("b.jsonl", 1), ("b.jsonl", 102)]
    listed = [json.loads(line) for line in (tmp_path / "data.skipped.jsonl").read_text().splitlines()]
    assert [(record["path"], record["line"]) for record in listed] == [(str(path), 1), (str(path), 102)]
    assert listed[1]["offset"] == path.stat().st_size - len('{"texts": "bad"}')
    # Written among the texts, neither the list nor anything else becomes text of the next data set.
    for name in ("one", "two"):
        result = run(inputs, tmp_path / "inputs" / name, tokenizer_file, max_bad=2)
        assert [file.path.name for file in result.left_out] == ["one.skipped.jsonl"] * (name == "two")
    assert files(tmp_path / "data") == files(tmp_path / "inputs" / "one") == files(tmp_path / "inputs" / "two")


def test_more_bad_records_than_the_budget_are_refused(tmp_path: Path, inputs: list[Path], tokenizer_file: Path) -> None:
    (tmp_path / "inputs" / "b.jsonl").write_text("bad\n" * 5)
    with pytest.raises(DataRefusedError, match=r"more than 3 records are bad, the last one: .*b\.jsonl, line 4 "):
        run(inputs, tmp_path / "data", tokenizer_file, max_bad=3)


def test_input_without_any_text_is_refused(tmp_path: Path, tokenizer_file: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n')
    (tmp_path / "b.txt").touch()
    with pytest.raises(DataError, match=r"\(2 were empty\)"):
        run([tmp_path], tmp_path / "data", tokenizer_file)


def test_an_existing_output_is_refused_before_any_work(
    tmp_path: Path, inputs: list[Path], tokenizer_file: Path
) -> None:
    run(inputs, tmp_path / "data", tokenizer_file)
    before = files(tmp_path / "data")
    with pytest.raises(DataError, match="exists already"):
        run(inputs, tmp_path / "data", tokenizer_file)
    assert files(tmp_path / "data") == before


def test_a_missing_tokenizer_is_refused_before_any_work(tmp_path: Path, inputs: list[Path]) -> None:
    with pytest.raises(DataError, match=r"tokenizer file .*absent\.json cannot be read"):
        run(inputs, tmp_path / "data", tmp_path / "absent.json")
    assert not list(tmp_path.glob("data*"))
