"""Both commands of the page on fine-tuning, shrunk: a base, an adapter on it, and what is said before and after."""

from __future__ import annotations

import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from examples.finetuning_example import data
from examples.finetuning_example.run import main, next_commands
from scaling.core import CheckpointError, ConfigError
from scaling.core.checkpoint.search import find_newest
from scaling.transformer import TransformerInferenceModule
from scaling.transformer.config.notes import notes
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.hf.exporter import export_model
from scaling.transformer.hf.peft.exporter import export_adapter
from tests.transformer.small import run_module, state

FIRST, CONFIG = Path("examples/transformer_example/config.yml"), Path("examples/finetuning_example/config.yml")
RUN = "examples.finetuning_example.run"
MODULE = '''
def plain(a,
          b):
    """Add two things.

    More.
    """


class Holder:
    def get(self): return self.x

    def put(self, x):
        """Keep x."""
        self.x = x

    def vague(self):
        """No sentence"""
'''


def test_the_configuration_is_valid_and_names_what_the_first_command_makes() -> None:
    given = [
        "data.data_prefixes=[a.jsonl]",
        "data.validation_data_prefixes=[b.jsonl]",
        "transformer_architecture.vocab_size=9",
    ]
    config = TransformerConfig.from_yaml(CONFIG, given)
    assert config.trainer.load_dir == TransformerConfig.from_yaml(FIRST).trainer.save_dir
    assert config.transformer_architecture.has_methods
    assert [note for note in notes(config) if note.path != "trainer.load_dir"] == []  # its base is not made yet


def test_a_record_is_a_signature_and_the_first_sentence_of_its_docstring() -> None:
    assert sorted(data.records(MODULE), key=lambda record: record["prompt"]) == [
        {"prompt": "def plain(a,\n          b):\n", "completion": "Add two things."},
        {"prompt": "def put(self, x):\n", "completion": "Keep x."},
    ]


def test_the_records_are_the_same_each_time_and_no_sentence_is_in_both_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [(f"{n}.py", f'{MODULE}\ndef own_{n}():\n    """Return {n}."""\n') for n in range(40)]
    monkeypatch.setattr(data, "modules", lambda: iter(texts))
    first, second = ([path.read_text() for path in data.write_data(tmp_path / name)] for name in ("a", "b"))
    assert first == second
    training, validation = ({json.loads(line)["completion"] for line in text.splitlines()} for text in first)
    assert len(training) + len(validation) == 42
    assert 1 < len(validation) < 20
    assert not training & validation


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ([], ConfigError, f"name a configuration: python3 -m {RUN} CONFIG"),
        (["--help"], ConfigError, f"name a configuration: python3 -m {RUN} CONFIG"),
        ([CONFIG, "trainer.load_dir=gone"], CheckpointError, f"there is no checkpoint in gone.*{FIRST}"),
        ([CONFIG, "trainer.load_dir=null"], CheckpointError, f"trainer.load_dir names none.*{FIRST}"),
    ],
)
def test_what_is_missing_is_said(
    arguments: list[object], error: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", *map(str, arguments)])
    with pytest.raises(error, match=f"(?s){said}"):
        main()


@pytest.mark.slow
def test_the_two_commands_lower_the_loss_on_completions_and_peft_computes_the_same(tmp_path: Path) -> None:
    base, own = tmp_path / "base", tmp_path / "own"
    made = run_module(
        "examples.transformer_example.run",
        FIRST,
        f"data.corpus_dir={tmp_path / 'corpus'}",
        f"trainer.save_dir={base}",
        f"logger.log_dir={tmp_path / 'log'}",
        "trainer.train_iterations=60",
        "trainer.eval_interval=null",
        "transformer_architecture.vocab_size=512",
        "transformer_architecture.hidden_size=64",
        "transformer_architecture.num_layers=1",
        "transformer_architecture.sequence_length=64",
        timeout=280,
    )
    assert made.returncode == 0, made.stderr
    ended = run_module(
        RUN,
        CONFIG,
        f"trainer.load_dir={base}",
        f"trainer.save_dir={own / 'checkpoints'}",
        f"logger.log_dir={own}",
        f"data.records_dir={tmp_path / 'records'}",
        timeout=280,
    )
    assert ended.returncode == 0, ended.stderr
    assert state(own)["state"] == "finished"
    before, after = map(float, re.findall(r"(\d+\.\d+) (?:before|after)", ended.stdout))
    assert after < 0.9 * before
    assert ended.stdout.index("Before the fine-tuning:") < ended.stdout.index("After the fine-tuning:")
    assert next_commands(base, own / "checkpoints") in ended.stdout

    adapted, exported = own / "checkpoints", (tmp_path / "hf-base", tmp_path / "hf-adapter")
    export_model(find_newest(base).require(), exported[0])
    export_adapter(find_newest(adapted).require(), exported[1])
    ids = torch.arange(1, 41).unsqueeze(0)
    ours = TransformerInferenceModule.from_checkpoint(adapted)
    with torch.no_grad():
        theirs: Any = AutoModelForCausalLM.from_pretrained(exported[0])
        alone = theirs(input_ids=ids).logits
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers in an old way
            warnings.filterwarnings("error", message=".*missing adapter keys")
            with_adapter: Any = PeftModel.from_pretrained(theirs, exported[1])
        both = with_adapter(input_ids=ids).logits
    for expected, found in ((alone, ours.logits(ids, adapter=None)), (both, ours.logits(ids))):
        assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5
    assert float((both - alone).abs().max() / alone.abs().max()) > 1e-2
