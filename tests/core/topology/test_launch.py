"""How a process learns its rank: torchrun, srun, nothing at all, and malformed environments."""

from __future__ import annotations

import pytest

from scaling.core.errors import LayoutError
from scaling.core.topology.launch import LaunchContext

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "node-a",
    "MASTER_PORT": "29501",
}
SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "2",
    "MASTER_ADDR": "node-a",
    "MASTER_PORT": "29501",
}


def without(environ: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name not in names}


def test_an_empty_environment_is_a_process_on_its_own() -> None:
    launch = LaunchContext.from_environment({})
    assert launch == LaunchContext()
    assert (launch.rank, launch.world_size, launch.local_rank, launch.launched) == (0, 1, 0, False)


def test_a_meeting_place_alone_launches_nothing() -> None:
    assert not LaunchContext.from_environment({"MASTER_ADDR": "node-a", "MASTER_PORT": "1"}).launched


def test_the_five_variables_of_torchrun_are_the_contract() -> None:
    launch = LaunchContext.from_environment(TORCHRUN)
    assert (launch.rank, launch.world_size, launch.local_rank) == (3, 4, 1)
    assert launch.meeting_place == ("node-a", 29501)
    assert launch.launched
    assert not launch.agent_store
    assert launch.restart_count == 0


def test_the_agent_of_torchrun_is_recognised() -> None:
    agent = {
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": "abc",
        "TORCHELASTIC_RESTART_COUNT": "2",
    }
    launch = LaunchContext.from_environment(TORCHRUN | agent)
    assert (launch.agent_store, launch.job_id, launch.restart_count) == (True, "torchrun abc", 2)
    for here, all_here in (({}, False), ({"LOCAL_WORLD_SIZE": "2"}, False), ({"LOCAL_WORLD_SIZE": "4"}, True)):
        assert LaunchContext.from_environment(TORCHRUN | agent | here).one_machine is all_here
    assert not LaunchContext.from_environment(TORCHRUN | {"TORCHELASTIC_USE_AGENT_STORE": "False"}).agent_store


def test_one_process_of_a_launcher_needs_no_meeting_place() -> None:
    launch = LaunchContext.from_environment({"RANK": "0", "WORLD_SIZE": "1"})
    assert launch.launched
    assert launch.world_size == 1
    with pytest.raises(LayoutError, match="MASTER_ADDR"):
        _ = launch.meeting_place


def test_srun_tasks_are_recognised() -> None:
    launch = LaunchContext.from_environment(SRUN)
    assert (launch.rank, launch.world_size, launch.local_rank, launch.job_id) == (5, 8, 1, "slurm 77.2")
    assert launch.launched


def test_torchrun_inside_slurm_counts_as_torchrun() -> None:
    launch = LaunchContext.from_environment(SRUN | TORCHRUN)
    assert (launch.rank, launch.world_size) == (3, 4)


@pytest.mark.parametrize(
    "environ",
    [
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "77"},
        SRUN | {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"},
    ],
    ids=["the shell of a batch job", "a single task"],
)
def test_a_program_that_merely_runs_inside_an_allocation_is_on_its_own(environ: dict[str, str]) -> None:
    assert not LaunchContext.from_environment(environ).launched


def test_the_only_task_that_the_runner_has_srun_start_is_a_rank_and_starts_nothing() -> None:
    task = SRUN | {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0", "SCALING_SRUN": "77"}
    assert LaunchContext.from_environment(task).launched
    assert LaunchContext.from_environment(without(task, "MASTER_ADDR", "MASTER_PORT")).launched
    submitted_by_a_task = task | {"SLURM_JOB_ID": "78"}
    assert not LaunchContext.from_environment(submitted_by_a_task).launched
    assert not LaunchContext.from_environment(without(task, "SLURM_STEP_ID")).launched


def test_srun_without_a_meeting_place_says_how_to_set_one() -> None:
    environ = without(SRUN, "MASTER_ADDR", "MASTER_PORT") | {"SLURM_STEP_NUM_TASKS": "8"}
    with pytest.raises(LayoutError, match=r"scontrol show hostnames"):
        LaunchContext.from_environment(environ)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (TORCHRUN | {"RANK": "three"}, "RANK is 'three'"),
        (TORCHRUN | {"RANK": ""}, "RANK is ''"),
        (TORCHRUN | {"RANK": "4"}, "rank 4.*go from 0 to 3"),
        (TORCHRUN | {"RANK": "-1"}, "rank -1"),
        (TORCHRUN | {"WORLD_SIZE": "0"}, "number of processes is 0"),
        (TORCHRUN | {"LOCAL_RANK": "-2"}, "local rank is -2"),
        (TORCHRUN | {"MASTER_PORT": "70000"}, "MASTER_PORT to a port between 1 and 65535"),
        (TORCHRUN | {"MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
        (TORCHRUN | {"MASTER_ADDR": ""}, "set MASTER_ADDR"),
        (without(TORCHRUN, "MASTER_PORT"), "MASTER_PORT"),
        (without(TORCHRUN, "RANK"), "RANK is not set although"),
        (without(TORCHRUN, "WORLD_SIZE"), "WORLD_SIZE is not set although"),
        (without(TORCHRUN, "LOCAL_RANK"), "LOCAL_RANK is not set although"),
    ],
)
def test_a_malformed_environment_is_a_layout_error_naming_the_variable(environ: dict[str, str], message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        LaunchContext.from_environment(environ)
