"""Under the real torchrun: what the runner does not start has to behave as well."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("worker_script.py")


def torchrun(*arguments: str | Path, processes: int = 2) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(["src", os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "RES_OPTIONS": "timeout:1 attempts:1",
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run(
        [*command, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False, timeout=240
    )


def test_a_failure_is_said_once_and_again_in_torchruns_summary(tmp_path: Path) -> None:
    done = torchrun(WORKER, tmp_path / "config.yml", "raise:DataError")
    assert done.returncode == 1
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1
    assert "traceback : this is a DataError" in done.stderr


RESTARTED = """
    import os, signal, sys
    from datetime import timedelta
    from pathlib import Path
    import torch
    import torch.distributed as dist
    from scaling.core.topology.launch import LaunchContext
    from scaling.core.topology.rendezvous import connect_store, leave_store

    launch = LaunchContext.from_environment()
    store = connect_store(launch, digest="same", run_name="restarted", timeout=timedelta(seconds=60))
    dist.init_process_group("gloo", store=store, rank=launch.rank, world_size=launch.world_size)
    value = torch.ones(())
    dist.all_reduce(value)
    if launch.restart_count == 0:
        if launch.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        dist.barrier()
    Path(sys.argv[1], f"sum_{launch.rank}").write_text(str(int(value)))
    dist.destroy_process_group()
    assert leave_store(store, world_size=launch.world_size, timeout=timedelta(seconds=60))
"""


@pytest.mark.slow
def test_a_run_restarted_in_place_meets_anew(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(RESTARTED))
    done = torchrun("--max-restarts=1", script, tmp_path)
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"sum_{rank}").read_text() for rank in range(2)] == ["2", "2"]
