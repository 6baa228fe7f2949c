"""Carry out a generation on this rank: the items of the batching, as the work of the ring."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import final

import torch
from torch import Tensor

from scaling.core import Axis, DataRefusedError, KeyValueCaches, Past, RingEngine, Topology, gather_vocabulary
from scaling.transformer.inference.generation.batching import Batching, Decision, End, Item, Row
from scaling.transformer.inference.generation.decider import Decider, told, understood
from scaling.transformer.io import TextInputs, TransformerIO
from scaling.transformer.layers.head import HeadOutput

Told = list[tuple[Row, Decision]]


@final
class Generation:
    """One generation on a rank. Iterate over it in the same way on all ranks of the pipe and model axes.

    `ready` is called before each step, since others may use the model between steps. The caches are released when the
    iteration ends, however it ends.
    """

    def __init__(
        self,
        ring: RingEngine,
        batching: Batching,
        caches: KeyValueCaches,
        work: GenerationWork,
        *,
        ready: Callable[[], object],
    ) -> None:
        self._run = ring.run(work.groups, work)
        self._batching = batching
        self._caches = caches
        self._work = work
        self._ready = ready

    @property
    def rows(self) -> Sequence[Row]:
        """Return the texts, in the order of the prompts; the samples of a prompt are next to each other."""
        return self._batching.rows

    def __iter__(self) -> Iterator[tuple[Row, Decision]]:
        """Yield each new token's row and decision as they come; raise `DataRefusedError` if logits are not finite."""
        micro_batch = 0
        try:
            while not self._batching.finished:
                self._run.take_in(micro_batch)
                for row, decision in self._work.news():
                    if decision.end is End.NOT_FINITE:
                        raise DataRefusedError(_not_finite(row))
                    yield row, decision
                self._ready()
                self._go_on(micro_batch)
                micro_batch += 1
        except (GeneratorExit, DataRefusedError):  # on all ranks: messages on their way between them are received
            self._work.begin_no_more()
            for last in range(micro_batch, micro_batch + self._work.groups):
                self._run.take_in(last)
                self._go_on(last)
            raise
        finally:
            self._caches.release()  # also where an error keeps this frame alive

    @torch.no_grad()
    def _go_on(self, micro_batch: int) -> None:
        self._run.go_on(micro_batch)


@final
class GenerationWork:
    """The work of this rank for the actions of the ring."""

    def __init__(
        self,
        batching: Batching,
        caches: KeyValueCaches,
        decider: Decider,
        topology: Topology,
        *,
        groups: int,
        hidden: int,
        vocabulary: int,
        numbers: int,
        dtype: torch.dtype,
    ) -> None:
        self.groups = groups
        self.dtype = dtype
        self._batching = batching
        self._caches = caches
        self._decider = decider
        self._topology = topology
        self._hidden, self._vocabulary, self._numbers = hidden, vocabulary, numbers
        self._items: dict[int, Item] = {}
        self._news: Told = []
        self._ends = False

    def news(self) -> Told:
        """Return the decisions made since the last call."""
        news, self._news = self._news, []
        return news

    def begin_no_more(self) -> None:
        """Begin no further items."""
        self._ends = True

    def begins(self, micro_batch: int) -> bool:
        """Return whether the group of a micro-batch has anything to compute."""
        item = None if self._ends else self._batching.next_item(micro_batch % self.groups)
        if item is None:
            return False
        for move in item.moves:
            self._caches.move(move.pool, move.source, move.target, move.length)
        self._items[micro_batch] = item
        return True

    def inputs(self, micro_batch: int) -> TextInputs:
        """Return the tokens of an item, [1, t]."""
        item, device = self._items[micro_batch], self._topology.device
        token_ids = torch.tensor([item.tokens], device=device)
        return TextInputs(token_ids, *self._beside(item), past=Past(self._caches, item.spans))

    def arrived(self, micro_batch: int, activations: Tensor) -> TransformerIO:
        """Return the received activations as input of the layers, with positions and caches."""
        item = self._items[micro_batch]
        return TransformerIO(activations, *self._beside(item), past=Past(self._caches, item.spans))

    def left(self, micro_batch: int, output: TransformerIO) -> Tensor:
        """Return the activations to send."""
        return output.activations

    def shape(self, micro_batch: int) -> tuple[int, ...]:
        """Return the shape of the activations."""
        return 1, len(self._items[micro_batch].tokens), self._hidden

    def chosen_shape(self, micro_batch: int) -> tuple[int, int]:
        """Return the shape of the decisions."""
        return len(self._items[micro_batch].choices), self._numbers

    def choose(self, micro_batch: int, output: HeadOutput) -> Tensor:
        """Return the decisions: one model rank gathers the logits, decides, and sends the decisions to the others."""
        choices = self._items[micro_batch].choices
        places = torch.tensor([place for place, _ in choices], device=self._topology.device)
        logits = gather_vocabulary(output.at(places).logits()[0], output.place, self._vocabulary)
        if logits is None:
            message = torch.empty(len(choices), self._numbers, dtype=torch.float64)
        else:
            message = told(self._decider.decide(logits, [row for _, row in choices]), self._numbers)
        return self._topology.share(message.to(self._topology.device), Axis.MODEL)

    def accept(self, micro_batch: int, chosen: Tensor) -> None:
        """Apply the received decisions."""
        del self._items[micro_batch]
        self._news += self._batching.take(micro_batch % self.groups, understood(chosen))

    def _beside(self, item: Item) -> tuple[Tensor, None, Tensor]:
        device = self._topology.device
        return torch.tensor([item.positions], device=device), None, torch.zeros(1, dtype=torch.int64, device=device)


def _not_finite(row: Row) -> str:
    return (
        f"the logits behind token {len(row.tokens) - 1} of text {row.number} are not finite (nan or infinite), so "
        "there is no next token to choose; look at the checkpoint (scaling checkpoint verify), or give a higher "
        "precision"
    )
