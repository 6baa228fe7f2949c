"""The plan of a run over several machines: one value, computed without a network."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.core.errors import ConfigError
from scaling.core.runner.config import RunnerConfig
from scaling.core.runner.hosts import Host
from scaling.core.runner.plan import HostNeeds, LaunchPlan, Order, launch_plan

PROGRAM = ("-m", "scaling.transformer.train", "my config.yml", "trainer.seed=1")
NEEDS = HostNeeds(files=("my config.yml",), folders=(("logger.log_dir", "runs/a"),), device="cpu")


def planned(hosts: list[Host], *, environ: dict[str, str] | None = None, **settings: Any) -> LaunchPlan:
    return launch_plan(
        RunnerConfig.from_dict(settings),
        hosts,
        PROGRAM,
        run_id="run-1",
        processes=sum(host.slots for host in hosts),
        config_path="my config.yml",
        needs=NEEDS,
        environ=environ or {},
        directory="/work",
        interpreter="/usr/bin/python3",
    )


@given(slots=st.lists(st.integers(1, 16), min_size=1, max_size=1000))
def test_every_rank_is_on_one_host_in_the_order_of_the_hosts(slots: list[int]) -> None:
    plan = planned([Host(f"h{number}", count) for number, count in enumerate(slots)])
    assert [rank for host in plan.hosts for rank in host.ranks] == list(range(plan.world_size))
    assert [host.index for host in plan.hosts] == list(range(len(slots)))
    assert [host.processes for host in plan.hosts] == slots
    assert all(plan.host_of(rank) is host for host in plan.hosts[:3] for rank in host.ranks)


def test_a_plan_touches_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("socket", "getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, None)
    assert planned([Host(f"h{number}", 8) for number in range(1000)]).world_size == 8000


def test_processes_meet_at_the_first_host_each_attempt_at_a_port_of_its_own() -> None:
    hosts = [Host("me@a", 1), Host("b", 1)]
    plan = planned(hosts)
    assert (plan.master_addr, plan.port(0), plan.port(2)) == ("a", 29500, 29502)
    plan = planned(hosts, master_addr="10.0.0.1", master_port=1234)
    assert (plan.master_addr, plan.port(0)) == ("10.0.0.1", 1234)


def test_hosts_have_to_offer_as_many_processes_as_the_topology_asks_for() -> None:
    with pytest.raises(ConfigError, match=r"offers 4 processes \(a: 2, b: 2\), but topology\.world_size is 8"):
        launch_plan(
            RunnerConfig(),
            [Host("a", 2), Host("b", 2)],
            PROGRAM,
            run_id="run-1",
            processes=8,
            config_path="c",
            needs=NEEDS,
        )


def test_secrets_are_in_the_plan_by_name_only() -> None:
    environ = {"NCCL_DEBUG": "INFO", "TORCH_TOKEN": "hush"}
    plan = planned([Host("a", 1)], environ=environ)
    assert (plan.environment, plan.secrets) == ({"NCCL_DEBUG": "INFO"}, ("TORCH_TOKEN",))
    assert "hush" not in json.dumps(plan.as_dict())


def test_an_order_survives_its_way() -> None:
    plan = planned([Host("a", 2, (0, 3)), Host("b", 1)], environ={"NCCL_DEBUG": "INFO"})
    order = Order(plan=plan, attempt=2, secrets={"A_KEY": "hush"}, config_text="a: 1\n# ü\n")
    line = order.to_json()
    assert "\n" not in line
    assert Order.from_json(line) == order
