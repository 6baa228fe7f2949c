"""Adapters trained where two ranks cut each axis: exported, they compute in peft what they compute here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import yaml

from scaling.core import ExitStatus, MemoryMapDatasetBuilder
from scaling.core.checkpoint.search import find_newest
from scaling.transformer.hf.importer import import_model
from scaling.transformer.hf.peft.exporter import export_adapter
from scaling.transformer.inference.module import TransformerInferenceModule
from tests.distributed import run_distributed
from tests.transformer.hf.peft.adapters import LENGTH, loaded, their_logits
from tests.transformer.hf.test_logits import distance
from tests.transformer.hf.tiny_models import tiny_model, tokens
from tests.transformer.small import train_as_rank

ALL: Final = ["query", "key", "value", "dense", "dense_in", "dense_out"]
LORA: Final = {"rank": 4, "alpha": 8.0, "parallel_modules": ALL}
METHODS: Final[dict[str, dict[str, Any]]] = {
    "lora": {"lora_config": {**LORA, "dropout": 0.1, "use_rslora": True, "rank_pattern": {"dense_in": 2}}},
    "dora": {"lora_config": {**LORA, "use_dora": True}},
    "bias": {"lora_config": {**LORA, "bias": True}},
    "ends": {"lora_config": {**LORA, "parallel_modules": ["query", "embedding", "head"]}},
    "rows": {"lora_config": LORA, "finetunable_token_ids": [5, 90, 3]},
    "rows_alone": {"finetunable_token_ids": [5, 90, 3]},
    "ia3": {"ia3_config": {}},
    "prompt": {"softprompt_config": {"name": "prompt", "n_tokens": 4}},
    "saved": {"lora_config": LORA},
}
TRAINED: Final = {"saved": ["lora_", "norm"]}
"""Patterns of what is trained, where that is more than the method's own."""


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt_neox", "gemma2"])
def test_an_adapter_trained_in_eight_processes_computes_the_same_in_peft(
    name: str, method: str, tmp_path: Path
) -> None:
    tiny_model(name).save_pretrained(tmp_path / "theirs")
    import_model(tmp_path / "theirs", tmp_path / "base")
    with MemoryMapDatasetBuilder(tmp_path / "records", np.int32, made_by={"format": "tokens"}) as builder:
        for number in range(32):
            ids = [(7 * number + 3 * place) % 128 + 3 for place in range(20)]
            builder.add(ids, [0.0] * 8 + [1.0] * 12)
    sections = yaml.safe_load((tmp_path / "base" / "config.yml").read_text())
    sections["trainer"] |= {"save_dir": str(tmp_path / "ours"), "train_iterations": 3, "save_interval": None}
    sections["logger"]["log_dir"] = str(tmp_path / "run")
    sections["data"] = {"record_format": "auto", "data_prefixes": [str(tmp_path / "records")]}
    del sections["learning_rate_scheduler"]
    included = TRAINED.get(method)
    group = {"group_name": "all", "parameters_include": included, "learning_rate_scheduler": {"learning_rate": 0.05}}
    sections["training_groups"] = [group]
    sections["transformer_architecture"] |= {"sequence_length": 32, **METHODS[method]}
    sizes = {f"{axis}_parallel_size": 2 for axis in ("pipe", "data", "model")}
    sections["topology"] |= {**sizes, "sequence_parallel": True, "device": "cpu", "gradient_accumulation_steps": 2}
    assert set(run_distributed(train_as_rank, 8, sections, timeout=120)) == {ExitStatus.DONE}

    export_adapter(find_newest(tmp_path / "ours").require(), tmp_path / "adapter")
    ours = TransformerInferenceModule.from_checkpoint(tmp_path / "ours").logits(tokens(LENGTH))
    assert distance(their_logits(loaded(name, tmp_path / "adapter")), ours) < 1e-5
