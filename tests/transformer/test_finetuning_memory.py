"""What a fine-tuning keeps for its optimizer: gradients and moments of what is trained, and nothing for its base."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch

from scaling.core import Topology
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.groups import group_patterns
from scaling.transformer.config.model_plan import base_plan_of, plan_of
from scaling.transformer.config.training import TrainingGroupConfig
from scaling.transformer.model import layer_specs
from tests.reference.assembly import module_and_optimizer
from tests.reference.worlds import topology_config

MODEL: dict[str, Any] = {"vocab_size": 128, "hidden_size": 32, "num_layers": 2, "num_attention_heads": 4}
LINEARS = ["query", "key", "value", "dense", "dense_in", "dense_out"]
ALIGNMENT = 64
"""Elements: each tensor begins at a multiple, so that one of an odd size leaves up to 63 elements unused."""


def kept(architecture: TransformerArchitectureConfig) -> dict[str, int]:
    """Return the bytes of each kind of tensor that are not in the model."""
    group = TrainingGroupConfig.from_dict({"group_name": "all", "learning_rate_scheduler": {"learning_rate": 0.01}})
    topology = Topology.single()
    module, optimizer = module_and_optimizer(
        layer_specs(architecture, topology, seed=0),
        topology,
        topology_config(),
        groups=group_patterns([group], architecture),
        allow_missing=True,
    )
    weights = {parameter.untyped_storage().data_ptr() for parameter, _ in module.parameters_with_meta()}
    shards = optimizer._shards
    return {
        "gradients": sum(buffer.gradients.nbytes for buffer in optimizer._buffers),
        "moments": sum(state.nbytes for shard in shards for state in shard.slots.values()),
        "masters": sum(
            shard.master.nbytes for shard in shards if shard.master.untyped_storage().data_ptr() not in weights
        ),
    }


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("rank", [8, 3])
def test_gradients_and_moments_are_those_of_what_is_trained_to_the_byte(precision: str, rank: int) -> None:
    """Four bytes for a gradient and eight for two moments; weights that are float32 are their own masters."""
    architecture = TransformerArchitectureConfig.from_dict(
        {**MODEL, "precision": precision, "lora_config": {"rank": rank, "parallel_modules": LINEARS}}
    )
    base = {parameter.name for parameter in base_plan_of(architecture).parameters()}
    sizes = [prod(p.shape) for p in plan_of(architecture).parameters() if p.name not in base]
    elements = sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)
    assert (elements == sum(sizes)) == (rank == 8), "sizes that are multiples of the alignment waste nothing"
    single = torch.float32.itemsize
    assert kept(architecture) == {"gradients": single * elements, "moments": 2 * single * elements, "masters": 0}
