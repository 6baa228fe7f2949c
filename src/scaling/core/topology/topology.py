"""Topology: one process's place in the layout, its device, and the process groups it communicates through."""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Callable, Sequence
from math import prod
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import Self

from scaling.core.collectives import ops
from scaling.core.errors import LayoutError
from scaling.core.topology.gate import Gate
from scaling.core.topology.launch import LaunchContext
from scaling.core.topology.layout import Axis, Coordinate, Layout
from scaling.core.topology.placement import Placement
from scaling.core.topology.rendezvous import connect_store, leave_store
from scaling.core.topology.rng import RngTracker
from scaling.core.topology.watch import Watch
from scaling.core.waiting import waits

if TYPE_CHECKING:
    from scaling.core.topology.config import TopologyConfig

T = TypeVar("T")

_NEVER = datetime.timedelta(days=365)
"""Timeout given to torch: the watch judges instead, since it knows which ranks are missing or were stopped."""


class Topology:
    """One process's view of the run. Passed explicitly to everything that needs it.

    For a single process (`Topology.single()`) every group is None and all layers work undistributed. Use it as a
    context manager: leaving it destroys the process groups.
    """

    def __init__(self, layout: Layout, rank: int, device: torch.device, *, sequence_parallel: bool = False) -> None:
        self.layout = layout
        self.rank = rank
        self.device = device
        self.coordinate: Coordinate = layout.coordinate(rank)
        self.sequence_parallel = sequence_parallel and layout.model > 1
        self.rng = RngTracker(self.coordinate, device)
        self._groups: dict[str, dist.ProcessGroup] = {}
        self._members: dict[str, Sequence[int]] = {}
        self._axis_groups: dict[tuple[Axis, ...], dist.ProcessGroup | None] = {}
        self._store: dist.Store | None = None
        self._watch: Watch | None = None
        self._messages = 0
        self._share_memory = False
        self.gate = Gate()
        """Lets the ranks stop after the same unit of work."""
        self.leaving = contextlib.ExitStack()
        """Clean-up at the end of `close`, once the ranks have finished with each other, such as restoring signal
        handlers."""

    @classmethod
    def single(cls, device: str = "cpu") -> Self:
        """Return the topology of a process that works alone."""
        return cls(Layout(), 0, torch.device(device))

    @classmethod
    @waits
    def connect(
        cls, config: TopologyConfig, launch: LaunchContext | None = None, *, digest: str = "", run_name: str = "scaling"
    ) -> Self:
        """Join the other processes of the run. Collective: all ranks.

        Each attempt has its own store; `digest` (of the resolved configuration) is compared over it before the first
        collective, so that processes with different settings end with a message instead of a hang. Processes that
        connect more than once need another MASTER_PORT each time, unless their launcher serves the store.
        """
        launch = launch or LaunchContext.from_environment()
        config = config.with_launch(rank=launch.rank, world_size=launch.world_size, local_slot=launch.local_rank)
        layout = config.layout
        device = choose_device(config.device, launch.local_rank)
        topology = cls(layout, launch.rank, device, sequence_parallel=config.sequence_parallel)
        if layout.world_size > 1:
            timeout = datetime.timedelta(seconds=config.process_group_timeout_seconds)
            store = connect_store(launch, digest=digest, run_name=run_name, timeout=timeout)
            topology._start_watch(store, timeout.total_seconds())
            dist.init_process_group(
                backend="nccl" if device.type == "cuda" else "gloo",
                store=store,
                rank=launch.rank,
                world_size=launch.world_size,
                # With a GPU, the host is seldom in a collective: it waits for the device, in many places. Where the
                # watch does not know such a place, NCCL's own timeout ends the process.
                timeout=2 * timeout if device.type == "cuda" else _NEVER,
                device_id=device if device.type == "cuda" else None,
            )
            topology._store = store
            topology._share_memory = config.shared_memory
            topology._open_memory(topology.world)
            for axis in Axis:
                topology.group(axis)
        return topology

    def __deepcopy__(self, memo: dict[int, Any]) -> Topology:
        """Return itself: a copied layer is on the same rank."""
        return self

    def _start_watch(self, store: dist.Store, patience: float) -> None:
        self.gate.shared = True
        store.set_timeout(_NEVER)
        world_size = self.layout.world_size
        self._watch = Watch(store, rank=self.rank, world_size=world_size, gate=self.gate, patience=patience)
        self._watch.start()

    def size(self, *axes: Axis) -> int:
        """Return the number of ranks along an axis, or along several together."""
        return prod(map(self.layout.size, axes))

    def index(self, *axes: Axis) -> int:
        """Return this process's position along an axis, or in the joint group of several."""
        position = 0
        for axis in Axis:
            if axis in axes:
                position = position * self.layout.size(axis) + self.coordinate.index(axis)
        return position

    def group(self, *axes: Axis) -> dist.ProcessGroup | None:
        """Return the group of ranks that differ from this one along `axes` only; None where that is this rank alone.

        The group's ranks are in rank order. The group is cached, since layers ask for it in every forward pass.
        Collective for several axes: all ranks, the first time.
        """
        if axes not in self._axis_groups:
            wide = tuple(axis for axis in Axis if axis in axes and self.size(axis) > 1)
            if wide != axes:
                self._axis_groups[axes] = self.group(*wide)
            else:
                purpose = " ".join(["axis", *(axis.value for axis in axes)])
                ranks = self.layout.group(axes, self.rank)
                self._axis_groups[axes] = self.subgroup(purpose, ranks) if len(ranks) > 1 else None
        return self._axis_groups[axes]

    def named(self, group: dist.ProcessGroup) -> tuple[str, Sequence[int]]:
        """Return the purpose of a group of this topology, and its ranks in order.

        The purpose is the name of the group's axis, the names of several axes (`pipe data`), or `world` for the group
        of all ranks.
        """
        for purpose, known in self._groups.items():
            if known is group:
                return purpose.removeprefix("axis "), self._members[purpose]
        return "world", range(self.layout.world_size)

    @property
    def world(self) -> dist.ProcessGroup | None:
        """Return the group of all ranks; None for a process that works alone."""
        return dist.group.WORLD if self._store is not None else None

    @property
    def store(self) -> dist.Store | None:
        """Return the key-value store all ranks of this attempt share; None for a process that works alone."""
        return self._store

    @waits
    def subgroup(self, purpose: str, ranks: Sequence[int], *, urgent: bool = False) -> dist.ProcessGroup | None:
        """Return a group of the given global ranks, ordered by rank; None for a rank that stays alone.

        Collective: *all* ranks, in the same order of purposes, each with the ranks of its own group (only itself, if it
        is in none). A group is made once per purpose: NCCL serialises the messages of a group, so independent streams
        of messages need different purposes. Only the members wait for each other; but torch derives a group's name from
        the number of groups its rank has made, which is why a rank that stays alone makes one too.

        On a GPU the kernels of an `urgent` group run before others that wait for a free multiprocessor: its messages
        are small, and a rank is idle until they arrive.
        """
        if self._store is None:
            return None
        if purpose not in self._groups:
            self._groups[purpose] = dist.new_group(
                sorted(ranks), pg_options=_options(self.device, urgent=urgent), use_local_synchronization=True
            )
            self._members[purpose] = sorted(ranks)
            self._open_memory(self._groups[purpose], messages=urgent)
        group = self._groups[purpose]
        return group if group.size() > 1 else None

    def _open_memory(self, group: dist.ProcessGroup | None, *, messages: bool = False) -> None:
        """Let a group use shared memory, where it can, for collectives or for messages. Collective: its ranks."""
        if group is not None and self._share_memory and self.device.type == "cpu":
            (ops.shared.open_messages if messages else ops.shared.open)(group)

    def link(self, payload: str, *, descending: bool) -> dist.ProcessGroup | None:
        """Return the group of this pipe column for messages that cross stage boundaries, its ranks in pipe order.

        Activations and gradients have separate groups (`payload`), and so have boundaries whose next stage is on a
        lower rank (`descending`: with several stages on each rank). Between two ranks the messages of a group then flow
        in one direction, in the same order on both ends, and no send can block a receive. Collective: all ranks.
        """
        ranks = self.layout.group(Axis.PIPE, self.rank)
        purpose = f"{payload} descending" if descending else payload
        return self.subgroup(purpose, ranks, urgent=True) if len(ranks) > 1 else None

    def holders_group(self, axis: Axis, placement: Placement) -> dist.ProcessGroup | None:
        """Return the group of this rank and those along `axis` that hold the same values by `placement`.

        None for a rank that is not among them. Collective: all ranks.
        """
        index, size = self.index(axis), self.size(axis)
        holders = placement.holders(index, size)
        if len(holders) == size:
            return self.group(axis)
        members = holders if index in holders else [index]
        ranks = [self.layout.rank_along(axis, self.rank, member) for member in members]
        which = placement.copies if placement.indices is None else list(placement.indices)
        return self.subgroup(f"{axis.value} {which}", ranks)

    def agree(self, purpose: str, value: Any, join: Callable[[list[Any]], T]) -> T:
        """Return `join` of the values that all ranks passed, in rank order. Collective: all ranks.

        Uses the store, not the network fabric: for values that are exchanged once, before or beside training, such as
        names, plans and problems. Only rank 0 sees all values and joins them; the other ranks send one value and
        receive the answer. Both travel as JSON. An error that must be raised on all ranks is raised from the answer,
        not in `join`.
        """
        values = self.gather(purpose, value)
        return cast(T, self.broadcast(purpose, None if values is None else join(values)))

    @waits
    def gather(self, purpose: str, value: Any) -> list[Any] | None:
        """Return the values that all ranks passed, in rank order, on rank 0, None elsewhere. Collective: all ranks."""
        if self._store is None:
            return [value]
        prefix = self._next_message(purpose)
        if self.rank != 0:
            self._store.set(f"{prefix}/{self.rank}", json.dumps(value))
            return None
        keys = [f"{prefix}/{rank}" for rank in range(1, self.layout.world_size)]
        return [value, *map(json.loads, self._store.multi_get(keys))]

    @waits
    def broadcast(self, purpose: str, value: T) -> T:
        """Return the value that rank 0 passed, whatever the others pass. Collective: all ranks."""
        if self._store is None:
            return value
        key = self._next_message(purpose)
        if self.rank == 0:
            self._store.set(key, json.dumps(value))
            return value
        return cast(T, json.loads(self._store.get(key)))

    def share(self, tensor: Tensor, axis: Axis, *, source: int = 0) -> Tensor:
        """Overwrite a tensor with that of the rank at `source` along an axis. Collective: the ranks along the axis."""
        return ops.broadcast(tensor, self.group(axis), source=source)

    def smallest(self, value: int, *axes: Axis) -> int:
        """Return the smallest value that the ranks along some axes passed. Collective: these ranks."""
        found = torch.tensor(-value, dtype=torch.int64, device=self.device)
        for axis in axes:
            ops.all_reduce(found, self.group(axis), maximum=True)
        return -int(found)

    def own_prefix(self, purpose: str) -> str:
        """Return a key prefix for one user of the store, a different one at each call.

        Sends nothing, but all ranks must call it in the same order, also relative to `agree`, `gather` and `broadcast`.
        """
        return self._next_message(purpose)

    def _next_message(self, purpose: str) -> str:
        """Return the key of the next message. By now all ranks must have sent or read the same number of messages."""
        self._messages += 1
        return f"message/{self._messages}/{purpose}"

    def close(self) -> None:
        """Destroy the process groups. Safe to call twice."""
        for group in (self.world, *self._groups.values()):
            if group is not None:
                ops.shared.close(group)
        self._groups.clear()
        self._axis_groups.clear()
        if self._watch is not None:
            self._watch.stop()
            self._watch = None
        if self._store is not None:
            self._store = None
            with contextlib.suppress(Exception):  # a broken peer must not hide the error that brought us here
                dist.destroy_process_group()
        self.leaving.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._store is not None:  # rank 0 may serve the store, and others still read from it
            leave_store(self._store, world_size=self.layout.world_size)
        if kind is not None and self._watch is not None:
            self._watch.let_it_end()
        self.close()


def _options(device: torch.device, *, urgent: bool) -> Any:
    """Return the options of a new group: on a GPU, a high-priority stream if it is `urgent`."""
    if device.type != "cuda" or not urgent:
        return None
    options: Any = dist.ProcessGroupNCCL.Options(is_high_priority_stream=True)
    return options


def first_given(values: Sequence[T | None]) -> T | None:
    """Return the first value that is not None, None where there is none: a `join` for `Topology.agree`."""
    return next((value for value in values if value is not None), None)


def choose_device(wanted: str, local_rank: int) -> torch.device:
    """Return this process's device. `auto` chooses GPU number `local_rank` where there are GPUs, else the CPU."""
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise LayoutError("topology.device is cuda, but torch sees no GPU; set topology.device to cpu or auto")
    if local_rank >= torch.cuda.device_count():
        raise LayoutError(
            f"this machine has {torch.cuda.device_count()} visible GPUs, but process {local_rank} (counted from 0) "
            "needs one of its own; start fewer processes per machine or set topology.device to cpu"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
