"""Ranks are threads here: a store client per thread is as separate from the others as one per process."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from scaling.core.errors import ConfigError, HangError, LayoutError, ScalingError
from scaling.core.topology import base_store, rendezvous
from scaling.core.topology.launch import LaunchContext
from scaling.core.topology.rendezvous import connect_store, leave_store
from tests.distributed import free_port

Outcome = dist.Store | Exception
PATIENCE = 60.0
"""Seconds for what does come, however busy the machine is."""


@pytest.fixture(autouse=True)
def _impatient_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's store asks who 127.0.0.1 is; where no name server answers, that takes 5 seconds unless told otherwise."""
    monkeypatch.setenv("RES_OPTIONS", "timeout:1 attempts:1")


def launch_of(
    rank: int, world_size: int, port: int, *, agent: bool = False, one_machine: bool = False, job: str | None = None
) -> LaunchContext:
    return LaunchContext(
        rank=rank,
        world_size=world_size,
        local_rank=rank,
        master_addr="127.0.0.1",
        master_port=port,
        agent_store=agent,
        one_machine=one_machine,
        job_id=job,
        launched=True,
    )


def connect(launch: LaunchContext, *, digest: str = "same", run: str = "run", seconds: float = PATIENCE) -> dist.Store:
    return connect_store(launch, digest=digest, run_name=run, timeout=timedelta(seconds=seconds))


def together(calls: Sequence[Callable[[], dist.Store]]) -> list[Outcome]:
    """Make all calls at once; return what each returned or raised."""

    def outcome(call: Callable[[], dist.Store]) -> Outcome:
        try:
            return call()
        except ScalingError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        futures: list[Future[Outcome]] = [pool.submit(outcome, call) for call in calls]
        return [future.result(timeout=2 * PATIENCE) for future in futures]


def stores(outcomes: Sequence[Outcome]) -> list[dist.Store]:
    found = [outcome for outcome in outcomes if isinstance(outcome, dist.Store)]
    assert len(found) == len(outcomes), outcomes
    return found


@contextmanager
def agent() -> Iterator[int]:
    """Serve a store as torchrun's agent does; yield its port."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield server.port


def test_a_process_on_its_own_needs_no_network() -> None:
    store = connect(LaunchContext())
    store.set("key", "value")
    assert store.get("key") == b"value"


def test_all_ranks_share_one_store() -> None:
    port = free_port()
    found = stores(together([partial(connect, launch_of(rank, 4, port)) for rank in range(4)]))
    for rank, store in enumerate(found):
        store.set(f"from/{rank}", str(rank))
    for store in found:
        assert [int(store.get(f"from/{rank}")) for rank in range(4)] == [0, 1, 2, 3]


def test_the_store_carries_a_gloo_group() -> None:
    port = free_port()
    found = stores(together([partial(connect, launch_of(rank, 2, port)) for rank in range(2)]))

    def reduce(rank: int) -> float:
        group: Any = dist.ProcessGroupGloo(found[rank], rank, 2, timedelta(seconds=PATIENCE))
        value = torch.full((3,), float(rank + 1))
        group.allreduce([value]).wait()
        return float(value.sum())

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(reduce, range(2))) == [9.0, 9.0]


def test_different_configurations_are_refused_on_every_rank_alike() -> None:
    port = free_port()
    digests = ["aaaa", "aaaa", "bbbb", "aaaa"]
    outcomes = together([partial(connect, launch_of(rank, 4, port), digest=digests[rank]) for rank in range(4)])
    assert {type(outcome) for outcome in outcomes} == {ConfigError}
    assert len({str(outcome) for outcome in outcomes}) == 1
    assert "ranks 0-1, 3 read 'aaaa', rank 2 read 'bbbb'" in str(outcomes[0])


@pytest.mark.parametrize("reads", [True, False])
def test_rank_0_stays_until_the_others_have_read_why_the_run_cannot_start_but_not_for_ever(
    reads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may serve the store: were it gone, the others would know no more than that the connection was lost."""
    monkeypatch.setattr(rendezvous, "_LINGER_SECONDS", 20.0 if reads else 0.0)
    base = dist.HashStore()
    host, other = (
        rendezvous._Member(rank=rank, world_size=2, digest=f"of rank {rank}", run_name="run", job_id=None)
        for rank in range(2)
    )
    with ThreadPoolExecutor(1) as pool:
        deadline, timeout = time.monotonic() + PATIENCE, timedelta(seconds=PATIENCE)
        rank_0 = pool.submit(rendezvous._gather, base, host, deadline, timeout, serves=False)
        store = dist.PrefixStore(f"scaling/{json.loads(base.get('scaling/attempt'))['nonce']}", base)
        assert rendezvous._sign_in(store, other, host) is None
        assert other.signature in json.loads(store.get("verdict"))["signatures"]
        if reads:
            time.sleep(0.05)
            assert not rank_0.done()
            rendezvous._confirm_reading(store, other)
        with pytest.raises(ConfigError, match="rank 0 read 'of rank 0', rank 1 read 'of rank 1'"):
            rank_0.result(timeout=10)


@pytest.mark.parametrize("may_be_stale", [False, True], ids=["of rank 0", "of an agent"])
def test_a_rank_that_comes_after_the_refusal_is_told_the_same_at_once(may_be_stale: bool) -> None:
    """Rank 0 refuses as soon as one rank objects, while others may still be on their way."""
    base = dist.HashStore()
    host, late, reads_late, objects = (
        rendezvous._Member(rank=rank, world_size=world_size, digest="same", run_name="run", job_id=None)
        for rank, world_size in enumerate((4, 4, 4, 5))
    )
    with ThreadPoolExecutor(1) as pool:
        deadline, timeout = time.monotonic() + PATIENCE, timedelta(seconds=PATIENCE)
        rank_0 = pool.submit(rendezvous._gather, base, host, deadline, timeout, serves=False)
        store = dist.PrefixStore(f"scaling/{json.loads(base.get('scaling/attempt'))['nonce']}", base)
        assert rendezvous._sign_in(store, reads_late, host) is None
        problem = rendezvous._sign_in(store, objects, host)
        assert problem is not None
        store.get("verdict")
        with pytest.raises(LayoutError) as refusal:
            rendezvous._join(base, late, time.monotonic() + 4.0, timeout, may_be_stale=may_be_stale)
        rendezvous._confirm_reading(store, reads_late)
        with pytest.raises(LayoutError) as first:
            rank_0.result(timeout=10)
    assert str(refusal.value) == str(first.value) == problem["message"]


def test_two_processes_of_one_rank_are_refused() -> None:
    port = free_port()
    ranks = [0, 1, 1, 2]
    outcomes = together([partial(connect, launch_of(rank, 4, port)) for rank in ranks])
    assert {type(outcome) for outcome in outcomes} == {LayoutError}
    assert all("two processes claim rank 1" in str(outcome) for outcome in outcomes)


def test_a_late_double_does_not_disturb_a_run_that_started() -> None:
    port = free_port()
    found = stores(together([partial(connect, launch_of(rank, 2, port)) for rank in range(2)]))
    with pytest.raises(LayoutError, match="two processes claim rank 1"):
        connect(launch_of(1, 2, port))
    found[0].set("alive", "yes")
    assert found[1].get("alive") == b"yes"


def test_two_rank_zeros_of_one_agent_are_refused_alike_and_at_once() -> None:
    with agent() as port:
        outcomes = together([partial(connect, launch_of(0, 2, port, agent=True)) for _ in range(2)])
    assert {type(outcome) for outcome in outcomes} == {LayoutError}
    assert len({str(outcome) for outcome in outcomes}) == 1
    assert "two processes claim rank 0" in str(outcomes[0])


def test_disagreement_about_the_number_of_processes_is_refused() -> None:
    port = free_port()
    launches = [launch_of(0, 3, port), launch_of(1, 3, port), launch_of(2, 4, port)]
    outcomes = together([partial(connect, launch) for launch in launches])
    assert {type(outcome) for outcome in outcomes} == {LayoutError}
    assert all("4 processes" in str(outcome) and "3" in str(outcome) for outcome in outcomes)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [({"run": "mine"}, {"run": "other"}), ({"job": "slurm 2.0"}, {"job": "slurm 1.0"})],
    ids=["by the run's name", "by the launcher's job"],
)
def test_a_process_that_finds_another_run_is_told_which(ours: Mapping[str, str], theirs: Mapping[str, str]) -> None:
    port = free_port()
    [host] = theirs.values()

    def start(rank: int, names: Mapping[str, str]) -> dist.Store:
        return connect(launch_of(rank, 2, port, job=names.get("job")), run=names.get("run", "same"))

    with ThreadPoolExecutor(1) as pool:
        rank_0 = pool.submit(start, 0, theirs)
        with pytest.raises(LayoutError, match=f"belongs to another run.*{host}.*MASTER_PORT"):
            start(1, ours)
        start(1, theirs)  # the run itself was not disturbed
        rank_0.result()


def test_a_missing_rank_is_named_to_everyone_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock stands still until those who do come have signed in. A leap would count as a pause of the process."""
    begun: list[float] = []
    port, signed_in = free_port(), threading.Semaphore(0)
    sign_in: Callable[..., Any] = rendezvous._sign_in

    def signing_in(*arguments: Any) -> Any:
        problem = sign_in(*arguments)
        signed_in.release()
        return problem

    clock = SimpleNamespace(
        monotonic=lambda: time.monotonic() - begun[0] if begun else 0.0, time=time.time, sleep=time.sleep
    )
    for module in (rendezvous, base_store):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(rendezvous, "_sign_in", signing_in)
    with ThreadPoolExecutor(1) as pool:
        calls = [partial(connect, launch_of(rank, 5, port), seconds=1.0) for rank in (0, 1, 4)]
        meeting = pool.submit(together, calls)
        came = [signed_in.acquire(timeout=PATIENCE) for _ in range(2)]
        begun.append(time.monotonic())
        outcomes = meeting.result()
    assert all(came)
    assert {type(outcome) for outcome in outcomes} == {HangError}
    assert all("ranks 2-3 did not come within 1 s" in str(outcome) for outcome in outcomes)


def test_a_missing_rank_zero_is_named() -> None:
    with pytest.raises(ScalingError, match="rank 1 found nobody"):
        connect(launch_of(1, 2, free_port()), seconds=0.3)
    with agent() as port, pytest.raises(ScalingError, match="rank 0 did not come within"):
        connect(launch_of(1, 2, port, agent=True), seconds=0.3)


def test_a_port_in_use_is_named_with_what_to_set() -> None:
    with socket.socket() as holder:
        holder.bind(("0.0.0.0", 0))
        holder.listen(1)
        port = holder.getsockname()[1]
        with pytest.raises(LayoutError, match=rf"port {port} .* is in use.*MASTER_PORT"):
            connect(launch_of(0, 2, port))


def test_a_port_held_by_another_program_does_not_hang_the_other_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_store, "_ANSWER_SECONDS", 0.5)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen(8)
        with pytest.raises(LayoutError, match="another program holds the port"):
            connect(launch_of(1, 2, holder.getsockname()[1]))
    for thread in threading.enumerate():
        if thread.name == "scaling-rendezvous":  # a real process ends here and takes it along
            thread.join(10)


def test_the_processes_of_one_machine_outlive_the_agent_that_brought_them_together() -> None:
    with agent() as port:
        launches = [launch_of(rank, 3, port, agent=True, one_machine=True) for rank in range(3)]
        found = stores(together([partial(connect, launch) for launch in launches]))
    for rank, store in enumerate(found):
        store.set(f"from/{rank}", str(rank))
    for store in found:
        assert [int(store.get(f"from/{rank}")) for rank in range(3)] == [0, 1, 2]
    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(partial(leave_store, world_size=3), found))


@pytest.mark.parametrize("one_machine", [False, True])
def test_attempts_that_share_an_agents_store_do_not_see_each_other(one_machine: bool) -> None:
    with agent() as port:
        for attempt in range(3):
            launches = [launch_of(rank, 3, port, agent=True, one_machine=one_machine) for rank in range(3)]
            found = stores(together([partial(connect, launch) for launch in launches]))
            assert not found[0].check(["address"]), "an attempt saw what an earlier one wrote"
            found[0].set("address", f"of attempt {attempt}")
            assert found[2].get("address") == f"of attempt {attempt}".encode()


def test_a_restarted_rank_waits_for_the_new_rank_zero_instead_of_joining_the_dead() -> None:
    with agent() as port:
        stores(together([partial(connect, launch_of(rank, 2, port, agent=True)) for rank in range(2)]))
        with ThreadPoolExecutor(1) as pool:
            early = pool.submit(connect, launch_of(1, 2, port, agent=True))
            time.sleep(0.3)
            assert not early.done()
            rank_0 = connect(launch_of(0, 2, port, agent=True))
            rank_0.set("address", "new")
            assert early.result(timeout=PATIENCE).get("address") == b"new"


def test_a_restart_with_another_number_of_processes_ignores_the_old_one() -> None:
    with agent() as port:
        stores(together([partial(connect, launch_of(rank, 3, port, agent=True)) for rank in range(3)]))
        with ThreadPoolExecutor(1) as pool:
            early = pool.submit(connect, launch_of(1, 2, port, agent=True))
            time.sleep(0.1)
            connect(launch_of(0, 2, port, agent=True))
            early.result(timeout=PATIENCE)


def test_an_attempt_that_died_while_meeting_is_not_joined() -> None:
    with agent() as port:
        stale = dist.TCPStore("127.0.0.1", port, wait_for_workers=False)
        host = {"rank": 0, "world_size": 2, "digest": "same", "run_name": "run", "job_id": None}
        stale.set("scaling/attempt", json.dumps({"nonce": "dead", "host": host}))
        dist.PrefixStore("scaling/dead", stale).set("rank/1", json.dumps(host | {"rank": 1}))
        stores(together([partial(connect, launch_of(rank, 2, port, agent=True)) for rank in (1, 0)]))


def test_a_skewed_clock_is_reported(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    here = threading.local()
    real = time.time

    class SkewedTime:
        monotonic = staticmethod(time.monotonic)

        @staticmethod
        def time() -> float:
            return real() + getattr(here, "skew", 0.0)

    def rank_1(skew: float) -> dist.Store:
        here.skew = skew
        return connect(launch_of(1, 2, port))

    monkeypatch.setattr(rendezvous, "time", SkewedTime)
    for skew, warned in ((0.0, False), (60.0, True), (-60.0, True)):
        port = free_port()
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            stores(together([partial(connect, launch_of(0, 2, port)), partial(rank_1, skew)]))
        assert any("clock" in record.message for record in caplog.records) == warned


def test_leaving_waits_for_the_last_rank() -> None:
    port = free_port()
    found = stores(together([partial(connect, launch_of(rank, 2, port)) for rank in range(2)]))
    with ThreadPoolExecutor(1) as pool:
        leave = partial(leave_store, world_size=2, timeout=timedelta(seconds=PATIENCE))
        first = pool.submit(leave, found[0])
        time.sleep(0.2)
        assert not first.done()
        assert leave(found[1])
        assert first.result(timeout=PATIENCE)


def test_leaving_does_not_wait_for_ever() -> None:
    port = free_port()
    found = stores(together([partial(connect, launch_of(rank, 2, port)) for rank in range(2)]))
    assert not leave_store(found[0], world_size=2, timeout=timedelta(seconds=0.2))
