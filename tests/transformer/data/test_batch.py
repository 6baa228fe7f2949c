"""Micro-batches of text: what the model and the loss receive."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scaling.core.errors import DataError
from scaling.transformer.data.batch import TextCollator, TextSample
from scaling.transformer.data.packing import Span
from scaling.transformer.io import TextInputs, TextTargets

EOD = 0
VOCAB = 11
COLLATOR = TextCollator(VOCAB)


def sample(tokens: list[int], sizes: list[int]) -> TextSample:
    """Make a sample of whole documents 10, 11, ... of these sizes; what they do not fill is padding."""
    spans = tuple(Span(10 + number, 0, size) for number, size in enumerate(sizes))
    return TextSample.of_documents(np.array(tokens, np.int64), spans, "texts", eod_token_id=EOD)


def collate(*samples: TextSample, collator: TextCollator = COLLATOR) -> tuple[TextInputs, TextTargets]:
    batch = collator.collate(samples, range(len(samples)), [True] * len(samples))
    assert isinstance(batch.inputs, TextInputs)
    assert isinstance(batch.targets, TextTargets)
    return batch.inputs, batch.targets


def test_targets_are_the_inputs_one_token_later() -> None:
    inputs, targets = collate(sample([1, 2, 3, 4], [4]), sample([5, 6, 7, 8], [4]))
    assert inputs.token_ids.tolist() == [[1, 2, 3], [5, 6, 7]]
    assert targets.token_ids.tolist() == [[2, 3, 4], [6, 7, 8]]


def test_documents_without_an_end_token_are_kept_apart_too() -> None:
    inputs, targets = collate(sample([1, 2, 3, 4, 5], [2, 3]))
    assert inputs.document_ids is not None
    assert inputs.document_ids.tolist() == [[0, 0, 1, 1]]
    assert inputs.position_ids.tolist() == [[0, 1, 0, 1]]
    assert targets.loss_weights.tolist() == [[1, 0, 1, 1]]


def test_padding_is_never_a_target() -> None:
    _, targets = collate(sample([1, 2, EOD, EOD, EOD], [2]))
    assert targets.loss_weights.tolist() == [[1, 0, 0, 0]]


def test_a_sample_that_only_fills_the_batch_has_no_weight() -> None:
    batch = COLLATOR.collate([sample([1, 2, 3], [3]), sample([4, 5, 6], [3])], [7, 8], [True, False])
    assert batch.targets.loss_weights.tolist() == [[1, 1], [0, 0]]
    assert batch.inputs.sample_positions.tolist() == [7, 8]


def test_masks_and_positions_of_documents_are_left_out_on_request() -> None:
    collator = TextCollator(VOCAB, reset_attention_mask=False, reset_position_ids=False)
    inputs, targets = collate(sample([1, EOD, 3, 4], [2, 2]), collator=collator)
    assert inputs.document_ids is None
    assert inputs.position_ids.tolist() == [[0, 1, 2]]
    assert targets.loss_weights.tolist() == [[1, 0, 1]]


def test_types_are_those_of_the_contract() -> None:
    inputs, targets = collate(sample([1, 2, 3], [3]))
    assert inputs.document_ids is not None
    assert inputs.document_ids.dtype == torch.int32
    assert {inputs.token_ids.dtype, inputs.position_ids.dtype, inputs.sample_positions.dtype} == {torch.int64}
    assert targets.token_ids.dtype == torch.int64
    assert targets.loss_weights.dtype == torch.float32


@pytest.mark.parametrize("token", [VOCAB, 1 << 40, -1])
def test_a_token_outside_the_vocabulary_is_named_with_its_document(token: int) -> None:
    good, bad = sample([1, 2, 3, 4], [4]), sample([1, 2, 3, token], [2, 2])
    with pytest.raises(
        DataError, match=rf"token 1 of document 11 of texts is {token}, outside the vocabulary \(0 to 10\)"
    ):
        collate(good, bad)


def loss_sum(inputs: TextInputs, targets: TextTargets) -> Tensor:
    """Compute the summed loss of a small attention model that sees positions and only its own document."""
    random = torch.Generator().manual_seed(1)
    embedding, places, head = (
        torch.randn(rows, 8, dtype=torch.float64, generator=random) for rows in (VOCAB, 32, VOCAB)
    )
    x = embedding[inputs.token_ids] + places[inputs.position_ids]
    assert inputs.document_ids is not None
    same = inputs.document_ids[:, :, None] == inputs.document_ids[:, None, :]
    causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
    attended = (x @ x.transpose(1, 2)).masked_fill(~(same & causal), float("-inf")).softmax(-1) @ x
    losses = F.cross_entropy((attended @ head.T).flatten(0, 1), targets.token_ids.flatten(), reduction="none")
    return (losses * targets.loss_weights.flatten().double()).sum()


documents = st.lists(st.lists(st.integers(1, VOCAB - 1), min_size=1, max_size=6), min_size=1, max_size=5)


@settings(max_examples=15)
@given(documents)
def test_the_loss_of_a_packed_row_is_the_sum_of_the_losses_of_its_documents(documents: list[list[int]]) -> None:
    documents = [[*tokens, EOD] for tokens in documents]
    packed = sample([token for tokens in documents for token in tokens], [len(tokens) for tokens in documents])
    alone = [loss_sum(*collate(sample(tokens, [len(tokens)]))) for tokens in documents]
    torch.testing.assert_close(loss_sum(*collate(packed)), torch.stack(alone).sum(), rtol=1e-10, atol=1e-12)
