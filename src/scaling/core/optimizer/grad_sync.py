"""Reduce gradients over the data axis while the backward pass still runs, then over whatever else shares them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import final

from torch import nn

from scaling.core.collectives import ops
from scaling.core.errors import ScheduleError
from scaling.core.nn.parameter import meta
from scaling.core.optimizer.flat_buffer import FlatBuffer, places
from scaling.core.topology.layout import Axis
from scaling.core.topology.topology import Topology


@final
class GradientSync:
    """Starts the reduction of a bucket as soon as its last gradient of the step has arrived.

    With `zero` each data rank receives the sum of its own slice (reduce-scatter: (d-1)/d of the bytes leave a rank),
    else of everything (all-reduce: twice that). Buckets start in one order on all ranks, whatever order autograd
    finds. Then, over few ranks and for few parameters, come the sums over the model axis (`sum_grad_over_model`) and
    over the stages of a tie. Construct it on all ranks alike.
    """

    def __init__(
        self,
        buffers: Sequence[FlatBuffer],
        topology: Topology,
        *,
        contributions: Mapping[nn.Parameter, int],
        ties: Mapping[str, Sequence[int]],
        zero: bool,
    ) -> None:
        self._buffers = buffers
        self._group = topology.group(Axis.DATA)
        self._index, self._parts = topology.index(Axis.DATA), topology.size(Axis.DATA)
        self._zero = zero and self._group is not None
        self._buckets = [(buffer, number) for buffer in buffers for number in range(len(buffer.buckets))]
        first = [0]
        for buffer in buffers:
            first.append(first[-1] + len(buffer.buckets))
        self._expected = [0] * len(self._buckets)
        self._works: list[ops.Pending] = []
        self._extra_sums = _extra_sums(buffers, topology, ties)
        self._hooks = []
        for parameter, (buffer_number, bucket) in places(buffers).items():
            number = first[buffer_number] + bucket
            self._expected[number] += contributions[parameter]
            if self._group is not None:
                self._hooks.append(parameter.register_post_accumulate_grad_hook(self._arrived(number)))
        self._missing = list(self._expected)
        self._next = 0

    def _arrived(self, number: int) -> Callable[[nn.Parameter], None]:
        def hook(parameter: nn.Parameter) -> None:
            if number < self._next:
                raise ScheduleError(
                    f"{meta(parameter).key} has another gradient after the sum over the data-parallel ranks has begun; "
                    "take an optimizer step after each train_step, and checkpoint activations with "
                    "topology.activation_checkpointing_type, or use_reentrant=False, rather than twice in one pass"
                )
            self._missing[number] -= 1
            if self._missing[number] == 0 and number == self._next:
                while self._next < len(self._missing) and self._missing[self._next] <= 0:
                    self._start(self._next)

        return hook

    def _start(self, number: int) -> None:
        self._next = number + 1
        if self._group is None:
            return
        buffer, bucket_number = self._buckets[number]
        bucket = buffer.buckets[bucket_number]
        whole = buffer.gradients[bucket.start : bucket.stop]
        if self._zero:
            own = buffer.gradients[bucket.slice_of(self._index, self._parts)]
            self._works.append(ops.reduce_scatter_start(own, whole, self._group))
        elif (work := ops.all_reduce_start(whole, self._group)) is not None:
            self._works.append(work)

    def finish(self) -> None:
        """Reduce what has not been yet and wait for everything. Collective: all ranks of data, model and ties."""
        while self._next < len(self._buckets):
            self._start(self._next)
        for work in self._works:
            work.wait()
        self._works.clear()
        for buffer, group in self._extra_sums:
            for owned in self.owned(buffer):
                ops.all_reduce(buffer.gradients[owned], group)
        self._missing[:] = self._expected
        self._next = 0

    def owned(self, buffer: FlatBuffer) -> list[slice]:
        """Return the ranges of a buffer this rank updates: its slices of the buckets with ZeRO, else all of it."""
        if not self._zero:
            return [slice(0, buffer.buckets[-1].stop)]
        return [bucket.slice_of(self._index, self._parts) for bucket in buffer.buckets]

    def gather_weights(self) -> None:
        """Give all data ranks the slices each of them updated. Collective: all ranks of the data axis; all-gather."""
        if not self._zero or self._group is None:
            return
        works = []
        for buffer in self._buffers:
            for bucket in buffer.buckets:
                own = buffer.weights[bucket.slice_of(self._index, self._parts)]
                works.append(ops.all_gather_start(buffer.weights[bucket.start : bucket.stop], own, self._group))
        for work in works:
            work.wait()

    def close(self) -> None:
        """Remove the hooks from the parameters."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


def _extra_sums(
    buffers: Sequence[FlatBuffer], topology: Topology, ties: Mapping[str, Sequence[int]]
) -> list[tuple[FlatBuffer, ops.Group]]:
    """Return what is summed over model replicas, then what over the stages of a tie, in the order in which it is.

    Every rank takes part in making every group, also those that only other stages need: they tell each other which.
    """
    wanted = [buffer.kind.model_replicas for buffer in buffers if buffer.kind.sum_grad_over_model]
    said = topology.exchange("sizes of model replica groups", json.dumps(wanted))
    sizes = sorted({size for sizes in said if sizes is not None for size in json.loads(sizes)})
    replicas = {size: topology.model_replica_group(size) for size in sizes}
    tied = {key: topology.tie_group(key, ranks) for key, ranks in sorted(ties.items())}
    over_replicas = [(b, replicas[b.kind.model_replicas]) for b in buffers if b.kind.sum_grad_over_model]
    # Stages hold their ties in different orders. Going by name, none of them waits for one that waits for it.
    over_stages = [(b, group) for key, group in tied.items() for b in buffers if b.kind.tied == key]
    return [(buffer, group) for buffer, group in (*over_replicas, *over_stages) if group is not None]
