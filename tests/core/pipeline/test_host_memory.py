"""Resident memory does not grow while a training goes on, whatever the layout."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch

from scaling.core import Learner, TopologyConfig
from scaling.core.pipeline import host_memory
from scaling.core.pipeline.host_memory import HostMemory, resident_bytes
from scaling.core.topology.topology import Topology
from scaling.transformer import TransformerConfig
from scaling.transformer.recipe import recipe_of
from scaling.transformer.verify.synthetic import synthetic_text
from tests.distributed import run_distributed

LAYOUTS: dict[str, dict[str, Any]] = {
    "1x1x1": {},
    "1x1x2": {"model_parallel_size": 2},
    "1x2x1": {"data_parallel_size": 2},
    "2x1x1": {"pipe_parallel_size": 2, "gradient_accumulation_steps": 2},
    "1x1x2, sequence parallel": {"model_parallel_size": 2, "sequence_parallel": True},
}
"""Pipe x data x model."""

# Blocks from the size at which glibc begins to map them, of many sizes: logits of a large vocabulary, packed documents.
MODEL = {"vocab_size": 4096, "hidden_size": 32, "num_layers": 1, "num_attention_heads": 2, "sequence_length": 64}


def grow(rank: int, world_size: int, layout: dict[str, Any]) -> tuple[int, int]:
    """Return the resident memory after 40 and after 400 steps."""
    sizes = {"model_parallel_size": 1, "pipe_parallel_size": 1, "data_parallel_size": 1, **layout}
    config = TransformerConfig.from_dict(
        {
            "topology": {"gradient_accumulation_steps": 1, "global_batch_size": 4, "device": "cpu", **sizes},
            "transformer_architecture": MODEL,
            "learning_rate_scheduler": {"learning_rate": 0.001},
        },
        quiet=True,
    )
    topology_config: TopologyConfig = config.topology
    with Topology.connect(topology_config) as topology:
        learner = Learner(recipe_of(config, synthetic_text(config, 1000)), topology_config, topology)
        for step in range(1, 401):
            learner.step(step)
            if step == 40:
                first = resident_bytes()
        learner.close()
        return first, resident_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_resident_memory_at_step_400_is_that_at_step_40(layout: str) -> None:
    world_size = 1 if layout == "1x1x1" else 2
    for first, last in run_distributed(grow, world_size, LAYOUTS[layout], timeout=250):
        assert last <= 1.03 * first, f"{first / 2**20:.0f} MiB at step 40, {last / 2**20:.0f} MiB at step 400"


@pytest.mark.parametrize(
    ("resident", "trims"),
    [([100] * 40, 1), ([100, 100, 103, 100, 101, 102], 2)],
    ids=["nothing to give back", "grown by more than 2 %"],
)
def test_memory_is_given_back_where_there_is_some(resident: list[int], trims: int) -> None:
    memory = HostMemory(torch.device("cpu"))
    with mock.patch.object(memory, "_trim") as trim, mock.patch.object(host_memory, "PASSES", 1):
        for size in resident:
            with mock.patch.object(host_memory, "resident_bytes", return_value=size):
                memory.after_pass()
    assert trim.call_count == trims


def test_a_gpus_host_is_left_alone() -> None:
    memory = HostMemory(torch.device("meta"))
    with mock.patch.object(host_memory, "resident_bytes", side_effect=AssertionError):
        for _ in range(100):
            memory.after_pass()


TUNABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


@pytest.mark.parametrize("name", [None, *TUNABLES])
def test_thresholds_are_fixed_where_the_environment_has_none(name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in TUNABLES:
        monkeypatch.delenv(other, raising=False)
    if name is not None:
        monkeypatch.setenv(name, "glibc.malloc.mmap_threshold=1048576")
    with mock.patch("ctypes.CDLL") as libc:
        HostMemory(torch.device("cpu"))
    # As in glibc's malloc.h: -1 is M_TRIM_THRESHOLD, -3 is M_MMAP_THRESHOLD.
    fixed = [] if name else [(-3, host_memory.MMAP_THRESHOLD), (-1, host_memory.TRIM_THRESHOLD)]
    assert [call.args for call in libc.return_value.mallopt.call_args_list] == fixed
