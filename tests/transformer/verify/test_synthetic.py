"""Random token data for verification predicts something in every sequence."""

from __future__ import annotations

import pytest

from scaling.core import DataError
from scaling.transformer import TransformerConfig
from scaling.transformer.verify.synthetic import synthetic_text


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 16])
def test_something_is_predicted_however_short_the_sequences_are(length: int) -> None:
    sections = {"transformer_architecture": {"vocab_size": 5, "sequence_length": length}}
    text = synthetic_text(TransformerConfig.from_dict(sections), 70)
    samples = [text[index] for index in range(len(text))]
    batch = text.collate(samples, range(len(samples)), [True] * len(samples))
    assert {int(token) for sample in samples for token in sample.tokens} == set(range(5))
    assert [sample.spans for sample in samples[6::7]] == [()] * 10
    counted = batch.targets.loss_weights.sum(dim=1)
    assert counted.sum() >= 20
    assert not counted[6::7].any()  # all padding
    for outside in (-1, 70):
        with pytest.raises(DataError, match=f"sample {outside} is not one of the 70"):
            text[outside]


@pytest.mark.parametrize("packing", [True, False])
def test_records_share_rows_and_have_weights_of_all_kinds(packing: bool) -> None:
    sections = {
        "transformer_architecture": {"vocab_size": 5, "sequence_length": 16},
        "data": {"record_format": "auto", "packing": packing},
    }
    made = synthetic_text(TransformerConfig.from_dict(sections), 70)
    rows = [made[index] for index in range(len(made))]
    assert {float(weight) for row in rows for weight in row.weights} == {0.0, 0.5, 1.0}
    assert any(len(row.spans) > 2 for row in rows) == packing
    assert any(row.length < 17 for row in rows)
    assert not any(row.weights.any() for row in rows[6::7])
    assert all(row.weights[row.starts[1:]].sum() == 0 for row in rows)
    batch = made.collate(rows, range(len(rows)), [True] * len(rows))
    assert batch.targets.loss_weights.sum() > 70
    for outside in (-1, 70):
        with pytest.raises(DataError, match=f"row {outside} is not one of the 70"):
            made[outside]
