"""What is said of the machines of a run: every fault, alone and with others, and nothing where nothing is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.core.errors import ExitStatus
from scaling.core.runner.inspection import Findings, Here, inspect
from scaling.core.runner.look import HostFacts
from scaling.core.runner.plan import HostNeeds, HostPlan, LaunchPlan

VERSIONS = {"Python": "3.11", "scaling": "1.0", "torch": "2.13"}
NAMES = ("h1", "h2", "h3")
PLAN = LaunchPlan(
    run_id="run-1",
    hosts=tuple(HostPlan(name=name, index=index, first_rank=index, processes=1) for index, name in enumerate(NAMES)),
    master_addr="h1",
    master_port=29500,
    program=("-m", "train"),
    interpreter="python3",
    directory="/work",
    config_path="config.yml",
    needs=HostNeeds(files=("config.yml",), folders=(("logger.log_dir", "runs"), ("trainer.save_dir", "saved"))),
)
HERE = Here(
    versions=VERSIONS,
    files={"config.yml": "digest"},
    token="token",
    asked=100.0,
    answered=dict.fromkeys(range(3), 101.0),
)


def healthy(index: int) -> HostFacts:
    return HostFacts(
        index=index,
        hostname=NAMES[index],
        identity=f"machine {index}",
        versions=VERSIONS,
        files={"config.yml": "digest"},
        tokens={"runs": "token", "saved": "token"},
        time=100.5,
        own_address=f"10.0.0.{index + 1}",
        master_address="10.0.0.1",
        interface="eth0",
    )


Fault = Callable[[dict[int, HostFacts], dict[int, str]], None]


def changed(index: int, **values: Any) -> Fault:
    def plant(facts: dict[int, HostFacts], failures: dict[int, str]) -> None:
        if index in facts:
            facts[index] = replace(facts[index], **values)

    return plant


def with_version(index: int, **versions: str | None) -> Fault:
    def plant(facts: dict[int, HostFacts], failures: dict[int, str]) -> None:
        if index in facts:
            facts[index] = replace(facts[index], versions={**facts[index].versions, **versions})

    return plant


def unreachable(facts: dict[int, HostFacts], failures: dict[int, str]) -> None:
    facts.pop(2, None)
    failures[2] = "there is no route to it"


FAULTS: dict[str, tuple[Fault, str]] = {
    "unreachable": (unreachable, "there is no route to it"),
    "scaling": (with_version(1, scaling=None), "scaling is not installed for its interpreter"),
    "torch": (with_version(1, torch="2.11"), "it has torch 2.11, but here is 2.13"),
    "python": (with_version(1, Python="3.12"), "it has Python 3.12, but here is 3.11"),
    "different": (changed(0, files={"config.yml": "other"}), "config.yml is not the same file there as here"),
    "unknown": (changed(2, master_address=None), "the name of the first machine, h1, is unknown there"),
    "source": (changed(1, source="other"), "its scaling is of other source files than that of"),
    "unreadable": (changed(1, files={"config.yml": None}), "config.yml cannot be read there"),
    "folder": (
        changed(1, tokens={"runs": None, "saved": "token"}),
        "logger.log_dir (runs) is not the same folder there",
    ),
    "unwritable": (changed(0, unwritable=("saved",)), "trainer.save_dir (saved) cannot be written to there"),
    "port": (changed(0, port_problem="Address already in use"), "port 29500 (Address already in use)"),
    "clock": (changed(1, time=111.0), "its clock is 10 s ahead of the one here"),
    "identity": (changed(1, identity="machine 0"), "are names of one machine"),
    "loopback": (changed(1, master_address="127.0.1.1"), "leads to 127.0.1.1 there, which is itself"),
    "gpus": (changed(1, gpus=(0,)), "it has no GPU, but others have some"),
}


def found(names: Sequence[str]) -> Findings:
    facts, failures = {index: healthy(index) for index in range(3)}, dict[int, str]()
    for name in names:
        FAULTS[name][0](facts, failures)
    return inspect(facts, failures, PLAN, HERE)


def test_where_nothing_is_wrong_nothing_is_said() -> None:
    findings = found([])
    assert (findings.problems, findings.notes, findings.environment) == ((), (), {})
    assert findings.error() is None
    assert findings.offsets == {0: 0.0, 1: 0.0, 2: 0.0}


def all_planted(names: Sequence[str]) -> Sequence[str]:
    """Return the faults that can be seen: of a machine that cannot be asked nothing else is."""
    return [name for name in names if not ("unreachable" in names and name == "unknown")]


@given(names=st.lists(st.sampled_from(sorted(FAULTS)), min_size=1, unique=True))
def test_every_fault_is_in_the_table_whatever_else_is_wrong(names: list[str]) -> None:
    table = " ".join(found(names).table().split())
    missing = [name for name in all_planted(names) if FAULTS[name][1] not in table]
    assert missing == []
    assert (error := found(names).error()) is not None
    assert error.exit_status is ExitStatus.USER_INPUT


@given(names=st.lists(st.sampled_from(sorted(FAULTS)), unique=True), order=st.permutations(range(3)))
def test_nothing_depends_on_who_answers_first(names: list[str], order: list[int]) -> None:
    facts, failures = {index: healthy(index) for index in range(3)}, dict[int, str]()
    for name in names:
        FAULTS[name][0](facts, failures)
    as_answered = {index: facts[index] for index in order if index in facts}
    assert inspect(as_answered, failures, PLAN, HERE) == inspect(facts, failures, PLAN, HERE)


def test_a_port_that_may_not_be_had_is_not_said_to_be_held() -> None:
    facts = {index: healthy(index) for index in range(3)}
    facts[0] = replace(facts[0], port_problem="Permission denied")
    (problem,) = inspect(facts, {}, PLAN, HERE).problems
    assert "(Permission denied); set runner.master_port to a free port above 1023" in problem.message


def test_what_machines_share_is_said_once() -> None:
    facts = {index: replace(healthy(index), files={"config.yml": "other"}) for index in range(3)}
    table = inspect(facts, {}, PLAN, HERE).table()
    assert table.splitlines() == [
        "1 problem with the machines of the run; nothing was started:",
        "  h1, h2, h3  config.yml is not the same file there as here; copy it again, or keep it on storage that all "
        "share",
    ]


def test_a_clock_is_wrong_only_where_that_is_sure() -> None:
    """A machine looks at its clock at some time between the question and its answer."""
    slow = replace(HERE, answered={index: 108.0 for index in range(3)})
    for time in (98.1, 100.0, 104.0, 108.0, 109.9):
        messages = [problem.message for problem in inspect(_all(time), {}, PLAN, slow).problems]
        assert not [message for message in messages if "clock" in message], time
    messages = [problem.message for problem in inspect(_all(97.0), {}, PLAN, slow).problems]
    assert any("its clock is 3 s behind" in message for message in messages)
    assert inspect(_all(97.0), {}, PLAN, slow).offsets[1] == pytest.approx(-3.0)


def _all(time: float) -> dict[int, HostFacts]:
    return {index: replace(healthy(index), time=time) for index in range(3)}


@pytest.mark.parametrize("own", ["127.0.1.1", "::1", None])
def test_a_name_that_leads_to_the_machine_itself_is_put_right_for_the_run(own: str | None) -> None:
    facts = {index: healthy(index) for index in range(3)}
    facts[1] = replace(facts[1], own_address=own)
    findings = inspect(facts, {}, PLAN, HERE)
    assert findings.problems == ()
    assert findings.environment == {1: {"GLOO_SOCKET_IFNAME": "eth0"}}
    (note,) = findings.notes
    assert "GLOO_SOCKET_IFNAME=eth0, which leads to h1, is set for it in this run" in note
    set_already = replace(PLAN, environment={"GLOO_SOCKET_IFNAME": "ib0"})
    assert inspect(facts, {}, set_already, HERE).environment == {}
    facts[1] = replace(facts[1], interface=None)
    assert "set GLOO_SOCKET_IFNAME to the interface" in inspect(facts, {}, PLAN, HERE).notes[0]


def test_gpus_have_to_be_there_in_number_or_by_name() -> None:
    facts = {index: replace(healthy(index), gpus=(0, 1)) for index in range(3)}
    hosts = (
        replace(PLAN.hosts[0], processes=4),
        replace(PLAN.hosts[1], gpus=(1, 5)),
        replace(PLAN.hosts[2], processes=2),
    )
    messages = {p.host: p.message for p in inspect(facts, {}, replace(PLAN, hosts=hosts), HERE).problems}
    assert messages.keys() == {"h1", "h2"}
    assert "it has 2 GPUs, but 4 slots" in messages["h1"]
    assert "it has 2 GPUs, but slots name GPU 5" in messages["h2"]
    on_cpu = replace(PLAN, hosts=hosts, needs=replace(PLAN.needs, device="cpu"))
    assert inspect(facts, {}, on_cpu, HERE).problems == ()


def test_what_the_runner_cannot_do_itself_is_said_of_here() -> None:
    here = replace(HERE, folder_problems={"runs": "Permission denied"}, files={"config.yml": None})
    facts = {index: replace(healthy(index), tokens={"saved": "token"}) for index in range(3)}
    problems = inspect(facts, {}, PLAN, here).problems
    assert [problem.host for problem in problems] == ["here", "here"]
    assert "logger.log_dir (runs) cannot be written: Permission denied" in problems[0].message
