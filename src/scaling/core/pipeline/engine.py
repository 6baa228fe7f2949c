"""Execute a pipeline schedule's actions on this rank's stages and links."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, final

import torch
from torch import Tensor

from scaling.core.collectives import ops, tree
from scaling.core.collectives.ops import Group
from scaling.core.data.types import MicroBatch
from scaling.core.errors import AskedToLeave, ScheduleError
from scaling.core.pipeline.actions import Action, Backward, BackwardInput, BackwardWeight, Forward, Message, Recv, Send
from scaling.core.pipeline.backward import backward
from scaling.core.pipeline.end import End
from scaling.core.pipeline.host_memory import HostMemory
from scaling.core.pipeline.link import ActivationReceiver, ActivationSender, Outbox
from scaling.core.pipeline.stage import Stage
from scaling.core.pipeline.stage_map import StageMap
from scaling.core.topology.gate import Gate
from scaling.core.topology.topology import Topology
from scaling.core.waiting import waits

Timer = Callable[[Action], contextlib.AbstractContextManager[None]]

_NOTHING: Final = contextlib.nullcontext()


def untimed(*_: Action) -> contextlib.AbstractContextManager[None]:
    """Time nothing."""
    return _NOTHING


@final
class PipelineEngine:
    """Runs action lists: a list says what to do next, a stage how it is computed.

    Construction is collective: all ranks (the links' groups are created).
    """

    def __init__(self, stages: Mapping[int, Stage], stage_map: StageMap, topology: Topology) -> None:
        self.stages = stages
        self.stage_map = stage_map
        self.last = stage_map.last
        self.topology = topology
        self.timer: Timer = untimed
        """Context around each action."""
        self.data_timer: Callable[[], contextlib.AbstractContextManager[None]] = untimed
        """Context around each wait for a micro-batch."""
        self.gate: Gate | None = None
        """Says which micro-batches are still begun; None: all are."""
        self._latest: MicroBatch | None = None
        """The micro-batch that was read last: it replaces data that do not come, where the results do not count."""
        self._outbox = Outbox()
        self._host_memory = HostMemory(topology.device)
        self._senders: dict[int, ActivationSender] = {}
        self._receivers: dict[int, ActivationReceiver] = {}
        self._gradient_links: dict[tuple[int, int], tuple[Group, int]] = {}
        self._connect()

    def _connect(self) -> None:
        here = self.topology.coordinate.pipe
        for stage, (source, target) in enumerate(pairwise(self.stage_map.ranks)):
            if source == target:
                continue
            forward = self.topology.link("activation", descending=source > target)
            backward = self.topology.link("gradient", descending=source > target)
            if here == source:
                self._senders[stage] = ActivationSender(forward, target, self._outbox, stage)
                self._gradient_links[stage + 1, stage] = backward, target
            elif here == target:
                self._receivers[stage] = ActivationReceiver(forward, source)
                self._gradient_links[stage + 1, stage] = backward, source

    def forget_shapes(self) -> None:
        """Let the next micro-batches have other shapes: headers are sent again. Call this on all pipe ranks."""
        for sender in self._senders.values():
            sender.forget()
        for receiver in self._receivers.values():
            receiver.forget()

    def run(self, actions: Sequence[Action], batches: Iterator[MicroBatch], end: End) -> None:
        """Carry out `actions`; `end` takes the outputs of the last stage.

        Collective: all ranks of the pipe and model axes, each with its own list. If the gate closes, micro-batches
        that no rank has begun are left out on all ranks, the others are finished, and `AskedToLeave` is raised on all
        ranks. A list without some micro-batches is still valid: no micro-batch depends on another.
        """
        step = _Step(self, batches, end)
        gate, first, complete = self.gate, 0, True
        if gate is not None:
            first = gate.reserve_batch(1 + max(action.micro_batch for action in actions))
        try:
            for action in actions:
                if gate is not None and not _may_do(gate, first + action.micro_batch, step, action):
                    complete = False
                    continue
                with self.timer(action):
                    step.do(action)
        finally:
            self._outbox.wait()
            self._host_memory.after_pass()
        if gate is not None and not complete:
            raise AskedToLeave(gate.asked)

    def accept(self) -> None:
        """Let the results of the last `run` count; `AskedToLeave`, on all ranks, if the gate closed before.

        Call this when all ranks have contributed to the results.
        """
        if self.gate is not None:
            self.gate.accept()


def _may_do(gate: Gate, unit: int, step: _Step, action: Action) -> bool:
    """Return whether the gate admits the micro-batch of an action. Data come first: a rank waiting for them may leave.

    Other ranks may have begun the micro-batch and depend on this rank's part. If the results will not count, any data
    will do for that.
    """
    if gate.is_new(unit):
        try:
            with gate.interruption():
                step.load(action.micro_batch)
        except AskedToLeave as asked:
            if not gate.admits(unit):
                return False
            if not gate.leaves_now:  # the results will count, and reading has failed
                raise (asked.__cause__ or asked) from None
            step.fill_in(action.micro_batch)
    return gate.admits(unit)


@final
class _Step:
    """The values in flight during one step."""

    def __init__(self, engine: PipelineEngine, batches: Iterator[MicroBatch], end: End) -> None:
        self.engine = engine
        self._batches = batches
        self._end = end
        self._loaded: dict[int, MicroBatch] = {}
        self._inputs: dict[tuple[int, int], Any] = {}
        """Inputs that are received, and not yet given to their stage."""
        self._outputs: dict[tuple[int, int], Any] = {}
        """Outputs that are computed, and not yet passed on."""
        self._entered: dict[tuple[int, int], list[Tensor]] = {}
        self._left: dict[tuple[int, int], list[Tensor]] = {}
        """Kept for a backward pass of a stage: the tensors of its input and of its output that need a gradient."""
        self._ends: dict[int, tuple[Tensor, Tensor] | None] = {}
        """The starts of the last stage's backward passes."""
        self._gradients: dict[tuple[int, int], list[Tensor]] = {}
        self._undone: dict[tuple[int, int], tuple[list[Tensor], list[Tensor]]] = {}
        """Backward passes of which only the first half is done."""
        self._readers = (0 in engine.stages) + (engine.last in engine.stages)  # per micro-batch
        self._reads: dict[int, int] = {}

    def do(self, action: Action) -> None:
        match action:
            case Forward(micro_batch, stage):
                self._forward(micro_batch, stage)
            case Backward(micro_batch, stage):
                self._backward(micro_batch, stage)
            case BackwardInput(micro_batch, stage):
                self._backward_input(micro_batch, stage)
            case BackwardWeight(micro_batch, stage):
                backward(*self._undone.pop((micro_batch, stage)))
            case Recv(payload="activation"):
                device = self.engine.topology.device
                self._inputs[action.micro_batch, action.target] = self.engine._receivers[action.source].receive(device)
            case Send(payload="activation"):
                device = self.engine.topology.device
                output = self._outputs.pop((action.micro_batch, action.source))
                self.engine._senders[action.source].send(output, device)
            case Recv(payload="gradient"):
                self._receive_gradient(action)
            case Send(payload="gradient"):
                group, peer = self.engine._gradient_links[action.source, action.target]
                for gradient in self._gradients.pop((action.micro_batch, action.target)):
                    self.engine._outbox.send(gradient, group, peer)

    def load(self, micro_batch: int) -> None:
        """Read data up to and including a micro-batch, if this rank reads data at all."""
        while self._readers and micro_batch >= len(self._reads):
            try:
                with self.engine.data_timer():
                    batch = next(self._batches)
            except StopIteration:
                raise ScheduleError(
                    f"the data ended at micro-batch {len(self._reads)} of a step that needs more; a training iterator "
                    "must be endless, an evaluation must ask for as many micro-batches as there are"
                ) from None
            self._put(batch)

    def fill_in(self, micro_batch: int) -> None:
        """Use the data read last for all micro-batches up to this one that have not been read."""
        while self._readers and micro_batch >= len(self._reads):
            if self.engine._latest is None:
                raise ScheduleError(f"there are no data for micro-batch {len(self._reads)}, nor any of before")
            self._put(self.engine._latest)

    def _put(self, batch: MicroBatch) -> None:
        if self.engine.gate is not None:
            self.engine._latest = batch
        self._loaded[len(self._reads)] = batch
        self._reads[len(self._reads)] = self._readers

    def _batch(self, micro_batch: int) -> MicroBatch:
        self.load(micro_batch)
        self._reads[micro_batch] -= 1
        return self._loaded[micro_batch] if self._reads[micro_batch] else self._loaded.pop(micro_batch)

    def _forward(self, micro_batch: int, stage: int) -> None:
        engine = self.engine
        inputs = self._batch(micro_batch).inputs if stage == 0 else self._input(micro_batch, stage)
        output = engine.stages[stage](inputs)
        training = torch.is_grad_enabled()
        if training and stage > 0:
            self._entered[micro_batch, stage] = _differentiable(inputs)
        if stage < engine.last:
            self._outputs[micro_batch, stage] = output
            if training:
                self._left[micro_batch, stage] = _differentiable(output)
            return
        end = self._end.take(output, self._batch(micro_batch).targets)
        if training:
            self._ends[micro_batch] = end

    def _input(self, micro_batch: int, stage: int) -> Any:
        if (micro_batch, stage) in self._inputs:
            return self._inputs.pop((micro_batch, stage))
        made = self._outputs.pop((micro_batch, stage - 1))  # on this rank: cut the graph as a message would
        return tree.map_tensors(lambda tensor: tensor.detach().requires_grad_(tensor.requires_grad), made)

    def _start(self, micro_batch: int, stage: int) -> tuple[list[Tensor], list[Tensor]]:
        """Return the tensors that a backward pass differentiates, and their gradients."""
        if stage < self.engine.last:
            return self._left.pop((micro_batch, stage)), self._gradients.pop((micro_batch, stage))
        if (end := self._ends.pop(micro_batch)) is None:
            raise ScheduleError(f"the end of the pipe ({type(self._end).__name__}) starts no backward pass")
        loss, gradient = end
        return [loss], [gradient]

    def _backward(self, micro_batch: int, stage: int) -> None:
        backward(*self._start(micro_batch, stage))
        if stage > 0:
            needing = self._entered.pop((micro_batch, stage))
            self._hand_on(micro_batch, stage, needing, [tensor.grad for tensor in needing])

    def _backward_input(self, micro_batch: int, stage: int) -> None:
        """Differentiate with respect to the stage's input alone, and keep the graph.

        The second half then runs the whole backward pass, and discards the input's gradient: the same numbers in the
        same order as in an undivided pass, at the price of computing that gradient twice.
        """
        start, gradients = self._undone[micro_batch, stage] = self._start(micro_batch, stage)
        if stage > 0:
            needing = self._entered.pop((micro_batch, stage))
            found: Sequence[Tensor | None] = [None] * len(needing)
            if start and needing:
                found = torch.autograd.grad(start, needing, gradients, retain_graph=True, allow_unused=True)
            self._hand_on(micro_batch, stage, needing, found)

    def _hand_on(self, micro_batch: int, stage: int, inputs: list[Tensor], gradients: Sequence[Tensor | None]) -> None:
        """Store the gradients of a stage's inputs for the stage before: zero for inputs that nothing depends on."""
        self._gradients[micro_batch, stage - 1] = [
            torch.zeros_like(tensor) if gradient is None else gradient
            for tensor, gradient in zip(inputs, gradients, strict=True)
        ]

    @waits
    def _receive_gradient(self, message: Message) -> None:
        group, peer = self.engine._gradient_links[message.source, message.target]
        left = self._left[message.micro_batch, message.target]
        buffers = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in left]
        for work in [ops.receive_start(buffer, group, source=peer) for buffer in buffers]:
            work.wait()
        self._gradients[message.micro_batch, message.target] = buffers


def _differentiable(value: Any) -> list[Tensor]:
    """Return the tensors of a tree that need a gradient."""
    return [tensor for _, tensor in tree.flatten(value) if tensor.requires_grad]
