"""Records as rows: whole, apart from each other, each target with the weight of its token."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.core import BatchGeometry, DataLoader, items_of, order_of, positions_of
from scaling.core.errors import DataError
from scaling.transformer.data.batch import TextSample
from scaling.transformer.data.packing import Span
from scaling.transformer.data.record_dataset import RecordDataset
from scaling.transformer.data.records.budget import TooLong
from scaling.transformer.data.records.record import Record
from scaling.transformer.data.split import Part, Split
from tests.transformer.data.record_data import dataset, random_records, record

EOS = 0


def rows(data: RecordDataset) -> list[TextSample]:
    return [data[index] for index in range(len(data))]


def seen(data: RecordDataset, index: int) -> dict[str, Any]:
    """Return what the model and the loss see of a row."""
    batch = data.collate([data[index]], [0], [True])
    return {
        "tokens": batch.inputs.token_ids[0].tolist(),
        "positions": batch.inputs.position_ids[0].tolist(),
        "pieces": batch.inputs.document_ids[0].tolist(),
        "weights": batch.targets.loss_weights[0].tolist(),
    }


def test_a_row_holds_whole_records_with_their_weights() -> None:
    data = dataset([record([1, 2, 3, 4], [0, 0, 1, 0.5]), record([7, 8], [1, 1])], 7)
    assert len(data) == 1
    assert seen(data, 0) == {
        "tokens": [1, 2, 3, 4, 7, 8, 0],
        "positions": [0, 1, 2, 3, 0, 1, 0],
        "pieces": [0, 0, 0, 0, 1, 1, 2],
        "weights": [0, 1, 0.5, 0, 1, 0, 0],
    }
    assert data[0].spans == (Span(0, 0, 4), Span(1, 0, 2))
    assert data[0].origin(5) == "token 1 of record 1 of records"


def test_the_end_of_a_text_inside_a_conversation_does_not_cut_it() -> None:
    found = seen(dataset([record([1, EOS, 3, EOS], [0, 1, 0, 1])], 4), 0)
    assert found["pieces"][:3] == [0, 0, 0]
    assert found["positions"][:3] == [0, 1, 2]
    assert found["weights"] == [1, 0, 1, 0]


def test_without_packing_each_record_has_its_own_row() -> None:
    records = random_records(20, longest=6)
    data = dataset(records, 8, packing=False, padding=9)
    assert len(data) == 20
    for index, one in enumerate(records):
        assert data[index].tokens.tolist() == [*one.tokens.tolist(), *[9] * (9 - len(one.tokens))]
        assert data[index].weights.tolist() == [*one.weights.tolist()[1:], *[0] * (9 - len(one.tokens))]


@settings(max_examples=40)
@given(st.integers(0, 1000), st.integers(8, 40), st.integers(0, 3))
def test_a_record_beside_others_is_what_it_is_alone(seed: int, length: int, placeholders: int) -> None:
    records = random_records(30, longest=length + 1 - placeholders, seed=seed)
    packed = dataset(records, length, placeholders=placeholders)
    alone = dataset(records, length, placeholders=placeholders, packing=False)
    met: list[int] = []
    for index in range(len(packed)):
        row = seen(packed, index)
        for span, first in packed[index].pieces():
            met.append(span.document)
            size = span.stop - span.start
            assert (span.start, size) == (0, len(records[span.document].tokens))
            single = seen(alone, span.document)
            inputs = slice(first - placeholders, min(first + size, length))
            here = placeholders + size - (first + size > length)
            for name in ("tokens", "positions"):
                assert row[name][inputs] == single[name][:here]
            assert len(set(row["pieces"][inputs])) == 1
            targets = placeholders + size - 1
            assert row["weights"][first - placeholders :][:targets] == single["weights"][:targets]
    assert sorted(met) == list(range(30))
    total = sum(float(one.weights[0 if placeholders else 1 :].sum()) for one in records)
    assert sum(float(row.weights.sum()) for row in rows(packed)) == total


def test_a_soft_prompt_has_its_places_in_front_of_every_record() -> None:
    data = dataset([record([1, 2, 3], [1, 0, 1]), record([7, 8], [0, 1])], 8, placeholders=2)
    assert seen(data, 0) == {
        "tokens": [0, 0, 1, 2, 3, 0, 0, 7],
        "positions": [0, 1, 2, 3, 4, 0, 1, 2],
        "pieces": [0, 0, 0, 0, 0, 1, 1, 1],
        "weights": [0, 1, 0, 1, 0, 0, 0, 1],
    }
    assert data[0].origin(6) == "a placeholder of the soft prompt in front of record 1 of records"
    assert data[0].origin(7) == "token 0 of record 1 of records"


def long_records() -> list[Record]:
    return [record([1, 2, 3, 4, 5, 6], [0, 1, 0, 0, 0, 0]), record([1, 2, 3], [0, 1, 1])]


def test_too_long_records_are_refused_by_name_or_treated_as_asked_and_counted() -> None:
    with pytest.raises(DataError, match=r"record 0 of records has 6 tokens, and a sequence holds 4 .*data\.too_long"):
        dataset(long_records(), 3)
    for rule, spans, said in (
        (TooLong.DROP, [(Span(1, 0, 3),)], "1 longer than a sequence (drop)"),
        (TooLong.CUT_RIGHT, [(Span(0, 0, 4),), (Span(1, 0, 3),)], "1 longer than a sequence (cut_right)"),
        (
            TooLong.CUT_LEFT,
            [(Span(1, 0, 3),)],
            "1 longer than a sequence (cut_left), 1 without a token that counts once cut",
        ),
    ):
        data = dataset(long_records(), 3, too_long=rule)
        assert sorted(row.spans for row in rows(data)) == spans
        assert data.left_out() == said


def test_no_usable_record_is_refused_with_the_reason() -> None:
    with pytest.raises(DataError, match=r"none of 1 records can be used \(1 too short to predict anything left out\)"):
        dataset([record([1], [1])], 4).require_sequences()
    assert len(dataset([record([1], [1])], 4, placeholders=1)) == 1


def test_training_and_validation_share_no_record() -> None:
    records = random_records(200, longest=8)
    parts = [dataset(records, 16, split=Split(part, 0.3)) for part in (Part.TRAIN, Part.VALIDATION)]
    used = [{span.document for row in rows(data) for span in row.spans} for data in parts]
    assert used[0] | used[1] == set(range(200))
    assert not used[0] & used[1]


def test_the_fingerprint_tells_apart_whatever_changes_a_sample() -> None:
    records = [*random_records(4, longest=3), record([1, 2, 3], [0, 1, 1])]
    variants = [
        dataset(records, 4),
        dataset(records, 5),
        dataset(records, 4, packing=False),
        dataset(records, 4, placeholders=1),
        dataset(records, 1, too_long=TooLong.DROP),
        dataset(records, 1, too_long=TooLong.CUT_RIGHT),
        dataset(records, 4, split=Split(Part.TRAIN, 0.1)),
        dataset(records[::-1], 4),
    ]
    assert len({variant.fingerprint() for variant in variants}) == len(variants)
    assert dataset(records, 4, too_long=TooLong.DROP).fingerprint() == variants[0].fingerprint()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_step_has_the_same_samples_in_every_layout_from_every_point(workers: int) -> None:
    data = dataset(random_records(60, longest=9), 12)
    order = order_of(data, key=(5,), shuffle=True)
    expected = np.stack([data[item].tokens[:-1] for item in items_of(order, range(0, 48))])
    assert sorted(items_of(order, range(len(data)))) == list(range(len(data)))
    for ranks, micro, steps, begin in ((1, 4, 2, 0), (2, 2, 2, 0), (4, 1, 2, 8), (2, 4, 1, 16)):
        if workers and ranks != 2:
            continue
        geometry = BatchGeometry(ranks, micro, steps)
        found = np.zeros_like(expected)
        for rank in range(ranks):
            loader = DataLoader(
                data,
                seed=5,
                data_parallel_size=ranks,
                data_parallel_rank=rank,
                micro_batch_size=micro,
                gradient_accumulation_steps=steps,
                consumed_samples=begin,
                num_workers=workers,
            )
            for start in range(begin, 48, 8):
                for micro_batch in range(steps):
                    batch = next(loader)
                    places = positions_of(start, geometry, micro_batch=micro_batch, data_parallel_rank=rank)
                    assert batch.inputs.sample_positions.tolist() == list(places)
                    found[places.start : places.stop] = batch.inputs.token_ids.numpy()
            loader.close()
        assert (found[begin:] == expected[begin:]).all()


def test_a_data_set_travels_to_a_worker() -> None:
    data = dataset(random_records(50, longest=9), 12)
    again = pickle.loads(pickle.dumps(data))
    assert [row.tokens.tolist() for row in rows(again)] == [row.tokens.tolist() for row in rows(data)]
