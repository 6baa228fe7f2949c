"""What a step of fine-tuning sends, and what it keeps, next to a step of training."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest

from scaling.core import Topology
from scaling.transformer.config.architecture import TransformerArchitectureConfig
from scaling.transformer.config.groups import group_patterns
from scaling.transformer.config.training import TrainingGroupConfig
from scaling.transformer.losses import CrossEntropyLoss
from scaling.transformer.model import layer_specs
from tests.distributed import run_distributed
from tests.reference.assembly import module_and_optimizer
from tests.reference.sharding import GATHER, SCATTER, SUM, Messages
from tests.reference.worlds import connected, topology_config
from tests.transformer.hf.training import micro_batch, rows_of_tokens

ROWS = ((9, 7), (16,))
MODEL: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 32,
    "num_layers": 2,
    "num_attention_heads": 4,
    "sequence_length": 16,
}
LINEARS = ["query", "key", "value", "dense", "dense_in", "dense_out"]
LORA = {"rank": 2, "dropout": 0.1, "parallel_modules": [*LINEARS, "embedding", "head"]}
DORA = {"rank": 2, "use_dora": True, "parallel_modules": [*LINEARS, "head"]}
ROW_PARALLEL_LAYERS = 4


@dataclass
class Sent:
    """The messages of a step."""

    passes: list[str]
    """Forward and backward."""
    afterwards: list[str]


def sent(topology: Topology, **methods: Any) -> Sent:
    architecture = TransformerArchitectureConfig.from_dict({**MODEL, **methods})
    group = TrainingGroupConfig.from_dict({"group_name": "all", "learning_rate_scheduler": {"learning_rate": 0.01}})
    batch = micro_batch(rows_of_tokens(ROWS), ROWS)
    module, optimizer = module_and_optimizer(
        layer_specs(architecture, topology, seed=0),
        topology,
        topology_config(model=2, sequence_parallel=topology.sequence_parallel),
        groups=group_patterns([group], architecture),
        allow_missing=architecture.has_methods,
    )
    with Messages() as passes:
        loss = module.train_step(iter([batch]), CrossEntropyLoss(), gradient_scale=optimizer.gradient_scale)
    with Messages() as afterwards:
        optimizer.step(1, weight=loss.weight)
    return Sent(passes.names, afterwards.names)


def count(rank: int, world_size: int, cut: bool) -> None:
    with connected(model=2, sequence_parallel=cut) as topology:
        base, lora, dora = (sent(topology, **methods) for methods in ({}, {"lora_config": LORA}, {"lora_config": DORA}))
    assert Counter(base.passes).keys() >= ({GATHER, SCATTER} if cut else {SUM})
    assert not Counter(lora.passes) - Counter(base.passes)
    assert Counter(dora.passes) - Counter(base.passes) <= Counter({SUM: ROW_PARALLEL_LAYERS})
    for each in (lora, dora):  # what ranks hold alike and know in parts lies in one buffer; then the norm
        assert each.afterwards == [SUM, SUM]


@pytest.mark.parametrize("cut", [False, True])
def test_low_rank_updates_send_nothing_in_the_passes_and_one_sum_for_each_kind_of_buffer_behind_them(cut: bool) -> None:
    run_distributed(count, 2, cut)
