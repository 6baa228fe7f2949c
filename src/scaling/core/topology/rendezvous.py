"""Bring the processes of one attempt together in a store of their own, and refuse processes that do not fit.

All processes connect to one base store. It may outlive an attempt (an agent that restarts its processes keeps its
store, and with it the addresses of dead processes), so nothing in it is trusted as it stands. Rank 0 publishes a fresh
nonce; the keys below that nonce are the store of this attempt. The other ranks sign in there and wait for rank 0's
verdict, which lists the signatures that rank 0 has seen: in an agent's store, a rank accepts only a verdict that lists
its own signature. For the verdict, the ranks are also compared with each other, before any collective: when sizes
differ, gloo ends a process in a way that cannot be caught.

On one machine the verdict also says where rank 0 serves a store for the rest of the run, so that the ranks can still
save and leave together when their agent is killed. Across machines the agent's store remains the only place that all
ranks are known to reach.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import TypedDict

import torch.distributed as dist

from scaling.core.errors import ConfigError, HangError, LayoutError, ScalingError
from scaling.core.topology.base_store import LOOPBACK, open_base_store, poll_until, serve_this_machine
from scaling.core.topology.launch import LaunchContext
from scaling.core.topology.ranks import enumerate_ranks

_log = logging.getLogger(__name__)

_CURRENT = "scaling/attempt"
_SKEW_SECONDS = 2.0
_LINGER_SECONDS = 5.0
"""How long rank 0, which may serve the store, gives the others to read why the run cannot start."""


class _Problem(TypedDict):
    """An error as it is sent through the store."""

    kind: str
    message: str


class _Verdict(TypedDict):
    """The decision of rank 0: about whom, the problem (if any), and when (seconds since the epoch by its clock)."""

    signatures: list[str]
    problem: _Problem | None
    time: float
    port: int | None
    """Port at which rank 0 serves the store of this attempt; None: the store in which the processes met is used."""


@dataclass(frozen=True, kw_only=True)
class _Member:
    """One process's description of itself at sign-in."""

    rank: int
    world_size: int
    digest: str
    run_name: str
    job_id: str | None
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    signature: str = field(default_factory=lambda: secrets.token_hex(16))

    def is_of_another_run(self, other: _Member) -> bool:
        if self.job_id is not None and other.job_id is not None:
            return self.job_id != other.job_id
        return self.run_name != other.run_name

    @property
    def run(self) -> str:
        return f"run {self.run_name!r}" + (f" ({self.job_id})" if self.job_id else "")

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def connect_store(launch: LaunchContext, *, digest: str, run_name: str, timeout: timedelta) -> dist.Store:
    """Meet the other processes and return the store of this attempt. Collective: all ranks.

    `digest` identifies the configuration and must be the same on every rank; `run_name` names the run in messages.
    Where ranks do not fit together, all of them raise the same error, which names the ranks: `ConfigError` where
    digests differ, `LayoutError` where a rank is claimed twice or the processes disagree about their number,
    `HangError` where some did not arrive within `timeout`. A process that finds another run at the meeting place, or a
    rank 0 whose port is taken, raises `LayoutError` alone.
    """
    if launch.world_size == 1:
        return dist.HashStore()
    deadline = time.monotonic() + timeout.total_seconds()
    me = _Member(rank=launch.rank, world_size=launch.world_size, digest=digest, run_name=run_name, job_id=launch.job_id)
    base = open_base_store(launch, deadline)
    try:
        if launch.rank == 0:
            store = _gather(base, me, deadline, timeout, serves=launch.agent_store and launch.one_machine)
        else:
            store = _join(base, me, deadline, timeout, may_be_stale=launch.agent_store)
    except dist.DistNetworkError as error:
        raise ScalingError(
            f"rank {launch.rank} lost the store while the processes were meeting: rank 0 or its launcher ended, and "
            "its message says why"
        ) from error
    store.set_timeout(timeout)
    return store


def leave_store(store: dist.Store, *, world_size: int, timeout: timedelta = timedelta(seconds=60)) -> bool:
    """Wait until every rank has finished with `store`; return False where some did not arrive. Collective: all ranks.

    For the end of a successful run: rank 0 may serve the store, and a launcher stops all processes as soon as one has
    ended with a status other than 0.
    """
    try:
        store.add("left", 1)
        for _ in poll_until(time.monotonic() + timeout.total_seconds()):
            if store.add("left", 0) >= world_size:
                return True
    except dist.DistNetworkError:  # rank 0 saw the last rank arrive and is gone
        return True
    return False


def _gather(base: dist.Store, me: _Member, deadline: float, timeout: timedelta, *, serves: bool) -> dist.Store:
    """Open an attempt, as rank 0: wait for all signatures, compare the members, publish the verdict and act on it."""
    nonce = secrets.token_hex(16)
    store = dist.PrefixStore(f"scaling/{nonce}", base)
    base.set(_CURRENT, json.dumps({"nonce": nonce, "host": asdict(me)}))
    problem: _Problem | None = None
    signatures: list[str] = []
    for _ in poll_until(deadline):
        if store.check(["objection"]):
            objection = json.loads(store.get("objection"))
            problem, signatures = objection["problem"], [objection["signature"]]
            break
        current = json.loads(base.get(_CURRENT))
        if current["nonce"] != nonce:  # that attempt's rank 0 no longer sees ours, so object there
            problem = _double(_Member(**current["host"]), me)
            _object(dist.PrefixStore(f"scaling/{current['nonce']}", base), me, problem)
            break
        if store.add("arrived", 0) == me.world_size - 1:
            break
    members = [me, *_members(store, me.world_size)]
    if problem is None and (missing := _missing(members, me)):
        problem = _absence(missing, me, timeout)
    problem = problem or _difference(members)
    signatures = sorted({*signatures, *(member.signature for member in members)})
    own = serve_this_machine(0, setting="MASTER_PORT") if serves and problem is None else None
    port = None if own is None else own.port
    verdict = _Verdict(signatures=signatures, problem=problem, time=time.time(), port=port)
    store.set("verdict", json.dumps(verdict))
    if problem is not None:
        _confirm_reading(store, me)
        _linger(store, me, verdict)
        raise _exception(problem)
    return store if own is None else own


def _linger(store: dist.Store, me: _Member, verdict: _Verdict) -> None:
    """Wait until all processes that signed in, even after the verdict, have read why the run cannot start."""
    for _ in poll_until(time.monotonic() + _LINGER_SECONDS):
        late = {member.signature for member in _members(store, me.world_size)} - set(verdict["signatures"])
        if late:
            verdict["signatures"] = [*verdict["signatures"], *late]
            store.set("verdict", json.dumps(verdict))
        if store.check([f"informed/{signature}" for signature in verdict["signatures"]]):
            break


def _join(base: dist.Store, me: _Member, deadline: float, timeout: timedelta, *, may_be_stale: bool) -> dist.Store:
    """Sign in, as any other rank, to the newest attempt until one answers with a verdict on this signature.

    Where rank 0 itself serves the store, a process that does not fit is an error at once, and rank 0's verdict holds
    for every process that comes. Where an agent serves the store, the misfit and the verdict may be left from an
    earlier attempt: then this rank objects to rank 0, and raises an error only if no verdict arrives before the
    deadline.
    """
    nonce, signed_in, problem, store = "", 0.0, None, None
    for _ in poll_until(deadline):
        if not base.check([_CURRENT]):
            continue
        current = json.loads(base.get(_CURRENT))
        if store is None or current["nonce"] != nonce:
            nonce, signed_in = current["nonce"], time.time()
            store = dist.PrefixStore(f"scaling/{nonce}", base)
            problem = _sign_in(store, me, _Member(**current["host"]))
            if problem is not None and not may_be_stale:
                break
        if store.check(["verdict"]):
            verdict: _Verdict = json.loads(store.get("verdict"))
            if me.signature in verdict["signatures"] or not may_be_stale:
                if verdict["problem"] is not None:
                    _confirm_reading(store, me)
                    raise _exception(verdict["problem"])
                _warn_of_clock_skew(signed_in, verdict["time"], time.time())
                if verdict["port"] is not None:
                    return dist.TCPStore(LOOPBACK, verdict["port"], is_master=False, wait_for_workers=False)
                return store
    if problem is None:
        missing = [0] if store is None else _missing(_members(store, me.world_size), me)
        problem = _absence(missing, me, timeout)
        if store is not None:
            _object(store, me, problem)
    raise _exception(problem)


def _sign_in(store: dist.Store, me: _Member, host: _Member) -> _Problem | None:
    """Sign `me` in to the attempt of `host`; return the problem if that fails. A `host` of this run learns of it."""
    if me.is_of_another_run(host):
        return _problem(
            LayoutError,
            f"the meeting place of rank {me.rank} belongs to another run: there, {host} is rank 0 of {host.run}, while "
            f"this is {me.run}; give every run a MASTER_PORT of its own",
        )
    if me.world_size != host.world_size:
        problem = _problem(
            LayoutError,
            f"rank {me.rank} ({me}) was told that the run has {me.world_size} processes, rank 0 ({host}) that it has "
            f"{host.world_size}; start all of them with the same WORLD_SIZE",
        )
    else:
        holder = _Member(**json.loads(store.compare_set(f"rank/{me.rank}", "", json.dumps(asdict(me)))))
        if holder.signature == me.signature:
            store.add("arrived", 1)
            return None
        problem = _double(holder, me)
    _object(store, me, problem)
    return problem


def _double(holder: _Member, me: _Member) -> _Problem:
    return _problem(
        LayoutError,
        f"two processes claim rank {me.rank}: {holder} and {me}; every process needs a RANK of its own, and every run "
        "a MASTER_PORT of its own",
    )


def _object(store: dist.Store, me: _Member, problem: _Problem) -> None:
    store.compare_set("objection", "", json.dumps({"problem": problem, "signature": me.signature}))
    _confirm_reading(store, me)


def _confirm_reading(store: dist.Store, me: _Member) -> None:
    store.set(f"informed/{me.signature}", "yes")


def _members(store: dist.Store, world_size: int) -> list[_Member]:
    """Return the processes that have signed in so far, except rank 0."""
    keys = [f"rank/{rank}" for rank in range(1, world_size)]
    present = keys if store.check(keys) else [key for key in keys if store.check([key])]
    return [_Member(**json.loads(text)) for text in store.multi_get(present)]


def _missing(members: Sequence[_Member], me: _Member) -> list[int]:
    return sorted(set(range(1, me.world_size)) - {me.rank, *(member.rank for member in members)})


def _difference(members: Sequence[_Member]) -> _Problem | None:
    ranks: defaultdict[str, list[int]] = defaultdict(list)
    for member in members:
        ranks[member.digest].append(member.rank)
    if len(ranks) == 1:
        return None
    groups = sorted(ranks.items(), key=lambda item: -len(item[1]))
    parts = [f"{enumerate_ranks(same)} read {digest[:12]!r}" for digest, same in groups]
    return _problem(
        ConfigError,
        f"the processes do not share one configuration: by its digest, {', '.join(parts)}; start every process with "
        "the same file and the same KEY=VALUE settings",
    )


def _absence(missing: Sequence[int], me: _Member, timeout: timedelta) -> _Problem:
    came = f"{enumerate_ranks(missing)} did not come" if missing else "rank 0 did not answer"
    return _problem(
        HangError,
        f"{came} within {timeout.total_seconds():g} s, so "
        f"the {me.world_size} processes of run {me.run_name!r} cannot start; "
        "look for the message of a process that failed before, and for machines that were not started",
    )


def _warn_of_clock_skew(signed_in: float, judged: float, read: float) -> None:
    """Warn if rank 0's clock differs: its verdict came after this process signed in and before this process read it."""
    skew = max(signed_in - judged, judged - read)
    if skew > _SKEW_SECONDS:
        _log.warning(
            "the clock of this machine differs by at least %.1f s from that of rank 0; torchrun across machines takes "
            "a healthy one for dead when clocks disagree. Synchronise them (chrony, ntp)",
            skew,
        )


def _problem(kind: type[ScalingError], message: str) -> _Problem:
    return _Problem(kind=kind.__name__, message=message)


def _exception(problem: _Problem) -> ScalingError:
    kinds: tuple[type[ScalingError], ...] = (ConfigError, LayoutError, HangError, ScalingError)
    return {kind.__name__: kind for kind in kinds}[problem["kind"]](problem["message"])
