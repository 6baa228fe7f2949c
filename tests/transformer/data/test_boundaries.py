"""Everything that depends on documents follows from where they start."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.transformer.data.boundaries import document_ids, document_starts, loss_weights, piece_starts, position_ids

EOD = 0

rows = st.integers(1, 3).flatmap(
    lambda count: st.integers(2, 12).flatmap(
        lambda length: st.lists(
            st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=length, max_size=length),
            min_size=count,
            max_size=count,
        )
    )
)


@settings(max_examples=60)
@given(rows)
def test_mask_positions_and_weights_agree_with_a_walk_through_the_row(rows: list[list[tuple[int, bool]]]) -> None:
    tokens = np.array([[token for token, _ in row] for row in rows])
    given_starts = np.array([[start for _, start in row] for row in rows])
    starts = document_starts(tokens, given_starts, eod_token_id=EOD)
    documents, positions, weights = document_ids(starts), position_ids(starts, restart=True), loss_weights(starts)
    for row in range(len(rows)):
        document, position = -1, 0
        for place in range(tokens.shape[1]):
            begins = place == 0 or bool(given_starts[row, place]) or tokens[row, place - 1] == EOD
            document, position = (document + 1, 0) if begins else (document, position + 1)
            if place < tokens.shape[1] - 1:
                assert documents[row, place] == document
                assert positions[row, place] == position
            if place > 0:
                assert weights[row, place - 1] == (0.0 if begins else 1.0)


def test_a_document_ends_after_its_end_token_and_the_next_one_is_not_predicted_from_it() -> None:
    starts = document_starts(np.array([[5, 6, EOD, 7, 8, EOD, 9]]), np.zeros((1, 7), np.bool_), eod_token_id=EOD)
    assert document_ids(starts).tolist() == [[0, 0, 0, 1, 1, 1]]
    assert position_ids(starts, restart=True).tolist() == [[0, 1, 2, 0, 1, 2]]
    assert loss_weights(starts).tolist() == [[1, 1, 0, 1, 1, 0]]


def test_the_end_token_is_the_given_one_not_token_zero() -> None:
    tokens = np.array([[0, 0, 3, 0, 1]])
    starts = document_starts(tokens, np.zeros(tokens.shape, np.bool_), eod_token_id=3)
    assert document_ids(starts).tolist() == [[0, 0, 0, 1]]


def test_pieces_start_at_their_sizes_and_padding_is_cut_up() -> None:
    assert piece_starts([2, 3], 7).tolist() == [True, False, True, False, False, True, True]
    assert piece_starts([2, 3], 5).tolist() == [True, False, True, False, False]
    assert piece_starts([], 2).tolist() == [True, True]


def test_a_target_has_the_weight_of_its_token_unless_it_begins_a_piece() -> None:
    starts = np.array([True, False, True, False])
    weights = loss_weights(starts, np.array([9, 0.5, 9, 2], np.float32))
    assert weights.tolist() == [0.5, 0, 2]
    assert weights.dtype == np.float32


def test_positions_run_on_where_they_are_not_to_restart() -> None:
    starts = np.array([[True, False, True, False]])
    assert position_ids(starts, restart=False).tolist() == [[0, 1, 2]]


def test_types_are_those_of_the_contract() -> None:
    starts = np.ones((2, 5), np.bool_)
    assert document_ids(starts).dtype == np.int32
    assert position_ids(starts, restart=True).dtype == np.int64
    assert loss_weights(starts).dtype == np.float32
