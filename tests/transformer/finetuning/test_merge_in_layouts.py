"""Merging on each rank its own parts computes what the edits compute, and what one process merges."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from scaling.core import MicroBatch, ParallelModule, Topology, TopologyConfig, merge_edits
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.io import TextInputs
from scaling.transformer.layers.head import LogitBias
from scaling.transformer.model import layer_specs
from tests.distributed import run_distributed
from tests.reference.worlds import connected
from tests.transformer.finetuned import VOCABULARY, section

EVERYTHING = ["query", "key", "value", "dense", "dense_in", "siglu_weight", "dense_out", "embedding", "head"]
CASES: tuple[dict[str, Any], ...] = (
    {
        "lora_config": {"rank": 2, "alpha": 2.0, "parallel_modules": EVERYTHING, "bias": True},
        "ia3_config": {},
        "finetunable_token_ids": [28, 3, 14],
        "lm_head_bias": True,
    },
    {
        "lora_config": {
            "rank": 2,
            "alpha": 2.0,
            "parallel_modules": [m for m in EVERYTHING if m != "embedding"],
            "use_dora": True,
        },
        "ia3_config": {"parallel_modules": ["query", "dense", "dense_in"], "input_modules": ["dense_in"]},
        "attention_qkv_in_one": False,
    },
    {
        "attention_bias": False,
        "weight_tying": True,
        "finetunable_token_ids": [1, 20],
        "ia3_config": {"parallel_modules": ["dense_out"]},
    },
)


@torch.no_grad()
def logits(module: ParallelModule) -> Tensor:
    ids = torch.arange(24).reshape(2, 12) % VOCABULARY
    inputs = TextInputs(ids, torch.arange(12).expand(2, 12), None, torch.zeros(2, dtype=torch.int64))
    (output,) = module.forward_step(iter([MicroBatch(inputs, None)]))
    found: Tensor = output.logits()
    return found


def merged(config: TransformerArchitectureConfig, topology: Topology) -> Tensor:
    """Give all weights values by name, compare before and after a merge, and return this rank's logits."""
    module = ParallelModule(layer_specs(config, topology, seed=0), topology, TopologyConfig(), seed=0)
    with torch.no_grad():
        for number, tensor in enumerate(module.global_tensors()):
            generator = torch.Generator().manual_seed(number)
            whole = 0.3 * torch.randn(tensor.shape, generator=generator)
            around = 1.0 if tensor.key.endswith((".scale", ".magnitude", "norm.weight")) else 0.0
            for box, view in tensor.parts:
                view.copy_(around + whole[tuple(slice(a, b) for a, b in zip(box.offset, box.stop, strict=True))])
    beside = logits(module)
    bias = next((part.weight for part in module.modules() if isinstance(part, LogitBias)), None)
    merge_edits(module, logit_bias=bias)
    after = logits(module)
    assert (after - beside).abs().max() <= 1e-5 * beside.abs().max()
    return after


def merge_on_rank(rank: int, world_size: int) -> list[Tensor]:
    with connected(model=world_size) as topology:
        return [merged(section(**case), topology) for case in CASES]


def test_merged_equals_unmerged_over_two_model_ranks() -> None:
    parts = run_distributed(merge_on_rank, 2)
    for number, case in enumerate(CASES):
        alone = merged(section(**case), Topology.single())
        cut = torch.cat([part[number] for part in parts], dim=-1)
        torch.testing.assert_close(cut, alone, rtol=0, atol=1e-5 * float(alone.abs().max()))


@pytest.mark.parametrize("case", range(2))
def test_what_was_merged_acts_no_more(case: int) -> None:
    """Merged once more there is nothing left that could be."""
    topology = Topology.single()
    module = ParallelModule(layer_specs(section(**CASES[case]), topology, seed=0), topology, TopologyConfig(), seed=0)
    bias = next((part.weight for part in module.modules() if isinstance(part, LogitBias)), None)
    merge_edits(module, logit_bias=bias)
    before = [parameter.clone() for parameter in module.parameters()]
    merge_edits(module)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
