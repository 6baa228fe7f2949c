"""A layout trains the same, to the last bit, on one machine and over hosts, however it is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.runs import EIGHT, Cluster, losses
from tests.transformer.small import write_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    return cluster.undisturbed(tmp_path_factory.mktemp("layouts"), EIGHT, SHORT)


SHORT = {"trainer.train_iterations": 10, "trainer.save_interval": None}


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
