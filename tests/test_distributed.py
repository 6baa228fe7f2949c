"""The pool of worker processes that the distributed tests stand on."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from scaling.core.errors import ConfigError, LayoutError, Problem
from tests import distributed
from tests.distributed import WorldError, free_port, run_distributed, run_world
from tests.processes import is_running, wait_until


class Unpicklable(Exception):
    """Needs an argument that pickling forgets."""

    def __init__(self, what: str, *, where: str) -> None:
        super().__init__(f"{what} at {where}")


def connect() -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=timedelta(seconds=60))


def summed_ranks(rank: int, world_size: int, offset: float) -> tuple[int, Any]:
    import torch

    connect()
    total = torch.tensor([rank + offset])
    torch.distributed.all_reduce(total)
    return rank, total


def who_am_i(rank: int, world_size: int) -> tuple[int, dict[str, str | None], str]:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "FROM_THE_TEST")
    return os.getpid(), {name: os.environ.get(name) for name in names}, os.getcwd()


def leave_a_mess(rank: int, world_size: int) -> None:
    import torch

    connect()
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.set_num_threads(2)
    torch.rand(3)
    os.environ["LEFT_BEHIND"] = "1"
    os.chdir("/")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    warnings.simplefilter("ignore")


def look_around(rank: int, world_size: int) -> dict[str, Any]:
    import torch

    return {
        "dtype": torch.zeros(1).dtype,
        "grad": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "seed": torch.initial_seed(),
        "initialized": torch.distributed.is_initialized(),
        "environment": "LEFT_BEHIND" in os.environ,
        "directory": os.getcwd(),
        "sigterm": signal.getsignal(signal.SIGTERM),
    }


def fail_on_rank(rank: int, world_size: int, failing: int) -> None:
    connect()
    if rank == failing:
        raise LayoutError(f"rank {rank} does not fit")
    import torch

    torch.distributed.barrier()
    time.sleep(60)


def fail_and_take_long_to_say_so(rank: int, world_size: int) -> None:
    import torch

    connect()
    if rank == 1:
        torch.distributed.destroy_process_group()
        time.sleep(0.5)
        raise LayoutError("rank 1 does not fit")
    torch.distributed.barrier()


def fail_everywhere(rank: int, world_size: int) -> None:
    raise ConfigError([Problem("a.b", "is wrong"), Problem("c", "is wrong too")])


def raise_unpicklable(rank: int, world_size: int) -> None:
    raise Unpicklable("something", where="somewhere")


def return_unpicklable(rank: int, world_size: int) -> Callable[[], int]:
    return lambda: rank


def assert_equal(rank: int, world_size: int, left: int, right: int) -> None:
    assert left == right


def exit_early(rank: int, world_size: int) -> None:
    sys.exit(3)


def die(rank: int, world_size: int, how: str) -> int:
    connect()
    if rank == 1 and how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == 1 and how == "left":
        os._exit(7)
    if rank == 1 and how == "aborted":
        os.abort()
    import torch

    torch.distributed.barrier()
    return rank


def wait_for_ever(rank: int, world_size: int) -> None:
    if rank == 1:
        time.sleep(1000)


def warn(rank: int, world_size: int) -> None:
    warnings.warn("this is old", DeprecationWarning, stacklevel=2)


def start_a_process(rank: int, world_size: int) -> int:
    process_id = os.fork()
    if process_id == 0:
        time.sleep(1000)
    if rank == 0:
        raise RuntimeError(str(process_id))
    return process_id


def test_results_come_back_by_rank_and_ranks_talk_to_each_other() -> None:
    results = run_distributed(summed_ranks, 3, 0.5)
    assert [rank for rank, _ in results] == [0, 1, 2]
    assert [total.item() for _, total in results] == [4.5, 4.5, 4.5]


def test_ranks_see_what_torchrun_would_set_and_what_the_caller_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FROM_THE_TEST", "1")
    monkeypatch.setenv("RANK", "17")
    monkeypatch.chdir(tmp_path)
    results = run_distributed(who_am_i, 2, environment={"LOCAL_WORLD_SIZE": "1"})
    ports = {seen["MASTER_PORT"] for _, seen, _ in results}
    assert len(ports) == 1
    for rank, (_, seen, directory) in enumerate(results):
        assert directory == str(tmp_path)
        assert seen == {
            "RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": ports.copy().pop(),
            "FROM_THE_TEST": "1",
        }


def test_workers_are_used_again_and_every_world_has_a_port_of_its_own() -> None:
    first, second = run_distributed(who_am_i, 2), run_distributed(who_am_i, 2)
    assert {process for process, _, _ in first} == {process for process, _, _ in second}
    assert first[0][1]["MASTER_PORT"] != second[0][1]["MASTER_PORT"]


def test_a_world_finds_nothing_of_the_one_before() -> None:
    run_distributed(leave_a_mess, 2)
    for state in run_distributed(look_around, 2):
        import torch

        assert state == {
            "dtype": torch.float32,
            "grad": True,
            "threads": 1,
            "seed": 0,
            "initialized": False,
            "environment": False,
            "directory": os.getcwd(),
            "sigterm": signal.SIG_DFL,
        }


def test_an_exception_of_one_rank_is_raised_here_and_ends_the_world() -> None:
    before = {process for process, _, _ in run_distributed(who_am_i, 2)}
    with pytest.raises(LayoutError, match="rank 1 does not fit") as caught:
        run_distributed(fail_on_rank, 2, 1)
    assert isinstance(caught.value.__cause__, WorldError)
    report = str(caught.value.__cause__)
    assert "fail_on_rank failed:" in report
    assert "rank 1 of 2 raised" in report
    assert "in fail_on_rank" in report
    assert "rank 0 of 2" in report
    assert before.isdisjoint({process for process, _, _ in run_distributed(who_am_i, 2)})


def test_the_cause_is_waited_for_although_others_have_noticed_it_before() -> None:
    first, second = run_world(fail_and_take_long_to_say_so, 2, grace=0.1)
    assert first.is_consequence
    assert isinstance(second.error, LayoutError)


def test_an_exception_keeps_its_fields() -> None:
    with pytest.raises(ConfigError, match="2 problems") as caught:
        run_distributed(fail_everywhere, 2)
    assert caught.value.problems[1] == Problem("c", "is wrong too")


def test_what_cannot_be_pickled_is_reported() -> None:
    with pytest.raises(WorldError, match=r"rank 0 of 1 raised(.|\n)*Unpicklable: something at somewhere"):
        run_distributed(raise_unpicklable, 1)
    with pytest.raises((AttributeError, pickle.PicklingError), match=r"(pickle|local object).*return_unpicklable"):
        run_distributed(return_unpicklable, 1)


def test_a_failed_assertion_shows_its_variables() -> None:
    with pytest.raises(AssertionError) as caught:
        run_distributed(assert_equal, 1, 3, 4)
    assert "assert left == right" in str(caught.value.__cause__)
    assert "left = 3\n    right = 4" in str(caught.value.__cause__)


def test_an_exit_does_not_end_the_tests() -> None:
    with pytest.raises(WorldError, match="SystemExit: 3"):
        run_distributed(exit_early, 1)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("killed", "died: SIGKILL"),
        ("left", "died: exit status 7"),
        ("aborted", r"died: SIGABRT\nFatal Python error: Aborted(.|\n)*in die"),
    ],
)
def test_a_rank_that_dies_is_named_and_replaced(how: str, message: str) -> None:
    with pytest.raises(WorldError, match=f"rank 1 of 2 {message}"):
        run_distributed(die, 2, how)
    assert run_distributed(die, 2, "not at all") == [0, 1]


def test_the_fate_of_each_rank_can_be_asked_for() -> None:
    survivor, victim = run_world(die, 2, "killed", grace=60)
    assert victim.exit_code == -signal.SIGKILL
    assert isinstance(survivor.error, RuntimeError)
    assert [outcome.value for outcome in run_world(die, 2, "not at all")] == [0, 1]


def test_a_world_that_hangs_is_ended_and_shows_where() -> None:
    started = time.monotonic()
    with pytest.raises(WorldError, match=r"rank 1 of 2 was not done after 0.5 s:(.|\n)*in wait_for_ever"):
        run_distributed(wait_for_ever, 2, timeout=0.5)
    assert time.monotonic() - started < 100


def test_a_warning_is_an_error_in_a_worker_too_unless_the_caller_allows_it() -> None:
    with pytest.raises(DeprecationWarning, match="this is old"):
        run_distributed(warn, 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "this is", DeprecationWarning)
        run_distributed(warn, 1)


def test_what_a_failed_rank_has_started_is_ended() -> None:
    with pytest.raises(RuntimeError) as caught:
        run_distributed(start_a_process, 1)
    wait_until(lambda: not is_running(int(str(caught.value))), "the process lives on")


@pytest.mark.parametrize("function", [lambda rank, world_size: None, print, signal.Signals])
def test_a_function_that_a_worker_cannot_find_is_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="cannot run in a worker"):
        run_distributed(function, 1)


def test_the_size_of_a_world_is_limited() -> None:
    with pytest.raises(ValueError, match="1 to 8 ranks, not 9"):
        run_distributed(who_am_i, 9)


def test_closed_workers_are_started_again() -> None:
    run_distributed(who_am_i, 1)
    distributed.close_workers()
    assert len(run_distributed(who_am_i, 1)) == 1


def test_free_ports_are_below_those_the_kernel_hands_out() -> None:
    ports = [free_port() for _ in range(3)]
    assert len(set(ports)) == 3
    assert all(15000 <= port < 30000 for port in ports)
