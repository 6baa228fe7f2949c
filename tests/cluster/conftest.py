"""The hosts that all tests of a session share, and what runs there."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.docker import Docker
from tests.cluster.hosts import Hosts, requirements
from tests.cluster.runs import Cluster
from tests.cluster.slurm import Slurm
from tests.transformer.small import build_corpus

HERE = Path(__file__).parent
CANNOT = pytest.StashKey[list[str]]()
"""What this machine lacks."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave one test where this machine cannot have hosts: that says why."""
    ours = [item for item in items if item.path.is_relative_to(HERE)]
    config.stash[CANNOT] = requirements() if ours else []
    if config.stash[CANNOT]:
        left_out = [item for item in ours if item.name != "test_this_machine_can_have_hosts"]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def lacking(request: pytest.FixtureRequest) -> list[str]:
    """What this machine lacks for hosts."""
    return request.config.stash[CANNOT]


@pytest.fixture(scope="session")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Two hosts, h1 and h2."""
    with Hosts(folder=tmp_path_factory.mktemp("hosts")) as made:
        yield made


@pytest.fixture(scope="session")
def docker(hosts: Hosts) -> Iterator[Docker]:
    """Docker on both hosts."""
    with Docker(hosts, folder=hosts.folder / "docker") as made:
        yield made


@pytest.fixture(scope="session")
def slurm(hosts: Hosts) -> Iterator[Slurm]:
    """Slurm on both hosts."""
    with tempfile.TemporaryDirectory(prefix="slurm_") as folder:  # a short path: sockets
        made = Slurm(hosts.names, Path(folder), prefix=hosts.prefix)
        try:
            made.start()
            hosts.keep()
            yield made
        finally:
            made.stop()


@pytest.fixture(scope="session")
def cluster(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """The hosts, with a corpus to train on."""
    return Cluster(hosts, build_corpus(tmp_path_factory.mktemp("cluster") / "corpus" / "data"))


@pytest.fixture(autouse=True)
def nothing_runs_on(request: pytest.FixtureRequest) -> Iterator[None]:
    """Remove what a test has left on the hosts: one that failed, or one that has killed what would have cleaned up."""
    yield
    if "hosts" in request.fixturenames:
        made: Hosts = request.getfixturevalue("hosts")
        for name in made.names:
            made.mend(name)
            made.kill(name)
            made.set_hosts_file(name)
        for path in made.tmp.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
