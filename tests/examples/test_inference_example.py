"""The example of inference, on a model that has learnt next to nothing: all it shows, and what it says is missing."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from examples.inference_example.run import CHECKPOINT, DRAWN, NEW, PROMPTS, TEXTS, main, next_commands
from scaling.core import CheckpointError, ConfigError
from scaling.transformer import TransformerInferenceModule
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.data.tokenizer import train_tokenizer
from tests.transformer.small import build_corpus, train_small

RUN = "examples.inference_example.run"
FIRST = Path("examples/transformer_example/config.yml")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train one step, with a tokenizer that has read the prompts."""
    folder = tmp_path_factory.mktemp("run")
    train_tokenizer([*PROMPTS, *TEXTS], 280).save(folder / "tokenizer.json")
    settings = {
        "transformer_architecture.vocab_size": None,
        "transformer_architecture.vocab_file": str(folder / "tokenizer.json"),
        "transformer_architecture.sequence_length": 32,
        "trainer.save_dir": str(folder / "checkpoints"),
        "trainer.train_iterations": 1,
    }
    train_small(build_corpus(folder / "data"), folder, settings)
    return folder / "checkpoints"


def start(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["run.py", *map(str, arguments)])
    return main()


def test_everything_is_shown(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(monkeypatch, checkpoint) == 0
    said = capsys.readouterr().out
    model = TransformerInferenceModule.from_checkpoint(checkpoint)
    (planned,) = re.findall(r"take ([\d,]+) bytes", said)
    rows = [(int(rows), int(positions)) for rows, positions in re.findall(r"pool of (\d+) rows of (\d+)", said)]
    of_a_position = 2 * 3 * 2 * 8 * 4  # keys and values, layers, their heads, features, bytes
    assert int(planned.replace(",", "")) == sum(count * positions for count, positions in rows) * of_a_position
    greedy = [completion.completion_text for completion in model.generate(PROMPTS, max_tokens=NEW)]
    drawn = model.generate(PROMPTS[0], max_tokens=NEW, sampling=DRAWN, seed=1, samples=3)
    for text in (*greedy, *(completion.completion_text for completion in drawn)):
        assert repr(text) in said
    assert "with seed 12, in a batch and alone: the same text." in said
    assert len(re.findall(r"^ +-\d+\.\d\d  '", said, re.MULTILINE)) == len(TEXTS)
    assert said.endswith(f"Next:\n{next_commands(checkpoint)}\n")


def test_it_begins_with_what_the_first_command_makes() -> None:
    assert Path(CHECKPOINT) == TransformerConfig.from_yaml(FIRST).trainer.save_dir


def test_what_is_missing_is_said(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mute = shutil.copytree(checkpoint, tmp_path / "mute")
    (mute / "vocab.json").unlink()
    cases: list[tuple[list[object], type[Exception], str]] = [
        (["a", "b"], ConfigError, rf"name one checkpoint, or none for {CHECKPOINT}: python3 -m {RUN} \[CHECKPOINT\]"),
        (["--help"], ConfigError, "name one checkpoint"),
        ([tmp_path / "gone"], CheckpointError, rf"(?s)there is no checkpoint in .*gone.*{FIRST}"),
        ([mute], CheckpointError, r"mute has no tokenizer \(vocab\.json\)"),
    ]
    for arguments, error, said in cases:
        with pytest.raises(error, match=said):
            start(monkeypatch, *arguments)
