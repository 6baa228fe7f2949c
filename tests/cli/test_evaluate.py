"""`scaling evaluate` shows what a model makes of data, and refuses data that are not for it in one message."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scaling.cli.main import main
from scaling.core import MemoryMapDatasetBuilder
from scaling.transformer.data.shards import TokenizeOptions
from scaling.transformer.data.tokenize import tokenize_files
from scaling.transformer.data.tokenizer import train_tokenizer
from scaling.transformer.inference.module import TransformerInferenceModule
from tests.transformer.finetuned import write_base
from tests.transformer.small import run_module

SENTENCES = ["the cät 🙂 sat on the mat.", "on the mat sat the cät, it sat and sat 🙂🙂", "the mat"]

Evaluate = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a checkpoint, its tokenizer, and data."""
    folder = tmp_path_factory.mktemp("run")
    write_base(folder / "checkpoints", vocab_size=300, sequence_length=8)
    train_tokenizer(SENTENCES, 270).save(folder / "checkpoints" / "vocab.json")
    train_tokenizer(SENTENCES, 280).save(folder / "other.json")
    file = folder / "text.jsonl"
    file.write_text("".join(f"{json.dumps({'text': text})}\n" for text in SENTENCES))
    for name, tokenizer in (("data", "checkpoints/vocab.json"), ("foreign", "other.json")):
        tokenize_files([file], folder / name, TokenizeOptions(folder / tokenizer))
    return folder


@pytest.fixture
def evaluate(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Evaluate:
    """Run `scaling evaluate CHECKPOINT ARGUMENTS`; return status, output and errors."""

    def command(*arguments: object, checkpoint: Path = run / "checkpoints") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["scaling", "evaluate", str(checkpoint), *map(str, arguments)])
        with pytest.raises(SystemExit) as leaving:
            main()
        shown = capsys.readouterr()
        return int(leaving.value.code or 0), shown.out, shown.err

    return command


def test_a_row_for_each_data_set_is_shown(evaluate: Evaluate, run: Path) -> None:
    data = run / "data"
    status, said, shown = evaluate("--data", data, data, "--samples", 2)
    assert (status, shown) == (0, "")
    assert all(name in said for name in ("loss", "perplexity", "bits per byte", "tokens", "bytes", "samples"))
    assert said.count(str(data)) == 2
    assert said.startswith(f"{run / 'checkpoints' / 'global_step3'}\n")
    status, said, shown = evaluate("--data", data, "--json", checkpoint=run)
    assert (status, shown) == (0, f"note: taking {run / 'checkpoints'}\n")
    (row,) = json.loads(said)["data"]
    assert row["data"] == str(data)
    assert row["loss"] == pytest.approx(row["nats"] / row["tokens"])
    assert row["perplexity"] == pytest.approx(math.exp(row["loss"]))
    assert row["bits_per_byte"] == pytest.approx(row["nats"] / math.log(2) / row["bytes"])
    whole = sum(len(text.encode()) for text in SENTENCES)
    assert whole - 15 < row["bytes"] < whole  # but for the first token of each document


def test_two_processes_say_the_same_once(evaluate: Evaluate, run: Path) -> None:
    arguments = ("--data", run / "data", "--precision", "float64", "--json")
    alone = json.loads(evaluate(*arguments)[1])
    layout = ("--pipe-parallel-size", 2, "--micro-batch-size", 1)
    ended = run_module("scaling.cli.main", "evaluate", run / "checkpoints", *arguments, *layout)
    assert (ended.returncode, ended.stderr) == (0, "")
    both = json.loads(ended.stdout)
    for name in ("data", "checkpoint"):
        assert both["data"][0].pop(name) == alone["data"][0].pop(name)
    assert both["data"][0] == pytest.approx(alone["data"][0], rel=1e-10)


def test_without_a_tokenizer_bytes_are_not_known_and_said_so(evaluate: Evaluate, run: Path, tmp_path: Path) -> None:
    write_base(tmp_path, vocab_size=300, sequence_length=8)
    status, said, shown = evaluate("--data", run / "data", "--json", checkpoint=tmp_path)
    assert status == 0
    assert (json.loads(said)["data"][0]["bytes"], json.loads(said)["data"][0]["bits_per_byte"]) == (None, None)
    assert shown.startswith("note: there is no vocab.json beside the step folders")
    assert " - " in evaluate("--data", run / "data", checkpoint=tmp_path)[1]


@dataclass(frozen=True)
class Score:
    """As `run_tasks` has them."""

    task: str
    metric: str = "acc"
    value: float = 0.5
    error: float | None = None
    filter: str = "none"
    shots: int | None = 0
    samples: int | None = 4
    higher_is_better: bool | None = True


def test_tasks_are_run_beside_data(evaluate: Evaluate, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def run_tasks(model: TransformerInferenceModule, tasks: list[str], **options: Any) -> list[str]:
        options.pop("progress")
        asked.append((model.tokenizer is not None, options))
        return tasks

    module = SimpleNamespace(run_tasks=run_tasks, scores_of=lambda results: [Score(name) for name in results])
    monkeypatch.setitem(sys.modules, "scaling.transformer.evaluation.tasks", module)
    arguments = ("--tasks", "piqa", "own.yaml", "--include-path", run, "--samples", 4)
    status, said, _ = evaluate(*arguments, "--json")
    assert (status, json.loads(said)) == (0, {"tasks": [asdict(Score("piqa")), asdict(Score("own.yaml"))]})
    assert asked == [(True, {"include_path": run, "limit": 4})]
    _, said, _ = evaluate(*arguments, "--data", run / "data")
    assert all(text in said for text in ("perplexity", str(run / "data"), "documents", "own.yaml", "acc"))


def test_what_cannot_be_evaluated_is_refused_in_one_message(evaluate: Evaluate, run: Path, tmp_path: Path) -> None:
    data, nothing = run / "data", tmp_path / "nothing"
    for name, documents in (("wide", [[1, 2, 300, 0]]), ("short", [[1]])):
        with MemoryMapDatasetBuilder(tmp_path / name, "int32") as builder:
            for document in documents:
                builder.add(document)
    for suffix in (".bin", ".idx", ".meta.json"):
        (tmp_path / f"empty{suffix}").touch()
    digest = hashlib.sha256((run / "other.json").read_bytes()).hexdigest()
    cases: list[tuple[tuple[object, ...], str]] = [
        ((), "there is nothing to evaluate; give --data PREFIX"),
        (("--data", data, "--include-path", run), "is a folder of tasks, and none is to be run"),
        (("--tasks", "piqa", "--data-parallel-size", 2), "makes copies of the model, and tasks are answered by one"),
        (("--data", nothing), f"{nothing}.meta.json does not exist; check the path: a data set is named by its prefix"),
        (("--data", run / "foreign"), f"was made with a tokenizer of SHA-256 {digest[:16]}"),
        (("--data", tmp_path / "wide"), "contains token 300, but the vocabulary is"),
        (("--data", tmp_path / "short"), "1 document makes no sequence of 8 + 1 tokens"),
        (("--data", tmp_path / "empty"), "empty.meta.json is damaged or incomplete: it is empty"),
        (("--data", data, "--device", "cpu:0", "--pipe-parallel-size", 2), "is one device, but there are 2 processes"),
    ]
    for arguments, message in cases:
        status, said, shown = evaluate(*arguments)
        assert (status, said) == (2, ""), (arguments, shown)
        assert message in shown
        assert shown.count("error: ") == 1
