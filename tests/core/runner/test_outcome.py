"""Which of the processes that ended was the first cause, and what the run ends with."""

from __future__ import annotations

import signal

import pytest

from scaling.core.runner.outcome import ProcessEnd, outcome
from scaling.core.runner.report import Report


def end(rank: int, code: int, *, said: str | None = None, at: float = 10.0, stopped: bool = False) -> ProcessEnd:
    report = None if said is None else Report(message=said, status=code, time=at)
    return ProcessEnd(rank=rank, exit_code=code, report=report, time=at + 0.1, stopped=stopped)


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
    assert result.cause.rank == 1
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
