"""Sum gradients over the batch while the backward pass still runs, then over all other ranks that share them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from torch import nn

from scaling.core.collectives import ops
from scaling.core.errors import ScheduleError
from scaling.core.nn.parameter import meta
from scaling.core.optimizer.flat_buffer import FlatBuffer, places
from scaling.core.topology.layout import Axis
from scaling.core.topology.placement import Placement
from scaling.core.topology.topology import Topology
from scaling.core.waiting import waits


@final
class GradientSync:
    """The reduction of gradients in buckets, each started as soon as its last gradient of the step has arrived.

    With `zero`, each rank along the axes that split the batch receives the sum of its own slice (reduce-scatter:
    (d-1)/d of the bytes leave a rank); without it, the sum of everything (all-reduce: twice that). Reductions start in
    the same order on all ranks, whatever order autograd finds. Then follow the sums over other ranks that hold the same
    values and a part of their gradient (model replicas, stages of a tie): few ranks and few parameters. All ranks must
    construct it.
    """

    def __init__(
        self,
        buffers: Sequence[FlatBuffer],
        topology: Topology,
        *,
        contributions: Mapping[nn.Parameter, int],
        zero: bool,
    ) -> None:
        self._buffers = buffers
        self._groups, self._other_sums = _make_groups(buffers, topology)
        axes = [buffer.kind.placements.batch_axes(topology.layout) for buffer in buffers]
        self._position = [(topology.index(*own), topology.size(*own)) for own in axes]
        self._zero = zero
        self._buckets = [
            (number, bucket) for number, buffer in enumerate(buffers) for bucket in range(len(buffer.buckets))
        ]
        first = [0]
        for buffer in buffers:
            first.append(first[-1] + len(buffer.buckets))
        self._expected = [0] * len(self._buckets)
        self._works: list[ops.Pending] = []
        self._hooks = []
        for parameter, (buffer_number, bucket) in places(buffers).items():
            number = first[buffer_number] + bucket
            self._expected[number] += contributions[parameter]
            if self._groups[buffer_number] is not None:
                self._hooks.append(parameter.register_post_accumulate_grad_hook(self._arrived(number)))
        self._missing = list(self._expected)
        self._next = 0

    def sharded(self, number: int) -> bool:
        """Return whether each rank along the batch axes updates only its own slice of buffer `number`."""
        return self._zero and self._groups[number] is not None

    def _arrived(self, number: int) -> Callable[[nn.Parameter], None]:
        def hook(parameter: nn.Parameter) -> None:
            if number < self._next:
                raise ScheduleError(
                    f"{meta(parameter).name} has another gradient after the sum over the data-parallel ranks has "
                    "begun; take an optimizer step after each train_step, and checkpoint activations with "
                    "topology.activation_checkpointing_type, or use_reentrant=False, rather than twice in one pass"
                )
            self._missing[number] -= 1
            if self._missing[number] == 0 and number == self._next:
                while self._next < len(self._missing) and self._missing[self._next] <= 0:
                    self._start(self._next)

        return hook

    def _start(self, number: int) -> None:
        self._next = number + 1
        buffer_number, bucket_number = self._buckets[number]
        group, buffer = self._groups[buffer_number], self._buffers[buffer_number]
        if group is None:
            return
        bucket = buffer.buckets[bucket_number]
        whole = buffer.gradients[bucket.start : bucket.stop]
        if self._zero:
            own = buffer.gradients[bucket.slice_of(*self._position[buffer_number])]
            self._works.append(ops.reduce_scatter_start(own, whole, group))
        elif (work := ops.all_reduce_start(whole, group)) is not None:
            self._works.append(work)

    @waits
    def finish(self) -> None:
        """Reduce the remaining buckets and wait for all reductions. Collective: all ranks that share a parameter."""
        while self._next < len(self._buckets):
            self._start(self._next)
        for work in self._works:
            work.wait()
        self._works.clear()
        for number, group in self._other_sums:
            for owned in self.owned(number):
                ops.all_reduce(self._buffers[number].gradients[owned], group)
        self._missing[:] = self._expected
        self._next = 0

    def owned(self, number: int) -> list[slice]:
        """Return the ranges of buffer `number` that this rank updates: with ZeRO its slices of buckets, else all."""
        buckets = self._buffers[number].buckets
        if not self.sharded(number):
            return [slice(0, buckets[-1].stop)]
        return [bucket.slice_of(*self._position[number]) for bucket in buckets]

    @waits
    def gather_weights(self) -> None:
        """All-gather the updated slices along the batch axes. Collective: all ranks along these axes."""
        works = []
        for number, buffer in enumerate(self._buffers):
            group = self._groups[number]
            if not self._zero or group is None:
                continue
            for bucket in buffer.buckets:
                own = buffer.weights[bucket.slice_of(*self._position[number])]
                works.append(ops.all_gather_start(buffer.weights[bucket.start : bucket.stop], own, group))
        for work in works:
            work.wait()

    def close(self) -> None:
        """Remove the hooks from the parameters."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


def _make_groups(
    buffers: Sequence[FlatBuffer], topology: Topology
) -> tuple[list[ops.Group], list[tuple[int, ops.Group]]]:
    """Return each buffer's group along the axes that split the batch, and (buffer, group) of all other sums, in order.

    Every rank takes part in creating every group, also those that only other stages need; the ranks first exchange
    which groups they need.
    """
    layout = topology.layout
    batch = [buffer.kind.placements.batch_axes(layout) for buffer in buffers]
    other = [buffer.kind.placements.other_sums(layout) for buffer in buffers]
    mine = [batch, [(axis, placement.copies, placement.indices) for sums in other for axis, placement in sums]]
    said = topology.agree("groups of gradient sums", mine, _distinct)
    for axes in sorted({tuple(axes) for batches, _ in said for axes in batches}):
        topology.group(*map(Axis, axes))
    everyone = {
        (Axis(axis), Placement(copies, None if indices is None else tuple(indices), gradient_in_parts=True))
        for _, sums in said
        for axis, copies, indices in sums
    }
    groups = {which: topology.holders_group(*which) for which in sorted(everyone, key=_order)}
    # Pairs of stages share different parameters. With one order of groups, no two ranks wait for each other; within a
    # group, all ranks have the same kinds.
    found = [
        (_order(which), buffer.kind.order, number, groups[which])
        for number, (buffer, sums) in enumerate(zip(buffers, other, strict=True))
        for which in sums
    ]
    found.sort(key=lambda entry: entry[:2])
    sums_in_order: list[tuple[int, ops.Group]] = [(number, group) for _, _, number, group in found if group is not None]
    return [topology.group(*axes) for axes in batch], sums_in_order


def _distinct(values: Sequence[Any]) -> list[Any]:
    """Return the distinct values, in the form in which they are sent."""
    return [json.loads(text) for text in sorted({json.dumps(value) for value in values})]


def _order(which: tuple[Axis, Placement]) -> tuple[Any, ...]:
    axis, placement = which
    return axis.value, placement.copies or 0, placement.indices or ()
