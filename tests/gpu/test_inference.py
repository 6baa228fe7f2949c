"""Generation on a GPU: the texts of the CPU, also in half precision, with windows, adapters and little memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from scaling.transformer.inference.generation.free_memory import free_bytes
from scaling.transformer.inference.generation.sampling import Sampling
from scaling.transformer.inference.module import TransformerInferenceModule
from tests.transformer.finetuned import write_adapter, write_base

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [8], [2, 7, 1, 8, 2, 8]]
LORA: dict[str, Any] = {"lora_config": {"rank": 2, "alpha": 4.0, "parallel_modules": ["query", "dense"]}}
WINDOWS: dict[str, Any] = {
    "attention_kinds": {"near": {"window": 4}, "all": {}},
    "attention_pattern": ["near", "all"],
}


def texts(folder: Path, device: str, **asked: Any) -> list[list[int]]:
    model = TransformerInferenceModule.from_checkpoint(folder, device=device, precision=asked.pop("precision", None))
    return [one.completion_tokens for one in model.generate(PROMPTS, max_tokens=12, **asked)]


@pytest.mark.parametrize("changes", [{}, WINDOWS, {"attention_score_cap": 5.0}], ids=["usual", "windows", "capped"])
def test_texts_are_those_of_the_cpu(changes: dict[str, Any], tmp_path: Path) -> None:
    write_base(tmp_path, **changes)
    drawn = {"sampling": Sampling(temperature=0.9, top_k=9, top_p=0.9), "seed": 3}
    for asked in ({}, {"chunk_size": 5}, drawn):
        assert texts(tmp_path, DEVICE, **asked) == texts(tmp_path, "cpu", **asked)


def test_half_precision_runs(tmp_path: Path) -> None:
    write_base(tmp_path, **WINDOWS)
    found = texts(tmp_path, DEVICE, precision="bfloat16")
    assert [len(text) for text in found] == [12, 12, 12]


def test_adapters_stand_side_by_side(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    for seed in (4, 5):
        write_adapter(tmp_path / str(seed), base, LORA, seed=seed)
    by_device = []
    for device in (DEVICE, "cpu"):
        model = TransformerInferenceModule.from_checkpoint(tmp_path / "base", device=device)
        names = [None, *(model.load_adapter(tmp_path / str(seed), name=f"a{seed}") for seed in (4, 5))]
        found = [[one.completion_tokens for one in model.generate(PROMPTS, max_tokens=9, adapter=n)] for n in names]
        by_device.append(found)
    assert by_device[0] == by_device[1]
    assert len({str(found) for found in by_device[0]}) == 3


def test_the_memory_that_is_free_is_that_of_the_gpu() -> None:
    free = free_bytes(torch.device(DEVICE))
    assert free is not None
    assert 0 < free <= torch.cuda.get_device_properties(0).total_memory
