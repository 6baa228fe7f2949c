"""A model that people use: it says the same as in `transformers`, trains on from its own loss, and goes back."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from scaling.core import ExitStatus, MemoryMapDatasetBuilder
from scaling.core.checkpoint.search import find_newest
from scaling.transformer import Sampling, TransformerInferenceModule
from scaling.transformer.hf.exporter import export_model
from scaling.transformer.hf.importer import import_model
from tests.distributed import run_distributed
from tests.transformer.hf.by_hand import read_weights, same_bits
from tests.transformer.hf.smollm2 import smollm2
from tests.transformer.small import metrics, train_as_rank, values

PROMPTS = (
    "The capital of France is",
    "Once upon a time there was",
    "def fibonacci(n):",
    "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
    "Water boils at",
)
NEW_TOKENS = 64
ROWS, LENGTH = 4, 512
STEPS, EPOCH = 20, 5


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The model as it came, and its checkpoint."""
    target = tmp_path_factory.mktemp("smollm2") / "c"
    import_model(smollm2(), target)
    return smollm2(), target


def tokens_of_the_library(tokenizer: Any, count: int) -> list[int]:
    text = Path(os.__file__).read_text()
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(found) >= count
    return found[:count]


def said_by(folder: Path, prompts: Sequence[str]) -> list[list[int]]:
    """Return the tokens with which `transformers` goes on, greedily."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    found = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
        out = model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False, attention_mask=torch.ones_like(ids))
        found.append(out[0, ids.shape[1] :].tolist())
    return found


@pytest.mark.slow
def test_it_says_what_transformers_says_and_its_loss_is_the_same(folders: tuple[Path, Path]) -> None:
    source, checkpoint = folders
    model = TransformerInferenceModule.from_checkpoint(checkpoint)
    ours = [
        model.generate(NEW_TOKENS, input_text=prompt, sampling=Sampling(temperature=0)).completion_tokens
        for prompt in PROMPTS
    ]
    assert ours == said_by(source, PROMPTS)
    together = model.generate(PROMPTS, max_tokens=NEW_TOKENS, sampling=Sampling(temperature=0))
    assert [one.completion_tokens for one in together] == ours
    assert together[0].completion_text.startswith(" Paris")
    rows = torch.tensor(tokens_of_the_library(AutoTokenizer.from_pretrained(source), ROWS * LENGTH)).view(ROWS, LENGTH)
    theirs: Any = AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager")
    for row in rows.split(1):
        with torch.no_grad():
            expected = float(theirs(input_ids=row, labels=row).loss)
        assert abs(float(-model.log_likelihood(row).mean()) - expected) < 1e-4
    assert expected < 4


@pytest.mark.slow
def test_it_trains_on_from_its_loss_and_goes_back(folders: tuple[Path, Path], tmp_path: Path) -> None:
    source, checkpoint = folders
    stored = find_newest(checkpoint).require()
    back = export_model(stored, tmp_path / "e")
    assert same_bits(read_weights(back.path), read_weights(source))
    assert json.loads((source / "config.json").read_text())["vocab_size"] == 49152
    assert said_by(back.path, PROMPTS[:2]) == said_by(source, PROMPTS[:2])

    tokens = tokens_of_the_library(AutoTokenizer.from_pretrained(source), 6000)
    with MemoryMapDatasetBuilder(tmp_path / "data", np.int32) as builder:
        builder.add([*tokens, 2])
    sections = yaml.safe_load((checkpoint / "config.yml").read_text())
    sections["data"]["data_prefixes"] = [str(tmp_path / "data")]
    sections["trainer"] |= {"save_dir": None, "train_iterations": STEPS, "save_interval": None}
    sections["logger"]["log_dir"] = str(tmp_path / "run")
    sections["topology"] = {"micro_batch_size": 2, "gradient_accumulation_steps": 1, "device": "cpu"}
    sections["learning_rate_scheduler"] = {"learning_rate": 3e-5}
    sections["transformer_architecture"]["sequence_length"] = 128
    assert set(run_distributed(train_as_rank, 1, sections, timeout=600)) == {ExitStatus.DONE}
    losses = values(metrics(tmp_path / "run"))
    assert len(losses) == STEPS
    assert 1.5 < losses[0] < 4.5
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_lora_lowers_its_loss_whatever_the_type_of_the_base(
    folders: tuple[Path, Path], precision: str, tmp_path: Path
) -> None:
    text = Path(os.__file__).read_text()
    parts = [{"text": text[start : start + 256]} for start in range(0, EPOCH * 256, 256)]
    (tmp_path / "parts.jsonl").write_text("".join(json.dumps(part) + "\n" for part in parts))
    sections = yaml.safe_load((folders[1] / "config.yml").read_text())
    sections["data"] |= {"data_prefixes": [str(tmp_path / "parts.jsonl")], "records_dir": str(tmp_path)}
    sections["data"] |= {"record_format": "text", "packing": False, "too_long": "cut_right"}
    sections["transformer_architecture"] |= {
        "precision": precision,
        "sequence_length": 64,
        "lora_config": {"rank": 8, "alpha": 16, "parallel_modules": ["attention", "mlp"]},
    }
    sections["trainer"] |= {"save_dir": None, "train_iterations": STEPS, "save_interval": None}
    sections["logger"]["log_dir"] = str(tmp_path / "run")
    sections["topology"] = {"micro_batch_size": 1, "gradient_accumulation_steps": 1, "device": "cpu"}
    sections["learning_rate_scheduler"] = {"learning_rate": 5e-4}
    assert set(run_distributed(train_as_rank, 1, sections, timeout=600)) == {ExitStatus.DONE}
    losses = values(metrics(tmp_path / "run"))
    assert len(losses) == STEPS
    assert np.mean(losses[-EPOCH:]) < np.mean(losses[:EPOCH]) - 0.5
