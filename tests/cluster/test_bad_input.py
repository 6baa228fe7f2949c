"""What is wrong with the hosts is said before anything is started, all of it at once, with status 2."""

from __future__ import annotations

import re
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.bad_input import CASES, THREE, Scene
from tests.cluster.docker import Docker
from tests.cluster.runs import FOREVER, TWO, Cluster, Run, terminate
from tests.cluster.watching import Watch

pytestmark = pytest.mark.slow

SECONDS = 15.0
STARTED = "scaling.transformer.train"
"""What every rank has on its command line."""


def refused(cluster: Cluster, folder: Path, *names: str) -> Run:
    """Start a run in which these cases come together, which must be refused; return it."""
    kind = next((CASES[name].kind for name in names if CASES[name].kind != "ssh"), "ssh")
    with ExitStack() as stack:
        changes: dict[str, Any] = {}
        for name in names:
            changes |= stack.enter_context(CASES[name].prepare(Scene(cluster, folder)))
        with Watch(STARTED) as watch:
            began = time.monotonic()
            run = cluster.train(folder, TWO, cluster.runner(kind, 2), changes)
            status = run.wait(60)
            took = time.monotonic() - began
    assert status == 2, run.output
    assert took < SECONDS, run.output
    assert watch.seen == set()
    assert "Traceback" not in run.output
    assert not (run.log_dir / "metrics.jsonl").exists()
    assert not run.save_dir.exists() or list(run.save_dir.iterdir()) == []
    cluster.hosts.wait_until_idle(10)
    return run


def assert_says(run: Run, *names: str) -> None:
    said = re.sub(r"\n {5,}", " ", run.output)  # each problem in one line, as wide as it may be
    for name in names:
        for pattern in CASES[name].message:
            assert re.search(pattern, said), f"{name}: {pattern!r} is not in\n{run.output}"


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_started(cluster: Cluster, docker: Docker, tmp_path: Path, name: str) -> None:
    assert_says(refused(cluster, tmp_path, name), name)
    assert not Path("owned").exists()
    assert docker.containers() == {}


@pytest.mark.parametrize("names", THREE, ids=", ".join)
def test_all_that_is_wrong_is_said_at_once(cluster: Cluster, tmp_path: Path, names: tuple[str, str, str]) -> None:
    assert_says(refused(cluster, tmp_path, *names), *names)


def test_all_malformed_lines_are_said_at_once(cluster: Cluster, tmp_path: Path) -> None:
    lines = ["h1; touch owned", "$(touch owned)", "h2 slots=0,0"]
    run = cluster.train(tmp_path, TWO, cluster.runner("pdsh", 2), {"runner.hosts": lines})
    assert run.wait(SECONDS) == 2
    for index, line in enumerate(lines):
        assert re.search(rf"hosts\.{index}.*{re.escape(line)}", run.output), run.output
    assert not Path("owned").exists()


def test_a_second_run_at_the_same_port_is_refused_and_the_first_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    first = cluster.train(tmp_path / "first", TWO, FOREVER, cluster.runner("ssh", 2))
    first.wait_for_step(3)
    second = cluster.train(tmp_path / "second", TWO, FOREVER, cluster.runner("ssh", 2))
    assert second.wait(SECONDS) == 2, second.output
    assert "29500" in second.output
    first.wait_for_step(first.steps()[-1] + 3)
    terminate(first)
    assert first.wait(30) == 75
