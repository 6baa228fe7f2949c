"""However a run over hosts is left, its ranks save, and nothing of it stays on any host."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.docker import IMAGE, Docker
from tests.cluster.runs import FOREVER, TWO, Cluster, Run, close_terminal, kill, press_ctrl_c, terminate

pytestmark = pytest.mark.slow

SECONDS = 10.0
"""In which everything is gone once it has saved."""

WAYS: dict[str, Callable[[Run], None]] = {
    "killed": kill,
    "terminated": terminate,
    "ctrl-c": press_ctrl_c,
    "terminal-closed": close_terminal,
}


@pytest.mark.parametrize("kind", ["ssh", "pdsh", "pdsh_docker"])
@pytest.mark.parametrize("way", WAYS)
def test_all_ranks_save_and_are_gone(cluster: Cluster, docker: Docker, tmp_path: Path, kind: str, way: str) -> None:
    image = {"docker_container": IMAGE, "docker_mounts": docker.mounts()}
    more: dict[str, Any] = {"docker_config": image} if kind == "pdsh_docker" else {}
    runner = cluster.runner(kind, 2, **more)
    run = cluster.train(tmp_path, TWO, FOREVER, runner, terminal=way in ("ctrl-c", "terminal-closed"))
    run.wait_for_step(3)
    WAYS[way](run)
    latest = run.save_dir / "latest"
    run.wait_until(latest.exists, "a checkpoint", seconds=2 * SECONDS, may_end=True)
    cluster.hosts.wait_until_idle(SECONDS)
    assert run.wait(SECONDS) == {"killed": -9}.get(way, 75), run.output
    assert run.state["state"] == "pre-empted"
    step = run.state["step"]
    assert latest.read_text() == f"global_step{step}"
    assert run.steps() == list(range(1, step + 1))
    assert "Traceback" not in run.output
    assert docker.containers() == {}
    assert list(cluster.hosts.tmp.iterdir()) == []
