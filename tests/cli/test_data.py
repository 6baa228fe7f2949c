"""`scaling data` at the keyboard."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from scaling.cli.data import app, histogram
from scaling.core.data.memory_map import MemoryMapDataset
from scaling.core.data.memory_map_builder import MemoryMapDatasetBuilder
from scaling.core.errors import ConfigError, DataError, StorageError
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.data.end_token import END_OF_TEXT
from scaling.transformer.data.lengths import lengths_of
from scaling.transformer.data.load import load_datasets
from scaling.transformer.data.prepare import prepare_data
from scaling.transformer.data.tokenizer import Tokenizer
from scaling.transformer.data.trace import samples_of_step
from tests.processes import wait_until

TEXTS = [f"Text number {number} speaks of {'many ' * (number % 9)}things." for number in range(80)]


def scaling_data(*arguments: object) -> Result:
    """Run a command; let errors through as the main program receives them."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file, a tokenizer trained on it and the tokens of it, made by the commands."""
    folder = tmp_path_factory.mktemp("data")
    lines = [*(json.dumps({"body": text}) for text in TEXTS), '{"body": ""}', "bad"]
    (folder / "text.jsonl").write_text("\n".join(lines))
    options = ("--field", "body", "--max-bad", 1)
    trained = scaling_data(
        "train-tokenizer", folder / "text.jsonl", "-o", folder / "tok.json", "--vocab-size", 300, *options
    )
    assert "300 tokens, SHA-256" in trained.stdout
    assert "note" not in trained.stdout
    made = scaling_data(
        "tokenize", folder / "text.jsonl", "-o", folder / "tokens", "-t", folder / "tok.json", "--workers", 1, *options
    )
    assert made.exit_code == 0
    assert f"{folder / 'tokens'}: 80 documents" in made.stdout
    assert f"tokens, each document ending with {END_OF_TEXT}\n" in made.stdout
    assert "left out 1 documents without text" in made.stdout
    assert f"skipped 1 bad records, all of them listed in {folder / 'tokens'}.skipped.jsonl" in made.stdout
    assert "text.jsonl, line 82" in made.stdout
    assert "tokenizing: 100 %" in made.stderr
    return folder


def test_tokenized_documents_are_the_texts(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(folder / "tok.json")
    assert [tokenizer.decode(tokens.tolist()) for tokens in MemoryMapDataset(folder / "tokens")] == TEXTS


def test_inspect_shows_counts_lengths_and_documents(folder: Path) -> None:
    documents = MemoryMapDataset(folder / "tokens")
    output = scaling_data("inspect", folder / "tokens", "-t", folder / "tok.json", "--samples", 2, "--verify").stdout
    assert "every byte verified" in output
    assert f"tokens       {documents.token_count}\n" in output
    assert f"documents    {len(documents)}\n" in output
    assert f"end token    0 {END_OF_TEXT}\n" in output
    assert f"{TEXTS[0]}{END_OF_TEXT}" in output
    assert f"{TEXTS[-1]}{END_OF_TEXT}" in output
    assert "note" not in output
    ids = scaling_data("inspect", folder / "tokens", "--samples", 1).stdout
    assert " ".join(str(token) for token in documents[0].tolist()) in ids


def test_documents_are_not_shown_with_another_tokenizer_than_their_own(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("ab ab ab ab")
    scaling_data("train-tokenizer", tmp_path / "a.txt", "-o", tmp_path / "tok.json", "--vocab-size", 300)
    with pytest.raises(DataError, match=r"tokens was made with a tokenizer of SHA-256 \w+, but that of .*tok\.json is"):
        scaling_data("inspect", folder / "tokens", "-t", tmp_path / "tok.json")


def test_tokens_that_are_none_of_the_tokenizer_are_shown_as_numbers(folder: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(folder / "tok.json")
    word = tokenizer.encode("caf\u00e9")
    with MemoryMapDatasetBuilder(tmp_path / "odd", np.int64) as builder:
        builder.add([*word, 300, 1 << 40, *word])
    assert "caf\u00e9<token 300><token 1099511627776>caf\u00e9" in (
        scaling_data("inspect", tmp_path / "odd", "-t", folder / "tok.json").stdout
    )


def test_a_document_cannot_send_commands_to_the_terminal(folder: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(folder / "tok.json")
    with MemoryMapDatasetBuilder(tmp_path / "odd", np.int64) as builder:
        builder.add(tokenizer.encode("a\x1b]0;title\x07\tb\r\n\x9bc caf\u00e9"))
    shown = scaling_data("inspect", tmp_path / "odd", "-t", folder / "tok.json").stdout
    assert "a\\x1b]0;title\\x07\tb\\x0d\n\\x9bc caf\u00e9" in shown


def test_inspect_names_a_data_set_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        scaling_data("inspect", tmp_path / "absent")


def test_a_tokenizer_is_not_overwritten(folder: Path) -> None:
    with pytest.raises(DataError, match="exists already"):
        scaling_data("train-tokenizer", folder / "text.jsonl", "-o", folder / "tok.json", "--vocab-size", 300)


def test_a_tokenizer_is_not_called_like_a_text(folder: Path, tmp_path: Path) -> None:
    for name in ("tok.txt", "tok.JSONL"):
        with pytest.raises(DataError, match=r"would be read as text where it lies among texts; call it \.json"):
            scaling_data("train-tokenizer", folder / "text.jsonl", "-o", tmp_path / name, "--vocab-size", 300)


def test_files_that_are_left_out_are_said(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text")
    (tmp_path / "b.txt.xz").touch()
    (tmp_path / "old.skipped.jsonl").write_text((folder / "tokens.skipped.jsonl").read_text())
    for arguments in (
        ("train-tokenizer", tmp_path, "-o", tmp_path / "tok.json", "--vocab-size", 300),
        ("tokenize", tmp_path, "-o", tmp_path / "tokens", "-t", folder / "tok.json", "--workers", 1),
    ):
        shown = scaling_data(*arguments).stdout
        assert f"left out {tmp_path / 'b.txt.xz'}: .xz is not read; unpack it" in shown
        assert f"left out {tmp_path / 'old.skipped.jsonl'}: a list of skipped records" in shown


def test_a_tokenizer_that_could_not_be_written_is_not_trained(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("scaling.cli.data.train_tokenizer", None)  # calling it would be a TypeError
    arguments = ("train-tokenizer", folder / "text.jsonl", "--vocab-size", 300)
    with pytest.raises(StorageError, match=r"writing .*tok\.json failed"):
        scaling_data(*arguments, "-o", tmp_path / "file" / "tok.json")


def test_texts_that_give_fewer_tokens_than_asked_for_are_pointed_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("ab ab ab ab")
    output = scaling_data(
        "train-tokenizer", tmp_path / "a.txt", "-o", tmp_path / "tok.json", "--vocab-size", 500
    ).stdout
    tokens = Tokenizer.from_file(tmp_path / "tok.json").vocab_size
    assert tokens < 500
    assert f"note: the text gives no more than {tokens} of the 500 tokens asked for" in output


def test_a_tokenizer_is_not_trained_on_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    (tmp_path / "b.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(DataError, match=r"no text to train a tokenizer on in .*a\.txt, .*b\.jsonl"):
        scaling_data(
            *("train-tokenizer", tmp_path / "a.txt", tmp_path / "b.jsonl"),
            *("-o", tmp_path / "tok.json", "--vocab-size", 500),
        )
    assert not (tmp_path / "tok.json").exists()


@pytest.mark.parametrize(
    ("given", "proposed"),
    [
        ("folder", "folder/data"),
        ("folder/", "folder/data"),
        ("new/", "new/data"),
        ("q.bin", "q"),
        ("q.v1.idx", "q.v1"),
        ("q.meta.json", "q"),
    ],
)
def test_an_output_that_is_no_prefix_is_refused_with_one_that_is(
    given: str, proposed: str, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=rf"prefix of its files; give .*{re.escape(f'{tmp_path}/{proposed}')}$"):
        scaling_data("tokenize", folder / "text.jsonl", "-o", f"{tmp_path}/{given}", "-t", folder / "tok.json")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_tokenization_that_is_told_to_stop_leaves_nothing_to_complain_of(folder: Path, tmp_path: Path) -> None:
    """Python warns of what a process that is simply killed leaves behind."""
    line = json.dumps({"text": " ".join(TEXTS)}) + "\n"
    (tmp_path / "text.jsonl").write_text(line * ((80 << 20) // len(line)))  # ten chunks
    command = [sys.executable, "-m", "scaling.cli.main", "data", "tokenize", str(tmp_path / "text.jsonl")]
    options = ["-o", str(tmp_path / "tokens"), "-t", str(folder / "tok.json"), "--workers", "2"]
    process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
    wait_until(lambda: any(tmp_path.glob("tokens.partial/chunk-*.tokens.*")), "no worker began")
    process.terminate()
    _, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert [said for said in errors.splitlines() if not said.startswith("tokenizing")] == []


@pytest.fixture(scope="module")
def config_file(folder: Path) -> Path:
    path = folder / "config.yml"
    path.write_text(
        f"""
        topology: {{micro_batch_size: 3, gradient_accumulation_steps: 2}}
        transformer_architecture: {{sequence_length: 16, vocab_file: {folder / "tok.json"}}}
        data: {{data_prefixes: [{folder / "tokens"}]}}
        """
    )
    return path


def test_show_prints_text_documents_and_offsets_of_a_step(folder: Path, config_file: Path) -> None:
    shown = scaling_data("show", config_file, "--step", 4, "trainer.seed=3")
    output = shown.stdout
    assert "note: this assumes that steps 1 to 3 consumed 6 samples each" in shown.stderr
    config = prepare_data(TransformerConfig.from_yaml(config_file, ["trainer.seed=3"]))
    tokenizer = Tokenizer.from_file(folder / "tok.json")
    lines = []
    for consumed in samples_of_step(config, load_datasets(config)[0], 4):
        lines.append(
            f"=== sample {consumed.position} (micro-batch {consumed.micro_batch}, data-parallel rank 0): sequence "
            f"{consumed.index} of {folder / 'tokens'}"
        )
        for document, start, stop in consumed.sample.spans:
            text = MemoryMapDataset(folder / "tokens").read(document, start, stop).tolist()
            lines += [
                f"--- document {document}, tokens {start} to {stop - 1}",
                tokenizer.decode(text, skip_special_tokens=False),
            ]
    assert output == "\n".join(lines) + "\n"
    assert output.startswith("=== sample 18 ")
    same = scaling_data("show", config_file, "--step", 9, "--consumed-samples", 18, "trainer.seed=3")
    assert same.stdout == output
    assert "note" not in same.stderr


def test_show_refuses_steps_that_no_run_reaches(config_file: Path) -> None:
    for step in (0, 10**30):
        with pytest.raises(ConfigError, match=f"step {step}"):
            scaling_data("show", config_file, "--step", step)


def test_the_longest_document_can_be_chosen_for_training_a_tokenizer(folder: Path, tmp_path: Path) -> None:
    arguments = ("train-tokenizer", folder / "text.jsonl", "-o", tmp_path / "tok.json", "--vocab-size", 300)
    with pytest.raises(DataError, match="longer than 40 bytes"):
        scaling_data(*arguments, "--max-document-bytes", 40)


def test_lengths_are_counted_by_powers_of_two() -> None:
    sizes = np.array([0, 1, 2, 3, 3, 4, 7, 16])
    lines = histogram(lengths_of(lambda start, stop: sizes[start:stop], len(sizes)).by_bits)
    assert [line.split() for line in lines] == [
        ["0", "-", "0", "1", "#############"],
        ["1", "-", "1", "1", "#############"],
        ["2", "-", "3", "3", "#" * 40],
        ["4", "-", "7", "2", "#" * 27],
        ["8", "-", "15", "0"],
        ["16", "-", "31", "1", "#############"],
    ]


@pytest.mark.parametrize("package", ["torch", "pydantic", "jinja2", "scaling.transformer.config.root"])
def test_the_commands_start_without_what_takes_long_to_import(package: str) -> None:
    code = f"import sys, scaling.cli.data; sys.exit({package!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
