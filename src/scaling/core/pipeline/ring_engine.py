"""Carry out the token ring on this rank's stage, one micro-batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, TypeAlias, final

import torch
from torch import Tensor

from scaling.core.collectives import ops
from scaling.core.errors import LayoutError, ScheduleError
from scaling.core.pipeline.actions import Accept, Action, Choose, Forward, Recv, Send
from scaling.core.pipeline.link import Outbox
from scaling.core.pipeline.module import ParallelModule
from scaling.core.pipeline.ring import TokenRing
from scaling.core.topology.layout import Axis
from scaling.core.topology.topology import Topology

TOKEN_DTYPE = torch.float64
"""Holds every token number and every log-probability exactly."""


class RingWork(Protocol):
    """The application's part in each action. Micro-batches have the numbers of the schedule.

    Methods that decide whether and in which shape a message is sent have to return the same on all ranks.
    """

    dtype: torch.dtype
    """Type of the activations between stages."""

    def begins(self, micro_batch: int) -> bool:
        """Return whether a micro-batch has anything to do; otherwise it is left out, on all ranks.

        Called once, when the tokens of the micro-batch `groups` before are taken in.
        """

    def inputs(self, micro_batch: int) -> Any:
        """Return the input of the first layer. Called on the first stage."""

    def arrived(self, micro_batch: int, activations: Tensor) -> Any:
        """Return the input of a later stage, from the tensor that `left` returned on the stage before."""

    def left(self, micro_batch: int, output: Any) -> Tensor:
        """Return the part of this stage's output for the next stage: a tensor of `shape` and `dtype`."""

    def shape(self, micro_batch: int) -> tuple[int, ...]:
        """Return the shape of the activations between stages."""

    def choose(self, micro_batch: int, output: Any) -> Tensor:
        """Return the chosen tokens, float64 [rows, numbers], the same on all model ranks. Called on the last stage.

        Not called where there are no rows. The tensor must not be changed any more.
        """

    def chosen_shape(self, micro_batch: int) -> tuple[int, int]:
        """Return [rows, numbers] of the chosen tokens; no rows where no prompt ends in the micro-batch.

        Called until the tokens are accepted.
        """

    def accept(self, micro_batch: int, chosen: Tensor) -> None:
        """Take in the chosen tokens, once per micro-batch that began. The tensor must not be changed."""


_Do: TypeAlias = "Callable[[RingRun, int, Any], Any]"
"""Carries out one action for a micro-batch: takes the value of the action before, and returns one for the next."""


@final
class RingEngine:
    """A rank's executor of the actions of a `TokenRing`: its stage, and links to its neighbours.

    Construction is collective: all ranks (the groups of the links are created). Messages have no headers: every rank
    derives their shapes from data that all ranks have. Sends do not block. An exception ends the run under way on this
    rank; other ranks cannot finish theirs then, so the process has to end, which they notice as in training.
    """

    def __init__(self, module: ParallelModule, topology: Topology) -> None:
        self.rank, self.ranks = topology.index(Axis.PIPE), topology.size(Axis.PIPE)
        stages = list(module.stages.values())
        if len(module.partition) != self.ranks:
            raise LayoutError(
                f"generation needs one pipeline stage on each rank, but {len(module.partition)} stages are on "
                f"{self.ranks} pipe ranks; load the model with pipe_chunks_per_rank 1"
            )
        (self.stage,) = stages
        self.device = topology.device
        self.activations = topology.link("activation", descending=False)  # training's, idle meanwhile
        self.tokens = topology.link("token", descending=False)
        self.outbox = Outbox()
        self.under_way: RingRun | None = None
        """The run that has begun and is not finished."""
        self._plans: dict[int, tuple[Sequence[_Do], Sequence[_Do]]] = {}

    def run(self, groups: int, work: RingWork) -> RingRun:
        """Return a run that has not begun."""
        return RingRun(self, groups, work)

    def plan(self, groups: int) -> tuple[Sequence[_Do], Sequence[_Do]]:
        """Return the actions for the micro-batch `groups` before, and those for the new one."""
        if groups not in self._plans:
            finishing: list[_Do] = []
            going_on: list[_Do] = []
            for action in TokenRing(groups).actions(self.rank, self.ranks, groups):
                (going_on if action.micro_batch == groups else finishing).append(_doing(action))
            self._plans[groups] = finishing, going_on
        return self._plans[groups]


@final
class RingRun:
    """One generation, around the ring again and again, with micro-batches of its own.

    In one process several runs may take turns. Over several ranks, a run has to be finished before another begins:
    their messages would meet each other's receives.
    """

    def __init__(self, engine: RingEngine, groups: int, work: RingWork) -> None:
        self._engine, self._groups, self._work = engine, groups, work
        self._finishing, self._going_on = engine.plan(groups)
        self._begun: set[int] = set()
        """Micro-batches whose tokens are not taken in yet."""
        self._chosen: dict[int, Tensor] = {}
        """On the last stage: tokens chosen, and not yet taken in."""

    def step(self, micro_batch: int) -> None:
        """Take in the tokens of micro-batch `micro_batch - groups`, and carry out the new one if it begins.

        Collective: all ranks of the pipe and model axes, for micro-batches 0, 1, 2, ... At the end, `groups` of them
        that do not begin take in the remaining tokens. Call this with gradients disabled.
        """
        self.take_in(micro_batch)
        self.go_on(micro_batch)

    def take_in(self, micro_batch: int) -> None:
        """Do the first half of a step: tokens are known after it, before the next ones are computed."""
        engine, before, value = self._engine, micro_batch - self._groups, None
        if engine.ranks > 1 and engine.under_way not in (None, self):
            raise LayoutError(
                "another generation is under way over these ranks; let it come to its end, or close it, before the "
                "next one begins"
            )
        if before not in self._begun:
            return
        with self._leaving_nothing():
            for do in self._finishing:
                value = do(self, before, value)
            self._begun.remove(before)

    def go_on(self, micro_batch: int) -> None:
        """Do the second half of a step."""
        engine, value = self._engine, None
        engine.under_way = self
        with self._leaving_nothing():
            if self._work.begins(micro_batch):
                self._begun.add(micro_batch)
                for do in self._going_on:
                    value = do(self, micro_batch, value)
            elif not self._begun:
                engine.outbox.wait()  # a rank that has finished may exit
                engine.under_way = None

    @contextmanager
    def _leaving_nothing(self) -> Iterator[None]:
        """Free the ranks for other runs if an error ends this one."""
        try:
            yield
        except BaseException:
            self._engine.under_way = None
            raise

    def _forward(self, micro_batch: int, arrived: Tensor | None) -> Any:
        work = self._work
        return self._engine.stage(work.inputs(micro_batch) if arrived is None else work.arrived(micro_batch, arrived))

    def _choose(self, micro_batch: int, output: Any) -> Tensor:
        shape = self._work.chosen_shape(micro_batch)
        chosen = self._work.choose(micro_batch, output) if shape[0] else self._new(shape, TOKEN_DTYPE)
        _check("the chosen tokens", chosen, shape, TOKEN_DTYPE)
        self._chosen[micro_batch] = chosen
        return chosen

    def _accept(self, micro_batch: int, chosen: Tensor | None) -> Tensor:
        if chosen is None:
            chosen = self._chosen.pop(micro_batch)
        self._work.accept(micro_batch, chosen)
        return chosen

    def _receive_activations(self, micro_batch: int, nothing: None, *, peer: int) -> Tensor:
        buffer = self._new(self._work.shape(micro_batch), self._work.dtype)
        return ops.receive(buffer, self._engine.activations, source=peer)

    def _send_activations(self, micro_batch: int, output: Any, *, peer: int) -> None:
        activations = self._work.left(micro_batch, output)
        _check("what leaves the stage", activations, self._work.shape(micro_batch), self._work.dtype)
        self._engine.outbox.send(activations, self._engine.activations, peer)

    def _receive_tokens(self, micro_batch: int, nothing: None, *, peer: int) -> Tensor:
        shape = self._work.chosen_shape(micro_batch)
        buffer = self._new(shape, TOKEN_DTYPE)
        return ops.receive(buffer, self._engine.tokens, source=peer) if shape[0] else buffer

    def _send_tokens(self, micro_batch: int, chosen: Tensor, *, peer: int) -> None:
        if chosen.shape[0]:
            self._engine.outbox.send(chosen, self._engine.tokens, peer)

    def _new(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self._engine.device)


def _doing(action: Action) -> _Do:
    match action:
        case Forward():
            return RingRun._forward
        case Choose():
            return RingRun._choose
        case Accept():
            return RingRun._accept
        case Recv(payload="activation"):
            return partial(RingRun._receive_activations, peer=action.source)
        case Send(payload="activation"):
            return partial(RingRun._send_activations, peer=action.target)
        case Recv(payload="token"):
            return partial(RingRun._receive_tokens, peer=action.source)
        case Send(payload="token"):
            return partial(RingRun._send_tokens, peer=action.target)
    raise ScheduleError(f"the ring does not know what to do at {action}")


def _check(what: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Refuse a tensor that the receiver does not expect: it would wait for ever, or take the numbers for others."""
    if tensor.shape != shape or tensor.dtype != dtype:
        raise ScheduleError(
            f"{what}: {tensor.dtype} {list(tensor.shape)}, where {dtype} {list(shape)} was announced; other ranks "
            "expect what is announced"
        )
