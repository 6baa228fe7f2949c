"""The ring engine against rows that are continued one after another, whatever the groups and the ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scaling.core.errors import LayoutError, ScheduleError
from scaling.core.pipeline.layer_spec import LayerSpec
from scaling.core.pipeline.module import ParallelModule
from scaling.core.pipeline.ring_engine import RingEngine
from scaling.core.topology.topology import Topology
from tests.distributed import run_distributed
from tests.reference.worlds import connected, topology_config

WIDTH, LAYERS, TOKENS = 4, 4, 6
ROWS = (3, 1, 2)
"""Rows of each group; a row starts with its number in the world."""


class Turn(nn.Module):
    """Changes each row by its own numbers alone."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)

    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"x": torch.sin(self.linear(x["x"]) * 3)}


def embedded(tokens: Tensor) -> Tensor:
    return torch.cos(tokens.unsqueeze(-1) * torch.arange(1.0, WIDTH + 1, dtype=torch.float64))


def chosen_from(output: Tensor) -> Tensor:
    return torch.stack([(output.sum(-1) * 1000).round() % 50, output[:, 0]], dim=-1)


def model(topology: Topology, **options: Any) -> ParallelModule:
    pipe = topology.layout.pipe
    config = topology_config(pipe=pipe, global_batch_size=pipe, micro_batch_size=1, **options)
    return ParallelModule([LayerSpec(Turn) for _ in range(LAYERS)], topology, config, seed=3).eval()


def starts(groups: int) -> list[Tensor]:
    numbers = torch.arange(float(sum(ROWS)), dtype=torch.float64)
    return list(numbers.split(ROWS))[:groups]


@torch.no_grad()
def one_after_another(groups: int) -> list[list[list[float]]]:
    """Return by group and then by round what is chosen."""
    module = model(Topology.single())
    found: list[list[list[float]]] = []
    for tokens in starts(groups):
        found.append([])
        for _ in range(TOKENS):
            x = {"x": embedded(tokens)}
            for _, layer in module.layers():
                x = layer(x)
            chosen = chosen_from(x["x"])
            found[-1].append(chosen.flatten().tolist())
            tokens = chosen[:, 0]
    return found


class Continue:
    """Continues each group by its tokens; the first round of group 1 ends no prompt, and group 2 pauses in round 2."""

    dtype = torch.float64

    def __init__(self, groups: int, *, fails_at: tuple[str, int] | None = None) -> None:
        self.groups, self.fails_at = groups, fails_at
        self.tokens = starts(groups)
        self.accepted: list[list[list[float]]] = [[] for _ in range(groups)]
        self.calls: list[tuple[str, int]] = []

    def begins(self, micro_batch: int) -> bool:
        self.note("begins", micro_batch)
        group, turn = micro_batch % self.groups, micro_batch // self.groups
        return len(self.accepted[group]) < TOKENS and (group, turn) != (2, 2)

    def inputs(self, micro_batch: int) -> dict[str, Tensor]:
        return {"x": embedded(self.tokens[micro_batch % self.groups])}

    def arrived(self, micro_batch: int, activations: Tensor) -> dict[str, Tensor]:
        return {"x": activations}

    def left(self, micro_batch: int, output: dict[str, Tensor]) -> Tensor:
        return output["x"]

    def shape(self, micro_batch: int) -> tuple[int, ...]:
        return (ROWS[micro_batch % self.groups], WIDTH)

    def choose(self, micro_batch: int, output: dict[str, Tensor]) -> Tensor:
        self.note("choose", micro_batch)
        return chosen_from(output["x"])

    def chosen_shape(self, micro_batch: int) -> tuple[int, int]:
        return (0 if self.is_chunk(micro_batch) else ROWS[micro_batch % self.groups]), 2

    def is_chunk(self, micro_batch: int) -> bool:
        return micro_batch == 1 and self.groups > 1

    def accept(self, micro_batch: int, chosen: Tensor) -> None:
        self.note("accept", micro_batch)
        assert chosen.shape == self.chosen_shape(micro_batch)
        assert chosen.dtype == torch.float64
        if self.is_chunk(micro_batch):
            return
        group = micro_batch % self.groups
        self.accepted[group].append(chosen.flatten().tolist())
        self.tokens[group] = chosen[:, 0]

    def note(self, what: str, micro_batch: int) -> None:
        self.calls.append((what, micro_batch))
        if (what, micro_batch) == self.fails_at:
            raise ZeroDivisionError(f"in {what} of micro-batch {micro_batch}")


@torch.no_grad()
def go_on(engine: RingEngine, work: Continue) -> None:
    run = engine.run(work.groups, work)
    for micro_batch in range((TOKENS + 3) * work.groups):
        run.step(micro_batch)


def generate(rank: int, world_size: int) -> None:
    expected = [one_after_another(groups) for groups in (1, 2, 3)]
    with connected(pipe=world_size) as topology:
        engine = RingEngine(model(topology), topology)
        for groups in (1, 2, 3, 1):
            work = Continue(groups)
            go_on(engine, work)
            assert work.accepted == expected[groups - 1]
            check_calls(work, last=rank == world_size - 1)


def check_calls(work: Continue, *, last: bool) -> None:
    """Each micro-batch is asked for once, after the tokens before, and accepted once if it has begun."""
    asked = [number for what, number in work.calls if what == "begins"]
    accepted = [number for what, number in work.calls if what == "accept"]
    assert asked == list(range(len(asked)))
    assert accepted == sorted(set(accepted))
    assert len(accepted) == work.groups * TOKENS + (work.groups > 1)
    for number in accepted:
        assert work.calls.index(("accept", number)) + 1 == work.calls.index(("begins", number + work.groups))
    chosen = [number for what, number in work.calls if what == "choose"]
    assert chosen == ([number for number in accepted if not work.is_chunk(number)] if last else [])


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_rows_are_continued_as_one_after_another(ranks: int) -> None:
    if ranks == 1:
        generate(0, 1)
    else:
        run_distributed(generate, ranks)


def fail(rank: int, world_size: int, fails_at: tuple[str, int]) -> None:
    with connected(pipe=world_size) as topology:
        go_on(RingEngine(model(topology), topology), Continue(2, fails_at=fails_at if rank == 1 else None))


def test_an_error_on_one_rank_ends_the_others() -> None:
    with pytest.raises(ZeroDivisionError, match="in accept of micro-batch 3"):
        run_distributed(fail, 2, ("accept", 3))


def test_an_error_in_a_process_that_works_alone_leaves_nothing_behind() -> None:
    topology = Topology.single()
    engine = RingEngine(model(topology), topology)
    with pytest.raises(ZeroDivisionError):
        go_on(engine, Continue(3, fails_at=("choose", 3)))
    work = Continue(2)
    go_on(engine, work)
    assert work.accepted == one_after_another(2)


def interrupt(rank: int, world_size: int) -> None:
    with connected(pipe=world_size) as topology:
        engine = RingEngine(model(topology), topology)
        engine.run(2, Continue(2)).step(0)
        with pytest.raises(LayoutError, match="another generation is under way"):
            engine.run(2, Continue(2)).step(0)


def test_over_ranks_one_generation_waits_for_another_and_in_one_process_they_take_turns() -> None:
    run_distributed(interrupt, 2)
    topology = Topology.single()
    engine = RingEngine(model(topology), topology)
    works = [Continue(2), Continue(3)]
    runs = [engine.run(work.groups, work) for work in works]
    with torch.no_grad():
        for micro_batch in range((TOKENS + 3) * 3):
            for run in runs:
                run.step(micro_batch)
    assert [work.accepted for work in works] == [one_after_another(2), one_after_another(3)]


class Wrong(Continue):
    """Chooses something other than it announces."""

    def choose(self, micro_batch: int, output: dict[str, Tensor]) -> Tensor:
        return super().choose(micro_batch, output).float()


def test_what_was_not_announced_is_refused() -> None:
    topology = Topology.single()
    with pytest.raises(
        ScheduleError, match=r"the chosen tokens: torch.float32 \[3, 2\], where torch.float64 \[3, 2\] was announced"
    ):
        go_on(RingEngine(model(topology), topology), Wrong(1))


def test_several_stages_on_a_rank_are_refused() -> None:
    topology = Topology.single()
    module = model(topology, pipe_schedule="interleaved_1f1b", pipe_chunks_per_rank=2)
    with pytest.raises(LayoutError, match="one pipeline stage on each rank, but 2 stages are on 1 pipe ranks"):
        RingEngine(module, topology)
