"""Packing documents into rows changes no document's loss: against each document alone, without padding or a mask."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scaling.core import LaunchContext, MicroBatch, ParallelModule, StepLoss, Topology
from scaling.transformer.config.root import TransformerConfig
from scaling.transformer.data.batch import TextCollator, TextSample
from scaling.transformer.data.load import load_datasets
from scaling.transformer.data.prepare import prepare_data
from scaling.transformer.losses import CrossEntropyLoss
from scaling.transformer.model import layer_specs
from tests.faults.engine import FLOAT64, Settings, Source, layout, nested

VARIANTS: dict[str, Settings] = {
    "rotary, grouped queries": {},
    "full sequences only, rotary pairs": {
        "transformer_architecture.sequence_length": 8,
        "data.only_full_sequences": True,
        "data.allow_incomplete_sequences_every_n": 2,
        "transformer_architecture.relative_position_embedding_type": "rotary_complex",
        "transformer_architecture.attention_num_kv_heads": None,
    },
    "layer norm, biases, own head": {
        "transformer_architecture.norm_type": "layernorm",
        "transformer_architecture.mlp_type": "default",
        "transformer_architecture.weight_tying": False,
    },
}


def pieces_of(sample: TextSample) -> list[TextSample]:
    """Return the pieces of documents in a row, each as a row of its own length; single tokens predict nothing."""
    found, place = [], 0
    for span in sample.spans:
        size = span.stop - span.start
        if size >= 2:
            found.append(
                replace(
                    sample,
                    tokens=sample.tokens[place : place + size],
                    starts=sample.starts[place : place + size],
                    weights=sample.weights[place : place + size - 1],
                    spans=(span,),
                )
            )
        place += size
    return found


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_packed_rows_have_the_loss_of_their_documents(changes: Settings, source: Source, tmp_path: Path) -> None:
    settings = source.settings(
        FLOAT64, layout(), {"topology.global_batch_size": 1, "transformer_architecture.sequence_length": 64}, changes
    )
    given = {name: value for name, value in settings.items() if value is not None and "trainer.save" not in name}
    config = prepare_data(TransformerConfig.from_dict(nested(given)))
    architecture = config.transformer_architecture
    dataset, _ = load_datasets(config)
    plain = TextCollator(architecture.vocab_size or 0, reset_attention_mask=False, reset_position_ids=False)
    with Topology.connect(config.topology, LaunchContext.from_environment()) as topology:
        module = ParallelModule(layer_specs(architecture, topology, seed=1), topology, config.topology, seed=1)
        for parameter in module.parameters():  # larger than at the start, so that every token counts
            parameter.data.mul_(3)
        loss_function = CrossEntropyLoss()

        def loss_of(batches: list[MicroBatch]) -> StepLoss:
            total = StepLoss(topology)
            for batch in batches:
                total.merge(module.eval_step(iter([batch]), loss_function))
            return total

        rows = [dataset[index] for index in range(min(12, len(dataset)))]
        alone = [piece for row in rows for piece in pieces_of(row)]
        packed = loss_of([dataset.collate([row], [0], [True]) for row in rows])
        single = loss_of([plain.collate([piece], [0], [True]) for piece in alone])
    assert len(alone) > len(rows)
    assert float(packed.weight) == float(single.weight) == sum(len(piece.tokens) - 1 for piece in alone)
    assert float(packed.loss) == pytest.approx(float(single.loss), rel=1e-10, abs=0)
    assert packed.loss.dtype == torch.float64
