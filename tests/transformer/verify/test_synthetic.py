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
