"""A checkpoint and its adapters are opened over ranks, each of which reads its own part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from scaling.core import Topology
from scaling.transformer.inference.module import TransformerInferenceModule
from tests.distributed import run_distributed
from tests.reference.worlds import connected
from tests.transformer.finetuned import write_adapter, write_base

METHODS: dict[str, Any] = {
    "lora_config": {"rank": 2, "alpha": 2.0, "parallel_modules": ["query", "dense", "dense_in", "dense_out"]},
    "bitfit_bias_config": {"name": "bias"},
}
BIASES = ("layers.1.self_attention.query.bias", "layers.1.mlp.dense_out.bias", "layers.2.input_layernorm.bias")


def totals(folder: Path, topology: Topology | None) -> list[float]:
    """Return what a text's likelihood is by base, adapter, both merged, and the base again."""
    model = TransformerInferenceModule.from_checkpoint(folder / "base", topology=topology)
    name = model.load_adapter(folder / "adapter")
    found = [model.log_likelihood([[1, 2, 3]], [[4, 5]], adapter=adapter)[0].total for adapter in (None, name)]
    model.merge_adapter(name)
    found.append(model.log_likelihood([[1, 2, 3]], [[4, 5]])[0].total)
    model.unmerge_adapter()
    return [*found, model.log_likelihood([[1, 2, 3]], [[4, 5]])[0].total]


def totals_on_rank(rank: int, world_size: int, pipe: int, folder: Path) -> list[float]:
    with connected(pipe=pipe, model=world_size // pipe) as topology:
        return totals(folder, topology)


def test_every_layout_opens_the_same_model_and_adapter(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", precision="float64", attention_qkv_in_one=False)
    write_adapter(tmp_path / "adapter", base, METHODS, also=BIASES)
    base_alone, adapter_alone, merged, again = expected = totals(tmp_path, None)
    assert merged == pytest.approx(adapter_alone)
    assert again == base_alone
    assert abs(base_alone - adapter_alone) > 1e-3
    for ranks, pipe in ((2, 2), (4, 2)):
        for found in run_distributed(totals_on_rank, ranks, pipe, tmp_path):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
