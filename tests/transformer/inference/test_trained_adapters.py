"""What a fine-tuning in any layout has saved scores text as it did in that training, beside its base and merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from scaling.core import Checkpointer
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.data.load import load_datasets
from scaling.transformer.data.prepare import prepare_data
from scaling.transformer.finetuning.merge_checkpoint import merge_checkpoint
from scaling.transformer.inference.module import TransformerInferenceModule
from tests.transformer.small import build_corpus, layout, metrics, nested, settings_of, train_small, values

WHOLE_ROWS = {
    "transformer_architecture.reset_attention_mask": False,
    "transformer_architecture.reset_position_ids": False,
}
TUNED = {
    **layout(1, 1, 2),
    "topology.sequence_parallel": True,
    "transformer_architecture.lora_config": {
        "rank": 4,
        "alpha": 8.0,
        "parallel_modules": ["query", "dense", "dense_out", "embedding", "head"],
        "dropout": 0.1,
    },
    "transformer_architecture.finetunable_token_ids": [0, 7],
    "transformer_architecture.bitfit_bias_config": {"name": "biases"},
    "transformer_architecture.weight_tying": True,
}


def test_the_log_likelihood_is_the_loss_of_the_fine_tuning(tmp_path: Path) -> None:
    corpora = [build_corpus(tmp_path / name, documents=n, seed=s) for name, n, s in (("a", 60, 0), ("b", 9, 1))]
    short = {**WHOLE_ROWS, "trainer.train_iterations": 3}
    validation = {"data.validation_data_prefixes": [str(corpora[1])], "trainer.eval_interval": 3}
    train_small(corpora[0], tmp_path / "base", short, {"trainer.save_dir": str(tmp_path / "base" / "checkpoints")})
    tuning = {
        "trainer.load_dir": str(tmp_path / "base" / "checkpoints"),
        "trainer.save_dir": str(tmp_path / "tuned" / "checkpoints"),
    }
    train_small(corpora[0], tmp_path / "tuned", short, validation, TUNED, tuning)
    plain = {name: value for name, value in TUNED.items() if not name.startswith("topology")}
    settings = settings_of(corpora[0], tmp_path, short, validation, plain)
    _, held_out = load_datasets(prepare_data(TransformerConfig.from_dict(nested(settings))))
    assert held_out is not None
    samples = [held_out[index] for index in range(len(held_out))]
    batch: Any = held_out.collate(samples, range(len(samples)), [True] * len(samples))
    rows = torch.cat([batch.inputs.token_ids, batch.targets.token_ids[:, -1:]], dim=1)
    weights = batch.targets.loss_weights
    wanted = values(metrics(tmp_path / "tuned"), "evaluation/loss")[-1]

    opened = TransformerInferenceModule.from_checkpoint(tmp_path / "tuned")
    beside = TransformerInferenceModule.from_checkpoint(tmp_path / "base")
    assert beside.load_adapter(tmp_path / "tuned") == "lora"
    stored = [Checkpointer(None).find(tmp_path / name / "checkpoints").require() for name in ("base", "tuned")]
    merged = TransformerInferenceModule.from_checkpoint(merge_checkpoint(stored[0], stored[1:], tmp_path / "merged"))
    losses = [
        -(likelihood * weights).sum().item() / weights.sum().item()
        for likelihood in (
            opened.log_likelihood(rows),
            beside.log_likelihood(rows, adapter="lora"),
            merged.log_likelihood(rows),
            opened.log_likelihood(rows, adapter=None),
        )
    ]
    assert losses[:3] == pytest.approx([wanted] * 3, rel=1e-5)
    assert losses[3] != pytest.approx(wanted, rel=1e-3)
