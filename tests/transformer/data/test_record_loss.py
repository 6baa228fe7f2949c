"""What records do to a model: beside others the same as alone, and nothing by what does not count."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from scaling.core import MicroBatch, ParallelModule, Topology
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.data.record_dataset import RecordDataset
from scaling.transformer.recipe import recipe_of
from tests.transformer.data.record_data import dataset, random_records, record

SEQUENCE, ROWS = 16, 12
RECORDS = [
    *random_records(ROWS - 2, longest=9, seed=3),
    record([5, 0, 7, 0, 8, 9, 0], [0, 0, 1, 1, 0, 0.25, 1]),  # turns that end with the token that ends texts
    record([1, 2, 3], [1, 1, 0]),
]


@cache
def module() -> ParallelModule:
    config = TransformerConfig.from_dict(
        {
            "topology": {"device": "cpu", "global_batch_size": ROWS, "micro_batch_size": ROWS},
            "transformer_architecture": {
                "vocab_size": 50,
                "hidden_size": 16,
                "num_layers": 2,
                "num_attention_heads": 2,
                "sequence_length": SEQUENCE,
                "precision": "float64",
            },
        },
        quiet=True,
    )
    topology = Topology.single()
    recipe = recipe_of(config, dataset(RECORDS, SEQUENCE))
    made = ParallelModule(recipe.layers(topology), topology, config.topology, seed=1)
    for parameter in made.parameters():  # larger than at the start, so that every token counts
        parameter.data.mul_(3)
    return made


def batch_of(data: RecordDataset) -> MicroBatch:
    """Return all rows of a data set, filled up to the same number with rows that do not count."""
    rows = [data[min(index, len(data) - 1)] for index in range(ROWS)]
    return data.collate(rows, range(ROWS), [index < len(data) for index in range(ROWS)])


def train(batch: MicroBatch) -> tuple[float, float, list[Tensor]]:
    """Return loss, weight and gradients of a step."""
    recipe = recipe_of(TransformerConfig(), dataset(RECORDS, SEQUENCE))
    built = module()
    for parameter in built.parameters():
        parameter.grad = None
    step = built.train_step(iter([batch]), recipe.loss(Topology.single()))
    gradients = [parameter.grad.clone() for parameter in built.parameters() if parameter.grad is not None]
    return float(step.loss), float(step.weight), gradients


def test_records_beside_others_have_the_loss_and_the_gradients_that_they_have_alone() -> None:
    packed, alone = dataset(RECORDS, SEQUENCE), dataset(RECORDS, SEQUENCE, packing=False)
    assert len(packed) < len(alone) == ROWS
    (loss, weight, gradients), (expected, expected_weight, expected_gradients) = map(
        train, map(batch_of, (packed, alone))
    )
    assert weight == expected_weight == sum(float(one.weights[1:].sum()) for one in RECORDS)
    assert loss == pytest.approx(expected, rel=1e-10)
    assert any(float(gradient.abs().max()) > 1e-3 for gradient in gradients)
    for found, gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-10, atol=1e-14)


def test_targets_that_do_not_count_change_no_bit() -> None:
    batch = batch_of(dataset(RECORDS, SEQUENCE))
    other = torch.randint(50, batch.targets.token_ids.shape, generator=torch.Generator().manual_seed(0))
    perturbed = torch.where(batch.targets.loss_weights == 0, other, batch.targets.token_ids)
    assert not torch.equal(perturbed, batch.targets.token_ids)
    (loss, _, gradients), (again, _, same) = map(
        train, (batch, replace(batch, targets=replace(batch.targets, token_ids=perturbed)))
    )
    assert loss == again
    assert all(torch.equal(one, two) for one, two in zip(gradients, same, strict=True))
