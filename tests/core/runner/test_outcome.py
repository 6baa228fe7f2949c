"""Which of the processes that ended was the first cause, and what the run ends with."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from scaling.core.runner.outcome import HostLoss, ProcessEnd, outcome
from scaling.core.runner.report import Report


def end(rank: int, code: int, *, said: str | None = None, at: float = 10.0, stopped: bool = False) -> ProcessEnd:
    report = None if said is None else Report(message=said, status=code, time=at)
    return ProcessEnd(rank=rank, exit_code=code, report=report, time=at + 0.1, stopped=stopped)


def gone(host: str = "h2", *ranks: int, at: float = 10.0) -> HostLoss:
    return HostLoss(host=host, ranks=ranks or (2, 3), why="Connection refused", time=at)


def test_all_done_is_done() -> None:
    result = outcome([end(0, 0), end(1, 0)])
    assert (result.status, result.cause, result.explain()) == (0, None, "")


def test_the_first_to_fail_is_the_cause() -> None:
    result = outcome([end(0, 1, said="late", at=11), end(1, 65, said="early", at=10), end(2, 2, said="later", at=12)])
    assert (result.status, result.explain()) == (65, "error: rank 1: early")


@pytest.mark.parametrize("code", [-signal.SIGKILL, -signal.SIGSEGV, 3])
def test_who_ended_without_a_word_comes_before_who_had_something_to_say(code: int) -> None:
    result = outcome([end(0, 1, said="the connection was closed", at=10.0), end(1, code, at=10.5)])
    assert result.cause is not None
    assert result.cause.ranks == (1,)
    assert result.status == (code if code > 0 else 128 - code)


def test_an_abort_may_be_a_consequence() -> None:
    abort = end(1, -signal.SIGABRT, at=10.5)
    assert outcome([end(0, 1, said="cause", at=10.0), abort]).status == 1
    assert outcome([end(0, 1, said="consequence", at=11.0), abort]).status == 128 + signal.SIGABRT


def test_who_was_stopped_is_never_the_cause() -> None:
    stopped = [end(0, -signal.SIGTERM, at=1), end(1, -signal.SIGKILL, at=1, stopped=True)]
    result = outcome([*stopped, end(2, 70, said="a hang", at=2)])
    assert (result.status, result.explain()) == (70, "error: rank 2: a hang")


def test_what_all_say_is_said_once_without_a_rank() -> None:
    ends = [end(rank, 2, said="the file is wrong", at=rank) for rank in range(3)]
    assert outcome(ends).explain() == "error: the file is wrong"
    assert outcome(ends).is_shared
    assert not outcome([*ends, end(3, 0)]).is_shared


def test_a_traceback_comes_before_the_summary() -> None:
    report = Report(message="ValueError: x", trace="Traceback ...\n")
    assert outcome([ProcessEnd(rank=0, exit_code=1, report=report)]).explain() == "Traceback ...\nerror: ValueError: x"


def test_all_preempted_is_preempted() -> None:
    result = outcome([end(0, 75), end(1, 75), end(2, 0)])
    assert (result.status, result.cause) == (75, None)


def test_a_failure_while_saving_outweighs_preemption() -> None:
    assert outcome([end(0, 75), end(1, 74, said="disk full")], asked=signal.SIGTERM).status == 74


def test_who_was_asked_before_it_listened_may_be_started_again() -> None:
    ends = [end(0, -signal.SIGTERM), end(1, -signal.SIGTERM)]
    assert outcome(ends, asked=signal.SIGINT).status == 75
    assert outcome(ends).status == 128 + signal.SIGTERM
    assert outcome([], asked=signal.SIGTERM).status == 75  # before any process was started


def test_who_lost_a_process_that_was_asked_too_early_is_not_the_cause_and_who_failed_before_is() -> None:
    ended = end(0, -signal.SIGTERM, at=10)
    assert outcome([ended, end(1, 1, said="connection closed", at=11)], asked=signal.SIGTERM).status == 75
    assert outcome([ended, end(1, 65, said="bad data", at=9)], asked=signal.SIGTERM).status == 65
    killed = end(0, -signal.SIGKILL, at=8, stopped=True)  # by the runner, as a consequence
    assert outcome([killed, end(1, 65, said="bad data", at=9)], asked=signal.SIGTERM).status == 65


def test_finishing_in_spite_of_being_asked_is_done() -> None:
    assert outcome([end(0, 0), end(1, 0)], asked=signal.SIGTERM).status == 0
    assert outcome([end(0, 0)], asked=signal.SIGTERM, forced=True).status == 0


def test_a_second_request_has_the_conventional_status() -> None:
    result = outcome([end(0, -signal.SIGKILL, stopped=True)], asked=signal.SIGINT, forced=True)
    assert (result.status, result.cause) == (130, None)


@pytest.mark.parametrize("code", [141, -signal.SIGPIPE])
def test_output_that_nobody_reads_any_more_is_no_failure_to_explain(code: int) -> None:
    result = outcome([end(0, code), end(1, 1, said="lost rank 0", at=9.0), end(2, -15, stopped=True)])
    assert (result.status, result.explain()) == (141, "")
    assert outcome([end(0, 141, said="of its own")]).explain() == "error: of its own"


def test_signals_without_a_name_are_named_by_number() -> None:
    assert "signal 40" in outcome([end(0, -40)]).explain()


@pytest.mark.parametrize(
    ("code", "said", "at"),
    [
        (1, "RuntimeError: Connection closed by peer", 5.0),
        (1, "DistBackendError: NCCL error: remote process exited", 5.0),
        (70, "rank 0 waits for ranks 2 and 3", 1.0),
        (1, "ValueError: anything", 9.0),
        (1, "ValueError: anything", 11.0),
        (-signal.SIGABRT, None, 1.0),
        (-signal.SIGKILL, None, 9.0),
    ],
)
def test_that_a_host_is_gone_comes_before_what_the_others_make_of_it(code: int, said: str | None, at: float) -> None:
    result = outcome([end(0, code, said=said, at=at), end(1, -15)], [gone()])
    assert (result.status, result.explain()) == (
        1,
        "error: host h2 (ranks 2, 3) is gone: Connection refused\n"
        "try: look at that machine, or leave it out of runner.hosts",
    )


@pytest.mark.parametrize(("code", "said"), [(1, "ValueError: x"), (65, "bad data"), (-signal.SIGSEGV, None)])
def test_a_failure_well_before_a_host_is_gone_is_the_cause(code: int, said: str | None) -> None:
    result = outcome([end(0, code, said=said, at=7.0), end(1, -15)], [gone()])
    assert result.cause is not None
    assert result.cause.ranks == (0,)


def test_the_first_of_several_hosts_is_named_and_its_single_rank_in_the_singular() -> None:
    result = outcome([], [gone("h2", at=12), gone("h3", 4, at=11)])
    assert result.reason == "host h3 (rank 4) is gone: Connection refused"
    many = outcome([], [gone("h4", *range(8, 16))])
    assert many.reason == "host h4 (ranks 8 to 15) is gone: Connection refused"


def test_a_host_that_was_lost_while_it_was_asked_to_leave_has_not_saved() -> None:
    assert outcome([end(0, 75)], [gone()], asked=signal.SIGTERM).status == 1
    assert outcome([end(0, 75)], [gone()], asked=signal.SIGTERM, forced=True).status == 128 + signal.SIGTERM


def test_what_a_host_cannot_do_is_a_failure_like_that_of_a_rank() -> None:
    said = Report(message="the port is taken", status=2, time=10.0)
    refused = HostLoss(host="h1", ranks=(0, 1), why="", time=10.5, report=said)
    assert outcome([], [refused]).explain() == "error: host h1: the port is taken"
    assert outcome([end(2, 1, said="nobody comes", at=11)], [refused]).status == 2
    assert outcome([end(2, 65, said="bad data", at=9)], [refused]).status == 65


def test_the_host_of_a_rank_is_named_and_the_last_lines_of_who_said_nothing() -> None:
    silent = ProcessEnd(rank=5, exit_code=3, host="h2", last_lines=("one", "two"))
    text = outcome([silent]).explain()
    assert text.startswith("its last lines:\n    one\n    two\nerror: the process ended with status 3")  # there is one
    assert outcome([silent, end(0, 0)]).reason.startswith("rank 5 on h2: the process ended with status 3")
    spoke = ProcessEnd(rank=5, exit_code=1, report=Report(message="x"), last_lines=("one",))
    assert "one" not in outcome([spoke]).explain()


def test_what_a_user_reads_ends_with_who_failed_where_and_what_to_try() -> None:
    report = Report(message="ValueError: x", trace="Traceback ...\n", remedy="look there")
    result = outcome([ProcessEnd(rank=1, exit_code=1, report=report), end(0, 1, said="lost its peer", at=1e12)])
    assert result.explain(processes=4, here="h0", log_dir=Path("runs")).splitlines() == [
        "Traceback ...",
        "The other 3 processes were stopped.",
        "error: rank 1 on h0: ValueError: x",
        "try: look there; its log is runs/rank_1.log; the same command goes on from the newest checkpoint, if there is "
        "one",
    ]
