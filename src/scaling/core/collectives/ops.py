"""Every collective call the library makes, in one place; a group of None is an axis of size one and costs nothing.

Names follow the effect, and each function states what it communicates. Versions of torch differ in names:
`reduce_scatter_tensor` and `all_gather_into_tensor` became `reduce_scatter_single` and `all_gather_single` in 2.13.

On a CPU, ranks of one machine use shared memory (`exchanges.py`, `mailboxes.py`) where the results are bitwise the
same. Sums over more than two ranks depend on their order, and gloo, which connects to other machines, has an order of
its own. In shared memory, a started collective runs when somebody waits for it or for a later one of the group: all
ranks must wait in the same order, just as they must call in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, final

import torch
import torch.distributed as dist
from torch import Tensor

from scaling.core.collectives.exchanges import Exchanges
from scaling.core.collectives.mailboxes import Mailboxes
from scaling.core.collectives.observed import observed
from scaling.core.waiting import waits

Group = dist.ProcessGroup | None
Work = dist.Work


class Pending(Protocol):
    """Communication under way."""

    def wait(self) -> object:
        """Wait until the communication is done (on a GPU: make the current stream wait)."""
        ...


@final
class Several:
    """Several works that the caller waits for as one."""

    def __init__(self, works: Sequence[Work | None]) -> None:
        self.works = [work for work in works if work is not None]

    @waits
    def wait(self) -> None:
        """Wait until all are done."""
        for work in self.works:
            work.wait()


_reduce_scatter: Callable[..., Any] = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather: Callable[..., Any] = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_MAX = dist.ReduceOp.MAX
_SUM = dist.ReduceOp.SUM


@final
class SharedGroups:
    """The exchanges and mailboxes of groups whose ranks share memory; torch's group object accepts no attributes."""

    def __init__(self) -> None:
        self.exchanges: dict[dist.ProcessGroup, Exchanges] = {}
        self.mailboxes: dict[dist.ProcessGroup, Mailboxes] = {}

    def open(self, group: dist.ProcessGroup) -> None:
        """Let a group's collectives use shared memory from now on, if all its ranks can. Collective: the group."""
        if (exchanges := Exchanges.open(group)) is not None:
            self.exchanges[group] = exchanges

    def open_messages(self, group: dist.ProcessGroup) -> None:
        """Let messages within a group use shared memory from now on, if all its ranks can. Collective: the group."""
        if (mailboxes := Mailboxes.open(group)) is not None:
            self.mailboxes[group] = mailboxes

    def close(self, group: dist.ProcessGroup) -> None:
        """Release a group's shared memory."""
        if (exchanges := self.exchanges.pop(group, None)) is not None:
            exchanges.memory.close()
        if (mailboxes := self.mailboxes.pop(group, None)) is not None:
            mailboxes.close()


shared = SharedGroups()
"""The shared groups of this process. `Topology` opens and closes the memory of its own groups."""


def _exchanges(tensor: Tensor, group: dist.ProcessGroup, *, sums: bool = False) -> Exchanges | None:
    if tensor.device.type != "cpu" or (sums and group.size() > 2):
        return None
    return shared.exchanges.get(group)


@waits
@observed
def all_reduce(tensor: Tensor, group: Group, *, maximum: bool = False) -> Tensor:
    """Sum (or take the maximum of) `tensor` over the group, in place. Collective: all ranks of the group."""
    if group is None:
        return tensor
    if exchanges := _exchanges(tensor, group, sums=not maximum):
        exchanges.now().all_reduce(tensor, maximum=maximum)
    else:
        dist.all_reduce(tensor, op=_MAX if maximum else _SUM, group=group)
    return tensor


@waits
@observed
def all_reduce_start(tensor: Tensor, group: Group) -> Pending | None:
    """Start summing `tensor` over the group in place; wait on the result before reading it."""
    if group is None:
        return None
    if exchanges := _exchanges(tensor, group, sums=True):
        return exchanges.defer(lambda: exchanges.all_reduce(tensor))
    work: Work = dist.all_reduce(tensor, group=group, async_op=True)
    return work


@waits
@observed
def reduce_scatter_start(output: Tensor, tensor: Tensor, group: dist.ProcessGroup) -> Pending:
    """Start summing the flat `tensor` over the group, each rank keeping its equal slice of the result in `output`.

    `output` may be that slice of `tensor`; the rest of `tensor` is undefined afterwards.
    """
    if exchanges := _exchanges(tensor, group, sums=True):
        return exchanges.defer(lambda: exchanges.reduce_scatter(output, tensor))
    if group.size() == 2 and _is_gloo(tensor) and _is_own_slice(output, tensor, group):
        # Gloo's reduce-scatter takes 2.6 times as long as one reduction to each of two ranks (4 MB, two cores). With
        # more ranks both take the same time, and the sums of reductions would not be bitwise those of all_reduce.
        slices = enumerate(tensor.chunk(2))
        return Several([dist.reduce(part, group_dst=rank, group=group, async_op=True) for rank, part in slices])
    work: Work = _reduce_scatter(output, tensor, group=group, async_op=True)
    return work


@waits
@observed
def reduce_scatter(output: Tensor, tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Sum `tensor` over the group, each rank keeping its equal slice (along dimension 0) in `output`."""
    if exchanges := _exchanges(tensor, group, sums=True):
        exchanges.now().reduce_scatter(output, tensor)
    else:
        _reduce_scatter(output, tensor, group=group)
    return output


@waits
@observed
def all_gather_start(output: Tensor, tensor: Tensor, group: dist.ProcessGroup) -> Pending:
    """Start joining every rank's flat `tensor` into `output`; `tensor` may be this rank's slice of `output`."""
    if exchanges := _exchanges(tensor, group):
        return exchanges.defer(lambda: exchanges.all_gather(output, tensor))
    if _is_gloo(tensor) and _is_own_slice(tensor, output, group):
        # Gloo's all-gather takes about twice as long as one broadcast from each rank (4 MB, 2 and 4 ranks).
        slices = enumerate(output.chunk(group.size()))
        return Several([dist.broadcast(part, group_src=rank, group=group, async_op=True) for rank, part in slices])
    work: Work = _all_gather(output, tensor, group=group, async_op=True)
    return work


@waits
@observed
def all_gather(output: Tensor, tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Join every rank's `tensor` along dimension 0 into `output`."""
    if exchanges := _exchanges(tensor, group):
        exchanges.now().all_gather(output, tensor)
    else:
        _all_gather(output, tensor, group=group)
    return output


def _is_gloo(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def _is_own_slice(part: Tensor, whole: Tensor, group: dist.ProcessGroup) -> bool:
    return part.data_ptr() == whole.data_ptr() + group.rank() * part.numel() * part.element_size()


@waits
@observed
def broadcast(tensor: Tensor, group: Group, *, source: int) -> Tensor:
    """Overwrite `tensor` on every rank of the group with the tensor of the group's rank `source`."""
    if group is None:
        return tensor
    if exchanges := _exchanges(tensor, group):
        exchanges.now().broadcast(tensor, source)
    else:
        dist.broadcast(tensor, group=group, group_src=source)
    return tensor


@waits
def send_start(tensor: Tensor, group: Group, *, to: int) -> Work | None:
    """Start sending `tensor` to the group's rank `to`; it must live until the work is done. None: the work is done."""
    if group is not None and (mailboxes := shared.mailboxes.get(group)) is not None:
        mailboxes.send(tensor, to)
        return None
    work = dist.isend(tensor, group=group, group_dst=to)
    assert work is not None  # None only on ranks outside the group, which never call this
    return work


@waits
def receive(tensor: Tensor, group: Group, *, source: int) -> Tensor:
    """Fill `tensor` with the next message from the group's rank `source`."""
    receive_start(tensor, group, source=source).wait()
    return tensor


@waits
def receive_start(tensor: Tensor, group: Group, *, source: int) -> Pending:
    """Start filling `tensor` with the next message from the group's rank `source`."""
    if group is not None and (mailboxes := shared.mailboxes.get(group)) is not None:
        return mailboxes.receive_later(tensor, source)
    work = dist.irecv(tensor, group=group, group_src=source)
    assert work is not None
    return work


def gather_slices(tensor: Tensor, group: dist.ProcessGroup, *, dim: int) -> Tensor:
    """Join every rank's equal `tensor` along `dim`. All-gather over the group."""
    parts = group.size()
    tensor = tensor.contiguous()
    joined = torch.empty((parts, *tensor.shape), dtype=tensor.dtype, device=tensor.device)
    all_gather(joined.view(-1), tensor.view(-1), group)
    dim = dim % tensor.dim()
    if dim == 0:
        return joined.flatten(0, 1)
    return joined.movedim(0, dim).flatten(dim, dim + 1)


@waits
@observed
def gather(tensor: Tensor, group: Group, *, to: int) -> Tensor | None:
    """Return every rank's equally large `tensor`, stacked by rank, on the group's rank `to`; None on the others.

    Communication: each other rank sends its tensor once to rank `to`.
    """
    if group is None:
        return tensor.unsqueeze(0)
    tensor = tensor.contiguous()
    if group.rank() != to:
        dist.gather(tensor, None, group=group, group_dst=to)
        return None
    stacked = torch.empty((group.size(), *tensor.shape), dtype=tensor.dtype, device=tensor.device)
    dist.gather(tensor, list(stacked.unbind()), group=group, group_dst=to)
    return stacked


def scatter_sum(tensor: Tensor, group: dist.ProcessGroup, *, dim: int) -> Tensor:
    """Sum `tensor` over the group and keep this rank's slice of `dim`. Reduce-scatter over the group."""
    parts = group.size()
    dim = dim % tensor.dim()
    by_rank = tensor.unflatten(dim, (parts, tensor.shape[dim] // parts)).movedim(dim, 0).contiguous()
    output = torch.empty(by_rank.shape[1:], dtype=tensor.dtype, device=tensor.device)
    reduce_scatter(output.view(-1), by_rank.view(-1), group)
    return output
