"""The rank that chooses says what is chosen and what ends, in a message that all understand alike."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from scaling.transformer.data.tokenizer import train_tokenizer
from scaling.transformer.inference.generation.batching import Decision, End, Row
from scaling.transformer.inference.generation.decider import Decider, numbers_of, told, understood
from scaling.transformer.inference.generation.options import Options
from scaling.transformer.inference.generation.sampling import Sampling

TOKENIZER = train_tokenizer(["the cat and the hat. the end of the cat, the end."] * 3, 280)


@given(
    st.lists(
        st.builds(
            Decision,
            st.integers(-1, 2**48),
            st.sampled_from(End),
            st.tuples(st.floats(allow_nan=False), st.integers(0, 2**48).map(float), st.floats(allow_nan=False)),
        ),
        max_size=5,
    )
)
def test_a_message_is_understood_as_it_was_told(decisions: list[Decision]) -> None:
    message = told(decisions, 5)
    assert message.shape == (len(decisions), 5)
    assert understood(message) == decisions


def decide(options: Options, row: Row, token: int) -> Decision:
    """Return what is decided where one token is the most likely by far, and let the row have it."""
    logits = torch.zeros(1, TOKENIZER.vocab_size)
    logits[0, token] = 9.0
    (decision,) = Decider(options, TOKENIZER, placeholders=0).decide(logits, [row])
    row.tokens.append(decision.token)
    row.decisions.append(decision)
    return decision


def test_a_text_ends_with_its_last_token_an_end_or_a_stop_text() -> None:
    options = Options(max_tokens=3, ends=frozenset([7]))
    row = Row(0, [1], 1)
    assert [decide(options, row, 8).end for _ in range(3)] == [End.NOT_YET, End.NOT_YET, End.LENGTH]
    assert decide(options, Row(0, [1], 1), 7).end is End.STOP
    the, cat = TOKENIZER.encode("the cat")[0], TOKENIZER.encode("the cat")[1:]
    stopping = Decider(Options(max_tokens=9, stop=("e c",)), TOKENIZER, placeholders=0)
    row, found = Row(0, [1], 1), []
    for token in (the, *cat):
        logits = torch.zeros(1, TOKENIZER.vocab_size)
        logits[0, token] = 9.0
        (decision,) = stopping.decide(logits, [row])
        row.tokens.append(decision.token)
        row.decisions.append(decision)
        found.append(decision.end)
    assert End.STOP in found
    assert found[0] is End.NOT_YET


def test_an_end_is_not_chosen_before_the_minimum() -> None:
    options = Options(max_tokens=3, min_tokens=1, ends=frozenset([7]))
    row = Row(0, [1], 1)
    assert decide(options, row, 7).token == 0
    assert decide(options, row, 7) == Decision(7, End.STOP)


def test_samples_and_prompts_have_seeds_of_their_own() -> None:
    options = Options(max_tokens=3, sampling=Sampling(temperature=1.0), seeds=(5, 6), samples=3)
    decider = Decider(options, TOKENIZER, placeholders=0)
    rows = [Row(number, [1, 2], 2) for number in range(6)]
    chosen = [decision.token for decision in decider.decide(torch.zeros(6, 200_000), rows)]
    assert len(set(chosen)) == 6
    again = Decider(Options(max_tokens=3, sampling=Sampling(temperature=1.0), seeds=(6,)), TOKENIZER, placeholders=1)
    (alone,) = again.decide(torch.zeros(1, 200_000), [Row(0, [0, 1, 2], 3)])
    assert alone.token == chosen[3]


def test_the_best_of_a_vocabulary_that_has_fewer_are_filled_up() -> None:
    options = Options(max_tokens=3, best=4)
    (decision,) = Decider(options, None, placeholders=0).decide(torch.tensor([[0.0, 1.0]]), [Row(0, [1], 1)])
    assert 2 + len(decision.numbers) == numbers_of(options) == 11
    assert decision.numbers[0] == decision.numbers[2]
    assert decision.numbers[5::2] == (0.0, 0.0)
    assert decision.numbers[6::2] == (-math.inf, -math.inf)
