"""Resident memory does not grow while a training goes on, whatever the layout."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch

from scaling.core import ExitStatus, Learner, RunIdentity, StepReport, TrainerHook, TrainerView, run_training
from scaling.core.pipeline import host_memory
from scaling.core.pipeline.host_memory import HostMemory, resident_bytes
from scaling.core.topology.topology import Topology
from scaling.transformer import TransformerConfig
from scaling.transformer.recipe import recipe_of
from scaling.transformer.verify.synthetic import synthetic_text
from tests.distributed import run_distributed
from tests.transformer.small import nested

CASES: dict[str, dict[str, Any]] = {
    "1x1x1": {},
    "1x1x2": {"topology.model_parallel_size": 2},
    "1x2x1": {"topology.data_parallel_size": 2},
    "2x1x1": {"topology.pipe_parallel_size": 2, "topology.gradient_accumulation_steps": 2},
    "1x1x2, sequence parallel": {"topology.model_parallel_size": 2, "topology.sequence_parallel": True},
    "1x1x2, recomputed": {"topology.model_parallel_size": 2, "topology.activation_checkpointing_type": "every_layer"},
    "1x1x2, validated": {"topology.model_parallel_size": 2, "trainer.eval_interval": 50},
}
"""Pipe x data x model."""

# Blocks from the size at which glibc begins to map them, of many sizes: logits of a large vocabulary, packed documents.
SETTINGS: dict[str, Any] = {
    "topology.device": "cpu",
    "topology.global_batch_size": 4,
    "topology.gradient_accumulation_steps": 1,
    **{f"topology.{axis}_parallel_size": 1 for axis in ("model", "pipe", "data")},
    "transformer_architecture.vocab_size": 4096,
    "transformer_architecture.hidden_size": 32,
    "transformer_architecture.num_layers": 1,
    "transformer_architecture.num_attention_heads": 2,
    "transformer_architecture.sequence_length": 64,
    "trainer.train_iterations": 400,
    "trainer.save_interval": None,
    "trainer.eval_iterations": 4,
    "trainer.log_interval": 10,
}


class Watch(TrainerHook):
    """Keeps how much memory is resident after each step."""

    def __init__(self) -> None:
        self.resident: list[int] = []

    def after_step(self, trainer: TrainerView, report: StepReport) -> None:
        self.resident.append(resident_bytes())


def resident_after_steps(rank: int, world_size: int, case: dict[str, Any]) -> tuple[int, int]:
    """Train with the trainer, and return the resident memory after 40 and after 400 steps."""
    config = TransformerConfig.from_dict(nested({**SETTINGS, **case}), quiet=True)
    watch = Watch()
    with Topology.connect(config.topology) as topology:
        recipe = recipe_of(config, synthetic_text(config, 1000), synthetic_text(config, 100))
        learner = Learner(recipe, config.topology, topology)
        status = run_training(config, learner, RunIdentity(config), hooks=[watch])
    assert status == ExitStatus.DONE
    return watch.resident[39], watch.resident[399]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_resident_memory_at_step_400_is_that_at_step_40(case: str) -> None:
    world_size = 1 if case == "1x1x1" else 2
    for first, last in run_distributed(resident_after_steps, world_size, CASES[case], timeout=250):
        assert last <= 1.03 * first, f"{first / 2**20:.0f} MiB at step 40, {last / 2**20:.0f} MiB at step 400"


@pytest.mark.parametrize(
    ("resident", "trims"),
    [
        ([100] * 40, []),
        ([100, 103, 103, 100, 101, 102], []),
        ([100, 101, 102, 103, 104, 105, 100, 101], [5]),
        ([100, 101, 102, 102, 102, 102, 103, 100, 150, 150, 150, 150, 150], [7, 12]),
    ],
    ids=["nothing to give back", "too early", "grown by more than 2 %", "grown later, and again"],
)
def test_memory_is_given_back_where_passes_hold_ever_more(resident: list[int], trims: list[int]) -> None:
    memory, found = HostMemory(torch.device("cpu")), []
    with mock.patch.object(memory, "_trim") as trim:
        for number, size in enumerate(resident, start=1):
            with mock.patch.object(host_memory, "resident_bytes", return_value=size):
                memory.after_pass()
            found += [number] * trim.call_count
            trim.reset_mock()
    assert found == trims


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
