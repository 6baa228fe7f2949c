"""The samples that a step is said to consume are those that the loader delivers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scaling.core.data.loader import DataLoader
from scaling.core.data.memory_map_builder import MemoryMapDatasetBuilder
from scaling.core.errors import ConfigError
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.data.load import load_datasets
from scaling.transformer.data.prepare import prepare_data
from scaling.transformer.data.trace import samples_of_step


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TransformerConfig:
    """Two small data sets, so that a few steps go through several epochs of them."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name, count in (("a", 9), ("b", 5)):
        with MemoryMapDatasetBuilder(folder / name, np.uint16) as builder:
            for _ in range(count):
                builder.add(np.append(random.integers(1, 100, size=20), 0))
    return prepare_data(
        TransformerConfig.from_dict(
            {
                "topology": {"data_parallel_size": 2, "micro_batch_size": 3, "gradient_accumulation_steps": 2},
                "transformer_architecture": {"sequence_length": 8, "vocab_size": 100},
                "trainer": {"seed": 7},
                "data": {"data_prefixes": [str(folder / "a"), str(folder / "b")]},
            },
            ["topology.model_parallel_size=1", "topology.pipe_parallel_size=1"],
        )
    )


def test_they_are_the_samples_the_loader_delivers(config: TransformerConfig) -> None:
    train, _ = load_datasets(config)
    topology = config.topology
    loaders = [
        DataLoader(
            train,
            seed=config.trainer.seed,
            data_parallel_size=2,
            data_parallel_rank=rank,
            micro_batch_size=topology.micro_batch_size,
            gradient_accumulation_steps=topology.gradient_accumulation_steps,
        )
        for rank in range(2)
    ]
    for step in range(1, 8):
        told = list(samples_of_step(config, train, step))
        assert [consumed.position for consumed in told] == list(range((step - 1) * 12, step * 12))
        for micro_batch in range(2):
            for rank, loader in enumerate(loaders):
                batch = next(loader)
                here = [
                    consumed
                    for consumed in told
                    if (consumed.micro_batch, consumed.data_parallel_rank) == (micro_batch, rank)
                ]
                tokens = torch.from_numpy(np.stack([consumed.sample.tokens for consumed in here]))
                assert torch.equal(batch.inputs.token_ids, tokens[:, :-1])
                assert batch.inputs.sample_positions.tolist() == [consumed.position for consumed in here]


def test_after_a_change_of_the_batch_size_the_step_begins_where_it_is_told_to(config: TransformerConfig) -> None:
    train, _ = load_datasets(config)
    told = [consumed.position for consumed in samples_of_step(config, train, 99, consumed_samples=30)]
    assert told == list(range(30, 42))


def test_there_is_no_step_before_the_first(config: TransformerConfig) -> None:
    with pytest.raises(ConfigError, match="no step 0"):
        list(samples_of_step(config, load_datasets(config)[0], 0))
