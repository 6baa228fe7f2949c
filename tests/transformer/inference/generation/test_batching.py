"""Rows come and go, and each of their tokens finds the keys and values of all before it, and of no other text."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.core import Decode, Prefill
from scaling.transformer.inference.generation.batching import Batching, Decision, End, Item, Request, Row
from scaling.transformer.inference.generation.plan import GenerationPlan, Need, plan_generation

MOST = 6
"""New tokens."""


class Kept:
    """In the place of keys and values: the tokens of each row of each pool."""

    def __init__(self, plan: GenerationPlan) -> None:
        self.rows = [[[-1] * pool.capacity for _ in range(pool.rows)] for pool in plan.pools]
        self.most = [0] * len(plan.pools)

    def run(self, item: Item) -> list[list[int]]:
        """Carry out an item, and return the whole text that each of its tokens sees."""
        for move in item.moves:
            source, target = (self.rows[move.pool][slot] for slot in (move.source, move.target))
            target[: move.length] = source[: move.length]
            target[move.length :] = [-1] * (len(target) - move.length)
        seen: list[list[int]] = []
        for span in item.spans:
            if isinstance(span, Prefill):
                places = [(span.row, position) for position in range(span.start, span.start + span.count)]
            else:
                assert isinstance(span, Decode)
                places = list(enumerate(span.starts))
            for slot, position in places:
                assert item.positions[len(seen)] == position
                self.rows[span.pool][slot][position] = item.tokens[len(seen)]
                seen.append(self.rows[span.pool][slot][: position + 1])
        return seen


def next_token(text: Sequence[int]) -> int:
    """Return a token that depends on all before it."""
    value = 1
    for token in text:
        value = (value * 31 + token + 7) % 1009
    return value


def finished(prompt: Sequence[int], sample: int, ends: int) -> list[int]:
    """Return what continues a prompt, alone."""
    new: list[int] = []
    while len(new) < MOST and not (new and new[-1] % ends == 0):
        new.append((next_token([*prompt, *new]) + 17 * sample) % 1009)
    return new


@settings(max_examples=150)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 3)), min_size=1, max_size=9),
    groups=st.integers(1, 3),
    chunk=st.integers(1, 20),
    share=st.floats(0, 1),
    ends=st.integers(1, 6),
)
def test_every_text_is_what_it_is_alone(
    lengths: list[tuple[int, int]], groups: int, chunk: int, share: float, ends: int
) -> None:
    requests = [
        Request(tuple(100 * number + place for place in range(length)), samples)
        for number, (length, samples) in enumerate(lengths)
    ]
    needs = [Need(len(request.tokens) + MOST - 1, request.samples) for request in requests]
    least = max(need.rows for need in needs) * max(need.positions for need in needs)
    limit = int(least + share * sum(need.rows * need.positions for need in needs))
    plan = plan_generation(needs, groups=groups, chunk=chunk, bytes_of=lambda positions: positions, limit=limit)
    ranks = [Batching(plan, requests) for _ in range(2)]  # all do the same
    kept = [Kept(plan) for _ in ranks]
    asked: list[list[Decision]] = [[] for _ in range(plan.groups)]
    under_way = [False] * plan.groups
    micro_batch = 0
    while not ranks[0].finished:
        group = micro_batch % plan.groups
        micro_batch += 1
        if under_way[group]:
            for rank in ranks:
                rank.take(group, asked[group])
        items = [rank.next_item(group) for rank in ranks]
        under_way[group] = items[0] is not None
        if items[0] is None:
            assert items[1] is None
            continue
        assert [item.spans for item in items if item] == [items[0].spans] * 2
        seen = [states.run(item) for states, item in zip(kept, items, strict=True) if item]
        assert seen[0] == seen[1]
        assert sum(span.count for span in items[0].spans if isinstance(span, Prefill)) <= chunk
        asked[group] = []
        for place, row in items[0].choices:
            assert seen[0][place] == row.tokens, "a token sees what is not of its text"
            sample = row.number - (row.leader or row).number
            token = (next_token(row.tokens) + 17 * sample) % 1009
            end = End.STOP if token % ends == 0 else End.LENGTH if len(row.decisions) + 1 == MOST else End.NOT_YET
            asked[group].append(Decision(token, end))
        assert micro_batch < 5000
    rows: list[Row] = ranks[0].rows
    expected = [finished(request.tokens, sample, ends) for request in requests for sample in range(request.samples)]
    assert [row.tokens[row.prompt :] for row in rows] == expected
    assert [[decision.token for decision in row.decisions] for row in ranks[1].rows] == expected
