"""A layout trains the same, to the last bit, on one machine and over hosts, however it is started; secrets stay so."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.docker import IMAGE, Docker
from tests.cluster.runs import EIGHT, Cluster, losses
from tests.cluster.slurm import Slurm
from tests.cluster.watching import Watch, files_with
from tests.transformer.small import write_config

pytestmark = pytest.mark.slow

SHORT = {"trainer.train_iterations": 10, "trainer.save_interval": 5}
SECRET = "canary-4711-secret"
SECRET_NAME = "WANDB_API_KEY"
WITH_SECRET = {SECRET_NAME: SECRET, "WANDB_MODE": "offline"}
FORWARDED = {"forward_environment": ["OMP_*", "PYTHON*", "WANDB_*"]}
WANDB = {"logger.use_wandb": True} if find_spec("wandb") else {}
"""It runs a program beside the rank, and writes files of its own into log_dir."""


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Return the losses of the run on one machine, which keeps the secret too."""
    folder = tmp_path_factory.mktemp("layouts")
    with Watch(SECRET) as watch:
        run = cluster.train(folder, EIGHT, SHORT, WANDB, variables=WITH_SECRET)
        lines = run.finish()
    assert watch.seen == set()
    assert files_with(SECRET, [folder, cluster.hosts.tmp]) == []
    assert (run.log_dir / "wandb").exists() == bool(WANDB)
    return losses(lines)


def of_kind(kind: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return what a kind of runner needs beside hosts."""
    if kind != "pdsh_docker":
        return {}
    docker: Docker = request.getfixturevalue("docker")
    return {"docker_config": {"docker_container": IMAGE, "docker_mounts": docker.mounts()}}


@pytest.mark.parametrize("kind", ["ssh", "pdsh", "pdsh_docker"])
def test_a_run_over_hosts_is_that_of_one_machine(
    cluster: Cluster, undisturbed: dict[int, float], tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    hosts, more = cluster.hosts, of_kind(kind, request)
    if kind == "ssh":  # as Debian writes it: a host's own name leads to itself alone
        for name in hosts.names:
            others = [f"{hosts.address(other)} {other}\n" for other in hosts.names if other != name]
            hosts.set_hosts_file(name, f"127.0.0.1 localhost\n127.0.1.1 {name}\n{''.join(others)}")
        more |= {"master_addr": hosts.address("h1")}
    # Without a standard input to go through, a secret is taken from the host's own environment.
    with Watch(SECRET) as watch, hosts.more_variables({} if kind == "ssh" else {SECRET_NAME: SECRET}):
        runner = cluster.runner(kind, 8, **more, **FORWARDED)
        run = cluster.train(tmp_path, EIGHT, SHORT, WANDB, runner, variables=WITH_SECRET)
        run.wait_until(lambda: ranks_with_secret(cluster, "h2") == 4, "the secret of h2's ranks", seconds=60)
        lines = run.finish()
    assert losses(lines) == undisturbed, run.output
    hosts.wait_until_idle(10)
    assert watch.samples > 10
    assert watch.seen == set()
    assert files_with(SECRET, [tmp_path, hosts.tmp]) == []
    assert list(hosts.tmp.iterdir()) == []
    if kind == "pdsh_docker":
        assert request.getfixturevalue("docker").containers() == {}


def ranks_with_secret(cluster: Cluster, host: str) -> int:
    """Return how many ranks on a host have the secret in their environment."""
    found = 0
    for pid in cluster.hosts.pids(host):
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it has just ended
        names = {variable.partition(b"=")[0] for variable in variables}
        found += b"LOCAL_RANK" in names and f"{SECRET_NAME}={SECRET}".encode() in variables
    return found


def test_torchrun_by_hand(cluster: Cluster, undisturbed: dict[int, float], tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yml", cluster.settings(tmp_path, EIGHT, SHORT))
    together = ["--nnodes=2", "--nproc-per-node=4", "--master-addr=h1", "--master-port=29500"]
    nodes = [
        cluster.start(
            tmp_path if node == 0 else tmp_path / "second",
            host,
            [
                "-m",
                "torch.distributed.run",
                *together,
                f"--node-rank={node}",
                "-m",
                "scaling.transformer.train",
                config,
            ],
        )
        for node, host in enumerate(cluster.hosts.names)
    ]
    for node in nodes:
        assert node.wait() == 0, node.output
    assert losses(nodes[0].finish()) == undisturbed
    cluster.hosts.wait_until_idle(10)


def test_a_job_of_slurm(cluster: Cluster, undisturbed: dict[int, float], tmp_path: Path, slurm: Slurm) -> None:
    runner = cluster.runner("slurm", 8, hosts=None, default_gpu_count=4, **FORWARDED)
    with Watch(SECRET) as watch:
        run = cluster.train(tmp_path, EIGHT, SHORT, WANDB, runner, variables={**WITH_SECRET, **slurm.environment})
        assert run.wait(60) == 0, run.output
        job = slurm.only_job()
        assert f"scancel {job}" in run.output
        assert slurm.wait_for_state(job, "COMPLETED", "FAILED", "CANCELLED") == "COMPLETED", slurm.said(tmp_path)
    assert losses(run.lines()) == undisturbed
    cluster.hosts.wait_until_idle(10)
    assert watch.seen == set()
    assert files_with(SECRET, [tmp_path, cluster.hosts.tmp]) == []


def test_a_manifest_has_no_secret(cluster: Cluster, tmp_path: Path) -> None:
    kubernetes = {"image": "registry.example/scaling:1", "secrets": {SECRET_NAME: "canary/token"}}
    runner = cluster.runner("kubernetes", 8, hosts=None, default_gpu_count=4, kubernetes=kubernetes, **FORWARDED)
    with Watch(SECRET) as watch:
        run = cluster.train(tmp_path, EIGHT, SHORT, runner, variables=WITH_SECRET)
        assert run.wait(60) == 0, run.output
    assert watch.seen == set()
    assert files_with(SECRET, [tmp_path]) == []
    assert SECRET_NAME in (run.log_dir / "jobset.yaml").read_text()
