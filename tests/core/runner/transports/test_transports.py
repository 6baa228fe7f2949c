"""What is started on this machine to reach others: exact commands, for every way and every verb."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.core.errors import ConfigError
from scaling.core.runner.config import RunnerConfig
from scaling.core.runner.hosts import Host
from scaling.core.runner.plan import HostNeeds, LaunchPlan, launch_plan
from scaling.core.runner.transports import require_programs, transport_of
from scaling.core.runner.transports.client import Client, Verb, remote_command

OPTIONS = (
    "-o BatchMode=yes -o ConnectTimeout=5 -o ServerAliveInterval=5 -o ServerAliveCountMax=3 "
    "-o ControlMaster=no -o ControlPath=none"
)
NODE = "/usr/bin/python3 -u -m scaling.core.runner.node"
ORDER = Path("/shared/order.json")
HOSTS = [Host("a", 2), Host("me@b", 2)]


def runner(kind: str, **settings: Any) -> RunnerConfig:
    docker = {"docker_container": "image", **settings.pop("docker", {})} if kind == "pdsh_docker" else {}
    return RunnerConfig.from_dict({"runner_type": kind, "docker_config": docker, **settings})


def planned(
    hosts: list[Host], *, directory: str = "/work dir", environ: dict[str, str] | None = None, device: str = "auto"
) -> LaunchPlan:
    return launch_plan(
        RunnerConfig(forward_environment=["*"]),
        hosts,
        ["-m", "train", "config.yml"],
        run_id="run-1",
        processes=sum(host.slots for host in hosts),
        config_path="config.yml",
        needs=HostNeeds(device=device),
        environ=environ or {},
        directory=directory,
        interpreter="/usr/bin/python3",
    )


def clients(config: RunnerConfig, verb: Verb, plan: LaunchPlan | None = None, **more: Any) -> list[Client]:
    transport = transport_of(config)
    if transport.needs_file and verb in (Verb.RUN, Verb.LOOK):
        more["order_file"] = ORDER
    return transport.clients(planned(HOSTS) if plan is None else plan, verb, **more)


@pytest.mark.parametrize("verb", [Verb.RUN, Verb.LOOK])
def test_ssh_reaches_each_machine_by_itself_and_takes_the_order(verb: Verb) -> None:
    found = clients(runner("ssh", ssh_config="/my ssh"), verb)
    remote = "cd '/work dir' && exec env SCALING_NODE=run-1/{0} " + f"{NODE} {verb.value} --index {{0}} --run run-1"
    assert [client.argv for client in found] == [
        (*shlex.split(f"ssh -T -F '/my ssh' {OPTIONS} -- {name}"), remote.format(index))
        for index, name in enumerate(["a", "me@b"])
    ]
    assert [(client.hosts, client.takes_input, client.names_lines) for client in found] == [
        ((0,), True, False),
        ((1,), True, False),
    ]


def test_pdsh_reaches_all_machines_at_once_and_passes_no_input_on() -> None:
    (found,) = clients(runner("pdsh", ssh_config="/100%n"), Verb.RUN)
    remote = (
        f"cd '/work dir' && exec env SCALING_NODE=run-1/%n {NODE} run --index %n --run run-1 --order /shared/order.json"
    )
    assert found.argv == ("pdsh", "-R", "ssh", "-S", "-t", "5", "-f", "32", "-w", "a,me@b", remote)
    assert (found.hosts, found.takes_input, found.names_lines) == ((0, 1), False, True)
    assert found.environment == {"PDSH_SSH_ARGS_APPEND": f"-F /100%%n {OPTIONS}"}


def test_some_machines_are_reached_by_their_number_in_the_plan() -> None:
    (found,) = clients(runner("pdsh"), Verb.ASK, signal="USR1", only=[1])
    assert found.argv[-2:] == (
        "me@b",
        f"cd '/work dir' && exec env SCALING_NODE=run-1/1 {NODE} ask --index 1 --run run-1 --signal USR1",
    )
    (found,) = clients(runner("ssh"), Verb.CLEAR, only=[1])
    assert found.argv[-1].endswith(f"SCALING_NODE=run-1/1 {NODE} clear --index 1 --run run-1")
    assert not found.takes_input


def test_a_container_has_a_name_of_this_run_the_mounts_and_no_more_rights_than_asked_for() -> None:
    plan = planned(HOSTS, environ={"MY_TOKEN": "hush", "PYTHONPATH": "/x y"}, device="cpu")
    mounts = [["/data", "/data"], ["/usr", "/usr"]]
    config = runner("pdsh_docker", docker={"docker_mounts": mounts})
    (found,) = clients(config, Verb.RUN, plan)
    assert found.argv[-1] == (
        "exec docker run -i --rm --pull=never --name scaling-run-1-%n --network=host --ipc=host "
        "--ulimit stack=67108864 -v /data:/data -v /usr:/usr -v '/work dir:/work dir' -w '/work dir' "
        f"--env SCALING_NODE=run-1/%n --env 'PYTHONPATH=/x y' --env MY_TOKEN image {NODE} run --index %n --run run-1 "
        "--order /shared/order.json"
    )
    assert found.argv[:3] == ("pdsh", "-R", "ssh")
    asked = runner("pdsh_docker", docker={"docker_privileged": True, "docker_sudo": True})
    (found,) = clients(asked, Verb.RUN, plan)
    assert "exec sudo -n docker run -i --rm" in found.argv[-1]
    assert "--privileged" in found.argv[-1]
    assert " image python3 -u -m scaling" in found.argv[-1], "the interpreter of this machine is not in the image"
    (found,) = clients(config, Verb.LOOK, plan)
    assert "--name scaling-run-1-%n-look " in found.argv[-1]
    (found,) = clients(asked, Verb.ASK, plan, signal="TERM")
    assert found.argv[-1] == "sudo -n docker kill --signal=TERM scaling-run-1-%n"
    (found,) = clients(config, Verb.CLEAR, plan)
    assert found.argv[-1] == "docker rm -f scaling-run-1-%n scaling-run-1-%n-look"


def test_a_container_gets_gpus_where_slots_are_gpus() -> None:
    config = runner("pdsh_docker")
    named = planned([Host("a", 2, (0, 2)), Host("b", 1, (1,))])
    first, second = clients(config, Verb.RUN, named)
    assert " --gpus '\"device=0,2\"' image" in first.argv[-1]
    assert " --gpus '\"device=1\"' image" in second.argv[-1]
    assert "--index 1 " in second.argv[-1]
    (counted,) = clients(config, Verb.RUN, planned(HOSTS))
    assert "$(ls /dev/nvidia[0-9]* >/dev/null 2>&1 && echo --gpus all) image" in counted.argv[-1]
    (none,) = clients(config, Verb.RUN, planned(HOSTS, device="cpu"))
    assert "gpus" not in none.argv[-1]


def test_a_container_on_this_machine_needs_no_pdsh() -> None:
    (found,) = clients(runner("pdsh_docker"), Verb.RUN, planned([Host("localhost", 2)], device="cpu"))
    assert found.argv[:2] == ("sh", "-c")
    assert found.argv[2].startswith("exec docker run -i --rm --pull=never --name scaling-run-1-0 ")
    assert not found.names_lines


@pytest.mark.parametrize("kind", ["ssh", "pdsh", "pdsh_docker"])
@pytest.mark.parametrize("verb", list(Verb))
def test_no_secret_is_on_a_command_line(kind: str, verb: Verb) -> None:
    plan = planned(HOSTS, environ={"WANDB_API_KEY": "hush", "NCCL_DEBUG": "INFO"})
    for client in clients(runner(kind), verb, plan):
        assert "hush" not in str(client)
        assert "NCCL_DEBUG" not in str(client), "the order has it"


@settings(max_examples=50, deadline=None)
@given(
    directory=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1),
    path=st.text(st.characters(exclude_characters="\0\n", exclude_categories=["Cs"]), min_size=1),
)
def test_no_path_breaks_out_of_its_place(directory: str, path: str) -> None:
    plan = planned(HOSTS, directory=directory, environ={"PYTHONPATH": path})
    line = remote_command(plan, Verb.RUN, index="1", order_file=Path(directory))
    show = "cd() { printf '%s\\0' \"$@\"; }; show() { printf '%s\\0' \"$@\"; }; "
    line = line.replace(" && exec env ", " && show env ", 1)
    said = subprocess.run(["bash", "-c", show + line], capture_output=True, check=True).stdout.decode()
    expected = [directory, "env", "SCALING_NODE=run-1/1", f"PYTHONPATH={path}", *NODE.split(), "run", "--index", "1"]
    assert said.split("\0") == [*expected, "--run", "run-1", "--order", str(Path(directory)), ""]


def test_a_percent_sign_in_a_path_is_no_escape_of_pdsh() -> None:
    plan = planned(HOSTS, directory="/100%n")
    (found,) = clients(runner("pdsh"), Verb.RUN, plan)
    assert found.argv[-1].startswith("cd /100%%n && exec env SCALING_NODE=run-1/%n ")


def test_what_pdsh_cannot_pass_on_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"runner\.ssh_config.*'/my ssh', but pdsh can pass on no path with a space"):
        clients(runner("pdsh", ssh_config="/my ssh"), Verb.LOOK)
    with pytest.raises(ConfigError, match=r"runner\.hosts.*'me@db8::1', but pdsh takes no user with an IPv6 address"):
        clients(runner("pdsh"), Verb.LOOK, planned([Host("a", 1), Host("me@db8::1", 1)]))


def test_pdsh_takes_the_beginning_of_an_address_for_no_way_of_reaching_it() -> None:
    (found,) = clients(runner("pdsh"), Verb.LOOK, planned([Host("a", 1), Host("2001:db8::1", 1)]))
    assert found.argv[-2] == "a,ssh:2001:db8::1"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("ssh", "no ssh on this machine; install it (on Debian: apt install openssh-client)"),
        ("pdsh", "no pdsh and no ssh"),
    ],
)
def test_a_program_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, kind: str, words: str) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError) as caught:
        require_programs(runner(kind))
    assert words in str(caught.value)
