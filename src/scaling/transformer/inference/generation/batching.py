"""The rows that run next, and their results: the state of a generation that every rank keeps, without tensors.

All ranks have the same state, since they receive the same decisions in the same order. So no rank ever has to ask
another what to do next, or what shape a message has.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import final

from scaling.core import Decode, Prefill, Span
from scaling.transformer.inference.generation.plan import GenerationPlan


class End(IntEnum):
    """Whether a row continues after a token; sent from rank to rank as a number."""

    NOT_YET = 0
    STOP = 1
    """A token that ends the text, or a stop text."""
    LENGTH = 2
    """The allowed number of new tokens."""
    NOT_FINITE = 3
    """The logits were not finite, and there is no token."""


@final
@dataclass(frozen=True)
class Decision:
    """The choice for a row."""

    token: int
    end: End = End.NOT_YET
    numbers: tuple[float, ...] = ()
    """Log-probabilities, where they are requested."""


@final
@dataclass(frozen=True)
class Request:
    """A prompt, and the number of texts that continue it."""

    tokens: tuple[int, ...]
    """Tokens of the prompt, with the placeholders of a soft prompt in front."""
    samples: int = 1


@final
@dataclass(eq=False)
class Row:
    """One text."""

    number: int
    """Index among the rows of all requests, in the order of these."""
    tokens: list[int]
    prompt: int
    """Number of tokens of the prompt."""
    filled: int = 0
    """Number of positions whose keys and values are kept."""
    leader: Row | None = None
    """The sample of the same prompt whose prefill serves this one too."""
    decisions: list[Decision] = field(default_factory=list)

    @property
    def ready(self) -> bool:
        """Whether the row decodes: the prompt has been read, and the next step has one token."""
        return len(self.tokens) > self.prompt

    @property
    def ended(self) -> bool:
        """Whether the row has ended."""
        return bool(self.decisions) and self.decisions[-1].end is not End.NOT_YET


@final
@dataclass(frozen=True)
class Move:
    """A copy of the keys and values of the first `length` positions of one row to another."""

    pool: int
    source: int
    target: int
    length: int


@final
@dataclass(frozen=True)
class Item:
    """The work of a group in one step: tokens of several rows, one after another."""

    moves: tuple[Move, ...]
    """Copies to make first, in this order."""
    spans: tuple[Span, ...]
    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    choices: tuple[tuple[int, Row], ...]
    """Rows for which a token is chosen, each with the index in `tokens` of the token before the chosen one."""


@final
class _Pool:
    def __init__(self, number: int, rows: int, waiting: Sequence[int]) -> None:
        self.number = number
        self.rows = rows
        self.waiting = deque(waiting)
        self.active: list[Row] = []
        self.moves: list[Move] = []

    def let_go(self) -> None:
        """Close the gaps that ended rows leave, so that decoding rows are in front."""
        slots: list[Row | None] = [None if row.ended else row for row in self.active]
        while None in slots:
            gap = slots.index(None)
            behind = [slot for slot in range(gap + 1, len(slots)) if slots[slot] is not None]
            if not behind:
                del slots[gap:]
                break
            decoding = [slot for slot in behind if (row := slots[slot]) is not None and row.ready]
            self._move(slots, source=(decoding or behind)[-1], target=gap)
        self.active = [row for row in slots if row is not None]

    def _move(self, slots: list[Row | None], *, source: int, target: int) -> None:
        row = slots[source]
        if row is not None and row.filled:
            self.moves.append(Move(self.number, source, target, row.filled))
        slots[source], slots[target] = None, row

    def copy_prefill(self, leader: Row) -> None:
        """Let the other samples of a prompt start from its keys and values."""
        source = self.active.index(leader)
        for slot, row in enumerate(self.active):
            if row.leader is leader:
                self.moves.append(Move(self.number, source, slot, leader.filled))
                row.filled = leader.filled


@final
class Batching:
    """The rows of all requests; `take` must receive decisions in the order of the items that asked for them."""

    def __init__(self, plan: GenerationPlan, requests: Sequence[Request]) -> None:
        self._plan = plan
        self._requests = requests
        self._pools = [_Pool(number, pool.rows, pool.requests) for number, pool in enumerate(plan.pools)]
        self._groups = [
            [own for own, pool in zip(self._pools, plan.pools, strict=True) if pool.group == group]
            for group in range(plan.groups)
        ]
        self._asked: dict[int, tuple[Row, ...]] = {}
        """By group: the rows for which its last item chooses a token."""
        self.rows: list[Row] = []
        """Rows of all requests, in their order; the samples of a request are next to each other."""
        self._of_request: list[list[Row]] = []
        for request in requests:
            of_prompt = [
                Row(len(self.rows) + sample, list(request.tokens), len(request.tokens))
                for sample in range(request.samples)
            ]
            for row in of_prompt[1:]:
                row.leader = of_prompt[0]
            self.rows += of_prompt
            self._of_request.append(of_prompt)

    @property
    def finished(self) -> bool:
        """Whether all rows have ended."""
        return all(not pool.waiting and not pool.active for pool in self._pools)

    def next_item(self, group: int) -> Item | None:
        """Return the next item of a group, or None where it has nothing to do.

        The decisions for its last item must have been passed to `take` before.
        """
        moves: list[Move] = []
        spans: list[Span] = []
        tokens: list[int] = []
        positions: list[int] = []
        choices: list[tuple[int, Row]] = []
        for pool in self._groups[group]:
            moves += pool.moves
            pool.moves.clear()
            decoding = _leading(pool.active)
            if not decoding:
                continue
            spans.append(Decode(pool.number, tuple(row.filled for row in decoding)))
            for row in decoding:
                choices.append((len(tokens), row))
                tokens.append(row.tokens[-1])
                positions.append(row.filled)
                row.filled += 1
        room = self._plan.chunk
        for pool in self._groups[group]:
            for slot, row in self._prefilling(pool):
                if not room:
                    break
                start, count = row.filled, min(room, row.prompt - row.filled)
                spans.append(Prefill(pool.number, slot, start, count))
                tokens += row.tokens[start : start + count]
                positions += range(start, start + count)
                row.filled += count
                room -= count
                if row.filled == row.prompt:
                    last = len(tokens) - 1
                    choices += ((last, own) for own in pool.active if own is row or own.leader is row)
        if not spans:
            return None
        self._asked[group] = tuple(row for _, row in choices)
        return Item(tuple(moves), tuple(spans), tuple(tokens), tuple(positions), tuple(choices))

    def take(self, group: int, decisions: Sequence[Decision]) -> list[tuple[Row, Decision]]:
        """Store the decisions for the rows of the group's last item, in its order, and return each with its row."""
        told = list(zip(self._asked.pop(group), decisions, strict=True))
        for row, decision in told:
            row.decisions.append(decision)
            row.tokens.append(decision.token)
        begun = {row for row, _ in told if len(row.decisions) == 1 and row.leader is None}
        for pool in self._groups[group]:
            for row in begun.intersection(pool.active):
                pool.copy_prefill(row)
            pool.let_go()
        return told

    def _prefilling(self, pool: _Pool) -> list[tuple[int, Row]]:
        """Admit the waiting requests that fit, and return the rows whose prompts are to be read, with their slots."""
        while pool.waiting:
            entering = self._of_request[pool.waiting[0]]
            if len(pool.active) + len(entering) > pool.rows:
                break
            pool.waiting.popleft()
            pool.active += entering
        return [
            (slot, row)
            for slot, row in enumerate(pool.active)
            if row.leader is None and not row.ready and row.filled < row.prompt
        ]


def _leading(rows: Sequence[Row]) -> list[Row]:
    """Return the rows in front of the first that does not decode."""
    found = []
    for row in rows:
        if not row.ready:
            break
        found.append(row)
    return found
